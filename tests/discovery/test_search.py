"""Circuits from scores: every way to choose, on hand-made scores and on a planted model with known edges."""

import json
from functools import cache, partial

import networkx as nx
import numpy as np
import pytest
import random_graphs
import xarray as xr
from families import make_pairs, model_of, pairs_and_stores
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.scores import score_edges, score_nodes
from workbench.discovery.search import find_circuit
from workbench.engine.values import from_store, mean, zero
from workbench.errors import CircuitError, NotFinite, UnknownName
from workbench.sites import Shape

PLAIN, GROUPED = Shape(2, 2, 2, 8, 4, 3, 9, 9), Shape(2, 4, 2, 8, 4, 3, 9, 9)
GRAPHS = [
    Graph(PLAIN), Graph(GROUPED), Graph.of(GROUPED, positions=[1, "END"]), Graph.of(PLAIN, neurons=True),
    Graph.of(PLAIN, neurons=[1], positions="S2"),
]  # fmt: skip


scores_of = partial(random_graphs.scores_of, value="from_store")


def node_scores(graph, values, **attrs):
    attrs = {"graph": json.dumps(graph.to_dict())} | attrs
    return xr.DataArray(
        np.asarray(values, dtype=float), dims="writer", coords={"writer": list(graph.writers)}, attrs=attrs
    )


# ---- top, threshold, magnitude


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
@pytest.mark.parametrize("by", ["signed", "magnitude"])
@pytest.mark.parametrize("better", [1, 0])
def test_the_best_edges_are_those_of_a_sorted_list(graph, by, better):
    scores = scores_of(graph, seed=better, higher_is_better=better)
    values = np.random.default_rng(better).normal(size=graph.exists.shape) * (1 if better else -1)
    values = values.astype(scores.dtype)
    key = {
        edge: abs(values[graph.index(edge)]) if by == "magnitude" else values[graph.index(edge)]
        for edge in graph.edges()
    }
    best = sorted(key, key=lambda edge: -key[edge])[:40]
    circuit = find_circuit(scores, n_edges=40, by=by)
    assert circuit == Circuit.of(graph, best)
    assert circuit.n_requested == 40
    assert find_circuit(scores, threshold=float(key[best[-1]]), by=by) == circuit
    assert circuit.attrs["ranked_by"] == by
    for edge in circuit.edge_list:
        assert circuit.score(edge) == values[graph.index(edge)], (
            "scores are turned so that positive supports the behaviour"
        )


def test_no_edge_all_edges_and_a_threshold_beyond_all():
    for graph in GRAPHS:
        scores = scores_of(graph)
        assert find_circuit(scores, n_edges=0).n_edges == find_circuit(scores, threshold=1e9).n_edges == 0
        assert find_circuit(scores, n_edges=graph.n_edges).n_edges == graph.n_edges
        assert find_circuit(scores, threshold=-1e9, by="signed").n_requested == graph.n_edges
        assert find_circuit(scores, threshold=0.0).n_edges == graph.n_edges


# ---- greedy


@given(
    st.integers(0, 2**32), st.sampled_from(GRAPHS), st.floats(0, 1), st.sampled_from(["signed", "magnitude"])
)
@settings(max_examples=12)
def test_greedy_takes_the_best_edge_into_what_is_there_and_every_edge_reaches_the_logits(
    seed, graph, share, by
):
    scores = scores_of(graph, seed=seed)
    n = min(int(share * graph.n_edges), 25)
    values = np.abs(scores_table(scores, graph)) if by == "magnitude" else scores_table(scores, graph)
    inside, grown, edges = {"logits"}, [], list(graph.edges())
    heads = {name: fed_by(graph, name) for name in graph.writers}
    for _ in range(n):
        free = [edge for edge in edges if edge.reader in inside and edge not in grown]
        grown.append(max(free, key=lambda edge: values[graph.index(edge)]))
        inside |= heads[grown[-1].writer]
    circuit = find_circuit(scores, n_edges=n, strategy="greedy", by=by)
    assert circuit == Circuit.of(graph, grown)
    assert circuit.n_requested == n
    built = nx.DiGraph()
    for edge in grown:
        built.add_edge(edge.writer, ("into", edge.reader))
    for writer, readers in heads.items():
        built.add_edges_from((("into", reader), writer) for reader in readers)
    assert all(nx.has_path(built, edge.writer, ("into", "logits")) for edge in grown)


