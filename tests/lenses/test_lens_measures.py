"""What the logit lens says of whole distributions: entropy, divergence, best tokens, parts of the vocabulary."""

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

import workbench as wb
from workbench.errors import PromptError, StoreError

MIXED = (4, 6, 5)


def distributions(model, store, i, layer):
    """[pos, vocab]: log probabilities by the model's own modules."""
    norm = getattr(model.ln_final, "original_component", model.ln_final)
    with torch.no_grad():
        stream = store["resid_post", layer].prompt(i)[None]
        return model.unembed.original_component(norm(stream))[0].log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES + VARIANTS)
def test_entropy_and_divergence_are_those_of_the_written_out_distributions(family):
    model = model_of(family)
    store = wb.capture(model, make_pairs(MIXED).clean, sites=["resid_post"])
    entropy, kl = (wb.logit_lens(store, model, measure=measure) for measure in ("entropy", "kl"))
    for i, length in enumerate(MIXED):
        final = distributions(model, store, i, 1)
        for layer in range(2):
            ours = distributions(model, store, i, layer)
            assert distance(entropy[i, layer, :length], -(ours.exp() * ours).sum(-1)) < 1e-5
            assert distance(kl[i, layer, :length], (final.exp() * (final - ours)).sum(-1)) < 1e-5
    assert float(abs(kl[:, 1]).max()) == 0
    assert int(kl.isnull().sum()) == 2 * (3 * 6 - sum(MIXED))


@pytest.mark.parametrize("family", FAMILIES + NATIVES)
def test_a_part_of_the_vocabulary_is_the_whole_one_cut(family):
    model, pairs = model_of(family), make_pairs(MIXED)
    store = wb.capture(model, pairs.clean, sites=["resid_post"])
    some = torch.unique(torch.cat([pairs.answers.flatten(), torch.arange(3, 20, 4)]))
    with torch.no_grad():
        logits = model(pairs.clean.tokens)[:, :, some]
    got = wb.logit_lens(store, model, targets=pairs.answers, measure="logprob", vocabulary=some)
    rank = wb.logit_lens(store, model, targets=pairs.answers, measure="rank", vocabulary=some)
    for i, length in enumerate(MIXED):
        at = int((some == pairs.answers[i, 0, 0]).nonzero())
        assert distance(got[i, 1, :length], logits[i, :length].log_softmax(-1)[:, at]) < 1e-5
        assert (
            rank[i, 1, :length].values
            == (logits[i, :length] > logits[i, :length, at : at + 1]).sum(-1).numpy()
        ).all()


def test_chunks_do_not_change_a_number():
    _pairs, clean, _ = pairs_and_stores("gpt2", MIXED)
    for measure in ("entropy", "kl"):
        whole, small = (wb.logit_lens(clean, model_of("gpt2"), measure=measure, budget=b) for b in (None, 1))
        assert distance(whole, torch.from_numpy(small.values)) < 1e-6


def test_top_tokens_are_the_likeliest_of_the_model():
    model = model_of("llama")
    store = wb.capture(model, make_pairs(MIXED).clean, sites=["resid_post"])
    found = wb.top_tokens(store, model, k=4)
    assert found["token"].dims == ("example", "layer", "pos", "rank")
    for i, length in enumerate(MIXED):
        for layer in range(2):
            best = distributions(model, store, i, layer).exp().topk(4, -1)
            assert (found["token"][i, layer, :length].values == best.indices.numpy()).all()
            assert distance(found["prob"][i, layer, :length], best.values) < 1e-6
        assert (found["token"][i, :, length:] == -1).all()
        assert found["prob"][i, :, length:].isnull().all()
    among = wb.top_tokens(store, model, k=2, vocabulary=[7, 3, 40])
    assert set(among["token"].values.flatten().tolist()) <= {7, 3, 40, -1}


def test_a_store_of_some_positions_is_read_where_it_has_rows(tmp_path):
    model, pairs = model_of("gpt2"), make_pairs(MIXED)
    whole = wb.capture(model, pairs.clean, sites=["resid_post"])
    some = wb.capture(
        model, pairs.clean, sites=["resid_post"], path=tmp_path / "s", keep=["END"], progress=False
    )
    full, part = (wb.logit_lens(s, model, targets=pairs.answers) for s in (whole, some))
    for i, length in enumerate(MIXED):
        assert distance(part[i, :, length - 1], torch.from_numpy(full[i, :, length - 1].values)) < 1e-5
        assert part[i, :, : length - 1].isnull().all()


