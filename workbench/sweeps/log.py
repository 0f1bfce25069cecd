"""The log of a sweep, `jobs.jsonl`: one line for every try of a job. Read `read_log` and `Log`.

A batch is one write and one fsync, so that a killed run loses at most the batch it was in, and a line that
was torn is cut off by the next run. Nothing is ever rewritten. Each line ends with a checksum of itself
(those of version 0.2 have none). What a line means for tables and pictures is not known here.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from workbench.documents import parse_json
from workbench.errors import CannotWrite, SweepError
from workbench.files import check_ordinary
from workbench.names import OTHER_SIDE, SIDES, other_side

LogRow = dict[str, Any]
FLAGS = (
    "study", "model", "checkpoint", "task", "split",
    "variant", "n", "seed", "base", "metric", "value", "what",
)  # fmt: skip
LOG = "jobs.jsonl"
MEASURED = ("done", "nan")
# How a job ends: measured; without a finite number; with an error; or out of memory.
STATUSES = (*MEASURED, "failed", "memory")
# How a line ends: xxh3_64 of the bytes before.
_SUM = re.compile(rb',"sum":"([0-9a-f]{16})"\}\s*')


def read_log(folder: str | Path) -> list[LogRow]:
    """Every line of the log, in order. A last line that was torn off while it was written is ignored.

    Values are under their one name: lines of earlier versions say "other" for the run that is not edited.

    Raises:
        SweepError: a line is damaged, and not merely torn (which the last one may be), or the log cannot be
            read.
    """
    path = Path(folder) / LOG
    if not path.exists():
        return []
    try:
        check_ordinary(path)
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SweepError(f"The log {str(path)!r} cannot be read: {error.strerror}.") from error
    last = max((number for number, line in enumerate(lines) if line.strip()), default=-1)
    rows: list[LogRow] = []
    for number, line in enumerate(lines[: last + 1]):
        try:
            rows.append(_parsed(line))
        except ValueError as error:
            # A torn line lacks its line end, or holds zeros where the power failed before its bytes came.
            is_torn = number == len(lines) - 1 or b"\0" in line
            if number < last or not is_torn:
                raise SweepError(
                    f"Line {number + 1} of {str(path)!r} is damaged: {error}. Delete that line; `workbench "
                    "sweep resume` runs its job again."
                ) from error
    return rows


def last_tries(rows: Iterable[LogRow]) -> list[LogRow]:
    """The line that counts for each job: the last one that was measured, or else the last one."""
    kept: dict[str, LogRow] = {}
    for row in rows:
        before = kept.get(row["job"])
        if before is None or row["status"] in MEASURED or before["status"] not in MEASURED:
            kept[row["job"]] = row
    return list(kept.values())


def value_name(name: Any, base: Any) -> Any:
    """A value's one name: "other" and "from_store" become the run that is not edited."""
    if isinstance(name, str) and name in OTHER_SIDE and base in SIDES:
        return other_side(str(base))
    return name


class Log:
    """Appends rows; when `append` returns they are on the disk.

    Args:
        check: called before each append; raises where this process has lost the folder's lock.
    """

    def __init__(self, folder: Path, check: Callable[[], None] = lambda: None) -> None:
        self.path, self.check = folder / LOG, check
        # What is torn at its end is cut off, which would harm a file of somebody's own that a link leads to.
        if self.path.is_symlink():
            raise SweepError(
                f"{str(self.path)!r} is a link, and the log of a sweep is a file of its folder. Put the file "
                "there, or run the sweep where it is."
            )
        try:
            self.path.touch()
            self._cut_torn_line()
        except OSError as error:
            raise CannotWrite(f"{str(self.path)!r} cannot be written: {error.strerror}.") from error

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows as one block, so that a killed process leaves at most one torn line."""
        lines = [_line(row) for row in rows]
        self.check()
        try:
            with open(self.path, "ab") as file:
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CannotWrite(
                f"{str(self.path)!r} cannot be written: {error.strerror}. The jobs that it lists are kept; "
                "`workbench sweep resume` runs the others."
            ) from error

    def _cut_torn_line(self) -> None:
        """Remove what a killed run left after the last whole row: the next row must not be glued to it."""
        content = self.path.read_bytes()
        whole_lines = content[: content.rfind(b"\n") + 1]
        last_line = whole_lines[whole_lines[:-1].rfind(b"\n") + 1 :]
        if last_line and not _is_row(last_line):
            whole_lines = whole_lines[: len(whole_lines) - len(last_line)]
        if len(whole_lines) < len(content):
            os.truncate(self.path, len(whole_lines))


def _line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of the log."""
    text = json.dumps(_jsonable(row), separators=(",", ":"), ensure_ascii=False)
    # Without the closing bracket. A message may hold a lone surrogate, which UTF-8 cannot encode.
    content = text[:-1].encode(errors="replace")
    return b'%b,"sum":"%b"}\n' % (content, xxhash.xxh3_64_hexdigest(content).encode())


