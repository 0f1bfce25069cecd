"""How effects are measured: named metrics, functions of one's own, and what is refused."""

import re

import pytest
import torch
from closeness import close
from families import (
    FAMILIES,
    logit_difference,
    logit_size,
    make_pairs,
    model_of,
    pairs_and_stores,
)

from workbench.engine.capture import capture_pairs
from workbench.engine.run import run
from workbench.engine.values import constant, from_store, scale, zero
from workbench.errors import MetricError, NotFinite, UnknownName
from workbench.interventions.effects import effects
from workbench.metrics.metric import Metric, metric
from workbench.prompts.pairs import PromptPairs
from workbench.sites import grid


def patched_logits(model, pairs, cache):
    """Logits of the clean run with z[1.2] of the corrupt run."""

    def patch(z, hook):
        z = z.clone()
        z[:, :, 2] = cache[:, :, 2]
        return z

    with torch.no_grad():
        return model.run_with_hooks(pairs.clean.tokens, fwd_hooks=[("blocks.1.attn.hook_z", patch)])


def expected_metrics(logits, reference, pairs):
    """Every named metric, written out for one answer and one wrong token."""
    last, clean = logits[:, -1], reference[:, -1]
    rows, answer, wrong = torch.arange(len(last)), pairs.answers[:, 0, 0], pairs.wrong[:, 0, 0]
    log = last.log_softmax(-1)
    return {
        "logit_diff": last[rows, answer] - last[rows, wrong],
        "prob_diff": log.exp()[rows, answer] - log.exp()[rows, wrong],
        "nll": -log[rows, answer],
        "rank": (last > last[rows, answer][:, None]).sum(1).float(),
        "accuracy": (last[rows, answer] > last[rows, wrong]).float(),
        "kl": (clean.softmax(-1) * (clean.log_softmax(-1) - log)).sum(-1),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_differences_of_the_named_metric(family):
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    with torch.no_grad():
        reference = model(pairs.clean.tokens)
    before = expected_metrics(reference, reference, pairs)
    after = expected_metrics(patched_logits(model, pairs, corrupt["z", 1].padded()), reference, pairs)
    for name in before:
        got = effects(model, pairs, sites="z[1.2]", value=from_store(corrupt), metric=name)
        assert close(got[:, 0], after[name] - before[name], scale=logit_size(model, pairs)), name
        assert got.attrs["metric"] == name
    other = effects(model, pairs, sites="resid_pre[0]", value=from_store(clean), metric="kl", base="corrupt")
    with torch.no_grad():
        gap = expected_metrics(model(pairs.corrupt.tokens), reference, pairs)["kl"]
    assert close(other[:, 0], -gap, scale=logit_size(model, pairs)), (
        "the reference is the clean run whichever run is edited"
    )


@pytest.mark.parametrize("method", ["exact", "gradient"])
def test_a_function_gets_the_logits_of_every_position(method):
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    shapes = []

    def by_position(logits):
        shapes.append(tuple(logits.shape))
        return logits[:, 3, 7] - logits[:, 4, 9]

    got = effects(
        model, pairs, sites=["z[1.2]", "z[1.1]"], value=from_store(corrupt), metric=by_position, method=method
    )
    assert set(shapes) == {(3, 6, 50)}
    assert got.attrs["metric"] == "by_position"
    if method == "exact":
        with torch.no_grad():
            change = patched_logits(model, pairs, corrupt["z", 1].padded()) - model(pairs.clean.tokens)
        assert close(got[:, 0], change[:, 3, 7] - change[:, 4, 9], scale=logit_size(model, pairs))


def test_a_wrapped_function_gets_the_last_position_of_prompts_of_any_length():
    model, pairs = model_of("gpt2"), make_pairs((4, 6, 5))
    _, corrupt = capture_pairs(model, pairs)
    seen = []

    def first_token(logits):
        seen.append(tuple(logits.shape))
        return logits[:, 0]

    got = effects(
        model,
        pairs,
        sites="resid_pre[0]",
        value=from_store(corrupt),
        metric=metric(first_token, positions="END"),
    )
    assert set(seen) == {(3, 50)}
    with torch.no_grad():
        for i, length in enumerate((4, 6, 5)):
            ends = [model(side.tokens[i : i + 1, :length])[0, -1, 0] for side in (pairs.corrupt, pairs.clean)]
            assert close(got[i, 0], ends[0] - ends[1], scale=logit_size(model, pairs))


def test_a_function_of_every_position_needs_prompts_of_one_length():
    model, pairs = model_of("gpt2"), make_pairs((4, 6))

    def everywhere(logits):
        return logits.mean((1, 2))

    with pytest.raises(MetricError) as error:
        effects(model, pairs, sites="z[0.0]", value=zero(), metric=everywhere)
    assert str(error.value) == (
        "The metric 'everywhere' reads every position, and these prompts differ in length. "
        "Use prompts of one length, or wb.metric(fn, positions='END') for one that reads the last position."
    )


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda logits: logits[:, -1], "(3, 50)"),
        (lambda logits: logits.mean(), "()"),
        (lambda logits: logits[:2, -1, 0], "(2,)"),
        (lambda logits: 0.5, "float"),
    ],
)
def test_a_function_that_does_not_return_one_number_per_example_is_refused(function, returned):
    model, pairs = model_of("gpt2"), make_pairs()
    with pytest.raises(MetricError) as error:
        effects(model, pairs, sites="z[0.0]", value=zero(), metric=function)
    assert str(error.value) == (
        f"The metric '<lambda>' returned {returned} for 3 examples. It must return one number per example, "
        "a tensor of shape [example]; averaging is yours to do afterwards."
    )


