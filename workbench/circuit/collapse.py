"""A circuit of a finer graph as one of the plain graph: without positions, and with whole MLPs."""

from dataclasses import dataclass

import numpy as np

from workbench.circuit.components import mlp_of
from workbench.circuit.graph import Graph


@dataclass(frozen=True, eq=False)
class CollapsedEdges:
    """Edges and scores on the plain graph: bool and float [writer, reader]; `scores` is None without any."""

    graph: Graph
    edges: np.ndarray
    scores: np.ndarray | None


def collapse(graph: Graph, edges: np.ndarray, scores: np.ndarray | None) -> CollapsedEdges:
    """The edges of the plain graph that stand for some of these, with the sum of their known scores.

    Args:
        edges, scores: [(pos,) writer, reader] of the finer graph.
    """
    plain = Graph(graph.shape, answers_attend=graph.answers_attend)
    rows = np.array([plain.writer_index[mlp_of(name)] for name in graph.writers])
    columns = np.array([plain.reader_index[mlp_of(name)] for name in graph.readers])
    *_, writer, reader = np.nonzero(edges)
    targets = rows[writer], columns[reader]
    plain_edges = np.zeros_like(plain.exists)
    plain_edges[targets] = True
    if scores is None:
        return CollapsedEdges(plain, plain_edges, None)
    values = scores[edges]
    sums, known = np.zeros(plain.exists.shape), np.zeros(plain.exists.shape, dtype=bool)
    # `add.at`, not `+=`: several edges have the same target, and `+=` would count only one of them.
    np.add.at(sums, targets, np.nan_to_num(values))
    np.logical_or.at(known, targets, np.isfinite(values))
    sums[~known] = np.nan
    return CollapsedEdges(plain, plain_edges, sums)
