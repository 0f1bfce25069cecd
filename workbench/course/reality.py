"""Checkers of lesson 8: what speaks for a circuit and what against it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.course import fixtures
from workbench.course.exercises import Wrong, exercise, fields, names, number, one_name
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.values import zero
from workbench.evaluation.evaluate import evaluate
from workbench.experiment import PairsInModel
from workbench.interventions.effects import effects
from workbench.planted_models.pairs import planted_pairs
from workbench.planted_models.planted import planted
from workbench.sites import Edge, Node, grid

CLAIMED = ("input->a0.2<k>", "a0.2->logits", "input->a1.1<v>", "a1.1->logits")
"""Of `planted("backup-negative")`: faithful on every prompt, and not what the model works by."""
N, SMALL = 64, 32


@lru_cache(maxsize=1)
def _circuit() -> Circuit:
    """The circuit of `tiny` that the lesson judges."""
    train = fixtures.data("ioi", SMALL)
    scores = score_edges(train.model, train.pairs, value=train.value("corrupt"), progress=False)
    # As the lesson does: the edges that support the behaviour, which are more than the model needs.
    return find_circuit(scores, n_edges=40, by="signed")


@lru_cache(maxsize=4)
def _of_tiny(split: str, *checks: str) -> xr.Dataset:
    """That circuit on the prompts of a split."""
    data = fixtures.data("ioi", SMALL, split=split)
    value = data.value("corrupt")
    result = evaluate(_circuit(), data.model, data.pairs, value=value, checks=checks, progress=False)
    return result.isel(circuit=0)


@lru_cache(maxsize=1)
def _of_backup() -> xr.Dataset:
    """The main head's three edges in a model with a backup head."""
    model = planted("backup", n=N)
    main = model.heads["main"]
    edges = [f"input->{main}<k>", f"input->{main}<v>", f"{main}->logits"]
    circuit = Circuit.of(Graph.of(model.model), edges)
    checks = ("complement", "completeness")
    pairs = planted_pairs(model)
    return evaluate(circuit, model.model, pairs, value=zero(), checks=checks, progress=False).isel(circuit=0)


@dataclass(frozen=True)
class Claim:
    """The claimed circuit on some prompts.

    Attributes:
        evaluation: its faithfulness and complement.
        heads: for each head of the model the mean effect of giving it the corrupt run's output.
    """

    evaluation: xr.Dataset
    heads: dict[str, float]


@lru_cache(maxsize=2)
def _of_claim(split: Literal["train", "heldout"]) -> Claim:
    planted_model = planted("backup-negative", n=N, split=split)
    model, pairs = planted_model.model, planted_pairs(planted_model)
    value = PairsInModel.of(model, pairs).value("corrupt")
    circuit = Circuit.of(Graph.of(model), CLAIMED)
    evaluation = evaluate(circuit, model, pairs, value=value, checks="complement", progress=False)
    table = effects(model, pairs, sites=grid("z", model), value=value, progress=False).mean("example")
    by_head = dict(zip(fixtures.heads(model), table.values.ravel().tolist(), strict=True))
    return Claim(evaluation.isel(circuit=0), by_head)


def _numbers(answer: Any, keys: tuple[str, ...]) -> dict[str, float]:
    if isinstance(answer, str | bool):
        raise Wrong("that is a verdict. Give the numbers that it rests on.")
    return {name: number(value) for name, value in fields(answer, keys).items()}


def _near(value: float, right: float, within: float = 0.005) -> bool:
    return abs(value - right) <= within * max(1.0, abs(right))


