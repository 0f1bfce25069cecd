"""Attention patterns as a still picture: `attention_svg`, a grid for each head.

It shows what the script of the panel shows, so that a page says the same without it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from workbench.render.panel_svg import WIDTH, document, is_dark, shade
from workbench.render.writing import cut, decimal, letters, shorten, shortened
from workbench.text import visible, xml

_CELLS = 12_000
"""The most that one picture draws, so that a browser stays quick; a note says what was left out."""
_SHADES = 50  # cells of one shade are one path, which keeps a picture of thousands of cells small


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
    # a grid is at most 340 wide, so that two heads stand side by side; below 3 pixels a cell cannot be seen
    cell = float(np.clip(340 / n, 3, 30))
    labels = shortened(strings, 14)
    longest = max(map(letters, labels))
    left, below = 12 + 6.1 * longest, 8 + 5.2 * longest
    wide, tall = left + max(n * cell, 200) + 30, 40 + n * cell + below + 10
    across = max(1, int(WIDTH // wide))
    floor = _weight_floor(pattern)
    drawn = np.abs(pattern) >= max(floor, 0.005)  # less than 0.005 is written as 0.00
    scale = max(1.0, float(np.abs(pattern).max()))
    body = f'<defs><g id="axes">{_token_axes(strings, labels, cell)}</g></defs>'
    for number, name in enumerate(names):
        row, column = divmod(number, across)
        at = f"{decimal(column * wide + left)} {decimal(76 + row * tall)}"
        cells = _cells(np.where(drawn[number], pattern[number], 0.0), scale, cell)
        heading = f'<text class="t" y="-22">{xml(shorten(visible(name), 40))}</text>'
        heading += (
            f'<text class="s" y="-8">{xml(cut(_strongest(pattern[number], strings), wide - left, 11))}</text>'
        )
        # the axes are the same for every head, so they are written once and used by name
        # on dark paper too, 0 is white
        size = decimal(n * cell)
        ground = f'<rect fill="#fff" width="{size}" height="{size}"/>'
        body += f'<g data-head="{number}" transform="translate({at})">{heading}{ground}{cells}<use href="#axes"/></g>'
    note = "rows: the token that attends, columns: the token attended to; white 0, blue 1"
    if floor:
        note += f"; the {int(drawn.sum()):,} largest weights, from {floor:.3f}, are drawn"
    n_rows = (len(names) + across - 1) // across
    return document(max(430.0, wide * min(across, len(names))), 40 + n_rows * tall, title, note, body)


def _strongest(weights: Float[np.ndarray, "query_pos key_pos"], strings: Sequence[str]) -> str:
    """What the last token attends to most: it is where the next token is predicted."""
    key = int(weights[-1].argmax())
    label = shorten(visible(strings[key].strip() or strings[key]), 24)
    return f"the last token attends most to {label} ({weights[-1, key]:.2f})"


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
    # dark numbers, then white ones: the colour is said once for each group, not for each number
    for style, white in (("o i", False), ("o w", True)):
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
        if is_dark(weight, scale) is white:
            text = _brief(weight)
            digits += text
            for i in range(len(text)):
                places.append(f"{(column + 0.5) * cell + (i - len(text) / 2) * 5:.0f}")
    if digits:
        return f'<text x="{" ".join(places)}" y="{decimal(y)}">{digits}</text>'
    return ""


def _brief(value: float) -> str:
    """Two decimals without the leading zero, for narrow cells."""
    return ("−" if value < 0 else "") + f"{abs(value):.2f}".removeprefix("0")
