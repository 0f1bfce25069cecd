"""Lesson 3."""

from functools import cache

import numpy as np
import torch

import workbench as wb
from workbench.course import fixtures


def edited(z, head, value):
    return torch.stack(
        [torch.zeros_like(z[:, :, h]) + value if h == head else z[:, :, h] for h in range(z.shape[2])], 2
    )


def in_place(z, head, value):
    z[:, :, head] = value
    return z


def wrong_axis(z, head, value):
    z = z.clone()
    z[:, :, :] = 0
    return z


@cache
def disagreeing():
    """Heads whose zero ablation costs much and whose resampling costs nothing."""
    model, pairs = fixtures.model(), fixtures.pairs("ioi", 64)
    clean, _ = fixtures.stores("ioi", 64)
    zeroed, resampled = (
        wb.effects(model, pairs, sites=wb.grid("z", model), value=value, progress=False)
        .mean("example")
        .values
        for value in (wb.zero(), wb.resample(clean))
    )
    fits = (zeroed < -1.25) & (abs(resampled) < 0.3)
    return [f"a{layer}.{head}" for layer, head in np.argwhere(fits)]


def shares(*, start=1, power=2):
    clean, _ = fixtures.stores("pronoun", 64)
    made = np.zeros((4, 8))
    for layer in range(4):
        rows = np.concatenate([np.asarray(clean["z", layer].prompt(i))[start:] for i in range(64)])
        made[layer] = np.linalg.norm(rows.mean(0), axis=-1) ** power / (
            np.linalg.norm(rows, axis=-1) ** power
        ).mean(0)
    return made


@cache
def alone_and_together():
    """By hooks, one run after the other."""
    model, pairs, rows = fixtures.model(), fixtures.pairs("induction", 64), torch.arange(64)

    def reached(heads):
        def hook(z, hook):
            return z * torch.tensor([head not in heads for head in range(8)])[:, None]

        with torch.no_grad():
            out = model.run_with_hooks(pairs.clean.tokens, fwd_hooks=[("blocks.3.attn.hook_z", hook)])
        out = out[rows, pairs.clean.lengths - 1]
        return float((out[rows, pairs.answers[:, 0, 0]] - out[rows, pairs.wrong[:, 0, 0]]).mean())

    base = reached([])
    return reached([0, 3, 4, 5, 6]) - base, sum(reached([head]) - base for head in (0, 3, 4, 5, 6))


CASES = {
    "3.1": (
        lambda: edited,
        [
            (lambda: in_place, "changes the tensor"),
            (lambda: wrong_axis, "other heads"),
            (lambda: lambda z, head, value: z.clone(), "left as it was"),
            (lambda: lambda z, head, value: edited(z, head, 0), "a value of shape (4,)"),
            (lambda: lambda z, head, value: z[:, :, head], "shape (3, 5, 8, 4) is wanted"),
        ],
    ),
    "3.2": (
        disagreeing,
        [
            (["a1.4"], "at least one is missing"),
            (lambda: [*disagreeing(), "a3.7"], "a3.7 changes the logit difference by -7.99"),
            (["1.4"], "no head of tiny"),
        ],
    ),
    "3.3": (
        shares,
        [
            (lambda: shares(start=0), "<bos>"),
            (lambda: shares(power=1), "Square"),
            (lambda: shares() ** 0.5, "roots"),
            (lambda: 1 - shares(), "what varies"),
            (lambda: shares().T, "shape (4, 8) is wanted"),
        ],
    ),
    "3.4": (
        lambda: float(np.subtract(*alone_and_together())),
        [
            (lambda: alone_and_together()[0], "the five together"),
            (lambda: alone_and_together()[1], "sum of the single effects"),
            (lambda: -float(np.subtract(*alone_and_together())), "sign"),
            (3.0, "3.00 is not the answer"),
        ],
    ),
}
