"""`Circuit`: a set of edges of a model's graph, and where it came from; to compare, draw, save, evaluate.

`Circuit.of` builds one and prunes dead ends. Set algebra and `restricted` do not prune: they are exact on
edges, and a subset of a circuit need not run on its own. `pruned` is what is left of it when it runs.

A circuit knows no model and runs nothing: `evaluation` measures it, `render` draws it, `hub` shares it.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.arguments import checked
from workbench.circuit.collapse import collapse
from workbench.circuit.components import (
    Classes,
    check_edges,
    check_known,
    check_labels,
    check_scores,
    clean_facts,
    components,
    dead_ends_text,
    differences,
    mlp_of,
    mostly_dead_ends,
    yes_or_no,
)
from workbench.circuit.document import CircuitDocument, read_document, write_document
from workbench.circuit.graph import Graph
from workbench.circuit.hub import OnHub
from workbench.circuit.selection import edges_by_class, select_edges
from workbench.circuit.tables import component_graph, edge_table, score_array
from workbench.errors import CircuitError, warn
from workbench.models.model import Model
from workbench.sites import Edge, Node, Position, Shape

if TYPE_CHECKING:
    import networkx


@checked
@dataclass(frozen=True, eq=False)
class Circuit(OnHub):
    """Edges of a graph. Build a circuit with `Circuit.of`, which prunes dead ends.

    Circuits of one graph are sets: `a | b`, `a & b`, `a - b`, `a ^ b`, `~a`, `a <= b`, exact on edges. The
    result has the scores of the left circuit, the prompts of both, and the attributes on which they agree.

    Attributes:
        graph: the graph the edges belong to.
        edges: bool [writer, reader], or [pos, writer, reader] where the graph has positions.
        scores: floats of that shape or None: the scores it was cut from (positive supports the behaviour),
            NaN where there is no edge.
        n_requested: how many edges were chosen before dead ends were pruned.
        attrs: provenance: model and data fingerprints, metric, value, method.
        prompt_ids: hashes of the prompts it was found on.
        labels: the role of a node, where it has one: `{"a9.9": "name mover"}`.
    """

    graph: Graph
    edges: np.ndarray
    scores: np.ndarray | None = None
    n_requested: int = 0
    attrs: Mapping[str, Any] = field(default_factory=dict)
    prompt_ids: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", clean_facts(self.attrs))
        object.__setattr__(self, "edges", check_edges(self.graph, self.edges))
        if self.scores is not None:
            object.__setattr__(self, "scores", check_scores(self.graph, self.scores))

    @classmethod
    @checked
    def of(
        cls,
        model_or_shape: Model | Shape | Graph,
        edges: np.ndarray | Iterable[Edge | str],
        *,
        scores: np.ndarray | None = None,
        attrs: Mapping[str, Any] | None = None,
        prompt_ids: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> "Circuit":
        """A circuit of these edges, dead ends pruned. A warning says so where that is more than half of them.

        Args:
            model_or_shape: a model, a `Shape`, or a `Graph`, which may have positions and neurons. For answers
                of several tokens give `Graph.of(model, answers_attend=True)`: without it, edges into keys and
                values that lead to no logits are left out.
            edges: bool [(pos,) writer, reader] in graph order; or edges, or their string forms
                `a9.9->a10.7<q>`.
            scores, attrs, prompt_ids, labels: as in the attributes of a circuit.

        Raises:
            CircuitError: matrices of another shape, labels of nodes that the graph does not have, or
                attributes that no file can hold.
            SiteError: an edge that the graph does not have.

        >>> shape = Shape(2, 2, 2, 32, 16, 128, 50, 32)
        >>> Circuit.of(shape, ["input->m1", "m1->logits"])
        <Circuit: 2 of 46 edges (4.3%), 0 heads>
        """
        graph = _graph_of(model_or_shape)
        if not isinstance(edges, np.ndarray):
            matrix = np.zeros_like(graph.exists)
            for edge in edges:
                matrix[graph.index(edge)] = True
            edges = matrix
        chosen = yes_or_no(graph, edges) & graph.exists
        roles = check_labels(graph, labels or {})
        n_requested, left = int(chosen.sum()), graph.prune(chosen)
        if mostly_dead_ends(n_requested, int(left.sum())):
            warn(
                f"Of {n_requested:,} edges of this circuit {int(left.sum()):,} are left: the others are "
                f"{dead_ends_text(graph)}. A head needs an edge into it and one out of it."
            )
        return cls(graph, left, scores, n_requested, attrs or {}, frozenset(prompt_ids), roles)

    @classmethod
    @checked
    def of_nodes(
        cls,
        model_or_shape: Model | Shape | Graph,
        nodes: Iterable[str],
        *,
        attrs: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> "Circuit":
        """The circuit of every edge between these components (`a9.9`, `m3`, `m3:113`).

        Input and logits are always in. Edges into keys and values of other heads are left out, also where answers of
        several tokens read these.

        Raises:
            CircuitError: a component that the graph does not have.

        >>> graph = Graph(Shape(2, 2, 2, 32, 16, 128, 50, 32))
        >>> Circuit.of_nodes(graph, ["m1"]).edge_list
        [Edge('input->m1'), Edge('input->logits'), Edge('m1->logits')]
        """
        graph = _graph_of(model_or_shape)
        # Without them nothing would enter or leave the circuit.
        wanted = {"input", "logits", *nodes}
        known = {"logits", *graph.writers, *map(mlp_of, graph.writers)}
        check_known(wanted, known, "node", "Nodes: a9.6, m3, m3:113.")
        writers = [not wanted.isdisjoint((name, mlp_of(name))) for name in graph.writers]
        readers = [not wanted.isdisjoint((*components(graph, name), mlp_of(name))) for name in graph.readers]
        return cls.of(graph, graph.exists & np.outer(writers, readers), attrs=attrs, labels=labels)

    @classmethod
    @checked
    def full(cls, model_or_shape: Model | Shape | Graph) -> "Circuit":
        """The circuit of every edge of a model, a `Shape` or a `Graph`: it behaves as the whole model."""
        graph = _graph_of(model_or_shape)
        return cls.of(graph, graph.exists)

    @classmethod
    @checked
    def empty(cls, model_or_shape: Model | Shape | Graph) -> "Circuit":
        """The circuit of no edge: with corrupt values it behaves as the corrupt run."""
        graph = _graph_of(model_or_shape)
        return cls.of(graph, np.zeros_like(graph.exists))

    @property
    def n_edges(self) -> int:
        """Number of edges: after pruning, if `Circuit.of` built it. An edge at two positions counts twice."""
        return int(self.edges.sum())

    @property
    def weighted_edge_count(self) -> float:
        """The sum over edges (u, v) of the share of u's neurons that are in the circuit (2504.13151).

        All edges of u's neurons into v are one edge. Where no MLP is split into neurons this is `n_edges`,
        except for imported circuits that hold some dimensions of a node's output only: their shares come from
        the file.
        """
        from_file = {name: len(dims) / self.graph.shape.d_model for name, dims in self.output_neurons.items()}
        writing = set(np.flatnonzero(self._by_position.any((0, 2))).tolist())
        neurons: dict[str, list[bool]] = {}
        for i, name in enumerate(self.graph.writers):
            neurons.setdefault(mlp_of(name), []).append(i in writing)
        shares = {name: sum(inside) / len(inside) for name, inside in neurons.items()} | from_file
        edges = set()
        for edge in self.graph.edges(self.edges):
            edges.add((edge.pos, mlp_of(edge.writer), mlp_of(edge.reader)))
        # `fsum` rounds once, so that the sum does not depend on the order in which a set is gone through.
        return math.fsum(shares[writer] for _, writer, _ in edges)

    @property
    def output_neurons(self) -> dict[str, list[int]]:
        """Node of an imported circuit → the dimensions of its output that are in the circuit, if not all are.

        Evaluation takes whole nodes.
        """
        return json.loads(self.attrs.get("output_neurons", "{}"))

    @property
    def edge_list(self) -> list[Edge]:
        """The edges, strongest score first (graph order where there are no scores)."""
        return [edge for edge, _ in self._scored_edges]

    @property
    def _scored_edges(self) -> list[tuple[Edge, float]]:
        """The edges with their scores, as `edge_list` sorts them."""
        values = np.full(self.n_edges, np.nan)
        if self.scores is not None:
            values = self.scores[self.edges]
        scored = list(zip(self.graph.edges(self.edges), values.tolist(), strict=True))
        # A stable sort leaves edges of equal score in graph order, so that files and tables do not vary.
        return [scored[i] for i in np.argsort(-np.abs(values), kind="stable")]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The components that write or read an edge, in graph order: input, heads, MLPs or neurons, logits.

        A key or value that query heads share counts for those heads that other edges put into the circuit.
        """
        present = set(compress(self.graph.writers, np.asarray(self._by_position.any((0, 2)))))
        readers = compress(self.graph.readers, np.asarray(self._by_position.any((0, 1))))
        # Those that one head reads first: they say which of several heads a shared key or value counts for.
        for sharing in sorted((components(self.graph, reader) for reader in readers), key=len):
            # Only if no head that shares it is in the circuit does a key or value stand for all of them.
            if present.isdisjoint(sharing):
                present.update(sharing)
        return tuple(name for name in (*self.graph.writers, "logits") if name in present)

    @property
    def heads(self) -> list[tuple[int, int]]:
        """(layer, head) of every attention head in the circuit, in graph order."""
        return [node.layer_and_head for node in map(Node.parse, self.nodes) if node.is_head]

    @property
    def mlps(self) -> list[int]:
        """The layers whose MLP, or some neuron of it, is in the circuit."""
        nodes = map(Node.parse, self.nodes)
        return sorted({node.layer for node in nodes if node.layer is not None and node.is_mlp})

    @property
    def _by_position(self) -> np.ndarray:
        """bool [pos, writer, reader], with one position where the graph has none."""
        return self.edges.reshape(-1, *self.edges.shape[-2:])

    @checked
    def score(self, edge: Edge | str) -> float:
        """The score of one edge; NaN where it has none.

        For an edge without a position, the sum of its scores at all positions.
        """
        if self.scores is None:
            return float("nan")
        values = np.atleast_1d(self.scores[self.graph.index(edge)])
        if not np.isfinite(values).any():
            return float("nan")
        return float(np.nansum(values))

    def __len__(self) -> int:
        return self.n_edges

    def __contains__(self, edge: Edge | str) -> bool:
        """Whether the edge is in it; one without a position means every position."""
        # An index without a position is a slice over all of them.
        return bool(self.edges[self.graph.index(edge)].all())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Circuit)
            and self.graph == other.graph
            and bool((self.edges == other.edges).all())
        )

    def __hash__(self) -> int:
        # Scores and provenance do not count: circuits are equal when their edges are.
        return hash((self.graph, self.edges.tobytes()))

    def __repr__(self) -> str:
        share = self.n_edges / self.graph.n_edges
        heads = f"{len(self.heads)} {'head' if len(self.heads) == 1 else 'heads'}"
        return f"<Circuit: {self.n_edges} of {self.graph.n_edges} edges ({share:.1%}), {heads}>"

    def _repr_html_(self) -> str:
        # Imported here: pictures stand above circuits, and a circuit must load without them.
        from workbench.render.circuit.html import circuit_html

        return circuit_html(self)

    def __or__(self, other: "Circuit") -> "Circuit":
        return self._join(other, "|", np.logical_or)

    def __and__(self, other: "Circuit") -> "Circuit":
        return self._join(other, "&", np.logical_and)

    def __sub__(self, other: "Circuit") -> "Circuit":
        return self._join(other, "-", np.greater)  # on truth values, a > b is "a and not b"

    def __xor__(self, other: "Circuit") -> "Circuit":
        return self._join(other, "^", np.logical_xor)

    def __invert__(self) -> "Circuit":
        return self._subset(self.graph.exists & ~self.edges)

    def __le__(self, other: "Circuit") -> bool:
        self._check_same(other, "<=")
        return bool((self.edges <= other.edges).all())

    def __lt__(self, other: "Circuit") -> bool:
        return self <= other and self != other

    def _join(
        self, other: "Circuit", sign: str, operation: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> "Circuit":
        """The circuit of an operation on both edge matrices, and what both circuits agree on."""
        self._check_same(other, sign)
        shared = self.attrs.keys() & other.attrs.keys()
        agreed = {key: self.attrs[key] for key in self.attrs if key in shared}
        for key in shared:
            if other.attrs[key] != agreed[key]:
                del agreed[key]
        return replace(
            self._subset(operation(self.edges, other.edges)),
            graph=self.graph.joined(other.graph),
            attrs=agreed,
            prompt_ids=self.prompt_ids | other.prompt_ids,
            labels={**other.labels, **self.labels},
        )

    def _check_same(self, other: "Circuit", sign: str) -> None:
        """Raise `CircuitError` unless the other is a circuit of the same graph."""
        if not isinstance(other, Circuit):
            raise CircuitError(f"circuit {sign} {type(other).__name__}: both sides must be circuits.")
        if self.graph != other.graph:
            raise CircuitError(
                f"circuit {sign} circuit: they are for different graphs: "
                f"{differences(self.graph, other.graph, 'other')}. "
                "Use .collapsed on both, or wb.compare(a, b)."
            )

    def _subset(self, edges: np.ndarray) -> "Circuit":
        return replace(self, edges=edges, n_requested=int(edges.sum()))

    @property
    def pruned(self) -> "Circuit":
        """The circuit without the dead ends of its graph.

        `evaluate` runs no dead ends either. On answers of several tokens it finds them in a graph of its own,
        whose `answers_attend` is that of the value and the prompts.
        """
        return replace(self, edges=self.graph.prune(self.edges))

    @property
    def collapsed(self) -> "Circuit":
        """The circuit on the plain graph, with every edge that it has at some position or neuron.

        Its scores are the sums over the edges that it stands for and that are in the circuit.
        """
        if self.graph == Graph(self.graph.shape):
            return self
        plain = collapse(self.graph, self.edges, self.scores)
        # The role of one neuron is not that of its MLP.
        labels = {name: role for name, role in self.labels.items() if ":" not in name}
        n_edges = int(plain.edges.sum())
        return Circuit(plain.graph, plain.edges, plain.scores, n_edges, self.attrs, self.prompt_ids, labels)

    @checked
    def restricted(
        self,
        *,
        positions: Position | Iterable[Position] | None = None,
        writers: str | Iterable[str] | None = None,
        readers: str | Iterable[str] | None = None,
        where: Callable[[Edge], bool] | None = None,
    ) -> "Circuit":
        """The circuit's edges at these positions, from these writers and into these readers; dead ends stay.

        Args:
            positions: of the graph's classes of tokens.
            writers, readers: nodes (`a9.9`, `m3`), readers (`a9.9<q>`), the words `heads`, `mlps`, `q`, `k`,
                `v`, or roles.
            where: keeps an edge for which it is true.

        Raises:
            CircuitError: a position or name that the circuit's graph does not have.
        """
        return self._subset(
            select_edges(
                self.graph, self.labels, self.edges,
                positions=positions, writers=writers, readers=readers, where=where,
            )
        )  # fmt: skip

    @checked
    def by_component(self, by: Classes | str = "reader") -> dict[str, "Circuit"]:
        """The circuit split into classes of edges, in graph order.

        Args:
            by: what an edge enters ("reader": `q k v mlps logits`), what writes it ("writer": `input heads
                mlps`), the reader's "layer", or the roles of both ends ("role": `S-inhibition -> name
                mover`).

        Raises:
            UnknownName: any other `by`.
        """
        groups = edges_by_class(self.graph, self.labels, self.edges, by)
        return {name: self._subset(edges) for name, edges in groups.items()}

    def to_frame(self) -> pd.DataFrame:
        """A table with one row per edge, strongest first: `edge writer reader pos port score`."""
        return edge_table(self._scored_edges)

    def to_scores(self) -> xr.DataArray:
        """The scores as `score_edges` returns them, so that `find_circuit` can cut them to another size.

        Of a circuit from a file: those that the file has; `save(..., all_scores=True)` writes those of all edges.

        Raises:
            CircuitError: it has no scores.
        """
        if self.scores is None:
            raise CircuitError("This circuit has no scores.")
        return score_array(self.graph, self.scores, self.attrs, self.prompt_ids)

    def to_networkx(self) -> "networkx.MultiDiGraph":
        """A multigraph of components: nodes have `kind` and `role`, edges `reader port score`.

        With positions, edges also have `pos`.

        The key of an edge is its string form. An edge into a shared key or value leads to each query head of
        the circuit that shares it, under one key.
        """
        return component_graph(self.graph, self.nodes, self._scored_edges, self.labels)

    @checked
    def save(self, path: str | Path, *, all_scores: bool = False, overwrite: bool = False) -> Path:
        """Write the circuit as JSON, whole or not at all.

        Args:
            all_scores: also the scores of edges outside the circuit; by default those of its own edges only.

        Raises `OutputExists` rather than replace a file.
        """
        path = Path(path)
        document = CircuitDocument(
            self.graph, self.edges, self.scores, self.n_requested, self.attrs, self.prompt_ids, self.labels
        )
        write_document(document, path, self._scored_edges, all_scores=all_scores, overwrite=overwrite)
        return path

    @classmethod
    @checked
    def load(cls, path: str | Path, *, edited: bool = False) -> "Circuit":
        """Read a circuit, with the scores that the file has.

        Args:
            edited: accept a file that was changed since it was written; saving the circuit signs it again.

        Raises:
            CircuitError: no such file, not a circuit, changed since it was written (by its checksum), or
                edges that its own graph does not have.
        """
        saved = read_document(Path(path), edited=edited)
        return cls(
            saved.graph,
            saved.edges,
            saved.scores,
            saved.n_requested,
            saved.attrs,
            saved.prompt_ids,
            saved.labels,
        )

    @checked
    def check_fits(self, model_or_shape: Model | Shape) -> None:
        """Raise `CircuitError` when the circuit is of another model's graph.

        It may have positions and neurons of its own.
        """
        graph = Graph.of(model_or_shape)
        if graph.shape != self.graph.shape:
            differ = differences(Graph(self.graph.shape), graph, "model")
            raise CircuitError(
                f"This circuit is for another graph: {self.graph}; the model has {graph}. "
                f"They differ in {differ}."
            )


def _graph_of(model_or_graph: Model | Shape | Graph) -> Graph:
    if isinstance(model_or_graph, Graph):
        return model_or_graph
    return Graph.of(model_or_graph)
