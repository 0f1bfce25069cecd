"""Edges in order: the best first, or as a circuit grows from the outputs.

`best_first` and `grown` return flat indices, of which `first_edges` makes a circuit's matrix. What ranks them
does not matter here.
"""

import heapq

import numpy as np

from workbench.circuit.graph import Graph


def best_first(graph: Graph, rank: np.ndarray) -> np.ndarray:
    """Flat indices of the edges of a graph, the highest rank first; equal ones in graph order."""
    order = np.argsort(-np.where(graph.exists, rank, -np.inf), axis=None, kind="stable")
    return order[: graph.n_edges]


def first_edges(graph: Graph, order: np.ndarray, n: int) -> np.ndarray:
    """bool [(pos,) writer, reader]: the first n of ordered edges."""
    edges = np.zeros(graph.exists.size, dtype=bool)
    edges[order[:n]] = True
    return edges.reshape(graph.exists.shape)


def grown(graph: Graph, rank: np.ndarray, n: int) -> np.ndarray:
    """Flat indices of edges in the order in which a circuit grows from the outputs (`Graph.is_output`)."""
    order: list[int] = []
    flat = np.arange(graph.exists.size).reshape(graph.exists.shape)
    inside = np.zeros(len(graph.readers), dtype=bool)
    # A heap of (-rank, index): the best edge into what is inside is popped first, equal ones in graph order.
    waiting: list[tuple[float, int]] = []

    def enter(readers: np.ndarray) -> None:
        """Put every edge into these readers on the heap."""
        new = readers & ~inside
        inside[new] = True
        edges = flat[..., new][graph.exists[..., new]]
        for index in edges.tolist():
            heapq.heappush(waiting, (-float(rank.flat[index]), index))

    enter(graph.is_output)
    while waiting and len(order) < n:
        _, index = heapq.heappop(waiting)
        order.append(index)
        writer = index // len(graph.readers) % len(graph.writers)
        enter(graph.feeds[:, writer])
    return np.array(order, dtype=int)
