"""What a job edits, as columns: `place_of` parses the text `what` of a log into columns of a table."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from workbench.errors import WorkbenchError
from workbench.sites import Site, split_position

JOIN = "+"
PLACE = ("kind", "layer", "head", "neuron", "pos")


@lru_cache(maxsize=1 << 16)
def place_of(study: str, what: str) -> dict[str, Any]:
    """The place columns that `what` says something about; of sites edited together, what they agree in.

    A text that cannot be read says nothing: a log may hold anything.

    >>> place_of("effects", "z[1.2]+z[1.3]")
    {'kind': 'z', 'layer': 1}
    >>> place_of("steering", "resid_post[2]*-1.5")
    {'kind': 'resid_post', 'layer': 2, 'strength': -1.5}
    """
    try:
        return _READERS.get(study, _sites)(what)
    except (WorkbenchError, ValueError):
        return {}


def sites_of(what: str) -> list[str]:
    """The sites that are edited together."""
    return what.split(JOIN)


def _sites(what: str) -> dict[str, Any]:
    sites = [Site.parse(text) for text in sites_of(what)]
    columns: dict[str, Any] = {}
    for name in PLACE:
        labels = {getattr(site, name) for site in sites}
        if len(labels) == 1 and labels != {None}:
            columns[name] = labels.pop()
    return columns


def _steering(what: str) -> dict[str, Any]:
    site, _, strength = what.rpartition("*")
    return _sites(site) | {"strength": float(strength)}


def _path(what: str) -> dict[str, Any]:
    """The ends of a path; of an edge also its position."""
    nodes = what.split("->")
    if len(nodes) == 1:
        return {}
    reader, pos = split_position(nodes[-1])
    columns: dict[str, Any] = {"writer": nodes[0], "reader": reader}
    # In a longer path every node may have a position, and one column cannot hold them.
    if len(nodes) == 2 and pos is not None:
        columns["pos"] = pos
    return columns


def _method(what: str) -> dict[str, Any]:
    method, _, n_edges = what.rpartition("@")
    if not method:  # a text without `@EDGES`
        return {"method": what}
    return {"method": method, "n_edges": int(n_edges)}


_READERS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "steering": _steering,
    "paths": _path,
    "methods": _method,
    "stability": _method,
    "circuits": lambda what: {},
}
