"""`locked`: only one process writes into a sweep's folder. The lock of a process that is gone is taken over.

On one machine the operating system knows which process holds a lock, and releases it when that process ends.
For folders that several machines share there is a heartbeat besides: a count in a file, which the owner
increases as long as it lives. A waiter takes over once the count has not changed for `PATIENCE` seconds of
the waiter's own monotonic clock. The time of day is not used: clocks are set forward and back.
"""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from filelock import FileLock, Timeout

from workbench.documents import read_json
from workbench.errors import CannotWrite, SweepError
from workbench.files import sync
from workbench.progress import write_line
from workbench.text import spelled

LOCK = "sweep.lock"
# Beside it: the file that the operating system locks, and the heartbeat of each owner. The first stays when
# the sweep has ended: if it were removed, two processes could each lock a file of that name.
SYSTEM_LOCK, BEAT = f"{LOCK}.system", f"{LOCK}.beat."
# Seconds after which a lock without a readable owner counts as left behind: writing one takes milliseconds.
UNREADABLE_FOR = 5.0
# Seconds between two beats, and seconds without a beat after which the owner counts as gone. Ten beats, since
# a network drive may show a change half a minute late.
BEAT_EVERY, PATIENCE = 30.0, 300.0


@dataclass(frozen=True)
class Waiting:
    """How long an owner on another machine is waited for, and by which clock (tests give their own).

    Attributes:
        seconds: without a beat, after which the owner counts as gone.
        monotonic, sleep: as in `time`.
    """

    seconds: float = PATIENCE
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class FolderLock:
    """The lock on a folder that this process holds."""

    folder: Path
    token: str

    def check(self) -> None:
        """Raise `SweepError` where another process took the lock since: a machine that slept looks gone."""
        owner = _owner(self.folder / LOCK)
        if owner.get("token") != self.token:
            other = "nobody"
            if "pid" in owner:
                other = f"process {owner['pid']} on {owner.get('host')}"
            raise SweepError(
                f"{str(self.folder)!r} was taken over while this process did not answer; {other} has its "
                "lock now. What is on the disk is whole. Run the sweep again if nobody else runs it."
            )


@contextmanager
def locked(folder: Path, waiting: Waiting | None = None) -> Iterator[FolderLock]:
    """Hold the lock of a folder while the `with` block runs.

    Args:
        waiting: how an owner on another machine is waited for.

    Raises:
        SweepError: another process has it; the message says which and since when.
    """
    path, token = folder / LOCK, uuid4().hex
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "born": _born(os.getpid()),  # read by version 0.2
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "boot": _boot(),
        "token": token,
    }
    with ExitStack() as stack:
        has_system_lock = _lock_system(folder, stack)
        while not _create_lock(path, owner):
            _take_over(path, waiting or Waiting(), has_system_lock=has_system_lock)
        try:
            with _beating(folder, token):
                yield FolderLock(folder, token)
        finally:
            # A lock that another process has taken is not this one's to remove.
            if _owner(path).get("token") == token:
                path.unlink(missing_ok=True)


def _lock_system(folder: Path, stack: ExitStack) -> bool:
    """Take the operating system's lock; False where the folder's drive has none.

    Raises:
        SweepError: another process has it.
    """
    system = FileLock(folder / SYSTEM_LOCK, timeout=0)
    try:
        stack.enter_context(system)
    except Timeout as error:
        raise _held(_owner(folder / LOCK)) from error
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise SweepError(f"{str(folder)!r} cannot be locked: {error}.") from error
        return False
    return True


