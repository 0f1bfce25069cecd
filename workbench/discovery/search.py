"""From scores of edges to a circuit."""

import json
from typing import Literal

import numpy as np
import xarray as xr

from workbench.discovery.circuit import Circuit
from workbench.errors import CircuitError, SiteError, UnknownName
from workbench.graph import Graph
from workbench.sites import Shape


def find_circuit(
    scores: xr.DataArray,
    *,
    n_edges: int | None = None,
    threshold: float | None = None,
    by: Literal["signed", "magnitude"] | str = "signed",
) -> Circuit:
    """The circuit of the highest-scored edges; dead ends are pruned afterwards.

    Args:
        scores: from `score_edges`, (writer, reader).
        n_edges: how many edges to choose, counted before pruning.
        threshold: choose every edge with a score of at least this (an absolute score with `by="magnitude"`).
        by: rank by the score itself (edges that support the behaviour) or by its size.

    Raises:
        CircuitError: not exactly one of `n_edges` and `threshold`, or scores that are no edge scores.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=8)
    >>> scores = wb.score_edges(model, pairs, value=wb.zero())
    >>> wb.find_circuit(scores, n_edges=30).n_requested
    30
    """
    if (n_edges is None) == (threshold is None):
        raise CircuitError("find_circuit: give exactly one of n_edges= and threshold=.")
    if by not in ("signed", "magnitude"):
        raise UnknownName("way to rank edges", by, ("signed", "magnitude"))
    graph = graph_of(scores)
    values = scores.values if int(scores.attrs.get("higher_is_better", 1)) else -scores.values
    if threshold is not None and not np.isfinite(threshold):
        raise CircuitError(f"find_circuit: threshold={threshold} is not a finite number.")
    if not np.isfinite(values[graph.exists]).all():
        raise CircuitError("find_circuit: some edges have no finite score. Check the metric and the edits that made them.")
    rank = np.where(graph.exists, np.abs(values) if by == "magnitude" else values, -np.inf)
    if threshold is not None:
        chosen = rank >= threshold
    else:
        assert n_edges is not None
        if not 0 <= n_edges <= graph.n_edges:
            raise CircuitError(f"find_circuit: n_edges={n_edges}; this graph has {graph.n_edges} edges.")
        chosen = np.zeros(rank.size, dtype=bool)
        chosen[np.argsort(-rank, axis=None, kind="stable")[:n_edges]] = True
        chosen = chosen.reshape(rank.shape)
    attrs = {key: value for key, value in scores.attrs.items() if key not in ("prompt_ids", "graph", "kind", "unit")}
    ids = str(scores.attrs.get("prompt_ids", "")).split()
    return Circuit.of(graph, chosen & graph.exists, scores=values.astype(float), attrs=attrs | {"ranked_by": by}, prompt_ids=ids)


def graph_of(scores: xr.DataArray) -> Graph:
    """The graph that edge scores belong to. Raises `CircuitError` for anything else."""
    if scores.dims != ("writer", "reader") or "graph" not in scores.attrs:
        raise CircuitError(
            f"Edge scores have dims (writer, reader), not {scores.dims}. Make them with wb.score_edges(...); average kept axes first."
        )
    try:
        graph = Graph(Shape(**json.loads(scores.attrs["graph"])))
    except (ValueError, TypeError, SiteError) as error:
        raise CircuitError(f"These edge scores do not say which graph they belong to: {error}") from error
    if tuple(scores["writer"].values) != graph.writers or tuple(scores["reader"].values) != graph.readers:
        raise CircuitError(
            f"These edge scores are not over the whole graph in its own order ({graph}): do not select or sort them."
        )
    return graph
