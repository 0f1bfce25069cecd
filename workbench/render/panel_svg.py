"""Panels as still pictures: attention, coloured tokens and top-k tables as SVG text, always the same bytes.

They show what the script of a panel shows, so that a page says the same without it. Blue is above 0 and red
below, and a number stands on every colour where it fits. Begin with `tokens_svg`, the shortest. Which numbers
are drawn is decided in `panels`.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.render.writing import BLUE, FONT, RED, decimal, letters, shorten, signed
from workbench.text import visible, xml

__all__ = ["BLUE", "RED", "Guess", "TokenLine", "attention_svg", "shade", "tokens_svg", "top_k_svg"]

Guess = tuple[str, float]
"""A token string and its probability."""
_STYLE = (
    "text{fill:#1f2937}.t{font-size:13px;font-weight:600}.s{font-size:11px;fill:#64748b}"
    ".v{font-size:9px;text-anchor:middle}"
    ".k{font:12px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
    ".c{text-anchor:middle}.r{text-anchor:end}"
    ".x{font-size:10px}.o{font-size:9px}.d{fill:#475569}.w,.w text{fill:#fff}.g{fill:none;stroke:#cbd5e1}"
    ".b{stroke:#cbd5e1;stroke-width:.7}"
)
_WIDTH, _LETTER = 960.0, 7.3  # of a picture, and of a letter of class k
_CELLS, _GUESSES, _TOKENS = 12_000, 3000, 4000
"""The most that one picture draws, so that a browser stays quick; a note says what was left out."""
_SHADES = 50  # cells of one shade are one path, which keeps a picture of thousands of cells small


class TokenLine(NamedTuple):
    """A line of tokens with a value for each, and what the line is called."""

    label: str
    strings: Sequence[str]
    values: Sequence[float]


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
    labels = [shorten(visible(text), 14) for text in strings]
    longest = max(map(letters, labels))
    left, below = 12 + 6.1 * longest, 8 + 5.2 * longest
    wide, tall = left + n * cell + 30, 26 + n * cell + below + 10
    across = max(1, int(_WIDTH // wide))
    floor = _weight_floor(pattern)
    drawn = np.abs(pattern) >= max(floor, 0.005)
    scale = max(1.0, float(np.abs(pattern).max()))
    body = f'<defs><g id="axes">{_token_axes(strings, labels, cell)}</g></defs>'
    for number, name in enumerate(names):
        row, column = divmod(number, across)
        at = f"{decimal(column * wide + left)} {decimal(62 + row * tall)}"
        cells = _cells(np.where(drawn[number], pattern[number], 0.0), scale, cell)
        heading = f'<text class="t" y="-8">{xml(shorten(visible(name), 40))}</text>'
        # the axes are the same for every head, so they are written once and used by name
        body += f'<g transform="translate({at})">{heading}{cells}<use href="#axes"/></g>'
    note = "rows: query, columns: key; white 0, blue 1"
    if floor:
        note += f"; the {int(drawn.sum()):,} largest weights, from {floor:.3f}, are drawn"
    n_rows = (len(names) + across - 1) // across
    return _document(max(430.0, wide * min(across, len(names))), 40 + n_rows * tall, title, note, body)


def _weight_floor(pattern: np.ndarray) -> float:
    """The smallest weight that is drawn where there are more than a picture can hold, otherwise 0."""
    sizes = np.abs(pattern).ravel()
    if (sizes >= 0.005).sum() <= _CELLS:
        return 0.0
    return float(np.partition(sizes, -_CELLS)[-_CELLS])


def _token_axes(strings: Sequence[str], labels: Sequence[str], cell: float) -> str:
    """The frame of a grid with tokens at its left and below it; of very small cells not every token."""
    size = len(strings) * cell
    text = ""
    for i in range(0, len(strings), int(np.ceil(10 / cell))):
        middle = decimal((i + 0.5) * cell + 3.5)
        title = f"<title>{xml(f'{i}: {visible(strings[i])}')}</title>"
        text += f'<text x="-5" y="{middle}">{xml(labels[i])}{title}</text>'
        turned = f'transform="translate({middle} {decimal(size + 6)}) rotate(-90)"'
        text += f"<text {turned}>{xml(labels[i])}{title}</text>"
    frame = f'<rect class="g" width="{decimal(size)}" height="{decimal(size)}"/>'
    return f'{frame}<g class="x r">{text}</g>'


def _cells(weights: Float[np.ndarray, "row column"], scale: float, cell: float) -> str:
    """Squares on the colour of their weights, all of one colour as one path; where they fit, with numbers."""
    squares: dict[str, str] = {}
    for row, column in zip(*np.nonzero(weights), strict=True):
        colour = shade(round(float(weights[row, column]) / scale * _SHADES) / _SHADES, 1.0)
        squares[colour] = squares.get(colour, "") + f"M{column} {row}h1v1h-1z"
    paths = "".join(f'<path fill="{colour}" d="{path}"/>' for colour, path in squares.items())
    text = f'<g transform="scale({decimal(cell)})">{paths}</g>'
    if cell < 24:
        return text
    for style, white in (("o", False), ("o w", True)):
        rows = ""
        for row, line in enumerate(weights):
            rows += _numbers(line, white, scale, cell, (row + 0.5) * cell + 3)
        if rows:
            text += f'<g class="{style}">{rows}</g>'
    return text


def _numbers(line: Float[np.ndarray, " column"], white: bool, scale: float, cell: float, y: float) -> str:
    """The numbers of a row that are written in white, or those that are not.

    They are one text with an x for every character, which is much shorter than a text element for each
    number.
    """
    places, digits = [], ""
    for column in np.flatnonzero(line):
        weight = float(line[column])
        if _is_dark(weight, scale) is white:
            text = _brief(weight)
            digits += text
            for i in range(len(text)):
                places.append(f"{(column + 0.5) * cell + (i - len(text) / 2) * 5:.0f}")
    if digits:
        return f'<text x="{" ".join(places)}" y="{decimal(y)}">{digits}</text>'
    return ""


def tokens_svg(lines: Sequence[TokenLine], *, title: str, note: str = "") -> str:
    """Lines of tokens, each on the colour of its value and with the value under it; one scale for all lines.

    Args:
        note: what the picture leaves out, or what the numbers are.
    """
    scale = max((abs(value) for line in lines for value in line[2]), default=0.0) or 1.0
    y, body, n_tokens = 50.0, "", 0
    for label, strings, values in lines:
        if label:
            body += f'<text class="t" x="10" y="{decimal(y + 12)}">{xml(shorten(visible(label), 100))}</text>'
            y += 22
        x = 10.0
        for string, value in zip(strings, values, strict=True):
            n_tokens += 1
            if n_tokens > _TOKENS:
                continue
            width = _token_width(string, value)
            if x > 10 and x + width > _WIDTH - 10:
                x, y = 10.0, y + 38
            body += _token(string, value, scale, x, y, width)
            x += width + 2
        y += 46
    notes = [note, f"red −{scale:.3g}, white 0, blue +{scale:.3g}"]
    if n_tokens > _TOKENS:
        notes.append(f"the first {_TOKENS:,} of {n_tokens:,} tokens are drawn")
    return _document(_WIDTH, y, title, _joined(notes), body)


def _value_text(value: float) -> str:
    if value:
        return signed(value)
    return "0"


def _token_width(string: str, value: float) -> float:
    """Wide enough for the token and for the number under it."""
    return max(_LETTER * letters(shorten(visible(string), 40)) + 8, 5.6 * len(_value_text(value)) + 4)


def _token(string: str, value: float, scale: float, x: float, y: float, width: float) -> str:
    """A token on the colour of its value, with the value under it."""
    full, number = visible(string), _value_text(value)
    ink = " w" if _is_dark(value, scale) else ""
    size = f'x="{decimal(x)}" y="{decimal(y)}" width="{decimal(width)}" height="20"'
    middle = decimal(x + width / 2)
    return (
        f'<g><title>{xml(f"{full}: {number}")}</title><rect class="b" {size} fill="{shade(value, scale)}"/>'
        f'<text class="k c{ink}" x="{middle}" y="{decimal(y + 14)}">{xml(shorten(full, 40))}</text>'
        f'<text class="v d" x="{middle}" y="{decimal(y + 30)}">{number}</text></g>'
    )


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
    n_ranks = max(1, min(deepest, _GUESSES // max(1, len(rows) * len(columns))))
    n_columns = max(1, min(len(columns), _GUESSES // max(1, len(rows) * n_ranks)))
    notes = [note]
    if n_ranks < deepest:
        notes.append(f"the {n_ranks} likeliest of {deepest} are drawn")
    if n_columns < len(columns):
        notes.append(f"the first {n_columns} of {len(columns)} columns are drawn")
    shown = [[cell[:n_ranks] for cell in row[:n_columns]] for row in cells]
    room = _most_letters(shown)
    wide, line = _LETTER * room + 52, 17.0
    left = 16 + 6.4 * max((letters(shorten(visible(row), 20)) for row in rows), default=0)
    across = max(1, int((_WIDTH - left) // wide))
    heights = [line * max([1, *map(len, row)]) + 6 for row in shown]
    tops, body, y = list(accumulate(heights, initial=0.0)), "", 50.0
    for first in range(0, n_columns, across):
        last = min(first + across, n_columns)
        for column in range(first, last):
            full, x = visible(columns[column]), left + (column - first) * wide
            heading = f"{xml(shorten(full, room + 6))}<title>{xml(f'{column}: {full}')}</title>"
            body += f'<text class="k" x="{decimal(x + 3)}" y="{decimal(y + 12)}">{heading}</text>'
        for name, top, row in zip(rows, tops, shown, strict=False):
            at = f'x="{decimal(left - 8)}" y="{decimal(y + 32 + top)}"'
            body += f'<text class="s r" {at}>{xml(shorten(visible(name), 20))}</text>'
            for column, cell in enumerate(row[first:last]):
                for rank, guess in enumerate(cell):
                    corner = left + column * wide, y + 20 + top + rank * line
                    body += _guess(guess, rank, *corner, wide - 3, line - 1)
        y += tops[-1] + 40
    return _document(left + wide * min(across, n_columns) + 8, y, title, _joined(notes), body)


def _most_letters(cells: Sequence[Sequence[Sequence[Guess]]]) -> int:
    """The width of the longest token of a table, at least 6 letters."""
    most = 6
    for row in cells:
        for cell in row:
            for token, _ in cell:
                most = max(most, letters(shorten(visible(token), 14)))
    return most


def _joined(notes: Iterable[str]) -> str:
    return "; ".join(filter(None, notes))


def shade(value: float, scale: float) -> str:
    """The colour of a value between −scale (red), 0 (white) and +scale (blue).

    >>> shade(1.0, 1.0), shade(0.0, 1.0), shade(-2.0, 1.0)
    ('#2369b0', '#ffffff', '#c2410c')
    """
    depth = min(abs(value) / scale, 1.0) if scale else 0.0
    full = BLUE if value >= 0 else RED
    channels = [255 + (int(full[i : i + 2], 16) - 255) * depth for i in (1, 3, 5)]  # red, green, blue
    return "#" + "".join(f"{round(channel):02x}" for channel in channels)


def _guess(guess: Guess, rank: int, x: float, y: float, width: float, height: float) -> str:
    """A token on the colour of its probability, with the number at its right."""
    token, prob = guess
    full = visible(token)
    ink = " w" if _is_dark(prob, 1.0) else ""
    size = f'x="{decimal(x)}" y="{decimal(y)}" width="{decimal(width)}" height="{decimal(height)}"'
    base = decimal(y + 12)
    return (
        f'<g><title>{xml(f"{rank + 1}. {full}: {prob:.4g}")}</title><rect {size} fill="{shade(prob, 1.0)}"/>'
        f'<text class="k{ink}" x="{decimal(x + 3)}" y="{base}">{xml(shorten(full, 14))}</text>'
        f'<text class="x r{ink}" x="{decimal(x + width - 4)}" y="{base}">{_plain(prob)}</text></g>'
    )


def _document(width: float, height: float, title: str, note: str, body: str) -> str:
    wide, tall = decimal(width), decimal(height)
    size = f'width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{xml(title)}" '
        f'font-family="{FONT}"><style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="t" x="10" y="20">{xml(shorten(visible(title), 120))}</text>'
        f'<text class="s" x="10" y="37">{xml(note)}</text>{body}</svg>'
    )


def _is_dark(value: float, scale: float) -> bool:
    """Whether white text is easier to read on the colour of the value than dark text, by WCAG's luminance."""
    colour = shade(value, scale)
    luminance = 0.0
    for weight, i in ((0.2126, 1), (0.7152, 3), (0.0722, 5)):  # red, green, blue of #rrggbb
        channel = int(colour[i : i + 2], 16) / 255
        luminance += weight * (channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4)
    return luminance < 0.225


def _plain(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _brief(value: float) -> str:
    """Two decimals without the leading zero, for narrow cells."""
    return ("−" if value < 0 else "") + f"{abs(value):.2f}".removeprefix("0")
