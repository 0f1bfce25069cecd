"""A circuit is an object: a set of edges of a model's graph, with where it came from.

It is saved as JSON that names its edges, the model and the prompts it was found on (by hash), so that it can be
evaluated on others, compared and drawn. A circuit of another graph or a damaged file is refused.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import CircuitError, SiteError
from workbench.files import check_free, whole
from workbench.graph import Graph
from workbench.results import clean_attrs
from workbench.sites import Edge, Shape

FORMAT = "interp-workbench circuit 1"


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges of a graph. `edges` is bool [writer, reader], already pruned of dead ends; build it with `Circuit.of`.

    Attributes:
        graph: the graph the edges belong to.
        edges: bool [writer, reader].
        scores: float [writer, reader] or None: the scores it was cut from (positive supports the behaviour), NaN
            where there is no edge.
        n_requested: how many edges were chosen before dead ends were pruned.
        attrs: provenance: model and data fingerprints, metric, value, method.
        prompt_ids: hashes of the prompts it was found on.
    """

    graph: Graph
    edges: np.ndarray
    scores: np.ndarray | None = None
    n_requested: int = 0
    attrs: Mapping[str, Any] = field(default_factory=dict)
    prompt_ids: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        graph: Graph,
        edges: np.ndarray | Iterable[Edge | str],
        *,
        scores: np.ndarray | None = None,
        attrs: Mapping[str, Any] | None = None,
        prompt_ids: Iterable[str] = (),
    ) -> "Circuit":
        """A circuit of these edges (a boolean matrix, or edges or their string forms), dead ends pruned."""
        if not isinstance(edges, np.ndarray):
            matrix = np.zeros_like(graph.exists)
            for edge in edges:
                matrix[graph.index(edge)] = True
            edges = matrix
        if edges.shape != graph.exists.shape:
            raise CircuitError(f"Edges of shape {edges.shape} do not fit a graph with matrices of {graph.exists.shape}.")
        chosen = edges.astype(bool) & graph.exists
        return cls(graph, graph.prune(chosen), scores, int(chosen.sum()), clean_attrs(attrs or {}), frozenset(prompt_ids))

    @classmethod
    def full(cls, model_or_shape: Any) -> "Circuit":
        """The circuit of every edge: it behaves as the whole model."""
        graph = Graph.of(model_or_shape)
        return cls.of(graph, graph.exists)

    @classmethod
    def empty(cls, model_or_shape: Any) -> "Circuit":
        """The circuit of no edge: with corrupt values it behaves as the corrupt run."""
        graph = Graph.of(model_or_shape)
        return cls.of(graph, np.zeros_like(graph.exists))

    @property
    def n_edges(self) -> int:
        """Edges after pruning."""
        return int(self.edges.sum())

    @property
    def edge_list(self) -> list[Edge]:
        """The edges, strongest score first (graph order where there are no scores)."""
        found = np.argwhere(self.edges)
        if self.scores is not None:
            found = found[np.argsort(-np.abs(self.scores[tuple(found.T)]), kind="stable")]
        return [Edge(self.graph.writers[w], self.graph.readers[r]) for w, r in found]

    @property
    def heads(self) -> list[tuple[int, int]]:
        """(layer, head) of every attention head in the circuit, in graph order."""
        names = [name for w, name in enumerate(self.graph.writers) if name.startswith("a") and self.edges[w].any()]
        return [(int(layer), int(head)) for layer, head in (name[1:].split(".") for name in names)]

    def score(self, edge: Edge | str) -> float:
        """The score of one edge; NaN when the circuit carries no scores."""
        return float("nan") if self.scores is None else float(self.scores[self.graph.index(edge)])

    def __len__(self) -> int:
        return self.n_edges

    def __contains__(self, edge: Edge | str) -> bool:
        return bool(self.edges[self.graph.index(edge)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.graph == other.graph and bool((self.edges == other.edges).all())

    def __hash__(self) -> int:
        return hash((self.graph, self.edges.tobytes()))

    def __repr__(self) -> str:
        share = self.n_edges / self.graph.n_edges
        return f"<Circuit: {self.n_edges} of {self.graph.n_edges} edges ({share:.1%}), {len(self.heads)} heads>"

    def _repr_html_(self) -> str:
        from workbench.render.html import circuit_html

        return circuit_html(self)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the circuit as JSON, whole or not at all. Raises `OutputExists` rather than replace a file."""
        path = Path(path)
        check_free(path, overwrite=overwrite)
        document = {
            "format": FORMAT,
            "shape": asdict(self.graph.shape),
            "n_edges": self.n_edges,
            "n_requested": self.n_requested,
            "attrs": dict(self.attrs),
            "prompt_ids": sorted(self.prompt_ids),
            "edges": {
                str(edge): score if math.isfinite(score) else None for edge in self.edge_list for score in [self.score(edge)]
            },
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
            document = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise CircuitError(f"{str(path)!r} is not a circuit file: its format is not {FORMAT!r}.")
            graph = Graph(Shape(**document["shape"]))
            listed = dict(document["edges"])
            edges, scores = np.zeros_like(graph.exists), np.full(graph.exists.shape, np.nan)
            for name, score in listed.items():
                at = graph.index(name)
                edges[at] = True
                scores[at] = np.nan if score is None else float(score)
            ids, requested = document["prompt_ids"], document["n_requested"]
            if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
                raise ValueError("prompt_ids is not a list of texts")
            if type(requested) is not int or requested < len(listed):
                raise ValueError(f"n_requested is {requested} for {len(listed)} edges")
            scored = any(score is not None for score in listed.values())
            circuit = cls(
                graph,
                graph.prune(edges),
                scores if scored else None,
                requested,
                dict(document["attrs"]),
                frozenset(ids),
            )
        except OSError as error:
            raise CircuitError(f"There is no circuit file {str(path)!r}.") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, SiteError) as error:
            raise CircuitError(f"{str(path)!r} is not a usable circuit file: {error}") from error
        if circuit.n_edges != document.get("n_edges"):
            raise CircuitError(
                f"{str(path)!r} was edited or cut: it promises {document.get('n_edges')} edges and holds {circuit.n_edges}."
            )
        return circuit

    def check_fits(self, model_or_shape: Any) -> None:
        """Raise `CircuitError` when the circuit belongs to another graph than the model's."""
        graph = Graph.of(model_or_shape)
        if graph != self.graph:
            own, other = asdict(self.graph.shape), asdict(graph.shape)
            differ = ", ".join(f"{name} {own[name]} (model: {other[name]})" for name in own if own[name] != other[name])
            raise CircuitError(
                f"This circuit is for another graph: {self.graph}; the model has {graph}. They differ in {differ}."
            )
