"""Lesson 1."""

import numpy as np

import workbench as wb
from workbench.course import fixtures


def lens(values):
    pairs = fixtures.pairs("ioi", 64)
    clean, _ = fixtures.stores("ioi", 64)
    made = wb.logit_lens(clean, fixtures.model(), targets=pairs.answers, minus=pairs.wrong).values
    return values(made[np.arange(64), :, pairs.clean.lengths - 1].mean(0))


CASES = {
    "1.1": (
        lambda: lambda stream: fixtures.model().unembed(fixtures.model().ln_final(stream[:, None]))[:, 0],
        [
            (
                lambda: lambda stream: fixtures.model().unembed(stream[:, None])[:, 0],
                "those of the stream as it is",
            ),
            (
                lambda: lambda stream: fixtures.model().unembed(fixtures.model().ln_final(stream[:, None])),
                "shape (5, 378) is wanted",
            ),
            (
                lambda: (
                    lambda stream: (
                        fixtures.model().unembed(fixtures.model().ln_final(stream[:, None]))[:, 0].softmax(-1)
                    )
                ),
                "probabilities",
            ),
            (lambda: lambda stream: ..., "returns nothing yet"),
        ],
    ),
    "1.2": (lambda: 3, [(2, "only"), (4, "layers 0 to 3"), (2.5, "not a whole number")]),
    "1.3": (
        lambda: lens(np.diff),
        [
            (lambda: lens(lambda reached: reached[1:]), "what is reached after each layer"),
            (lambda: -lens(np.diff), "signs"),
            (lambda: lens(np.diff) + np.array([0, 0, 1]), "layer 3 is off"),
            (lambda: lens(np.diff) + 1, "layers 1, 2 and 3 are off"),
        ],
    ),
}
