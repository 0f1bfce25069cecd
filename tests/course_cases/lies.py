"""Lesson 10."""

from functools import lru_cache

import numpy as np

import workbench as wb
from course_cases.counterfactual import scored, swapped
from workbench.course import fixtures
from workbench.course.lies import CHECKS

RIGHT = dict(
    zip("ABCDEFG", ("other", "error", "logits", "fresh", "empty", "random", "competence"), strict=True)
)


@lru_cache
def honest():
    model = fixtures.model()
    pairs = wb.load_task("ioi", model, n=64, seed=3)
    return wb.find_circuit(
        scored(),
        criteria=wb.Criteria(),
        model=model,
        pairs=pairs,
        value=wb.counterfactual_values(model, pairs),
    )


CASES = {
    "10.1": (
        lambda: swapped(10),
        [
            (lambda: wb.find_circuit(scored(), n_edges=150), "hardly a lie"),
            (lambda: wb.Circuit.empty(fixtures.model()), "nobody would believe it"),
            (1.0, "a circuit is wanted"),
        ],
    ),
    "10.2": (
        lambda: lambda one, full, empty: np.abs(one - full).mean() / np.abs(full - empty).mean(),
        [
            (lambda: lambda one, full, empty: (one - full).mean() / (full - empty).mean(), "cancel"),
            (lambda: lambda one, full, empty: (np.abs(one - full) / np.abs(full - empty)).mean(), "each prompt's ratio"),
            (lambda: lambda one, full, empty: np.abs(one - full).mean(), "in logits"),
            (lambda: lambda one, full, empty: (one - empty).mean() / (full - empty).mean(), "this is the faithfulness"),
            (0.3, "a function is wanted"),
        ],
    ),
    "10.3": (
        lambda: RIGHT,
        [
            ({**RIGHT, "A": "random"}, "A: 'random' gives"),
            ({**RIGHT, "D": "error"}, "'error' is used more than once"),
            ({**RIGHT, "B": "luck"}, "B: 'luck' is no check"),
            ({"A": CHECKS[0]}, "without a value"),
        ],
    ),
    "10.4": (
        honest,
        [
            (lambda: swapped(10), "against abc it breaks"),
            (lambda: wb.Circuit.full(fixtures.model()), "still count as a circuit"),
            ("no", "a circuit is wanted"),
        ],
    ),
}  # fmt: skip
