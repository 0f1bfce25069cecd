"""Faithfulness: its ends, its parts worked out from the metric, batches, and what is refused."""

import json
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pytest
import torch
from closeness import close
from families import (
    FAMILIES,
    NATIVES,
    build,
    logit_difference,
    make_pairs,
    model_of,
    pairs_and_stores,
)

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.capture import capture_pairs
from workbench.engine.values import from_store, mean, resample, zero
from workbench.errors import CircuitError, ModelError, PromptError
from workbench.evaluation.curves import SIZES, faithfulness_curve
from workbench.evaluation.evaluate import evaluate
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Shape

ALL = FAMILIES + NATIVES
EIGHT = (6, 4, 6, 5, 6, 6, 4, 6)


def some_circuits(model, n=3, *, seed=0):
    graph = Graph.of(model)
    random = np.random.default_rng(seed).random((n, *graph.exists.shape)) < 0.5
    return [Circuit.of(graph, graph.exists & edges) for edges in random]


@pytest.mark.parametrize("family", ALL)
def test_the_full_circuit_is_faithful_and_the_empty_one_is_not(family):
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    for value in (from_store(corrupt), zero(), mean(clean)):
        result = evaluate([Circuit.full(model), Circuit.empty(model)], model, pairs, value=value, checks=())
        assert close(result.faithfulness, [1.0, 0.0], tolerance=1e-3)
        assert close(result.mean_of_ratios, [1.0, 0.0], tolerance=1e-3)
        assert close(result.low, [1.0, 0.0], tolerance=1e-3)
        assert close(result.high, [1.0, 0.0], tolerance=1e-3)
        assert result.n_edges.values.tolist() == [Graph.of(model).n_edges, 0]
    with torch.no_grad():
        ends = [logit_difference(model(side.tokens), pairs) for side in (pairs.clean, pairs.corrupt)]
    result = evaluate(Circuit.full(model), model, pairs, value=from_store(corrupt), checks=())
    assert close(result.m_full, ends[0], tolerance=1e-5)
    assert close(result.m_empty, ends[1], tolerance=1e-5)
    assert close(result.m_circuit[0], ends[0], tolerance=1e-5)


@pytest.mark.types
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_are_what_their_definitions_say(family):
    model = model_of(family)
    pairs, _, corrupt = pairs_and_stores(family, EIGHT)
    result = evaluate(some_circuits(model), model, pairs, value=from_store(corrupt), checks=())
    full, empty, measured = result.m_full.values, result.m_empty.values, result.m_circuit.values
    assert result.m_circuit.dims == ("circuit", "example")
    assert np.allclose(result.faithfulness, (measured.mean(1) - empty.mean()) / (full.mean() - empty.mean()))
    assert np.allclose(result.mean_of_ratios, ((measured - empty) / (full - empty)).mean(1))
    assert not np.allclose(result.faithfulness, result.mean_of_ratios)


def test_the_interval_holds_the_estimate_and_widens_with_its_level():
    model = model_of("gpt2")
    pairs, _, corrupt = pairs_and_stores("gpt2", EIGHT)
    wide, narrow = (
        evaluate(some_circuits(model), model, pairs, value=from_store(corrupt), level=level, checks=())
        for level in (0.95, 0.5)
    )
    for result in (wide, narrow):
        assert (result.low < result.high).all()
    assert (wide.low <= wide.faithfulness).all()
    assert (wide.faithfulness <= wide.high).all()
    assert (wide.low <= narrow.low).all()
    assert (narrow.high <= wide.high).all()
    assert wide.attrs["level"] == 0.95
    again = evaluate(some_circuits(model), model, pairs, value=from_store(corrupt), checks=())
    assert wide.identical(again), "the bootstrap is seeded"


@pytest.mark.parametrize(
    ("family", "metric"), [*((family, "logit_diff") for family in FAMILIES), ("gpt2", "kl")]
)
def test_several_circuits_equal_one_at_a_time(family, metric):
    model, lengths = model_of(family), (6, 4, 6, 5)
    pairs, clean, corrupt = pairs_and_stores(family, lengths)
    circuits = some_circuits(model)
    # Alternated: each value meets two families, and both meet gpt2.
    value = mean(clean) if family in ("llama", "native") or metric == "kl" else from_store(corrupt)
    together = evaluate(circuits, model, pairs, value=value, metric=metric, checks=())
    for i, circuit in enumerate(circuits[:2]):
        alone = evaluate(circuit, model, pairs, value=value, metric=metric, checks=())
        assert alone.sizes["circuit"] == 1
        for name in ("faithfulness", "low", "high", "mean_of_ratios", "n_edges"):
            assert close(alone[name][0], together[name][i], tolerance=1e-3), name
        assert close(alone.m_circuit[0], together.m_circuit[i], tolerance=1e-5)
    for budget in (1, 500_000):
        in_batches = evaluate(
            circuits[:2], model, pairs, value=value, metric=metric, budget=budget, checks=()
        )
        assert close(in_batches.m_circuit, together.m_circuit[:2], tolerance=1e-5)
        assert close(in_batches.m_full, together.m_full, tolerance=1e-5)
    if metric == "kl":
        assert (together.m_full == 0).all()


