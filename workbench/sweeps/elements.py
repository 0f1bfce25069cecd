"""Which elements an entry of a spec's `sites` stands for: `elements_of`.

An element is one site, or several edited together.
"""

from collections.abc import Sequence
from typing import Any

from workbench.errors import SweepError
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, WORDS, Position, Shape, Site, grid
from workbench.sweeps.places import JOIN

Entry = str | Sequence[str]


def elements_of(entry: Entry, shape: Shape, pairs: PromptPairs, base: str) -> list[str]:
    """The elements that an entry stands for, as jobs spell them: a site, or several joined by `+`.

    Args:
        base: the run that is edited; its prompts must have the position.

    Raises:
        SiteError: the model has no such site.
        SweepError: no prompt has the position.
        UnknownName: an unknown kind, or a position that no prompt names.
    """
    prompts = pairs.side(base)
    if not isinstance(entry, str) or "[" in entry or JOIN in entry:
        texts = entry
        if isinstance(entry, str):
            texts = entry.split(JOIN)
        sites = [Site.parse(text).check(shape) for text in texts]
        for site in sites:
            _check_position(site.pos, entry, prompts)
        return [JOIN.join(map(str, sites))]
    kind, at, position = entry.partition("@")
    if kind not in KINDS | WORDS or (at and not position):
        Site.parse(entry)  # called for its error, which says what is wrong
    return [str(site) for site in grid(kind, shape, pos=_positions(position, entry, prompts))]


def entry_text(entry: Entry) -> str:
    """An entry as one text."""
    if isinstance(entry, str):
        return entry
    return JOIN.join(entry)


def _positions(position: str, entry: str, prompts: Prompts) -> Any:
    """What `grid` takes for the position of a kind; without one the whole sequence is edited."""
    if not position:
        return "all"
    if position == "each":
        return list(range(int(prompts.lengths.max())))
    index_or_name: Position = position
    if position.isdigit():
        index_or_name = int(position)
    _check_position(index_or_name, entry, prompts)
    return [index_or_name]


def _check_position(pos: Position | None, entry: Entry, prompts: Prompts) -> None:
    """Raise unless some prompt has that position."""
    if pos is not None and bool((prompts.at(pos) < 0).all()):
        raise SweepError(
            f"The site {entry_text(entry)!r}: no prompt has that position; the longest has "
            f"{int(prompts.lengths.max())} tokens."
        )
