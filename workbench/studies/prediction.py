"""The words of a study: `Estimate` (a number, its interval), `Role` (a rule that names heads), `Prediction`.

They are plain data and rules; nothing here knows a model or a circuit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import BeforeValidator

from workbench.statistics import mean_interval


def _nan_if_null(number: float | None) -> float:
    # JSON has no NaN; pydantic writes it as null.
    if number is None:
        return float("nan")
    return number


Real = Annotated[float, BeforeValidator(_nan_if_null)]


@dataclass(frozen=True)
class Estimate:
    """A mean over held-out prompts with its 95 % interval (of random draws: their central 95 %)."""

    name: str
    mean: Real
    low: Real
    high: Real
    note: str = ""

    @classmethod
    def of(cls, name: str, values: np.ndarray, note: str = "") -> "Estimate":
        """The mean of values [example] and its interval; NaN counts as not measured."""
        low, high = mean_interval(np.asarray(values, dtype=float))
        # NaN is a prompt that lacks the position: it is left out of mean and interval alike.
        return cls(name, float(np.nanmean(values)), float(low), float(high), note)

    def above(self, other: "Estimate") -> bool:
        """Whether its whole interval lies above the other's."""
        return self.low > other.high

    def __str__(self) -> str:
        return f"{self.mean:z.3f} [{self.low:z.3f}, {self.high:z.3f}]"


@dataclass(frozen=True)
class Role:
    """A name for heads, given by a rule on the columns of `CircuitExperiment.heads`.

    Attributes:
        at_least: column → the least value that fits.
        at_most: column → the largest value that fits.
    """

    name: str
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)

    def fits(self, head: pd.Series) -> bool:
        """Whether a row of `CircuitExperiment.heads` meets every bound; a column that is missing does not."""
        # NaN fails both comparisons, so a column that was not measured counts as missing.
        for column, bound in self.at_least.items():
            if column not in head or not bool(head[column] >= bound):
                return False
        for column, bound in self.at_most.items():
            if column not in head or not bool(head[column] <= bound):
                return False
        return True

    def __str__(self) -> str:
        bounds = [f"{column} at least {bound}" for column, bound in self.at_least.items()]
        bounds += [f"{column} at most {bound}" for column, bound in self.at_most.items()]
        return ", ".join(bounds)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What an account says an edit will do, fixed before the edit is run.

    Attributes:
        claim: the part of the account that it tests.
        predicted: the number, from earlier measurements.
        edit: runs the edit and returns what is measured, [example].
        within: the prediction holds if the mean differs from it by at most this share of it.
        at_least: if given, it holds instead if the mean is at least this.
    """

    name: str
    claim: str
    predicted: float
    edit: Callable[[], np.ndarray]
    within: float = 0.25
    at_least: float | None = None

    @property
    def criterion(self) -> str:
        """When it holds, in words."""
        if self.at_least is not None:
            return f"at least {self.at_least}"
        return f"within {self.within:.0%}"

    def holds(self, measured: float) -> bool:
        """Whether a measured mean meets the criterion."""
        if self.at_least is not None:
            return measured >= self.at_least
        return abs(measured - self.predicted) <= self.within * abs(self.predicted)
