"""Names for places in prompts of text: marks `[[S2:Mary]]` in the text, and cells of columns `pos_S2`.

A place is a token. Of a phrase of several tokens it is the last one, where the model has read all of it. Read
`marked`, which takes marks out of a text, and `index_in`, which reads a cell. Tables are read in `pair_tables`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.errors import PromptError
from workbench.nodes import POSITION
from workbench.prompts.encoder import TextEncoder

# Capitals alone: "[[Category:Ships]]" and the like are text that a wiki has.
_MARK = re.compile(r"\[\[(?P<name>[A-Z][A-Z0-9_]*):(?P<phrase>.+?)\]\]", re.DOTALL)
# "Mary#2" is the second "Mary".
_NUMBERED = re.compile(r"(?P<phrase>.+)#(?P<number>[1-9][0-9]*)", re.DOTALL)


@dataclass(frozen=True)
class MarkedText:
    """A text without its marks, and where its places end.

    Attributes:
        ends: name → the character behind the phrase that it marks.
    """

    text: str
    ends: Mapping[str, int]


def marked(text: str, where: str) -> MarkedText:
    """A text whose marks `[[NAME:phrase]]` are taken out; the phrases stay.

    Raises `PromptError` where a name is marked twice.

    >>> marked("Then [[S1:Mary]] and [[IO:John]] left", "row 1")
    MarkedText(text='Then Mary and John left', ends={'S1': 9, 'IO': 18})
    """
    plain, ends, last = "", {}, 0
    for mark in _MARK.finditer(text):
        plain += text[last : mark.start()] + mark["phrase"]
        if mark["name"] in ends:
            raise PromptError(
                f"{where}: [[{mark['name']}:...]] is there twice. A name is one place of a prompt."
            )
        ends[mark["name"]] = len(plain)
        last = mark.end()
    return MarkedText(plain + text[last:], ends)


def token_before(encode: TextEncoder, text: str, end: int, where: str) -> int:
    """The index, BOS counted, of the token that holds the last character before `end` of a prompt's text."""
    read = encode.text(text, where=where)
    # Of a chat the text is a part of what is read.
    if read.count(text) != 1:
        raise PromptError(f"{where}: the text is there {read.count(text)} times in the chat template.")
    last = read.index(text) + end - 1
    spans = encode.spans(read)
    n_before = len(encode.with_bos(encode.plain(read))) - len(spans)
    covering = [i for i, (first, behind) in enumerate(spans) if first <= last < behind]
    if not covering:
        raise PromptError(f"{where}: no token ends there ({text[:end][-20:]!r}).")
    return n_before + covering[-1]  # a character of several bytes may be several tokens


def index_in(encode: TextEncoder, text: str, cell: str | int, where: str) -> int:
    """The token that a cell of a column `pos_NAME` means in a prompt.

    Args:
        cell: an index, which counts BOS; or a word or phrase that is in the text once; or `Mary#2`, its second one.

    Raises:
        PromptError: a phrase that is not in the text, or more than once, or an index outside of the prompt.
    """
    if isinstance(cell, int) or (cell.isascii() and cell.isdecimal()):
        n_tokens = len(encode.prompt(text, where=where))
        if not 0 <= int(cell) < n_tokens:
            raise PromptError(f"{where}: index {cell}; the prompt has the tokens 0 to {n_tokens - 1}.")
        return int(cell)
    ends = _ends(text, cell)
    numbered = _NUMBERED.fullmatch(cell)
    # As it stands first: a prompt may hold "#2" itself.
    if ends or numbered is None:
        if len(ends) > 1:
            raise PromptError(
                f"{where}: {cell!r} stands {len(ends)} times in {text!r}. Say which, as in {cell + '#2'!r}, or mark it "
                f"in the text: [[NAME:{cell}]]."
            )
    else:
        ends = _ends(text, numbered["phrase"])[int(numbered["number"]) - 1 :][:1]
    if not ends:
        raise PromptError(
            f"{where}: {cell!r} is not in {text!r}. Give a word or phrase of the prompt, or an index."
        )
    return token_before(encode, text, ends[0], where)


def check_name(name: str, column: str, source: str) -> None:
    """Raise `PromptError` for a column whose name is that of no position."""
    if name.isdecimal() or not re.fullmatch(POSITION, name, re.ASCII):
        raise PromptError(
            f"{source}: the column {column!r} names a position {name!r}. Names are letters, digits and _, as in pos_S2."
        )


def _ends(text: str, phrase: str) -> list[int]:
    """The characters behind each occurrence of a phrase; of words only whole ones, so that "cat" is not in "cats"."""
    before = r"(?<!\w)" if re.match(r"\w", phrase) else ""
    behind = r"(?!\w)" if re.search(r"\w$", phrase) else ""
    return [match.end() for match in re.finditer(before + re.escape(phrase) + behind, text)]
