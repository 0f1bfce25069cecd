"""Circuits as objects and files, and how they are cut from scores."""

import json
import re
from dataclasses import asdict

import networkx as nx
import numpy as np
import pytest
import xarray as xr
from families import model_of, pairs_and_stores, untyped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.discovery.circuit import FORMAT, Circuit
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.edits import from_store
from workbench.errors import CircuitError, OutputExists, SiteError, UnknownName
from workbench.graph import Graph
from workbench.sites import Shape

FULL, GROUPED = Shape(2, 2, 2, 32, 16, 128, 50, 32), Shape(2, 4, 2, 32, 8, 128, 50, 32, learned_positions=False)
files = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def scores_of(graph, values=None, *, seed=0, **attrs):
    """Edge scores as `score_edges` makes them."""
    values = np.random.default_rng(seed).normal(size=graph.exists.shape) if values is None else values
    values = np.where(graph.exists, values, np.nan)
    attrs = {"graph": json.dumps(asdict(graph.shape)), "metric": "logit_diff", "prompt_ids": "p q", "kind": "edge_scores"} | attrs
    return xr.DataArray(
        values, dims=("writer", "reader"), coords={"writer": list(graph.writers), "reader": list(graph.readers)}, attrs=attrs
    )


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
    return Circuit.of(graph, edges, scores=scores) if pruned else Circuit(graph, edges, scores, int(edges.sum()))


SHAPES = [FULL, GROUPED, Shape(1, 2, 2, 8, 4, 0, 9, 9, attn_only=True), Shape(2, 2, 2, 8, 4, 16, 9, 9, parallel=True)]
sizes = st.floats(allow_nan=False, allow_infinity=False)


# ---- files


@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    score=st.none() | sizes,
    attrs=st.dictionaries(st.text(), st.text() | st.integers() | sizes, max_size=4),
    prompt_ids=st.frozensets(st.text("0123456789abcdef"), max_size=3),
)
@files
def test_a_saved_circuit_loads_as_it_was(tmp_path, shape, seed, share, score, attrs, prompt_ids):
    graph, generator = Graph(shape), np.random.default_rng(seed)
    edges = graph.exists & (generator.random(graph.exists.shape) < share)
    scores = None if score is None else np.where(graph.exists, generator.uniform(-1, 1, edges.shape) * score, np.nan)
    circuit = Circuit.of(graph, edges, scores=scores, attrs=attrs, prompt_ids=prompt_ids)
    loaded = Circuit.load(circuit.save(tmp_path / "a.circuit.json", overwrite=True))
    assert loaded == circuit
    assert hash(loaded) == hash(circuit)
    assert (loaded.graph, loaded.n_requested, loaded.prompt_ids) == (circuit.graph, circuit.n_requested, circuit.prompt_ids)
    assert loaded.attrs == circuit.attrs
    assert loaded.edge_list == circuit.edge_list
    if circuit.scores is None or not circuit.n_edges:
        assert loaded.scores is None
    else:
        assert [loaded.score(edge) for edge in loaded.edge_list] == [circuit.score(edge) for edge in circuit.edge_list]
    assert [path.name for path in tmp_path.iterdir()] == ["a.circuit.json"]


def test_a_circuit_with_some_scores_unknown_is_saved_and_loaded(tmp_path):
    graph = Graph(FULL)
    scores = np.where(graph.exists, 1.0, np.nan)
    scores[graph.index("m1->logits")] = np.nan
    loaded = Circuit.load(Circuit.of(graph, graph.exists, scores=scores).save(tmp_path / "c.json"))
    assert np.isnan(loaded.score("m1->logits"))
    assert loaded.score("m0->logits") == 1


