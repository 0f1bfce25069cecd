"""Everything that is drawn of a circuit, before anything is drawn: `CircuitView.of` reads it from a circuit.

`lines` says which of its edges are drawn, `svg` and `html` draw them; this module knows nothing of either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.errors import CircuitError
from workbench.render.circuit.view_inputs import (
    Ends,
    curve_rows,
    cut_patterns,
    default_title,
    intervals_of_edges,
    provenance_of,
    scores_by_position,
    token_labels,
)
from workbench.sites import Node, Shape

ViewKind = Literal["component", "position"]


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
        answers_attend: as in `Graph`: lines into keys and values are then no dead ends.
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
    answers_attend: bool = False

    # Set by the package (`workbench/render/circuit/__init__.py`), because the pictures import this module.
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
        # a node of one position or neuron has no box of its own: many would lie on top of each other
        circuit = circuit.collapsed
        by_pos = scores_by_position(circuit, position_scores, tokens)
        bounds = intervals_of_edges(circuit, intervals)
        labels = token_labels(tokens, by_pos)
        edges = []
        for edge in circuit.edge_list:
            ends = edge.writer, edge.reader
            edges.append(ViewEdge(*ends, circuit.score(edge), by_pos.get(ends, ()), bounds.get(ends)))
        return cls(
            edges=tuple(edges),
            shape=circuit.graph.shape,
            title=title or default_title(circuit),
            provenance=provenance_of(circuit, faithfulness),
            tokens=labels,
            patterns=cut_patterns(patterns or {}, len(labels)),
            top=max(1, int(top)),
            curve=curve_rows(curve),
            answers_attend=circuit.graph.answers_attend,
        )

    @classmethod
    def compared(
        cls, a: Circuit, b: Circuit, *, names: tuple[str, str] = ("A", "B"), title: str = "", top: int = 80
    ) -> "CircuitView":
        """Two circuits of one graph in one picture: the edges of the first alone, the second alone, and both.

        An edge of both has the score of the first. Raises `CircuitError` for circuits of different graphs.
        """
        a, b = a.collapsed, b.collapsed
        union = cls.of(a | b, title=title or f"{names[0]} and {names[1]}", top=top)
        of_a, of_b = _scores(a), _scores(b)
        weights = of_b | of_a  # an edge of both has the score of the first
        edges = []
        for edge in union.edges:
            weight = weights[edge.ends]
            edges.append(replace(edge, weight=weight, side=_side(edge.ends in of_a, edge.ends in of_b)))
        edges.sort(key=lambda edge: by_strength(edge.weight))
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
        # edges are matched by index between prompts, so their order must be the same, not only their set
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
        names: set[str] = set()
        for edge in self.edges:
            names |= {edge.writer, str(Node.parse(edge.reader).component)}
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
        """How many lines can be drawn: edges, or pairs of edge and position with a score other than 0."""
        if kind == "component":
            return len(self.edges)
        known = 0
        for edge in self.edges:
            scores = np.asarray(edge.by_pos, dtype=float)
            known += int((np.isfinite(scores) & (scores != 0)).sum())
        return known


def by_strength(weight: float) -> float:
    """A key that sorts the strongest scores first; a missing score counts as 0."""
    if np.isfinite(weight):
        return -abs(weight)
    return 0.0


def _side(in_a: bool, in_b: bool) -> str:
    if in_a and in_b:
        return "both"
    if in_a:
        return "a"
    return "b"


def _scores(circuit: Circuit) -> dict[Ends, float]:
    return {(edge.writer, edge.reader): circuit.score(edge) for edge in circuit.edge_list}


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
