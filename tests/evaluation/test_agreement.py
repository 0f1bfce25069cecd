"""Exact effects of single edges in both directions: planted pairs of edges that stand in for or need each other."""

from functools import cache

import numpy as np
import pytest
from closeness import close
from scipy.stats import binomtest, spearmanr

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.engine.circuits import Circuits
from workbench.engine.values import from_store
from workbench.errors import CircuitError, MetricError
from workbench.evaluation.agreement import _one_direction, _spearman, agreement, exchanged
from workbench.metrics.metric import metric


def both_directions(model, pairs, measure="logit_diff"):
    """Runs that noise the clean prompts and runs that denoise the corrupt ones."""
    clean, corrupt = map(from_store, wb.capture_pairs(model, pairs, progress=False))
    graph, read = Graph.of(model), metric(measure)
    noising = {"swap": Circuits(model, graph, pairs, value=corrupt, metric=read)}
    return noising, {"swap": Circuits(model, graph, exchanged(pairs), value=clean, metric=read)}


@cache
def noisy():
    """A planted model in which every edge has some effect, its circuit, exact scores and both directions."""
    known = wb.planted("induction-noisy", n=4, decoys=2, extra=0)
    pairs = wb.planted_pairs(known)
    noising, denoising = both_directions(known.model, pairs)
    scores = wb.score_edges(
        known.model, pairs, value=noising["swap"].value, method="exact", keep=("example",), progress=False
    )
    return Circuit.of(Graph.of(known.model), known.edges["corrupt"]), scores, noising, denoising


@cache
def conjunction():
    """A model that says `yes` where there is a p word and a q word, and prompts with both and with neither."""
    known = wb.planted("conjunction", n=1, decoys=0)
    ids = {word: i for i, word in enumerate(known.words)}
    fillers = ["f0", "f1", "f2", "f3", "?"]
    both, neither = (
        [[ids[word] for word in ("BOS", *first, *fillers)]] for first in (("p0", "q0"), ("f5", "f0"))
    )
    circuit = Circuit.of(Graph.of(known.model), known.edges["corrupt"])
    return known, circuit, both, neither, ids["yes"], ids["no"]


def kinds_of(clean, corrupt, right, wrong):
    """Edge -> what it is like, of the edges of the conjunction."""
    known, circuit, *_ = conjunction()
    pairs = wb.PromptPairs.of(clean, corrupt, [right], [wrong], bos=True)
    noising, denoising = both_directions(known.model, pairs)
    scores = wb.score_edges(known.model, pairs, value=noising["swap"].value, progress=False)
    result = agreement(circuit, scores, noising, denoising, n_outside=2)
    return result, {
        str(edge): result["one_direction"].sel(edge=edge, ablation="swap").item()
        for edge in result["edge"].values
    }


def test_edges_that_need_each_other_are_and_like_and_edges_that_stand_in_for_each_other_or_like():
    """`yes` needs both words, and either missing one suffices for `no`."""
    known, circuit, both, neither, yes, no = conjunction()
    writers = [known.heads["find-p"], known.heads["find-q"]]
    layer = next(str(edge) for edge in circuit.edge_list if edge.reader == "logits").split("->")[0]
    pair = {f"{writer}->{layer}" for writer in writers}
    alike, needed = kinds_of(both, neither, yes, no), kinds_of(neither, both, no, yes)
    for (result, kinds), expected, strong in ((alike, "and-like", 0), (needed, "or-like", 1)):
        assert {edge for edge in kinds if kinds[edge]} >= pair
        assert {kinds[edge] for edge in kinds} == {expected, ""}
        assert kinds[f"{layer}->logits"] == "", "it matters in both directions"
        sizes = result["size"].isel(ablation=0).sel(edge=sorted(pair)).values
        assert sizes[1 - strong].max() < 1e-4 * sizes[strong].min()
    # What one direction breaks is what the exchanged prompts' other direction brings back.
    assert close(alike[0]["effect"].values[::-1], needed[0]["effect"].values, tolerance=1e-5)


def test_the_exact_scores_agree_with_themselves():
    circuit, scores, noising, denoising = noisy()
    for given in (scores, scores.mean("example", keep_attrs=True)):
        result = agreement(circuit, given, noising, denoising, n_outside=15).isel(ablation=0)
        assert close(result["spearman"].sel(direction="noising"), [1.0, 1.0])
        assert result["inside"].values.sum() == 5
        assert close(result["size"].sel(direction="noising"), result["score"], tolerance=1e-5)
        assert (result["spearman_low"] <= result["spearman"] + 1e-9).all()
    edge = result["edge"].values[0]
    exact = scores.sel(writer=edge.split("->")[0], reader=edge.split("->")[1])
    assert close(result["effect"].sel(direction="noising", edge=edge), float(exact.mean()), tolerance=1e-5)
    assert result["n"].values.tolist() == [5, 15]
    assert result["n_all"].values.tolist() == [5, circuit.graph.n_edges - 5]