def test_an_existing_file_is_not_replaced_unasked(tmp_path):
    path, circuit = tmp_path / "c.json", Circuit.full(FULL)
    path.write_text("mine")
    with pytest.raises(OutputExists) as error:
        circuit.save(path)
    assert str(error.value) == f"{str(path)!r} exists. Choose another path, or pass overwrite=True to replace it."
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
        re.escape(f"{str(path)!r} was edited or cut: it promises {n} edges and holds ") + r"\d+\.", str(error.value)
    )
    document["edges"] = edges | {"m1->m0": 1.0}
    path.write_text(json.dumps(document))
    with pytest.raises(CircuitError) as error:
        Circuit.load(path)
    assert str(error.value) == f"{str(path)!r} is not a usable circuit file: Edge 'm1->m0': m1 does not come before m0."


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        ("[]", f"is not a circuit file: its format is not {FORMAT!r}."),
        ('{"format": "acdc"}', f"is not a circuit file: its format is not {FORMAT!r}."),
        (json.dumps({"format": FORMAT}), "is not a usable circuit file: 'shape'"),
        ("", "is not a usable circuit file: Expecting value: line 1 column 1 (char 0)"),
        ("\udcff", "is not a usable circuit file: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
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
    found = load_or_refuse(path)
    assert isinstance(found, Circuit) or found.startswith(repr(str(path)))


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@pytest.mark.parametrize("key", ["n_layers", "n_heads", "n_kv_heads", "parallel", "attn_only"])
def test_a_tampered_shape_is_refused_or_still_has_every_edge(tmp_path, key, wrong):
    path, document = saved(tmp_path)
    document["shape"][key] = wrong
    path.write_text(json.dumps(document))
    found = load_or_refuse(path)
    assert found.n_edges == document["n_edges"] if isinstance(found, Circuit) else found.startswith(repr(str(path)))


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
    for wrong in ("{bad", "5", '{"a0.1": 3}', '{"a0.1": ["x"]}'):
        path.write_text(json.dumps(document | {"attrs": document["attrs"] | {"output_neurons": wrong}}))
        with pytest.raises(CircuitError, match="is not a usable circuit file"):
            Circuit.load(path)


# ---- objects


def test_a_circuit_is_built_from_edges_in_any_form_and_pruned():
    graph = Graph(GROUPED)
    named = Circuit.of(graph, ["input->a0.1<v>", "a0.2->logits", "a0.0->logits", "input->m1"])
    assert sorted(map(str, named.edge_list)) == ["a0.2->logits", "input->a0.1<v>"]
    assert (named.n_edges, len(named), named.n_requested, named.heads) == (2, 2, 4, [(0, 2)])
    assert "a0.2->logits" in named
    assert "input->m1" not in named
    assert repr(named) == "<Circuit: 2 of 82 edges (2.4%), 1 heads>"
    matrix = np.zeros_like(graph.exists)
    for edge in named.edge_list:
        matrix[graph.index(edge)] = True
    assert Circuit.of(graph, matrix) == named
    assert Circuit.of(graph, matrix.astype(int)) == named
    assert hash(Circuit.of(graph, matrix.astype(int))) == hash(named)
    assert Circuit.of(graph, ~graph.exists).n_edges == 0
    assert np.isnan(named.score("input->m1"))
    with pytest.raises(CircuitError) as error:
        Circuit.of(graph, np.zeros((2, 2), bool))
    assert str(error.value) == "Edges of shape (2, 2) do not fit a graph with matrices of (11, 19)."
    with pytest.raises(SiteError):
        Circuit.of(graph, ["a9.9->logits"])


def test_an_edge_at_one_position_is_not_taken_for_every_position():
    with pytest.raises(SiteError, match="position"):
        Circuit.of(Graph(FULL), ["input->logits@3"])


def test_full_and_empty_circuits_hold_all_and_none():
    for shape in (FULL, GROUPED):
        assert Circuit.full(shape).n_edges == Graph(shape).n_edges
        assert Circuit.empty(shape).n_edges == 0
        assert Circuit.full(shape) != Circuit.empty(shape)
    assert Circuit.full(FULL) != Circuit.full(GROUPED)


def test_edges_are_listed_strongest_first():
    graph = Graph(FULL)
    scores = np.zeros(graph.exists.shape)
    strength = {"input->logits": 0.5, "m1->logits": -3.0, "m0->logits": 2.0, "input->m0": 1.0, "input->m1": 0.1}
    for edge, score in strength.items():
        scores[graph.index(edge)] = score
    circuit = Circuit.of(graph, list(strength), scores=scores)
    assert list(map(str, circuit.edge_list)) == ["m1->logits", "m0->logits", "input->m0", "input->logits", "input->m1"]
    assert circuit.score("m1->logits") == -3


# ---- from scores


@given(
    seed=st.integers(0, 1000),
    share=st.floats(0, 1),
    by=st.sampled_from(["signed", "magnitude"]),
    shape=st.sampled_from([FULL, GROUPED]),
)
@settings(max_examples=40, deadline=None)
def test_the_best_edges_are_chosen_and_dead_ends_pruned(seed, share, by, shape):
    graph = Graph(shape)
    scores = scores_of(graph, seed=seed)
    n = int(share * graph.n_edges)
    rank = {(u, v): abs(scores.values[u, v]) if by == "magnitude" else scores.values[u, v] for u, v in np.argwhere(graph.exists)}
    best = sorted(rank, key=rank.__getitem__, reverse=True)[:n]
    expected = np.zeros_like(graph.exists)
    for edge in best:
        expected[edge] = True
    circuit = find_circuit(scores, n_edges=n, by=by)
    assert circuit == Circuit.of(graph, expected)
    assert circuit.n_requested == n
    assert circuit.n_edges <= n
    if best:
        threshold = rank[best[-1]]
        assert find_circuit(scores, threshold=threshold, by=by) == circuit, "the threshold itself is in"
        assert find_circuit(scores, threshold=threshold, by=by).n_requested == n


def test_ties_are_broken_in_graph_order():
    graph = Graph(FULL)
    circuit = find_circuit(scores_of(graph, np.ones(graph.exists.shape)), n_edges=30)
    expected = np.zeros_like(graph.exists)
    expected[tuple(np.argwhere(graph.exists)[:30].T)] = True
    assert circuit == Circuit.of(graph, expected)
    assert 0 < circuit.n_edges < 30


def test_a_circuit_carries_where_its_scores_come_from():
    circuit = find_circuit(scores_of(Graph(FULL), method="eap"), n_edges=9, by="magnitude")
    assert circuit.attrs == {"metric": "logit_diff", "method": "eap", "ranked_by": "magnitude"}
    assert circuit.prompt_ids == {"p", "q"}
    assert find_circuit(scores_of(Graph(FULL)), n_edges=0).n_edges == 0
    assert find_circuit(scores_of(Graph(FULL)), threshold=1e9).n_edges == 0
    assert find_circuit(scores_of(Graph(FULL)), threshold=-1e9) == Circuit.full(FULL)


def test_scores_with_kept_axes_are_averaged_and_then_cut():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    kept = score_edges(model, pairs, value=from_store(corrupt), keep=("example",))
    with pytest.raises(CircuitError) as error:
        find_circuit(kept, n_edges=5)
    assert str(error.value) == (
        "Edge scores have dims (writer, reader), not ('example', 'writer', 'reader'). "
        "Make them with wb.score_edges(...); average kept axes first."
    )
    plain = score_edges(model, pairs, value=from_store(corrupt))
    assert find_circuit(kept.mean("example"), n_edges=30) == find_circuit(plain, n_edges=30)


def test_what_cannot_be_cut_is_refused():
    scores = scores_of(Graph(FULL))
    ways = "find_circuit: give exactly one of n_edges=, threshold=, n_nodes=, min_faithfulness=; given: "
    for given_ways, named in (({}, "none"), ({"n_edges": 3, "threshold": 0.5}, "n_edges, threshold")):
        with pytest.raises(CircuitError) as error:
            find_circuit(scores, **given_ways)
        assert str(error.value) == f"{ways}{named}."
    n = Graph(FULL).n_edges
    for wrong in (-1, n + 1):
        with pytest.raises(CircuitError) as error:
            find_circuit(scores, n_edges=wrong)
        assert str(error.value) == f"find_circuit: n_edges={wrong}; this graph has {n} edges."
    with pytest.raises(UnknownName) as unknown:
        untyped(find_circuit)(scores, n_edges=3, by="size")
    assert str(unknown.value) == "There is no way to rank edges 'size'. Did you mean 'signed'? Known: magnitude, signed."
    broken = scores.copy()
    broken[0, 0] = np.nan
    with pytest.raises(CircuitError) as error:
        find_circuit(broken, n_edges=3)
    assert str(error.value) == "find_circuit: some edges have no finite score. Check the metric and the edits that made them."
    with pytest.raises(CircuitError) as error:
        find_circuit(xr.DataArray(np.zeros((2, 2)), dims=("layer", "head")), n_edges=1)
    assert str(error.value).startswith("Edge scores have dims (writer, reader), not ('layer', 'head').")


# ---- sets

graphs, seeds, shares = st.sampled_from(GRAPHS), st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.4, 1.0])


