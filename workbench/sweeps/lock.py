"""`locked`: only one process writes into a sweep's folder. The lock of a process that is gone is taken
over."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from workbench.errors import SweepError

LOCK = "sweep.lock"
# Seconds after which a lock without a readable owner counts as left behind: writing one takes milliseconds.
UNREADABLE_FOR = 5.0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder while the `with` block runs.

    Raises:
        SweepError: another process has it; the message says which and since when.
    """
    path = folder / LOCK
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "born": _born(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    while True:
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(owner, file)
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
    """Remove a lock whose process is gone. Raises `SweepError` if it lives, or lives on another machine."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        pid, host, since, born = int(owner["pid"]), owner["host"], owner["since"], owner["born"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        # Its writer is about to say who it is, or died before it could.
        if time.time() - path.stat().st_mtime > UNREADABLE_FOR:
            path.unlink(missing_ok=True)
        time.sleep(0.1)
        return
    is_local = host == socket.gethostname()
    if is_local and _born(pid) != born:
        _remove_stale(path, pid)
        return
    machine, cure = "", "."
    if not is_local:
        machine, cure = f" on {host}", f"; if that machine is gone, delete {str(path)!r}."
    raise SweepError(
        f"Process {pid}{machine} has been running this sweep since {since}. Wait for it, or stop it{cure}"
    )


def _remove_stale(path: Path, pid: int) -> None:
    """Remove the lock of a process that is gone, but not one that another has written in the meantime."""
    moved = path.with_name(f"{LOCK}.{os.getpid()}.gone")
    try:
        # Renaming is atomic: of several processes that see the lock stale, one gets it.
        os.replace(path, moved)
        if json.loads(moved.read_text(encoding="utf-8"))["pid"] != pid:
            os.link(moved, path)
    except FileNotFoundError:
        pass
    finally:
        moved.unlink(missing_ok=True)


def _born(pid: int) -> float | None:
    """When a process started, which tells it from a later one of the same number; None if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except (psutil.Error, ValueError, OverflowError):
        return None