def test_denoising_is_what_one_clean_edge_brings_to_the_corrupt_run():
    circuit, scores, noising, denoising = noisy()
    result = agreement(circuit, scores, noising, denoising, n_outside=0).isel(ablation=0)
    runs, graph = denoising["swap"], circuit.graph
    corrupt = noising["swap"].measure(np.zeros((1, *graph.exists.shape), dtype=bool))[0]
    assert close(runs.full, corrupt, tolerance=1e-5, scale=8.0)
    for edge in result["edge"].values[:2]:
        patched = graph.exists.copy()
        patched[graph.index(str(edge))] = False
        expected = (runs.measure(patched[None])[0] - corrupt).mean()
        got = float(result["effect"].sel(direction="denoising", edge=edge))
        assert close(got, expected, tolerance=1e-5, scale=8.0)
        assert got > 0, "it supports the behaviour"


def test_the_bound_is_that_of_clopper_and_pearson_and_a_whole_stratum_needs_none():
    circuit, scores, noising, denoising = noisy()
    graph = circuit.graph
    # A circuit of weak edges: the true ones outside exceed their median.
    weak = Circuit.of(graph, graph.exists & ~circuit.edges)
    result = agreement(weak, scores, noising, denoising, n_outside=4)
    for above, bound in zip(result["above"].values.flat, result["above_bound"].values.flat, strict=True):
        expected = binomtest(round(4 * above), 4, alternative="less").proportion_ci(0.95, method="exact").high
        assert close(bound, expected)
    whole = agreement(weak, scores, noising, denoising, n_outside=graph.n_edges)
    assert (whole["above_bound"].values == whole["above"].values).all()
    assert (whole["above"].values >= circuit.n_edges / int(whole["n_all"].sel(stratum="outside"))).all()
    result = agreement(circuit, scores, noising, denoising, n_outside=12)
    assert (result["above"].values == 0).all()
    # Of no edge in twelve: (1 - bound) ** 12 = .05.
    assert close(result["above_bound"].values, np.full((2, 1), 1 - 0.05 ** (1 / 12)))


def test_rank_correlations_are_those_of_scipy():
    table = np.random.default_rng(0).normal(size=(12, 3)).round(1)
    expected = [spearmanr(table[:, 0], table[:, i]).statistic for i in (1, 2)]
    assert close(_spearman(table), expected, tolerance=1e-9)
    assert np.isnan(_spearman(np.ones((5, 2)))).all()


def test_a_strong_edge_is_one_sided_only_if_the_other_side_is_weak():
    # [direction, ablation, edge]
    sizes = np.array([[[4.0, 4.0, 0.1, 0.5, 1.0]], [[0.1, 0.5, 4.0, 4.0, 0.0]]])
    medians, rounding = np.array([[2.0], [2.0]]), np.full((2, 1), 1e-6)
    assert _one_direction(sizes, medians, rounding).tolist() == [["and-like", "", "or-like", "", ""]]
    assert _one_direction(sizes * 1e-7, medians * 1e-7, rounding).tolist() == [[""] * 5], "rounding"


def test_what_has_no_two_directions_is_refused():
    circuit, scores, noising, denoising = noisy()
    with pytest.raises(CircuitError) as error:
        agreement(circuit, scores, noising, {"abc": denoising["swap"]})
    assert str(error.value) == (
        "agreement: noising has the counterfactuals swap and denoising abc: give both directions of each."
    )
    with pytest.raises(CircuitError) as error:
        agreement(circuit, scores, noising, denoising, n_inside=-1)
    assert str(error.value) == ("agreement: n_inside=-1, n_outside=40; they are numbers of edges from 0 up.")
    runs = noising["swap"]
    kl = {"swap": Circuits(runs.model, runs.graph, runs.pairs, value=runs.value, metric=metric("kl"))}
    with pytest.raises(MetricError) as error:
        agreement(circuit, scores, kl, denoising)
    assert str(error.value) == (
        "agreement: kl measures the distance to the run that is edited, which is the clean run in one "
        "direction and the corrupt run in the other. Use a metric of the answers, such as logit_diff."
    )
