"""Words on a screen or a page: escaped, and with every invisible character spelled out.

Read `visible` (for people), `spelled` (for lines of a terminal) and `xml` (for markup). It knows nothing of
what the text says.
"""

import re
import textwrap
import unicodedata
from collections.abc import Iterable
from xml.sax.saxutils import escape


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
    return spelled(shown) or "∅"


def spelled(text: str) -> str:
    r"""The text with every invisible character spelled out; spaces stay as they are.

    Escapes of terminals, in one byte or two, and marks that turn the direction of text count as invisible.

    >>> spelled(" \x1b[2J\x9b31m \u202eabc")
    ' \\x1b[2J\\x9b31m \\u202eabc'
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_spell, text))


def xml(text: object) -> str:
    """`visible` text, escaped for XML and HTML, in and outside of quoted attributes."""
    return escape(spelled(str(text)), {'"': "&quot;", "'": "&#39;"})


WIDEST = 110
"""Columns of what an object prints of itself."""


def wrapped(text: str) -> str:
    """The text in lines of at most `WIDEST` columns, those after the first indented."""
    return textwrap.fill(text, WIDEST, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def listed(names: Iterable[str]) -> str:
    """Names in a sentence.

    >>> listed(["swap", "abc", "zero"])
    'swap, abc and zero'
    """
    *first, last = list(names)
    return f"{', '.join(first)} and {last}" if first else last


def with_article(noun: str) -> str:
    """The noun after "a" or "an", by its first letter.

    >>> with_article("ActivationStore"), with_article("list")
    ('an ActivationStore', 'a list')
    """
    return f"an {noun}" if noun[:1].lower() in tuple("aeiou") else f"a {noun}"


def lone_surrogates(text: str) -> list[str]:
    """The halves of characters in a text, as of an emoji that was cut; no file or tokenizer holds them."""
    # The answer for nearly every text, in one look.
    if text.isascii():
        return []
    return [character for character in text if "\ud800" <= character <= "\udfff"]


def _spell(character: str) -> str:
    category = unicodedata.category(character)
    # Zero-width joiners are kept: letters of some scripts and emoji depend on them.
    hidden = category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and character not in "\u200c\u200d")
    if hidden or re.match(r"[\ufdd0-\ufdef]", character) or ord(character) & 0xFFFE == 0xFFFE:
        return character.encode("unicode_escape").decode("ascii")
    return character