@given(graph=graphs, seed=seeds, share=shares)
@settings(max_examples=40, deadline=None)
def test_circuits_are_sets_of_edges(graph, seed, share):
    a, b, c = (random_circuit(graph, seed + i, share) for i in range(3))
    left, right, everything = set(a.edge_list), set(b.edge_list), set(graph.edges())
    for found, expected in (
        (a | b, left | right),
        (a & b, left & right),
        (a - b, left - right),
        (a ^ b, left ^ right),
        (~a, everything - left),
    ):
        assert set(found.edge_list) == expected
        assert (found.n_edges, found.n_requested) == (len(expected), len(expected))
    assert (a <= b, a < b, a >= b) == (left <= right, left < right, left >= right)
    assert a <= a | b
    assert a & b <= b
    assert not a < a
    assert ~(a | b) == ~a & ~b
    assert ~~a == a
    assert a & (b | c) == (a & b) | (a & c)
    assert (a - b) | (a & b) == a
    assert a ^ b == (a | b) - (a & b)
    assert Circuit.empty(graph) == a - a
    assert Circuit.full(graph) == a | ~a
    assert (a | b).pruned == a | b, "a union of circuits has no dead ends"
    assert (~a).pruned <= ~a


def test_a_union_keeps_what_both_say():
    graph = Graph(FULL)
    a = Circuit.of(graph, ["input->logits"], attrs={"task": "ioi", "seed": 1}, prompt_ids=["p"], labels={"a0.0": "first"})
    b = Circuit.of(graph, ["input->m0", "m0->logits"], attrs={"task": "ioi", "seed": 2}, prompt_ids=["q"], labels={"a0.0": "x"})
    both = a | b
    assert (both.attrs, both.prompt_ids, both.labels) == ({"task": "ioi"}, {"p", "q"}, {"a0.0": "first"})
    assert both.scores is None


