"""Checkers of lesson 0: tokens, logits and attention."""

from typing import Any

import numpy as np
import torch

from workbench.course import fixtures
from workbench.course.exercises import (
    TWO_DIGITS,
    Wrong,
    called,
    exercise,
    explain,
    number,
    one_name,
    shown,
    table,
)
from workbench.lenses.head_scores import attention_to
from workbench.text import with_article

N = 64
PROMPT = "When Anna and Tom went to the park , Tom gave a ball to"
TEXTS = (
    PROMPT,
    "After Max and Simon left the river , Simon sent a hat to",
    "Emma lost the clock near the market so",
    "Tim asked about Ireland , so the teacher said its capital is",
    "Yesterday the doctors behind the cat",
)


def _logits(text: str, *, bos: bool = True) -> torch.Tensor:
    """[pos, vocab]"""
    model = fixtures.model()
    with torch.no_grad():
        return model(model.to_tokens(text, prepend_bos=bos))[0]


@exercise("0.1", "The next word", "easy", "a function from a text to the word that the model predicts next.")
def _next_word(answer: Any) -> str:
    model = fixtures.model()
    for text in TEXTS:
        word = called(answer, text)
        if isinstance(word, int | torch.Tensor | np.integer):
            raise Wrong("your function returns a token's number; model.to_string makes the word of it.")
        if not isinstance(word, str):
            raise Wrong(f"your function returns {with_article(type(word).__name__)}, not a word.")
        logits = _logits(text)
        if word == model.to_string(logits[-1].argmax()):
            continue
        if word == model.to_string(logits[0].argmax()):
            raise Wrong("this is the word after the first token. Which position has seen the whole text?")
        if word == model.to_string(_logits(text, bos=False)[-1].argmax()):
            raise Wrong(
                f"after {text!r} yours is the word that the model predicts without <bos> in front, "
                "which it never saw in training."
            )
        raise Wrong(f"after {text!r} the model predicts another word than {shown(word)}.")
    return "One position holds one prediction: that of the token after it."


@exercise("0.2", "A probability", "easy", "a number between 0 and 1.")
def _probability(answer: Any) -> str:
    value, logits = number(answer), _logits(PROMPT)
    anna, tom = (fixtures.model().to_single_token(name) for name in ("Anna", "Tom"))
    right = logits.softmax(-1)[-1, anna].item()
    if np.isclose(value, right, atol=1e-3):
        return "The softmax is over the vocabulary: all words together have probability 1."
    mistakes = [
        (
            logits[-1, anna].item(),
            "this is the logit. A softmax over the vocabulary makes probabilities of logits.",
        ),
        (logits.log_softmax(-1)[-1, anna].item(), "this is the logarithm of the probability."),
        (
            logits.softmax(-2)[-1, anna].item(),
            "your softmax runs over the positions, not over the vocabulary.",
        ),
        (100 * right, "this is in percent."),
        (logits.softmax(-1)[-1, tom].item(), "this is the probability of the other name."),
    ]
    # Some of these numbers are near 0, and anything near 0 would pass for them by an absolute distance.
    explain(value, mistakes, rtol=0.02)
    if not 0 <= value <= 1:
        raise Wrong(f"{value:.4g} is not a probability.")
    if np.isclose(value, right, atol=TWO_DIGITS):
        raise Wrong(f"{value:.4g} is close. Give the number as it is computed, or with three digits.")
    raise Wrong(
        f"{value:.4g} is not the answer. Read the logits at the last position, at the token id of 'Anna'."
    )


@exercise("0.3", "Logit differences", "medium", "an array [example] of the 64 logit differences.")
def _logit_differences(answer: Any) -> str:
    pairs, rows = fixtures.pairs("ioi", N), torch.arange(N)
    with torch.no_grad():
        logits = fixtures.model()(pairs.clean.tokens)
    right, wrong, lengths = pairs.answers[:, 0, 0], pairs.wrong[:, 0, 0], pairs.clean.lengths

    def differences(at: torch.Tensor) -> np.ndarray:
        at = at.clamp(max=logits.shape[1] - 1)
        return (logits[rows, at, right] - logits[rows, at, wrong]).numpy()

    values, wanted = table(answer, (N,), "example"), differences(lengths - 1)
    # Another kernel or batch moves a logit by 1e-5; every mistake below moves some by more than 1e-3.
    if np.allclose(values, wanted, atol=1e-3):
        above = (wanted > 0).mean()
        return f"Its mean is {wanted.mean():.2f}, and it is above 0 for {above:.0%} of the prompts."
    beside = "you read one position beside the last token of each prompt."
    mistakes = [
        (-wanted, "the signs are reversed: it is the right name's logit minus the wrong one's."),
        (
            differences(torch.full((N,), -1)),
            "you read the last column for every prompt. The shorter prompts have ended before it: it holds "
            "padding.",
        ),
        (differences(lengths), beside),
        (differences(lengths - 2), beside),
        (
            logits[rows, lengths - 1, right].numpy(),
            "these are the right names' logits; the wrong names' are still to be subtracted.",
        ),
    ]
    explain(values, mistakes, atol=1e-3)
    raise Wrong(f"{int((~np.isclose(values, wanted, atol=1e-3)).sum())} of the {N} are off.")


@exercise("0.4", "Where a head looks", "medium", "the name of a head, such as 'a2.5'.")
def _attends(answer: Any) -> str:
    clean, _ = fixtures.stores("ioi", N)
    # Flat, in the order of the names of heads.
    attention = attention_to(clean, ["S2"]).mean("example").values[..., 0].ravel()
    heads = fixtures.heads(fixtures.model())
    name = one_name(answer, heads, "head of tiny")
    share = attention[heads.index(name)]
    if share < attention.max():
        raise Wrong(
            f"from END, {name} gives S2 {share:.0%} of its attention on average; another head gives it more."
        )
    return f"It gives S2 {share:.0%} of its attention; the next head gives it {np.sort(attention)[-2]:.0%}."
