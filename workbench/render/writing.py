"""Text and numbers in SVG pictures: how wide a text is, where it is cut or wrapped, how numbers are written.

Begin with `text_width` (proportional font, in pixels) and `letters` (monospaced font, in letters). A picture
is written without a browser, so widths are estimates, rather too wide than too narrow. Nothing here knows of
circuits or panels.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from workbench.text import visible

__all__ = [
    "BLUE",
    "FONT",
    "ORANGE",
    "cut",
    "decimal",
    "letters",
    "shorten",
    "shortened",
    "signed",
    "text_width",
    "wrap",
]

FONT = "DejaVu Sans, Verdana, sans-serif"
"""Of every picture. Verdana is as wide as DejaVu Sans, which matplotlib brings and measures with."""
BLUE, ORANGE = "#2369b0", "#c2410c"
"""Of what is above and below 0, in every picture."""
_NARROW = " iljtfI.,:;'|!()[]·"
_BROAD = "WM@m%…"


def text_width(text: str, size: float) -> float:
    """About how many pixels a text takes in the proportional font of the pictures, rather more than fewer.

    Args:
        size: of the font, in pixels.
    """
    return size * sum(map(_em, text))


def letters(text: str) -> int:
    """The width of a text in letters of a monospaced font, at least 1.

    >>> letters("abc"), letters("日本")
    (3, 4)
    """
    return max(1, sum(map(_cells, text)))


def cut(text: str, room: float, size: float) -> str:
    """The text, cut with an ellipsis where it is wider than `room` pixels."""
    if text_width(text, size) <= room:
        return text
    # widths grow with every letter, so the last one that leaves room for the ellipsis is found by bisection
    ends = list(accumulate(map(_em, text)))
    return text[: bisect_right(ends, room / size - _em("…"))] + "…"


def shorten(text: str, most: int) -> str:
    """The text, cut to `most` characters with an ellipsis.

    >>> shorten("abcdef", 4)
    'abc…'
    """
    if len(text) <= most:
        return text
    return text[: most - 1] + "…"


def shortened(names: Iterable[object], most: int) -> list[str]:
    """Each name with its invisible characters spelled, and cut to `most` characters."""
    return [shorten(visible(name), most) for name in names]


def wrap(pieces: Sequence[str], room: float, size: float) -> list[str]:
    """Pieces joined by ` · ` in rows of `room` pixels; a word wider than a row is cut with an ellipsis."""
    rows: list[str] = []
    for number, piece in enumerate(pieces):
        shown = visible(piece)
        for position, word in enumerate(shown.split(" ")):
            starts_piece = position == 0
            glue = " · " if starts_piece and number else " "
            # a short piece is not torn apart: the row must have room for all of it
            needed = shown if starts_piece and text_width(shown, size) < room / 2 else word
            if not rows or text_width(rows[-1] + glue + needed, size) > room:
                rows.append(word)
            else:
                rows[-1] += glue + word
    return [cut(row, room, size) for row in rows]


def signed(value: float) -> str:
    """A score to three significant digits, with its sign.

    >>> signed(0.41234)
    '+0.412'
    """
    if np.isfinite(value):
        return f"{value:+.3g}".replace("-", "−")
    return "no score"


def decimal(value: float) -> str:
    """A length for SVG: one decimal, and none where it is 0."""
    return f"{value:.1f}".removesuffix(".0")


def _cells(character: str) -> int:
    """How many letters wide a character is.

    East Asian characters and emoji take 2, marks that combine take 0.
    """
    if unicodedata.combining(character):
        return 0
    if unicodedata.east_asian_width(character) in "WF":
        return 2
    return 1


def _em(character: str) -> float:
    """The width of a character as a share of the font size, by the class of its shape, rather too wide than
    too narrow.
    """
    cells = _cells(character)
    if cells == 0:
        return 0.0
    if cells == 2:
        return 1.25
    if character in _BROAD:
        if character.isascii():
            return 1.0
        return 1.25
    if character in _NARROW:
        return 0.36
    if character.isupper():
        return 0.74
    return 0.63
