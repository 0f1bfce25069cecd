"""How far two circuits agree: on edges, on nodes, and class by class.

`compare` returns a `Comparison`; no model is run.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.components import differences, edge_class
from workbench.circuit.graph import Graph
from workbench.errors import CircuitError
from workbench.text import spelled

_CLASSES: tuple[Literal["reader", "writer"], ...] = ("reader", "writer")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found. `a` and `b` are the circuits that were compared, on one graph.

    Attributes:
        collapsed: whether positions and neurons were collapsed first, because the circuits differ in them.
    """

    a: Circuit
    b: Circuit
    collapsed: bool = False

    @property
    def both(self) -> Circuit:
        """The edges of both; like `only_a` and `only_b` it keeps dead ends."""
        return self.a & self.b

    @property
    def only_a(self) -> Circuit:
        """The edges of `a` that `b` lacks."""
        return self.a - self.b

    @property
    def only_b(self) -> Circuit:
        """The edges of `b` that `a` lacks."""
        return self.b - self.a

    @property
    def jaccard(self) -> float:
        """Edges of both over edges of either; 1 for two empty circuits."""
        # Two empty circuits agree; NaN for them would make every mean over circuits NaN.
        either = int((self.a.edges | self.b.edges).sum())
        if not either:
            return 1.0
        return self._shared / either

    @property
    def node_jaccard(self) -> float:
        """Nodes of both over nodes of either; 1 for two empty circuits."""
        a, b = set(self.a.nodes), set(self.b.nodes)
        if not a | b:
            return 1.0
        return len(a & b) / len(a | b)

    @property
    def precision(self) -> float:
        """The share of b's edges that a has; NaN when b has none."""
        return _share(self._shared, self.b.n_edges)

    @property
    def recall(self) -> float:
        """The share of a's edges that b has; NaN when a has none."""
        return _share(self._shared, self.a.n_edges)

    @property
    def _shared(self) -> int:
        return int((self.a.edges & self.b.edges).sum())

    @property
    def by_component(self) -> pd.DataFrame:
        """Edges class by class: `side class a b both jaccard precision recall`, NaN where undefined.

        Readers are `q k v mlps logits`, writers `input heads mlps`. Classes that neither circuit has are left
        out.
        """
        rows = []
        for side in _CLASSES:
            a, b, both = (_counts(circuit, side) for circuit in (self.a, self.b, self.both))
            for name in ("input", "heads", "q", "k", "v", "mlps", "logits"):
                if a[name] + b[name]:
                    rows.append((side, name, *_agreement(a[name], b[name], both[name])))
        return pd.DataFrame(
            rows, columns=["side", "class", "a", "b", "both", "jaccard", "precision", "recall"]
        )

    @property
    def by_role(self) -> pd.DataFrame:
        """Nodes by role, where a circuit gives roles: `role a b both jaccard precision recall missing`.

        `missing` names the nodes of that role that b lacks.
        """
        # Where both give a role to a node, that of `a` counts: it is the one compared with.
        labels = {**self.b.labels, **self.a.labels}
        a, b = set(self.a.nodes), set(self.b.nodes)
        rows = []
        for role in dict.fromkeys(labels.values()):
            nodes = {name for name, label in labels.items() if label == role}
            missing = " ".join(name for name in self.a.nodes if name in nodes - b)
            rows.append((role, *_agreement(len(a & nodes), len(b & nodes), len(a & b & nodes)), missing))
        return pd.DataFrame(
            rows, columns=["role", "a", "b", "both", "jaccard", "precision", "recall", "missing"]
        )

    def to_dict(self) -> dict[str, Any]:
        """Every number, and each circuit's own edges and nodes, for JSON; None where a share is undefined."""
        a, b = self.a.nodes, self.b.nodes
        return {
            "edges": {"a": self.a.n_edges, "b": self.b.n_edges, "both": self._shared},
            "nodes": {"a": len(a), "b": len(b), "both": len({*a} & {*b})},
            "jaccard": self.jaccard,
            "node_jaccard": self.node_jaccard,
            "precision": _known(self.precision),
            "recall": _known(self.recall),
            "collapsed": self.collapsed,
            "by_component": [_known_all(row) for row in self.by_component.to_dict("records")],
            "by_role": [_known_all(row) for row in self.by_role.to_dict("records")],
            "only_a": {
                "nodes": [name for name in a if name not in b],
                "edges": list(map(str, self.only_a.edge_list)),
            },
            "only_b": {
                "nodes": [name for name in b if name not in a],
                "edges": list(map(str, self.only_b.edge_list)),
            },
        }

    def __repr__(self) -> str:
        return f"<Comparison: Jaccard {self.jaccard:.3f} of edges, {self.node_jaccard:.3f} of nodes>"

    def __str__(self) -> str:
        facts = self.to_dict()
        edges, nodes = facts["edges"], facts["nodes"]
        lines = []
        if self.collapsed:
            lines.append("Positions and neurons were collapsed: the circuits differ in them.")
        lines += [
            f"edges: a {edges['a']}, b {edges['b']}, both {edges['both']}; Jaccard {self.jaccard:.3f}, "
            f"precision of b {self.precision:.3f}, recall of a {self.recall:.3f}",
            f"nodes: a {nodes['a']}, b {nodes['b']}, both {nodes['both']}; Jaccard {self.node_jaccard:.3f}",
            _table(self.by_component),
        ]
        if len(self.by_role):
            lines.append(_table(self.by_role.assign(role=self.by_role["role"].map(spelled))))
        for side in "ab":
            lines.append(f"nodes of {side} alone: {' '.join(facts[f'only_{side}']['nodes']) or 'none'}")
        return "\n".join(lines)


