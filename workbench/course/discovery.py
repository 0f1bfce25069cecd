"""Checkers of lesson 7: scores of edges and circuits, against models whose edges are known."""

from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.course import fixtures
from workbench.course.exercises import TWO_DIGITS, Wrong, called, exercise, explain, names, number, table
from workbench.discovery.scores import score_edges
from workbench.engine.capture import capture_pairs
from workbench.engine.values import from_store
from workbench.evaluation.ground_truth import edge_auroc
from workbench.planted_models.pairs import planted_pairs
from workbench.planted_models.planted import Planted, planted
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Edge
from workbench.stores.store import ActivationStore

N = 24
HIDDEN = ("backup", 5)
"""Name and seed of the model whose circuit is to be found."""


@lru_cache(maxsize=4)
def _case(name: str, seed: int = 0) -> tuple[Planted, PromptPairs, tuple[ActivationStore, ActivationStore]]:
    """A planted model, its prompts and the activations of both sides."""
    model = planted(name, seed=seed, n=N)
    pairs = planted_pairs(model)
    return model, pairs, capture_pairs(model.model, pairs, progress=False)


@lru_cache(maxsize=8)
def _scores(name: str, method: str) -> xr.DataArray:
    model, pairs, stores = _case(name)
    return score_edges(model.model, pairs, value=from_store(stores[1]), method=method, progress=False)


def _edges(name: str, seed: int = 0) -> list[str]:
    """Every edge of a model's graph."""
    return [str(edge) for edge in Circuit.full(_case(name, seed)[0].model).edge_list]


def _score(scores: xr.DataArray, edge: str) -> float:
    writer, reader = edge.split("->")
    return float(scores.sel(writer=writer, reader=reader))


@exercise(
    "7.1",
    "A ranking in one number",
    "easy",
    "a function of two arrays [edge] (scores, true or not) to one number.",
)
def _auroc(answer: Any) -> str:
    rng = np.random.default_rng(7)
    true = rng.random(60) < 0.3
    untied = rng.normal(size=60) + true
    tied = np.where(rng.random(60) < 0.6, 0.0, untied)
    # Ties are common in scores (edges that no method reaches are all 0), and easily counted wrongly.
    for scores, has_ties in ((untied, False), (tied, True)):
        right = edge_auroc(scores, true, by="signed")
        value = number(called(answer, scores, true))
        if np.isclose(value, right, atol=1e-6):
            continue
        mistakes = [
            (edge_auroc(scores, true), "you rank by magnitude. Rank by the scores as they are given."),
            (1 - right, "yours is the chance that a false edge is above a true one."),
        ]
        explain(value, mistakes, atol=1e-6)
        if has_ties:
            raise Wrong("it is right where no two scores are equal. A tie counts half.")
        raise Wrong("on sixty random scores it is off. Compare every true edge with every false one.")
    return "0.5 is a ranking at random, 1 has every true edge above every false one."


@exercise(
    "7.2",
    "EAP by hand",
    "medium",
    "an array [head] of two or more scores: of a head's edge to the logits, layer by layer.",
)
def _by_hand(answer: Any) -> str:
    heads = fixtures.heads(_case("induction")[0].model)
    right = np.array([_score(_scores("induction", "eap"), f"{head}->logits") for head in heads])
    values = table(answer, (len(heads),), "head")
    if np.allclose(values, right, atol=TWO_DIGITS):
        return (
            "The logits are linear in what the last stream holds, so for these edges the estimate is exact."
        )
    explain(values, [(-right, "the signs are reversed: clean minus corrupt, times the gradient.")], atol=1e-3)
    explain(values, [(right * N, "you sum over the prompts; the mean is wanted.")], atol=1e-2)
    raise Wrong(f"{int((~np.isclose(values, right, atol=TWO_DIGITS)).sum())} of {len(heads)} are off.")


@exercise("7.3", "What has no gradient", "easy", "a list of edges, as ['a0.0->a1.0<q>'].")
def _flat(answer: Any) -> str:
    truth = _case("induction")[0].edges["corrupt"]
    chosen = names(answer, _edges("induction"), "edge of this model")
    scores = _scores("induction", "eap")
    missed = {edge for edge in truth if abs(_score(scores, edge)) < 1e-6}
    for edge in sorted(chosen):
        if edge not in truth:
            raise Wrong(f"{edge} is not a true edge: nothing that differs between the prompts runs along it.")
        if edge not in missed:
            raise Wrong(f"{edge} is a true edge, and EAP sees it.")
    if chosen != missed:
        raise Wrong(f"{len(missed - chosen)} more true edges have the score 0.")
    return "Each decides where a head looks. A saturated softmax is flat, so its inputs have no gradient."


@exercise("7.4", "What the pair cannot show", "medium", "a list of edges, as ['a0.0->a1.0<q>'].")
def _shared(answer: Any) -> str:
    model, _, _ = _case("induction")
    chosen = names(answer, _edges("induction"), "edge of this model")
    right = model.edges["zero"] - model.edges["corrupt"]
    for edge in sorted(chosen):
        if edge in model.edges["corrupt"]:
            raise Wrong(f"{edge} carries a difference between the prompts: corrupt values do see it.")
        if edge not in right:
            raise Wrong(f"{edge} is not used at all: zeroing it changes nothing.")
    if chosen != right:
        raise Wrong(f"{len(right - chosen)} more edges are used and carry the same in both prompts.")
    return (
        "They read positions, and those are the same in both prompts. True edges are true for a kind of "
        "value."
    )


@exercise("7.5", "A circuit of your own", "hard", "a circuit, or a list of edges.")
def _own(answer: Any) -> str:
    model, _, _ = _case(*HIDDEN)
    if isinstance(answer, Circuit):
        answer = [str(edge) for edge in answer.edge_list]
    elif isinstance(answer, list | tuple | set | frozenset):
        answer = [str(edge) if isinstance(edge, Edge) else edge for edge in answer]
    chosen = names(answer, _edges(*HIDDEN), "edge of this model")
    truth = model.edges["corrupt"]
    missing, false = len(truth - chosen), len(chosen - truth)
    if missing or false:
        raise Wrong(f"{missing} true edges are missing and {false} of yours are false.")
    return f"All {len(truth)} edges, the backup's among them, which no single removal shows."
