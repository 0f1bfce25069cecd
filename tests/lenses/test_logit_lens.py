"""The logit lens against the model's own logits and against a final norm and unembedding applied by hand."""

import pytest
import torch
from closeness import distance
from families import (
    FAMILIES,
    NATIVES,
    VARIANTS,
    make_pairs,
    model_of,
    pairs_and_stores,
    untyped,
)

from workbench.engine.capture import capture
from workbench.errors import ModelError, PromptError, StoreError, UnknownName
from workbench.lenses.logit_lens import logit_lens
from workbench.prompts.prompts import Prompts

MIXED = (4, 6, 5)


def read_out(model, residual):
    """[pos, vocab]: what the stream [pos, d_model] would say, computed by the wrapped modules themselves."""
    norm = getattr(model.ln_final, "original_component", model.ln_final)
    with torch.no_grad():
        return model.unembed.original_component(norm(residual[None]))[0]


def scored(logits, measure):
    """[pos, vocab]: every token's measure, written out."""
    return {
        "logit": lambda: logits,
        "logprob": lambda: logits.log_softmax(-1),
        "prob": lambda: logits.softmax(-1),
        "rank": lambda: (logits[:, None, :] > logits[:, :, None]).sum(-1).float(),
    }[measure]()


@pytest.mark.parametrize("family", FAMILIES + NATIVES + VARIANTS)
def test_the_last_layer_is_the_models_own_output(family):
    model, pairs = model_of(family), make_pairs(MIXED)
    store = capture(model, pairs.clean, sites=["resid_pre", "resid_post"])
    got = logit_lens(store, model, targets=pairs.answers)
    with torch.no_grad():
        logits = model(pairs.clean.tokens)
    assert got.dims == ("example", "layer", "pos")
    assert got.shape == (3, 2, 6)
    for i, length in enumerate(MIXED):
        answer = int(pairs.answers[i, 0, 0])
        assert distance(got[i, 1, :length], logits[i, :length, answer]) < 2e-6
        assert got[i, :, length:].isnull().all()
        assert got[i, :, :length].notnull().all()


@pytest.mark.parametrize("family", FAMILIES + NATIVES)
@pytest.mark.parametrize("measure", ["logit", "logprob", "prob", "rank"])
def test_every_layer_is_the_final_norm_and_unembedding_of_its_stream(family, measure):
    model, pairs = model_of(family), make_pairs(MIXED)
    store = capture(model, pairs.clean, sites=["resid_pre", "resid_post"])
    for kind in ("resid_post", "resid_pre"):
        got = logit_lens(store, model, targets=pairs.answers, measure=measure, kind=kind)
        against = logit_lens(
            store, model, targets=pairs.answers, minus=pairs.wrong, measure=measure, kind=kind
        )
        for i, length in enumerate(MIXED):
            for layer in range(2):
                every = scored(read_out(model, store[kind, layer].prompt(i)), measure)
                right, wrong = every[:, int(pairs.answers[i, 0, 0])], every[:, int(pairs.wrong[i, 0, 0])]
                assert distance(got[i, layer, :length], right) < 1e-5
                assert distance(against[i, layer, :length], right - wrong) < 1e-5
        assert got.name == measure
        assert (got.attrs["minus"], against.attrs["minus"]) == (0, 1)


def test_a_model_that_scales_its_logits_is_scaled_or_refused():
    model, (pairs, clean, _) = model_of("granite"), pairs_and_stores("granite")
    with torch.no_grad():
        logits = model(pairs.clean.tokens)[torch.arange(3), :, pairs.answers[:, 0, 0]]
    try:
        got = logit_lens(clean, model, targets=pairs.answers)
    except ModelError:
        return
    assert distance(got[:, -1], logits) < 1e-5


