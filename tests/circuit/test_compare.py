"""Comparison of circuits: counted by hand, and as a property of sets."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_circuit
from typer.testing import CliRunner

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.circuit.compare import compare
from workbench.circuit.graph import Graph
from workbench.cli.app import app
from workbench.errors import CircuitError
from workbench.sites import Shape

SMALL = Shape(2, 2, 2, 8, 4, 3, 9, 9)
GRAPHS = [Graph(SMALL), Graph.of(SMALL, positions="END"), Graph.of(SMALL, neurons=[0])]
A = ["input->a0.0<v>", "a0.0->m1", "m1->logits", "input->logits"]
B = ["input->a0.0<q>", "input->a0.0<v>", "a0.0->m1", "m1->logits"]


def test_two_circuits_are_compared_by_hand():
    graph = Graph(SMALL)
    a, b = Circuit.of(graph, A, labels={"a0.0": "first", "a1.1": "second"}), Circuit.of(graph, B)
    comparison = compare(a, b)
    assert (comparison.jaccard, comparison.precision, comparison.recall, comparison.node_jaccard) == (
        3 / 5,
        3 / 4,
        3 / 4,
        1.0,
    )
    assert list(map(str, comparison.only_a.edge_list)) == ["input->logits"]
    assert list(map(str, comparison.only_b.edge_list)) == ["input->a0.0<q>"]
    assert comparison.both == a & b
    rows = {(row["side"], row["class"]): row for row in comparison.by_component.to_dict("records")}
    assert list(rows) == [("reader", name) for name in ("q", "v", "mlps", "logits")] + [
        ("writer", name) for name in ("input", "heads", "mlps")
    ]
    q, logits = rows["reader", "q"], rows["reader", "logits"]
    assert (q["a"], q["b"], q["both"], q["jaccard"], q["precision"]) == (0, 1, 0, 0.0, 0.0)
    assert np.isnan(q["recall"]), "there is nothing to find"
    assert (logits["a"], logits["b"], logits["both"], logits["recall"]) == (2, 1, 1, 0.5)
    roles = comparison.by_role.to_dict("records")
    assert [(row["role"], row["a"], row["b"], row["both"], row["missing"]) for row in roles] == [
        ("first", 1, 1, 1, ""),
        ("second", 0, 0, 0, ""),
    ]
    assert str(comparison).startswith(
        "edges: a 4, b 4, both 3; Jaccard 0.600, precision of b 0.750, recall of a 0.750\n"
        "nodes: a 4, b 4, both 4; Jaccard 1.000\n"
    )
    assert str(comparison).endswith("nodes of a alone: none\nnodes of b alone: none")


@given(
    graph=st.sampled_from(GRAPHS),
    seed=st.integers(0, 2**32),
    left=st.sampled_from([0, 0.1, 0.5, 1]),
    right=st.sampled_from([0, 0.2, 1]),
)
@settings(max_examples=40)
def test_agreement_is_that_of_sets(graph, seed, left, right):
    a, b = random_circuit(graph, seed, left), random_circuit(graph, seed + 1, right)
    ours, theirs = set(a.edge_list), set(b.edge_list)
    comparison, turned = compare(a, b), compare(b, a)
    assert (
        comparison.jaccard
        == turned.jaccard
        == (len(ours & theirs) / len(ours | theirs) if ours | theirs else 1)
    )
    np.testing.assert_equal((comparison.precision, comparison.recall), (turned.recall, turned.precision))
    assert np.isnan(comparison.precision) == (not theirs)
    assert compare(a, a).jaccard == compare(a, a).node_jaccard == 1
    assert not comparison.collapsed
    for side, rows in comparison.by_component.groupby("side"):
        assert (rows["a"].sum(), rows["b"].sum()) == (len(ours), len(theirs)), side
        assert rows["both"].sum() == len(ours & theirs)
    assert json.loads(json.dumps(comparison.to_dict(), allow_nan=False))["edges"]["both"] == len(
        ours & theirs
    )


def test_circuits_of_other_detail_are_compared_collapsed():
    plain = Circuit.of(Graph(SMALL), A)
    fine = Circuit.of(Graph.of(SMALL, positions="END"), ["input->logits@END", "m1->logits@END", "input->m1"])
    comparison = compare(plain, fine)
    assert comparison.collapsed
    assert (comparison.a, comparison.b) == (plain, fine.collapsed)
    assert str(comparison).startswith("Positions and neurons were collapsed: the circuits differ in them.\n")
    same = compare(fine, Circuit.empty(fine.graph))
    assert not same.collapsed
    assert same.a == fine


def test_sizes_that_decide_no_edge_may_differ_and_others_may_not():
    wide = Circuit.of(Graph(Shape(2, 2, 2, 64, 32, 3, 100, 9)), A)
    assert compare(Circuit.of(Graph(SMALL), A), wide).jaccard == 1
    with pytest.raises(CircuitError) as error:
        compare(Circuit.full(SMALL), Circuit.full(Shape(2, 2, 1, 8, 4, 3, 9, 9, parallel=True)))
    assert str(error.value) == (
        "compare: the circuits are for different graphs. They differ in n_kv_heads 2 (b: 1), "
        "parallel False (b: True)."
    )
    with pytest.raises(CircuitError):
        compare(Circuit.full(SMALL), Circuit.full(Shape(2, 2, 2, 8, 4, 3, 9, 9, parallel=True)))


def test_the_command_compares_files_and_published_circuits(tmp_path):
    path = str(wb.reference_circuit("ioi").restricted(writers="heads").save(tmp_path / "heads.json"))
    runner = CliRunner()
    text = runner.invoke(app, ["compare", "ioi", path], catch_exceptions=False).stdout
    assert text.startswith(
        "edges: a 962, b 260, both 260; Jaccard 0.270, precision of b 1.000, recall of a 0.270\n"
    )
    assert "name mover" in text
    document = json.loads(
        runner.invoke(app, ["compare", "ioi", path, "--json"], catch_exceptions=False).stdout
    )
    assert (document["edges"], document["recall"]) == ({"a": 962, "b": 260, "both": 260}, 260 / 962)
    assert len(document["only_a"]["edges"]) == 702
    with pytest.raises(wb.WorkbenchError) as error:
        runner.invoke(app, ["compare", "ioi", "nothing.json"], catch_exceptions=False)
    assert str(error.value) == "There is no circuit file 'nothing.json'."
    with pytest.raises(wb.WorkbenchError, match="circuit='iou' is not known"):
        runner.invoke(app, ["compare", "ioi", "iou"], catch_exceptions=False)
