"""Rows of CSV and JSON Lines files, with errors that name the row.

Read `read_rows`. It knows nothing of what the columns mean.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError


def json_rows(text: str) -> list[dict[str, Any]]:
    """One JSON object a line. Raises `ValueError` for anything else."""
    # Not `splitlines`: it also splits at U+2028 and others, which may stand within a string.
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is a {type(row).__name__}, not an object")
    return rows


def read_rows(path: str | Path, kind: str, refused: type[WorkbenchError]) -> list[Any]:
    """The objects of a "jsonl" file, or the rows of cells of a "csv" file, its header first.

    Raises `refused` when it is neither.
    """
    try:
        # Spreadsheets put a byte order mark in front.
        text = Path(path).read_text(encoding="utf-8-sig")
        if kind == "jsonl":
            return json_rows(text)
        # newline="": line ends within quotes belong to the cell.
        return list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except FileNotFoundError as error:
        raise refused(f"There is no file {str(path)!r}.") from error
    except (ValueError, OSError, RecursionError, csv.Error) as error:
        raise refused(f"{str(path)!r} cannot be read as {kind}: {error}") from error
