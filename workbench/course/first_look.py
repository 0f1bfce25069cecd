"""Checkers of lesson 0: tokens, logits and attention."""

from typing import Any

import numpy as np
import torch

from workbench.course import fixtures as bench
from workbench.course.exercises import TWO_DIGITS, Wrong, called, exercise, number, one_name, shown, table
from workbench.lenses.head_scores import attention_to

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
    model = bench.model()
    with torch.no_grad():
        return model(model.to_tokens(text, prepend_bos=bos))[0]


@exercise("0.1", "The next word", "easy", "a function from a text to the word that the model puts next.")
def _next(answer: Any) -> str:
    model = bench.model()
    for text in TEXTS:
        got = called(answer, text)
        if isinstance(got, int | torch.Tensor | np.integer):
            raise Wrong(
                "your function returns a token's number; the word is wanted, which model.to_string makes of it."
            )
        if not isinstance(got, str):
            raise Wrong(f"your function returns a {type(got).__name__}, not a word.")
        logits = _logits(text)
        if got == model.to_string(logits[-1].argmax()):
            continue
        if got == model.to_string(logits[0].argmax()):
            raise Wrong("this is the word after the first token. Which position has seen the whole text?")
        if got == model.to_string(_logits(text, bos=False)[-1].argmax()):
            raise Wrong(
                f"after {text!r} your word is the one that the model says without <bos> in front, which it never trained on."
            )
        raise Wrong(f"after {text!r} the model puts another word than {shown(got)}.")
    return "One position holds one prediction: that of the token after it."


@exercise("0.2", "A probability", "easy", "a number between 0 and 1.")
def _probability(answer: Any) -> str:
    got, logits, name = number(answer), _logits(PROMPT), bench.model().to_single_token("Anna")
    right = logits.softmax(-1)[-1, name].item()
    if np.isclose(got, right, atol=1e-3):
        return "The softmax is over the vocabulary: all words together have probability 1."
    wrong = {
        logits[
            -1, name
        ].item(): "this is the logit. Logits become probabilities by a softmax over the vocabulary.",
        logits.log_softmax(-1)[-1, name].item(): "this is the logarithm of the probability.",
        logits.softmax(-2)[
            -1, name
        ].item(): "your softmax runs over the positions: it is wanted over the words of the vocabulary.",
        100 * right: "this is in percent.",
        logits.softmax(-1)[
            -1, bench.model().to_single_token("Tom")
        ].item(): "this is the probability of the other name.",
    }
    for value, said in wrong.items():
        if np.isclose(got, value, atol=1e-3):
            raise Wrong(said)
    if not 0 <= got <= 1:
        raise Wrong(f"{got:.4g} is no probability.")
    if np.isclose(got, right, atol=TWO_DIGITS):
        raise Wrong(f"{got:.4g} is near it. Give it as it is computed, or with three digits.")
    raise Wrong(f"{got:.4g} is not it. Read the last position, at the number of the token 'Anna'.")


@exercise("0.3", "Logit differences", "medium", "an array [example] of the 64 logit differences.")
def _differences(answer: Any) -> str:
    pairs, rows = bench.pairs("ioi", N), torch.arange(N)
    with torch.no_grad():
        logits = bench.model()(pairs.clean.tokens)
    right, wrong = pairs.answers[:, 0, 0], pairs.wrong[:, 0, 0]

    def apart(at: torch.Tensor) -> np.ndarray:
        at = at.clamp(max=logits.shape[1] - 1)
        return (logits[rows, at, right] - logits[rows, at, wrong]).numpy()

    got, wanted = table(answer, (N,), "example"), apart(pairs.clean.lengths - 1)
    if np.allclose(got, wanted, atol=1e-3):
        return f"Its mean is {wanted.mean():.2f}, and it is above 0 for {(wanted > 0).mean():.0%} of the prompts."
    if np.allclose(got, -wanted, atol=1e-3):
        raise Wrong("the signs are turned round: it is the right name's logit minus the wrong one's.")
    if np.allclose(got, apart(torch.full((N,), -1)), atol=1e-3):
        raise Wrong(
            "you read the last column for every prompt. The shorter prompts have ended before it: what stands there is padding."
        )
    if np.allclose(got, apart(pairs.clean.lengths), atol=1e-3) or np.allclose(
        got, apart(pairs.clean.lengths - 2), atol=1e-3
    ):
        raise Wrong("you read one position beside the last token of each prompt.")
    if np.allclose(got, logits[rows, pairs.clean.lengths - 1, right].numpy(), atol=1e-3):
        raise Wrong("these are the right names' logits; the wrong names' are still to be subtracted.")
    raise Wrong(f"{int((~np.isclose(got, wanted, atol=1e-3)).sum())} of the {N} are off.")


@exercise("0.4", "Where a head looks", "medium", "the name of a head, such as 'a2.5'.")
def _looks(answer: Any) -> str:
    clean, _ = bench.stores("ioi", N)
    seen = attention_to(clean, ["S2"]).mean("example").values[..., 0].ravel()
    heads = bench.heads(bench.model())
    name = one_name(answer, heads, "head of tiny")
    share = seen[heads.index(name)]
    if share < seen.max():
        raise Wrong(
            f"from END, {name} gives S2 {share:.0%} of its attention on average; another head gives it more."
        )
    return f"It gives S2 {share:.0%} of its attention; the next head gives it {np.sort(seen)[-2]:.0%}."
