"""The specification curve: every combination of choices gives the circuit that `find_circuit` gives."""

from functools import cache

import numpy as np
import pytest
from closeness import close

import workbench as wb
from workbench.engine.values import zero
from workbench.errors import CircuitError, PromptError, UnknownName
from workbench.evaluation.specification import specification_curve


@cache
def planted():
    """A planted model, and its pairs with a second counterfactual: the clean prompts of other pairs."""
    known = wb.planted("induction-noisy", n=4, decoys=2, extra=0)
    pairs = wb.planted_pairs(known)
    others = {"other": pairs.clean.select([1, 2, 3, 0])}
    both = wb.PromptPairs(pairs.clean, pairs.corrupt, pairs.answers, pairs.wrong, pairs.provenance, others)
    return known, both


@cache
def curve():
    known, pairs = planted()
    return specification_curve(known.model, pairs, n_edges=8, draws=2, steps=2, seed=1, progress=False)


def test_a_specification_is_the_circuit_of_its_choices():
    known, pairs = planted()
    result = curve()
    assert result["ablation"].values.tolist() == [pairs.counterfactual, "other", "zero", "mean"]
    assert result["metric"].values.tolist() == ["logit_diff", "prob_diff"]
    assert result.attrs["n_specifications"] == result["n_edges"].size == 4 * 2 * 2 * 2
    drawn = np.random.default_rng(1).integers(0, 4, (2, 4))[1]
    scores = wb.score_edges(
        known.model, pairs, value=zero(), metric="prob_diff", method="clean-corrupt", keep=("example",),
        progress=False,
    )  # fmt: skip
    expected = wb.find_circuit(scores.isel(example=drawn), n_edges=8)
    chosen = result.sel(ablation="zero", metric="prob_diff", score_method="clean-corrupt").isel(draw=1)
    assert np.array_equal(chosen["edges"].values, expected.edges)
    assert chosen["n_edges"].item() == expected.n_edges


def test_robust_edges_are_in_most_specifications():
    result = curve()
    share = result["edges"].mean(("ablation", "metric", "score_method", "draw")).values
    exists = np.isfinite(result["share"].values)
    assert close(result["share"].values[exists], share[exists])
    assert int(exists.sum()) == wb.Graph.of(planted()[0].model).n_edges
    assert np.array_equal(result["robust"].values, share >= 0.8)
    assert 0 < result.attrs["n_robust"] < 8


def test_a_choice_moves_circuits_as_far_as_pairs_that_differ_in_it_alone():
    result = curve()
    assert result["n_pairs"].values.tolist() == [6 * 8, 16, 16, 16]
    by_draw = []
    for ablation in result["ablation"].values:
        for measure in result["metric"].values:
            for method in result["score_method"].values:
                edges = result["edges"].sel(ablation=ablation, metric=measure, score_method=method).values
                by_draw.append((edges[0] & edges[1]).sum() / (edges[0] | edges[1]).sum())
    assert close(result["jaccard"].sel(choice="draw"), np.mean(by_draw))
    assert (result["jaccard_low"] <= result["jaccard_high"]).all()


def test_what_cannot_be_varied_is_refused():
    known, pairs = planted()
    graph = wb.Graph.of(known.model)
    for error_type, given, more, message in (
        (CircuitError, pairs, {"n_edges": 0}, f"n_edges=0; this graph has {graph.n_edges} edges."),
        (CircuitError, pairs, {"draws": 0}, "draws=0; at least one resample is needed."),
        (CircuitError, pairs, {"metrics": []}, "give at least one metric and one method."),
        (
            PromptError, pairs.select([0]), {},
            "n=1; every resample of a single prompt is the same.",
        ),
    ):  # fmt: skip
        with pytest.raises(error_type) as error:
            specification_curve(known.model, given, progress=False, **({"n_edges": 5} | more))
        assert str(error.value) == f"specification_curve: {message}"
    with pytest.raises(UnknownName):
        specification_curve(known.model, pairs, n_edges=5, methods=["eep"], progress=False)
