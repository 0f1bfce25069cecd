"""Random circuits of a given size: what a circuit must beat.

Random edges are a weak opponent: hardly any of them lie on a path from the input to an output, and after
pruning such a circuit is mostly empty. Random *paths* are the hard one: pruning leaves all of their edges, so
that a circuit that beats them beats something that runs. `random_circuits` draws both, `relocated` moves a
circuit to other heads. No model is run.
"""

import numpy as np

from workbench.circuit.graph import Graph
from workbench.errors import CircuitError

TRIES = 10
"""How often a path that is too long for what is left is drawn again."""


def random_circuits(
    graph: Graph,
    n_edges: int,
    *,
    draws: int,
    seed: int = 0,
    paths: bool = False,
    within: np.ndarray | None = None,
) -> np.ndarray:
    """bool [draw, (pos,) writer, reader]: random circuits of a size, before pruning.

    Args:
        n_edges: of each circuit. With `paths`, at most: a few less where no edge can be added to what is
            there.
        paths: False: sets of edges, all as likely. True: complete paths from an output back to `input` are
            drawn (each reader gets a uniform writer; a head its query, and its key or value), as long as they
            fit; the rest are random edges between what is live by then. `prune` leaves all of it.
        within: bool [(pos,) writer, reader], the edges to draw from; None: all.

    Raises:
        CircuitError: a size that these edges do not have.

    >>> from workbench.sites import Shape
    >>> graph = Graph.of(Shape(2, 4, 4, 32, 8, 128, 100, 64))
    >>> random_circuits(graph, 12, draws=5).sum((1, 2)).tolist()
    [12, 12, 12, 12, 12]
    """
    allowed = graph.exists if within is None else within & graph.exists
    if not 0 <= n_edges <= allowed.sum():
        raise CircuitError(
            f"random_circuits: n_edges={n_edges}; there are {allowed.sum()} edges to draw from."
        )
    rng = np.random.default_rng(seed)
    circuits = np.zeros((draws, *graph.exists.shape), dtype=bool)
    for circuit in circuits:
        # All edges: the only circuit of that size, in whatever way it is drawn.
        if n_edges == allowed.sum():
            circuit[:] = allowed
        elif paths:
            _grow(graph, allowed, n_edges, rng, circuit)
        else:
            circuit[_some(allowed, n_edges, rng)] = True
    return circuits


def relocated(graph: Graph, circuit: np.ndarray, *, draws: int, seed: int = 0) -> np.ndarray:
    """bool [draw, (pos,) writer, reader]: the circuit with every head replaced by another of its layer.

    Every head's edges go to another head of its layer, drawn at random; under grouped queries a group goes to
    another group. A layer with a single group keeps it. MLPs stay. Comparing with these circuits says whether
    it matters which heads the circuit has.

    >>> from workbench.sites import Shape
    >>> graph = Graph.of(Shape(1, 2, 2, 32, 16, 128, 100, 64))
    >>> edges = np.zeros_like(graph.exists)
    >>> edges[graph.index("a0.1->logits")] = True
    >>> [graph.writers[w] for w in relocated(graph, edges, draws=1)[0].any(-1).nonzero()[0]]
    ['a0.0']
    """
    shape, rng = graph.shape, np.random.default_rng(seed)
    relocations = np.zeros((draws, *graph.exists.shape), dtype=bool)
    for moved in relocations:
        heads, groups = {}, {}
        for layer in range(shape.n_layers):
            for old, new in enumerate(_derangement(shape.n_kv_heads, rng)):
                groups[f"a{layer}.{old}"] = f"a{layer}.{new}"
                for i in range(shape.group):
                    heads[f"a{layer}.{old * shape.group + i}"] = f"a{layer}.{new * shape.group + i}"
        writers = [graph.writers.index(heads.get(name, name)) for name in graph.writers]
        readers = []
        for name in graph.readers:
            head, bracket, port = name.partition("<")
            # Keys and values are named by their kv head, so they move with their group.
            new_names = heads if port == "q>" else groups
            readers.append(graph.readers.index(new_names.get(head, head) + bracket + port))
        moved[..., np.array(writers)[:, None], np.array(readers)] = circuit
    return relocations


