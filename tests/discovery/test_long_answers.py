"""Circuits on answers of several tokens: which of their edges are dead ends.

The answer's tokens follow the prompt and attend to it. No edge of a circuit covers them with values of the corrupt
run, so an edge into a key or value of the prompt matters to them though it leads to no logits of the prompt.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import make_pairs, model_of

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.engine.circuits import Circuits
from workbench.engine.counterfactuals import counterfactual_values
from workbench.engine.resemblance import resemblance
from workbench.engine.values import zero
from workbench.metrics.metric import metric
from workbench.prompts.answers import padded_answers
from workbench.prompts.pairs import PromptPairs
from workbench.render.circuit.lines import alive, lines_of
from workbench.render.circuit.view import CircuitView

DIFF = metric("sequence_logprob_diff")
RIGHT, WRONG = [[[3, 4]], [[3, 8]], [[3, 2]], [[3, 5]]], [[[3, 6]], [[3, 1]], [[3, 7]], [[3, 9]]]
"""Right and wrong answers begin alike, so nothing that is read at the end of the prompt tells them apart."""


def answered() -> PromptPairs:
    pairs = make_pairs((6, 7, 6, 7))
    return PromptPairs(pairs.clean, pairs.corrupt, padded_answers(RIGHT), padded_answers(WRONG))


def corrupt_runs(model, pairs: PromptPairs) -> Circuits:
    value = counterfactual_values(model, pairs)["corrupt"]
    return Circuits(model, Graph.of(model), pairs, value=value, metric=DIFF)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_leaving_out_dead_ends_changes_nothing(family):
    model = model_of(family)
    runs = corrupt_runs(model, answered())
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
