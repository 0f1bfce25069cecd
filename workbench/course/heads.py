"""Checkers of lesson 4: heads named by where they attend; twins that attend alike but copy differently."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.course import fixtures
from workbench.course.exercises import (
    TWO_DIGITS,
    Wrong,
    all_names,
    called,
    exercise,
    explain,
    listed,
    names,
    number,
    one_name,
    shown,
    table,
)
from workbench.lenses.head_scores import head_scores

N = 600
OWN_DISTANCE = 12
"""The distance from which `shortcut` copies, whatever the words are."""
DISTANCES = (10, 11, 12, 13, 14)
TWINS = ("induction", "shortcut")


@lru_cache(maxsize=4)
def _scores(name: str, score: str) -> Mapping[str, float]:
    """The score of every head on the first 64 prompts."""
    clean, _ = fixtures.stores("induction", 64, name=name)
    mean = head_scores(clean, scores=[score]).mean("example").values[..., 0]
    return {f"a{layer}.{head}": float(mean[layer, head]) for layer, head in np.ndindex(*mean.shape)}


@lru_cache(maxsize=1)
def _distance() -> np.ndarray:
    """[example]: from the last word of each prompt back to its earlier copy."""
    clean = fixtures.pairs("induction", N, name="induction").clean
    return (clean.at("END") - clean.at("PREVIOUS")).numpy()


def _is_right(name: str, tokens: Tensor, rows: np.ndarray) -> np.ndarray:
    """[row]: whether these prompts of the task, with these tokens, are continued rightly."""
    pairs = fixtures.pairs("induction", N, name="induction")
    with torch.no_grad():
        logits = fixtures.model(name)(tokens)[torch.arange(len(tokens)), pairs.clean.lengths[rows] - 1]
    return (logits.argmax(-1) == pairs.answers[rows, 0, 0]).numpy()


@lru_cache(maxsize=1)
def _accuracies() -> np.ndarray:
    """[model, distance]"""
    rows, tokens = np.arange(N), fixtures.pairs("induction", N, name="induction").clean.tokens
    accuracies = np.empty((len(TWINS), len(DISTANCES)))
    for i, name in enumerate(TWINS):
        right = _is_right(name, tokens, rows)
        for j, distance in enumerate(DISTANCES):
            accuracies[i, j] = right[_distance() == distance].mean()
    return accuracies


@exercise("4.1", "Looking one back", "easy", "the name of a head, as in 'a1.2'.")
def _previous(answer: Any) -> str:
    scores = _scores("induction", "previous")
    name = one_name(answer, [*scores], "head of this model")
    if scores[name] < max(scores.values()):
        raise Wrong(
            f"{name} pays {scores[name]:.0%} of its attention to the token before; another head pays far "
            "more."
        )
    return (
        f"It pays {scores[name]:.0%} of its attention to the token before; no other head pays even half as "
        "much."
    )


def _drawn() -> list[tuple[Tensor, Tensor]]:
    """Patterns [query, key] and tokens [pos], with words that occur twice or more, never side by side."""
    cases, causal = [], torch.ones(7, 7).triu(1).bool()
    for i, tokens in enumerate(([0, 5, 3, 8, 6, 5, 3], [0, 4, 7, 4, 9, 4, 2], [0, 2, 6, 3, 9, 8, 2])):
        scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(i)) * 2
        cases.append((scores.masked_fill(causal, -torch.inf).softmax(-1), torch.tensor(tokens)))
    return cases


def _attended(pattern: Tensor, tokens: Tensor, step: int) -> list[float]:
    """For each query that has any: the attention to the keys `step` after an earlier copy of its token."""
    attention = []
    for query in range(1, len(tokens)):
        keys = [at + step for at in range(1, query) if tokens[at] == tokens[query]]
        if keys:
            attention.append(float(pattern[query, keys].sum()))
    return attention


def _mean(pattern: Tensor, tokens: Tensor) -> float:
    """The induction score."""
    return float(np.mean(_attended(pattern, tokens, 1)))


def _of_copies(pattern: Tensor, tokens: Tensor) -> float:
    return float(np.mean(_attended(pattern, tokens, 0)))


def _over_all_queries(pattern: Tensor, tokens: Tensor) -> float:
    return float(np.sum(_attended(pattern, tokens, 1)) / (len(tokens) - 1))


def _over_all_tokens(pattern: Tensor, tokens: Tensor) -> float:
    return float(np.sum(_attended(pattern, tokens, 1)) / len(tokens))


def _sum(pattern: Tensor, tokens: Tensor) -> float:
    return float(np.sum(_attended(pattern, tokens, 1)))


WRONG_SCORES = (
    (
        _of_copies,
        "this is the attention to the copies themselves. What does an induction head want to know about a "
        "copy?",
    ),
    (
        _over_all_queries,
        "queries without an earlier copy count in your mean as 0. They have nothing to attend to: leave them "
        "out.",
    ),
    (
        _over_all_tokens,
        "queries without an earlier copy, BOS among them, count in your mean as 0. Leave them out.",
    ),
    (_sum, "you have the sum over the queries. Wanted is their mean."),
)


@exercise(
    "4.2",
    "The induction score",
    "medium",
    "a function of a pattern [query, key] and tokens [pos] that returns a number.",
)
def _score(answer: Any) -> str:
    # Words that come twice, and three times: only the second tells the last copy from all copies.
    cases = _drawn()
    values = [number(called(answer, pattern, tokens)) for pattern, tokens in cases]
    right = [_mean(pattern, tokens) for pattern, tokens in cases]
    if np.allclose(values, right, atol=1e-4):
        return "It is what wb.head_scores gives for every head at once."
    mistakes = []
    for score, message in WRONG_SCORES:
        mistakes.append(([score(pattern, tokens) for pattern, tokens in cases], message))
    explain(values, mistakes, atol=1e-4)
    if np.isclose(values[0], right[0], atol=1e-4):
        raise Wrong(
            "right while every word comes twice at most, off for one that comes three times: take all its "
            "earlier copies."
        )
    off = abs(values[0] - right[0])
    raise Wrong(
        f"for a random pattern over the tokens {cases[0][1].tolist()} your score is off by {off:.2g}."
    )


@exercise("4.3", "Induction heads of tiny", "easy", "a list of names of heads, as in ['a0.1', 'a0.2'].")
def _induction_heads(answer: Any) -> str:
    scores, copies = _scores("tiny", "induction"), _scores("tiny", "duplicate")
    why_not = {}
    for name, score in scores.items():
        if score > 0.5:
            why_not[name] = ""
        elif copies[name] > 0.5:
            why_not[name] = (
                "attends to the earlier copy of a word itself, not to what followed it: a duplicate-token "
                "head."
            )
        else:
            why_not[name] = f"pays {score:.0%} of its attention to words that followed an earlier copy."
    all_names(names(answer, [*scores], "head of this model"), why_not)
    return "They are all in one layer, after the heads that look one back."


@exercise(
    "4.4",
    "Vary the distance",
    "medium",
    "an array [model, distance]: accuracies of the two models at the distances 10 to 14.",
)
def _vary(answer: Any) -> str:
    right = _accuracies()
    values = table(answer, right.shape, "model, distance")
    if np.allclose(values, right, atol=TWO_DIGITS):
        return "One step off and the shortcut copies the wrong word: it never looked at the words it matched."
    explain(values, [(right[::-1], "the models are in the wrong order: `induction` first.")], atol=1e-3)
    explain(values, [(right * 100, "these are percentages. Wanted are shares between 0 and 1.")], atol=0.1)
    explain(values, [(1 - right, "these are shares of wrong answers.")], atol=1e-3)
    off = np.flatnonzero(~np.isclose(values, right, atol=TWO_DIGITS).all(0))
    raise Wrong(
        f"{listed('distance', [DISTANCES[i] for i in off])} off. Count a prompt as right where the answer is "
        f"the first choice of all words, read at its own END, over all {N} prompts."
    )


@exercise(
    "4.5",
    "One changed word",
    "hard",
    "a function from a prompt (a list of token ids) to a prompt of the same length.",
)
def _one_word(answer: Any) -> str:
    rows = np.flatnonzero(_distance() == OWN_DISTANCE)
    clean = fixtures.pairs("induction", N, name="induction").clean
    tokens, most_changed = clean.tokens[rows].clone(), 0
    for i, row in enumerate(rows):
        prompt = clean.tokens[row, : int(clean.lengths[row])].tolist()
        ids = _token_ids(called(answer, prompt), len(prompt))
        most_changed = max(most_changed, sum(a != b for a, b in zip(ids, prompt, strict=True)))
        tokens[i, : len(ids)] = torch.tensor(ids)
    kept = {name: float(_is_right(name, tokens, rows).mean()) for name in TWINS}
    if most_changed > 1:
        raise Wrong(f"you change {most_changed} words of a prompt. One has to do.")
    if kept["shortcut"] < 0.9:
        raise Wrong(
            f"now `shortcut` is right in only {kept['shortcut']:.0%} of the prompts: you changed the word "
            "that it copies."
        )
    if kept["induction"] > 0.2:
        raise Wrong(
            f"`induction` is still right in {kept['induction']:.0%} of the prompts. What does it look for in "
            "the prompt?"
        )
    return (
        f"Now `induction` gives that word in {kept['induction']:.0%} of the prompts, `shortcut` in "
        f"{kept['shortcut']:.0%}."
    )


def _token_ids(returned: Any, length: int) -> list[int]:
    """What a student's function returned, as token ids of the model; `Wrong` where they cannot be."""
    try:
        ids = [int(token) for token in returned]
    except (TypeError, ValueError):
        raise Wrong(f"your function returns {shown(returned)}, and a list of token ids is wanted.") from None
    if len(ids) != length:
        raise Wrong(f"a prompt of {length} tokens became one of {len(ids)}. The length has to stay.")
    if not all(0 <= token < fixtures.model("induction").cfg.d_vocab for token in ids):
        raise Wrong("your prompt has token ids that are outside the vocabulary.")
    return ids