def scores_table(scores, graph):
    table = np.full(graph.exists.shape, np.nan)
    table[graph.exists] = (
        scores.values[graph.exists] if scores.dims[-1] != "edge" else scores.values.reshape(-1)
    )
    return table


def fed_by(graph, writer):
    """The readers that are inputs of a component."""
    if writer == "input":
        return set()
    if writer.startswith("m"):
        return {writer}
    layer, head = writer[1:].split(".")
    shared = int(head) // graph.shape.group
    return {f"a{layer}.{head}<q>", f"a{layer}.{shared}<k>", f"a{layer}.{shared}<v>"}


def test_greedy_passes_by_what_is_strong_and_leads_nowhere():
    graph = Graph(PLAIN)
    values = np.zeros(graph.exists.shape)
    for edge, score in {
        "input->m0": 9,
        "m0->a1.0<k>": 8,
        "a1.1->logits": 3,
        "input->a1.1<v>": 2,
        "a1.0->logits": -5,
    }.items():
        values[graph.index(edge)] = score
    scores = scores_of(graph, values)
    with pytest.warns(wb.WorkbenchWarning) as said:
        assert find_circuit(scores, n_edges=2).n_edges == 0, "dead ends alone"
    assert [str(one.message) for one in said] == [
        "find_circuit: 2 edges were chosen and 0 are left: the others are dead ends, on no path from input to "
        "logits. strategy='greedy' grows the circuit from the outputs instead; or choose more edges."
    ]
    assert said[0].filename == __file__
    grown = find_circuit(scores, n_edges=2, strategy="greedy", by="signed")
    assert set(map(str, grown.edge_list)) == {"a1.1->logits", "input->a1.1<v>"}
    # By magnitude the head that opposes comes first, and then what leads into its key.
    grown = find_circuit(scores, n_edges=3, strategy="greedy")
    assert set(map(str, grown.edge_list)) == {"a1.0->logits", "m0->a1.0<k>", "input->m0"}


# ---- nodes


def test_a_circuit_of_nodes_is_every_edge_between_the_best_of_them():
    graph = Graph(GROUPED)
    values = np.zeros(len(graph.writers))
    for node, score in {"input": 99, "a0.1": 3, "m1": -4, "a1.2": 2}.items():
        values[graph.writer_index[node]] = score
    signed, size = (
        find_circuit(node_scores(graph, values), n_nodes=2, by=by) for by in ("signed", "magnitude")
    )
    assert signed == Circuit.of_nodes(graph, ["a0.1", "a1.2"])
    assert size == Circuit.of_nodes(graph, ["a0.1", "m1"])
    assert find_circuit(node_scores(graph, values), n_nodes=2) == size
    lower = find_circuit(node_scores(graph, -values, higher_is_better=0), n_nodes=2, by="signed")
    assert lower == signed
    assert set(map(str, find_circuit(node_scores(graph, values), n_nodes=0).edge_list)) == {"input->logits"}
    assert find_circuit(node_scores(graph, values), n_nodes=len(graph.writers) - 1) == Circuit.full(graph)
    assert signed.score("a0.1->logits") == 3


@pytest.mark.types
def test_node_scores_of_a_model_make_a_circuit():
    model, (pairs, _, corrupt) = model_of("llama"), pairs_and_stores("llama")
    scores = score_nodes(model, pairs, value=from_store(corrupt))
    best = sorted(scores["writer"].values[1:], key=lambda name: -abs(float(scores.sel(writer=name))))[:3]
    assert find_circuit(scores, n_nodes=3) == Circuit.of_nodes(Graph.of(model), best)


# ---- as few as suffice


@cache
def planted():
    known = wb.planted("induction", n=8)
    pairs = wb.planted_pairs(known)
    return known, pairs, from_store(wb.capture_pairs(known.model, pairs)[1])


