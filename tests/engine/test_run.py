"""One edited forward pass: what it returns, what it refuses, and that it equals hooks installed by hand."""

import re

import pytest
import torch
from closeness import close
from families import FAMILIES, NATIVES, build, make_pairs, max_difference, model_of, native, untyped

from workbench.engine.hooked.forward import Write, forward
from workbench.engine.inputs import as_prompts
from workbench.engine.run import run
from workbench.engine.values import add, constant, scale, zero
from workbench.errors import EditError, ModelError, PromptError, SiteError, UnknownName
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Shape, Site

ALL = FAMILIES + NATIVES


@pytest.mark.parametrize("family", ALL)
def test_a_run_without_edits_is_the_model(family):
    model, prompts = model_of(family), make_pairs((4, 6, 5)).clean
    result = run(model, prompts)
    with torch.no_grad():
        assert torch.equal(result.logits, model(prompts.tokens))
        for i, length in enumerate((4, 6, 5)):
            alone = model(prompts.tokens[i : i + 1, :length])[0]
            assert close(result.logits[i, :length], alone)
    assert not result.logits.requires_grad


@pytest.mark.parametrize("family", ALL)
def test_what_is_recorded_is_what_transformer_lens_caches(family):
    model, prompts = model_of(family), make_pairs().clean
    shape = Shape.of(model)
    kinds = [kind for kind in KINDS if not shape.lacks(KINDS[kind])]
    sites = [
        Site(kind, layer) for kind in kinds for layer in (range(2) if KINDS[kind].per_layer else (None,))
    ]
    recorded = run(model, prompts, record=sites).recorded
    with torch.no_grad():
        logits, cache = model.run_with_cache(prompts.tokens)
    for site in sites:
        value = recorded[site.kind, site.layer]
        if site.kind == "logits":
            assert torch.equal(value, logits)
        elif site.kind == "resid_mid":
            assert close(
                value,
                cache[f"blocks.{site.layer}.hook_resid_pre"] + cache[f"blocks.{site.layer}.hook_attn_out"],
            )
        else:
            assert torch.equal(value, cache[site.hook]), str(site)
        axes = KINDS[site.kind].axes
        sizes = {
            "example": 3,
            "pos": 6,
            "query_pos": 6,
            "key_pos": 6,
            "head": shape.n_heads,
            "kv_head": shape.n_kv_heads,
        }
        sizes |= {
            "d_model": shape.d_model,
            "d_head": shape.d_head,
            "neuron": shape.d_mlp,
            "vocab": shape.d_vocab,
        }
        assert tuple(value.shape) == tuple(sizes[axis] for axis in axes), str(site)


@pytest.mark.parametrize("family", ALL)
def test_an_edit_equals_a_hook_installed_by_hand(family):
    model, prompts = model_of(family), make_pairs().clean
    shape = Shape.of(model)
    sites = [
        "embed",
        "resid_pre[1]",
        "resid_post[0]",
        "attn_out[0]",
        "q[1.2]",
        "k[1.1]",
        "v[0.0]",
        "z[1.3]",
        "pattern[0.1]",
    ]
    sites += [] if shape.attn_only else ["mlp_out[0]", "mlp_pre[1:3]", "mlp_post[0:5]"]
    for text in sites:
        site = Site.parse(text)

        def halve(value, hook, site=site):
            value = value.clone()
            axes = KINDS[site.kind].axes
            index = tuple(
                site.unit if axis in ("head", "kv_head", "neuron") and site.unit is not None else slice(None)
                for axis in axes
            )
            value[index] = value[index] * 0.5
            return value

        with torch.no_grad():
            expected = model.run_with_hooks(prompts.tokens, fwd_hooks=[(site.hook, halve)])
        got = run(model, prompts, edits={text: scale(0.5)}).logits
        assert close(got, expected), text
        assert max_difference(got, run(model, prompts).logits) > 1e-5, text


@pytest.mark.parametrize("family", ALL)
def test_a_run_leaves_no_hook_behind(family):
    model, prompts = model_of(family), make_pairs().clean
    plain = run(model, prompts).logits
    run(model, prompts, edits={"z[0.0]": zero(), "resid_pre[1]": add(1.0)})
    with pytest.raises(EditError):
        run(model, prompts, edits={"z[0.0]": constant(torch.zeros(3))})
    assert torch.equal(run(model, prompts).logits, plain)


@pytest.mark.types
def test_a_tuple_of_sites_takes_one_value():
    model, prompts = model_of("gpt2"), make_pairs().clean
    together = run(model, prompts, edits={("z[0.0]", "z[1.2]@3"): zero()}).logits
    apart = run(model, prompts, edits={"z[0.0]": zero(), "z[1.2]@3": zero()}).logits
    assert torch.equal(together, apart)


