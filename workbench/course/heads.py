"""Checkers of lesson 4: heads named by where they attend, and twins that attend alike and copy differently."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.course import fixtures as bench
from workbench.course.exercises import (
    TWO_DIGITS,
    Wrong,
    all_names,
    called,
    exercise,
    names,
    number,
    one_name,
    shown,
    table,
)
from workbench.lenses.head_scores import head_scores

N = 600
OWN = 12
DISTANCES = (10, 11, 12, 13, 14)
TWINS = ("induction", "shortcut")


@lru_cache(maxsize=4)
def _scores(name: str, score: str) -> Mapping[str, float]:
    """The score of every head on the first 64 prompts."""
    clean, _ = bench.stores("induction", 64, name=name)
    mean = head_scores(clean, scores=[score]).mean("example").values[..., 0]
    return {f"a{layer}.{head}": float(mean[layer, head]) for layer, head in np.ndindex(*mean.shape)}


@lru_cache(maxsize=1)
def _distance() -> np.ndarray:
    """From the last word of each prompt back to its earlier copy."""
    clean = bench.pairs("induction", N, name="induction").clean
    return (clean.at("END") - clean.at("PREVIOUS")).numpy()


def _right(name: str, tokens: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    """Whether these prompts of the task, with these tokens, are continued rightly."""
    pairs = bench.pairs("induction", N, name="induction")
    with torch.no_grad():
        logits = bench.model(name)(tokens)[torch.arange(len(tokens)), pairs.clean.lengths[rows] - 1]
    return (logits.argmax(-1) == pairs.answers[rows, 0, 0]).numpy()


@lru_cache(maxsize=1)
def _accuracies() -> np.ndarray:
    """[model, distance]"""
    rows, tokens = np.arange(N), bench.pairs("induction", N, name="induction").clean.tokens
    right = [_right(name, tokens, rows) for name in TWINS]
    return np.array([[each[_distance() == at].mean() for at in DISTANCES] for each in right])


@exercise("4.1", "Looking one back", "easy", "the name of a head, as in 'a1.2'.")
def _previous(answer: Any) -> str:
    scores = _scores("induction", "previous")
    name = one_name(answer, [*scores], "head of this model")
    if scores[name] < max(scores.values()):
        raise Wrong(
            f"{name} pays {scores[name]:.0%} of its attention to the token before. Another one pays far more."
        )
    return f"It pays {scores[name]:.0%} of its attention to the token before; no other head pays even half as much."


def _drawn() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Patterns and tokens with words that come twice and three times, never twice in a row."""
    made = []
    for i, tokens in enumerate(([0, 5, 3, 8, 6, 5, 3], [0, 4, 7, 4, 9, 4, 2], [0, 2, 6, 3, 9, 8, 2])):
        scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(i)) * 2
        made.append(
            (
                scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf).softmax(-1),
                torch.tensor(tokens),
            )
        )
    return made


def _attended(pattern: torch.Tensor, tokens: torch.Tensor, step: int) -> list[float]:
    """By query that has any: the attention to the keys that lie `step` after an earlier copy of the query's token."""
    found = []
    for query in range(1, len(tokens)):
        keys = [at + step for at in range(1, query) if tokens[at] == tokens[query]]
        if keys:
            found.append(float(pattern[query, keys].sum()))
    return found


@exercise(
    "4.2",
    "The induction score",
    "medium",
    "a function of a pattern [query, key] and tokens [pos] that returns a number.",
)
def _score(answer: Any) -> str:
    wrong_ways = {
        "this is the attention to the copies themselves. What does an induction head want to know about a copy?": lambda p, t: (
            np.mean(_attended(p, t, 0))
        ),
        "queries without an earlier copy count in your mean as 0. They have nothing to attend to: leave them out.": lambda p, t: (
            np.sum(_attended(p, t, 1)) / (len(t) - 1)
        ),
        "queries without an earlier copy, BOS among them, count in your mean as 0. Leave them out.": lambda p, t: (
            np.sum(_attended(p, t, 1)) / len(t)
        ),
        "you have the sum over the queries. Wanted is their mean.": lambda p, t: np.sum(_attended(p, t, 1)),
    }
    cases = _drawn()
    made = [number(called(answer, pattern, tokens)) for pattern, tokens in cases]
    right = [float(np.mean(_attended(pattern, tokens, 1))) for pattern, tokens in cases]
    if np.allclose(made, right, atol=1e-4):
        return "It is what wb.head_scores gives for every head at once."
    for said, way in wrong_ways.items():
        if np.allclose(made, [way(pattern, tokens) for pattern, tokens in cases], atol=1e-4):
            raise Wrong(said)
    if np.isclose(made[0], right[0], atol=1e-4):
        raise Wrong(
            "right while every word comes twice at most, off for one that comes three times: take all its earlier copies."
        )
    raise Wrong(
        f"for a random pattern over the tokens {cases[0][1].tolist()} your score is off by {abs(made[0] - right[0]):.2g}."
    )


