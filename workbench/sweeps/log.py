"""The folder of a sweep: its spec, a log to which every finished job is appended, and the lock of the one that writes.

A batch is one write and one fsync, so that a killed run loses at most the batch it was in, and a line that was torn is cut off
by the next run. Nothing is ever rewritten: of several lines of a job the last that succeeded counts.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from workbench.errors import OutputExists, SweepError
from workbench.files import whole
from workbench.sweeps.spec import SweepSpec, read_spec

SPEC, LOG, TABLE, LOCK = "spec.json", "jobs.jsonl", "rows.parquet", "sweep.lock"
Row = dict[str, Any]


def read_log(folder: Path) -> list[Row]:
    """Every line of the log, in order; a last line that was torn is left out.

    Raises:
        SweepError: a line that cannot be read, though others follow it.
    """
    path = folder / LOG
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows: list[Row] = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not {"job", "status"} <= set(row):
                raise ValueError("it has no job and status")
        except (ValueError, RecursionError) as error:
            raise SweepError(
                f"Line {number} of {str(path)!r} is damaged: {error}. Delete that line; its job is run again."
            ) from error
        rows.append(row)
    return rows


def latest(rows: Iterable[Row]) -> dict[str, Row]:
    """The line that counts of each job: the last that is done, else the last."""
    found: dict[str, Row] = {}
    for row in rows:
        if row["status"] == "done" or found.get(row["job"], row)["status"] != "done":
            found[row["job"]] = row
    return found


def read_made(folder: Path) -> SweepSpec:
    """The spec of the sweep in a folder.

    Raises:
        SweepError: there is none, or it cannot be read.
    """
    path = folder / SPEC
    if not path.is_file():
        raise SweepError(
            f"{str(folder)!r} holds no sweep (it has no {SPEC}). Start one: workbench sweep run SPEC --out {folder}."
        )
    try:
        return read_spec(json.loads(path.read_text(encoding="utf-8"))["spec"])
    except (ValueError, KeyError, TypeError) as error:
        raise SweepError(f"{str(path)!r} cannot be read: {error}.") from error


def begin(folder: Path, spec: SweepSpec, about: Mapping[str, Any], *, extend: bool) -> None:
    """Make the folder, or check that it holds this sweep.

    Raises:
        SweepError: it holds another one, and `extend` is not set; the message says what differs.
        OutputExists: it is a file, or holds other things.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExists(f"{str(folder)!r} cannot be a sweep's folder: {error.strerror}. Choose another with --out.") from error
    if (folder / SPEC).exists():
        before, now = read_made(folder).to_dict(), spec.to_dict()
        changed = [f"{key}: {before[key]!r} there, {now[key]!r} here" for key in now if before[key] != now[key]]
        if changed and not extend:
            raise SweepError(
                f"{str(folder)!r} holds another sweep: {'; '.join(changed)}. Choose another folder, or pass extend=True "
                "(--extend) to add these jobs to it."
            )
        if not changed:
            return
    elif others := [path.name for path in folder.iterdir() if path.name != LOCK]:
        raise OutputExists(f"{str(folder)!r} is no sweep and not empty (it has {others[0]!r}). Choose another folder.")
    with whole(folder / SPEC) as partial:
        partial.write_text(json.dumps({"spec": spec.to_dict(), **about}, indent=1) + "\n", encoding="utf-8")


class Log:
    """Appends rows; what it has returned from is on the disk."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG
        self.path.touch()
        content = self.path.read_bytes()
        torn = len(content) - (content.rfind(b"\n") + 1)
        if torn:
            os.truncate(self.path, len(content) - torn)

    def append(self, rows: Iterable[Row]) -> None:
        text = "".join(json.dumps(_finite(row), separators=(",", ":")) + "\n" for row in rows)
        with open(self.path, "ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def _finite(row: Row) -> Row:
    """The row with null for what is not a number, which JSON cannot hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.9g}") if value - value == 0 else None
        return [plain(each) for each in value] if isinstance(value, list) else value

    extra = {key: plain(value) for key, value in row.get("extra", {}).items()}
    return row | {key: plain(row[key]) for key in ("values", "m_base") if key in row} | {"extra": extra}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process writes into a folder; the lock of one that is gone is taken over.

    Raises:
        SweepError: another process has it; the message says which and since when.
    """
    path = folder / LOCK
    mine = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "born": _born(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    while True:
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(mine, file)
                file.flush()
                os.fsync(file.fileno())
            break
        except FileExistsError:
            _take_over(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take_over(path: Path) -> None:
    """Remove a lock whose process is gone; raise if it lives, or lives on another machine."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        pid, host, since, born = held["pid"], held["host"], held["since"], held["born"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        age = time.time() - path.stat().st_mtime
        if age > 5:  # its writer died before it said who it was
            path.unlink(missing_ok=True)
        time.sleep(0.1)
        return
    if host == socket.gethostname() and _born(pid) != born:
        gone = path.with_name(f"{LOCK}.{os.getpid()}.gone")
        try:
            os.replace(path, gone)  # of several that see it stale, one removes it
            if json.loads(gone.read_text(encoding="utf-8"))["pid"] != pid:
                os.link(gone, path)
        except FileNotFoundError:
            pass
        finally:
            gone.unlink(missing_ok=True)
        return
    where = "" if host == socket.gethostname() else f" on {host}"
    raise SweepError(
        f"Process {pid}{where} has been running this sweep since {since}. Wait for it, or stop it"
        + (f"; if that machine is gone, delete {str(path)!r}." if where else ".")
    )


def _born(pid: int) -> float | None:
    """When a process started, which tells it from a later one of the same number; None if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