def test_alternatives_are_averaged_summed_or_the_best_is_taken():
    model, (_, clean, _) = model_of("gpt2"), pairs_and_stores("gpt2")
    targets = torch.tensor([[[1], [2], [3]], [[4], [-1], [-1]], [[5], [6], [-1]]])
    sets = [[1, 2, 3], [4], [5, 6]]
    for measure in ("logit", "logprob", "prob", "rank"):
        got = logit_lens(clean, model, targets=targets, measure=measure)
        for i, tokens in enumerate(sets):
            every = scored(read_out(model, clean["resid_post", 0].prompt(i)), measure)[:, tokens]
            expected = {"prob": every.sum(1), "rank": every.min(1).values}.get(measure, every.mean(1))
            assert distance(got[i, 0], expected) < 1e-5, measure


def test_one_target_per_example_may_be_given_plainly():
    model, (pairs, clean, _) = model_of("gpt2"), pairs_and_stores("gpt2")
    plain = logit_lens(clean, model, targets=pairs.answers[:, 0, 0])
    assert distance(plain, logit_lens(clean, model, targets=pairs.answers)) == 0


def test_the_memory_budget_does_not_change_the_lens():
    model, (pairs, clean, _) = model_of("llama"), pairs_and_stores("llama")
    usual = logit_lens(clean, model, targets=pairs.answers)
    for budget in (1, 5_000):
        assert distance(logit_lens(clean, model, targets=pairs.answers, budget=budget), usual) < 1e-5


def test_float64_stays_and_layers_that_were_captured_are_the_ones_shown():
    model = model_of("gpt2", torch.float64)
    pairs = make_pairs()
    got = logit_lens(capture(model, pairs.clean, sites=["resid_post[1]"]), model, targets=pairs.answers)
    assert got.dtype == "float64"
    assert got.layer.values.tolist() == [1]
    with torch.no_grad():
        logits = model(pairs.clean.tokens)
    assert distance(got[:, 0], logits[torch.arange(3), :, pairs.answers[:, 0, 0]]) < 1e-12


def test_what_the_lens_cannot_read_is_refused():
    model, other = model_of("gpt2"), model_of("gpt2", seed=1)
    pairs, clean, _ = pairs_and_stores("gpt2")
    with pytest.raises(StoreError) as error:
        logit_lens(capture(other, pairs.clean), model, targets=pairs.answers)
    foreign, own = (store.model[:8] for store in (capture(other, pairs.clean), clean))
    assert str(error.value) == (
        f"logit_lens: the store is of the model external ({foreign}), not of external ({own})."
    )
    with pytest.raises(StoreError) as error:
        logit_lens(capture(model, pairs.clean, sites=["z"]), model, targets=pairs.answers)
    assert (
        str(error.value)
        == "logit_lens needs resid_post; the store holds z. Capture it with sites=[..., 'resid_post']."
    )
    with pytest.raises(UnknownName) as unknown:
        untyped(logit_lens)(clean, model, targets=pairs.answers, measure="logits")
    assert str(unknown.value) == (
        "measure='logits' is not known. Did you mean 'logit'? Choices: entropy, kl, logit, logprob, prob, rank."
    )
    with pytest.raises(PromptError) as error:
        logit_lens(clean, model, targets=torch.tensor([1, 2]))
    assert str(error.value) == (
        "logit_lens: targets has shape (2,); it needs [example] or [example, alternative, token] for 3 prompts."
    )
    with pytest.raises(PromptError) as error:
        logit_lens(clean, model, targets=torch.tensor([[[1, 2]], [[1, -1]], [[1, -1]]]))
    assert (
        str(error.value)
        == "logit_lens: targets has answers of several tokens; only answers of one token can be read."
    )


def test_positions_where_all_prompts_have_the_same_token_are_labelled():
    model, strings = model_of("gpt2"), ["The", " cat", " sat"]
    prompts = Prompts.of([[1, 2, 3], [1, 2, 3]], strings=[strings, strings])
    got = logit_lens(capture(model, prompts), model, targets=torch.tensor([4, 5]))
    assert got.coords["token"].values.tolist() == strings