def test_resampled_values_do_not_depend_on_the_memory_budget():
    model, pairs = model_of("gpt2"), make_pairs((6,) * 6)
    clean, _ = capture_pairs(model, pairs)
    usual, in_batches = (
        evaluate(some_circuits(model), model, pairs, value=resample(clean, seed=1), budget=budget, checks=())
        for budget in (None, 1)
    )
    assert close(in_batches.m_circuit, usual.m_circuit, tolerance=1e-5)


def test_pairs_that_do_not_differ_give_nan():
    model, pairs = model_of("gpt2"), make_pairs()
    same = PromptPairs(pairs.clean, pairs.clean, pairs.answers, pairs.wrong)
    clean, _ = capture_pairs(model, same)
    result = evaluate(some_circuits(model), model, same, value=from_store(clean), checks=())
    for name in ("faithfulness", "low", "high", "mean_of_ratios"):
        assert result[name].isnull().all(), name
    assert np.isfinite(result.m_circuit).all()


def test_an_example_that_does_not_differ_is_left_out_of_the_mean_of_ratios():
    model, pairs = model_of("gpt2"), make_pairs()
    rows = [pairs.clean.tokens[0].tolist(), *pairs.corrupt.tokens[1:].tolist()]
    mixed = PromptPairs(pairs.clean, Prompts.of(rows), pairs.answers, pairs.wrong)
    _, corrupt = capture_pairs(model, mixed)
    result = evaluate(some_circuits(model, 2), model, mixed, value=from_store(corrupt), checks=())
    full, empty, measured = (
        result.m_full.values[1:],
        result.m_empty.values[1:],
        result.m_circuit.values[:, 1:],
    )
    assert close(result.mean_of_ratios, ((measured - empty) / (full - empty)).mean(1), tolerance=1e-4)


def test_prompts_that_a_circuit_was_found_on_are_counted():
    model = model_of("gpt2")
    pairs, _, corrupt = pairs_and_stores("gpt2", EIGHT)
    scores = score_edges(model, pairs.select(range(2, 8)), value=from_store(corrupt))
    circuit, plain = find_circuit(scores, n_edges=40), some_circuits(model, 1)[0]
    result = evaluate([circuit, plain], model, pairs, value=from_store(corrupt), checks=())
    assert result.in_sample.values.tolist() == [0.75, 0]
    assert evaluate(
        circuit, model, pairs.select([0, 1]), value=from_store(corrupt), checks=()
    ).in_sample.values.tolist() == [0]


def test_a_saved_circuit_is_as_faithful_as_before(tmp_path):
    model, (pairs, _, corrupt) = model_of("llama"), pairs_and_stores("llama")
    circuit = find_circuit(score_edges(model, pairs, value=from_store(corrupt)), n_edges=40)
    loaded = Circuit.load(circuit.save(tmp_path / "c.json"))
    before, after = (
        evaluate(measured, model, pairs, value=from_store(corrupt), checks=())
        for measured in (circuit, loaded)
    )
    assert before.identical(after)


@pytest.mark.parametrize("by", ["signed", "magnitude"])
def test_a_curve_is_the_faithfulness_of_the_best_edges_at_each_size(by):
    model = model_of("gpt2")
    pairs, _, corrupt = pairs_and_stores("gpt2", EIGHT)
    scores = score_edges(model, pairs, value=from_store(corrupt))
    curve = faithfulness_curve(scores, model, pairs, value=from_store(corrupt), by=by)
    n = Graph.of(model).n_edges
    assert curve["size"].values.tolist() == list(SIZES)
    assert (
        curve.n_edges.values.tolist()
        == [int(share * n) for share in SIZES]
        == [0, 0, 0, 1, 2, 5, 11, 22, 55, 110]
    )
    circuits = [find_circuit(scores, n_edges=int(share * n), by=by) for share in SIZES]
    assert curve.n_pruned.values.tolist() == [circuit.n_edges for circuit in circuits]
    plain = evaluate(circuits, model, pairs, value=from_store(corrupt), checks=())
    for name in ("faithfulness", "low", "high"):
        assert close(curve[name], plain[name], tolerance=1e-5)
    assert close(float(curve.faithfulness[-1]), 1.0, tolerance=1e-3)
    heights = curve.faithfulness.values if by == "signed" else abs(1 - curve.faithfulness.values)
    area = sum(
        (b - a) * (x + y) / 2 for a, b, x, y in zip(SIZES, SIZES[1:], heights, heights[1:], strict=False)
    )
    assert close(curve.attrs["area"], area, tolerance=1e-9)
    assert curve.attrs["area_name"] == {"signed": "CPR", "magnitude": "CMD"}[by]
    assert curve.attrs["ranked_by"] == by