def test_sets_of_different_graphs_are_refused():
    with pytest.raises(CircuitError) as error:
        Circuit.full(FULL) | Circuit.full(GROUPED)
    assert str(error.value) == (
        "circuit | circuit: they are for different graphs: n_heads 2 (other: 4), d_head 16 (other: 8), "
        "learned_positions True (other: False). Use .collapsed on both, or wb.compare(a, b)."
    )
    with pytest.raises(CircuitError, match=r"positions None \(other: \('S2', 3, 'rest'\)\)"):
        assert Circuit.full(GROUPED) <= Circuit.full(FINE["positions"])


# ---- positions, neurons, parts


@given(graph=graphs, seed=seeds, share=shares, scored=st.booleans(), pruned=st.booleans())
@files
def test_circuits_of_every_graph_are_saved_and_loaded(tmp_path, graph, seed, share, scored, pruned):
    circuit = random_circuit(graph, seed, share, scored=scored, pruned=pruned)
    loaded = Circuit.load(circuit.save(tmp_path / "c.json", overwrite=True))
    assert loaded == circuit
    assert (loaded.graph, loaded.edge_list, loaded.nodes) == (graph, circuit.edge_list, circuit.nodes)
    if scored:
        assert [loaded.score(edge) for edge in loaded.edge_list] == [circuit.score(edge) for edge in circuit.edge_list]
    assert loaded.collapsed == circuit.collapsed
    if pruned:
        assert circuit.collapsed.pruned == circuit.collapsed, "a path of the fine graph is one of the plain graph"