def test_what_does_not_go_together_is_refused():
    pairs, clean, _ = pairs_and_stores("gpt2")
    model = model_of("gpt2")
    wrong = [
        (
            {"measure": "logit"},
            PromptError,
            "logit_lens: measure='logit' needs targets=, tokens per example.",
        ),
        (
            {"measure": "kl", "targets": pairs.answers},
            PromptError,
            "logit_lens: measure='kl' takes no targets=.",
        ),
        (
            {"measure": "kl", "minus": pairs.wrong},
            PromptError,
            "logit_lens: measure='kl' is of the whole distribution, so it takes no minus=.",
        ),
        (
            {"measure": "entropy", "vocabulary": [3, 50]},
            PromptError,
            "A vocabulary names token ids from 0 to 49, each once; not [3, 50].",
        ),
        (
            {"measure": "entropy", "vocabulary": []},
            PromptError,
            "A vocabulary is a list of at least one token id, not [].",
        ),
    ]
    for given, kind, message in wrong:
        with pytest.raises(kind) as raised:
            untyped(wb.logit_lens)(clean, model, **given)
        assert str(raised.value) == message
    absent = next(t for t in range(50) if t not in pairs.answers)
    with pytest.raises(PromptError, match="is not in vocabulary=, which has 1 tokens"):
        wb.logit_lens(clean, model, targets=pairs.answers, measure="prob", vocabulary=[absent])
    with pytest.raises(PromptError, match=r"top_tokens: k=51; ask for 1 to 50"):
        wb.top_tokens(clean, model, k=51)
    low = wb.capture(model, pairs.clean, sites=["resid_post[0]"])
    with pytest.raises(
        StoreError, match=r"measure='kl' needs resid_post\[1\]; the store holds layers \[0\] of it"
    ):
        wb.logit_lens(low, model, measure="kl")


def test_the_mean_over_a_prompt_is_no_tokens_stream(tmp_path):
    model, pairs = model_of("gpt2"), make_pairs(MIXED)
    means = wb.capture(
        model, pairs.clean, sites=["resid_post"], path=tmp_path / "s", keep="mean", progress=False
    )
    with pytest.raises(StoreError, match="holds means over prompts, which lie at no position"):
        wb.logit_lens(means, model, measure="entropy")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stores_of_another_precision_are_read_in_the_models_own(tmp_path, dtype):
    model, pairs = model_of("gpt2"), make_pairs(MIXED)
    full = wb.capture(model, pairs.clean, sites=["resid_post"])
    half = wb.capture(
        model, pairs.clean, sites=["resid_post"], path=tmp_path / "s", dtype=dtype, progress=False
    )
    for how in ({"measure": "kl"}, {"targets": pairs.answers}):
        a, b = (wb.logit_lens(store, model, **how) for store in (full, half))
        assert float(abs(a - b).max()) < 0.1
    wb.top_tokens(half, model, k=2)
    lens = wb.fit_tuned_lens(half, model, epochs=1, test_share=0.4)
    wb.logit_lens(half, model, measure="kl", lens=lens)


def test_a_lens_of_another_model_or_stream_is_refused():
    store = wb.capture(model_of("gpt2"), make_pairs(MIXED).clean, sites=["resid_pre", "resid_post"])
    lens = wb.fit_tuned_lens(store, model_of("gpt2"), epochs=1, test_share=0.4)
    other = wb.capture(model_of("gpt2", seed=1), make_pairs(MIXED).clean, sites=["resid_post"])
    with pytest.raises(StoreError, match="The lens is of another model"):
        wb.logit_lens(other, model_of("gpt2", seed=1), measure="kl", lens=lens)
    with pytest.raises(StoreError, match="The lens translates resid_post, not resid_pre"):
        wb.top_tokens(store, model_of("gpt2"), kind="resid_pre", lens=lens)
