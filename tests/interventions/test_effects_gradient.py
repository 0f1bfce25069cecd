"""The gradient method equals central finite differences in float64.

`add(epsilon * direction)` moves a site along (e(a) - a); the slope of the metric there is what the method returns.
Transformers computes Llama's RMSNorm in float32 whatever the model's dtype, so that a difference of metrics carries noise
of about 1e-6 there: that family takes a larger step and is compared more loosely.
"""

import pytest
import torch
from closeness import close
from families import (
    FAMILIES,
    NATIVES,
    logit_difference,
    logit_size,
    model_of,
    native,
    pairs_and_stores,
)

from workbench.engine.capture import capture_pairs
from workbench.engine.run import run
from workbench.engine.values import add, constant, from_store, project, scale, zero
from workbench.errors import MetricError
from workbench.interventions.effects import effects
from workbench.sites import Shape, Site, grid

EPSILON = {"llama": 3e-3}
TOLERANCE = {"llama": 5e-4}


def slopes(model, pairs, sites, directions, epsilon):
    """[example, site]: (m(a + e d) - m(a - e d)) / 2e for each site and its direction [example, ...]."""
    columns = []
    for site, direction in zip(sites, directions, strict=True):
        ends = [
            run(model, pairs.clean, edits={site: add(sign * epsilon * direction)}).logits for sign in (1, -1)
        ]
        columns.append((logit_difference(ends[0], pairs) - logit_difference(ends[1], pairs)) / (2 * epsilon))
    return torch.stack(columns, 1)


def part(store, site):
    """[example, ...]: what the store holds at a site."""
    whole = store[site.kind, site.layer].padded()
    if site.kind == "pattern":
        return whole if site.head is None else whole[:, site.head]
    whole = (
        whole
        if site.unit is None
        else whole[..., site.unit]
        if site.kind.startswith("mlp_p")
        else whole[:, :, site.unit]
    )
    return whole if site.pos is None else whole[:, site.pos]


def sites_of(model):
    shape = Shape.of(model)
    sites = [
        Site("z", 0, 1),
        Site("z", 1, 3),
        Site("z", 0, 2, pos=2),
        Site("resid_pre", 1),
        Site("resid_pre", 0, pos=2),
    ]
    sites += [
        Site("pattern", 1, 0),
        Site("pattern", 0, 3),
        Site("q", 1, 2),
        Site("k", 1, 1),
        Site("v", 0, 1),
        Site("v", 1, 0),
    ]
    sites += [Site("attn_out", 0), Site("embed"), Site("resid_post", 0, pos=5)]
    sites += (
        []
        if shape.attn_only
        else [Site("mlp_post", 0), Site("mlp_post", 0, neuron=3), Site("mlp_out", 1), Site("mlp_pre", 0)]
    )
    sites += [] if shape.attn_only or shape.parallel else [Site("resid_mid", 0)]
    return sites


