"""Direct logit attribution: its parts sum to the logits, and each is what the final norm and unembedding make of it."""

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
from workbench.errors import ModelError, PromptError, StoreError, UnknownName

MIXED = (4, 6, 5)
EVERY = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "mlp_post")


def stored(family, dtype=torch.float32):
    model, pairs = model_of(family, dtype), make_pairs(MIXED)
    kinds = [kind for kind in EVERY if wb.Shape.of(model).lacks(wb.KINDS[kind]) is None]
    return model, pairs, wb.capture(model, pairs.clean, sites=kinds)


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES, *VARIANTS, "gemma2"])
@pytest.mark.parametrize("by", ["component", "head"])
def test_parts_sum_to_the_models_logit_difference(family, by):
    model, pairs, store = stored(family)
    got = wb.direct_attribution(store, model, targets=pairs.answers, minus=pairs.wrong, by=by, pos="each")
    with torch.no_grad():
        logits = model(pairs.clean.tokens)
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0
    logits = cap * torch.atanh(logits.double() / cap) if cap > 0 else logits
    for i, length in enumerate(MIXED):
        wanted = logits[i, :length, pairs.answers[i, 0, 0]] - logits[i, :length, pairs.wrong[i, 0, 0]]
        assert distance(got[i, :, :length].sum("component"), wanted) < 1e-4
        assert got[i, :, length:].isnull().all()
    assert got.attrs["gap"] < 1e-4


@pytest.mark.parametrize("family", [*FAMILIES, "gptj", "qwen2", "gemma2"])
def test_neurons_of_a_layer_sum_to_its_mlp_but_for_the_bias(family):
    model, pairs, store = stored(family)
    how = {"targets": pairs.answers, "minus": pairs.wrong}
    neurons = wb.direct_attribution(store, model, by="neuron", **how)
    assert neurons.dims == ("example", "layer", "neuron")
    assert neurons.attrs["gap"] < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_heads_part_is_what_a_frozen_norm_and_unembedding_make_of_its_output(family):
    model, pairs, store = stored(family, torch.float64)
    got = wb.direct_attribution(store, model, targets=pairs.answers, by="head")
    final, z = store["resid_post", 1].at("END"), store["z", 1].at("END")
    norm = model.ln_final.original_component
    centred = final - final.mean(-1, keepdim=True) if family == "gpt2" else final
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", 0))
    scale = (centred.pow(2).mean(-1) + eps).rsqrt()
    for head in range(4):
        written = z[:, head] @ model.blocks[1].attn.W_O[head].detach()
        written = written - written.mean(-1, keepdim=True) if family == "gpt2" else written
        wanted = written * scale[:, None] * norm.weight.detach()
        wanted = (wanted * model.W_U.detach()[:, pairs.answers[:, 0, 0]].T).sum(-1)
        # Llama norms in float32 even in a float64 model: its rounding is 6e-8.
        tolerance = 1e-9 if family == "gpt2" else 1e-6
        assert distance(got.sel(component=f"a1.{head}"), wanted) < tolerance


def test_alternatives_are_averaged_and_levels_agree():
    model, pairs, store = stored("gpt2")
    several = torch.stack([pairs.answers[:, 0], (pairs.answers[:, 0] + 7) % 50, torch.full((3, 1), -1)], 1)
    both = [wb.direct_attribution(store, model, targets=several[:, i, 0]) for i in (0, 1)]
    mean = wb.direct_attribution(store, model, targets=several)
    assert distance(mean, torch.from_numpy(((both[0] + both[1]) / 2).values)) < 1e-6
    parts = wb.direct_attribution(store, model, targets=several, by="component")
    heads = mean.sel(component=[f"a0.{h}" for h in range(4)]).sum("component")
    gap = parts.sel(component="a0") - heads  # the attention's bias, read with each example's own scale
    assert float(abs(mean.sel(component="m1") - parts.sel(component="m1")).max()) < 1e-6
    assert float(abs(gap).max()) > 0


def test_named_positions_embeddings_and_small_budgets():
    model, pairs, store = stored("gpt2")
    small = wb.direct_attribution(store, model, targets=pairs.answers, pos="each", budget=1)
    whole = wb.direct_attribution(store, model, targets=pairs.answers, pos="each")
    assert distance(whole, torch.from_numpy(small.values)) < 1e-6
    ends = wb.direct_attribution(store, model, targets=pairs.answers)
    for i, length in enumerate(MIXED):
        assert distance(ends[i], torch.from_numpy(whole[i, :, length - 1].values)) < 1e-6
    kinds = ["embed", "pos_embed", "resid_post", "attn_out", "mlp_out"]
    split = wb.capture(model, pairs.clean, sites=kinds)
    parts = wb.direct_attribution(split, model, targets=pairs.answers, by="component")
    assert distance(parts.sel(component="input"), torch.from_numpy(ends.sel(component="input").values)) < 1e-5


def test_what_cannot_be_attributed_is_refused():
    pairs, clean, _ = pairs_and_stores("gpt2")
    model = model_of("gpt2")
    with pytest.raises(UnknownName, match="by='layer' is not known"):
        untyped(wb.direct_attribution)(clean, model, targets=pairs.answers, by="layer")
    with pytest.raises(StoreError, match=r"the store is of the model"):
        wb.direct_attribution(clean, model_of("llama"), targets=pairs.answers)
    with pytest.raises(PromptError, match="direct_attribution: targets has shape"):
        wb.direct_attribution(clean, model, targets=pairs.answers[:1])
    bare = wb.capture(model, pairs.clean, sites=["resid_post"])
    with pytest.raises(
        StoreError, match=r"direct_attribution\(by='head'\) needs z; the store holds resid_post\."
    ):
        wb.direct_attribution(bare, model, targets=pairs.answers)
    scaled, _, store = stored("granite")
    with pytest.raises(ModelError, match="logits of this model are not its final norm and unembedding"):
        wb.direct_attribution(store, scaled, targets=pairs.answers)