def test_a_curve_over_other_sizes_claims_no_standard_area():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    scores = score_edges(model, pairs, value=from_store(corrupt))
    curve = faithfulness_curve(scores, model, pairs, value=from_store(corrupt), sizes=[0.0, 1.0])
    assert close(curve.faithfulness, [0.0, 1.0], tolerance=1e-3)
    assert curve.n_edges.values.tolist() == [0, 110]
    assert "area" not in curve.attrs


def test_a_circuit_of_another_graph_is_refused():
    model, (pairs, _, corrupt) = model_of("llama"), pairs_and_stores("llama")
    with pytest.raises(CircuitError) as error:
        evaluate(
            [Circuit.full(model), Circuit.full(model_of("gpt2"))],
            model,
            pairs,
            value=from_store(corrupt),
            checks=(),
        )
    assert str(error.value) == (
        "This circuit is for another graph: 2 layers of 4 heads, 12 nodes, 110 edges; "
        "the model has 2 layers of 4 heads (2 kv), 12 nodes, 82 edges. They differ in n_kv_heads 4 "
        "(model: 2), "
        "d_mlp 128 (model: 48), learned_positions True (model: False)."
    )
    scores = score_edges(model, pairs, value=from_store(corrupt))
    with pytest.raises(CircuitError):
        faithfulness_curve(scores, model_of("gpt2"), pairs, value=zero())


def test_what_cannot_be_evaluated_is_refused():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    with pytest.raises(CircuitError) as error:
        evaluate([], model, pairs, value=from_store(corrupt))
    assert str(error.value) == "evaluate: give a Circuit or a non-empty list of them."
    with pytest.raises(CircuitError, match="evaluate: circuit=a list does not fit; a Circuit"):
        evaluate(cast(Any, [np.zeros((2, 2))]), model, pairs, value=from_store(corrupt))
    uneven = PromptPairs(
        Prompts.of([[1, 2]]), Prompts.of([[1, 2, 3]]), torch.tensor([[[1]]]), torch.tensor([[[2]]])
    )
    with pytest.raises(PromptError) as error:
        evaluate(Circuit.full(model), model, uneven, value=zero(), checks=())
    assert str(error.value).startswith(
        "Pair 0 has clean and corrupt prompts of 2 and 3 tokens. Edges and circuits need equal "
        "lengths within a pair."
    )
    trained = build("gpt2").train()
    with pytest.raises(ModelError) as train:
        evaluate(Circuit.full(trained), trained, pairs, value=zero(), checks=())
    assert (
        str(train.value) == "The model is in train mode, so its numbers are random. Call model.eval() first."
    )


def test_results_say_where_they_come_from():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    result = evaluate(Circuit.full(model), model, pairs, value=from_store(corrupt), checks=())
    attrs = {"kind": "evaluation", "metric": "logit_diff", "unit": "logits", "value": "from_store", "n": 3}
    attrs |= {"model_fingerprint": corrupt.model, "data_fingerprint": pairs.fingerprint}
    assert {key: result.attrs[key] for key in attrs} == attrs
    assert all(
        isinstance(value, str | int | float) and not isinstance(value, bool)
        for value in result.attrs.values()
    )
    sizes = asdict(Graph.of(model).shape)
    assert json.loads(json.dumps(asdict(Shape.of(model)))) == {**sizes, "experts": []}


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_prompts_that_do_not_differ_give_no_shares(family):
    model, clean = model_of(family), make_pairs(EIGHT).clean
    tokens = torch.arange(8)[:, None, None]
    pairs = PromptPairs(clean, clean, tokens, tokens + 1)
    store, _ = capture_pairs(model, pairs)
    circuits = some_circuits(model)
    result = evaluate(
        circuits, model, pairs, value=from_store(store, allow_self=True), checks=("complement",)
    )
    for name in ("faithfulness", "low", "high", "mean_of_ratios", "complement", "complement_low"):
        assert np.isnan(result[name].values).all(), name


def test_each_value_says_whether_it_covers_the_answer():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    values = {"zero": zero(), "other": from_store(corrupt)}
    two = [table.repeat(1, 1, 2) for table in (pairs.answers, pairs.wrong)]
    longer = PromptPairs(pairs.clean, pairs.corrupt, *two)
    metric = "sequence_logprob_diff"
    result = evaluate(Circuit.full(model), model, longer, value=values, metric=metric, checks=())
    assert result.attrs["answer_tokens"] == "edited, unchanged"
