"""The folder of a sweep: `spec.json` says what was asked, `jobs.jsonl` holds one line for every try of a job.

A batch is one write and one fsync, so that a killed run loses at most the batch it was in, and a line that was torn is cut off
by the next run. Nothing is ever rewritten.
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

FLAGS = (
    "study",
    "model",
    "checkpoint",
    "task",
    "split",
    "variant",
    "n",
    "seed",
    "base",
    "metric",
    "value",
    "what",
)
SPEC, LOG, TABLE, LOCK = "spec.json", "jobs.jsonl", "rows.parquet", "sweep.lock"
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
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("job"), str)
        or found.get("status") not in STATUSES
    ):
        raise ValueError(f"it is no object with a job and a status ({', '.join(STATUSES)})")
    for name in ("values", "m_base"):
        if not _numbers(found.get(name, [])):
            raise ValueError(f"{name!r} is no list of numbers")
    for flag in FLAGS:
        if not isinstance(found.get(flag), int | None if flag in ("checkpoint", "n", "seed") else str | None):
            raise ValueError(f"{flag!r} is {found[flag]!r}")
    _check_extra(found.get("extra", {}))
    return found


def _check_extra(extra: Any) -> None:
    """Raise `ValueError` where what a job reports beside its values is nothing that a study writes."""
    if not isinstance(extra, dict):
        raise ValueError("'extra' is no object")
    for name, value in extra.items():
        if name in ("edges", "order"):
            fits = isinstance(value, list) and set(map(type, value)) <= {str}
        else:
            fits = _numbers(value if "order" in extra else [value])
        if not fits:
            raise ValueError(f"'extra' has another kind of {name!r} than a study writes")
    if "order" in extra and {len(extra.get(name, [])) for name in ("mean", "low", "high")} != {
        len(extra["order"])
    }:
        raise ValueError("'extra' has not one mean, low and high for each step of 'order'")


def _numbers(found: Any) -> bool:
    return isinstance(found, list) and set(map(type, found)) <= {int, float, type(None)}


def last_tries(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The line that counts for each job: the last one that was measured, or else the last one."""
    kept: dict[str, Mapping[str, Any]] = {}
    for record in records:
        before = kept.get(record["job"])
        if before is None or record["status"] in MEASURED or before["status"] not in MEASURED:
            kept[record["job"]] = record
    return list(kept.values())


def read_header(folder: str | Path) -> dict[str, Any]:
    """What `spec.json` holds: `spec`, `jobs`, `made`, `versions`, `command`. Raises `SweepError` where the folder is no sweep's."""
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
        raise SweepError(
            f"{str(path)!r} cannot be read: {error}. Run the sweep anew into another folder."
        ) from error
    if not isinstance(header, dict) or not isinstance(header.get("spec"), dict):
        raise SweepError(
            f"{str(path)!r} cannot be read: it has no object 'spec'. Run the sweep anew into another folder."
        )
    return header


def claim(folder: Path) -> None:
    """Make the folder. Raises `OutputExists` where it is a file, or holds other things."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = [path.name for path in folder.iterdir()]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OutputExists(
            f"{str(folder)!r} cannot be a sweep's folder: {why}. Choose another with --out."
        ) from error
    others = [
        name for name in held if not name.startswith((SPEC, LOCK))
    ]  # of a runner that has just begun, or was killed then
    if others and SPEC not in held:
        raise OutputExists(
            f"{str(folder)!r} is no sweep and not empty (it has {others[0]!r}). Choose another folder."
        )


def begin(folder: Path, spec: SweepSpec, about: Mapping[str, Any], *, extend: bool) -> None:
    """Write the spec into a folder that this process has locked, or check that it is there.

    Raises:
        SweepError: it holds another one, and `extend` is not set; the message says what differs.
    """
    if (folder / SPEC).exists():
        header = read_header(folder)
        before, now = read_spec(header["spec"]).to_dict(), spec.to_dict()
        changed = [f"{key}: {_difference(before[key], now[key])}" for key in now if before[key] != now[key]]
        if changed and not extend:
            raise SweepError(
                f"{str(folder)!r} holds another sweep: {'; '.join(changed)}. Choose another folder, or pass extend=True "
                "(--extend) to add these jobs to it."
            )
        if not changed:
            return
        about = {**about, "command": "\n".join(filter(None, (header.get("command"), about.get("command"))))}
    with whole(folder / SPEC) as partial:
        partial.write_text(json.dumps({"spec": spec.to_dict(), **about}, indent=1) + "\n", encoding="utf-8")


def _difference(before: Any, now: Any) -> str:
    """What is there and not here, and the other way round; of lists only the entries that differ."""
    if isinstance(before, list) and isinstance(now, list):
        before, now = (
            [each for each in before if each not in now],
            [each for each in now if each not in before],
        )
    return f"{before} there, {now} here"


class Log:
    """Appends rows; what it has returned from is on the disk."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG
        self.path.touch()
        content = self.path.read_bytes()
        kept = content[: content.rfind(b"\n") + 1]
        last = kept[kept[:-1].rfind(b"\n") + 1 :]
        try:
            _record(last or b"{}")
        except ValueError:
            kept = kept[: len(kept) - len(last)] if last else kept
        if len(kept) < len(content):
            os.truncate(self.path, len(kept))

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(
            json.dumps(_finite(row), separators=(",", ":"), ensure_ascii=False) + "\n" for row in rows
        )
        with open(self.path, "ab") as file:
            file.write(
                text.encode(errors="replace")
            )  # half a surrogate pair can be in a message, and in no table
            file.flush()
            os.fsync(file.fileno())


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with null for what is not a number, which JSON cannot hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.9g}") if value - value == 0 else None
        return [plain(each) for each in value] if isinstance(value, list) else value

    extra = {key: plain(value) for key, value in row.get("extra", {}).items()}
    return {**row} | {key: plain(row[key]) for key in ("values", "m_base") if key in row} | {"extra": extra}


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
        pid, host, since, born = int(held["pid"]), held["host"], held["since"], held["born"]
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
    except (psutil.Error, ValueError, OverflowError):
        return None