def test_edges_at_a_position_are_told_apart():
    graph = FINE["positions"]
    circuit = Circuit.of(graph, ["input->a0.1<v>@S2", "a0.2->logits", "a0.3->logits@3"])
    assert sorted(map(str, circuit.edge_list)) == [
        "a0.2->logits@3", "a0.2->logits@S2", "a0.2->logits@rest", "a0.3->logits@3", "input->a0.1<v>@S2"
    ]  # fmt: skip
    assert "a0.2->logits" in circuit
    assert "a0.3->logits" not in circuit
    assert "a0.3->logits@3" in circuit
    assert circuit.nodes == ("input", "a0.2", "a0.3", "logits")
    assert list(map(str, circuit.collapsed.edge_list)) == ["input->a0.1<v>", "a0.2->logits", "a0.3->logits"]
    assert circuit.collapsed.graph == Graph(GROUPED)
    part = circuit.restricted(positions=3)
    assert sorted(map(str, part.edge_list)) == ["a0.2->logits@3", "a0.3->logits@3"]
    assert part.pruned.n_edges == 0
    with pytest.raises(CircuitError) as error:
        circuit.restricted(positions=["S2", "END"])
    assert str(error.value) == "restricted: this circuit has no position 'END'. Its positions: S2, 3, rest."
    with pytest.raises(CircuitError, match="Its positions: none"):
        circuit.collapsed.restricted(positions="S2")


def test_scores_are_summed_over_positions_and_neurons_of_the_circuit():
    graph = Graph.of(Shape(1, 1, 1, 8, 4, 3, 9, 9), positions="END", neurons=True)
    scores = np.where(graph.exists, 1.0, np.nan)
    scores[graph.index("m0:1->logits@END")] = -4.0
    edges = ["input->m0:1", "m0:1->logits", "input->m0:2@END", "m0:2->logits@END"]
    circuit = Circuit.of(graph, edges, scores=scores)
    plain = circuit.collapsed
    assert list(map(str, plain.edge_list)) == ["input->m0", "m0->logits"]
    assert (plain.score("input->m0"), plain.score("m0->logits")) == (3.0, -2.0)
    assert np.isnan(plain.score("input->logits"))
    assert circuit.score("m0:1->logits") == -3.0
    assert circuit.mlps == [0]
    assert circuit.nodes == ("input", "m0:1", "m0:2", "logits")
    assert "<svg" in circuit._repr_html_() or "data:image/svg" in circuit._repr_html_()


def test_edges_are_weighted_by_the_share_of_neurons():
    shape = Shape(2, 1, 1, 8, 4, 4, 9, 9)
    graph = Graph.of(shape, neurons=[0])
    assert Circuit.full(graph).weighted_edge_count == Graph(shape).n_edges
    # input→m0 counts 1; m0→logits a quarter for one neuron, and m0→m1 too although only the other neuron has that edge
    circuit = Circuit.of(graph, ["input->m0:3", "input->m0:1", "m0:3->logits", "m0:1->m1", "m1->logits"])
    assert circuit.weighted_edge_count == 1 + 2 / 4 + 2 / 4 + 1
    assert circuit.n_edges == 5
    assert random_circuit(Graph(GROUPED), 3).weighted_edge_count == random_circuit(Graph(GROUPED), 3).n_edges


