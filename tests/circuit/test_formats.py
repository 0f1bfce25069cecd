"""Files of other tools, written by hand from their schema; what is wrong with one is named, and nothing in it
is executed.
"""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.circuit.formats import FORMATS
from workbench.circuit.graph import Graph
from workbench.cli.app import app
from workbench.errors import CircuitError, OutputExists, UnknownName
from workbench.sites import Shape

SMALL = Shape(1, 2, 2, 8, 4, 32, 50257, 1024)
GROUPED = Shape(2, 4, 2, 8, 2, 16, 30, 30, learned_positions=False)
PARALLEL = Shape(2, 2, 2, 8, 4, 32, 9, 9, parallel=True)
BARE = Shape(2, 2, 2, 8, 4, 0, 9, 9, attn_only=True)
CFG = {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
SOURCES = ["input", "a0.h0", "a0.h1", "m0"]
TARGETS = [f"a0.h{head}<{port}>" for port in "qkv" for head in (0, 1)] + ["m0", "logits"]
files = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def small_json():
    """One layer of two heads: input→a0.1<v>→m0→logits is the circuit; a0.0 is out."""
    edges = {f"input->{target}": {"score": 0.0, "in_graph": False} for target in TARGETS}
    edges |= {
        f"{source}->{target}": {"score": 0.0, "in_graph": False}
        for source in SOURCES[1:3]
        for target in ("m0", "logits")
    }
    edges |= {"m0->logits": {"score": 2.5, "in_graph": True}}
    edges["input->a0.h1<v>"] = {"score": -0.5, "in_graph": True}
    edges["a0.h1->m0"] = {"score": 1, "in_graph": True}
    edges["a0.h0->m0"]["score"] = -7.0
    nodes = {name: {"in_graph": name != "a0.h0"} for name in (*SOURCES, "logits")}
    return {"cfg": dict(CFG), "nodes": nodes, "edges": edges}


def small_pt():
    """The same circuit as matrices."""
    document = small_json()
    scores, inside = torch.zeros(4, 8), torch.zeros(4, 8, dtype=torch.bool)
    for name, facts in document["edges"].items():
        source, target = name.split("->")
        scores[SOURCES.index(source), TARGETS.index(target)] = facts["score"]
        inside[SOURCES.index(source), TARGETS.index(target)] = facts["in_graph"]
    return {
        "cfg": dict(CFG),
        "src_nodes": list(SOURCES),
        "dst_nodes": list(TARGETS),
        "edges_scores": scores,
        "edges_in_graph": inside,
        "nodes_in_graph": torch.tensor([True, False, True, True]),
    }


def write(path, document):
    if path.suffix == ".pt":
        torch.save(document, path)
    else:
        path.write_text(json.dumps(document))
    return path


@pytest.fixture(params=["c.json", "c.pt"])
def small(request, tmp_path):
    return write(tmp_path / request.param, small_pt() if request.param.endswith("pt") else small_json())


def test_a_file_written_by_hand_is_read(small):
    circuit = wb.read_circuit(small, positive="supports")
    assert circuit.graph == Graph(SMALL)
    assert [(str(edge), circuit.score(edge)) for edge in circuit.edge_list] == [
        ("m0->logits", 2.5), ("a0.1->m0", 1.0), ("input->a0.1<v>", -0.5)
    ]  # fmt: skip
    assert (circuit.score("a0.0->m0"), circuit.score("input->logits")) == (-7.0, 0.0)
    assert circuit.attrs["assumed"] == "n_kv_heads 2, d_head 4, d_mlp 32, d_vocab 50257, n_ctx 1024"
    assert (circuit.attrs["positive"], circuit.attrs["source_file"]) == ("supports", small.name)
    assert circuit.attrs["source_format"] == {".json": "eap-json", ".pt": "eap-pt"}[small.suffix]
    assert "nodes_flagged_otherwise" not in circuit.attrs
    turned = wb.read_circuit(small, positive="opposes")
    assert turned == circuit
    assert (turned.score("m0->logits"), turned.score("a0.0->m0")) == (-2.5, 7.0)


def test_the_meaning_of_scores_is_required(small):
    with pytest.raises(CircuitError) as error:
        wb.read_circuit(small)
    title = {
        ".json": "a circuit of EAP-IG or MIB in JSON",
        ".pt": "a circuit of EAP-IG or MIB in torch's format",
    }[small.suffix]
    assert str(error.value) == (
        f"{str(small)!r} is {title}, which does not say what a positive score means. "
        'Pass positive="supports" or positive="opposes".'
    )
    with pytest.raises(UnknownName, match="positive='good' is not known"):
        wb.read_circuit(small, positive="good")


def test_a_given_shape_says_what_the_file_does_not(small):
    shape = Shape(1, 2, 2, 8, 16, 64, 100, 20)
    circuit = wb.read_circuit(small, positive="supports", shape=shape)
    assert circuit.graph.shape == shape
    assert "assumed" not in circuit.attrs
    with pytest.raises(CircuitError) as error:
        wb.read_circuit(small, positive="supports", shape=Shape(1, 4, 4, 16, 4, 64, 100, 20, parallel=True))
    assert str(error.value).endswith(
        "it is for another model: n_heads is 2, the model's 4; d_model is 8, the model's 16; "
        "parallel_attn_mlp is False, the model's True."
    )


def test_edges_decide_and_other_flags_of_nodes_are_noted(tmp_path):
    document = small_json()
    document["nodes"]["a0.h1"]["in_graph"] = False
    document["nodes"]["a0.h0"]["in_graph"] = True
    document["edges"]["input->a0.h0<q>"]["in_graph"] = True  # a dead end
    circuit = wb.read_circuit(write(tmp_path / "c.json", document), positive="supports")
    assert (circuit.n_edges, circuit.n_requested) == (3, 4)
    assert circuit.attrs["nodes_flagged_otherwise"] == "a0.0 a0.1"


def test_scores_alone_are_read_and_cut(tmp_path):
    document = small_pt()
    document["edges_in_graph"][:] = False
    document["nodes_in_graph"][:] = False
    document["edges_scores"] += torch.arange(32).reshape(4, 8) / 100
    circuit = wb.read_circuit(write(tmp_path / "c.pt", document), positive="supports")
    assert circuit.n_edges == 0
    best = wb.find_circuit(circuit.to_scores(), n_edges=2)
    assert best.n_requested == 2
    assert best.attrs["source_format"] == "eap-pt"


def test_cells_that_are_no_edges_hold_nothing(tmp_path):
    document = small_pt()
    document["edges_scores"][3, 6] = float("nan")  # m0->m0
    assert wb.read_circuit(write(tmp_path / "c.pt", document), positive="supports").n_edges == 3
    document["edges_in_graph"][3, 6] = True
    with pytest.raises(CircuitError, match=r"the edge m0->m0 does not exist\.$"):
        wb.read_circuit(write(tmp_path / "d.pt", document), positive="supports")


@given(
    shape=st.sampled_from([SMALL, GROUPED, PARALLEL, BARE]),
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    scored=st.booleans(),
    form=st.sampled_from(["eap-json", "eap-pt", "workbench"]),
    positive=st.sampled_from(["supports", "opposes"]),
)
@files
def test_a_circuit_goes_out_and_comes_back(tmp_path, shape, seed, share, scored, form, positive):
    graph, rng = Graph(shape), np.random.default_rng(seed)
    scores = np.where(graph.exists, rng.normal(size=graph.exists.shape), np.nan) if scored else None
    circuit = Circuit.of(graph, graph.exists & (rng.random(graph.exists.shape) < share), scores=scores)
    positive = "supports" if form == "workbench" else positive
    path = wb.write_circuit(circuit, tmp_path / "c", format=form, positive=positive, overwrite=True)
    path = path.rename(path.with_suffix(FORMATS[form].suffix))
    back = wb.read_circuit(path, positive=positive, shape=shape)
    assert back == circuit
    assert "nodes_flagged_otherwise" not in back.attrs
    if scored:
        np.testing.assert_allclose(back.scores[graph.exists], circuit.scores[graph.exists], rtol=1e-12)
    if not scored:
        assert back.scores is None
    assert len(list(tmp_path.iterdir())) == 1
    path.unlink()


def test_shared_scores_that_overflow_together_are_refused(tmp_path):
    graph = Graph(GROUPED)
    path = wb.write_circuit(Circuit.of(graph, ["input->logits"]), tmp_path / "c.json", format="eap-json")
    document = json.loads(path.read_text())
    for head in (2, 3):
        document["edges"][f"input->a1.h{head}<k>"]["score"] = 1.7e308
    write(path, document)
    with pytest.raises(CircuitError, match="add up to no finite number"):
        wb.read_circuit(path, positive="supports", shape=GROUPED)


def test_a_shared_key_is_theirs_for_every_head(tmp_path):
    graph = Graph(GROUPED)
    scores = np.where(graph.exists, 0.0, np.nan)
    scores[graph.index("input->a1.1<k>")] = 3.0
    circuit = Circuit.of(graph, ["input->a1.1<k>", "a1.2->logits"], scores=scores)
    path = wb.write_circuit(circuit, tmp_path / "c.json", format="eap-json")
    document = json.loads(path.read_text())
    assert [document["edges"][f"input->a1.h{head}<k>"] for head in range(4)] == [
        {"score": 0.0, "in_graph": False}, {"score": 0.0, "in_graph": False},
        {"score": 1.5, "in_graph": True}, {"score": 1.5, "in_graph": True},
    ]  # fmt: skip
    assert [document["nodes"][f"a1.h{head}"]["in_graph"] for head in range(4)] == [False, False, True, False]
    document["edges"]["input->a1.h3<k>"] = {"score": -4.0, "in_graph": False}
    back = wb.read_circuit(write(path, document), positive="supports", shape=GROUPED)
    assert back == circuit, "in the circuit if any of the group's is"
    assert back.score("input->a1.1<k>") == -2.5
    assert wb.read_circuit(path, positive="supports").graph.shape.n_kv_heads == 4, "the file does not say"


@pytest.mark.parametrize("name", ["c.json", "c.pt"])
def test_dimensions_of_outputs_are_kept_and_counted(tmp_path, name):
    document, keep = (
        (small_pt(), [True] * 2 + [False] * 6)
        if name.endswith("pt")
        else (small_json(), [True] * 2 + [False] * 6)
    )
    if name.endswith("pt"):
        document["neurons_in_graph"] = torch.tensor([[True] * 8, [False] * 8, keep, [True] * 8])
    else:
        document["nodes"]["a0.h1"]["neurons"] = keep
        document["nodes"]["m0"]["neurons"] = [True] * 8
    with pytest.warns(UserWarning, match="nodes have only some dimensions of their output in the circuit"):
        circuit = wb.read_circuit(write(tmp_path / name, document), positive="supports", shape=SMALL)
    assert circuit.output_neurons["a0.1"] == [0, 1]
    assert (circuit.n_edges, circuit.weighted_edge_count) == (3, 2.25)
    again = wb.write_circuit(circuit, tmp_path / f"again-{name}", format=circuit.attrs["source_format"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (
            wb.read_circuit(again, positive="supports", shape=SMALL).output_neurons == circuit.output_neurons
        )


BROKEN = {
    "cfg lacks n_heads": (lambda d: d["cfg"].pop("n_heads"), "KeyError: 'n_heads'"),
    "layers": (lambda d: d["cfg"].update(n_layers=10**9), "A graph of 3000000000 nodes is too large"),
    "no layers": (lambda d: d["cfg"].update(n_layers=0), "cfg says n_layers = 0."),
    "layers are text": (lambda d: d["cfg"].update(n_layers="1"), "cfg says n_layers = '1'."),
    "parallel": (lambda d: d["cfg"].update(parallel_attn_mlp=None), "cfg says parallel_attn_mlp = None."),
    "width": (
        lambda d: d["cfg"].update(d_model=7),
        "d_model 7 is not a multiple of 2 heads. Pass shape= (a model or Shape).",
    ),
    "no cfg": (lambda d: d.pop("cfg"), "it lacks cfg."),
    "cfg is a list": (lambda d: d.update(cfg=[1]), "cfg is a list, not a dictionary."),
}
BROKEN_JSON = BROKEN | {
    "no nodes": (lambda d: d.pop("nodes"), "it lacks nodes."),
    "nodes are a list": (lambda d: d.update(nodes=[1]), "AttributeError: 'list' object has no attribute 'items'"),
    "unknown node": (lambda d: d["nodes"].update({"a0.h7": {"in_graph": True}}), "there is no 'a0.h7' in 1 layers of 2 heads"),
    "unknown name": (lambda d: d["nodes"].update({"b0": {"in_graph": True}}), "'b0' is not the name of a node."),
    "our name": (lambda d: d["nodes"].update({"a0.1": {"in_graph": True}}), "'a0.1' is not the name of a node."),
    "flag": (lambda d: d["nodes"]["m0"].update(in_graph=1), "in_graph of m0 is 1; true or false is needed."),
    "no flag": (lambda d: d["edges"]["m0->logits"].pop("in_graph"), "KeyError: 'in_graph'"),
    "nan": (lambda d: d["edges"]["m0->logits"].update(score=float("nan")), "the edge m0->logits has no finite score."),
    "inf": (lambda d: d["edges"]["m0->logits"].update(score=float("-inf")), "the edge m0->logits has no finite score."),
    "text": (lambda d: d["edges"]["m0->logits"].update(score="2"), "the score of m0->logits is '2'."),
    "true": (lambda d: d["edges"]["m0->logits"].update(score=True), "the score of m0->logits is True."),
    "backwards": (lambda d: d["edges"].update({"m0->a0.h0<q>": {"score": 0.0, "in_graph": False}}), "m0->a0.h0<q> does not exist."),
    "no port": (lambda d: d["edges"].update({"input->a0.h0": {"score": 0.0, "in_graph": True}}), "there is no 'a0.h0' in"),
    "port of an MLP": (lambda d: d["edges"].update({"input->m0<q>": {"score": 0.0, "in_graph": True}}), "'m0<q>' is not the name"),
    "no arrow": (lambda d: d["edges"].update({"input": {"score": 0.0, "in_graph": True}}), "'input' is not an edge."),
    "neurons": (lambda d: d["nodes"]["m0"].update(neurons=[True]), "neurons of m0 is not a list of 8 times true or false."),
}  # fmt: skip
BROKEN_PT = BROKEN | {
    "no scores": (lambda d: d.pop("edges_scores"), "it lacks edges_scores."),
    "size": (lambda d: d.update(edges_scores=torch.zeros(4, 7)), "edges_scores is [4, 7]; the lists of nodes need a tensor of [4, 8]."),
    "kind": (lambda d: d.update(edges_scores=[1]), "edges_scores is list; the lists of nodes need a tensor of [4, 8]."),
    "nan": (lambda d: d["edges_scores"].__setitem__((0, 0), float("nan")), "the edge input->a0.h0<q> has no finite score."),
    "flags": (lambda d: d.update(edges_in_graph=torch.full((4, 8), 0.5)), "edges_in_graph holds more than true and false."),
    "nodes": (lambda d: d.update(nodes_in_graph=torch.ones(5)), "nodes_in_graph is [5]; the lists of nodes need a tensor of [4]."),
    "twice": (lambda d: d["src_nodes"].__setitem__(1, "input"), "a node is listed twice."),
    "unknown": (lambda d: d["src_nodes"].__setitem__(1, "a3.h0"), "there is no 'a3.h0' in"),
    "number": (lambda d: d["src_nodes"].__setitem__(1, 5), "a node is not named by a text."),
    "huge": (lambda d: d.update(edges_scores=torch.zeros(1).expand(10**6, 10**6)), "edges_scores is [1000000, 1000000];"),
    "expanded": (lambda d: d.update(edges_scores=torch.zeros(1).expand(4, 8)), "edges_scores promises more numbers than the file holds"),
    "sparse": (lambda d: d.update(edges_scores=torch.zeros(4, 8).to_sparse()), "is sparse; a dense tensor is needed"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, ".json") for name in BROKEN_JSON), *((name, ".pt") for name in BROKEN_PT)]
)
def test_a_malformed_file_is_refused_by_name(tmp_path, name, kind):
    document, (spoil, message) = (
        (small_pt(), BROKEN_PT[name]) if kind == ".pt" else (small_json(), BROKEN_JSON[name])
    )
    spoil(document)
    path = write(tmp_path / f"c{kind}", document)
    with pytest.raises(CircuitError) as error:
        wb.read_circuit(path, positive="supports")
    assert str(error.value).startswith(f"{str(path)!r} is not usable as a circuit of EAP-IG or MIB in ")
    assert message in str(error.value)


class Trap:
    """A pickled object that would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("content", ["object", "inside", "cut", "empty", "text", "list"])
def test_nothing_in_a_torch_file_is_executed(tmp_path, content):
    path, trace = tmp_path / "c.pt", tmp_path / "trace"
    document = {"object": Trap(trace), "inside": small_pt() | {"extra": Trap(trace)}, "list": [1, 2]}
    write(path, document.get(content, small_pt()))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"{}"}.get(content, whole))
    with pytest.raises(
        CircuitError, match="is not usable as a circuit of EAP-IG or MIB in torch's format: "
    ) as error:
        wb.read_circuit(path, positive="supports")
    assert not trace.exists()
    if content == "list":
        assert str(error.value).endswith("it holds a list, not a dictionary.")
    if content in ("object", "inside"):
        assert "it cannot be read without executing what is in it, or is damaged" in str(error.value)


@given(st.binary(max_size=64))
@files
def test_noise_is_refused(tmp_path, noise):
    for name in ("n.pt", "n.json"):
        (tmp_path / name).write_bytes(noise)
        with pytest.raises(CircuitError):
            wb.read_circuit(tmp_path / name, positive="supports")


def test_our_own_files_say_what_their_scores_mean(tmp_path):
    circuit = Circuit.full(SMALL)
    path = wb.write_circuit(circuit, tmp_path / "c.json")
    assert wb.read_circuit(path) == wb.read_circuit(path, positive="supports", shape=SMALL) == circuit
    with pytest.raises(CircuitError, match="its positive scores support the behaviour"):
        wb.read_circuit(path, positive="opposes")
    with pytest.raises(CircuitError, match="This circuit is for another graph"):
        wb.read_circuit(path, shape=GROUPED)
    with pytest.raises(CircuitError, match="There is no circuit file"):
        wb.read_circuit(tmp_path / "none.json")


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    fine = Circuit.full(Graph.of(SMALL, positions="END"))
    with pytest.raises(CircuitError) as error:
        wb.write_circuit(fine, tmp_path / "c.pt")
    assert (
        str(error.value)
        == "write_circuit: eap-pt holds no positions and no neurons of MLPs. Write circuit.collapsed."
    )
    with pytest.raises(
        CircuitError, match=r"'c.xyz' has no suffix of a circuit file \(.json, .pt\)\. Name its format\."
    ):
        wb.write_circuit(fine, tmp_path / "c.xyz")
    with pytest.raises(UnknownName, match=r"format='eap-jsn' is not known\. Did you mean 'eap-json'"):
        wb.write_circuit(fine, tmp_path / "c.json", format="eap-jsn")
    with pytest.raises(CircuitError, match="positive scores support the behaviour in our own format"):
        wb.write_circuit(fine, tmp_path / "c.json", positive="opposes")
    assert list(tmp_path.iterdir()) == []
    path = wb.write_circuit(fine.collapsed, tmp_path / "c.pt")
    with pytest.raises(OutputExists):
        wb.write_circuit(fine.collapsed, path)
    assert [dims.name for dims in tmp_path.iterdir()] == ["c.pt"]


def test_the_command_converts(tmp_path):
    source, target = write(tmp_path / "theirs.pt", small_pt()), tmp_path / "ours.json"
    runner, shape = CliRunner(), Circuit.empty(SMALL).save(tmp_path / "shape.json")
    call = ["convert", str(source), str(target), "--positive", "opposes", "--shape-of", str(shape)]
    done = runner.invoke(app, call, catch_exceptions=False)
    assert done.stdout == f"{target}: <Circuit: 3 of 13 edges (23.1%), 1 head>\n"
    ours = Circuit.load(target)
    assert (ours.score("m0->logits"), ours.graph.shape) == (-2.5, SMALL)
    # The scores of edges outside the circuit come along.
    assert (ours.score("a0.0->m0"), ours.score("input->logits")) == (7.0, 0.0)
    assert "a0.0->m0" not in ours
    back = tmp_path / "back.json"
    call = ["convert", str(target), str(back), "--positive", "opposes", "--format", "eap-json"]
    done = runner.invoke(app, call, catch_exceptions=False)
    written = json.loads(back.read_text())["edges"]
    assert written["m0->logits"] == {"score": 2.5, "in_graph": True}
    assert written["a0.h0->m0"] == {"score": -7.0, "in_graph": False}
    assert done.stderr == ""
    with pytest.raises(wb.WorkbenchError, match="does not say what a positive score means"):
        runner.invoke(app, ["convert", str(source), str(tmp_path / "no.json")], catch_exceptions=False)
    assert not (tmp_path / "no.json").exists()
    done = runner.invoke(app, ["convert", "docstring", str(tmp_path / "d.pt")], catch_exceptions=False)
    assert re.fullmatch(
        r"note: eap-pt has a number for every edge\. ([\d,]+) of \1 edges of docstring have no score and were "
        r"written as 0\.\n",
        done.stderr,
    )
    assert wb.read_circuit(tmp_path / "d.pt", positive="supports").n_edges == 23
