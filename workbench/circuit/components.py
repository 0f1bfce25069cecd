"""What writers and readers are called: their component, its class and its role.

A component is `input`, a head, an MLP or one of its neurons, or `logits`. A key or value that query heads
share belongs to each of those heads.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from workbench.circuit.graph import Graph
from workbench.documents import parse_json
from workbench.errors import ArgumentError, CircuitError, UnknownName
from workbench.results import clean_attrs
from workbench.sites import Node

Classes = Literal["reader", "writer", "layer", "role"]
MOST_NODES, MOST_CELLS = 20_000, 2**29
"""Nodes and cells [pos, writer, reader] of a graph in a file, at most.

Larger matrices would fill the memory before the file is found to be wrong. GPT-3 has 9,312 nodes and 260
million cells.
"""
_GROUPS = {"head": "heads", "mlp": "mlps", "neuron": "mlps"}


def components(graph: Graph, node: str) -> tuple[str, ...]:
    """The components of a writer or reader: one, or the query heads that share a key or value."""
    parsed = Node.parse(node)
    # The head of a key or value is the kv head, which a group of query heads shares: it stands for them all.
    if parsed.head is not None and parsed.port in ("k", "v"):
        first = parsed.head * graph.shape.group
        return tuple(f"a{parsed.layer}.{head}" for head in range(first, first + graph.shape.group))
    return (str(parsed.component),)


def mlp_of(name: str) -> str:
    """The MLP of a neuron; every other name as it is."""
    return name.split(":")[0]


def role(graph: Graph, labels: Mapping[str, str], node: str) -> str:
    """The role of a writer or reader: its label, or else `input`, `logits`, `mlps` or `other heads`."""
    for component in components(graph, node):
        if component in labels:
            return labels[component]
    kind = Node.parse(node).kind
    if kind == "head":
        return "other heads"
    return _GROUPS.get(kind, node)


def edge_class(graph: Graph, labels: Mapping[str, str], writer: str, reader: str, by: Classes | str) -> str:
    """The class of an edge.

    By what it enters, by what writes it, by the layer it enters, or by the roles of both ends.
    """
    node = Node.parse(reader)
    if by == "reader":
        return node.port or _GROUPS.get(node.kind, "logits")
    if by == "writer":
        return _GROUPS.get(Node.parse(writer).kind, writer)
    if by == "layer":
        return "logits" if node.layer is None else f"layer {node.layer}"
    if by == "role":
        return f"{role(graph, labels, writer)} -> {role(graph, labels, reader)}"
    raise UnknownName("by", by, ("reader", "writer", "layer", "role"))


def selectors(graph: Graph, labels: Mapping[str, str], node: str) -> set[str]:
    """All names that select a writer or reader: its own, `heads`, `mlps`, `q`, `k`, `v`, its role."""
    owners = components(graph, node)
    known = {node, *owners, *map(mlp_of, owners)}
    known |= {labels[owner] for owner in owners if owner in labels}
    parsed = Node.parse(node)
    if parsed.kind in _GROUPS:
        known.add(_GROUPS[parsed.kind])
    if parsed.port:
        known.add(parsed.port)
    return known


def check_known(wanted: Collection[str], known: Collection[str], what: str, hint: str) -> None:
    """Raise `CircuitError` for the first name that is not known."""
    unknown = sorted(str(name) for name in wanted if name not in known)
    if unknown:
        raise CircuitError(f"This circuit's graph has no {what} {unknown[0]!r}. {hint}")


def check_labels(graph: Graph, labels: Mapping[str, str]) -> dict[str, str]:
    """The labels, if they give texts to components of the graph."""
    check_known(labels, {*graph.writers, "logits"}, "node", "Labels name components: a9.6, m3.")
    if not all(isinstance(label, str) for label in labels.values()):
        raise CircuitError("Labels map the names of components to texts.")
    return dict(labels)


def yes_or_no(graph: Graph, edges: np.ndarray) -> np.ndarray:
    """Edges as bool in the shape of the graph's matrices. Raises `CircuitError` where they are anything else."""
    if edges.shape != graph.exists.shape:
        raise CircuitError(
            f"Edges of shape {edges.shape} do not fit a graph with matrices of {graph.exists.shape}."
        )
    if edges.dtype != bool and not (edges.dtype.kind in "iu" and np.isin(edges, (0, 1)).all()):
        raise CircuitError(
            f"Edges are True or False, not {edges.dtype}: compare with a number, as in scores > 0."
        )
    return edges.astype(bool, copy=False)


