"""`Concept`: what is known of every labelled row, as classes or as a number.

Bools, texts, and 0 and 1 alone are classes; other numbers are numbers. Which tokens the rows are is not known
here (`labels`).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ProbeError
from workbench.text import with_article


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept's values on every row.

    Attributes:
        classes: their names, sorted; the last of two is the positive one. Empty for a number.
        codes: [row]: index of the class, or the number.
    """

    name: str
    classes: tuple[str, ...]
    codes: np.ndarray

    @property
    def loss(self) -> str:
        """Which regression fits it: logistic, softmax or squares."""
        if not self.classes:
            return "squares"
        if len(self.classes) == 2:
            return "logistic"
        return "softmax"

    @property
    def n_outputs(self) -> int:
        """Logits that a probe of it has: one for each of several classes."""
        if len(self.classes) > 2:
            return len(self.classes)
        return 1

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> "Concept":
        """A concept of bools, strings or numbers.

        Raises:
            ProbeError: a value is missing, infinite or of another kind than the others, or all are the same.
        """
        column = pd.Series([_plain(value) for value in values], dtype=object)
        unusable = [v for v in column if not isinstance(v, bool | int | float | str) and v is not None]
        if unusable:
            raise ProbeError(
                f"Concept {name!r} has {with_article(type(unusable[0]).__name__)} among its labels: bools, "
                "texts or numbers are needed."
            )
        missing = column.isna() | (column == "")
        if missing.any():
            raise ProbeError(
                f"Concept {name!r} has no label in row {int(np.flatnonzero(missing)[0])} "
                f"({int(missing.sum())} of {len(column)} are missing). Leave these rows out, or label them."
            )
        kinds = {_kind(value) for value in column}
        if len(kinds) > 1:
            raise ProbeError(
                f"Concept {name!r} mixes {' and '.join(sorted(kinds))}: give labels of one kind."
            )
        if column.nunique() < 2:
            raise ProbeError(
                f"Concept {name!r} is {column.iloc[0]!r} in every row: a probe needs at least two values."
            )
        # Labels of 0 and 1 alone mean no and yes, so they are two classes.
        if kinds == {"number"} and set(column) != {0, 1}:
            return cls(name, (), _finite_numbers(name, column))
        if kinds == {"number"}:
            column = column.astype(int)  # 1.0 and 1 are one class
        names = column.astype(str)
        classes, codes = np.unique(names.to_numpy(dtype=str), return_inverse=True)
        return cls(name, tuple(map(str, classes)), codes)


def _kind(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, str):
        return "text"
    return "number"


def _finite_numbers(name: str, column: pd.Series) -> np.ndarray:
    try:
        numbers = column.to_numpy(dtype=float)
    except OverflowError as error:
        row = next(i for i, number in enumerate(column) if abs(number) > sys.float_info.max)
        raise ProbeError(
            f"Concept {name!r} has a number in row {row} that is too large: at most "
            f"{sys.float_info.max:.2g}, the largest float."
        ) from error
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ProbeError(f"Concept {name!r} has an infinite value in row {row}.")
    return numbers


def _plain(value: Any) -> Any:
    """A label as Python's own; a lone surrogate, which no array of texts can hold, is spelled out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    # `item` makes numbers of numpy and torch Python's own.
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    return value
