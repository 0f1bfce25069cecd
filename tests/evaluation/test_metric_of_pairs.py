"""Without `metric=`, every function measures what the prompts ask for: greater-than compares probabilities."""

from functools import cache

import pytest

import workbench as wb


@cache
def asked():
    model = wb.load_model("tiny")
    pairs = wb.load_task("greater_than", model, n=3)
    return model, pairs, wb.Circuit.of(wb.Graph.of(model), ["input->m0", "m0->logits", "input->logits"])


CALLS = {
    "effects": lambda m, p, c, v: wb.effects(m, p, sites=["z[0.1]"], value=v),
    "path_effects": lambda m, p, c, v: wb.path_effects(m, p, paths=["a0.1->logits"], value=v, mlps="frozen"),
    "score_edges": lambda m, p, c, v: wb.score_edges(m, p, value=v, progress=False),
    "score_nodes": lambda m, p, c, v: wb.score_nodes(m, p, value=v, progress=False),
    "evaluate": lambda m, p, c, v: wb.evaluate(c, m, p, value=v, checks=(), progress=False),
    "minimality": lambda m, p, c, v: wb.minimality(c, m, p, value=v),
    "circuit_tests": lambda m, p, c, v: wb.circuit_tests(c, m, p, value=v, tests=["sufficiency"], draws=20),
    "faithfulness_curve": lambda m, p, c, v: wb.faithfulness_curve(
        wb.score_edges(m, p, value=v, progress=False), m, p, value=v, sizes=[0.5], progress=False
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_metric_is_that_of_the_pairs(name):
    model, pairs, circuit = asked()
    assert pairs.metric == "prob_diff"
    assert CALLS[name](model, pairs, circuit, wb.zero()).attrs["metric"] == "prob_diff"
