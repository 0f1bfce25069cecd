"""Panels as still pictures: attention, coloured tokens and top-k tables as SVG text, always the same bytes.

They show what the script of a panel shows, so that a page says the same without it. Blue is above 0 and red below, and a
number stands on every colour where it fits.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from jaxtyping import Float

from workbench.render.writing import BLUE, RED, decimal, letters, shorten, signed
from workbench.text import visible, xml

__all__ = ["BLUE", "RED", "attention_svg", "shade", "tokens_svg", "top_k_svg"]

Guess = tuple[str, float]
_STYLE = (
    "text{fill:#1f2937}.t{font-size:13px;font-weight:600}.s{font-size:11px;fill:#64748b}.v{font-size:9px;text-anchor:middle}"
    ".k{font:12px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}.c{text-anchor:middle}.r{text-anchor:end}"
    ".x{font-size:10px}.o{font-size:9px}.d{fill:#475569}.w,.w text{fill:#fff}.g{fill:none;stroke:#cbd5e1}.b{stroke:#cbd5e1;stroke-width:.7}"
)
_WIDTH, _LETTER = 960.0, 7.3
_CELLS, _GUESSES, _CHIPS, _SHADES = 12_000, 3000, 4000, 50


def attention_svg(
    strings: Sequence[str],
    pattern: Float[np.ndarray, "head query_pos key_pos"],
    names: Sequence[str],
    *,
    title: str,
) -> str:
    """A grid for each head: rows are query positions, columns key positions, the weight by the depth of blue.

    Weights that round to 0.00 are left white; of very many weights the largest are drawn, and a line says so.
    """
    n = len(strings)
    cell = float(np.clip(340 / n, 3, 30))
    every = int(np.ceil(10 / cell))
    labels = [shorten(visible(text), 14) for text in strings]
    left, below = 12 + 6.1 * max(map(letters, labels)), 8 + 5.2 * max(map(letters, labels))
    wide, tall = left + n * cell + 30, 26 + n * cell + below + 10
    across = max(1, int(_WIDTH // wide))
    strong = np.abs(pattern) >= 0.005
    floor = 0.0
    if strong.sum() > _CELLS:
        floor = float(np.partition(np.abs(pattern).ravel(), -_CELLS)[-_CELLS])
        strong &= np.abs(pattern) >= floor
    shared, scale = "", max(1.0, float(np.abs(pattern).max()))
    for i in range(0, n, every):
        middle, full = decimal((i + 0.5) * cell + 3.5), f"<title>{xml(f'{i}: {visible(strings[i])}')}</title>"
        shared += f'<text x="-5" y="{middle}">{xml(labels[i])}{full}</text>'
        shared += f'<text transform="translate({middle} {decimal(n * cell + 6)}) rotate(-90)">{xml(labels[i])}{full}</text>'
    frame = f'<rect class="g" width="{decimal(n * cell)}" height="{decimal(n * cell)}"/>'
    body = f'<defs><g id="axes">{frame}<g class="x r">{shared}</g></g></defs>'
    for h, name in enumerate(names):
        place = f"{decimal((h % across) * wide + left)} {decimal(62 + (h // across) * tall)}"
        cells = _cells(np.where(strong[h], pattern[h], 0.0), scale, cell)
        head = f'<text class="t" y="-8">{xml(shorten(visible(name), 40))}</text>'
        body += f'<g transform="translate({place})">{head}{cells}<use href="#axes"/></g>'
    note = "rows: query, columns: key; white 0, blue 1"
    note += f"; the {int(strong.sum()):,} largest weights, from {floor:.3f}, are drawn" if floor else ""
    rows = (len(names) + across - 1) // across
    return _svg(max(430.0, wide * min(across, len(names))), 40 + rows * tall, title, note, body)


def _cells(weights: Float[np.ndarray, "row column"], scale: float, cell: float) -> str:
    """Squares on the colour of their weights, all of one colour as one path; where they fit, with numbers."""
    squares: dict[str, str] = {}
    for row, column in zip(*np.nonzero(weights), strict=True):
        colour = shade(round(float(weights[row, column]) / scale * _SHADES) / _SHADES, 1.0)
        squares[colour] = squares.get(colour, "") + f"M{column} {row}h1v1h-1z"
    drawn = "".join(f'<path fill="{colour}" d="{path}"/>' for colour, path in squares.items())
    drawn = f'<g transform="scale({decimal(cell)})">{drawn}</g>'
    if cell < 24:
        return drawn
    for ink in (False, True):
        rows = "".join(
            _numbers(line, ink, scale, cell, (row + 0.5) * cell + 3) for row, line in enumerate(weights)
        )
        drawn += f'<g class="{"o w" if ink else "o"}">{rows}</g>' if rows else ""
    return drawn


def _numbers(line: Float[np.ndarray, " column"], white: bool, scale: float, cell: float, y: float) -> str:
    """The numbers of a row that are written in white, or those that are not, as one text with a place for every letter."""
    places, digits = [], ""
    for column in np.flatnonzero(line):
        weight = float(line[column])
        if _dark(weight, scale) is white:
            told = _brief(weight)
            digits += told
            places += [f"{(column + 0.5) * cell + (i - len(told) / 2) * 5:.0f}" for i in range(len(told))]
    return f'<text x="{" ".join(places)}" y="{decimal(y)}">{digits}</text>' if digits else ""


def tokens_svg(
    lines: Sequence[tuple[str, Sequence[str], Sequence[float]]], *, title: str, note: str = ""
) -> str:
    """Lines of tokens, each on the colour of its value and with the value under it; one scale for all lines.

    Args:
        lines: (label, token strings, one value for each token).
        note: what the picture leaves out, or what the numbers are.
    """
    scale = _scale([value for _, _, values in lines for value in values])
    y, body, left = 50.0, "", 0
    for label, strings, values in lines:
        if label:
            body += f'<text class="t" x="10" y="{decimal(y + 12)}">{xml(shorten(visible(label), 100))}</text>'
            y += 22
        x = 10.0
        for string, value in zip(strings, values, strict=True):
            if (left := left + 1) > _CHIPS:
                continue
            full, told = visible(string), signed(value) if value else "0"
            text = shorten(full, 40)
            width = max(_LETTER * letters(text) + 8, 5.6 * len(told) + 4)
            if x > 10 and x + width > _WIDTH - 10:
                x, y = 10.0, y + 38
            ink = " w" if _dark(value, scale) else ""
            body += (
                f'<g><title>{xml(f"{full}: {told}")}</title><rect class="b" x="{decimal(x)}" y="{decimal(y)}" width="{decimal(width)}" '
                f'height="20" fill="{shade(value, scale)}"/>'
                f'<text class="k c{ink}" x="{decimal(x + width / 2)}" y="{decimal(y + 14)}">{xml(text)}</text>'
                f'<text class="v d" x="{decimal(x + width / 2)}" y="{decimal(y + 30)}">{told}</text></g>'
            )
            x += width + 2
        y += 46
    scaled = f"red −{scale:.3g}, white 0, blue +{scale:.3g}"
    cut = f"; the first {_CHIPS:,} of {left:,} tokens are drawn" if left > _CHIPS else ""
    return _svg(_WIDTH, y, title, "; ".join(filter(None, (note, scaled))) + cut, body)


def top_k_svg(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Sequence[Sequence[Sequence[Guess]]],
    *,
    title: str,
    note: str = "",
) -> str:
    """A table of the likeliest tokens, with their probabilities; blocks of columns stand one under the other.

    Args:
        columns, rows: headings, such as the tokens of a prompt, and layers.
        cells: [row][column][rank] (token string, probability), likeliest first; a cell may be empty.
    """
    deepest = max((len(cell) for row in cells for cell in row), default=0)
    shown = max(1, min(deepest, _GUESSES // max(1, len(rows) * len(columns))))
    last = max(1, min(len(columns), _GUESSES // max(1, len(rows) * shown)))
    if shown < deepest:
        note = "; ".join(filter(None, (note, f"the {shown} likeliest of {deepest} are drawn")))
    if last < len(columns):
        note = "; ".join(filter(None, (note, f"the first {last} of {len(columns)} columns are drawn")))
    room = max(
        [
            6,
            *(
                letters(shorten(visible(guess[0]), 14))
                for row in cells
                for cell in row[:last]
                for guess in cell[:shown]
            ),
        ]
    )
    wide, line = _LETTER * room + 52, 17.0
    left = 16 + 6.4 * max([0, *(letters(shorten(visible(row), 20)) for row in rows)])
    across = max(1, int((_WIDTH - left) // wide))
    heights = [line * max([1, *(len(cell[:shown]) for cell in row[:last])]) + 6 for row in cells]
    tops, body, y = list(accumulate(heights, initial=0.0)), "", 50.0
    for first in range(0, last, across):
        for c, name in enumerate(columns[first : min(first + across, last)]):
            full = visible(name)
            at = f'x="{decimal(left + c * wide + 3)}" y="{decimal(y + 12)}"'
            body += f'<text class="k" {at}>{xml(shorten(full, room + 6))}<title>{xml(f"{first + c}: {full}")}</title></text>'
        for row, top, cells_of_row in zip(rows, tops, cells, strict=False):
            at = f'x="{decimal(left - 8)}" y="{decimal(y + 32 + top)}"'
            body += f'<text class="s r" {at}>{xml(shorten(visible(row), 20))}</text>'
            for c, cell in enumerate(cells_of_row[first : min(first + across, last)]):
                for rank, guess in enumerate(cell[:shown]):
                    body += _guess(
                        guess, rank, left + c * wide, y + 20 + top + rank * line, wide - 3, line - 1
                    )
        y += tops[-1] + 40
    return _svg(left + wide * min(across, last) + 8, y, title, note, body)


def shade(value: float, scale: float) -> str:
    """The colour of a value between −scale (red), 0 (white) and +scale (blue).

    >>> shade(1.0, 1.0), shade(0.0, 1.0), shade(-2.0, 1.0)
    ('#2369b0', '#ffffff', '#c2410c')
    """
    depth = min(abs(value) / scale, 1.0) if scale else 0.0
    full = BLUE if value >= 0 else RED
    mixed = (255 + (int(full[i : i + 2], 16) - 255) * depth for i in (1, 3, 5))
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def _guess(guess: Guess, rank: int, x: float, y: float, width: float, height: float) -> str:
    token, prob = guess
    full = visible(token)
    ink = " w" if _dark(prob, 1.0) else ""
    return (
        f'<g><title>{xml(f"{rank + 1}. {full}: {prob:.4g}")}</title><rect x="{decimal(x)}" y="{decimal(y)}" width="{decimal(width)}" '
        f'height="{decimal(height)}" fill="{shade(prob, 1.0)}"/><text class="k{ink}" x="{decimal(x + 3)}" y="{decimal(y + 12)}">'
        f'{xml(shorten(full, 14))}</text><text class="x r{ink}" x="{decimal(x + width - 4)}" y="{decimal(y + 12)}">{_plain(prob)}</text></g>'
    )


def _svg(width: float, height: float, title: str, note: str, body: str) -> str:
    size = f'width="{decimal(width)}" height="{decimal(height)}" viewBox="0 0 {decimal(width)} {decimal(height)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{xml(title)}" '
        f'font-family="Helvetica, Arial, sans-serif"><style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="t" x="10" y="20">{xml(shorten(visible(title), 120))}</text>'
        f'<text class="s" x="10" y="37">{xml(note)}</text>{body}</svg>'
    )


def _scale(values: Sequence[float]) -> float:
    return max((abs(value) for value in values), default=0.0) or 1.0


def _dark(value: float, scale: float) -> bool:
    """Whether white text is easier to read on the colour of the value than dark text (by WCAG's relative luminance)."""
    parts = (int(shade(value, scale)[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)) < 0.225


def _plain(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _brief(value: float) -> str:
    """Two decimals without the leading zero, for narrow cells."""
    return ("−" if value < 0 else "") + f"{abs(value):.2f}".removeprefix("0")