def test_the_circuit_of_nodes_has_every_edge_between_them():
    graph = Graph(FULL)
    circuit = Circuit.of_nodes(graph, ["a1.0", "m1"], labels={"a1.0": "mover"})
    assert {str(edge) for edge in circuit.edge_list} == {
        *(f"input->{reader}" for reader in ("a1.0<q>", "a1.0<k>", "a1.0<v>", "m1", "logits")),
        "a1.0->m1", "a1.0->logits", "m1->logits",
    }  # fmt: skip
    assert circuit.nodes == ("input", "a1.0", "m1", "logits")
    assert (circuit.heads, circuit.mlps) == ([(1, 0)], [1])
    assert Circuit.of_nodes(graph, []).n_edges == 1
    assert Circuit.of_nodes(FINE["both"], ["m0:2", "m1"]).nodes == ("input", "m0:2", "m1:0", "m1:1", "m1:2", "logits")
    assert Circuit.of_nodes(Graph(GROUPED), Graph(GROUPED).writers) == Circuit.full(GROUPED)
    with pytest.raises(CircuitError) as error:
        Circuit.of_nodes(graph, ["a5.0"])
    assert str(error.value) == "This circuit's graph has no node 'a5.0'. Nodes: a9.6, m3, m3:113."


def test_a_shared_key_counts_for_the_heads_that_are_in_otherwise():
    graph = Graph(GROUPED)
    circuit = Circuit.of(graph, ["input->a1.1<k>", "a1.3->logits"])
    assert circuit.nodes == ("input", "a1.3", "logits")
    assert circuit.restricted(readers="a1.1<k>").nodes == ("input", "a1.2", "a1.3")
    assert circuit.restricted(readers="a1.2").n_edges == 1, "the key belongs to both heads"


def test_a_part_is_chosen_by_names_classes_and_roles():
    circuit = Circuit.of(Graph(FULL), Graph(FULL).exists, labels={"a0.0": "early", "a1.1": "mover"})
    chosen = {
        "writers='early'": (circuit.restricted(writers="early"), lambda e: e.writer == "a0.0"),
        "heads into movers": (
            circuit.restricted(writers="heads", readers=["mover"]),
            lambda e: e.writer[0] == "a" and e.reader.startswith("a1.1<"),
        ),
        "queries": (circuit.restricted(readers=["q"]), lambda e: e.reader.endswith("<q>")),
        "mlps": (
            circuit.restricted(writers="mlps", readers=["mlps", "logits"]),
            lambda e: e.writer[0] == "m" and "<" not in e.reader,
        ),
        "where": (circuit.restricted(where=lambda e: e.reader == "m1"), lambda e: e.reader == "m1"),
    }
    for name, (part, rule) in chosen.items():
        assert set(part.edge_list) == {edge for edge in circuit.edge_list if rule(edge)}, name
        assert part.n_edges, name
        assert part <= circuit
    with pytest.raises(CircuitError) as error:
        circuit.restricted(writers=["a0.0", "movers"])
    assert str(error.value) == (
        "This circuit's graph has no writer 'movers'. Give nodes, readers, heads, mlps, q, k, v or a role."
    )


@given(graph=graphs, seed=seeds, by=st.sampled_from(["reader", "writer", "layer", "role"]))
@settings(max_examples=30, deadline=None)
def test_components_part_a_circuit(graph, seed, by):
    circuit = random_circuit(graph, seed)
    parts = circuit.by_component(by)
    assert sum(part.n_edges for part in parts.values()) == circuit.n_edges
    together = Circuit.empty(graph)
    for part in parts.values():
        together = together | part
    assert together == circuit


