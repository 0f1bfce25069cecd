"""A circuit studied: found, tested on held-out prompts, and told as a story that edits can refute.

A `Study` is what is particular to a behaviour: its roles, its account, and the tests of it. `Bench` is what it measures with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.statistics import mean_interval

if TYPE_CHECKING:
    from workbench.studies.bench import Bench


@dataclass(frozen=True)
class Role:
    """What a head of the circuit is called when its columns of `Bench.heads` are at least and at most so much."""

    name: str
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)

    def fits(self, head: pd.Series) -> bool:
        sides = ((self.at_least, 1), (self.at_most, -1))
        return all(
            column in head and sign * (head[column] - bar) >= 0
            for part, sign in sides
            for column, bar in part.items()
        )

    def __str__(self) -> str:
        sides = ((self.at_least, "at least"), (self.at_most, "at most"))
        return ", ".join(f"{column} {word} {bar}" for part, word in sides for column, bar in part.items())


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a story says an edit will do, fixed before the edit is run.

    Attributes:
        claim: the part of the story that it tries.
        predicted: the number, from earlier measurements.
        edit: runs it, [example].
        within: the prediction holds if the mean is this close to it, as a share of it.
        at_least: or instead, if the mean is at least this.
    """

    name: str
    claim: str
    predicted: float
    edit: Callable[[], np.ndarray]
    within: float = 0.25
    at_least: float | None = None

    @property
    def criterion(self) -> str:
        return f"within {self.within:.0%}" if self.at_least is None else f"at least {self.at_least}"

    def holds(self, measured: float) -> bool:
        if self.at_least is not None:
            return measured >= self.at_least
        return abs(measured - self.predicted) <= self.within * abs(self.predicted)


@dataclass(frozen=True, eq=False)
class Study:
    """A behaviour, and what is particular to it.

    Attributes:
        account: the story in words; a hypothesis, which the tests try.
        roles: names for heads, by rules; the first rule that fits counts.
        tests: the predictions, in the order in which they are run.
        watched: the role whose queries and keys are traced to what writes them.
        limits: what else is not explained.
        method: of `score_edges`.  n: prompts to find it on, and as many held-out ones.
        share: of the behaviour that the circuit has to keep on the prompts of the search.
        reference: a published circuit of the same behaviour.
    """

    task: str
    title: str
    account: str
    roles: Sequence[Role]
    tests: Callable[["Bench"], list[Prediction]] = lambda bench: []
    watched: str = ""
    limits: Sequence[str] = ()
    method: str = "eap-ig-inputs"
    n: int = 48
    share: float = 0.9
    reference: str | None = None


@dataclass(frozen=True)
class Number:
    """A mean over held-out prompts with its 95 % interval (of random draws: their central share)."""

    name: str
    mean: float
    low: float
    high: float
    note: str = ""

    @classmethod
    def of(cls, name: str, values: np.ndarray, note: str = "") -> "Number":
        low, high = mean_interval(np.asarray(values, dtype=float))
        return cls(name, float(np.nanmean(values)), float(low), float(high), note)

    def above(self, other: "Number") -> bool:
        """Whether its whole interval is."""
        return self.low > other.high

    def __str__(self) -> str:
        return f"{self.mean:z.3f} [{self.low:z.3f}, {self.high:z.3f}]"
