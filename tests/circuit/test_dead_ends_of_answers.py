"""What is a dead end in a graph of which answers of several tokens read the keys and values; no model is run."""

import re

import numpy as np
import pytest

from workbench.circuit.circuit import Circuit
from workbench.circuit.formats import read_circuit, write_circuit
from workbench.circuit.graph import Graph
from workbench.circuit.random import add_path, random_circuits
from workbench.errors import CircuitError, SiteError, WorkbenchWarning
from workbench.sites import Shape

SHAPE = Shape(2, 4, 2, 32, 8, 128, 100, 64)
PLAIN, READ = Graph.of(SHAPE), Graph.of(SHAPE, answers_attend=True)
KEY = "input->a1.0<k>"


@pytest.mark.parametrize("positions", [None, ["S2", "END"]])
def test_an_edge_into_a_key_or_value_is_no_dead_end_and_others_are_as_before(positions):
    graph = Graph.of(SHAPE, positions=positions, answers_attend=True)
    names = ["input->a0.1<q>", "input->a0.0<v>", "input->m0", "m0->a1.1<v>", "input->a1.0<q>", "input->m1"]
    edges = np.zeros_like(graph.exists)
    for name in names:
        edges[graph.index(name)] = True
    classes = len(graph.positions or (None,))
    # Nothing reads the query's head or the last MLP; the first MLP is read by a value.
    assert graph.prune(edges).sum() == 3 * classes
    assert Graph.of(SHAPE, positions=positions).prune(edges).sum() == 0


@pytest.mark.parametrize("graph", [READ, Graph.of(SHAPE, positions=["END"], answers_attend=True)])
def test_random_paths_are_whole_and_some_end_at_keys_and_values(graph):
    drawn = random_circuits(graph, 30, draws=8, seed=0, paths=True)
    assert (graph.prune(drawn) == drawn).all()
    assert drawn.reshape(8, -1).sum(1).max() == 30
    path = [add_path(graph, np.zeros_like(graph.exists), np.random.default_rng(seed)) for seed in range(20)]
    to_logits = [one[..., -1].any() for one in path if one.any()]
    assert 0 < sum(to_logits) < len(to_logits)


def test_a_joined_circuit_keeps_what_either_side_keeps():
    read, plain = Circuit.of(READ, [KEY]), Circuit.of(PLAIN, ["input->logits"])
    for joined in (read | plain, plain | read):
        assert joined.pruned.n_edges == 2
    assert (read - plain).pruned == read
    assert (plain ^ read).graph.answers_attend
    assert not (plain | plain).graph.answers_attend
    with pytest.raises(SiteError, match="Graphs of different edges"):
        PLAIN.joined(Graph.of(SHAPE, positions="END"))


def test_a_circuit_on_the_plain_graph_keeps_them_too():
    fine = Graph.of(SHAPE, positions=["END"], neurons=[0], answers_attend=True)
    collapsed = Circuit.of(fine, [f"{KEY}@END"]).collapsed
    assert collapsed.pruned.edge_list == Circuit.of(READ, [KEY]).edge_list != []


def test_the_circuit_of_nodes_has_no_other_nodes():
    nodes = ["a0.1", "a0.0", "m0"]
    circuit = Circuit.of_nodes(READ, nodes)
    assert circuit == Circuit.of(READ, READ.between(np.isin(READ.writers, nodes)))
    assert circuit.nodes == ("input", "a0.0", "a0.1", "m0", "logits")


def test_files_of_other_tools_are_read_with_the_edges_that_answers_read(tmp_path):
    circuit = Circuit.of(READ, [KEY, "input->logits"])
    with pytest.warns(WorkbenchWarning, match="1 of 2 edges lead to keys and values"):
        write_circuit(circuit, tmp_path / "c.pt")
    assert read_circuit(tmp_path / "c.pt", positive="supports", shape=SHAPE, answers_attend=True) == circuit
    circuit.save(tmp_path / "c.json")
    assert read_circuit(tmp_path / "c.json").pruned == circuit
    with pytest.raises(CircuitError, match="is our own: it says whether answers attend"):
        read_circuit(tmp_path / "c.json", answers_attend=True)


def test_a_warning_of_dead_ends_says_where_paths_may_end():
    for graph, ends in (
        (PLAIN, "to logits. A"),
        (READ, "to logits, nor to a key or value that the answer reads. A"),
    ):
        with pytest.warns(WorkbenchWarning, match=re.escape(f"dead ends, on no path from input {ends}")):
            Circuit.of(graph, ["input->a0.1<q>", "input->a0.0<q>"])
