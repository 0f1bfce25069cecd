"""Graphs, scores and circuits at random, for the tests of circuits."""

import json

import numpy as np
from families import make_pairs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.score_table import labelled
from workbench.sites import Shape

FULL, GROUPED = (
    Shape(2, 2, 2, 32, 16, 128, 50, 32),
    Shape(2, 4, 2, 32, 8, 128, 50, 32, learned_positions=False),
)
files = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def scores_of(graph, values=None, *, seed=0, **attrs):
    """Edge scores of a graph as `score_edges` labels them."""
    values = np.random.default_rng(seed).normal(size=graph.exists.shape) if values is None else values
    attrs = {"graph": json.dumps(graph.to_dict()), "metric": "logit_diff"} | attrs
    table = values if graph.positions is not None else values[None]
    return labelled(table[None], graph, make_pairs(), (), attrs)


FINE = {
    "positions": Graph.of(GROUPED, positions=["S2", 3]),
    "neurons": Graph.of(Shape(2, 2, 1, 8, 4, 3, 9, 9), neurons=[1]),
    "both": Graph.of(Shape(2, 2, 2, 8, 4, 3, 9, 9, parallel=True), positions="END", neurons=True),
}
GRAPHS = [Graph(FULL), Graph(GROUPED), *FINE.values()]


def random_circuit(graph, seed, share=0.3, *, scored=False, pruned=True):
    """Random edges of a graph."""
    rng = np.random.default_rng(seed)
    edges = graph.exists & (rng.random(graph.exists.shape) < share)
    scores = np.where(graph.exists, rng.normal(size=edges.shape), np.nan) if scored else None
    return (
        Circuit.of(graph, edges, scores=scores) if pruned else Circuit(graph, edges, scores, int(edges.sum()))
    )


SHAPES = [
    FULL,
    GROUPED,
    Shape(1, 2, 2, 8, 4, 0, 9, 9, attn_only=True),
    Shape(2, 2, 2, 8, 4, 16, 9, 9, parallel=True),
]
sizes = st.floats(allow_nan=False, allow_infinity=False)
graphs, seeds, shares = st.sampled_from(GRAPHS), st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.4, 1.0])
