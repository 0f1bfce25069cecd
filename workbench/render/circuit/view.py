"""Everything that is drawn of a circuit, before anything is drawn: `CircuitView.of` reads it from a circuit.

`lines` says which of its edges are drawn, `svg` and `html` draw them; this module knows nothing of either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.errors import CircuitError
from workbench.sites import Node, Shape

ViewKind = Literal["component", "position"]
Ends = tuple[str, str]
"""Writer and reader of an edge."""


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

    @property
    def ends(self) -> Ends:
        """Writer and reader."""
        return self.writer, self.reader


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

    # Set by the package (`workbench/render/circuit/__init__.py`): the pictures import this module, not the
    # reverse.
    draw_in_notebook: ClassVar[Callable[["CircuitView"], str]]

    def _repr_html_(self) -> str:
        return type(self).draw_in_notebook(self)

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
            title: of the picture; by default the circuit's task.
            tokens: token strings of one example prompt, for the position view.
            position_scores: (writer, reader, pos) scores of the edges on that prompt, NaN where there is no
                edge.
            patterns: (layer, head) → attention pattern [query_pos, key_pos] on that prompt.
            faithfulness: value, low, high.
            intervals: `low` and `high` of the scores, (writer, reader), as `summary` gives them.
            curve: `faithfulness_curve(circuit, ...)`: `n_edges`, `faithfulness`, `low`, `high`, shown beside
                the number of edges.
            top: about how many edges to draw: the strongest ones that lie on complete paths.
        Raises:
            CircuitError: scores or patterns that do not fit the circuit or the tokens.

        >>> CircuitView.of(Circuit.full(Shape(1, 1, 1, 8, 8, 16, 50, 16))).nodes
        ('input', 'a0.0', 'm0', 'logits')
        """
        circuit = circuit.collapsed
        if circuit.scores is not None and bool(np.isinf(circuit.scores[circuit.edges]).any()):
            raise CircuitError(
                "The circuit has infinite scores, which cannot be ranked or drawn. Scores must be finite, or "
                "NaN where unknown."
            )
        by_pos = {} if position_scores is None else _by_position(circuit, position_scores, tokens)
        bounds = {} if intervals is None else _intervals(circuit, intervals)
        labels = _labels(tokens, by_pos)
        edges = []
        for edge in circuit.edge_list:
            ends = edge.writer, edge.reader
            edges.append(ViewEdge(*ends, circuit.score(edge), by_pos.get(ends, ()), bounds.get(ends)))
        return cls(
            edges=tuple(edges),
            shape=circuit.graph.shape,
            title=title or _title(circuit),
            provenance=_provenance(circuit, faithfulness),
            tokens=labels,
            patterns=_patterns(patterns or {}, len(labels)),
            top=max(1, int(top)),
            curve=() if curve is None else _curve(curve),
        )

    @classmethod
    def compared(
        cls, a: Circuit, b: Circuit, *, names: tuple[str, str] = ("A", "B"), title: str = "", top: int = 80
    ) -> "CircuitView":
        """Two circuits of one graph in one picture.

        Which edges only the first has, which only the second, which both.

        An edge of both has the score of the first. Raises `CircuitError` for circuits of different graphs.
        """
        a, b = a.collapsed, b.collapsed
        union = cls.of(a | b, title=title or f"{names[0]} and {names[1]}", top=top)
        of_a, of_b = _scores(a), _scores(b)
        edges = []
        for edge in union.edges:
            weight = of_a[edge.ends] if edge.ends in of_a else of_b[edge.ends]
            edges.append(replace(edge, weight=weight, side=_side(edge.ends in of_a, edge.ends in of_b)))
        edges.sort(key=lambda edge: -abs(edge.weight) if np.isfinite(edge.weight) else 0.0)
        facts = (
            *union.provenance,
            f"only in {names[0]} {len(of_a.keys() - of_b.keys())}",
            f"only in {names[1]} {len(of_b.keys() - of_a.keys())}",
            f"in both {len(of_a.keys() & of_b.keys())}",
        )
        return replace(union, edges=tuple(edges), sides=tuple(names), provenance=facts)

    @classmethod
    def on_prompts(cls, views: Sequence["CircuitView"]) -> "CircuitView":
        """The views of one circuit on several prompts as one, which the interactive picture switches between.

        Raises:
            CircuitError: no views, or views of different circuits.
        """
        if not views:
            raise CircuitError("on_prompts: give at least one view.")
        first = [edge.ends for edge in views[0].edges]
        for view in views[1:]:
            if [edge.ends for edge in view.edges] != first:
                raise CircuitError(
                    "on_prompts: the views are of different circuits. "
                    "Make each with CircuitView.of(circuit, ...)."
                )
        return replace(views[0], more=tuple(replace(view, more=()) for view in views[1:]))

    @property
    def nodes(self) -> tuple[str, ...]:
        """The components at either end of an edge, from input to logits."""
        names = {edge.writer for edge in self.edges} | {
            str(Node.parse(edge.reader).component) for edge in self.edges
        }
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
        """How many lines there are to draw.

        Edges, or pairs of edge and position with a score other than 0.
        """
        if kind == "component":
            return len(self.edges)
        known = 0
        for edge in self.edges:
            scores = np.asarray(edge.by_pos, dtype=float)
            known += int((np.isfinite(scores) & (scores != 0)).sum())
        return known


