"""Everything that is drawn of a circuit, before anything is drawn: `CircuitView`, its lines and its attention hops.

A *line* is an edge (component view) or an edge at one position (position view). Which lines are dead ends is decided
here, on names; where things lie on the page is decided in `svg`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.errors import CircuitError
from workbench.sites import Node, Shape

ViewKind = Literal["component", "position"]
_MAX_HOPS, _MIN_ATTENTION, _MAX_LINES = 3, 0.05, 2000


@dataclass(frozen=True)
class ViewEdge:
    """One edge of the circuit.

    Attributes:
        weight: its score, NaN without one.
        by_pos: its score at each position of the example prompt; empty when not known.
        interval: of the score, or None.
        side: where two circuits are compared, "a", "b" or "both"; otherwise empty.
    """

    writer: str
    reader: str
    weight: float
    by_pos: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None
    side: str = ""


@dataclass(frozen=True, eq=False)
class CircuitView:
    """Everything that is drawn of a circuit. Build it with `CircuitView.of`.

    Attributes:
        edges: every edge, strongest first.
        shape: of the model; it says which query heads share a kv head.
        title, provenance: the heading, and the facts under it.
        tokens: of one example prompt, or empty.
        patterns: (layer, head) → attention [query_pos, key_pos] on that prompt.
        top: about how many edges a still picture draws: the strongest ones that lie on complete paths.
        curve: (edges, faithfulness, low, high) of circuits of the strongest edges.
        more: the same circuit on other prompts, see `on_prompts`.
        sides: the names of two circuits that are compared, see `compared`; otherwise empty.
    """

    edges: tuple[ViewEdge, ...]
    shape: Shape
    title: str = ""
    provenance: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    patterns: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)
    top: int = 40
    curve: tuple[tuple[int, float, float, float], ...] = ()
    more: tuple["CircuitView", ...] = ()
    sides: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        from workbench.render.circuit.html import to_html

        return to_html(self)

    @classmethod
    def of(
        cls,
        circuit: Circuit,
        *,
        title: str = "",
        tokens: Sequence[str] | None = None,
        position_scores: xr.DataArray | None = None,
        patterns: Mapping[tuple[int, int], np.ndarray] | None = None,
        faithfulness: tuple[float, float, float] | None = None,
        intervals: xr.Dataset | None = None,
        curve: xr.Dataset | None = None,
        top: int = 40,
    ) -> "CircuitView":
        """The view of a circuit; positions and neurons are collapsed into the plain graph.

        Args:
            tokens: token strings of one example prompt, for the position view.
            position_scores: (writer, reader, pos) scores of the edges on that prompt, NaN where there is no edge.
            patterns: (layer, head) → attention pattern [query_pos, key_pos] on that prompt.
            faithfulness: value, low, high.
            intervals: `low` and `high` of the scores, (writer, reader), as `summary` gives them.
            curve: `faithfulness_curve(circuit, ...)`: `n_edges`, `faithfulness`, `low`, `high`, shown beside the number of edges.
            top: about how many edges to draw: the strongest ones that lie on complete paths.
        Raises:
            CircuitError: scores or patterns that do not fit the circuit or the tokens.

        >>> CircuitView.of(Circuit.full(Shape(1, 1, 1, 8, 8, 16, 50, 16))).nodes
        ('input', 'a0.0', 'm0', 'logits')
        """
        circuit = circuit.collapsed
        if circuit.scores is not None and bool(np.isinf(circuit.scores[circuit.edges]).any()):
            raise CircuitError(
                "The circuit has scores that are infinite, which have no place among the others."
            )
        by_pos = {} if position_scores is None else _by_position(circuit, position_scores, tokens)
        length = len(tokens) if tokens is not None else max((len(row) for row in by_pos.values()), default=0)
        kept = {}
        for (layer, head), pattern in (patterns or {}).items():
            pattern = np.asarray(pattern, dtype=float)
            if pattern.ndim != 2 or min(pattern.shape) < length:
                raise CircuitError(
                    f"The pattern of a{layer}.{head} has shape {pattern.shape}; one of [query_pos, key_pos] for a prompt of "
                    f"{length} tokens is needed. Select one example, as in pattern[example, head]."
                )
            kept[int(layer), int(head)] = pattern[:length, :length] if length else pattern
        bounds = {} if intervals is None else _intervals(circuit, intervals)
        edges = tuple(
            ViewEdge(e.writer, e.reader, circuit.score(e), by_pos.get(ends, ()), bounds.get(ends))
            for e in circuit.edge_list
            for ends in [(e.writer, e.reader)]
        )
        labels = tuple(tokens) if tokens is not None else tuple(str(p) for p in range(length))
        task = circuit.attrs.get("task")
        return cls(
            edges=edges,
            shape=circuit.graph.shape,
            title=title or (f"Circuit for {task}" if task else "Circuit"),
            provenance=_provenance(circuit, faithfulness),
            tokens=labels,
            patterns=kept,
            top=max(1, int(top)),
            curve=() if curve is None else _curve(curve),
        )

    @classmethod
    def compared(
        cls, a: Circuit, b: Circuit, *, names: tuple[str, str] = ("A", "B"), title: str = "", top: int = 80
    ) -> "CircuitView":
        """Two circuits of one graph in one picture: which edges only the first has, which only the second, which both.

        An edge of both has the score of the first. Raises `CircuitError` for circuits of different graphs.
        """
        a, b = a.collapsed, b.collapsed
        both = cls.of(a | b, title=title or f"{names[0]} and {names[1]}", top=top)
        first, second = ({(e.writer, e.reader) for e in each.edge_list} for each in (a, b))
        scores = {(e.writer, e.reader): each.score(e) for each in (b, a) for e in each.edge_list}
        edges = [
            replace(
                e,
                weight=scores[e.writer, e.reader],
                side=_side((e.writer, e.reader) in first, (e.writer, e.reader) in second),
            )
            for e in both.edges
        ]
        edges.sort(key=lambda e: -abs(e.weight) if np.isfinite(e.weight) else 0.0)
        counts = (len(first - second), len(second - first), len(first & second))
        told = f"only in {names[0]} {counts[0]}", f"only in {names[1]} {counts[1]}", f"in both {counts[2]}"
        return replace(both, edges=tuple(edges), sides=tuple(names), provenance=(*both.provenance, *told))

    @classmethod
    def on_prompts(cls, views: Sequence["CircuitView"]) -> "CircuitView":
        """The views of one circuit on several prompts as one, which the interactive picture switches between."""
        if not views:
            raise CircuitError("on_prompts: give at least one view.")
        ends = [(e.writer, e.reader) for e in views[0].edges]
        for view in views[1:]:
            if [(e.writer, e.reader) for e in view.edges] != ends:
                raise CircuitError(
                    "on_prompts: the views are of different circuits. Make each with CircuitView.of(circuit, ...)."
                )
        return replace(views[0], more=tuple(replace(view, more=()) for view in views[1:]))

    @property
    def nodes(self) -> tuple[str, ...]:
        """The components at either end of an edge, from input to logits."""
        names = {e.writer for e in self.edges} | {str(Node.parse(e.reader).component) for e in self.edges}
        return tuple(sorted(names, key=_order))

    @property
    def scored(self) -> bool:
        """Whether any edge has a score."""
        return any(np.isfinite(edge.weight) for edge in self.edges)

    @property
    def has_positions(self) -> bool:
        """Whether the position view can be drawn."""
        return any(edge.by_pos for edge in self.edges)

    def count(self, kind: ViewKind) -> int:
        """How many lines there are to draw: edges, or pairs of edge and position with a score other than 0."""
        if kind == "component":
            return len(self.edges)
        return sum(bool(np.isfinite(weight) and weight) for edge in self.edges for weight in edge.by_pos)


@dataclass(frozen=True)
class Line:
    """One drawn edge. `unit` is what writes it and `feeds` are the writers that it is an input of (for dead ends)."""

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


def lines_of(view: CircuitView, kind: ViewKind) -> list[Line]:
    """The lines that the view could draw, strongest first; of pairs of edge and position the 2000 strongest."""
    group = view.shape.n_heads // view.shape.n_kv_heads
    found: list[tuple[int, int | None, float]] = []
    for i, edge in enumerate(view.edges):
        if kind == "component":
            found.append((i, None, edge.weight))
        else:
            found += [(i, p, w) for p, w in enumerate(edge.by_pos) if np.isfinite(w) and w != 0]
    found.sort(key=lambda line: -abs(line[2]) if np.isfinite(line[2]) else 0.0)
    found = found if kind == "component" else found[:_MAX_LINES]
    writing: dict[str, list[int | None]] = {}
    for i, pos, _ in found:
        writing.setdefault(view.edges[i].writer, []).append(pos)
    lines = []
    for i, pos, weight in found:
        writer, reader = view.edges[i].writer, Node.parse(view.edges[i].reader)
        at = "" if pos is None else f"@{pos}"
        layer, port, shared = reader.layer, reader.port or "", False
        if reader.head is None or port == "q":
            end = str(reader.component)
            fed = [end]
        else:
            first, shared = reader.head * group, True
            fed = [f"a{layer}.{head}" for head in range(first, first + group)]
            end = fed[0] if group == 1 else f"kv{layer}.{reader.head}"
        if shared and pos is not None:
            feeds = {
                f"{head}@{p}" for head in fed for p in writing.get(head, []) if p is not None and p >= pos
            }
        else:
            feeds = {head if head == "logits" else head + at for head in fed}
        unit = "input" if writer == "input" else writer + at
        lines.append(Line(i, pos, weight, unit, tuple(sorted(feeds)), writer + at, end + at, port))
    return lines


def alive(lines: Sequence[Line]) -> list[Line]:
    """The lines on a path from input to logits; the script of the interactive figure does the same."""
    kept = list(lines)
    while True:
        entered = {unit for line in kept for unit in line.feeds} | {"input"}
        read = {line.unit for line in kept} | {"logits"}
        left = [line for line in kept if line.unit in entered and any(unit in read for unit in line.feeds)]
        if len(left) == len(kept):
            return kept
        kept = left


def cut(lines: Sequence[Line], target: int) -> int:
    """How many of the strongest lines to consider so that about `target` of them lie on complete paths."""
    low, high = 0, len(lines)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(alive(lines[:middle])) <= target else (low, middle - 1)
    return low if alive(lines[:low]) else min(low + 1, len(lines))


def hops_of(view: CircuitView, lines: Iterable[Line]) -> list[Hop]:
    """For each head and position it writes at: the hops with the most attention to positions where a k or v edge enters."""
    lines, group = list(lines), view.shape.n_heads // view.shape.n_kv_heads
    keys: dict[str, set[int]] = {}
    for line in lines:
        if line.port in ("k", "v") and line.pos is not None:
            keys.setdefault(line.end.split("@")[0], set()).add(line.pos)
    written = sorted(
        {
            (line.start.split("@")[0], line.pos)
            for line in lines
            if line.pos is not None and Node.parse(line.start.split("@")[0]).is_head
        }
    )
    hops = []
    for writer, query in written:
        layer, head = Node.parse(writer).layer_and_head
        pattern = view.patterns.get((layer, head))
        name = writer if group == 1 else f"kv{layer}.{head // group}"
        places = [p for p in keys.get(name, ()) if (p < query if group == 1 else p <= query)]
        if pattern is None:
            continue
        ranked = sorted((-float(pattern[query, p]), p) for p in places if np.isfinite(pattern[query, p]))[
            :_MAX_HOPS
        ]
        for rank, (weight, p) in enumerate(ranked):
            if rank == 0 or -weight >= _MIN_ATTENTION:
                hops.append(Hop(writer, f"{name}@{p}", f"{writer}@{query}", -weight))
    return hops


def number(value: float) -> str:
    """A score to three significant digits, with its sign.

    >>> number(0.41234)
    '+0.412'
    """
    return "no score" if not np.isfinite(value) else f"{value:+.3g}".replace("-", "−")


def _side(in_a: bool, in_b: bool) -> str:
    return "both" if in_a and in_b else "a" if in_a else "b"


def _intervals(circuit: Circuit, intervals: xr.Dataset) -> dict[tuple[str, str], tuple[float, float]]:
    missing = [name for name in ("low", "high") if name not in intervals]
    if missing or any(set(intervals[name].dims) != {"writer", "reader"} for name in ("low", "high")):
        raise CircuitError(
            "intervals needs `low` and `high` over (writer, reader), as wb.summary(scores) gives them."
        )
    tables = []
    for name in ("low", "high"):
        table = intervals[name]
        for axis, names in (("writer", circuit.graph.writers), ("reader", circuit.graph.readers)):
            if (
                axis not in table.coords
                or set(map(str, table[axis].values)) != set(names)
                or table.sizes[axis] != len(names)
            ):
                raise CircuitError(
                    f"intervals belongs to another graph: its {axis}s are not those of {circuit.graph}."
                )
            table = table.sel({axis: list(names)})
        tables.append(table.transpose("writer", "reader").values)
    low, high = tables
    found = {}
    for edge in circuit.edge_list:
        at = circuit.graph.index(edge)
        if np.isfinite(low[at]) and np.isfinite(high[at]):
            found[edge.writer, edge.reader] = (float(low[at]), float(high[at]))
    return found


def _curve(curve: xr.Dataset) -> tuple[tuple[int, float, float, float], ...]:
    missing = [name for name in ("n_edges", "faithfulness", "low", "high") if name not in curve.variables]
    if missing:
        raise CircuitError(
            f"curve lacks {', '.join(missing)}: give what faithfulness_curve(circuit, ...) returns."
        )
    if curve.attrs.get("ranked_by") != "circuit":
        raise CircuitError(
            "The picture shows a circuit's own strongest edges, and this curve is of others: give what "
            "faithfulness_curve(circuit, ...) returns, with the circuit in place of scores."
        )
    columns = [
        np.asarray(curve[name].values, dtype=float) for name in ("n_edges", "faithfulness", "low", "high")
    ]
    rows = sorted(row for row in zip(*columns, strict=True) if np.isfinite(row[1]))
    return tuple((int(n), float(f), float(a), float(b)) for n, f, a, b in rows)


def _order(name: str) -> tuple[int, int, int]:
    node = Node.parse(name)
    if node.layer is None:
        return (-1, 0, 0) if node.kind == "input" else (1 << 30, 0, 0)
    return (node.layer, 0, node.head) if node.head is not None else (node.layer, 1, node.neuron or 0)


def _provenance(circuit: Circuit, faithfulness: tuple[float, float, float] | None) -> tuple[str, ...]:
    attrs: Mapping[str, Any] = circuit.attrs
    metric, value = attrs.get("metric"), attrs.get("value")
    data = attrs.get("task") or attrs.get("data")
    lines = [f"model {attrs['model']}" if "model" in attrs else "", f"data {data}" if data else ""]
    lines[1] += f" ({attrs['n']} prompts)" if data and "n" in attrs else ""
    lines.append(
        f"metric {metric}" + (f" ({value})" if value else "") if metric else f"value {value}" if value else ""
    )
    lines.append(f"method {attrs['method']}" if "method" in attrs else "")
    lines.append(f"{circuit.n_edges} of {circuit.graph.n_edges} edges")
    if faithfulness is not None:
        middle, low, high = faithfulness
        lines.append(f"faithfulness {middle:.2f} [{low:.2f}, {high:.2f}]")
    return tuple(line for line in lines if line)


def _by_position(
    circuit: Circuit, scores: xr.DataArray, tokens: Sequence[str] | None
) -> dict[tuple[str, str], tuple[float, ...]]:
    if set(scores.dims) != {"writer", "reader", "pos"}:
        raise CircuitError(
            f"position_scores has dims {tuple(map(str, scores.dims))}; (writer, reader, pos) of one prompt is needed. "
            "Select an example, as in scores.isel(example=0)."
        )
    scores = scores.transpose("writer", "reader", "pos")
    for axis, names in (("writer", circuit.graph.writers), ("reader", circuit.graph.readers)):
        fits = (
            tuple(map(str, scores[axis].values)) == names
            if axis in scores.coords
            else scores.sizes[axis] == len(names)
        )
        if not fits:
            raise CircuitError(
                f"position_scores belongs to another graph: its {axis}s are not those of {circuit.graph}."
            )
    values = scores.values.astype(float)
    measured = np.flatnonzero(np.isfinite(values).any((0, 1)))
    last = int(measured[-1]) + 1 if len(measured) else 0
    if tokens is not None and last > len(tokens):
        raise CircuitError(
            f"position_scores reaches position {last - 1}, but there are {len(tokens)} tokens."
        )
    length = last if tokens is None else min(len(tokens), values.shape[2])
    return {
        (e.writer, e.reader): tuple(float(x) for x in values[circuit.graph.index(e)][:length])
        for e in circuit.edge_list
    }
