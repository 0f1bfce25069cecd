"""Exact effects equal TransformerLens' own patching functions, per example."""

import pytest
import torch
import transformer_lens.patching as patching
from closeness import close
from families import FAMILIES, logit_difference, logit_size, model_of, pairs_and_stores

from workbench.engine.values import from_store
from workbench.interventions.effects import effects
from workbench.sites import Shape, grid

# kind, positions, TransformerLens' function, its axes in the order of ours
SWEEPS = [
    ("resid_pre", "each", patching.get_act_patch_resid_pre, ("layer", "pos")),
    ("attn_out", "each", patching.get_act_patch_attn_out, ("layer", "pos")),
    ("mlp_out", "each", patching.get_act_patch_mlp_out, ("layer", "pos")),
    ("z", "all", patching.get_act_patch_attn_head_out_all_pos, ("layer", "head")),
    ("q", "all", patching.get_act_patch_attn_head_q_all_pos, ("layer", "head")),
    ("k", "all", patching.get_act_patch_attn_head_k_all_pos, ("layer", "head")),
    ("v", "all", patching.get_act_patch_attn_head_v_all_pos, ("layer", "head")),
    ("pattern", "all", patching.get_act_patch_attn_head_pattern_all_pos, ("layer", "head")),
    ("pattern", "each", patching.get_act_patch_attn_head_pattern_by_pos, ("layer", "head", "pos")),
    ("z", "each", patching.get_act_patch_attn_head_out_by_pos, ("layer", "pos", "head")),
    ("q", "each", patching.get_act_patch_attn_head_q_by_pos, ("layer", "pos", "head")),
    ("k", "each", patching.get_act_patch_attn_head_k_by_pos, ("layer", "pos", "head")),
    ("v", "each", patching.get_act_patch_attn_head_v_by_pos, ("layer", "pos", "head")),
]


def oracle(sweep, model, tokens, cache, pairs):
    """[example, ...]: metric of the patched runs minus that of the unpatched one."""
    with torch.no_grad():
        result = sweep(
            model, tokens, cache, lambda logits: logit_difference(logits, pairs), reduce="none", baseline=True
        )
    return result.effect().movedim(-1, 0)


# Each kind meets every family, whole or at each position, and the grouped heads of llama both.
OF_HEADS = {"all": ("gpt2", "llama", "native"), "each": ("llama", "neox")}
COMPARED = [
    pytest.param(family, *sweep, id=f"{sweep[0]}-{sweep[1]}-{family}")
    for sweep in SWEEPS
    for family in (OF_HEADS[sweep[1]] if sweep[0] in ("z", "q", "k", "v", "pattern") else FAMILIES)
]


@pytest.mark.parametrize(("family", "kind", "pos", "sweep", "axes"), COMPARED)
def test_denoising_effects_equal_transformer_lens(family, kind, pos, sweep, axes):
    model = model_of(family)
    pairs, clean, _ = pairs_and_stores(family)
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean.tokens)
    expected = oracle(sweep, model, pairs.corrupt.tokens, cache, pairs)
    got = effects(model, pairs, sites=grid(kind, model, pos=pos), value=from_store(clean), base="corrupt")
    words = {
        "head": "kv_head" if kind in "kv" else "head",
        "pos": "query_pos" if kind == "pattern" else "pos",
        "layer": "layer",
    }
    got = got.transpose("example", *(words[axis] for axis in axes))
    assert close(got, expected, scale=logit_size(model, pairs))
    assert float(expected.abs().max()) > 1e-3, "the oracle must have something to say"


@pytest.mark.parametrize("kind", ["q", "k", "v"])
def test_grouped_query_attention_sweeps_key_value_heads_only_for_k_and_v(kind):
    model = model_of("llama")
    pairs, clean, _ = pairs_and_stores("llama")
    got = effects(model, pairs, sites=grid(kind, model), value=from_store(clean), base="corrupt")
    shape = Shape.of(model)
    assert got.dims == ("example", "layer", "head" if kind == "q" else "kv_head")
    assert got.shape == (3, shape.n_layers, shape.n_heads if kind == "q" else shape.n_kv_heads)


@pytest.mark.parametrize("family", FAMILIES)
def test_noising_is_denoising_with_the_sides_exchanged(family):
    model = model_of(family)
    pairs, _, corrupt = pairs_and_stores(family)
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.corrupt.tokens)
    expected = oracle(patching.get_act_patch_attn_head_out_all_pos, model, pairs.clean.tokens, cache, pairs)
    got = effects(model, pairs, sites=grid("z", model), value=from_store(corrupt), base="clean")
    assert close(got, expected, scale=logit_size(model, pairs))


def test_single_pattern_entries_equal_transformer_lens():
    model = model_of("gpt2")
    pairs, clean, _ = pairs_and_stores("gpt2")
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean.tokens)
    expected = oracle(
        patching.get_act_patch_attn_head_pattern_dest_src_pos, model, pairs.corrupt.tokens, cache, pairs
    )
    got = effects(
        model,
        pairs,
        sites=grid("pattern", model, pos="each", key_pos=range(6)),
        value=from_store(clean),
        base="corrupt",
    )
    assert got.dims == ("example", "layer", "head", "query_pos", "key_pos")
    seen = torch.ones(6, 6).tril().bool()
    assert bool(torch.from_numpy(got.values)[..., ~seen].isnan().all())
    assert close(got.values[..., seen], expected[..., seen], scale=logit_size(model, pairs))