def _side(in_a: bool, in_b: bool) -> str:
    if in_a and in_b:
        return "both"
    if in_a:
        return "a"
    return "b"


def _scores(circuit: Circuit) -> dict[Ends, float]:
    return {(edge.writer, edge.reader): circuit.score(edge) for edge in circuit.edge_list}


def _title(circuit: Circuit) -> str:
    task = circuit.attrs.get("task")
    if task:
        return f"Circuit for {task}"
    return "Circuit"


def _labels(tokens: Sequence[str] | None, by_pos: Mapping[Ends, tuple[float, ...]]) -> tuple[str, ...]:
    """The tokens, or the numbers of the positions that have scores."""
    if tokens is not None:
        return tuple(tokens)
    length = max(map(len, by_pos.values()), default=0)
    return tuple(map(str, range(length)))


def _patterns(
    patterns: Mapping[tuple[int, int], np.ndarray], length: int
) -> dict[tuple[int, int], np.ndarray]:
    """The patterns [query_pos, key_pos], cut to `length` positions; whole where no positions are known."""
    shown = {}
    for (layer, head), pattern in patterns.items():
        values = np.asarray(pattern, dtype=float)
        if values.ndim != 2 or min(values.shape) < length:
            raise CircuitError(
                f"The pattern of a{layer}.{head} has shape {values.shape}; one of [query_pos, key_pos] for a "
                "prompt of "
                f"{length} tokens is needed. Select one example, as in pattern[example, head]."
            )
        shown[int(layer), int(head)] = values[:length, :length] if length else values
    return shown


def _intervals(circuit: Circuit, intervals: xr.Dataset) -> dict[Ends, tuple[float, float]]:
    for name in ("low", "high"):
        if name not in intervals or set(intervals[name].dims) != {"writer", "reader"}:
            raise CircuitError(
                "intervals needs `low` and `high` over (writer, reader), as wb.summary(scores) gives them."
            )
    low, high = (_in_graph_order(circuit, intervals[name]) for name in ("low", "high"))
    bounds = {}
    for edge in circuit.edge_list:
        at = circuit.graph.index(edge)
        if np.isfinite(low[at]) and np.isfinite(high[at]):
            bounds[edge.writer, edge.reader] = (float(low[at]), float(high[at]))
    return bounds


def _in_graph_order(circuit: Circuit, table: xr.DataArray) -> np.ndarray:
    """[writer, reader] values in the order of the graph's names."""
    for axis, names in (("writer", circuit.graph.writers), ("reader", circuit.graph.readers)):
        named = axis in table.coords and sorted(map(str, table[axis].values)) == sorted(names)
        if not named:
            raise CircuitError(
                f"intervals belongs to another graph: its {axis}s are not those of {circuit.graph}."
            )
        table = table.sel({axis: list(names)})
    return table.transpose("writer", "reader").values