def planted_scores(first):
    """The true edges first, the others behind them in random order."""
    known, _, _ = planted()
    graph = Graph.of(known.model)
    values = -np.random.default_rng(first).random(graph.exists.shape)
    for index, edge in enumerate(sorted(known.edges["corrupt"])):
        values[graph.index(edge)] = 10 - index
    for edge in [edge for edge in graph.edges() if str(edge) not in known.edges["corrupt"]][:first]:
        values[graph.index(edge)] = 20
    return scores_of(graph, values)


@pytest.mark.parametrize("first", [0, 7, 30])
@pytest.mark.parametrize("strategy", ["top", "greedy"])
def test_the_smallest_faithful_size_is_found_where_faithfulness_grows(first, strategy):
    known, pairs, value = planted()
    scores = planted_scores(first)
    circuit = find_circuit(scores, min_faithfulness=0.9, model=known.model, pairs=pairs, strategy=strategy)
    sizes = range(1, circuit.n_requested + 1)
    circuits = [find_circuit(scores, n_edges=n, strategy=strategy) for n in sizes]
    faithful = wb.evaluate(circuits, known.model, pairs, value=value, checks=(), progress=False)[
        "faithfulness"
    ].values
    assert (faithful[:-1] < 0.9).all()
    assert faithful[-1] >= 0.9
    assert circuit == circuits[-1]
    if strategy == "top":
        assert circuit.n_requested == len(known.edges["corrupt"]) + first
        assert circuit.n_requested == 5 + first
    same = find_circuit(
        scores,
        min_faithfulness=0.9,
        model=known.model,
        pairs=pairs,
        strategy=strategy,
        value=value,
        metric="logit_diff",
    )
    assert same == circuit


def test_what_is_asked_decides_the_size():
    known, pairs, _ = planted()
    assert (
        find_circuit(planted_scores(0), min_faithfulness=-1.0, model=known.model, pairs=pairs).n_requested
        == 1
    )
    with pytest.raises(CircuitError) as error:
        find_circuit(planted_scores(0), min_faithfulness=1.5, model=known.model, pairs=pairs)
    n = Graph.of(known.model).n_edges
    assert (
        str(error.value)
        == f"find_circuit: even all {n} edges do not reach min_faithfulness=1.5 on these prompts."
    )


# ---- what is refused


def refused(scores, **arguments):
    with pytest.raises((CircuitError, NotFinite)) as error:
        find_circuit(scores, **arguments)
    return str(error.value)


def test_ways_to_choose_that_do_not_go_together():
    scores, graph = scores_of(Graph(PLAIN)), Graph(PLAIN)
    choices = "n_edges=, threshold=, n_nodes=, min_faithfulness=, criteria="
    assert refused(scores) == f"find_circuit: give exactly one of {choices}; given: none."
    assert (
        refused(scores, n_edges=3, n_nodes=2)
        == f"find_circuit: give exactly one of {choices}; given: n_edges, n_nodes."
    )
    assert refused(scores, threshold=1.0, strategy="greedy") == (
        "find_circuit: a threshold says which edges, so there is nothing to grow: use n_edges= with greedy."
    )
    assert refused(node_scores(graph, np.ones(len(graph.writers))), n_nodes=2, strategy="greedy") == (
        "find_circuit: greedy grows a circuit by its edges, so it goes with n_edges= and not with n_nodes=."
    )
    with pytest.raises(UnknownName) as unknown:
        find_circuit(scores, n_edges=3, strategy="greddy")
    assert (
        str(unknown.value) == "strategy='greddy' is not known. Did you mean 'greedy'? Choices: greedy, top."
    )


@pytest.mark.parametrize("wrong", [-1, 10**9])
def test_counts_that_are_none(wrong):
    graph = Graph(PLAIN)
    n = graph.n_edges
    assert (
        refused(scores_of(graph), n_edges=wrong)
        == f"find_circuit: n_edges={wrong}; this graph has {n} edges."
    )
    nodes = node_scores(graph, np.ones(len(graph.writers)))
    assert refused(nodes, n_nodes=wrong) == f"find_circuit: n_nodes={wrong}; this graph has 6 heads and MLPs."