@pytest.mark.parametrize(
    "value",
    [constant(float("nan")), constant(float("inf")), scale(float("nan")), scale(1e39)],
    ids=["nan", "inf", "scale by nan", "overflow"],
)
def test_a_value_that_is_not_a_finite_number_is_refused(value):
    model, pairs = model_of("gpt2"), make_pairs()
    with pytest.raises(NotFinite) as error:
        effects(model, pairs, sites="mlp_out[1]", value=value)
    text = (
        f"{value.describe()} is not finite at mlp_out[1] (in float32), so nothing after it would be either."
    )
    assert str(error.value) == text


def test_an_unknown_metric_is_named_with_its_neighbours():
    model, pairs = model_of("gpt2"), make_pairs()
    with pytest.raises(UnknownName) as error:
        effects(model, pairs, sites="z[0.0]", value=zero(), metric="logit_dif")
    assert str(error.value) == (
        "metric='logit_dif' is not known. Did you mean 'logit_diff' or 'prob_diff'? Choices: accuracy, kl, logit_diff, nll, prob_diff, rank, "
        "sequence_logprob, sequence_logprob_diff."
    )


def test_answers_of_several_tokens_are_refused_by_metrics_that_read_one():
    model, pairs = model_of("gpt2"), make_pairs()
    long = torch.tensor([[[1, -1]], [[2, 3]], [[4, -1]]])
    pairs = PromptPairs(pairs.clean, pairs.corrupt, long, pairs.wrong)
    for name in ("logit_diff", "prob_diff", "nll", "rank", "accuracy"):
        with pytest.raises(MetricError) as error:
            effects(model, pairs, sites="z[0.0]", value=zero(), metric=name)
        assert str(error.value) == (
            f"The metric {name!r} reads one token, and the answer of example 1 has 2 (ids [2, 3]). "
            "Choose words that are one token in this vocabulary, or metric='sequence_logprob_diff'."
        )