@checked
def compare(a: Circuit, b: Circuit) -> Comparison:
    """How far `b` agrees with `a`, which counts as the reference for precision and recall.

    Circuits that differ in positions or neurons are compared collapsed, and the comparison says so. Sizes
    that decide no edge (`d_model`, the vocabulary) may differ; the edges that exist may not.

    Raises:
        CircuitError: the circuits are for models with different edges.

    >>> import workbench as wb
    >>> ioi = wb.reference_circuit("ioi")
    >>> wb.compare(ioi, ioi.restricted(writers=["input", "heads"])).precision
    1.0
    """
    collapsed = (a.graph.positions, a.graph.neurons) != (b.graph.positions, b.graph.neurons)
    one, two = (a.collapsed, b.collapsed) if collapsed else (a, b)
    # By edges and not by shape: a vocabulary or a width decides no edge.
    same = (one.graph.writers, one.graph.readers) == (two.graph.writers, two.graph.readers)
    if not (same and np.array_equal(one.graph.exists, two.graph.exists)):
        differ = differences(Graph(a.graph.shape), Graph(b.graph.shape), "b")
        raise CircuitError(f"compare: the circuits are for different graphs. They differ in {differ}.")
    # On one graph, so that set algebra takes both: sizes that decide no edge are those of `a`, and an edge that leads
    # to an output in either graph is kept in both.
    graph = one.graph.joined(replace(two.graph, shape=one.graph.shape))
    return Comparison(replace(one, graph=graph), replace(two, graph=graph), collapsed)


def _counts(circuit: Circuit, side: Literal["reader", "writer"]) -> Counter[str]:
    """How many edges each class has; labels play no part in these classes."""
    return Counter(
        edge_class(circuit.graph, {}, edge.writer, edge.reader, side)
        for edge in circuit.graph.edges(circuit.edges)
    )


def _agreement(a: int, b: int, both: int) -> tuple[int, int, int, float, float, float]:
    """A row of both tables: `a b both jaccard precision recall`."""
    return a, b, both, _share(both, a + b - both), _share(both, b), _share(both, a)


def _share(count: int, of: int) -> float:
    if not of:
        return float("nan")
    return count / of


def _known(number: Any) -> Any:
    """A number for JSON, which has no NaN."""
    if isinstance(number, float) and not np.isfinite(number):
        return None
    return number


def _known_all(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): _known(value) for key, value in row.items()}


def _table(frame: pd.DataFrame) -> str:
    return frame.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="-")
