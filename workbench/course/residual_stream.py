"""Checkers of lesson 1: the residual stream, read at every layer."""

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
    listed,
    table,
    whole_number,
)
from workbench.lenses.logit_lens import logit_lens

N = 64


def _logit_differences() -> np.ndarray:
    """[layer]: mean logit difference at END, read after every layer."""
    clean, _ = fixtures.stores("ioi", N)
    pairs = fixtures.pairs("ioi", N)
    lens = logit_lens(clean, fixtures.model(), targets=pairs.answers, minus=pairs.wrong)
    by_layer = [lens.values[np.arange(N), layer, pairs.clean.lengths - 1] for layer in range(4)]
    return np.stack(by_layer, 1).mean(0)


@exercise(
    "1.1", "Read a stream", "easy", "a function from streams [example, d_model] to logits [example, vocab]."
)
def _lens_by_hand(answer: Any) -> str:
    model = fixtures.model()
    # Random streams, not the model's: an answer that reads the notebook's own cache cannot pass.
    stream = torch.randn(5, model.cfg.d_model, generator=torch.Generator().manual_seed(1)) * 3
    with torch.no_grad():
        right = model.unembed(model.ln_final(stream[None]))[0]
        without_norm = model.unembed(stream[None])[0]
        logits = called(answer, stream)
    values = table(logits, tuple(right.shape), "example, vocab")
    if np.allclose(values, right, atol=1e-4):
        return "The lens is two steps: the norm that the last layer's stream passes, then the unembedding."
    no_logits = "these are probabilities or their logarithms; logits are wanted."
    mistakes = [
        (
            without_norm,
            "your logits are those of the stream as it is. What does the model do to its last stream before "
            "it unembeds it?",
        ),
        (torch.log_softmax(right, -1), no_logits),
        (right.softmax(-1), no_logits),
    ]
    explain(values, mistakes, atol=1e-4)
    off = np.abs(values - right.numpy()).max()
    raise Wrong(f"for five random streams your logits are off by up to {off:.2g}.")


@exercise("1.2", "Where the answer appears", "easy", "a layer, counted from 0.")
def _first_layer(answer: Any) -> str:
    clean, _ = fixtures.stores("ioi", N)
    pairs = fixtures.pairs("ioi", N)
    ranks = logit_lens(clean, fixtures.model(), targets=pairs.answers, measure="rank").values
    shares = [(ranks[np.arange(N), layer, pairs.clean.lengths - 1] == 0).mean() for layer in range(4)]
    right = next(layer for layer, share in enumerate(shares) if share > 0.5)
    layer = whole_number(answer)
    if not 0 <= layer < 4:
        raise Wrong(f"the model has layers 0 to 3, and {layer} is none of them.")
    if layer < right:
        raise Wrong(
            f"after layer {layer} the answer is the first choice for only {shares[layer]:.0%} of the prompts."
        )
    if layer > right:
        raise Wrong(f"after layer {layer} it is, but after an earlier layer too.")
    before = shares[right - 1]
    return (
        f"There it is the first choice for {shares[right]:.0%} of the prompts, one layer before for "
        f"{before:.0%}."
    )


@exercise(
    "1.3", "What each layer adds", "medium", "an array [layer] of three numbers: what layers 1, 2 and 3 add."
)
def _added(answer: Any) -> str:
    reached = _logit_differences()
    right = np.diff(reached)
    values = table(answer, (3,), "layer")
    # Rounded answers are taken: the exercise is about which layer, not about the third digit.
    if np.allclose(values, right, atol=TWO_DIGITS):
        return (
            "Nearly all of it comes last: whatever earlier layers contribute, the unembedding cannot read it "
            "at END yet."
        )
    mistakes = [
        (
            reached[1:],
            "this is what is reached after each layer. Wanted is what each one adds to what was there before "
            "it.",
        ),
        (-right, "the signs are reversed: what is added is after minus before."),
    ]
    explain(values, mistakes, atol=1e-3)
    off = np.flatnonzero(~np.isclose(values, right, atol=TWO_DIGITS)) + 1
    raise Wrong(
        f"{listed('layer', off.tolist())} off. Average over the {N} prompts, each read at its own END."
    )
