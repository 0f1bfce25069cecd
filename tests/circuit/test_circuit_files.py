"""Circuits as files: they come back as they were, and what was tampered with is refused."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_graphs import FULL, SHAPES, files, graphs, random_circuit, scores_of, seeds, shares, sizes

from workbench.circuit.circuit import Circuit
from workbench.circuit.document import FORMAT
from workbench.circuit.graph import Graph
from workbench.discovery.search import find_circuit
from workbench.errors import CircuitError, OutputExists
from workbench.results import _TAKEN


@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    score=st.none() | sizes,
    attrs=st.dictionaries(
        # Names by which netCDF says how numbers are stored are refused, which has a test of its own.
        st.text(min_size=1).filter(str.isprintable).filter(lambda name: name not in _TAKEN),
        st.text() | st.integers(-(2**63), 2**64 - 1) | sizes,
        max_size=4,
    ),
    prompt_ids=st.frozensets(st.text("0123456789abcdef"), max_size=3),
)
@files
def test_a_saved_circuit_loads_as_it_was(tmp_path, shape, seed, share, score, attrs, prompt_ids):
    graph, generator = Graph(shape), np.random.default_rng(seed)
    edges = graph.exists & (generator.random(graph.exists.shape) < share)
    scores = (
        None
        if score is None
        else np.where(graph.exists, generator.uniform(-1, 1, edges.shape) * score, np.nan)
    )
    circuit = Circuit.of(graph, edges, scores=scores, attrs=attrs, prompt_ids=prompt_ids)
    loaded = Circuit.load(circuit.save(tmp_path / "a.circuit.json", overwrite=True))
    assert loaded == circuit
    assert hash(loaded) == hash(circuit)
    assert (loaded.graph, loaded.n_requested, loaded.prompt_ids) == (
        circuit.graph,
        circuit.n_requested,
        circuit.prompt_ids,
    )
    assert loaded.attrs == circuit.attrs
    assert loaded.edge_list == circuit.edge_list
    if circuit.scores is None or not circuit.n_edges:
        assert loaded.scores is None
    else:
        assert [loaded.score(edge) for edge in loaded.edge_list] == [
            circuit.score(edge) for edge in circuit.edge_list
        ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.circuit.json"]


def test_a_circuit_with_some_scores_unknown_is_saved_and_loaded(tmp_path):
    graph = Graph(FULL)
    scores = np.where(graph.exists, 1.0, np.nan)
    scores[graph.index("m1->logits")] = np.nan
    loaded = Circuit.load(Circuit.of(graph, graph.exists, scores=scores).save(tmp_path / "c.json"))
    assert np.isnan(loaded.score("m1->logits"))
    assert loaded.score("m0->logits") == 1


def test_scores_outside_the_circuit_are_saved_where_that_is_asked_for(tmp_path):
    graph = Graph(FULL)
    scores = np.where(graph.exists, np.random.default_rng(0).normal(size=graph.exists.shape), np.nan)
    scores[graph.index("input->m1")] = np.nan
    circuit = Circuit.of(graph, ["m0->logits", "input->m0"], scores=scores)
    loaded = Circuit.load(circuit.save(tmp_path / "all.json", all_scores=True))
    assert loaded == circuit
    assert np.array_equal(loaded.scores, scores, equal_nan=True)
    own = Circuit.load(circuit.save(tmp_path / "own.json"))
    assert np.isfinite(own.scores).sum() == own.n_edges == 2
    document = json.loads((tmp_path / "all.json").read_text())
    for name, score, message in (
        ("m0->logits", 1.0, "m0->logits is in the circuit and among the other_scores"),
        ("m1->logits", True, "the score of m1->logits is True"),
    ):
        broken = document | {"other_scores": {name: score}}
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        with pytest.raises(CircuitError, match=re.escape(message)):
            Circuit.load(tmp_path / "broken.json")


def test_an_existing_file_is_not_replaced_unasked(tmp_path):
    path, circuit = tmp_path / "c.json", Circuit.full(FULL)
    path.write_text("mine")
    with pytest.raises(OutputExists) as error:
        circuit.save(path)
    assert (
        str(error.value)
        == f"{str(path)!r} exists. Choose another path, or pass overwrite=True to replace it."
    )
    assert path.read_text() == "mine"
    assert Circuit.load(circuit.save(path, overwrite=True)) == circuit


def saved(tmp_path, circuit=None):
    path = tmp_path / "c.json"
    (circuit or find_circuit(scores_of(Graph(FULL)), n_edges=12)).save(path, overwrite=True)
    return path, json.loads(path.read_text())


def test_a_file_with_an_edge_taken_out_or_put_in_is_refused(tmp_path):
    path, document = saved(tmp_path)
    n = document["n_edges"]
    edges = document["edges"]
    last = [edge for edge in edges if not edge.endswith("logits")][-1]
    document["edges"] = {edge: score for edge, score in edges.items() if edge != last}
    path.write_text(json.dumps(document))
    with pytest.raises(CircuitError) as error:
        Circuit.load(path)
    assert re.fullmatch(
        re.escape(f"{str(path)!r} was edited or cut: it promises {n} edges and holds ")
        + r"\d+\. If you edited it yourself, sign it again: workbench convert .* --overwrite",
        str(error.value),
    )
    document["edges"] = edges | {"m1->m0": 1.0}
    path.write_text(json.dumps(document))
    with pytest.raises(CircuitError) as error:
        Circuit.load(path)
    assert (
        str(error.value)
        == f"{str(path)!r} is not a usable circuit file: Edge 'm1->m0': m1 does not come before m0."
    )


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        ("[]", f"is not a circuit file: its format is not {FORMAT!r}."),
        ('{"format": "acdc"}', f"is not a circuit file: its format is not {FORMAT!r}."),
        (json.dumps({"format": FORMAT}), "is not a usable circuit file: 'shape'"),
        ("", "is not a usable circuit file: Expecting value: line 1 column 1 (char 0)"),
        (
            "\udcff",
            "is not a usable circuit file: 'utf-8' codec can't decode byte 0xff in position 0: "
            "invalid start byte",
        ),
    ],
)
def test_what_is_no_circuit_file_is_refused(tmp_path, content, ending):
    path = tmp_path / "c.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CircuitError) as error:
        Circuit.load(path)
    assert str(error.value) == f"{str(path)!r} {ending}"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CircuitError) as error:
        Circuit.load(tmp_path / "nothing.json")
    assert str(error.value) == f"There is no circuit file {str(tmp_path / 'nothing.json')!r}."


@given(st.floats(0, 1, exclude_max=True))
@files
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, share):
    path, _ = saved(tmp_path)
    content = path.read_text().rstrip()
    path.write_text(content[: int(share * len(content))])
    with pytest.raises(CircuitError, match=re.escape(f"{str(path)!r} is not a usable circuit file: ")):
        Circuit.load(path)


WRONG = [None, -1, 0, 0.5, float("inf"), float("nan"), "x", [], {}, [[]], {"a": 1}, True]


def load_or_refuse(path):
    """The circuit, or the message of the `CircuitError`; anything else that is raised is a bug."""
    try:
        return Circuit.load(path)
    except CircuitError as error:
        return str(error)


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@pytest.mark.parametrize("key", ["shape", "n_edges", "n_requested", "attrs", "prompt_ids", "edges"])
def test_a_tampered_entry_is_refused_or_harmless(tmp_path, key, wrong):
    path, document = saved(tmp_path)
    path.write_text(json.dumps(document | {key: wrong}))
    circuit = load_or_refuse(path)
    assert isinstance(circuit, Circuit) or circuit.startswith(repr(str(path)))


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@pytest.mark.parametrize("key", ["n_layers", "n_heads", "n_kv_heads", "parallel", "attn_only"])
def test_a_tampered_shape_is_refused_or_still_has_every_edge(tmp_path, key, wrong):
    path, document = saved(tmp_path)
    document["shape"][key] = wrong
    path.write_text(json.dumps(document))
    circuit = load_or_refuse(path)
    assert (
        circuit.n_edges == document["n_edges"]
        if isinstance(circuit, Circuit)
        else circuit.startswith(repr(str(path)))
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("share", float("inf"), "'share' of a circuit is inf, and its file .* has finite numbers only"),
        ("share", float("nan"), "is nan, and its file"),
        ("seed", 10**400, "'seed' is an integer that 64 bits do not hold"),
        ("", "x", "The attribute '' needs another name: a printable text"),
        ("a\0b", "x", r"The attribute 'a\\x00b' needs another name"),
        ("scale_factor", 2.0, "this one says how numbers are stored"),
    ],
)
def test_attributes_that_no_file_can_hold_are_refused(tmp_path, name, value, message):
    """Where a circuit begins, and not by the library that writes its file, or its scores."""
    path, document = saved(tmp_path)
    graph = Circuit.load(path).graph
    for make in (Circuit.of, Circuit):
        with pytest.raises(CircuitError, match=message):
            make(graph, graph.exists, attrs={name: value})
    path.write_text(json.dumps(document | {"attrs": document["attrs"] | {name: value}}))
    with pytest.raises(CircuitError, match=f"is not a usable circuit file: .*{message}"):
        Circuit.load(path, edited=True)


def test_a_tampered_score_is_refused(tmp_path):
    path, document = saved(tmp_path)
    edge = next(iter(document["edges"]))
    for wrong in ("high", [1], {}, True, float("nan"), float("inf")):
        path.write_text(json.dumps(document | {"edges": document["edges"] | {edge: wrong}}))
        with pytest.raises(CircuitError, match="is not a usable circuit file"):
            Circuit.load(path)
    twice = json.dumps(document).replace(f'"{edge}":', f'"{edge}": 1.0, "{edge}":')
    path.write_text(twice)
    with pytest.raises(CircuitError, match="is there twice"):
        Circuit.load(path)
    wrongs = ("{bad", "5", '{"a0.1": 3}', '{"a0.1": ["x"]}', '{"a9.9": [0]}')
    for wrong in (*wrongs, '{"a0.1": [-1]}', '{"a0.1": [99999]}', '{"a0.1": [1, 1]}'):
        path.write_text(json.dumps(document | {"attrs": document["attrs"] | {"output_neurons": wrong}}))
        with pytest.raises(CircuitError, match="is not a usable circuit file"):
            Circuit.load(path)


@given(graph=graphs, seed=seeds, share=shares, scored=st.booleans(), pruned=st.booleans())
@files
def test_circuits_of_every_graph_are_saved_and_loaded(tmp_path, graph, seed, share, scored, pruned):
    circuit = random_circuit(graph, seed, share, scored=scored, pruned=pruned)
    loaded = Circuit.load(circuit.save(tmp_path / "c.json", overwrite=True))
    assert loaded == circuit
    assert (loaded.graph, loaded.edge_list, loaded.nodes) == (graph, circuit.edge_list, circuit.nodes)
    if scored:
        assert [loaded.score(edge) for edge in loaded.edge_list] == [
            circuit.score(edge) for edge in circuit.edge_list
        ]
    assert loaded.collapsed == circuit.collapsed
    if pruned:
        assert circuit.collapsed.pruned == circuit.collapsed, (
            "a path of the fine graph is one of the plain graph"
        )


def test_labels_name_nodes_of_the_graph_and_are_saved(tmp_path):
    circuit = Circuit.of(Graph(FULL), ["input->logits"], labels={"a0.1": "mover"})
    assert Circuit.load(circuit.save(tmp_path / "c.json")).labels == {"a0.1": "mover"}
    with pytest.raises(CircuitError) as error:
        Circuit.of(Graph(FULL), [], labels={"a9.9": "mover"})
    assert str(error.value) == "This circuit's graph has no node 'a9.9'. Labels name components: a9.6, m3."
    _, document = saved(tmp_path, circuit)
    for wrong in ({"a9.9": "x"}, {"a0.1": 3}, [1], 5):
        (tmp_path / "c.json").write_text(json.dumps(document | {"labels": wrong}))
        with pytest.raises(CircuitError):
            Circuit.load(tmp_path / "c.json")


ENORMOUS = [
    ({"n_layers": 10**9}, "A graph of 3000000000 nodes is too large for a circuit file: it may have 20000."),
    (
        {"n_layers": 190, "n_heads": 100, "n_kv_heads": 100},
        "A graph of 19190 writers and 57190 readers at 1 classes of positions is too large for a circuit file: their "
        "product may be 536870912.",
    ),
]


@pytest.mark.parametrize(("sizes", "message"), ENORMOUS)
def test_a_file_that_promises_an_enormous_graph_is_refused_at_once(tmp_path, sizes, message):
    path, document = saved(tmp_path)
    document["shape"] |= sizes
    path.write_text(json.dumps(document))
    with pytest.raises(CircuitError) as error:
        Circuit.load(path)
    assert str(error.value) == f"{str(path)!r} is not a usable circuit file: {message}"
