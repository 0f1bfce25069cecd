"""A circuit's edges as a table, an array of scores and a networkx graph; `Circuit.to_*` call these."""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.circuit.components import components
from workbench.circuit.graph import Graph
from workbench.sites import Edge, Node

if TYPE_CHECKING:
    import networkx

ScoredEdges = Iterable[tuple[Edge, float]]


def edge_table(scored_edges: ScoredEdges) -> pd.DataFrame:
    """A table with one row per edge, in the order given: `edge writer reader pos port score`."""
    rows = [(str(edge), edge.writer, edge.reader, edge.pos, edge.port, score) for edge, score in scored_edges]
    return pd.DataFrame(rows, columns=["edge", "writer", "reader", "pos", "port", "score"])


def score_array(
    graph: Graph, scores: np.ndarray, attrs: Mapping[str, Any], prompt_ids: Iterable[str]
) -> xr.DataArray:
    """Scores [(pos,) writer, reader] with the dims, coordinates and attrs of `score_edges`."""
    coords: dict[str, Any] = {}
    if graph.positions is not None:
        coords["pos"] = list(map(str, graph.positions))
    facts = {
        **attrs,
        "graph": json.dumps(graph.to_dict()),
        "kind": "edge_scores",
        # A circuit's scores are positive where the edge supports the behaviour, whatever its metric.
        "higher_is_better": 1,
        "prompt_ids": " ".join(sorted(prompt_ids)),
    }
    values = np.where(graph.exists, scores, np.nan)
    if not graph.neurons:
        coords |= {"writer": list(graph.writers), "reader": list(graph.readers)}
        return xr.DataArray(values, dims=tuple(coords), coords=coords, attrs=facts, name="score")
    # A matrix over neurons is mostly absent edges, so those that exist are listed on one axis.
    writer, reader = np.nonzero(graph.whole.exists)
    dims = (*coords, "edge")
    coords["writer"] = ("edge", list(map(graph.writers.__getitem__, writer)))
    coords["reader"] = ("edge", list(map(graph.readers.__getitem__, reader)))
    return xr.DataArray(values[..., writer, reader], dims=dims, coords=coords, attrs=facts, name="score")


def component_graph(
    graph: Graph, nodes: Iterable[str], scored_edges: ScoredEdges, labels: Mapping[str, str]
) -> "networkx.MultiDiGraph":
    """A multigraph of components: nodes have `kind` and `role`, edges `reader port score`.

    With positions, edges also have `pos`.
    """
    import networkx

    multigraph = networkx.MultiDiGraph()
    for name in nodes:
        kind = Node.parse(name).kind
        # A neuron's nodes are drawn and counted as those of its MLP.
        if kind == "neuron":
            kind = "mlp"
        multigraph.add_node(name, kind=kind)
        if name in labels:
            multigraph.nodes[name]["role"] = labels[name]
    for edge, score in scored_edges:
        facts: dict[str, Any] = {"reader": edge.reader, "port": edge.port, "score": score}
        if edge.pos is not None:
            facts["pos"] = edge.pos
        # A key or value that query heads share leads to each of those that are in the circuit.
        for component in components(graph, edge.reader):
            if component in multigraph:
                multigraph.add_edge(edge.writer, component, key=str(edge), **facts)
    return multigraph
