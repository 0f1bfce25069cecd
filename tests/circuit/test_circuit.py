"""Circuits as objects, and how they are cut from scores."""

import json
import warnings

import networkx as nx
import numpy as np
import pytest
import xarray as xr
from families import model_of, pairs_and_stores, untyped
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import FINE, FULL, GROUPED, graphs, random_circuit, scores_of, seeds, shares

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.values import from_store
from workbench.errors import CircuitError, NotFinite, SiteError, UnknownName
from workbench.sites import Shape

# ---- objects


def test_a_circuit_is_built_from_edges_in_any_form_and_pruned():
    graph = Graph(GROUPED)
    named = Circuit.of(graph, ["input->a0.1<v>", "a0.2->logits", "a0.0->logits", "input->m1"])
    assert sorted(map(str, named.edge_list)) == ["a0.2->logits", "input->a0.1<v>"]
    assert (named.n_edges, len(named), named.n_requested, named.heads) == (2, 2, 4, [(0, 2)])
    assert "a0.2->logits" in named
    assert "input->m1" not in named
    assert repr(named) == "<Circuit: 2 of 82 edges (2.4%), 1 head>"
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


def test_a_model_or_its_shape_stands_for_its_graph():
    model, edges = model_of("gpt2"), ["input->a0.1<v>", "a0.1->logits"]
    graph = Graph.of(model)
    for start in (model, graph.shape, graph):
        assert Circuit.of(start, edges) == Circuit.of(graph, edges)
        assert Circuit.of_nodes(start, ["a0.1"]) == Circuit.of_nodes(graph, ["a0.1"])
    with pytest.raises(wb.WorkbenchError, match=r"model_or_shape='tiny' does not fit; .* a Graph, as from"):
        untyped(Circuit).of("tiny", edges)


def test_a_circuit_of_dead_ends_says_so():
    graph, most = Graph(FULL), ["input->m0", "m0->m1", "a0.0->logits"]
    with pytest.warns(wb.WorkbenchWarning) as said:
        Circuit.of(graph, most)
    assert str(said[0].message) == (
        "Of 3 edges of this circuit 0 are left: the others are dead ends, on no path from input to logits. A "
        "head needs an edge into it and one out of it."
    )
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Circuit.of(graph, [*most, "m1->logits"]).n_edges == 3, "half or more is left"
        Circuit.of(graph, [])


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
    strength = {
        "input->logits": 0.5,
        "m1->logits": -3.0,
        "m0->logits": 2.0,
        "input->m0": 1.0,
        "input->m1": 0.1,
    }
    for edge, score in strength.items():
        scores[graph.index(edge)] = score
    circuit = Circuit.of(graph, list(strength), scores=scores)
    assert list(map(str, circuit.edge_list)) == [
        "m1->logits",
        "m0->logits",
        "input->m0",
        "input->logits",
        "input->m1",
    ]
    assert circuit.score("m1->logits") == -3


# ---- from scores


@given(
    seed=st.integers(0, 1000),
    share=st.floats(0, 1),
    by=st.sampled_from(["signed", "magnitude"]),
    shape=st.sampled_from([FULL, GROUPED]),
)
@settings(max_examples=40)
def test_the_best_edges_are_chosen_and_dead_ends_pruned(seed, share, by, shape):
    graph = Graph(shape)
    scores = scores_of(graph, seed=seed)
    n = int(share * graph.n_edges)
    rank = {
        (u, v): abs(scores.values[u, v]) if by == "magnitude" else scores.values[u, v]
        for u, v in np.argwhere(graph.exists)
    }
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
    circuit = find_circuit(scores_of(Graph(FULL), method="eap", prompt_ids="p q"), n_edges=9)
    assert circuit.attrs == {"metric": "logit_diff", "method": "eap", "ranked_by": "magnitude"}
    assert circuit.prompt_ids == {"p", "q"}
    assert find_circuit(scores_of(Graph(FULL)), n_edges=0).n_edges == 0
    assert find_circuit(scores_of(Graph(FULL)), threshold=1e9).n_edges == 0
    assert find_circuit(scores_of(Graph(FULL)), threshold=-1e9) == Circuit.full(FULL)


