"""Checkers of lesson 12: the checkpoints of `tiny`, and the circuit of its end measured at them."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.circuit.circuit import Circuit
from workbench.course import fixtures
from workbench.course.exercises import Wrong, exercise, explain, fields, listed, number, table, whole_number
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.capture import capture_pairs
from workbench.engine.values import from_store
from workbench.evaluation.evaluate import evaluate
from workbench.models import embedded

BEHAVIOURS = ("agreement", "capitals", "ioi", "induction")
LEARNT = 0.7
EDGES = 40
AT = (1500, 1850, 2250)


@lru_cache(maxsize=64)
def _accuracy(task: str, step: int) -> float:
    """Share of 64 prompts whose answer is the first choice of a checkpoint."""
    pairs = fixtures.pairs(task, 64)
    with torch.no_grad():
        logits = fixtures.model(f"tiny@{step}")(pairs.clean.tokens)[torch.arange(64), pairs.clean.lengths - 1]
    return float((logits.argmax(-1) == pairs.answers[:, 0, 0]).float().mean())


@lru_cache(maxsize=4)
def _circuit(name: str) -> Circuit:
    """The 40 best edges for induction."""
    pairs, model = fixtures.pairs("induction", 32), fixtures.model(name)
    _, corrupt = capture_pairs(model, pairs, progress=False)
    scores = score_edges(model, pairs, value=from_store(corrupt), method="eap-ig-inputs", progress=False)
    return find_circuit(scores, n_edges=EDGES)


@lru_cache(maxsize=1)
def _measured() -> dict[str, np.ndarray]:
    """[step]: faithfulness and logit difference of the final circuit at each checkpoint, held-out prompts."""
    scores: dict[str, list[float]] = {"faithfulness": [], "m_circuit": []}
    pairs = fixtures.pairs("induction", 32, split="heldout")
    for step in AT:
        model = fixtures.model(f"tiny@{step}")
        value = from_store(capture_pairs(model, pairs, progress=False)[1])
        result = evaluate(_circuit("tiny"), model, pairs, value=value, checks=(), progress=False)
        for name, values in scores.items():
            values.append(float(result[name].mean()))
    return {name: np.array(values) for name, values in scores.items()}


@exercise("12.1", "When is it learnt", "easy", "a dict from each of the four behaviours to a training step.")
def _when(answer: Any) -> str:
    steps = embedded.steps("tiny")
    for task, value in fields(answer, BEHAVIOURS).items():
        step = whole_number(value)
        if step not in steps:
            raise Wrong(f"there is no checkpoint of step {step}. There are {', '.join(map(str, steps))}.")
        if _accuracy(task, step) < LEARNT:
            raise Wrong(f"at step {step} the accuracy of {task} is {_accuracy(task, step):.2f}.")
        before = steps[max(0, steps.index(step) - 1)]
        if _accuracy(task, before) >= LEARNT and before != step:
            raise Wrong(f"{task} is above {LEARNT} at {step}, and at an earlier checkpoint too.")
    return (
        "First comes what needs the features of one word; what compares words by their places, or copies "
        "them, comes later."
    )


@exercise(
    "12.2",
    "The end's circuit, earlier",
    "medium",
    "an array [step] of three faithfulnesses, at the steps 1500, 1850 and 2250.",
)
def _earlier(answer: Any) -> str:
    right = _measured()["faithfulness"]
    values = table(answer, (len(AT),), "step")
    # Scores are found from gradients, whose last digits may swap an edge of the forty on another processor.
    if np.allclose(values, right, atol=5e-3):
        return "The edges carry a part of the behaviour long before the behaviour is there."
    in_logits = (
        "these are logit differences of the circuit. Faithfulness divides by what the whole checkpoint does."
    )
    explain(values, [(_measured()["m_circuit"], in_logits)], atol=0.05)
    if np.allclose(values, 1, atol=0.1):
        raise Wrong(
            "all are near 1, as with the final model. Run the circuit in each checkpoint, with its own "
            "corrupt activations."
        )
    off = np.flatnonzero(~np.isclose(values, right, atol=5e-3))
    raise Wrong(
        f"{listed('step', [AT[i] for i in off])} off. Take the circuit of {EDGES} edges found in the final "
        "model, the 32 held-out prompts, and corrupt activations of the checkpoint."
    )


@exercise("12.3", "Another circuit before", "medium", "a number between 0 and 1.")
def _overlap(answer: Any) -> str:
    early, late = _circuit("tiny@1850").edges, _circuit("tiny").edges
    both, either = int((early & late).sum()), int((early | late).sum())
    value = number(answer)
    if np.isclose(value, both / either, atol=5e-3):
        return (
            f"Of the {int(late.sum())} edges of the end, {both} are there; the others came later or took "
            "over."
        )
    of_one = (
        "this is the share of one circuit's edges. The Jaccard overlap divides by the edges that are in "
        "either of them."
    )
    mistakes = [
        (
            both,
            "this is the number of common edges. Divide it by the number of edges that are in either "
            "circuit.",
        ),
        (both / EDGES, of_one),
        (both / int(early.sum()), of_one),
        (both / int(late.sum()), of_one),
    ]
    explain(value, mistakes, atol=5e-3)
    if not 0 <= value <= 1:
        raise Wrong(f"{value:g} is not a share.")
    raise Wrong(
        f"the overlap is a different one. Take {EDGES} edges for both, scored on the same 32 prompts."
    )
