"""The published circuits: their nodes and connections as the papers list them, and the files as their script
writes them.
"""

import json
import runpy

import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench import resources
from workbench.circuit.published import published_names
from workbench.cli.app import app
from workbench.errors import UnknownName
from workbench.sites import Shape

IOI = {
    "name mover": {(9, 9), (10, 0), (9, 6)},
    "backup name mover": {(10, 10), (10, 6), (10, 2), (10, 1), (11, 2), (9, 7), (9, 0), (11, 9)},
    "negative name mover": {(10, 7), (11, 10)},
    "S-inhibition": {(7, 3), (7, 9), (8, 6), (8, 10)},
    "induction": {(5, 5), (5, 8), (5, 9), (6, 9)},
    "duplicate token": {(0, 1), (0, 10), (3, 0)},
    "previous token": {(2, 2), (4, 11)},
}
NAMES = ("docstring", "greater_than", "ioi")


def test_each_loads_on_its_own_graph_and_has_a_source():
    assert published_names() == list(NAMES)
    for name in NAMES:
        circuit = wb.reference_circuit(name)
        assert circuit.pruned == circuit
        assert circuit.n_edges == circuit.n_requested
        assert {"source", "accessed", "assumed", "model", "task", "title"} <= circuit.attrs.keys()
        assert circuit.attrs["accessed"] == "2026-11-24"
        assert wb.compare(circuit, circuit).jaccard == 1
    gpt2 = Shape(12, 12, 12, 768, 64, 3072, 50257, 1024)
    assert wb.reference_circuit("ioi").graph.shape == wb.reference_circuit("greater_than").graph.shape == gpt2
    assert wb.reference_circuit("docstring").graph.shape == Shape(
        4, 8, 8, 512, 64, 0, 48262, 1024, attn_only=True
    )
    with pytest.raises(UnknownName) as error:
        wb.reference_circuit("iou")
    assert (
        str(error.value)
        == "circuit='iou' is not known. Did you mean 'ioi'? Choices: docstring, greater_than, ioi."
    )


def test_the_files_are_what_the_script_writes():
    script = runpy.run_path(str(resources.circuits() / "reference" / "make.py"))
    for name in NAMES:
        drawn, circuit = script[name](), wb.reference_circuit(name)
        assert drawn == circuit
        assert (drawn.attrs, drawn.labels, drawn.n_requested) == (
            circuit.attrs,
            circuit.labels,
            circuit.n_requested,
        )


def test_indirect_object_identification_has_the_heads_and_connections_of_the_paper():
    circuit = wb.reference_circuit("ioi")
    assert {
        role: {head for head in circuit.heads if circuit.labels[f"a{head[0]}.{head[1]}"] == role}
        for role in IOI
    } == IOI
    assert circuit.mlps == list(range(12))
    bare = circuit.restricted(where=lambda edge: "m" not in edge.writer[0] + edge.reader[0])
    ports = {}
    for name, node in bare.by_component("role").items():
        ports[name] = "".join(sorted(node.by_component(), key="qkvlogits".index))
    movers = ("name mover", "backup name mover", "negative name mover")
    assert ports == {
        "input -> previous token": "qkv",
        "input -> duplicate token": "qkv",
        "previous token -> induction": "kv",
        "induction -> S-inhibition": "kv",
        "duplicate token -> S-inhibition": "kv",
        "input -> S-inhibition": "q",
        **{f"input -> {mover}": "kv" for mover in movers},
        **{f"S-inhibition -> {mover}": "q" for mover in movers},
        **{f"{mover} -> logits": "logits" for mover in movers},
    }
    # every pair of the two classes that exists: 2.2 and 4.11 before 5.5 5.8 5.9 6.9, k and v of each
    assert bare.by_component("role")["previous token -> induction"].n_edges == 2 * 4 * 2
    assert bare.by_component("role")["S-inhibition -> backup name mover"].n_edges == 4 * 8


def test_greater_than_has_the_heads_and_mlps_of_the_paper():
    circuit = wb.reference_circuit("greater_than")
    assert circuit.heads == [(0, 1), (0, 3), (0, 5), (5, 5), (6, 1), (6, 9), (7, 10), (8, 11), (9, 1)]
    assert circuit.mlps == [0, 1, 2, 3, 8, 9, 10, 11]


def test_docstring_has_the_listed_edges_and_one_more():
    listed = (
        "a0.5->a1.4<v> a0.5->a2.0<q> a0.5->a2.0<k> input->a2.0<q> input->a2.0<k> a1.4->a2.0<v> "
        "a0.5->a1.2<q> a0.5->a1.2<k> input->a1.2<q> input->a1.2<k>"
    ).split()
    for head in ("a3.0", "a3.6"):
        listed += [
            f"a1.4->{head}<q>",
            f"a0.5->{head}<v>",
            f"input->{head}<v>",
            f"a2.0->{head}<k>",
            f"a1.2->{head}<k>",
        ]
        listed += [f"{head}->logits"]
    circuit = wb.reference_circuit("docstring")
    assert {str(edge) for edge in circuit.edge_list} == {*listed, "input->a0.5<v>"}
    assert (len(listed), circuit.n_edges) == (22, 23)


def test_they_are_listed():
    text = CliRunner().invoke(app, ["ls", "circuits", "--json"], catch_exceptions=False).stdout
    rows = {row["circuit"]: row for row in json.loads(text)}
    assert list(rows) == list(NAMES)
    assert (rows["ioi"]["edges"], rows["ioi"]["source"][:11]) == (962, "Wang et al.")