def test_scores_of_prompts_are_joined_by_their_size_or_averaged_and_then_cut():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    kept = score_edges(model, pairs, value=from_store(corrupt), keep=("example",))
    root_mean_square = (kept.astype(float) ** 2).mean("example", keep_attrs=True) ** 0.5
    assert find_circuit(kept, n_edges=30) == find_circuit(
        root_mean_square.assign_attrs(kept.attrs), n_edges=30
    )
    assert find_circuit(kept, n_edges=30, by="signed") == find_circuit(
        kept.mean("example"), n_edges=30, by="signed"
    )
    with pytest.raises(CircuitError) as error:
        find_circuit(kept.rename(example="prompt"), n_edges=5)
    assert str(error.value) == (
        "Edge scores have dims (writer, reader), not ('prompt', 'writer', 'reader'). "
        "Make them with wb.score_edges(...); average kept axes first."
    )
    plain = score_edges(model, pairs, value=from_store(corrupt))
    assert find_circuit(kept.mean("example"), n_edges=30) == find_circuit(plain, n_edges=30)


def test_what_cannot_be_cut_is_refused():
    scores = scores_of(Graph(FULL))
    ways = "n_edges=, threshold=, n_nodes=, min_faithfulness=, criteria="
    prefix = f"find_circuit: give exactly one of {ways}; given: "
    for given_ways, named in (({}, "none"), ({"n_edges": 3, "threshold": 0.5}, "n_edges, threshold")):
        with pytest.raises(CircuitError) as error:
            find_circuit(scores, **given_ways)
        assert str(error.value) == f"{prefix}{named}."
    n = Graph(FULL).n_edges
    for wrong in (-1, n + 1):
        with pytest.raises(CircuitError) as error:
            find_circuit(scores, n_edges=wrong)
        assert str(error.value) == f"find_circuit: n_edges={wrong}; this graph has {n} edges."
    with pytest.raises(UnknownName) as unknown:
        untyped(find_circuit)(scores, n_edges=3, by="size")
    assert str(unknown.value) == "by='size' is not known. Did you mean 'signed'? Choices: magnitude, signed."
    broken = scores.copy()
    broken[0, 0] = np.nan
    with pytest.raises(NotFinite) as not_finite:
        find_circuit(broken, n_edges=3)
    assert str(not_finite.value) == (
        "find_circuit: the score of input->a0.0<q> is not a finite number (1 of all scores are not). Check the "
        "metric, the edits and the model's dtype."
    )
    with pytest.raises(CircuitError) as error:
        find_circuit(xr.DataArray(np.zeros((2, 2)), dims=("layer", "head")), n_edges=1)
    assert str(error.value).startswith("Edge scores have dims (writer, reader), not ('layer', 'head').")


# ---- sets


@given(graph=graphs, seed=seeds, share=shares)
@settings(max_examples=40)
def test_circuits_are_sets_of_edges(graph, seed, share):
    a, b, c = (random_circuit(graph, seed + i, share) for i in range(3))
    left, right, everything = set(a.edge_list), set(b.edge_list), set(graph.edges())
    for circuit, expected in (
        (a | b, left | right),
        (a & b, left & right),
        (a - b, left - right),
        (a ^ b, left ^ right),
        (~a, everything - left),
    ):
        assert set(circuit.edge_list) == expected
        assert (circuit.n_edges, circuit.n_requested) == (len(expected), len(expected))
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
    a = Circuit.of(
        graph, ["input->logits"], attrs={"task": "ioi", "seed": 1}, prompt_ids=["p"], labels={"a0.0": "first"}
    )
    b = Circuit.of(
        graph,
        ["input->m0", "m0->logits"],
        attrs={"task": "ioi", "seed": 2},
        prompt_ids=["q"],
        labels={"a0.0": "x"},
    )
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
    subset = circuit.restricted(positions=3)
    assert sorted(map(str, subset.edge_list)) == ["a0.2->logits@3", "a0.3->logits@3"]
    assert subset.pruned.n_edges == 0
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
    # input→m0 counts 1; m0→logits a quarter for one neuron, and m0→m1 too although only the other neuron has
    # that edge
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
    assert Circuit.of_nodes(FINE["both"], ["m0:2", "m1"]).nodes == (
        "input",
        "m0:2",
        "m1:0",
        "m1:1",
        "m1:2",
        "logits",
    )
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
    for name, (subset, rule) in chosen.items():
        assert set(subset.edge_list) == {edge for edge in circuit.edge_list if rule(edge)}, name
        assert subset.n_edges, name
        assert subset <= circuit
    with pytest.raises(CircuitError) as error:
        circuit.restricted(writers=["a0.0", "movers"])
    assert str(error.value) == (
        "This circuit's graph has no writer 'movers'. Give nodes, readers, heads, mlps, q, k, v or a role."
    )


