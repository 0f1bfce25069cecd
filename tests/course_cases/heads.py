"""Lesson 4."""

from functools import lru_cache

import numpy as np
import torch

import workbench as wb
from workbench.course import fixtures
from workbench.lenses.head_scores import HEAD_SCORES


def induction_score(pattern, tokens, *, score="induction", mean=True, over=None):
    wanted = HEAD_SCORES[score](tokens[None])[0] & torch.ones_like(pattern).tril().bool()
    wanted[0], wanted[:, 0] = False, False
    queries = wanted.any(-1).sum() if over is None else over
    return (pattern * wanted).sum() / (queries if mean else 1)


def last_copy_only(pattern, tokens):
    found = []
    for query in range(1, len(tokens)):
        copies = [at for at in range(1, query) if tokens[at] == tokens[query]]
        if copies:
            found.append(pattern[query, copies[-1] + 1])
    return torch.stack(found).mean()


def above(score, bound):
    clean, _ = fixtures.stores("induction", 64)
    mean = (
        wb.head_scores(clean)[..., ["previous", "duplicate", "induction"].index(score)].mean("example").values
    )
    return [f"a{layer}.{head}" for layer, head in np.argwhere(mean > bound)]


@lru_cache
def accuracies():
    table = []
    for name in ("induction", "shortcut"):
        model = fixtures.model(name)
        pairs = wb.load_task("induction", model, n=600)
        distance = (pairs.clean.at("END") - pairs.clean.at("PREVIOUS")).numpy()
        with torch.no_grad():
            ends = model(pairs.clean.tokens)[torch.arange(600), pairs.clean.at("END")]
        first = (ends.argmax(-1) == pairs.answers[:, 0, 0]).numpy()
        table.append([first[distance == at].mean() for at in range(10, 15)])
    return np.array(table)


def replaced(place):
    def change(prompt):
        free = next(token for token in range(100, 378) if token not in prompt)
        return [*prompt[: len(prompt) + place], free, *prompt[len(prompt) + place + 1 :]]

    return change


CASES = {
    "4.1": (
        lambda: "a0.1",
        [
            ("a1.1", "another head pays far more"),
            ("a2.5", "no head of this model"),
            (["a0.1", "a0.2"], "and these are"),
        ],
    ),
    "4.2": (
        lambda: induction_score,
        [
            (lambda: lambda p, t: induction_score(p, t, score="duplicate"), "to the copies themselves"),
            (lambda: lambda p, t: induction_score(p, t, over=len(t) - 1), "count in your mean as 0"),
            (lambda: lambda p, t: induction_score(p, t, over=len(t)), "BOS among them"),
            (lambda: lambda p, t: induction_score(p, t, mean=False), "sum over the queries"),
            (lambda: last_copy_only, "comes three times"),
            (lambda: lambda p, t: 3.0, "your score is off by"),
        ],
    ),
    "4.3": (
        lambda: above("induction", 0.5),
        [
            (lambda: [*above("induction", 0.5), "a3.2"], "a duplicate-token head"),
            (lambda: [*above("induction", 0.5), "a0.0"], "of its attention to words that followed"),
            (lambda: above("induction", 0.9), "at least one is missing"),
            (["a4.0"], "no head of this model"),
        ],
    ),
    "4.4": (
        accuracies,
        [
            (lambda: accuracies()[::-1], "in the wrong order"),
            (lambda: 100 * accuracies(), "percentages"),
            (lambda: 1 - accuracies(), "wrong answers"),
            (lambda: np.ones((2, 5)), "distances 10, 11, 13 and 14 are off"),
            (lambda: np.ones((5, 2)), "shape (2, 5) is wanted"),
        ],
    ),
    "4.5": (
        lambda: replaced(-13),
        [
            (lambda: list, "`induction` is still right in 100%"),
            (lambda: replaced(-12), "you changed the word that it copies"),
            (lambda: lambda prompt: prompt[:-1], "The length has to stay"),
            (lambda: lambda prompt: prompt[:1] + prompt[:0:-1], "One has to do"),
            (lambda: lambda prompt: 7, "a list of token ids is wanted"),
        ],
    ),
}
