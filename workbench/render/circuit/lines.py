"""The lines of a circuit's picture: which there are, which lie on complete paths, what attention joins them.

A *line* is an edge (component view) or an edge at one position (position view). Begin with `lines_of`, then
`alive`, which finds dead ends by the names of nodes. Where things lie on the page is decided in `layout`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.render.circuit.view import CircuitView, ViewKind, by_strength
from workbench.sites import Node

_MAX_HOPS, _MIN_ATTENTION, _MAX_LINES = 3, 0.05, 2000


@dataclass(frozen=True)
class Line:
    """One drawn edge.

    Attributes:
        edge: its index in the view's edges.
        pos: its position, None in the component view.
        weight: its score, there.
        unit: what writes it: a component, or a component at a position.
        feeds: the units that it is an input of; a key or value edge of grouped-query attention feeds several
            heads, and where answers attend to the prompt `logits` too.
        start, end: the boxes that it joins.
        port: of a head: q, k, v, or empty.
    """

    edge: int
    pos: int | None
    weight: float
    unit: str
    feeds: tuple[str, ...]
    start: str
    end: str
    port: str


@dataclass(frozen=True)
class Hop:
    """Attention from a key position to the query position of a head."""

    head: str
    start: str
    end: str
    weight: float


@dataclass(frozen=True)
class _Scored:
    """A line before its ends are known: the index of its edge, its position and its score."""

    edge: int
    pos: int | None
    weight: float


def lines_of(view: CircuitView, kind: ViewKind) -> list[Line]:
    """The lines that the view could draw, strongest first; of pairs of edge and position the first 2000."""
    scored = _by_edge(view) if kind == "component" else _by_position(view)
    scored.sort(key=lambda line: by_strength(line.weight))
    if kind == "position":
        scored = scored[:_MAX_LINES]
    # keys and values feed a head only where it writes something that could be drawn
    written: dict[str, list[int | None]] = {}
    for line in scored:
        written.setdefault(view.edges[line.edge].writer, []).append(line.pos)
    return [_line(view, line, written) for line in scored]


def _by_edge(view: CircuitView) -> list[_Scored]:
    return [_Scored(index, None, edge.weight) for index, edge in enumerate(view.edges)]


def _by_position(view: CircuitView) -> list[_Scored]:
    scored = []
    for index, edge in enumerate(view.edges):
        for pos, weight in enumerate(edge.by_pos):
            if np.isfinite(weight) and weight != 0:
                scored.append(_Scored(index, pos, weight))
    return scored


def _line(view: CircuitView, scored: _Scored, written: dict[str, list[int | None]]) -> Line:
    edge, pos = view.edges[scored.edge], scored.pos
    group = view.shape.n_heads // view.shape.n_kv_heads
    at = ""
    if pos is not None:
        at = f"@{pos}"
    reader = Node.parse(edge.reader)
    if reader.head is not None and reader.port in ("k", "v"):
        first = reader.head * group
        heads = [f"a{reader.layer}.{head}" for head in range(first, first + group)]
        end = heads[0] if group == 1 else f"kv{reader.layer}.{reader.head}"
        feeds = _fed_by_key(heads, pos, written)
        # The answer's tokens read them, and lead to logits that the picture does not show.
        if view.answers_attend:
            feeds.add("logits")
    else:
        end = str(reader.component)
        feeds = {end if end == "logits" else end + at}
    unit = "input" if edge.writer == "input" else edge.writer + at
    return Line(
        edge=scored.edge,
        pos=pos,
        weight=scored.weight,
        unit=unit,
        feeds=tuple(sorted(feeds)),
        start=edge.writer + at,
        end=end + at,
        port=reader.port or "",
    )


def _fed_by_key(heads: Sequence[str], pos: int | None, written: dict[str, list[int | None]]) -> set[str]:
    """The heads that read a key or value, at every position from which attention can see it."""
    if pos is None:
        return set(heads)
    feeds = set()
    for head in heads:
        for query in written.get(head, []):
            # attention is causal: a query sees its own position and earlier ones
            if query is not None and query >= pos:
                feeds.add(f"{head}@{query}")
    return feeds


def alive(lines: Sequence[Line]) -> list[Line]:
    """The lines on a path from input to an output; the script of the interactive figure does the same.

    Where answers attend to the prompt, lines into keys and values feed `logits` (see `Line`).
    """
    kept = list(lines)
    while True:
        entered, read = {"input"}, {"logits"}
        for line in kept:
            entered.update(line.feeds)
            read.add(line.unit)
        remaining = [line for line in kept if line.unit in entered and not read.isdisjoint(line.feeds)]
        # a line that goes can make another one a dead end, so this goes on until nothing changes
        if len(remaining) == len(kept):
            return kept
        kept = remaining


def cut(lines: Sequence[Line], target: int) -> int:
    """How many of the strongest lines to consider so that about `target` of them lie on complete paths."""
    # With more lines at least as many are alive, so bisection finds the largest number within the target.
    low, high = 0, len(lines)
    while low < high:
        middle = (low + high + 1) // 2
        if len(alive(lines[:middle])) <= target:
            low = middle
        else:
            high = middle - 1
    # a picture must not be empty: where no path fits into the target, it has the shortest one
    if alive(lines[:low]):
        return low
    return min(low + 1, len(lines))


def n_strongest(view: CircuitView, lines: Sequence[Line], target: int) -> int:
    """How many of the strongest lines to consider for a picture of about `target`: see `cut`.

    All of them where the view has no scores, because then none is stronger than another.
    """
    if view.scored:
        return cut(lines, target)
    return len(lines)


def hops_of(view: CircuitView, lines: Iterable[Line]) -> list[Hop]:
    """The attention that joins keys and values to the heads that read them.

    For each head and position that it writes at: the hops with the most attention to positions where a k or v
    edge enters.
    """
    lines = list(lines)
    group = view.shape.n_heads // view.shape.n_kv_heads
    entered: dict[str, set[int]] = {}
    writing: set[tuple[str, int]] = set()
    for line in lines:
        if line.pos is None:
            continue
        if line.port in ("k", "v"):
            entered.setdefault(line.end.split("@")[0], set()).add(line.pos)
        writer = line.start.split("@")[0]
        if Node.parse(writer).is_head:
            writing.add((writer, line.pos))
    hops = []
    for writer, query in sorted(writing):
        layer, head = Node.parse(writer).layer_and_head
        pattern = view.patterns.get((layer, head))
        if pattern is None:
            continue
        # a head without a kv box of its own would need a hop from a position to itself: a loop on one box
        box, last = writer, query - 1
        if group > 1:
            box, last = f"kv{layer}.{head // group}", query
        keys = {key for key in entered.get(box, ()) if key <= last}
        for key in _most_attended(pattern[query], keys):
            hops.append(Hop(writer, f"{box}@{key}", f"{writer}@{query}", float(pattern[query, key])))
    return hops


def _most_attended(weights: np.ndarray, keys: Iterable[int]) -> list[int]:
    """Up to three of the key positions, most attention first; all but the first need a weight worth drawing.

    Args:
        weights: [key_pos] attention of one query.
    """
    ranked = sorted((-float(weights[key]), key) for key in keys if np.isfinite(weights[key]))
    attended = []
    for rank, (weight, key) in enumerate(ranked[:_MAX_HOPS]):
        # the first is drawn however weak: without any hop the head would seem to read from nowhere
        if rank == 0 or -weight >= _MIN_ATTENTION:
            attended.append(key)
    return attended