def _create_lock(path: Path, owner: Mapping[str, Any]) -> bool:
    """Write the lock of this process; False where there is one."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(owner, file)
            file.flush()
            os.fsync(file.fileno())
        sync(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        # A full disk leaves an empty file, which would hold up the next run.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise CannotWrite(f"{str(path.parent)!r} cannot be written to: {error.strerror}.") from error
    return True


@contextmanager
def _beating(folder: Path, token: str) -> Iterator[None]:
    """Increase a count in a file while the `with` block runs.

    Each owner has a file of its own: one that lost the lock and still counts is not mistaken for the new one.
    """
    path, ended = folder / f"{BEAT}{token}", threading.Event()
    try:
        for left in folder.glob(f"{BEAT}*"):
            left.unlink(missing_ok=True)  # of owners before this one
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except OSError as error:
        raise CannotWrite(f"{str(folder)!r} cannot be written to: {error.strerror}.") from error
    with open(handle, "wb", buffering=0) as file:

        def beat() -> None:
            count = 0
            while True:
                count += 1
                try:
                    os.pwrite(file.fileno(), b"%012d" % count, 0)
                    os.fsync(file.fileno())
                except OSError:
                    # The drive cannot be reached: others should see that the count does not change.
                    count -= 1
                if ended.wait(BEAT_EVERY):
                    return

        # A daemon, so that it never keeps a process alive that is about to end.
        thread = threading.Thread(target=beat, name="sweep-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            path.unlink(missing_ok=True)


def _take_over(path: Path, waiting: Waiting, *, has_system_lock: bool) -> None:
    """Remove a lock whose process is gone. Raises `SweepError` if it lives.

    Args:
        has_system_lock: this process holds the operating system's lock, so no other of this machine does.
    """
    owner = _owner(path)
    if not owner:
        _await_owner(path, waiting)
        return
    # Several containers may have one host name; the operating system's lock holds within one kernel.
    is_local = owner["host"] == socket.gethostname()
    if "token" not in owner:
        # A lock of version 0.2, which has no heartbeat and does not take the operating system's lock.
        if not is_local or _born(owner["pid"]) == owner.get("born"):
            raise _held(owner, path)
    elif not (is_local and has_system_lock and owner.get("boot") == _boot()):
        _await_beat(path, owner, waiting)
    _remove_stale(path, owner)


def _await_owner(path: Path, waiting: Waiting) -> None:
    """Wait for an owner who is about to say who it is; remove the lock of one that died before it could."""
    start = waiting.monotonic()
    while os.path.lexists(path) and not _owner(path):  # a link that leads nowhere holds a lock's place, too
        if waiting.monotonic() - start > UNREADABLE_FOR:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _stuck(path, error) from error
            return
        waiting.sleep(0.1)


def _await_beat(path: Path, owner: Mapping[str, Any], waiting: Waiting) -> None:
    """Return once the owner's count has not changed for long enough. Raises `SweepError` when it changes."""
    beat = path.with_name(f"{BEAT}{owner['token']}")
    seen, start, n_changes = _count(beat), waiting.monotonic(), 0
    message = (
        f"Process {owner['pid']} on {owner['host']} has the lock of {str(path.parent)!r}. If it does not "
        f"answer for {waiting.seconds:.0f} s, its sweep is taken over."
    )
    write_line(spelled(message))
    while waiting.monotonic() - start <= waiting.seconds:
        waiting.sleep(min(BEAT_EVERY, waiting.seconds) / 6)
        if _owner(path).get("token") != owner["token"]:
            return  # it has ended, or another waiter was faster
        count = _count(beat)
        if count != seen:
            seen, start, n_changes = count, waiting.monotonic(), n_changes + 1
        # The first change may be the last beat of a process that is gone, which a network drive showed late.
        if n_changes > 1:
            raise _held(owner, path)


def _count(beat: Path) -> bytes:
    """The count of a heartbeat; empty where there is none."""
    try:
        # Opened anew each time: a network drive looks for changes when a file is opened.
        return beat.read_bytes()
    except FileNotFoundError:
        return b""


def _remove_stale(path: Path, owner: Mapping[str, Any]) -> None:
    """Remove the lock of an owner that is gone, but not one that another has written in the meantime."""
    moved = path.with_name(f"{LOCK}.{os.getpid()}.{uuid4().hex[:8]}.gone")
    try:
        # Renaming is atomic: of several processes that see the lock stale, one gets it.
        os.replace(path, moved)
        try:
            if _owner(moved) != owner:
                # Where a third process has a lock by now, the one that was moved finds that it lost its own.
                with suppress(FileExistsError):
                    os.link(moved, path)
        finally:
            moved.unlink(missing_ok=True)
        if "token" in owner:
            path.with_name(f"{BEAT}{owner['token']}").unlink(missing_ok=True)
    except FileNotFoundError:
        return  # another process removed it
    except OSError as error:
        raise _stuck(path, error) from error


def _stuck(path: Path, error: OSError) -> CannotWrite:
    return CannotWrite(
        f"The lock {str(path)!r} of a process that is gone cannot be removed: {error.strerror}."
    )


def _owner(path: Path) -> dict[str, Any]:
    """Who a lock says that it belongs to; empty where that cannot be read."""
    try:
        owner = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(owner, dict) or not {"pid", "host", "since", "born"} <= owner.keys():
        return {}
    # The token becomes part of a file's name, and must not lead to another folder.
    if type(owner["pid"]) is not int or not str(owner.get("token", "0")).isalnum():
        return {}
    return owner


def _held(owner: Mapping[str, Any], path: Path | None = None) -> SweepError:
    """The error that says who has the lock."""
    if not owner:
        return SweepError("Another process has just begun to run this sweep. Wait for it, or stop it.")
    machine, cure = "", "."
    if owner["host"] != socket.gethostname():
        machine = f" on {owner['host']}"
        # Version 0.2 has no heartbeat, so that nobody can tell whether it lives.
        if path is not None and "token" not in owner:
            cure = f"; if that machine is gone, delete {str(path)!r}."
    return SweepError(
        f"Process {owner['pid']}{machine} has been running this sweep since {owner['since']}. Wait for it, "
        f"or stop it{cure}"
    )


def _boot() -> str:
    """An identifier of the running kernel: another one on each machine and after each start."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not on Linux
        return socket.gethostname()


def _born(pid: int) -> float | None:
    """When a process started, which tells it from a later one of the same number; None if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except (psutil.Error, ValueError, OverflowError):
        return None
