"""Metrics that compare examples get all of them at once, or the call is refused; others may be cut into slices."""

from typing import Any

import numpy as np
import pytest
import torch
from closeness import close
from families import build, make_pairs, model_of

import workbench as wb
from workbench.errors import MetricError
from workbench.metrics.metric import Metric

# The last runs on hooks alone.
FAMILIES = ["gpt2", *(pytest.param(family, marks=pytest.mark.slow) for family in ("llama", "gemma2"))]
SMALL = 60_000  # bytes: a few prompts at a time
PAIRS = make_pairs((6,) * 12)


def centred(logits: torch.Tensor) -> torch.Tensor:
    """How far an example's logit is from the mean over examples."""
    at_end = logits[:, -1, 5]
    return at_end - at_end.mean()


def with_labels(logits: torch.Tensor) -> torch.Tensor:
    """Each example's logit of a token of its own, listed outside."""
    return logits[:, -1].gather(1, torch.arange(len(PAIRS))[:, None])[:, 0]


def own_row(logits: torch.Tensor) -> torch.Tensor:
    """A function that looks at each example alone, and does not say so."""
    return logits[:, -1, 5] - logits[:, -1, 6]


def expected(model: Any, function: Any) -> torch.Tensor:
    """[example]: the effect of zero ablation of z[1.2], all examples in one run of the model as it is."""

    def ablate(z, hook):
        z = z.clone()
        z[:, :, 2] = 0
        return z

    with torch.no_grad():
        edited = model.run_with_hooks(PAIRS.clean.tokens, fwd_hooks=[("blocks.1.attn.hook_z", ablate)])
        return function(edited) - function(model(PAIRS.clean.tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_examples_at_once_or_a_refusal(family):
    model = model_of(family)
    # Two are found out by a probe, one of which fails on a part of the examples; the third says it.
    declared = wb.metric(centred, across_examples=True)
    for function, given in ((centred, centred), (with_labels, with_labels), (centred, declared)):
        asked: dict[str, Any] = {"value": wb.zero(), "metric": given, "progress": False}
        got = wb.effects(model, PAIRS, sites="z[1.2]", **asked)
        assert close(got[:, 0], expected(model, function), tolerance=1e-4)
        graph = wb.Graph.of(model)
        without = wb.Circuit.of(graph, graph.exists & (np.array(graph.writers) != "a1.2")[:, None])
        asked["checks"] = ()
        result = wb.evaluate(without, model, PAIRS, **asked)
        change = result["m_circuit"][0] - result["m_full"]
        assert close(change, expected(model, function), tolerance=1e-4)
        for call in (
            lambda asked=asked, without=without: wb.evaluate(without, model, PAIRS, budget=SMALL, **asked),
            lambda given=given: wb.effects(
                model, PAIRS, sites="z[1.2]", value=wb.zero(), metric=given, budget=SMALL, progress=False
            ),
        ):
            with pytest.raises(
                MetricError, match=r"needs all 12 examples at once .* Raise budget= \(bytes\)"
            ):
                call()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_function_that_looks_at_each_example_alone_is_cut_into_slices(family):
    model = model_of(family)
    asked: dict[str, Any] = {"value": wb.zero(), "metric": own_row, "progress": False}
    for method in ("exact", "gradient"):
        whole, cut = (
            wb.effects(model, PAIRS, sites=["z[1.2]", "z[0.1]"], method=method, budget=budget, **asked)
            for budget in (None, SMALL)
        )
        assert close(whole, cut, tolerance=1e-4)
    whole, cut = (
        wb.evaluate(wb.Circuit.empty(model), model, PAIRS, checks=(), budget=budget, **asked)
        for budget in (None, SMALL)
    )
    assert close(whole["m_circuit"], cut["m_circuit"], tolerance=1e-4)


def test_gradients_of_such_metrics_are_refused_example_by_example():
    """The mean over examples is the sum of one backward pass; what each has to do with it is not in it."""
    model = model_of("gpt2")
    asked: dict[str, Any] = {"value": wb.zero(), "metric": centred, "progress": False}
    for call in (
        lambda: wb.effects(model, PAIRS, sites="z[1.2]", method="gradient", **asked),
        lambda: wb.score_edges(model, PAIRS, keep=("example",), **asked),
    ):
        with pytest.raises(MetricError, match=r"'centred' compares examples, so its gradient at one of them"):
            call()
    variance: dict[str, Any] = asked | {"metric": lambda logits: centred(logits) ** 2}
    scores = wb.score_edges(model, PAIRS, method="eap", **variance)
    with pytest.raises(MetricError, match="needs all 12 examples at once"):
        wb.score_edges(model, PAIRS, method="eap", budget=SMALL, **variance)
    # The mean of the squares by finite differences: z[1.2] a little smaller in every example.
    near = wb.effects(model, PAIRS, sites="z[1.2]", value=wb.scale(1 - 1e-2), metric=variance["metric"])
    node = float(scores.sel(writer="a1.2").sum())
    assert close(node, -float(near.mean()) / 1e-2, tolerance=0.1)
    wb.learn_circuit(model, PAIRS, n_edges=20, steps=1, batch=4, **variance)


def test_a_metric_says_one_thing_about_its_examples():
    with pytest.raises(MetricError, match="rowwise or across_examples, not both"):
        Metric("both", lambda logits, pairs, reference: logits[:, 0], rowwise=True, across_examples=True)
    with pytest.raises(MetricError, match="across_examples is for functions of your own"):
        wb.metric("logit_diff", across_examples=True)
    assert wb.metric(own_row, across_examples=True).across_examples
    # Half precision, and a single example that there is nothing to compare with.
    model, one = build("llama", dtype=torch.bfloat16), PAIRS.select([0])
    wb.effects(model, one, sites="z[1.2]", value=wb.zero(), metric=own_row, budget=1, progress=False)