def check_edges(graph: Graph, edges: np.ndarray) -> np.ndarray:
    """The edges, read-only and apart from the caller's array. Raises `CircuitError` unless the graph has them."""
    edges = yes_or_no(graph, edges)
    for index in np.argwhere(edges & ~graph.exists)[:1]:
        *_, u, v = index.tolist()
        raise CircuitError(f"The graph has no edge {graph.writers[u]}->{graph.readers[v]}.")
    return _frozen(edges)  # the hash of a circuit is that of its edges


def check_scores(graph: Graph, scores: np.ndarray) -> np.ndarray:
    """The scores, read-only. Raises `CircuitError` unless they are real numbers, or NaN where there is none."""
    if scores.shape != graph.exists.shape:
        raise CircuitError(
            f"Scores of shape {scores.shape} do not fit a graph with matrices of {graph.exists.shape}."
        )
    if scores.dtype.kind not in "fiu":
        raise CircuitError(f"Scores are real numbers, not {scores.dtype}.")
    if scores.dtype.kind != "f":
        scores = scores.astype(float)
    for index in np.argwhere(np.isinf(scores))[:1]:
        *_, u, v = index.tolist()
        raise CircuitError(
            f"The score of {graph.writers[u]}->{graph.readers[v]} is infinite, which cannot be ranked or saved. "
            "Scores are finite, or NaN where there is none."
        )
    return _frozen(scores)


def _frozen(array: np.ndarray) -> np.ndarray:
    """A read-only array, apart from the caller's where that is not."""
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array


def clean_facts(attrs: Mapping[str, Any]) -> dict[str, str | int | float]:
    """The attributes of a circuit as its file (JSON) and that of its scores (netCDF) hold them.

    Raises:
        CircuitError: a number that is not finite, an integer of more than 64 bits, a name that cannot be kept.
    """
    try:
        facts = clean_attrs(attrs)
    except ArgumentError as error:
        raise CircuitError(str(error)) from error
    for name, value in facts.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise CircuitError(
                f"The attribute {name!r} of a circuit is {value}, and its file (JSON) has finite numbers only. "
                "Leave it out, or give it as text."
            )
    return facts


def check_output_neurons(graph: Graph, text: Any) -> None:
    """Raise `CircuitError` unless `output_neurons` is the JSON text of nodes and dimensions of their outputs."""
    try:
        by_node = parse_json(text) if isinstance(text, str) else None
    except ValueError:
        by_node = None
    lists = by_node.values() if isinstance(by_node, dict) else [None]
    for dims in lists:
        if not isinstance(dims, list) or not all(type(dim) is int for dim in dims):
            raise CircuitError("output_neurons is not the text of lists of dimensions by name.")
        outside = [dim for dim in dims if not 0 <= dim < graph.shape.d_model]
        if outside or len(set(dims)) < len(dims):
            raise CircuitError(
                f"output_neurons names dimension {(outside or dims)[0]}; those of an output are 0 to "
                f"{graph.shape.d_model - 1}, each once."
            )
    check_known(
        by_node or {}, {*graph.writers, "logits"}, "node", "output_neurons names components: a9.6, m3."
    )


def check_size(graph: Graph) -> None:
    """Raise `CircuitError` when a graph that a file promises is too large, before any of it is made."""
    shape = graph.shape
    n_positions, n_neurons = len(graph.positions or "-"), len(graph.neurons) * shape.d_mlp
    nodes = shape.n_layers * (shape.n_heads + 1) + n_neurons
    if nodes * n_positions > MOST_NODES:
        raise CircuitError(
            f"A graph of {nodes} nodes is too large for a circuit file: it may have {MOST_NODES}."
        )
    # Input and logits are left out: one row and one column.
    readers = shape.n_layers * (shape.n_heads + 2 * shape.n_kv_heads + 1) + n_neurons
    if nodes * readers * n_positions > MOST_CELLS:
        raise CircuitError(
            f"A graph of {nodes} writers and {readers} readers at {n_positions} classes of positions is too "
            f"large for a circuit file: their product may be {MOST_CELLS}."
        )


def differences(a: Graph, b: Graph, other: str) -> str:
    """What tells two graphs apart, in words; `other` names the second."""
    # Sizes lie in the shape; beside positions and neurons all of them are compared alike.
    ours, theirs = asdict(a) | asdict(a.shape), asdict(b) | asdict(b.shape)
    names = [name for name in ours if name != "shape" and ours[name] != theirs[name]]
    return ", ".join(f"{name} {ours[name]} ({other}: {theirs[name]})" for name in names)


def mostly_dead_ends(n_chosen: int, n_left: int) -> bool:
    """Whether pruning took more than half of the edges that were chosen."""
    return n_left < n_chosen / 2


def dead_ends_text(graph: Graph) -> str:
    """What dead ends are in a graph, in words."""
    text = "dead ends, on no path from input to logits"
    if graph.answers_attend:
        text += ", nor to a key or value that the answer reads"
    return text