def test_classes_have_names():
    circuit = Circuit.of(Graph(FULL), Graph(FULL).exists, labels={"a1.1": "mover"})
    assert list(circuit.by_component()) == ["q", "k", "v", "mlps", "logits"]
    assert list(circuit.by_component("writer")) == ["input", "heads", "mlps"]
    assert list(circuit.by_component("layer")) == ["layer 0", "layer 1", "logits"]
    assert "input -> mover" in circuit.by_component("role")
    assert "other heads -> mover" in circuit.by_component("role")
    with pytest.raises(UnknownName):
        circuit.by_component("colour")


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


def test_a_file_that_promises_an_enormous_graph_is_refused_at_once(tmp_path):
    path, document = saved(tmp_path)
    document["shape"] |= {"n_layers": 10**9}
    path.write_text(json.dumps(document))
    with pytest.raises(CircuitError) as error:
        Circuit.load(path)
    assert str(error.value) == "A graph of 3000000000 nodes is too large for a circuit file: it may have 20000."


# ---- other forms


def test_a_circuit_becomes_a_table():
    graph = FINE["positions"]
    scores = np.where(graph.exists, 0.5, np.nan)
    scores[graph.index("a0.2->logits@3")] = -2.0
    frame = Circuit.of(graph, ["input->a0.1<v>@S2", "a0.2->logits@3"], scores=scores).to_frame()
    assert list(frame.columns) == ["edge", "writer", "reader", "pos", "port", "score"]
    assert frame.to_dict("records") == [
        {"edge": "a0.2->logits@3", "writer": "a0.2", "reader": "logits", "pos": 3, "port": "", "score": -2.0},
        {"edge": "input->a0.1<v>@S2", "writer": "input", "reader": "a0.1<v>", "pos": "S2", "port": "v", "score": 0.5},
    ]
    assert len(Circuit.empty(graph).to_frame()) == 0


@given(graph=graphs, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_a_circuit_becomes_a_multigraph_with_the_same_paths(graph, seed):
    circuit = random_circuit(graph, seed, 0.1, scored=True)
    network = circuit.to_networkx()
    assert set(network.nodes) == set(circuit.nodes)
    assert {key for *_, key in network.edges(keys=True)} == set(map(str, circuit.edge_list))
    for name in set(network.nodes) - {"input"}:
        assert nx.has_path(network, "input", name)
    for name in set(network.nodes) - {"logits"}:
        assert nx.has_path(network, name, "logits")


def test_the_multigraph_says_what_each_edge_is():
    circuit = Circuit.of(Graph(GROUPED), ["input->a1.1<k>", "a1.2->logits", "a1.3->logits"], labels={"a1.3": "mover"})
    network = circuit.to_networkx()
    assert network.nodes["a1.3"] == {"kind": "head", "role": "mover"}
    shared = {(u, v): facts for u, v, facts in network.edges(data=True) if u == "input"}
    assert set(shared) == {("input", "a1.2"), ("input", "a1.3")}
    assert shared["input", "a1.2"]["reader"] == "a1.1<k>"
    assert shared["input", "a1.2"]["port"] == "k"


def test_scores_go_out_and_are_cut_again():
    scores = scores_of(Graph(FULL))
    circuit = find_circuit(scores, n_edges=20)
    assert find_circuit(circuit.to_scores(), n_edges=20) == circuit
    np.testing.assert_array_equal(circuit.to_scores().values, scores.values)
    for graph in FINE.values():
        found = random_circuit(graph, 0, scored=True)
        array = found.to_scores()
        assert array.sizes.get("pos") == (None if graph.positions is None else len(graph.positions))
        assert Graph.from_dict(json.loads(array.attrs["graph"])) == graph
        assert int(np.isfinite(array.values).sum()) == graph.n_edges
    with pytest.raises(CircuitError, match="has no scores"):
        Circuit.full(FULL).to_scores()
