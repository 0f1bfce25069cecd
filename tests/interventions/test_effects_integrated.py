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
    steps = 256 if family == "native" else 64  # a ReLU's kinks make the sum converge slowly
    made = effects(model, pairs, sites=cut, value=from_store(corrupt), method="integrated", steps=steps)
    whole = effects(model, pairs, sites="resid_pre[1]", value=from_store(corrupt))
    size = float(abs(whole).max())
    assert size > 0.1
    assert close(made.sum("pos").values[:, 0], whole.values[:, 0], tolerance=1e-3, scale=size)
    missed = abs(made.sum("pos").values[:, 0] - whole.values[:, 0]) / abs(whole.values[:, 0])
    assert close(made.attrs["completeness_gap"], float(missed.max()), tolerance=1e-4, scale=1.0)
    assert made.attrs["completeness_gap"] < 0.01
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
        missed = abs((heads.sel(layer=layer).sum("head") - together[:, 0]) / together[:, 0])
        assert close(gaps[f"z[{layer}]"], float(missed.max()), tolerance=1e-4, scale=1.0)
        assert gaps[f"z[{layer}]"] < 0.01
    with pytest.warns(
        UserWarning, match=r"integrated effects of z\[1\] have not converged: .* no site twice"
    ):
        twice = effects(model, pairs, sites=["z[1]", "z[1.2]"], value=value, method="integrated", steps=64)
    counted_twice = abs(twice[:, 1] / twice[:, 0]).max()
    assert close(twice.attrs["completeness_gap"], float(counted_twice), tolerance=1e-2, scale=1.0)


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(family, marks=pytest.mark.slow) for family in ("llama", "neox"))]
)
def test_the_gap_counts_no_absent_position_and_lets_prompts_not_cancel(family):
    """Prompts of 4, 7 and 8 tokens: what the shorter lack is not read at their first token instead."""
    model, pairs = model_of(family, torch.float64), make_pairs((4, 7, 8))
    for base in ("clean", "corrupt"):
        asked = {"value": add(torch.linspace(-2, 2, 32)), "base": base}
        made = effects(
            model, pairs, sites=grid("resid_pre", model, layer=1, pos="each"), method="integrated", steps=32,
            **asked,
        )  # fmt: skip
        whole = effects(model, pairs, sites="resid_pre[1]", **asked).values[:, 0]
        missed = abs(made.sum("pos").values[:, 0] - whole) / abs(whole)
        assert close(made.attrs["completeness_gap"], float(missed.max()), tolerance=1e-6, scale=1.0)
        assert made.attrs["completeness_gap"] < 0.02


def test_few_steps_on_a_curved_path_are_said_to_be_too_few():
    model, pairs = model_of("gpt2"), make_pairs()
    with pytest.warns(UserWarning, match=r"integrated effects of resid_pre\[0\] .* \(now 1\)") as warned:
        made = effects(model, pairs, sites="resid_pre[0]", value=scale(-4.0), method="integrated", steps=1)
    # At the line of the caller, and not of a wrapper: notebooks show that line.
    assert [warning.filename for warning in warned] == [__file__]
    assert made.attrs["completeness_gap"] > 0.05


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