def _derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of 0 ... n - 1 that leaves nothing where it was, unless n is 1."""
    order = rng.permutation(n)
    # About 1 in e permutations is a derangement, so few are drawn.
    while n > 1 and (order == np.arange(n)).any():
        order = rng.permutation(n)
    return order


def add_path(
    graph: Graph,
    circuit: np.ndarray,
    rng: np.random.Generator,
    *,
    allowed: np.ndarray | None = None,
    most: int | None = None,
) -> np.ndarray:
    """The circuit with one more complete path from `input` to an output (`Graph.is_output`).

    Unchanged where the draw did not lead to one.

    A path ends at components that are already in the circuit: what they need is there.

    Args:
        allowed: the edges to draw from; None: all.
        most: how many edges the result may have; None: any number.
    """
    if allowed is None:
        allowed = graph.exists
    if most is None:
        most = graph.n_edges
    # A graph without positions is drawn from as one of a single position: [pos, writer, reader].
    choices = allowed.reshape(-1, *allowed.shape[-2:])
    edges = circuit.reshape(-1, *circuit.shape[-2:]).copy()
    n_positions = len(choices)
    # Drawn backwards from an output, so that every reader (position, index) in it is on a path to one.
    outputs = np.flatnonzero(graph.is_output)
    # Where `logits` is the only one nothing is drawn, so that the draws of a seed stay what they were.
    output = int(outputs[0] if len(outputs) == 1 else rng.choice(outputs))
    open_readers = [(int(rng.integers(n_positions)), output)]
    count = int(edges.sum())
    while open_readers:
        pos, reader = open_readers.pop()
        writers = np.flatnonzero(choices[pos, :, reader])
        count += 1
        # Every open reader will need an edge at least.
        if not len(writers) or count + len(open_readers) > most:
            return circuit
        writer = int(rng.choice(writers))
        if edges[pos, writer, reader]:
            count -= 1
        live = writer == 0 or edges[pos, writer].any()
        edges[pos, writer, reader] = True
        if not live:
            open_readers += _inputs_to_draw(graph, writer, pos, n_positions, rng)
    longer = edges.reshape(circuit.shape)
    # A key may have been drawn at a position that its query does not see.
    if graph.positions is not None and (graph.prune(longer) != longer).any():
        return circuit
    return longer


def _inputs_to_draw(
    graph: Graph, writer: int, pos: int, n_positions: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """The readers (position, index) that a component needs to run: its query or input, its key or value."""
    keys_values: list[int] = []
    drawn: list[tuple[int, int]] = []
    for reader in np.flatnonzero(graph.feeds[:, writer]).tolist():
        # The query or input is read where the component is; a key or value at any position.
        if graph.readers[reader].endswith(("<k>", "<v>")):
            keys_values.append(reader)
        else:
            drawn.append((pos, reader))
    if keys_values:
        drawn.append((int(rng.integers(n_positions)), int(rng.choice(keys_values))))
    return drawn


def _grow(
    graph: Graph, allowed: np.ndarray, n_edges: int, rng: np.random.Generator, circuit: np.ndarray
) -> None:
    """Fill an empty circuit with paths as long as they fit, then with edges between live components."""
    tries = 0
    while circuit.sum() < n_edges and tries < TRIES:
        more = add_path(graph, circuit, rng, allowed=allowed, most=n_edges)
        # A path that did not fit is no reason to stop: the next may be shorter.
        tries = 0 if more.sum() > circuit.sum() else tries + 1
        circuit[:] = more
    # In an empty circuit nothing is live, not even `input`, so no edge is added at random.
    live = circuit.any()
    writers = np.asarray(circuit.any(-1))
    writers[..., 0] = live
    readers = np.asarray(graph.feeds[:, writers.reshape(-1, len(graph.writers)).any(0)].any(1))
    readers |= graph.is_output & live
    room = allowed & writers[..., None] & readers & ~circuit
    circuit[_some(room, min(n_edges - int(circuit.sum()), int(room.sum())), rng)] = True
    circuit[:] = graph.prune(circuit)


def _some(edges: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The places of n of the edges."""
    return tuple(np.argwhere(edges)[rng.permutation(int(edges.sum()))[:n]].T)
