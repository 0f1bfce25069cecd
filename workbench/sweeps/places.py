"""What a job did, taken apart: the text `what` of a log becomes the columns of a table."""

from functools import lru_cache
from typing import Any

from workbench.errors import WorkbenchError
from workbench.sites import Site, split_position

JOIN = "+"
PLACE = ("kind", "layer", "head", "neuron", "pos")


@lru_cache(maxsize=1 << 16)
def place_of(study: str, what: str) -> dict[str, Any]:
    """The place columns that `what` says something about; of sites edited together, what they agree in.

    >>> place_of("effects", "z[1.2]+z[1.3]")
    {'kind': 'z', 'layer': 1}
    >>> place_of("steering", "resid_post[2]*-1.5")
    {'kind': 'resid_post', 'layer': 2, 'strength': -1.5}
    """
    try:
        return _OF.get(study, _sites)(what)
    except (WorkbenchError, ValueError):
        return {}


def sites_of(what: str) -> list[str]:
    """The sites that are edited together."""
    return what.split(JOIN)


def _sites(what: str) -> dict[str, Any]:
    sites = [Site.parse(text) for text in sites_of(what)]
    found = {name: {getattr(site, name) for site in sites} for name in PLACE}
    return {name: values.pop() for name, values in found.items() if len(values) == 1 and values != {None}}


def _steering(what: str) -> dict[str, Any]:
    site, _, strength = what.rpartition("*")
    return _sites(site) | {"strength": float(strength)}


def _path(what: str) -> dict[str, Any]:
    """The ends of a path; of an edge also its position."""
    nodes = what.split("->")
    reader, pos = split_position(nodes[-1])
    found: dict[str, Any] = {"writer": nodes[0], "reader": reader} if len(nodes) > 1 else {}
    return found | {"pos": pos} if len(nodes) == 2 and pos is not None else found


def _method(what: str) -> dict[str, Any]:
    method, _, n_edges = what.rpartition("@")
    return {"method": method, "n_edges": int(n_edges)} if method else {"method": what}


_OF = {
    "steering": _steering,
    "paths": _path,
    "methods": _method,
    "stability": _method,
    "circuits": lambda what: {},
}