def _curve(curve: xr.Dataset) -> tuple[tuple[int, float, float, float], ...]:
    names = ("n_edges", "faithfulness", "low", "high")
    missing = [name for name in names if name not in curve.variables]
    if missing:
        raise CircuitError(
            f"curve lacks {', '.join(missing)}: give what faithfulness_curve(circuit, ...) returns."
        )
    if curve.attrs.get("ranked_by") != "circuit":
        raise CircuitError(
            "The picture shows a circuit's own strongest edges, and this curve is of others: give what "
            "faithfulness_curve(circuit, ...) returns, with the circuit in place of scores."
        )
    columns = [np.asarray(curve[name].values, dtype=float) for name in names]
    rows = sorted(row for row in zip(*columns, strict=True) if np.isfinite(row[1]))
    return tuple((int(n), float(share), float(low), float(high)) for n, share, low, high in rows)


def _order(name: str) -> tuple[int, int, int]:
    """A key that sorts nodes from input to logits: by layer, heads before the MLP."""
    node = Node.parse(name)
    if node.layer is None:
        if node.kind == "input":
            return (-1, 0, 0)
        return (1 << 30, 0, 0)
    if node.head is not None:
        return node.layer, 0, node.head
    return node.layer, 1, node.neuron or 0


def _provenance(circuit: Circuit, faithfulness: tuple[float, float, float] | None) -> tuple[str, ...]:
    """The facts under a title.

    Model, data, metric, method, size and faithfulness, as far as they are known.
    """
    attrs: Mapping[str, Any] = circuit.attrs
    facts = []
    if "model" in attrs:
        facts.append(f"model {attrs['model']}")
    data = attrs.get("task") or attrs.get("data")
    if data:
        facts.append(f"data {data}" + (f" ({attrs['n']} prompts)" if "n" in attrs else ""))
    metric, value = attrs.get("metric"), attrs.get("value")
    if metric:
        facts.append(f"metric {metric}" + (f" ({value})" if value else ""))
    elif value:
        facts.append(f"value {value}")
    if "method" in attrs:
        facts.append(f"method {attrs['method']}")
    facts.append(f"{circuit.n_edges} of {circuit.graph.n_edges} edges")
    if faithfulness is not None:
        share, low, high = faithfulness
        facts.append(f"faithfulness {share:.2f} [{low:.2f}, {high:.2f}]")
    return tuple(facts)


def _by_position(
    circuit: Circuit, scores: xr.DataArray, tokens: Sequence[str] | None
) -> dict[Ends, tuple[float, ...]]:
    """The scores of every edge at each position, up to the last token or the last position with a score."""
    if set(scores.dims) != {"writer", "reader", "pos"}:
        raise CircuitError(
            f"position_scores has dims {tuple(map(str, scores.dims))}; (writer, reader, pos) of one prompt "
            "is needed. "
            "Select an example, as in scores.isel(example=0)."
        )
    scores = scores.transpose("writer", "reader", "pos")
    for axis, names in (("writer", circuit.graph.writers), ("reader", circuit.graph.readers)):
        if axis in scores.coords:
            fits = tuple(map(str, scores[axis].values)) == names
        else:
            fits = scores.sizes[axis] == len(names)
        if not fits:
            raise CircuitError(
                f"position_scores belongs to another graph: its {axis}s are not those of {circuit.graph}."
            )
    values = scores.values.astype(float)  # [writer, reader, pos]
    measured = np.flatnonzero(np.isfinite(values).any((0, 1)))
    last = int(measured[-1]) + 1 if len(measured) else 0
    if tokens is not None and last > len(tokens):
        raise CircuitError(
            f"position_scores reaches position {last - 1}, but there are {len(tokens)} tokens."
        )
    length = last if tokens is None else min(len(tokens), values.shape[2])
    rows = {}
    for edge in circuit.edge_list:
        row = values[circuit.graph.index(edge)][:length]
        rows[edge.writer, edge.reader] = tuple(float(score) for score in row)
    return rows
