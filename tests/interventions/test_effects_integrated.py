"""Integrated effects: completeness, agreement with a plainly written integral, and what is refused."""

import json

import pytest
import torch
from closeness import close, distance
from families import FAMILIES, logit_size, make_pairs, model_of, pairs_and_stores, untyped

from workbench.engine.hooked.forward import Write, forward
from workbench.engine.values import add, from_store, scale, zero
from workbench.errors import EditError, MetricError
from workbench.interventions.effects import effects
from workbench.sites import Site, grid


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_over_a_full_cut_add_up_to_the_whole_change(family):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    cut = grid("resid_pre", model, layer=1, pos="each")
    steps = 512 if family == "native" else 64  # a ReLU's kinks make the sum converge slowly
    made = effects(model, pairs, sites=cut, value=from_store(corrupt), method="integrated", steps=steps)
    whole = effects(model, pairs, sites="resid_pre[1]", value=from_store(corrupt))
    size = float(abs(whole).max())
    assert size > 0.1
    assert close(made.sum("pos").values[:, 0], whole.values[:, 0], tolerance=1e-3, scale=size)
    assert close(made.attrs["completeness_gap"], 0.0, tolerance=1e-3, scale=size)
    gradient = effects(model, pairs, sites=cut, value=from_store(corrupt), method="gradient")
    one_step = gradient.sum("pos").values[:, 0]
    assert distance(one_step, whole.values[:, 0], scale=size) > 1e-2, "one step does not do it"


def test_the_gap_is_reported_for_every_layer_and_counts_overlapping_sites_twice():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    value = from_store(corrupt)
    heads = effects(model, pairs, sites=grid("z", model), value=value, method="integrated", steps=64)
    gaps = json.loads(heads.attrs["completeness_gaps"])
    assert list(gaps) == ["z[0]", "z[1]"]
    for layer in (0, 1):
        together = effects(model, pairs, sites=[tuple(grid("z", model, layer=layer))], value=value)
        expected = float((heads.sel(layer=layer).sum("head") - together[:, 0]).mean())
        size = logit_size(model, pairs)
        assert close(gaps[f"z[{layer}]"], expected, tolerance=1e-5, scale=size)
        assert close(expected, 0.0, tolerance=1e-3, scale=float(abs(together).max()))
    twice = effects(model, pairs, sites=["z[1]", "z[1.2]"], value=value, method="integrated", steps=64)
    size = float(abs(twice).max())
    assert close(twice.attrs["completeness_gap"], float(twice[:, 1].mean()), tolerance=1e-3, scale=size)


def test_it_is_the_mean_slope_at_midpoints_times_the_change():
    model, pairs = model_of("llama", torch.float64), make_pairs()
    key, site = ("mlp_out", 0), Site("mlp_out", 0, pos=3)
    start = forward(model, pairs.clean.tokens, record=[key]).recorded[key]
    change = torch.zeros_like(start)
    change[:, 3] = -start[:, 3]
    total = torch.zeros(len(pairs), dtype=torch.float64)
    rows = torch.arange(len(pairs))
    for step in range(5):
        point = (start + (step + 0.5) / 5 * change).requires_grad_()
        logits = forward(
            model, pairs.clean.tokens, writes=[Write(*key, lambda _, p=point: p)], gradients=True
        ).logits[:, -1]
        measured = logits[rows, pairs.answers[:, 0, 0]] - logits[rows, pairs.wrong[:, 0, 0]]
        (slope,) = torch.autograd.grad(measured.sum(), point)
        total += (slope * change).flatten(1).sum(1) / 5
    made = effects(model, pairs, sites=site, value=zero(), method="integrated", steps=5)
    assert close(made.values[:, 0], total, scale=logit_size(model, pairs))
    assert made.attrs["steps"] == 5


def test_small_budgets_and_order_change_nothing():
    model, (pairs, _, corrupt) = model_of("neox"), pairs_and_stores("neox", (5, 7, 6))
    sites = grid("z", model, pos="each")
    ask = {"sites": sites, "value": from_store(corrupt), "method": "integrated", "steps": 4}
    whole = effects(model, pairs, **ask)
    assert close(effects(model, pairs, budget=1, **ask), whole, scale=logit_size(model, pairs))
    turned = effects(model, pairs.select([2, 0, 1]), **ask)
    assert close(
        turned.values, whole.values[[2, 0, 1]][:, :, :, : turned.shape[3]], scale=logit_size(model, pairs)
    )


def test_a_linear_step_is_the_same_for_one_point_and_many_where_the_model_is_linear():
    model, pairs = model_of("native-attn-only-no-norm"), make_pairs()
    ask = {"sites": grid("resid_post", model, layer=1, pos="each"), "value": scale(0.5)}
    exact = effects(model, pairs, **ask)
    for method in ("gradient", "integrated"):
        assert close(effects(model, pairs, method=method, **ask), exact, scale=logit_size(model, pairs))


def test_what_has_no_slope_or_no_points_is_refused():
    model, pairs = model_of("gpt2"), make_pairs()
    with pytest.raises(EditError) as error:
        untyped(effects)(model, pairs, sites="z[0.0]", value=add(1.0), method="integrated", steps=0)
    assert str(error.value) == "effects: steps=0; the path from a to e(a) needs at least one point."
    with pytest.raises(MetricError):
        effects(model, pairs, sites="z[0.0]", value=add(1.0), method="integrated", metric="rank")
    with pytest.raises(MetricError):
        effects(model, pairs, sites="z[0.0]", value=add(1.0), method="integrated", metric="kl")
