"""Checkers of lesson 1: the residual stream, read at every layer."""

from typing import Any

import numpy as np
import torch

from workbench.course import fixtures as bench
from workbench.course.exercises import TWO_DIGITS, Wrong, called, exercise, table, whole_number
from workbench.lenses.logit_lens import logit_lens

N = 64


def _logit_differences() -> np.ndarray:
    """[layer]: mean logit difference at END, read after every layer."""
    clean, _ = bench.stores("ioi", N)
    pairs = bench.pairs("ioi", N)
    lens = logit_lens(clean, bench.model(), targets=pairs.answers, minus=pairs.wrong)
    return np.stack(
        [lens.values[np.arange(N), layer, pairs.clean.lengths - 1] for layer in range(4)], 1
    ).mean(0)


@exercise(
    "1.1", "Read a stream", "easy", "a function from streams [example, d_model] to logits [example, vocab]."
)
def _read(answer: Any) -> str:
    model = bench.model()
    stream = torch.randn(5, model.cfg.d_model, generator=torch.Generator().manual_seed(1)) * 3
    with torch.no_grad():
        right = model.unembed(model.ln_final(stream[None]))[0]
        unnormed = model.unembed(stream[None])[0]
        made = called(answer, stream)
    got = table(made, tuple(right.shape), "example, vocab")
    if np.allclose(got, right, atol=1e-4):
        return "The lens is two steps: the norm that the last layer's stream passes, then the unembedding."
    if np.allclose(got, unnormed, atol=1e-4):
        raise Wrong(
            "your logits are those of the stream as it is. What does the model do to its last stream before it unembeds it?"
        )
    if np.allclose(got, torch.log_softmax(right, -1), atol=1e-4) or np.allclose(
        got, right.softmax(-1), atol=1e-4
    ):
        raise Wrong("these are probabilities or their logarithms; logits are wanted.")
    raise Wrong(
        f"for five random streams your logits are off by up to {np.abs(got - right.numpy()).max():.2g}."
    )


@exercise("1.2", "Where the answer appears", "easy", "a layer, counted from 0.")
def _first(answer: Any) -> str:
    clean, _ = bench.stores("ioi", N)
    pairs = bench.pairs("ioi", N)
    ranks = logit_lens(clean, bench.model(), targets=pairs.answers, measure="rank").values
    shares = [(ranks[np.arange(N), layer, pairs.clean.lengths - 1] == 0).mean() for layer in range(4)]
    right = next(layer for layer, share in enumerate(shares) if share > 0.5)
    given = whole_number(answer)
    if not 0 <= given < 4:
        raise Wrong(f"the model has layers 0 to 3, and {given} is none of them.")
    if given < right:
        raise Wrong(
            f"after layer {given} the answer is the first choice for {shares[given]:.0%} of the prompts only."
        )
    if given > right:
        raise Wrong(f"layer {given} is one where it is; there is an earlier one.")
    return f"There it is the first choice for {shares[right]:.0%} of the prompts, one layer before for {shares[right - 1]:.0%}."


@exercise(
    "1.3", "What each layer adds", "medium", "an array [layer] of three numbers: what layers 1, 2 and 3 add."
)
def _added(answer: Any) -> str:
    reached = _logit_differences()
    right = np.diff(reached)
    got = table(answer, (3,), "layer")
    if np.allclose(got, right, atol=TWO_DIGITS):
        return "Nearly all of it comes last: whatever earlier layers do for it, at END the unembedding does not read it yet."
    if np.allclose(got, reached[1:], atol=1e-3):
        raise Wrong(
            "this is what is reached after each layer. Wanted is what each one adds to what was there before it."
        )
    if np.allclose(got, -right, atol=1e-3):
        raise Wrong("the signs are turned round: what is added is after minus before.")
    off = [str(layer + 1) for layer in np.flatnonzero(~np.isclose(got, right, atol=TWO_DIGITS))]
    raise Wrong(f"layer {' and '.join(off)} is off. Average over the {N} prompts, each read at its own END.")