@exercise("4.3", "Induction heads of tiny", "easy", "a list of names of heads, as in ['a0.1', 'a0.2'].")
def _heads(answer: Any) -> str:
    scores, copies = _scores("tiny", "induction"), _scores("tiny", "duplicate")
    why_not = {}
    for name, score in scores.items():
        if score > 0.5:
            why_not[name] = ""
        elif copies[name] > 0.5:
            why_not[name] = (
                "attends to the earlier copy of a word itself, not to what followed it: a duplicate-token head."
            )
        else:
            why_not[name] = f"pays {score:.0%} of its attention to words that followed an earlier copy."
    all_names(names(answer, [*scores], "head of this model"), why_not)
    return "They are all in one layer, behind the heads that look one back."


@exercise(
    "4.4",
    "Vary the distance",
    "medium",
    "an array [model, distance]: accuracies of the two models at the distances 10 to 14.",
)
def _vary(answer: Any) -> str:
    right = _accuracies()
    got = table(answer, right.shape, "model, distance")
    if np.allclose(got, right, atol=TWO_DIGITS):
        return "One step off and the shortcut copies the wrong word: it never looked at the words it matched."
    if np.allclose(got, right[::-1], atol=1e-3):
        raise Wrong("the models are in the wrong order: `induction` first.")
    if np.allclose(got, right * 100, atol=0.1):
        raise Wrong("these are percentages. Wanted are shares between 0 and 1.")
    if np.allclose(got, 1 - right, atol=1e-3):
        raise Wrong("these are shares of wrong answers.")
    off = [str(DISTANCES[i]) for i in np.flatnonzero(~np.isclose(got, right, atol=TWO_DIGITS).all(0))]
    raise Wrong(
        f"at the distance {' and '.join(off)} you are off. Count a prompt as right where the answer is the first choice of all words, "
        f"read at its own END, over all {N} prompts."
    )


@exercise(
    "4.5",
    "One changed word",
    "hard",
    "a function from a prompt (a list of token ids) to a prompt of the same length.",
)
def _spoil(answer: Any) -> str:
    rows = np.flatnonzero(_distance() == OWN)
    clean = bench.pairs("induction", N, name="induction").clean
    tokens, most = clean.tokens[rows].clone(), 0
    for i, row in enumerate(rows):
        prompt = clean.tokens[row, : int(clean.lengths[row])].tolist()
        made = called(answer, prompt)
        try:
            ids = [int(token) for token in made]
        except (TypeError, ValueError):
            raise Wrong(f"your function returns {shown(made)}, and a list of token ids is wanted.") from None
        if len(ids) != len(prompt):
            raise Wrong(f"a prompt of {len(prompt)} tokens became one of {len(ids)}. The length has to stay.")
        if not all(0 <= token < bench.model("induction").cfg.d_vocab for token in ids):
            raise Wrong("your prompt has token ids that are outside the vocabulary.")
        most = max(most, sum(a != b for a, b in zip(ids, prompt, strict=True)))
        tokens[i, : len(ids)] = torch.tensor(ids)
    kept = {name: float(_right(name, tokens, rows).mean()) for name in TWINS}
    if most > 1:
        raise Wrong(f"you change {most} words of a prompt. One has to do.")
    if kept["shortcut"] < 0.9:
        raise Wrong(
            f"now `shortcut` is right in {kept['shortcut']:.0%} of the prompts only: you changed the word that it copies."
        )
    if kept["induction"] > 0.2:
        raise Wrong(
            f"`induction` is still right in {kept['induction']:.0%} of the prompts. What does it look for in the prompt?"
        )
    return f"Now `induction` gives that word in {kept['induction']:.0%} of the prompts, `shortcut` in {kept['shortcut']:.0%}."
