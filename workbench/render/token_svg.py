"""Tokens as still pictures: `tokens_svg`, lines on the colour of values, and `top_k_svg`, tables of guesses.

Which numbers are drawn is decided in `token_panels`, `lens_panels` and `neuron_panels`.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from workbench.render.panel_svg import WIDTH, document, ink_class, shade
from workbench.render.writing import decimal, letters, shorten, signed
from workbench.text import visible, xml

Guess = tuple[str, float]
"""A token string and its probability."""
_LETTER = 7.3
"""The width of a letter of class `k`, the monospaced font of tokens, in pixels."""
TINY = 0.005
"""Below this share of the scale a number is written as nearly 0: its digits would stretch the line and say nothing."""
OUTLYING = 3.0
"""Colours end at so many times the 90th percentile: one token cannot turn all others white."""
_GUESSES, _TOKENS = 3000, 4000
"""The most that one picture draws, so that a browser stays quick; a note says what was left out."""


class TokenLine(NamedTuple):
    """A line of tokens with a value for each.

    Attributes:
        label: what the line is called, above it.
        heading: above the label, where a group of lines begins.
    """

    label: str
    strings: Sequence[str]
    values: Sequence[float]
    heading: str = ""


def tokens_svg(
    lines: Sequence[TokenLine], *, title: str, note: str = "", unit: str = "", signs: bool = True
) -> str:
    """Lines of tokens, each on the colour of its value and with the value under it; one scale for all lines.

    Args:
        note: what the picture says, or what it leaves out.
        unit: of the values.
        signs: whether values may be on both sides of 0; False writes them without a plus.
    """
    sizes = [abs(value) for line in lines for value in line.values]
    scale = robust_scale(sizes)
    write = signed if signs else _unsigned
    y, body, n_tokens = 50.0, "", 0
    for label, strings, values, heading in lines:
        for css, text in (("t", heading), ("s", label)):
            if text:
                shown = xml(shorten(visible(text), 120))
                body += f'<text class="{css}" x="10" y="{decimal(y + 12)}">{shown}</text>'
                y += 20
        x = 10.0
        for string, value in zip(strings, values, strict=True):
            n_tokens += 1
            if n_tokens > _TOKENS:
                continue
            number = _value_text(value, TINY * scale, write)
            width = _token_width(string, number)
            if x > 10 and x + width > WIDTH - 10:
                x, y = 10.0, y + 38
            body += _token(string, number, ink_class(value, scale), shade(value, scale), x, y, width)
            x += width + 2
        y += 46
    notes = [note, _colours(scale, unit, signs=signs)]
    n_beyond = sum(size > scale for size in sizes)
    if n_beyond:
        notes.append(f"{n_beyond} beyond that have the full colour")
    if n_tokens > _TOKENS:
        notes.append(f"the first {_TOKENS:,} of {n_tokens:,} tokens are drawn")
    return document(WIDTH, y, title, _joined(notes), body)


def robust_scale(sizes: Sequence[float]) -> float:
    """The size at which colours are full: the largest, unless it is far beyond nearly all others.

    >>> robust_scale([1.0, 2.0, 3.0]), robust_scale([1.0] * 20 + [50.0])
    (3.0, 3.0)
    """
    known = sorted(size for size in sizes if size)
    if not known:
        return 1.0  # zeros alone have no scale, and 0 / 0 no colour
    return min(known[-1], OUTLYING * known[int(0.9 * (len(known) - 1))])


def _colours(scale: float, unit: str, *, signs: bool) -> str:
    """What the ends of the colours stand for."""
    amount = f"{scale:.3g} {unit}".strip()
    if signs:
        return f"blue +{amount}, white 0, orange −{amount}"
    return f"white 0, blue {amount}"


def _unsigned(value: float) -> str:
    return f"{value:.3g}"


def _value_text(value: float, least: float, write: Callable[[float], str]) -> str:
    if abs(value) >= least:
        return write(value)
    return "0" if not value else "≈0"


def _token_width(string: str, number: str) -> float:
    """Wide enough for the token and for the number under it."""
    return max(_LETTER * letters(shorten(visible(string), 40)) + 8, 5.6 * len(number) + 4)


def _token(string: str, number: str, ink: str, colour: str, x: float, y: float, width: float) -> str:
    """A token on the colour of its value, with the value under it."""
    full = visible(string)
    size = f'x="{decimal(x)}" y="{decimal(y)}" width="{decimal(width)}" height="20"'
    middle = decimal(x + width / 2)
    return (
        f'<g><title>{xml(f"{full}: {number}")}</title><rect class="b" {size} fill="{colour}"/>'
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
    deepest = 0
    for row in cells:
        deepest = max([deepest, *map(len, row)])
    # ranks before columns: a table of fewer positions says more than one of the first guesses alone
    n_ranks = max(1, min(deepest, _GUESSES // max(1, len(rows) * len(columns))))
    n_columns = max(1, min(len(columns), _GUESSES // max(1, len(rows) * n_ranks)))
    notes = [note]
    if n_ranks < deepest:
        notes.append(f"the {n_ranks} likeliest of {deepest} are drawn")
    if n_columns < len(columns):
        notes.append(f"the first {n_columns} of {len(columns)} columns are drawn")
    shown = []
    for row in cells:
        shown.append([cell[:n_ranks] for cell in row[:n_columns]])
    room = _most_letters(shown)
    wide, line = _LETTER * room + 52, 17.0
    left = 16 + 6.4 * max((letters(shorten(visible(row), 20)) for row in rows), default=0)
    across = max(1, int((WIDTH - left) // wide))
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
    return document(left + wide * min(across, n_columns) + 8, y, title, _joined(notes), body)


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


def _guess(guess: Guess, rank: int, x: float, y: float, width: float, height: float) -> str:
    """A token on the colour of its probability, with the number at its right."""
    token, prob = guess
    full = visible(token)
    ink = ink_class(prob, 1.0)
    size = f'x="{decimal(x)}" y="{decimal(y)}" width="{decimal(width)}" height="{decimal(height)}"'
    base = decimal(y + 12)
    return (
        f'<g><title>{xml(f"{rank + 1}. {full}: {prob:.4g}")}</title><rect {size} fill="{shade(prob, 1.0)}"/>'
        f'<text class="k{ink}" x="{decimal(x + 3)}" y="{base}">{xml(shorten(full, 14))}</text>'
        f'<text class="x r{ink}" x="{decimal(x + width - 4)}" y="{base}">{_plain(prob)}</text></g>'
    )


def _plain(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
