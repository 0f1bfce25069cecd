"""Checkers of lesson 8: what speaks for a circuit and what against it."""

from functools import lru_cache
from typing import Any, Literal

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.course import fixtures as bench
from workbench.course.exercises import Wrong, exercise, fields, names, number, one_name
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.capture import capture_pairs
from workbench.engine.values import from_store, zero
from workbench.evaluation.evaluate import evaluate
from workbench.interventions.effects import effects
from workbench.planted_models.pairs import planted_pairs
from workbench.planted_models.planted import planted
from workbench.sites import Edge, Node, grid

CLAIMED = ("input->a0.2<k>", "a0.2->logits", "input->a1.1<v>", "a1.1->logits")
"""Of `planted("backup-negative")`: faithful on every prompt, and not what the model works by."""
N, SMALL = 64, 32


@lru_cache(maxsize=1)
def _found() -> Circuit:
    _, corrupt = bench.stores("ioi", SMALL)
    scores = score_edges(bench.model(), bench.pairs("ioi", SMALL), value=from_store(corrupt), progress=False)
    return find_circuit(scores, n_edges=40)


@lru_cache(maxsize=4)
def _of_tiny(split: str, *checks: str) -> Any:
    _, corrupt = bench.stores("ioi", SMALL, split=split)
    pairs = bench.pairs("ioi", SMALL, split=split)
    return evaluate(
        _found(), bench.model(), pairs, value=from_store(corrupt), checks=checks, progress=False
    ).isel(circuit=0)


@lru_cache(maxsize=1)
def _of_backup() -> Any:
    made = planted("backup", n=N)
    main = made.heads["main"]
    circuit = Circuit.of(Graph.of(made.model), [f"input->{main}<k>", f"input->{main}<v>", f"{main}->logits"])
    checks = ("complement", "completeness")
    return evaluate(
        circuit, made.model, planted_pairs(made), value=zero(), checks=checks, progress=False
    ).isel(circuit=0)


@lru_cache(maxsize=2)
def _of_claim(split: Literal["train", "heldout"]) -> tuple[Any, dict[str, float]]:
    """The claimed circuit on some prompts, and the effect of ablating each head."""
    made = planted("backup-negative", n=N, split=split)
    pairs = planted_pairs(made)
    _, corrupt = capture_pairs(made.model, pairs, progress=False)
    circuit = Circuit.of(Graph.of(made.model), CLAIMED)
    judged = evaluate(
        circuit, made.model, pairs, value=from_store(corrupt), checks="complement", progress=False
    ).isel(circuit=0)
    heads = effects(
        made.model, pairs, sites=grid("z", made.model), value=from_store(corrupt), progress=False
    ).mean("example")
    each = {
        f"a{layer}.{head}": float(heads[layer, head])
        for layer in range(heads.shape[0])
        for head in range(heads.shape[1])
    }
    return judged, each


def _numbers(answer: Any, wanted: tuple[str, ...]) -> dict[str, float]:
    if isinstance(answer, str | bool):
        raise Wrong("that is a verdict. Give the numbers that it rests on.")
    return {name: number(given) for name, given in fields(answer, wanted).items()}


def _near(given: float, right: float, within: float = 0.005) -> bool:
    return abs(given - right) <= within * max(1.0, abs(right))


@exercise(
    "8.1",
    "On prompts it has not seen",
    "easy",
    "a dict of 'faithfulness', 'low' and 'high' on the held-out prompts.",
)
def _heldout(answer: Any) -> str:
    given = _numbers(answer, ("faithfulness", "low", "high"))
    train, held = _of_tiny("train"), _of_tiny("heldout")
    if all(_near(given[name], float(train[name]), 0.001) for name in given):
        raise Wrong("these are the prompts that the circuit was found on.")
    if _near(given["faithfulness"], float(held.mean_of_ratios), 0.001):
        raise Wrong("this is the mean of each prompt's ratio; faithfulness is the ratio of the means.")
    for name, value in given.items():
        if not _near(value, float(held[name]), 0.001):
            raise Wrong(
                f"{name!r} is not that of the {SMALL} held-out prompts with the corrupt run as the other value."
            )
    return "The interval lies above 1: the circuit leaves out edges that work against the answer. Above 1 is not better than 1."


@exercise("8.2", "What it does not need", "medium", "names of components, as {'a0.1', 'm3'}.")
def _unneeded(answer: Any) -> str:
    held = _of_tiny("heldout", "minimality")
    right = {name.strip() for name in str(held.unneeded.values).split(",")}
    inside = sorted({edge.writer for edge in _found().edge_list if edge.writer != "input"})
    given = names(answer, inside, "component of the circuit")
    if given == right:
        return "Taking them out of the circuit changes it by less than 1 %, so that they are in it is no evidence for them."
    if given - right:
        raise Wrong(f"{sorted(given - right)[0]} is missed by more than 1 % when it goes.")
    raise Wrong("those are not needed, and they are not the only ones.")


@exercise(
    "8.3",
    "Two ways to the answer",
    "medium",
    "a dict of 'complement' and 'incompleteness' of the three edges, zeros written.",
)
def _backup(answer: Any) -> str:
    given, right = _numbers(answer, ("complement", "incompleteness")), _of_backup()
    if _near(given["complement"], float(right.faithfulness), 0.0001):
        raise Wrong("that is the faithfulness of the circuit itself; the complement is everything else.")
    for name, value in given.items():
        if not _near(value, float(right[name])):
            raise Wrong(
                f"{name!r} is off. Evaluate the three edges on the {N} prompts, with wb.zero() as the other value."
            )
    return "Faithful, and half of the story: what is left without the circuit answers just as well."


@exercise(
    "8.4",
    "Evidence against a circuit",
    "hard",
    "a dict of 'faithfulness', 'low', 'high', 'complement', 'head' and 'effect'.",
)
def _evidence(answer: Any) -> str:
    given = _numbers(answer, ("faithfulness", "low", "high", "complement", "effect"))
    (judged, heads), (train, _) = _of_claim("heldout"), _of_claim("train")
    scores = ("faithfulness", "low", "high", "complement")
    for name in scores:
        if not _near(given[name], float(judged[name]), 0.002):
            raise Wrong(
                f"{name!r} is not that of the claimed circuit on {N} held-out prompts of planted('backup-negative')."
            )
    away = [sum(abs(given[name] - float(found[name])) for name in scores) for found in (judged, train)]
    if away[1] < away[0]:
        raise Wrong("these are the scores on the prompts of the other split; `wired_pairs` are held out.")
    head = one_name(fields(answer, ["head"])["head"], [*heads], "head of this model")
    if any(
        head in (edge.writer, str(Node.parse(edge.reader).component)) for edge in map(Edge.parse, CLAIMED)
    ):
        raise Wrong(
            f"{head} is in the circuit. What the claim says of heads outside it is what can be refuted."
        )
    if not _near(given["effect"], heads[head], 0.001):
        raise Wrong(
            f"'effect' is not that of writing the corrupt run's z at {head}, in logits, averaged over the held-out prompts."
        )
    if abs(heads[head]) < 0.1:
        raise Wrong(f"ablating {head} does nothing, as the claim predicts: no evidence against it.")
    return "A circuit that is faithful on every prompt, and a head outside it that decides about the size of the answer."
