"""Lesson 8."""

from functools import lru_cache

import workbench as wb
from workbench.course import fixtures


@lru_cache
def tiny(split):
    model, train = fixtures.model(), fixtures.pairs("ioi", 32)
    _, corrupt = wb.capture_pairs(model, train, progress=False)
    circuit = wb.find_circuit(
        wb.score_edges(model, train, value=wb.from_store(corrupt), progress=False), n_edges=40, by="signed"
    )
    pairs = fixtures.pairs("ioi", 32, split=split)
    _, other = wb.capture_pairs(model, pairs, progress=False)
    # Of the prompts that it was found on, the faithfulness alone is asked.
    checks = "minimality" if split == "heldout" else ()
    return wb.evaluate(circuit, model, pairs, value=wb.from_store(other), checks=checks, progress=False).isel(
        circuit=0
    )


def numbers(result, *names):
    return {name: float(result[name]) for name in names}


@lru_cache
def three():
    made = wb.planted("backup", n=64)
    head = made.heads["main"]
    circuit = wb.Circuit.of(
        wb.Graph.of(made.model), [f"input->{head}<k>", f"input->{head}<v>", f"{head}->logits"]
    )
    return wb.evaluate(circuit, made.model, wb.planted_pairs(made), value=wb.zero(), progress=False).isel(
        circuit=0
    )


@lru_cache
def claim(split="heldout"):
    made = wb.planted("backup-negative", n=64, split=split)
    pairs = wb.planted_pairs(made)
    _, other = wb.capture_pairs(made.model, pairs, progress=False)
    edges = ["input->a0.2<k>", "a0.2->logits", "input->a1.1<v>", "a1.1->logits"]
    value = wb.from_store(other)
    result = wb.evaluate(
        wb.Circuit.of(wb.Graph.of(made.model), edges),
        made.model,
        pairs,
        value=value,
        checks="complement",
        progress=False,
    )
    effect = wb.effects(
        made.model, pairs, sites=[f"z[{made.heads['negative'][1:]}]", "z[0.0]"], value=value, progress=False
    ).mean("example")
    return (
        numbers(result.isel(circuit=0), "faithfulness", "low", "high", "complement"),
        made.heads["negative"],
        [*map(float, effect)],
    )


def evidence(**other):
    values, head, (effect, _) = claim()
    return {**values, "head": head, "effect": effect, **other}


INTERVAL = ("faithfulness", "low", "high")
CASES = {
    "8.1": (
        lambda: numbers(tiny("heldout"), *INTERVAL),
        [
            (lambda: numbers(tiny("train"), *INTERVAL), "prompts that the circuit was found on"),
            (lambda: {**numbers(tiny("heldout"), *INTERVAL), "low": 0.5}, "'low' is not that"),
            (lambda: {**numbers(tiny("heldout"), *INTERVAL), "faithfulness": float(tiny("heldout").mean_of_ratios)}, "mean of each prompt's ratio"),
            ({"faithfulness": 1.2}, "without a value: 'low', 'high'"),
        ],
    ),
    "8.2": (
        lambda: {name.strip() for name in str(tiny("heldout").unneeded.values).split(",")},
        [
            ({"a3.7"}, "is missed by more than"),
            (lambda: {str(tiny("heldout").unneeded.values).split(",")[0]}, "not the only ones"),
            ({"a9.9"}, "is no component of the circuit"),
        ],
    ),
    "8.3": (
        lambda: numbers(three(), "complement", "incompleteness"),
        [
            (lambda: {"complement": float(three().faithfulness), "incompleteness": float(three().incompleteness)}, "circuit itself"),
            ({"complement": 0.0, "incompleteness": 0.0}, "'complement' is off"),
            (lambda: {**numbers(three(), "complement"), "incompleteness": 0.1}, "'incompleteness' is off"),
        ],
    ),
    "8.4": (
        evidence,
        [
            ("wrong", "a verdict"),
            (False, "a verdict"),
            (lambda: evidence(head="a0.2"), "is in the circuit"),
            (lambda: evidence(head="a0.0", effect=claim()[2][1]), "as the claim predicts"),
            (lambda: evidence(effect=0.0), "'effect' is not that"),
            (lambda: evidence(effect=claim("train")[2][0]), "'effect' is not that"),
            (lambda: evidence(**claim("train")[0]), "the other split"),
            (lambda: evidence(faithfulness=1.0, low=0.99, high=1.01), "'faithfulness' is not that"),
            (lambda: evidence(complement=0.0), "'complement' is not that"),
        ],
    ),
}  # fmt: skip
