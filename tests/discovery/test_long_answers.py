"""Circuits on answers of several tokens: which of their edges are dead ends.

The answer's tokens follow the prompt and attend to it. No edge of a circuit covers them with values of the corrupt
run, so an edge into a key or value of the prompt matters to them though it leads to no logits of the prompt.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from families import make_pairs, model_of

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.criteria import Criteria
from workbench.discovery.frontier import frontier
from workbench.discovery.ranking import first_edges, grown
from workbench.engine.circuits import Circuits, graph_of_runs
from workbench.engine.counterfactuals import counterfactual_values
from workbench.engine.resemblance import resemblance
from workbench.engine.values import zero
from workbench.evaluation.agreement import agreement, exchanged
from workbench.evaluation.controls import controls
from workbench.metrics.metric import metric
from workbench.prompts.answers import padded_answers
from workbench.prompts.pairs import PromptPairs
from workbench.render.circuit.lines import alive, lines_of
from workbench.render.circuit.view import CircuitView

DIFF = metric("sequence_logprob_diff")
RIGHT, WRONG = [[[3, 4]], [[3, 8]], [[3, 2]], [[3, 5]]], [[[3, 6]], [[3, 1]], [[3, 7]], [[3, 9]]]
"""Right and wrong answers begin alike, so nothing that is read at the end of the prompt tells them apart."""


SEVERAL = [[[3, 4], [5]], [[3, 8, 2]], [[3, 2], [3, 5]], [[6], [7, 1]]]
"""Several right answers of different lengths: some follow their prompt, some are read at its end."""


def answered(right: Sequence[Sequence[Sequence[int]]] = RIGHT) -> PromptPairs:
    pairs = make_pairs((6, 7, 6, 7))
    return PromptPairs(pairs.clean, pairs.corrupt, padded_answers(right), padded_answers(WRONG))


def corrupt_runs(model, pairs: PromptPairs) -> Circuits:
    value = counterfactual_values(model, pairs)["corrupt"]
    return Circuits(model, Graph.of(model), pairs, value=value, metric=DIFF)


@pytest.mark.parametrize(
    ("family", "right"), [("gpt2", RIGHT), ("llama", RIGHT), ("neox", RIGHT), ("gpt2", SEVERAL)]
)
def test_leaving_out_dead_ends_changes_nothing(family, right):
    model = model_of(family)
    runs = corrupt_runs(model, answered(right))
    plain, drawn = Graph.of(model), np.random.default_rng(0).random((6, *runs.graph.exists.shape))
    masks = plain.exists & (drawn < np.linspace(0.05, 0.6, 6)[:, None, None])
    measured, scale = runs.measure(masks), np.abs(runs.full - runs.empty).mean()
    assert runs.measure(runs.graph.prune(masks)) == pytest.approx(measured, abs=1e-4 * scale)
    assert np.abs(runs.measure(plain.prune(masks)) - measured).max() > 1e-2 * scale, "they do matter"


def test_only_answers_that_no_value_covers_make_keys_and_values_outputs():
    model, pairs = model_of("gpt2"), answered()
    runs = corrupt_runs(model, pairs)
    assert runs.graph.answers_attend
    assert runs.graph == Graph.of(model), "the edges are the same"
    assert Graph.from_dict(runs.graph.to_dict()).answers_attend
    covered = Circuits(model, runs.graph, pairs, value=zero(), metric=DIFF)
    assert not covered.graph.answers_attend
    short = replace(pairs, answers=pairs.answers[:, :, 1:], wrong=pairs.wrong[:, :, 1:])
    assert not corrupt_runs(model, short).graph.answers_attend


def logits_along_answers(model, pairs: PromptPairs, *, empty: bool) -> torch.Tensor:
    """[example, step, vocab] in plain TransformerLens: of the model, or with the corrupt run in the whole prompt."""
    rows = []
    for i in range(len(pairs)):
        length, right = int(pairs.clean.lengths[i]), pairs.answers[i, 0].tolist()
        clean, corrupt = (side.tokens[i : i + 1, :length] for side in (pairs.clean, pairs.corrupt))
        _, cache = model.run_with_cache(corrupt)
        streams = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
        streams.append(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")

        def write(stream, hook, cache=cache, length=length):
            return torch.cat((cache[hook.name], stream[:, length:]), 1)

        tokens = torch.cat((clean, torch.tensor([right[:-1]])), 1)
        hooks = [(name, write) for name in streams] if empty else []
        rows.append(model.run_with_hooks(tokens, fwd_hooks=hooks)[0, length - 1 :])
    return torch.stack(rows)


@pytest.mark.parametrize("engine", ["circuit walk", "reference"])
def test_kl_and_choices_are_those_along_the_answer(engine):
    model, pairs = model_of("gpt2"), answered()
    runs = corrupt_runs(model, pairs)
    if engine == "reference":
        runs.decoder = None
    beside = resemblance(runs, runs.graph.exists[None])
    with torch.no_grad():
        full, empty = (
            logits_along_answers(model, pairs, empty=which).log_softmax(-1) for which in (False, True)
        )
    expected = (full.exp() * (full - empty)).sum(-1).sum(1)
    assert beside.kl_empty == pytest.approx(expected.numpy(), rel=1e-3)
    assert beside.kl[0] == pytest.approx(0, abs=1e-5)
    assert beside.same_choice.all()
    only_empty = resemblance(runs, np.zeros_like(runs.graph.exists)[None])
    same = (full.argmax(-1) == empty.argmax(-1)).all(1)
    assert only_empty.same_choice[0].tolist() == same.tolist()


@pytest.mark.parametrize("strategy", ["top", "greedy"])
def test_a_circuit_is_found_where_answers_begin_alike(strategy, tmp_path):
    model, pairs = model_of("gpt2"), answered()
    value = counterfactual_values(model, pairs)["corrupt"]
    scores = wb.score_edges(model, pairs, value=value, metric=DIFF, progress=False)
    assert float(np.abs(scores.sel(reader="logits")).max()) < 1e-5
    circuit = wb.find_circuit(scores, n_edges=60, strategy=strategy)
    assert circuit.n_edges > 30
    circuit.save(tmp_path / "circuit.json")
    loaded = Circuit.load(tmp_path / "circuit.json")
    assert loaded.pruned == circuit
    view = CircuitView.of(loaded)
    assert len(alive(lines_of(view, "component"))) == circuit.n_edges, "the picture has them all"
    kept = wb.evaluate(loaded, model, pairs, value=value, metric=DIFF, checks=(), progress=False)
    runs = corrupt_runs(model, pairs)
    expected = (runs.measure(circuit.edges[None])[0] - runs.empty).mean() / (runs.full - runs.empty).mean()
    assert float(kept["faithfulness"][0]) == pytest.approx(expected, abs=1e-4)


def both_runs(model, pairs: PromptPairs) -> dict[str, Circuits]:
    """Runs with corrupt values, which leave the answers as they are, and with zero, which covers them."""
    runs = {"corrupt": corrupt_runs(model, pairs)}
    return runs | {"zero": Circuits(model, Graph.of(model), pairs, value=zero(), metric=DIFF)}


def circuit_of_40_edges(model, pairs: PromptPairs, runs: Circuits) -> Circuit:
    scores = wb.score_edges(model, pairs, value=runs.value, metric=DIFF, method="eap", progress=False)
    return wb.find_circuit(scores, n_edges=40)


def test_runs_of_both_kinds_measure_the_same_in_either_order():
    model, pairs = model_of("gpt2"), answered()
    runs = both_runs(model, pairs)
    reversed_runs = dict(reversed(runs.items()))
    assert graph_of_runs(runs).answers_attend
    assert graph_of_runs(reversed_runs).answers_attend
    circuit = circuit_of_40_edges(model, pairs, runs["corrupt"])
    shared = {"criteria": Criteria(), "draws": 3, "progress": False}
    tables = [controls(circuit, one, **shared).sel(ablation="corrupt") for one in (runs, reversed_runs)]
    xr.testing.assert_allclose(*tables, atol=1e-5)
    assert tables[0].attrs["n_edges"] == circuit.n_edges, "no edge is a dead end where one run needs it"
    order = np.argsort(-np.abs(np.nan_to_num(circuit.scores)), axis=None)
    for one in (runs, reversed_runs):
        assert int(frontier(order, [40], one, Criteria())["n_pruned"][0]) == circuit.n_edges


def test_scores_of_several_values_keep_the_edges_that_one_of_them_needs():
    model, pairs = model_of("gpt2"), answered()
    corrupt = counterfactual_values(model, pairs)["corrupt"]
    for values in ({"zero": zero(), "corrupt": corrupt}, {"corrupt": corrupt, "zero": zero()}):
        scores = wb.score_edges(
            model, pairs, value=values, metric=DIFF, method="eap", progress=False, budget=2**24
        )
        assert wb.find_circuit(scores, n_edges=40).graph.answers_attend


def test_a_search_keeps_what_its_own_values_need_whatever_the_scores_were_made_with():
    model, pairs = model_of("gpt2"), answered()
    corrupt = counterfactual_values(model, pairs)["corrupt"]
    scores = wb.score_edges(model, pairs, value=zero(), metric=DIFF, method="eap", progress=False)
    assert not wb.find_circuit(scores, n_edges=80).graph.answers_attend
    searched = wb.find_circuit(
        scores, min_faithfulness=0.5, model=model, pairs=pairs, value=corrupt, metric=DIFF
    )
    assert searched.graph.answers_attend
    kept = wb.evaluate(searched, model, pairs, value=corrupt, metric=DIFF, checks=(), progress=False)
    assert float(kept["faithfulness"][0]) >= 0.5 - 1e-5


def zero_scores(model, pairs: PromptPairs) -> xr.DataArray:
    """Scores of zero values, whose graph does not know that answers attend; numbers without an order."""
    scores = wb.score_edges(model, pairs, value=zero(), metric=DIFF, method="random", progress=False)
    assert "answers_attend" not in scores.attrs["graph"]
    return scores


def test_a_curve_with_another_value_than_the_scores_keeps_what_it_needs():
    model, pairs = model_of("gpt2"), answered()
    runs, scores = corrupt_runs(model, pairs), zero_scores(model, pairs)
    order = np.argsort(-np.abs(np.nan_to_num(scores.values)), axis=None)
    shared = {"value": runs.value, "metric": DIFF, "progress": False}
    curve = wb.faithfulness_curve(scores, model, pairs, sizes=[0.2, 0.6], **shared)
    with pytest.warns(wb.WorkbenchWarning, match="dead ends"):
        ranked = wb.find_circuit(scores, n_edges=runs.graph.n_edges // 5)
    whole = replace(ranked, edges=runs.graph.exists)
    of_circuit = wb.faithfulness_curve(
        whole, model, pairs, sizes=[int(n) for n in curve["n_edges"]], **shared
    )
    for place, n in enumerate(curve["n_edges"].values.tolist()):
        mask = first_edges(runs.graph, order, n)
        expected = (runs.measure(mask[None])[0] - runs.empty).mean() / (runs.full - runs.empty).mean()
        for one in (curve, of_circuit):
            assert float(one["faithfulness"][place]) == pytest.approx(expected, abs=1e-4)
            assert int(one["n_pruned"][place]) == runs.graph.prune(mask).sum()


def test_a_greedy_search_grows_from_the_outputs_of_its_own_runs():
    model, pairs = model_of("gpt2"), answered()
    runs, scores = corrupt_runs(model, pairs), zero_scores(model, pairs)
    circuit = wb.find_circuit(
        scores,
        min_faithfulness=0.3,
        strategy="greedy",
        model=model,
        pairs=pairs,
        value=runs.value,
        metric=DIFF,
    )
    rank = np.abs(np.nan_to_num(scores.values))
    order = grown(runs.graph, rank, circuit.n_requested)
    assert (circuit.edges == runs.graph.prune(first_edges(runs.graph, order, len(order)))).all()
    assert order.tolist() != grown(Graph.of(model), rank, circuit.n_requested).tolist()


@pytest.mark.parametrize("strategy", ["top", "greedy"])
def test_a_search_with_values_that_cover_answers_has_their_dead_ends(strategy):
    model, pairs = model_of("gpt2"), answered()
    scores = wb.score_edges(
        model, pairs, value=corrupt_runs(model, pairs).value, metric=DIFF, method="eap", progress=False
    )
    covered = Circuits(model, Graph.of(model), pairs, value=zero(), metric=DIFF)
    circuit = wb.find_circuit(
        scores, min_faithfulness=0.3, strategy=strategy, model=model, pairs=pairs, value=zero(), metric=DIFF
    )
    assert not circuit.graph.answers_attend
    assert (circuit.edges == covered.graph.prune(circuit.edges)).all()
    curve = wb.faithfulness_curve(
        scores, model, pairs, value=zero(), metric=DIFF, sizes=[0.2, 0.6], progress=False
    )
    for n, n_pruned in zip(curve["n_edges"].values, curve["n_pruned"].values, strict=True):
        order = np.argsort(-np.abs(np.nan_to_num(scores.values)), axis=None, kind="stable")
        assert n_pruned == covered.graph.prune(first_edges(covered.graph, order, int(n))).sum()


def test_criteria_with_other_values_than_the_scores_keep_the_edges_that_answers_read():
    model, pairs = model_of("gpt2"), answered()
    runs = corrupt_runs(model, pairs)
    scores = wb.score_edges(model, pairs, value=runs.value, metric=DIFF, method="eap", progress=False)
    scores.attrs["graph"] = zero_scores(model, pairs).attrs["graph"]
    bounds = {"prompts_near": 0, "answers_kept": 0, "same_choice": 0, "at_most": 0.6}
    loose = Criteria(faithfulness=(-9, 9), error=9, kl_recovered=0.1, **bounds)
    with pytest.warns(wb.WorkbenchWarning, match="only 4 prompts"):
        circuit = wb.find_circuit(
            scores, criteria=loose, model=model, pairs=pairs, value=runs.value, metric=DIFF, progress=False
        )
    assert circuit.graph.answers_attend
    assert circuit.n_edges > Graph.of(model).prune(circuit.edges).sum()


def test_agreement_samples_the_edges_that_answers_read():
    model, pairs = model_of("gpt2"), answered()
    runs = corrupt_runs(model, pairs)
    circuit = circuit_of_40_edges(model, pairs, runs)
    scores = wb.score_edges(model, pairs, value=runs.value, metric=DIFF, method="eap", progress=False)
    swapped = exchanged(pairs)
    noising, denoising = both_runs(model, pairs), both_runs(model, swapped)
    first_zero = (dict(reversed(one.items())) for one in (noising, denoising))
    table = agreement(circuit, scores, *first_zero, n_inside=8, n_outside=8)
    assert table["n_all"].values.tolist() == [circuit.n_edges, circuit.graph.n_edges - circuit.n_edges]
    inside = table["edge"].values[table["inside"].values]
    for name in inside[:3]:
        mask = runs.graph.exists.copy()
        mask[runs.graph.index(name)] = False
        lost = (runs.full - runs.measure(mask[None])[0]).mean()
        measured = float(table["effect"].sel(direction="noising", ablation="corrupt", edge=name))
        assert measured == pytest.approx(lost, abs=1e-5 * np.abs(runs.full).mean())


def test_acdc_finds_what_a_search_that_prunes_nothing_finds():
    model, pairs = model_of("gpt2"), answered()
    runs = corrupt_runs(model, pairs)
    # Between the costs of two removals, so that rounding decides none.
    threshold = 0.0237 * float(np.abs(runs.full - runs.empty).mean())
    circuit = wb.acdc(model, pairs, value=runs.value, metric=DIFF, threshold=threshold, progress=False)
    edges, kept = runs.graph.exists.copy(), float(runs.full.mean())
    for reader in reversed(range(len(runs.graph.readers))):
        for writer in reversed(np.flatnonzero(edges[:, reader]).tolist()):
            without = edges.copy()
            without[writer, reader] = False
            measured = float(runs.measure(without[None])[0].mean())
            if kept - measured < threshold:
                edges, kept = without, measured
    assert (circuit.edges == runs.graph.prune(edges)).all()
    assert circuit.n_edges > Graph.of(model).prune(edges).sum()


def test_learned_circuits_keep_the_edges_that_answers_read():
    model, pairs = model_of("gpt2"), answered()
    runs = corrupt_runs(model, pairs)
    circuit = wb.learn_circuit(
        model, pairs, value=runs.value, metric=DIFF, n_edges=60, steps=30, restarts=0, progress=False
    )
    missed = np.abs(runs.measure(circuit.edges[None])[0] - runs.full).mean()
    assert circuit.n_edges > Graph.of(model).prune(circuit.edges).sum()
    assert missed < 0.6 * np.abs(runs.empty - runs.full).mean()


def test_a_circuit_of_nodes_is_the_model_with_the_other_heads_patched_in_the_prompt():
    model, pairs = model_of("gpt2"), answered()
    runs = corrupt_runs(model, pairs)
    scores = wb.score_nodes(model, pairs, value=runs.value, metric=DIFF, progress=False)
    circuit = wb.find_circuit(scores, n_nodes=5)
    kept = {
        name for name in circuit.graph.writers if bool(circuit.edges[circuit.graph.writer_index[name]].any())
    }
    assert len(kept - {"input"}) == 5
    expected = []
    for i in range(len(pairs)):
        length = int(pairs.clean.lengths[i])
        clean, corrupt = (side.tokens[i : i + 1, :length] for side in (pairs.clean, pairs.corrupt))
        _, cache = model.run_with_cache(corrupt)

        def patch(acts, hook, cache=cache, length=length):
            layer = int(hook.name.split(".")[1])
            acts = acts.clone()
            if hook.name.endswith("hook_mlp_out"):
                if f"m{layer}" not in kept:
                    acts[:, :length] = cache[hook.name]
                return acts
            # What the answer reads of a head that is left out is left out with it: its keys and values too.
            for head in range(model.cfg.n_heads):
                if f"a{layer}.{head}" not in kept:
                    acts[:, :length, head] = cache[hook.name][:, :, head]
            return acts

        names = [
            f"blocks.{layer}.{kind}"
            for layer in range(model.cfg.n_layers)
            for kind in ("attn.hook_k", "attn.hook_v", "attn.hook_z", "hook_mlp_out")
        ]
        logprobs = []
        for answer in (pairs.answers[i, 0].tolist(), pairs.wrong[i, 0].tolist()):
            tokens = torch.cat((clean, torch.tensor([answer[:-1]])), 1)
            with torch.no_grad():
                logits = model.run_with_hooks(tokens, fwd_hooks=[(name, patch) for name in names])
            steps = logits[0, length - 1 :].log_softmax(-1)
            logprobs.append(float(sum(step[token] for step, token in zip(steps, answer, strict=True))))
        expected.append(logprobs[0] - logprobs[1])
    assert runs.measure(circuit.edges[None])[0] == pytest.approx(expected, abs=1e-4)