@exercise(
    "8.1",
    "On prompts it has not seen",
    "easy",
    "a dict of 'faithfulness', 'low' and 'high' on the held-out prompts.",
)
def _heldout(answer: Any) -> str:
    values = _numbers(answer, ("faithfulness", "low", "high"))
    train, held = _of_tiny("train"), _of_tiny("heldout")
    # The two sets of prompts give similar scores: three digits are needed to tell them apart.
    if all(_near(values[name], float(train[name]), 0.001) for name in values):
        raise Wrong("these are the prompts that the circuit was found on.")
    if _near(values["faithfulness"], float(held.mean_of_ratios), 0.001):
        raise Wrong("this is the mean of each prompt's ratio; faithfulness is the ratio of the means.")
    for name, value in values.items():
        if not _near(value, float(held[name]), 0.001):
            raise Wrong(
                f"{name!r} is not that of the {SMALL} held-out prompts with activations of the corrupt run "
                "outside the circuit."
            )
    return (
        "The interval lies above 1: the circuit leaves out edges that work against the answer. Above 1 is "
        "not better than 1."
    )


@exercise("8.2", "What it does not need", "medium", "names of components, as {'a0.1', 'm3'}.")
def _unneeded(answer: Any) -> str:
    held = _of_tiny("heldout", "minimality")
    right = {name.strip() for name in str(held.unneeded.values).split(",")}
    inside = sorted({edge.writer for edge in _circuit().edge_list if edge.writer != "input"})
    chosen = names(answer, inside, "component of the circuit")
    if chosen == right:
        return (
            "Taking them out of the circuit changes it by less than 1 %, so that they are in it is no "
            "evidence for them."
        )
    if chosen - right:
        raise Wrong(f"{sorted(chosen - right)[0]} is missed by more than 1 % when it goes.")
    raise Wrong("those are not needed, and they are not the only ones.")


@exercise(
    "8.3",
    "Two ways to the answer",
    "medium",
    "a dict of 'complement' and 'incompleteness' of the three edges, zero outside them.",
)
def _backup(answer: Any) -> str:
    values, right = _numbers(answer, ("complement", "incompleteness")), _of_backup()
    if _near(values["complement"], float(right.faithfulness), 0.0001):
        raise Wrong("that is the faithfulness of the circuit itself; the complement is everything else.")
    for name, value in values.items():
        if not _near(value, float(right[name])):
            raise Wrong(
                f"{name!r} is off. Evaluate the three edges on the {N} prompts, with wb.zero() for what is "
                "outside."
            )
    return "Faithful, and half of the story: what is left without the circuit answers just as well."


@exercise(
    "8.4",
    "Evidence against a circuit",
    "hard",
    "a dict of 'faithfulness', 'low', 'high', 'complement', 'head' and 'effect'.",
)
def _evidence(answer: Any) -> str:
    values = _numbers(answer, ("faithfulness", "low", "high", "complement", "effect"))
    held, train = _of_claim("heldout"), _of_claim("train")
    scores = ("faithfulness", "low", "high", "complement")
    for name in scores:
        if not _near(values[name], float(held.evaluation[name]), 0.002):
            raise Wrong(
                f"{name!r} is not that of the claimed circuit on {N} held-out prompts of "
                "planted('backup-negative')."
            )
    # Both splits may lie within the tolerance; the nearer one is the one that was measured.
    distance = {}
    for split, claim in (("heldout", held), ("train", train)):
        distance[split] = sum(abs(values[name] - float(claim.evaluation[name])) for name in scores)
    if distance["train"] < distance["heldout"]:
        raise Wrong("these are the scores on the prompts of the other split; `wired_pairs` are held out.")
    head = one_name(fields(answer, ["head"])["head"], [*held.heads], "head of this model")
    edges = [Edge.parse(edge) for edge in CLAIMED]
    if any(head in (edge.writer, str(Node.parse(edge.reader).component)) for edge in edges):
        raise Wrong(
            f"{head} is in the circuit. What the claim says of heads outside it is what can be refuted."
        )
    effect = held.heads[head]
    if not _near(values["effect"], effect, 0.001):
        raise Wrong(
            f"'effect' is not that of writing the corrupt run's z at {head}, in logits, averaged over the "
            "held-out prompts."
        )
    if abs(effect) < 0.1:
        raise Wrong(f"ablating {head} does nothing, as the claim predicts: no evidence against it.")
    return (
        "A circuit that is faithful on every prompt, and a head outside it that decides about the size of "
        "the answer."
    )