def _is_row(line: bytes) -> bool:
    try:
        _parsed(line)
    except ValueError:
        return False
    return True


def _parsed(line: bytes) -> LogRow:
    """A line as a row. Raises `ValueError` with what is wrong with it."""
    content, mark, end = line.rpartition(b',"sum":"')
    signature = _SUM.fullmatch(mark + end)
    if signature is not None:
        if xxhash.xxh3_64_hexdigest(content).encode() != signature[1]:
            raise ValueError("it was changed since it was written (checksum)")
        line = content + b"}"
    row = parse_json(line)
    if not isinstance(row, dict) or not isinstance(row.get("job"), str) or row.get("status") not in STATUSES:
        raise ValueError(f"it is not an object with a job and a status ({', '.join(STATUSES)})")
    # A checksum that is not where lines end: another program wrote the line again, in its own layout.
    if "sum" in row:
        raise ValueError("it was written anew by another program (checksum)")
    missing = [flag for flag in FLAGS if flag not in row]
    if missing:
        raise ValueError(f"it has no {missing[0]!r}")
    for name in ("values", "m_base"):
        if not _are_numbers(row.get(name, [])):
            raise ValueError(f"{name!r} is not a list of numbers")
    for flag in FLAGS:
        kind = str | None
        if flag in ("checkpoint", "n", "seed"):
            kind = int | None
        if not isinstance(row[flag], kind):
            raise ValueError(f"{flag!r} is {row[flag]!r}")
    _check_extra(row.get("extra", {}))
    if "value" in row:
        row["value"] = value_name(row["value"], row.get("base"))
    return row


def _check_extra(extra: Any) -> None:
    """Raise `ValueError` unless what a job reports beside its values has a form that studies write."""
    if not isinstance(extra, dict):
        raise ValueError("'extra' is not an object")
    for name, value in extra.items():
        if name in ("edges", "order"):
            fits = isinstance(value, list) and set(map(type, value)) <= {str}
        elif "order" in extra:
            fits = _are_numbers(value)  # a job that adds sites one by one has a number a step
        else:
            fits = _are_numbers([value])
        if not fits:
            raise ValueError(f"'extra' has another kind of {name!r} than a study writes")
    if "order" in extra:
        lengths = {len(extra.get(name, [])) for name in ("mean", "low", "high")}
        if lengths != {len(extra["order"])}:
            raise ValueError("'extra' does not have one mean, low and high for each step of 'order'")


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and set(map(type, values)) <= {int, float, type(None)}


def _jsonable(row: Mapping[str, Any]) -> LogRow:
    """The row with null for what is not a number, which JSON cannot hold, and nine digits (float32 has
    fewer)."""

    def plain(value: Any) -> Any:
        """A number or a list of them as JSON can hold it."""
        if isinstance(value, float):
            if value - value != 0:  # infinite or not a number: its difference from itself is NaN
                return None
            return float(f"{value:.9g}")
        if isinstance(value, list):
            return list(map(plain, value))
        return value

    extra = {name: plain(value) for name, value in row.get("extra", {}).items()}
    numbers = {name: plain(row[name]) for name in ("values", "m_base") if name in row}
    return {**row} | numbers | {"extra": extra}
