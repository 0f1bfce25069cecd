"""Lesson 9."""

from functools import lru_cache

import workbench as wb
from workbench.course import fixtures


@lru_cache
def scored():
    model, pairs = fixtures.model(), fixtures.pairs("ioi", 64)
    return wb.score_edges(model, pairs, value=wb.counterfactual_values(model, pairs), progress=False)


def swapped(n):
    return wb.find_circuit(scored().sel(ablation="swap", drop=True), n_edges=n)


@lru_cache
def kept(split="heldout"):
    model, pairs = fixtures.model(), fixtures.pairs("ioi", 64, split=split)
    value = wb.counterfactual_values(model, pairs)
    found = wb.evaluate(swapped(5), model, pairs, value=value, checks=(), progress=False).faithfulness
    return {kind: float(found.sel(ablation=kind)[0]) for kind in ("swap", "abc")}


CASES = {
    "9.1": (
        lambda: {"low": 0.2, "high": 0.6},
        [
            ({"low": 0.0, "high": 1.0}, "nearly nothing can lose"),
            ({"low": 0.9, "high": 0.5}, "'low' is not below"),
            ({"low": 40, "high": 60}, "between -1 and 2"),
            (0.5, "a dict with the keys"),
        ],
    ),
    "9.2": (
        kept,
        [
            (lambda: {"swap": kept()["abc"], "abc": kept()["swap"]}, "exchanged"),
            (lambda: kept("train"), "found on"),
            (lambda: {"swap": kept()["swap"], "abc": kept()["swap"]}, "both are against `swap`"),
            (lambda: {"swap": kept()["swap"], "abc": 0.5}, "'abc' is not that"),
        ],
    ),
    "9.3": (
        lambda: ["a2.6", "a3.2"],
        [(["a3.7"], "against swap and"), (["a0.1", "a3.2"], "a0.1 takes"), (["a3.2"], "at least one is missing")],
    ),
    "9.4": (
        lambda: wb.find_circuit(scored(), n_edges=150),
        [
            (lambda: swapped(5), "against abc its faithfulness"),
            (lambda: swapped(120), "against abc its faithfulness"),
            (lambda: wb.Circuit.full(fixtures.model()), "150 are allowed"),
            ("a3.7", "a circuit is wanted"),
        ],
    ),
}  # fmt: skip
