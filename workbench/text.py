"""Words on a screen or a page: escaped, and with every invisible character spelled out.

Read `visible` (for people) and `xml` (for markup). It knows nothing of what the text says.
"""

import re
import unicodedata
from typing import Any
from xml.sax.saxutils import escape

from tqdm.auto import tqdm


def visible(text: object) -> str:
    r"""The text with every invisible character spelled out, and outer spaces as `·`.

    Characters that XML forbids count as invisible.

    >>> visible(" Mary\n\x00")
    '·Mary\\n\\x00'
    """
    shown = str(text)
    inner = shown.strip(" ")
    left = len(shown) - len(shown.lstrip(" "))
    shown = "·" * left + inner + "·" * (len(shown) - left - len(inner)) if inner else "·" * len(shown)
    return _spelled(shown) or "∅"


def xml(text: object) -> str:
    """`visible` text, escaped for XML and HTML, in and outside of quoted attributes."""
    return escape(_spelled(str(text)), {'"': "&quot;", "'": "&#39;"})


def progress_bar(total: int, description: str, unit: str, *, shown: bool) -> "tqdm[Any]":
    """A progress bar that leaves no line behind: `with progress_bar(...) as bar`, then `bar.update()`.

    Args:
        shown: False hides it; True shows it in a terminal or a notebook, and never in a file.
    """
    # `disable=None` is tqdm's word for "where there is a terminal".
    hidden = None if shown else True
    return tqdm(total=total, desc=description, unit=unit, disable=hidden, leave=False)


def _spelled(text: str) -> str:
    return text if text.isascii() and text.isprintable() else "".join(map(_spell, text))


def _spell(character: str) -> str:
    category = unicodedata.category(character)
    # Zero-width joiners are kept: letters of some scripts and emoji depend on them.
    hidden = category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and character not in "\u200c\u200d")
    if hidden or re.match(r"[\ufdd0-\ufdef]", character) or ord(character) & 0xFFFE == 0xFFFE:
        return character.encode("unicode_escape").decode("ascii")
    return character