@pytest.mark.types
def test_what_is_recorded_is_the_value_after_the_edits():
    model, prompts = model_of("gpt2"), make_pairs().clean
    recorded = run(
        model,
        prompts,
        edits={"z[0.1]": constant(2.0)},
        record=["z[0]", "attn_out[0]", "resid_mid[0]", "resid_pre[0]"],
    ).recorded
    assert (recorded["z", 0][:, :, 1] == 2).all()
    assert close(recorded["resid_mid", 0], recorded["resid_pre", 0] + recorded["attn_out", 0])
    later = run(
        model,
        prompts,
        edits={"resid_mid[0]": constant(1.0)},
        record=["resid_mid[0]", "resid_pre[1]", "mlp_out[0]"],
    ).recorded
    assert close(later["resid_mid", 0], torch.ones(3, 6, 32))
    assert close(later["resid_pre", 1], 1 + later["mlp_out", 0]), "both the MLP and the stream see the edit"


def test_an_edit_whose_hook_does_not_fire_is_an_error():
    model, prompts = model_of("gpt2"), make_pairs().clean
    with pytest.raises(EditError) as error:
        forward(model, prompts.tokens, raw_writes={"blocks.0.attn.qkv.hook_in": lambda value: value})
    assert str(error.value) == (
        "The hooks blocks.0.attn.qkv.hook_in did not fire, so nothing can be edited or recorded there. "
        "Check that this model runs the place that was named (patterns need attn_implementation='eager')."
    )


def test_a_hook_that_the_model_lacks_is_an_error():
    model, prompts = model_of("gpt2"), make_pairs().clean
    with pytest.raises((SiteError, EditError), match=re.escape("blocks.0.hook_nothing")):
        forward(model, prompts.tokens, raw_writes={"blocks.0.hook_nothing": lambda value: value})


def test_a_change_of_shape_is_an_error():
    model, prompts = model_of("gpt2"), make_pairs().clean
    with pytest.raises(EditError) as error:
        forward(model, prompts.tokens, writes=[Write("z", 0, lambda value: value[:, :, :3])])
    assert (
        str(error.value)
        == "An edit at blocks.0.attn.hook_z returned shape (3, 6, 3, 8) for an activation of (3, 6, 4, 8)."
    )


def test_train_mode_is_refused_also_for_native_models_which_start_in_it():
    for model in (build("gpt2"), native()):
        model.train()
        with pytest.raises(ModelError) as error:
            run(model, [[1, 2, 3]])
        assert (
            str(error.value)
            == "The model is in train mode, so its numbers are random. Call model.eval() first."
        )


def test_tokens_may_be_lists_tensors_or_prompts():
    model = model_of("gpt2")
    rows = [[1, 2, 3], [4, 5, 6]]
    given = [run(model, tokens).logits for tokens in (rows, torch.tensor(rows), Prompts.of(rows))]
    assert torch.equal(given[0], given[1])
    assert torch.equal(given[0], given[2])


@pytest.mark.parametrize("tokens", [[1, 2, 3], torch.tensor([1, 2, 3])], ids=["list", "tensor"])
def test_a_prompt_that_is_not_in_a_list_is_an_error(tokens):
    with pytest.raises(PromptError) as error:
        untyped(as_prompts)(model_of("gpt2"), tokens)
    assert str(error.value) == (
        "Prompts are given as [example, pos] token ids or as several texts: wrap a single prompt in a list."
    )


def test_places_that_do_not_exist_are_refused_before_anything_runs():
    model, prompts = model_of("neox"), make_pairs().clean
    messages = {
        "z[2.0]": "Site 'z[2.0]': this model has layers 0 to 1.",
        "z[0.4]": "Site 'z[0.4]': this model has heads 0 to 3 in a layer.",
        "mlp_post[0:48]": "Site 'mlp_post[0:48]': this model has neurons 0 to 47 in a layer.",
        "z": "Site 'z': z needs a layer, as in z[0].",
        "embed[0]": "Site 'embed[0]': embed belongs to no layer.",
        "mlp_out[0.1]": "Site 'mlp_out[0.1]': mlp_out has no heads. Kinds with heads: q, k, v, z, pattern.",
        "pos_embed": "Site 'pos_embed': this model has no pos_embed, because its positions are not learned embeddings.",
    }
    for text, message in messages.items():
        with pytest.raises(SiteError) as error:
            run(model, prompts, edits={text: zero()})
        assert str(error.value) == message
        with pytest.raises(SiteError):
            run(model, prompts, record=[text])
    with pytest.raises(SiteError) as error:
        run(model_of("llama"), prompts, edits={"k[0.2]": zero()})
    assert str(error.value) == "Site 'k[0.2]': this model has kv heads 0 to 1 in a layer."
    with pytest.raises(UnknownName, match=re.escape("kind='zz' is not known.")):
        run(model, prompts, edits={"zz[0]": zero()})
