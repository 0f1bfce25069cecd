"""Tables of labels, from files or pandas: their columns, and what their cells mean.

`Labels.from_dataframe` is built of these: `place_columns` and `row_positions` say which tokens a row labels,
`typed` what its cells of a concept are. Concepts and prompts are not known here.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import ProbeError
from workbench.prompts.tables import read_rows
from workbench.sites import Position

PLACES = ("prompt", "pos", "start", "end")
"""Columns that say which token: `pos`, or a span from `start` up to, without, `end`. Others are concepts."""


def check_names(names: Sequence[str], source: str) -> None:
    """Raise unless every column has a name of its own, and there is a position or a span."""
    unnamed = [name for name in names if not name or name.startswith("Unnamed: ")]
    repeated = [name for name in names if names.count(name) > 1]
    if unnamed or repeated:
        fault = "a column without a name (an index? write it with index=False)"
        if not unnamed:
            fault = f"the column {repeated[0]!r} twice"
        raise ProbeError(f"{source} has {fault}. Every column but prompt, pos, start and end is a concept.")
    if "pos" in names and {"start", "end"} & set(names):
        raise ProbeError(f"{source} has both pos and start, end: give a position or a span, not both.")


def place_columns(frame: pd.DataFrame, source: str) -> tuple[str, ...]:
    """The columns that say which token a row labels."""
    spans = "pos" not in frame.columns and "start" in frame.columns
    needed = ("prompt", "pos")
    if spans:
        needed = ("prompt", "start", "end")
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        present = ", ".join(map(str, frame.columns)) or "none"
        raise ProbeError(
            f"{source} has no column {', '.join(missing)}. Needed: {', '.join(needed)} and concepts; it has: "
            f"{present}."
        )
    return needed


def read_cells(path: str | Path, kind: str) -> pd.DataFrame:
    """The cells of a file as they are, every one of them text in a CSV file."""
    rows = read_rows(path, kind, ProbeError)
    if kind == "jsonl":
        return pd.DataFrame(rows, dtype=object)
    header, *cells = rows or [[]]
    for number, row in enumerate(cells, start=1):
        if len(row) != len(header):
            raise ProbeError(
                f"{Path(path).name}, row {number}: {len(row)} fields where the header has {len(header)}."
            )
    return pd.DataFrame(cells, columns=header, dtype=object)


def number_of(cell: Any) -> Any:
    """A cell of a file as an integer where it is one."""
    try:
        if not isinstance(cell, str) and int(cell) == cell:  # 3.0, as pandas reads a column with gaps
            return int(cell)
        return int(str(cell))
    except (TypeError, ValueError, OverflowError):
        return cell


def row_positions(cells: Mapping[str, Any], needed: tuple[str, ...], row: str) -> Iterator[Position]:
    """The positions that a row labels: one, or those of its span."""
    if "pos" in needed:
        position = number_of(cells["pos"])
        if not isinstance(position, int | str):
            raise ProbeError(f"{row}: pos={position!r} is neither an index nor the name of a position.")
        yield position
        return
    start, end = number_of(cells["start"]), number_of(cells["end"])
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        raise ProbeError(
            f"{row}: start={cells['start']!r}, end={cells['end']!r} is not a span: 0 <= start < end."
        )
    yield from range(start, end)


def typed(cells: list[Any]) -> list[Any]:
    """The cells of a concept: text that is all numbers as numbers, all true or false as bools, the rest as it
    is."""
    if not all(isinstance(cell, str) for cell in cells):
        return cells
    if {cell.lower() for cell in cells} <= {"true", "false"}:
        return [cell.lower() == "true" for cell in cells]
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return cells