@pytest.mark.parametrize("family", FAMILIES + NATIVES)
def test_the_gradient_method_equals_finite_differences_towards_the_other_run(family):
    model = model_of(family, torch.float64)
    sites = sites_of(model)
    kinds = list(dict.fromkeys(site.kind for site in sites))
    pairs, _, _ = pairs_and_stores(family, dtype=torch.float64)
    clean, corrupt = capture_pairs(model, pairs, sites=kinds)
    got = effects(model, pairs, sites=sites, value=from_store(corrupt), method="gradient")
    assert got.dtype == "float64"
    directions = [part(corrupt, site) - part(clean, site) for site in sites]
    expected = slopes(model, pairs, sites, directions, EPSILON.get(family, 1e-4))
    size = float(expected.abs().max())
    assert size > 0.05
    assert close(got, expected, tolerance=TOLERANCE.get(family, 1e-6), scale=max(size, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_ablations_points_from_the_current_activation_to_the_value(family):
    model = model_of(family, torch.float64)
    pairs, clean, corrupt = pairs_and_stores(family, dtype=torch.float64)
    sites = [Site("z", 0, 1), Site("z", 1, 2, pos=5), Site("mlp_out", 0)]
    current = [part(clean, site) for site in sites]
    basis = torch.eye(8, dtype=torch.float64)[:, :2] + 0.1
    cases = {
        "zero": (zero(), [-each for each in current]),
        "constant": (constant(0.3), [0.3 - each for each in current]),
        "scale": (scale(1.5), [0.5 * each for each in current]),
        "add": (add(0.2), [torch.full_like(each, 0.2) for each in current]),
        "project": (project(basis, from_store(corrupt)), None),
    }
    for name, (value, directions) in cases.items():
        asked = sites if name != "project" else sites[:2]
        if directions is None:
            onto = torch.linalg.qr(basis)[0]
            onto = onto @ onto.T
            directions = [(part(corrupt, site) - part(clean, site)) @ onto for site in asked]
        got = effects(model, pairs, sites=asked, value=value, method="gradient")
        expected = slopes(model, pairs, asked, directions, EPSILON.get(family, 1e-4))
        assert close(got, expected, tolerance=TOLERANCE.get(family, 1e-6), scale=logit_size(model, pairs)), (
            name
        )


def test_a_query_that_sees_later_keys_has_their_part_of_the_gradient_too():
    """Without a causal mask, scaling a head's pattern is still scaling its z: no key of a query is left out."""
    model = native(attention_dir="bidirectional")
    pairs, _, _ = pairs_and_stores("native")
    sites = [Site("pattern", 0, 2), Site("z", 0, 2)]
    got = effects(model, pairs, sites=sites, value=scale(2.0), method="gradient")
    assert close(got[:, 0], got[:, 1], scale=logit_size(model, pairs))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_step_has_equal_exact_and_first_order_effects(family):
    model = model_of(family, torch.float64)
    pairs, _, _ = pairs_and_stores(family, dtype=torch.float64)
    sites = grid("z", model, pos="each")
    value = add(1e-4 * torch.linspace(-1, 1, 8, dtype=torch.float64))
    exact, first_order = (
        effects(model, pairs, sites=sites, value=value, method=method) for method in ("exact", "gradient")
    )
    assert close(
        exact, first_order, tolerance=2e-6 if family == "llama" else 1e-7, scale=logit_size(model, pairs)
    )
    assert float(abs(exact).max()) > 1e-5


@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff", "nll", "kl"])
def test_the_gradient_follows_the_metric(metric):
    model = model_of("gpt2", torch.float64)
    pairs, _, _ = pairs_and_stores("gpt2", dtype=torch.float64)
    direction = 1e-5 * torch.linspace(-1, 1, 8, dtype=torch.float64)
    options = {
        "sites": grid("z", model, layer=1),
        "value": add(direction),
        "metric": metric,
        "base": "corrupt",
    }
    exact, first_order = (effects(model, pairs, **options, method=method) for method in ("exact", "gradient"))
    assert close(exact, first_order, scale=logit_size(model, pairs))
    assert float(abs(exact).max()) > 1e-7


def test_the_divergence_from_the_clean_run_has_no_gradient_there():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    with pytest.raises(MetricError) as error:
        effects(
            model, pairs, sites=grid("z", model), value=from_store(corrupt), metric="kl", method="gradient"
        )
    assert str(error.value) == (
        "The metric 'kl' compares with the clean run, so its gradient there is zero and every score would be noise. "
        "Use logit_diff, prob_diff or nll, or the exact method."
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_run_leaves_no_trace_on_the_model(family):
    model = model_of(family)
    pairs, _, corrupt = pairs_and_stores(family)
    with torch.no_grad():
        before = model(pairs.clean.tokens)
    effects(model, pairs, sites=grid("z", model), value=from_store(corrupt), method="gradient")
    with torch.no_grad():
        assert torch.equal(model(pairs.clean.tokens), before)
    assert all(parameter.grad is None for parameter in model.parameters())