@pytest.mark.parametrize("base", ["clean", "corrupt"])
def test_positions_have_the_tokens_of_the_pairs_where_an_answer_is_a_row(base):
    # Right and wrong answers are runs of their own here: twice as many as there are pairs.
    model, pairs = model_of("gpt2"), make_pairs()
    sites = grid("resid_pre", model, pos="each")
    found = effects(model, pairs, sites=sites, value=zero(), metric="sequence_logprob_diff", base=base)
    strings = pairs.side(base).strings
    assert [tuple(filter(None, row)) for row in found["pos_token"].values.tolist()] == list(strings)


@pytest.mark.parametrize("name", ["rank", "accuracy"])
def test_a_metric_without_a_gradient_is_refused_by_the_gradient_method(name):
    model, pairs = model_of("gpt2"), make_pairs()
    with pytest.raises(MetricError, match=re.escape(repr(name))):
        effects(model, pairs, sites=grid("z", model), value=zero(), metric=name, method="gradient")


def test_sets_of_answers_are_averaged():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    answers = torch.tensor([[[1], [2], [3]], [[4], [-1], [-1]], [[5], [6], [-1]]])
    pairs = PromptPairs(pairs.clean, pairs.corrupt, answers, pairs.wrong)
    got = effects(model, pairs, sites="z[1.2]", value=from_store(corrupt))
    with torch.no_grad():
        change = (patched_logits(model, pairs, corrupt["z", 1].padded()) - model(pairs.clean.tokens))[:, -1]
    right = torch.stack([change[0, [1, 2, 3]].mean(), change[1, 4], change[2, [5, 6]].mean()])
    assert close(
        got[:, 0], right - change[torch.arange(3), pairs.wrong[:, 0, 0]], scale=logit_size(model, pairs)
    )


def test_a_metric_object_is_used_as_it_is():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    made = Metric(
        "twice",
        lambda logits, pairs, reference: 2 * logit_difference(logits[:, None], pairs),
        unit="half logits",
    )
    got = effects(model, pairs, sites=grid("z", model), value=from_store(corrupt), metric=made)
    assert close(
        got,
        2 * effects(model, pairs, sites=grid("z", model), value=from_store(corrupt)),
        scale=logit_size(model, pairs),
    )
    assert (got.attrs["metric"], got.attrs["unit"]) == ("twice", "half logits")


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_an_example_that_is_not_edited_may_change_by_comparison(family):
    """The constant is example 0's own value: its logits stay, and its distance from the mean of all does not."""
    model, pairs = model_of(family), make_pairs((6, 6, 6, 6))
    own = run(model, pairs.clean, record=["mlp_post[1]"]).recorded["mlp_post", 1][0, -1, 7]
    compared = metric(lambda logits: logits[:, 5] - logits[:, 5].mean(), positions="END")
    got = effects(model, pairs, sites=["mlp_post[1:7]@END"], value=constant(float(own)), metric=compared)
    assert got.attrs["engine"] == "staircase"

    def write(post, hook):
        post = post.clone()
        post[:, -1, 7] = own
        return post

    with torch.no_grad():
        plain = model(pairs.clean.tokens)[:, -1, 5]
        edited = model.run_with_hooks(pairs.clean.tokens, fwd_hooks=[("blocks.1.mlp.hook_post", write)])[
            :, -1, 5
        ]
    change = (edited - edited.mean()) - (plain - plain.mean())
    assert float(change[0].abs()) > 1e-4
    assert close(got[:, 0], change, scale=logit_size(model, pairs))


def test_results_say_where_they_come_from():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    got = effects(model, pairs, sites=grid("z", model), value=from_store(corrupt), method="gradient")
    attrs = {"kind": "effects", "sites": "z", "value": "from_store", "metric": "logit_diff", "unit": "logits"}
    attrs |= {
        "method": "gradient",
        "base": "clean",
        "model_fingerprint": corrupt.model,
        "data_fingerprint": pairs.fingerprint,
    }
    assert {key: got.attrs[key] for key in attrs} == attrs
    assert all(
        isinstance(value, str | int | float) and not isinstance(value, bool) for value in got.attrs.values()
    )
    assert got.dtype == "float32"
