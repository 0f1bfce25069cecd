"""`Criteria`: when a circuit may be believed to do what the model does.

A faithfulness near 1 alone shows nothing: a circuit can miss the model on every prompt and be right on
average, and reproduce one counterfactual and no other. So four criteria have to hold together, against every
counterfactual. Read `Criteria.held`. No circuit is run here.

Sources: 2407.08734 (choices that move faithfulness), 2211.00593 (completeness, minimality).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from workbench.arguments import checked
from workbench.errors import CircuitError
from workbench.text import wrapped

SURE = 0.9
"""In what share of resamples a bound has to hold on the prompts that choose a size."""
MIN_PROMPTS = 4
"""The fewest prompts to choose or to test a circuit with: an interval over fewer says nothing."""
USUAL_PROMPTS = 32
"""Prompts below which the choice of a circuit is said to rest on few."""
LETTERS = "abcd"
"""The names of the four criteria."""


@dataclass(frozen=True)
class Bound:
    """One bound of criteria, beside its default."""

    value: Any
    default: Any


@checked
@dataclass(frozen=True)
class Criteria:
    """Bounds that a circuit has to keep, on prompts that did not choose it and against every counterfactual.

    Attributes:
        faithfulness: (a) where the interval of faithfulness has to lie.
        error: (b) the largest mean |m_C - m_full|, as a share of mean |m_full - m_empty|.
        prompts_near: (b) the least share of prompts on which |m_C - m_full| is at most half of the prompt's own
            |m_full - m_empty|. A mean alone can hide half of the prompts: those whose corruption changes little.
        kl_recovered: (c) the least 1 - KL(full, C) / KL(full, empty).
        answers_kept: (d) the least share of the model's right answers that the circuit gives too.
        same_choice: (d) the least share of prompts with the model's first choice (of answers of several tokens, at
            each of them).
        at_most: the largest share of the graph's edges that still counts as a circuit.

    Raises:
        CircuitError: bounds that no circuit or every circuit keeps.

    >>> Criteria(error=0.1).error
    0.1
    """

    faithfulness: tuple[float, float] = (0.85, 1.15)
    error: float = 0.15
    prompts_near: float = 0.80
    kl_recovered: float = 0.90
    answers_kept: float = 0.95
    same_choice: float = 0.85
    at_most: float = 0.15

    def __repr__(self) -> str:
        bounds = (f"{field.name}={getattr(self, field.name)}" for field in fields(self))
        return wrapped(f"Criteria({', '.join(bounds)})")

    def __post_init__(self) -> None:
        low, high = self.faithfulness
        if not low <= 1 <= high:
            raise CircuitError(
                f"Criteria: faithfulness={self.faithfulness} leaves out 1, which is the model itself."
            )
        if not self.error >= 0:
            raise CircuitError(f"Criteria: error={self.error}; a number from 0 up is needed.")
        for name in ("prompts_near", "kl_recovered", "answers_kept", "same_choice", "at_most"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise CircuitError(f"Criteria: {name}={share}; a share from 0 to 1 is needed.")
        if not self.at_most:
            raise CircuitError("Criteria: at_most=0 leaves no edge for a circuit.")
        nothing_asked = not (self.prompts_near or self.kl_recovered or self.answers_kept or self.same_choice)
        if low <= 0 and self.error >= 1 and nothing_asked:
            raise CircuitError(
                "Criteria: the circuit without an edge keeps these bounds, so they say nothing."
            )

    def held(self, measures: Mapping[str, np.ndarray], *, margin: bool = False) -> dict[str, np.ndarray]:
        """Letter → whether the criterion holds, bool of the shape of the measures; NaN holds nothing.

        Args:
            measures: arrays by name, as in `evaluate`: `low` and `high` of the faithfulness, `error`,
                `prompts_near`, `kl_recovered`, `answers_kept`, `same_choice`. Where the model gets no prompt right,
                `answers_kept` is NaN, and (d) cannot hold.
            margin: the error of (b), and (c), have to hold in most resamples of the prompts too, by `error_bound` and
                `kl_recovered_bound`. That is for prompts that choose among many circuits: the smallest whose
                number keeps a bound there keeps it by luck, and misses it on the next prompts half of the time.
                The shares of (b) and (d) are counts, which no circuit would keep so surely on 64 prompts.
        """
        low, high = self.faithfulness
        return {
            "a": (measures["low"] >= low) & (measures["high"] <= high),
            "b": (measures["error_bound" if margin else "error"] <= self.error)
            & (measures["prompts_near"] >= self.prompts_near),
            "c": measures["kl_recovered_bound" if margin else "kl_recovered"] >= self.kl_recovered,
            "d": (measures["answers_kept"] >= self.answers_kept)
            & (measures["same_choice"] >= self.same_choice),
        }

    def text(self, letter: str) -> str:
        """A criterion with its bounds, in words."""
        low, high = self.faithfulness
        words = {
            "a": f"the 95 % interval of faithfulness lies inside [{low:g}, {high:g}]",
            "b": f"the error per prompt is at most {self.error:g} of the mean gap, and on {self.prompts_near:.0%} of "
            "the prompts at most half of their own gap",
            "c": f"the share of KL recovered is at least {self.kl_recovered:.0%}",
            "d": f"right answers kept are at least {self.answers_kept:.0%}, and the model's first choice kept "
            f"{self.same_choice:.0%}",
        }
        return f"({letter}) {words[letter]}"

    def looser(self) -> dict[str, Bound]:
        """Name → bound, of those that let through more than the default does."""
        default = Criteria()
        low, high = self.faithfulness
        bounds = {name: Bound(getattr(self, name), getattr(default, name)) for name in vars(default)}
        is_looser = {
            "faithfulness": low < default.faithfulness[0] or high > default.faithfulness[1],
            "error": self.error > default.error,
            "at_most": self.at_most > default.at_most,
        }
        shares = ("prompts_near", "kl_recovered", "answers_kept", "same_choice")
        is_looser |= {name: bounds[name].value < bounds[name].default for name in shares}
        return {name: bound for name, bound in bounds.items() if is_looser[name]}