def test_what_are_no_scores():
    scores, graph = scores_of(Graph(PLAIN)), Graph(PLAIN)
    make = "Make them with wb.score_edges(...); average kept axes first."
    assert refused(scores.astype(complex), n_edges=2) == "Scores are real numbers, not complex128."
    assert (
        refused(scores.T, n_edges=2)
        == f"Edge scores have dims (writer, reader), not ('reader', 'writer'). {make}"
    )
    whole = f"These edge scores are not over the whole graph in its own order ({graph}): do not select or sort them."
    for subset in (scores[1:], scores[::-1], scores[:, ::-1], scores.drop_vars("writer")):
        assert refused(subset, n_edges=2) == whole
    nodes = node_scores(graph, np.ones(len(graph.writers)))
    for subset in (nodes[1:], nodes[::-1], nodes.drop_vars("writer")):
        assert refused(subset, n_nodes=2) == (
            f"These node scores are not over all writers in graph order ({graph}): do not select "
            "or sort them."
        )
    assert refused(scores, n_nodes=2) == (
        "find_circuit: n_nodes= needs node scores with dims (writer,), not ('writer', 'reader'): "
        "use wb.score_nodes(...)."
    )
    assert refused(nodes, n_edges=2) == f"Edge scores have dims (writer, reader), not ('writer',). {make}"
    nodes[3] = np.nan
    assert refused(nodes, n_nodes=2) == (
        f"find_circuit: the score of {graph.writers[3]} is not a finite number. Check the metric, the edits and "
        "the model's dtype."
    )
    for wrong in ("{", "[1]", '{"n_layers": 2}', 7):
        assert refused(scores.assign_attrs(graph=wrong), n_edges=2).startswith(
            "These scores do not say which graph they belong to: "
        )


def test_scores_of_finer_graphs_that_were_cut_or_turned():
    placed, split = GRAPHS[2], GRAPHS[3]
    scores = scores_of(placed)
    for odd in (
        scores.transpose("writer", "reader", "pos"),
        scores[:1],
        scores.mean("pos", keep_attrs=True),
        scores.drop_vars("pos"),
    ):
        assert refused(odd, n_edges=2) == (
            f"These edge scores have dims {odd.dims}, and their graph has {placed}: average kept axes first."
        )
    scores = scores_of(split)
    for odd in (scores[::-1], scores.sortby(scores), scores[1:], scores.drop_vars(["writer", "reader"])):
        assert refused(odd, n_edges=2) == (
            f"These edge scores are not over the whole graph in its own order ({split}): do not "
            "select or sort them."
        )


def test_sizes_cannot_be_searched_without_what_measures_them():
    known, pairs, _ = planted()
    scores, model = planted_scores(0), known.model
    assert (
        refused(scores, min_faithfulness=0.9)
        == "find_circuit: min_faithfulness= needs model= and pairs= to measure circuits on."
    )
    for other in ("llama", "native-attn-only"):
        assert refused(scores, min_faithfulness=0.9, model=model_of(other), pairs=make_pairs()) == (
            f"find_circuit: the scores are of another model: {Graph.of(model)}; this one has "
            f"{Graph.of(model_of(other))}."
        )
    averaged = scores.assign_attrs(value="mean(dataset)")
    assert refused(averaged, min_faithfulness=0.9, model=model, pairs=pairs) == (
        "find_circuit: the scores were made with value='mean(dataset)', which cannot be made again "
        "from them: pass value=."
    )
    own = scores.assign_attrs(metric="mine")
    assert refused(own, min_faithfulness=0.9, model=model, pairs=pairs) == (
        "find_circuit: the scores were made with a metric of your own ('mine'): pass metric=."
    )
    assert (
        find_circuit(own, min_faithfulness=0.9, model=model, pairs=pairs, metric="logit_diff").n_requested
        == 5
    )


def test_scores_of_zeros_and_means_are_measured_with_them():
    model, (pairs, clean, _) = model_of("gpt2"), pairs_and_stores("gpt2")
    scores = score_edges(model, pairs, value=zero())
    circuit = find_circuit(scores, min_faithfulness=0.5, model=model, pairs=pairs)
    assert circuit == find_circuit(scores, min_faithfulness=0.5, model=model, pairs=pairs, value=zero())
    averaged = score_edges(model, pairs, value=mean(clean))
    assert (
        find_circuit(averaged, min_faithfulness=0.5, model=model, pairs=pairs, value=mean(clean)).n_requested
        > 0
    )