@given(graph=graphs, seed=seeds, by=st.sampled_from(["reader", "writer", "layer", "role"]))
@settings(max_examples=30)
def test_components_part_a_circuit(graph, seed, by):
    circuit = random_circuit(graph, seed)
    subsets = circuit.by_component(by)
    assert sum(subset.n_edges for subset in subsets.values()) == circuit.n_edges
    together = Circuit.empty(graph)
    for subset in subsets.values():
        together = together | subset
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


# ---- other forms


def test_a_circuit_becomes_a_table():
    graph = FINE["positions"]
    scores = np.where(graph.exists, 0.5, np.nan)
    scores[graph.index("a0.2->logits@3")] = -2.0
    frame = Circuit.of(graph, ["input->a0.1<v>@S2", "a0.2->logits@3"], scores=scores).to_frame()
    assert list(frame.columns) == ["edge", "writer", "reader", "pos", "port", "score"]
    assert frame.to_dict("records") == [
        {"edge": "a0.2->logits@3", "writer": "a0.2", "reader": "logits", "pos": 3, "port": "", "score": -2.0},
        {
            "edge": "input->a0.1<v>@S2",
            "writer": "input",
            "reader": "a0.1<v>",
            "pos": "S2",
            "port": "v",
            "score": 0.5,
        },
    ]
    assert len(Circuit.empty(graph).to_frame()) == 0


@given(graph=graphs, seed=seeds)
@settings(max_examples=30)
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
    circuit = Circuit.of(
        Graph(GROUPED), ["input->a1.1<k>", "a1.2->logits", "a1.3->logits"], labels={"a1.3": "mover"}
    )
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
        circuit = random_circuit(graph, 0, scored=True)
        array = circuit.to_scores()
        assert array.sizes.get("pos") == (None if graph.positions is None else len(graph.positions))
        assert Graph.from_dict(json.loads(array.attrs["graph"])) == graph
        assert int(np.isfinite(array.values).sum()) == graph.n_edges
    with pytest.raises(CircuitError, match="has no scores"):
        Circuit.full(FULL).to_scores()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": lambda g: np.full(g.exists.shape, 0.5)}, "Edges are True or False, not float64"),
        ({"edges": lambda g: g.exists * 2}, "Edges are True or False, not int64"),
        ({"edges": lambda g: g.exists.astype(object)}, "Edges are True or False, not object"),
        ({"scores": lambda g: np.where(g.exists, 1j, 0)}, "Scores are real numbers, not complex128"),
        (
            {"scores": lambda g: np.where(g.exists, -np.inf, np.nan)},
            r"The score of input->\S+ is infinite",
        ),
    ],
)
def test_arrays_that_are_no_edges_or_scores_are_refused(change, message):
    graph = Graph(GROUPED)
    arrays = {"edges": graph.exists} | {name: make(graph) for name, make in change.items()}
    for make in (Circuit.of, Circuit):
        with pytest.raises(CircuitError, match=message):
            make(graph, **arrays)


def test_edges_that_the_graph_lacks_are_no_circuit():
    graph = Graph(GROUPED)
    with pytest.raises(CircuitError, match="The graph has no edge "):
        Circuit(graph, np.ones_like(graph.exists))
    ones = graph.exists.astype(np.int8)
    assert Circuit.of(graph, ones, scores=ones) == Circuit(graph, graph.exists)
    assert Circuit.of(graph, ones, scores=ones).scores.dtype == float
