"""The files of a run's folder that can be shown: circuits, results and tables, known by their names.

Read `run_files`, then `read_file`. Nothing here knows how they are shown.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.parquet import read_metadata

from workbench import results
from workbench.circuit.circuit import Circuit
from workbench.errors import WorkbenchError

MOST_CELLS = 2**28
"""Cells of a table, at most: a file of a few bytes can stand for any number of equal rows."""


def _table(path: Path) -> pd.DataFrame:
    try:
        facts = read_metadata(path)
        if facts.num_rows * facts.num_columns > MOST_CELLS:
            raise WorkbenchError(
                f"{str(path)!r} promises {facts.num_rows} rows of {facts.num_columns} columns: too many to "
                "show."
            )
        return pd.read_parquet(path)
    # pyarrow raises each of these for a damaged file, depending on where it is damaged.
    except (OSError, ValueError, NotImplementedError) as error:
        raise WorkbenchError(f"{str(path)!r} cannot be read as a table: {error}") from error


_READERS: dict[str, Callable[[Path], Any]] = {
    "circuit": Circuit.load,
    "result": results.load,
    "table": _table,
}
_KINDS = {".json": "circuit", ".nc": "result", ".parquet": "table"}


def read_file(path: Path, kind: str) -> Any:
    return _READERS[kind](path)


def run_files(folder: Path) -> dict[str, str]:
    """The files of a folder that can be shown, with their kinds; circuits first."""
    if not folder.is_dir():
        raise WorkbenchError(
            f"There is no folder {str(folder)!r}. Give the folder of a run, as printed at its end."
        )
    kinds = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _KINDS and path.is_file() and _may_be_shown(path):
            kinds[path.name] = _KINDS[path.suffix]
    if not kinds:
        raise WorkbenchError(f"{str(folder)!r} holds nothing to show: no circuit.json, .nc or .parquet file.")
    order = list(_READERS)
    return dict(sorted(kinds.items(), key=lambda item: (order.index(item[1]), item[0])))


def _may_be_shown(path: Path) -> bool:
    # Other .json files may hold anything; circuits are known by their names.
    return path.suffix != ".json" or path.name == "circuit.json" or path.name.endswith(".circuit.json")
