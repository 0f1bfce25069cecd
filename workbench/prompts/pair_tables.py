"""Tables of pairs: which columns they have, and what a row must hold. `PromptPairs.from_dataframe` reads them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd

from workbench.errors import PromptError
from workbench.prompts.tables import read_rows

COLUMNS = ("clean", "corrupt", "answer", "wrong")
# Columns of further counterfactuals, as people number them: corrupt2, corrupt_3.
FURTHER = re.compile("corrupt[_ ]?([0-9]+)")


def is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def check_row(row: Mapping[Any, Any], corrupt: Sequence[str], name: str) -> None:
    """Raise `PromptError` for a row from which nothing could be measured.

    Args:
        corrupt: the columns of corrupt prompts.
        name: which row it is.
    """
    for column in dict.fromkeys((*COLUMNS, *corrupt)):
        cell = row[column]
        is_missing = pd.api.types.is_scalar(cell) and pd.isna(cell)
        if not isinstance(cell, str) and not is_missing:
            raise PromptError(f"{name}: the column {column!r} is {type(cell).__name__}, not text.")
        if is_missing or not cell.replace("|", "").strip():
            raise PromptError(f"{name}: the column {column!r} is empty.")
    for column in corrupt:
        if row["clean"] == row[column]:
            raise PromptError(f"{name}: clean and {column} are the same, so nothing could make a difference.")
    shared = _alternatives(row["answer"]) & _alternatives(row["wrong"])
    if shared:
        raise PromptError(f"{name}: {sorted(shared)[0]!r} is both an answer and wrong.")


def _alternatives(cell: str) -> set[str]:
    return {text.strip() for text in cell.split("|")} - {""}


def read_table(path: str | Path, kind: str) -> pd.DataFrame:
    rows = read_rows(path, kind, PromptError)
    if kind == "jsonl":
        # As objects: pandas would turn a column of texts and nothing into floats and NaN.
        return pd.DataFrame(rows, dtype=object)
    # A file without a line is a table without columns, of which `from_dataframe` says what is missing.
    header: list[str] = next(iter(rows), [])
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise PromptError(
                f"{Path(path).name}, row {number}: {len(row)} fields where the header has {len(header)}. "
                "Put cells that hold commas in double quotes."
            )
    return pd.DataFrame(rows[1:], columns=header, dtype=object)
