"""The folder of a sweep: `spec.json` says what was asked, `jobs.jsonl` holds one line for every try of a job."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import SweepError

SPEC, LOG = "spec.json", "jobs.jsonl"
MEASURED = ("done", "nan")
STATUSES = (*MEASURED, "failed", "memory")
"""How a job ends: measured, measured with cells that are no number, raised, or ran out of memory."""


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """Every line of the log, in order. A last line that was torn off while it was written is ignored.

    Raises:
        SweepError: a line before the last one is damaged.
    """
    path = Path(folder) / LOG
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    last = max((number for number, line in enumerate(lines) if line.strip()), default=-1)
    records = []
    for number, line in enumerate(lines[: last + 1]):
        try:
            records.append(_record(line))
        except ValueError as error:
            if number < last:
                raise SweepError(
                    f"Line {number + 1} of {str(path)!r} is damaged: {error}. Delete that line; `workbench sweep resume` runs "
                    "its job again."
                ) from error
    return records


def _record(line: bytes) -> dict[str, Any]:
    found = json.loads(line.decode())
    if not isinstance(found, dict) or not isinstance(found.get("job"), str) or found.get("status") not in STATUSES:
        raise ValueError(f"it is no object with a job and a status ({', '.join(STATUSES)})")
    return found


def last_tries(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The line that counts for each job: the last one that was measured, or else the last one."""
    kept: dict[str, Mapping[str, Any]] = {}
    for record in records:
        before = kept.get(record["job"])
        if before is None or record["status"] in MEASURED or before["status"] not in MEASURED:
            kept[record["job"]] = record
    return list(kept.values())


def read_header(folder: str | Path) -> dict[str, Any]:
    """What `spec.json` holds: `spec`, `jobs`, `made`, `versions`. Raises `SweepError` where the folder is no sweep's."""
    folder = Path(folder)
    path = folder / SPEC
    if not folder.is_dir():
        raise SweepError(
            f"There is no folder {str(folder)!r}. Give the folder of a sweep, as `workbench sweep run --out` made it."
        )
    if not path.is_file():
        held = sorted(each.name for each in folder.iterdir())[:8]
        raise SweepError(
            f"{str(folder)!r} is no folder of a sweep: it has no {SPEC}. It holds: {', '.join(held) or 'nothing'}. "
            "Start one with `workbench sweep run --out FOLDER`."
        )
    try:
        header = json.loads(path.read_bytes().decode())
    except ValueError as error:
        raise SweepError(f"{str(path)!r} cannot be read: {error}. Run the sweep anew into another folder.") from error
    if not isinstance(header, dict) or not isinstance(header.get("spec"), dict):
        raise SweepError(f"{str(path)!r} cannot be read: it has no object 'spec'. Run the sweep anew into another folder.")
    return header
