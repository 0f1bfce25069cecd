"""Rows of the benchmark as tables of cases x methods: `benchmark_tables`.

Which measures are drawn, and which end of each is good, is said by `BENCH`.
"""

from typing import Literal

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError
from workbench.render.figures.tables import NumberTable

BENCH: dict[str, Literal["high", "low"]] = {"edge_auroc": "high", "cpr": "high", "cmd": "low"}
"""Columns of the bench that are drawn, and which end of them is good."""


def numbers_of(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column of a table as floats.

    Raises:
        WorkbenchError: it holds more than numbers.
    """
    try:
        return table[column].to_numpy(dtype=float)
    except (TypeError, ValueError) as error:
        raise WorkbenchError(
            f"The column {column!r} cannot be drawn, as it holds more than numbers: {error}."
        ) from error


def benchmark_tables(rows: pd.DataFrame) -> list[NumberTable]:
    """Cases x methods of each measure of the benchmark, a table for each kind of ablation value."""
    axes = [name for name in ("model", "task") if name in rows]
    # a case is named by what differs between cases
    named = [name for name in axes if len(set(rows[name])) > 1] or axes[-1:]
    cases = []
    for labels in rows[named].to_numpy():
        cases.append(" ".join(dict.fromkeys(map(str, labels))).replace("planted-", ""))
    values = [""] * len(rows)
    if "value" in rows:
        values = rows["value"].tolist()
    measures = []
    for column, best in BENCH.items():
        if column not in rows:
            continue
        numbers = numbers_of(rows, column)
        cells = pd.DataFrame(
            {"case": cases, "method": rows["method"], "of": values, "number": numbers}
        ).dropna()
        for value in dict.fromkeys(cells["of"].tolist()):
            of_value = pd.DataFrame(cells[cells["of"] == value])
            # sort=False keeps cases and methods in the order of the benchmark
            table = of_value.pivot_table(index="case", columns="method", values="number", sort=False)
            suffix = ""
            if len(set(values)) > 1:
                suffix = f", {value} values"
            measures.append(NumberTable(f"{column.replace('_', ' ')}{suffix} ({best} is good)", table, best))
    return measures
