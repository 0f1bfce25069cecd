"""A circuit is an object: a set of edges of a model's graph, with where it came from.

It is saved as JSON that names its edges, the model and the prompts it was found on (by hash), so that it can be
evaluated on others, compared and drawn. A circuit of another graph or a damaged file is refused.

`Circuit.of` prunes dead ends. Set algebra and `restricted` do not: they are exact on edges, and a part of a circuit need
not run on its own; `pruned` is what is left of it when it runs.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.circuit.components import (
    Classes,
    check_known,
    check_labels,
    check_size,
    components,
    differences,
    edge_class,
    mlp_of,
    selectors,
)
from workbench.circuit.graph import Graph
from workbench.errors import CircuitError, SiteError
from workbench.files import check_free, whole
from workbench.results import clean_attrs
from workbench.sites import Edge, Node, Position

if TYPE_CHECKING:
    import networkx

FORMAT = "interp-workbench circuit 1"


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges of a graph. `edges` has the shape of `graph.exists`; build it with `Circuit.of`, which prunes dead ends.

    Circuits of one graph are sets: `a | b`, `a & b`, `a - b`, `a ^ b`, `~a`, `a <= b`, exact on edges. The result has the
    scores of the left circuit, the prompts of both, and the attributes on which they agree.

    Attributes:
        graph: the graph the edges belong to.
        edges: bool [writer, reader], or [pos, writer, reader] where the graph has positions.
        scores: floats of that shape or None: the scores it was cut from (positive supports the behaviour), NaN where
            there is no edge.
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

    @classmethod
    def of(
        cls,
        graph: Graph,
        edges: np.ndarray | Iterable[Edge | str],
        *,
        scores: np.ndarray | None = None,
        attrs: Mapping[str, Any] | None = None,
        prompt_ids: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> "Circuit":
        """A circuit of these edges (a boolean matrix, or edges or their string forms), dead ends pruned."""
        if not isinstance(edges, np.ndarray):
            matrix = np.zeros_like(graph.exists)
            for edge in edges:
                matrix[graph.index(edge)] = True
            edges = matrix
        for name, given in (("Edges", edges), ("Scores", scores)):
            if given is not None and given.shape != graph.exists.shape:
                raise CircuitError(
                    f"{name} of shape {given.shape} do not fit a graph with matrices of {graph.exists.shape}."
                )
        chosen = edges.astype(bool) & graph.exists
        named = check_labels(graph, labels or {})
        pruned, found = graph.prune(chosen), int(chosen.sum())
        return cls(graph, pruned, scores, found, clean_attrs(attrs or {}), frozenset(prompt_ids), named)

    @classmethod
    def of_nodes(
        cls,
        graph: Graph,
        nodes: Iterable[str],
        *,
        attrs: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> "Circuit":
        """The circuit of every edge between these components (`a9.9`, `m3`, `m3:113`); input and logits are always in.

        >>> from workbench.sites import Shape
        >>> graph = Graph(Shape(2, 2, 2, 32, 16, 128, 50, 32))
        >>> Circuit.of_nodes(graph, ["m1"]).edge_list
        [Edge('input->m1'), Edge('input->logits'), Edge('m1->logits')]
        """
        wanted = {"input", "logits", *nodes}
        check_known(
            wanted,
            {"logits", *graph.writers, *map(mlp_of, graph.writers)},
            "node",
            "Nodes: a9.6, m3, m3:113.",
        )
        writers = [not wanted.isdisjoint((name, mlp_of(name))) for name in graph.writers]
        readers = [not wanted.isdisjoint((*components(graph, name), mlp_of(name))) for name in graph.readers]
        return cls.of(graph, graph.exists & np.outer(writers, readers), attrs=attrs, labels=labels)

    @classmethod
    def full(cls, model_or_shape: Any) -> "Circuit":
        """The circuit of every edge of a model, a `Shape` or a `Graph`: it behaves as the whole model."""
        graph = _graph(model_or_shape)
        return cls.of(graph, graph.exists)

    @classmethod
    def empty(cls, model_or_shape: Any) -> "Circuit":
        """The circuit of no edge: with corrupt values it behaves as the corrupt run."""
        graph = _graph(model_or_shape)
        return cls.of(graph, np.zeros_like(graph.exists))

    # ---- what is in it

    @property
    def n_edges(self) -> int:
        """How many edges it has: after pruning, where `Circuit.of` built it. An edge at two positions counts twice."""
        return int(self.edges.sum())

    @property
    def weighted_edge_count(self) -> float:
        """The sum over edges (u, v) of the share of u's neurons that are in the circuit (2504.13151).

        All edges of u's neurons into v are one edge. Where no MLP is split into neurons this is `n_edges`, except for
        imported circuits that hold some dimensions of a node's output only: their shares come from the file.
        """
        kept = {name: len(dims) / self.graph.shape.d_model for name, dims in self.output_neurons.items()}
        writing = set(np.flatnonzero(self._flat.any((0, 2))).tolist())
        neurons: dict[str, list[bool]] = {}
        for i, name in enumerate(self.graph.writers):
            neurons.setdefault(mlp_of(name), []).append(i in writing)
        edges = {
            (edge.pos, mlp_of(edge.writer), mlp_of(edge.reader)) for edge in self.graph.edges(self.edges)
        }
        return math.fsum(kept.get(node, sum(neurons[node]) / len(neurons[node])) for _, node, _ in edges)

    @property
    def output_neurons(self) -> dict[str, list[int]]:
        """Nodes of an imported circuit that have only these dimensions of their output in it; evaluation takes all of them."""
        return json.loads(self.attrs.get("output_neurons", "{}"))

    @property
    def edge_list(self) -> list[Edge]:
        """The edges, strongest score first (graph order where there are no scores)."""
        return [edge for edge, _ in self._ranked]

    @property
    def _ranked(self) -> list[tuple[Edge, float]]:
        """The edges with their scores, as `edge_list` sorts them."""
        values = np.full(self.n_edges, np.nan) if self.scores is None else self.scores[self.edges]
        found = list(zip(self.graph.edges(self.edges), values.tolist(), strict=True))
        return [found[i] for i in np.argsort(-np.abs(values), kind="stable")]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The components that write or read an edge, in graph order: input, heads, MLPs or neurons, logits.

        A key or value that query heads share counts for those of them that are in the circuit otherwise.
        """
        present = {self.graph.writers[w] for w in np.flatnonzero(self._flat.any((0, 2)))}
        entered = [
            components(self.graph, self.graph.readers[r]) for r in np.flatnonzero(self._flat.any((0, 1)))
        ]
        present.update(parts[0] for parts in entered if len(parts) == 1)
        for parts in entered:
            present.update(parts if present.isdisjoint(parts) else ())
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
    def _flat(self) -> np.ndarray:
        """bool [pos, writer, reader], with one position where the graph has none."""
        return self.edges.reshape(-1, *self.edges.shape[-2:])

    def score(self, edge: Edge | str) -> float:
        """The score of one edge; NaN where it has none. An edge without a position sums those it has at any."""
        if self.scores is None:
            return float("nan")
        found = np.atleast_1d(self.scores[self.graph.index(edge)])
        return float(np.nansum(found)) if np.isfinite(found).any() else float("nan")

    def __len__(self) -> int:
        return self.n_edges

    def __contains__(self, edge: Edge | str) -> bool:
        """Whether the edge is in it; one without a position means every position."""
        return bool(self.edges[self.graph.index(edge)].all())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Circuit)
            and self.graph == other.graph
            and bool((self.edges == other.edges).all())
        )

    def __hash__(self) -> int:
        return hash((self.graph, self.edges.tobytes()))

    def __repr__(self) -> str:
        share = self.n_edges / self.graph.n_edges
        return (
            f"<Circuit: {self.n_edges} of {self.graph.n_edges} edges ({share:.1%}), {len(self.heads)} heads>"
        )

    def _repr_html_(self) -> str:
        from workbench.render.circuit.html import circuit_html

        return circuit_html(self)

    # ---- sets of edges

    def __or__(self, other: "Circuit") -> "Circuit":
        return self._join(other, "|", np.logical_or)

    def __and__(self, other: "Circuit") -> "Circuit":
        return self._join(other, "&", np.logical_and)

    def __sub__(self, other: "Circuit") -> "Circuit":
        return self._join(other, "-", np.greater)

    def __xor__(self, other: "Circuit") -> "Circuit":
        return self._join(other, "^", np.logical_xor)

    def __invert__(self) -> "Circuit":
        return self._part(self.graph.exists & ~self.edges)

    def __le__(self, other: "Circuit") -> bool:
        self._check_same(other, "<=")
        return bool((self.edges <= other.edges).all())

    def __lt__(self, other: "Circuit") -> bool:
        return self <= other and self != other

    def _join(
        self, other: "Circuit", sign: str, how: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> "Circuit":
        self._check_same(other, sign)
        agreed = {
            key: value
            for key, value in self.attrs.items()
            if key in other.attrs and other.attrs[key] == value
        }
        part = self._part(how(self.edges, other.edges))
        return replace(
            part,
            attrs=agreed,
            prompt_ids=self.prompt_ids | other.prompt_ids,
            labels={**other.labels, **self.labels},
        )

    def _check_same(self, other: "Circuit", sign: str) -> None:
        if not isinstance(other, Circuit):
            raise CircuitError(f"circuit {sign} {type(other).__name__}: both sides must be circuits.")
        if self.graph != other.graph:
            raise CircuitError(
                f"circuit {sign} circuit: they are for different graphs: {differences(self.graph, other.graph, 'other')}. "
                "Use .collapsed on both, or wb.compare(a, b)."
            )

    def _part(self, edges: np.ndarray) -> "Circuit":
        return replace(self, edges=edges, n_requested=int(edges.sum()))

    @property
    def pruned(self) -> "Circuit":
        """The circuit without dead ends: what runs when it is evaluated."""
        return replace(self, edges=self.graph.prune(self.edges))

    @property
    def collapsed(self) -> "Circuit":
        """The circuit on the plain graph: an edge is in it if it is at any position and for any neuron of an MLP.

        Its scores are the sums over the edges that it stands for and that are in the circuit.
        """
        plain = Graph(self.graph.shape)
        if self.graph == plain:
            return self
        rows = np.array([plain.writer_index[mlp_of(name)] for name in self.graph.writers])
        columns = np.array([plain.reader_index[mlp_of(name)] for name in self.graph.readers])
        *_, writer, reader = np.nonzero(self.edges)
        at = rows[writer], columns[reader]
        edges, scores = np.zeros_like(plain.exists), None
        edges[at] = True
        if self.scores is not None:
            values = self.scores[self.edges]
            scores, known = np.zeros(plain.exists.shape), np.zeros(plain.exists.shape, dtype=bool)
            np.add.at(scores, at, np.nan_to_num(values))
            np.logical_or.at(known, at, np.isfinite(values))
            scores[~known] = np.nan
        labels = {name: role for name, role in self.labels.items() if ":" not in name}
        return Circuit(plain, edges, scores, int(edges.sum()), self.attrs, self.prompt_ids, labels)

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
            writers, readers: nodes (`a9.9`, `m3`), readers (`a9.9<q>`), the words `heads`, `mlps`, `q`, `k`, `v`, or roles.
            where: keeps an edge for which it is true.

        Raises:
            CircuitError: a position or name that the circuit's graph does not have.
        """
        edges = self.edges.copy()
        if positions is not None:
            asked = [positions] if isinstance(positions, str | int) else list(positions)
            absent = [place for place in asked if place not in (self.graph.positions or ())]
            if absent:
                has = ", ".join(map(str, self.graph.positions)) if self.graph.positions else "none"
                raise CircuitError(
                    f"restricted: this circuit has no position {absent[0]!r}. Its positions: {has}."
                )
            edges[[place not in asked for place in self.graph.positions or ()]] = False
        for given, nodes, axis in ((writers, self.graph.writers, -2), (readers, self.graph.readers, -1)):
            if given is None:
                continue
            wanted = {given} if isinstance(given, str) else set(given)
            names = [selectors(self.graph, self.labels, name) for name in nodes]
            what = "writer" if axis == -2 else "reader"
            check_known(
                wanted, set().union(*names), what, "Give nodes, readers, heads, mlps, q, k, v or a role."
            )
            keep = np.array([not wanted.isdisjoint(each) for each in names])
            edges &= keep[:, None] if axis == -2 else keep
        if where is not None:
            edges[edges] = [where(edge) for edge in self.graph.edges(edges)]
        return self._part(edges)

    def by_component(self, by: Classes | str = "reader") -> dict[str, "Circuit"]:
        """The circuit in parts, in graph order: by what its edges enter (`q k v mlps logits`), by what writes them
        (`input heads mlps`), by the reader's `layer`, or by `role` (`S-inhibition -> name mover`)."""
        parts: dict[str, np.ndarray] = {}
        for at in np.argwhere(self.edges):
            ends = self.graph.writers[at[-2]], self.graph.readers[at[-1]]
            name = edge_class(self.graph, self.labels, *ends, by)
            parts.setdefault(name, np.zeros_like(self.edges))[tuple(at)] = True
        return {name: self._part(edges) for name, edges in parts.items()}

    # ---- other forms

    def to_frame(self) -> pd.DataFrame:
        """A table with one row per edge, strongest first: `edge writer reader pos port score`."""
        rows = [
            (str(edge), edge.writer, edge.reader, edge.pos, edge.port, score) for edge, score in self._ranked
        ]
        return pd.DataFrame(rows, columns=["edge", "writer", "reader", "pos", "port", "score"])

    def to_scores(self) -> xr.DataArray:
        """The scores as `score_edges` returns them, for `find_circuit`: this is how scores of other tools are cut anew.

        Raises:
            CircuitError: it has no scores.
        """
        if self.scores is None:
            raise CircuitError("This circuit has no scores.")
        graph, lead = (
            self.graph,
            {} if self.graph.positions is None else {"pos": list(map(str, self.graph.positions))},
        )
        attrs = {
            **self.attrs,
            "graph": json.dumps(graph.to_dict()),
            "kind": "edge_scores",
            "higher_is_better": 1,
        }
        attrs["prompt_ids"] = " ".join(sorted(self.prompt_ids))
        table = np.where(graph.exists, self.scores, np.nan)
        if graph.neurons:
            writer, reader = np.nonzero(graph.whole.exists)
            ends = {
                "writer": ("edge", [graph.writers[w] for w in writer]),
                "reader": ("edge", [graph.readers[r] for r in reader]),
            }
            return xr.DataArray(
                table[..., writer, reader],
                dims=(*lead, "edge"),
                coords=lead | ends,
                attrs=attrs,
                name="score",
            )
        coords = lead | {"writer": list(graph.writers), "reader": list(graph.readers)}
        return xr.DataArray(table, dims=tuple(coords), coords=coords, attrs=attrs, name="score")

    def to_networkx(self) -> "networkx.MultiDiGraph":
        """A multigraph of components: nodes have `kind` and `role`, edges `reader port score` and, with positions, `pos`.

        The key of an edge is its string form. An edge into a shared key or value leads to each query head of the
        circuit that shares it, under one key.
        """
        import networkx

        graph, nodes = networkx.MultiDiGraph(), self.nodes
        for name in nodes:
            kind = Node.parse(name).kind
            # A neuron's nodes are drawn and counted as those of its MLP.
            kind = "mlp" if kind == "neuron" else kind
            graph.add_node(name, kind=kind, **({"role": self.labels[name]} if name in self.labels else {}))
        for edge, score in self._ranked:
            facts: dict[str, Any] = {"reader": edge.reader, "port": edge.port}
            facts |= {"score": score} | ({} if edge.pos is None else {"pos": edge.pos})
            for part in components(self.graph, edge.reader):
                if part in nodes:
                    graph.add_edge(edge.writer, part, key=str(edge), **facts)
        return graph

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the circuit as JSON, whole or not at all. Raises `OutputExists` rather than replace a file."""
        path = Path(path)
        check_free(path, overwrite=overwrite)
        document = {
            "format": FORMAT,
            "shape": self.graph.to_dict(),
            "n_edges": self.n_edges,
            "n_requested": self.n_requested,
            "attrs": dict(self.attrs),
            "prompt_ids": sorted(self.prompt_ids),
            **({"labels": dict(self.labels)} if self.labels else {}),
            "edges": {str(edge): score if math.isfinite(score) else None for edge, score in self._ranked},
        }
        with whole(path) as partial:
            partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read a circuit. Scores are kept for its own edges only.

        Raises:
            CircuitError: no such file, not a circuit, or edges that its own graph does not have.
        """
        path = Path(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise CircuitError(f"{str(path)!r} is not a circuit file: its format is not {FORMAT!r}.")
            graph = Graph.from_dict(document["shape"])
            check_size(graph)
            listed = document["edges"]
            edges, scores = np.zeros_like(graph.exists), np.full(graph.exists.shape, np.nan)
            for name, score in listed.items():
                at = graph.index(name)
                if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
                    raise ValueError(f"the score of {name} is {score!r}")
                edges[at] = True
                scores[at] = np.nan if score is None else float(score)
            ids, requested = document["prompt_ids"], document["n_requested"]
            if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
                raise ValueError("prompt_ids is not a list of texts")
            if type(requested) is not int or requested < len(listed):
                raise ValueError(f"n_requested is {requested} for {len(listed)} edges")
            scored = any(score is not None for score in listed.values())
            labels = check_labels(graph, dict(document.get("labels", {})))
            attrs = dict(document["attrs"])
            _check_neurons(attrs.get("output_neurons", "{}"))
            circuit = cls(graph, edges, scores if scored else None, requested, attrs, frozenset(ids), labels)
        except OSError as error:
            raise CircuitError(f"There is no circuit file {str(path)!r}.") from error
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            SiteError,
        ) as error:
            raise CircuitError(f"{str(path)!r} is not a usable circuit file: {error}") from error
        if circuit.n_edges != document.get("n_edges"):
            raise CircuitError(
                f"{str(path)!r} was edited or cut: it promises {document.get('n_edges')} edges and holds {circuit.n_edges}."
            )
        return circuit

    def check_fits(self, model_or_shape: Any) -> None:
        """Raise `CircuitError` when the circuit belongs to another model's graph. Positions and neurons are its own matter."""
        graph = Graph.of(model_or_shape)
        if graph.shape != self.graph.shape:
            differ = differences(Graph(self.graph.shape), graph, "model")
            raise CircuitError(
                f"This circuit is for another graph: {self.graph}; the model has {graph}. They differ in {differ}."
            )


def _graph(given: Any) -> Graph:
    return given if isinstance(given, Graph) else Graph.of(given)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys must differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _check_neurons(text: Any) -> None:
    """Raise `ValueError` when the attribute `output_neurons` is not the text of lists of dimensions by name."""
    found = json.loads(text) if isinstance(text, str) else None
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(dims, list) and all(type(d) is int for d in dims) for dims in lists):
        raise ValueError("output_neurons is not the text of lists of dimensions by name")
