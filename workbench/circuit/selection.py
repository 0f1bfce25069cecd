"""Some of a circuit's edges: by position, writer or reader; and all of them, class by class.

`select_edges` is `Circuit.restricted`, `edges_by_class` is `Circuit.by_component`. Both work on matrices, not
on circuits.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from workbench.arguments import called
from workbench.circuit.components import Classes, check_known, edge_class, selectors
from workbench.circuit.graph import Graph
from workbench.errors import CircuitError
from workbench.sites import Edge, Position


def select_edges(
    graph: Graph,
    labels: Mapping[str, str],
    edges: np.ndarray,
    *,
    positions: Position | Iterable[Position] | None = None,
    writers: str | Iterable[str] | None = None,
    readers: str | Iterable[str] | None = None,
    where: Callable[[Edge], bool] | None = None,
) -> np.ndarray:
    """bool [(pos,) writer, reader]: the edges that every condition keeps.

    Raises:
        CircuitError: a position or name that the graph does not have.
    """
    kept = edges.copy()
    if positions is not None:
        wanted = _at_positions(graph, positions)
        # Without positions there is no such axis, and only an empty request comes this far.
        if graph.positions is not None:
            kept[~wanted] = False
    if writers is not None:
        kept &= _named(graph, labels, graph.writers, writers, "writer")[:, None]
    if readers is not None:
        kept &= _named(graph, labels, graph.readers, readers, "reader")
    if where is not None:
        # `graph.edges` goes through the matrix in the order in which a boolean index fills it.
        kept[kept] = [called("restricted: where=", where, edge) for edge in graph.edges(kept)]
    return kept


def edges_by_class(
    graph: Graph, labels: Mapping[str, str], edges: np.ndarray, by: Classes | str
) -> dict[str, np.ndarray]:
    """Name of a class → bool [(pos,) writer, reader], in graph order.

    `components.edge_class` says what the classes are.
    """
    groups: dict[str, np.ndarray] = {}
    for index in np.argwhere(edges):
        name = edge_class(graph, labels, graph.writers[index[-2]], graph.readers[index[-1]], by)
        groups.setdefault(name, np.zeros_like(edges))[tuple(index)] = True
    return groups


def _at_positions(graph: Graph, positions: Position | Iterable[Position]) -> np.ndarray:
    """bool [pos]: which of the graph's classes of tokens are wanted."""
    wanted = [positions] if isinstance(positions, str | int) else list(positions)
    known = graph.positions or ()
    for position in wanted:
        if position not in known:
            listed = ", ".join(map(str, known)) or "none"
            raise CircuitError(
                f"restricted: this circuit has no position {position!r}. Its positions: {listed}."
            )
    return np.array(list(map(wanted.__contains__, known)), dtype=bool)


def _named(
    graph: Graph, labels: Mapping[str, str], nodes: Iterable[str], names: str | Iterable[str], kind: str
) -> np.ndarray:
    """bool [node]: which writers or readers have one of these names, words or roles."""
    # A single name is a string, and so iterable itself.
    wanted = {names} if isinstance(names, str) else set(names)
    selectable = [selectors(graph, labels, node) for node in nodes]
    check_known(
        wanted, set().union(*selectable), kind, "Give nodes, readers, heads, mlps, q, k, v or a role."
    )
    return np.array([not wanted.isdisjoint(words) for words in selectable])
