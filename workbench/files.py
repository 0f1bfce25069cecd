"""Files are written whole or not at all, and nothing that exists is replaced unasked.

Read `whole` (one file) and `replaced` (the files of a run); `read_bytes` reads one. What killed runs of this
machine left unfinished is removed by the next one in the same folder. It knows nothing of what is in a file.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from workbench.errors import CannotWrite, OutputExists

_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), os.strerror(errno.EFBIG))
# How a drive says that it has no locks: the last two are network drives, which want a file open to be written.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EISDIR)
# How a rename says that its two ends are not on one drive, or that a drive begins there.
_OTHER_DRIVE = (errno.EXDEV, errno.EBUSY)
# `Path` makes one slash of the two of a URL.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

MOST_BYTES = 2**30
"""Bytes of a file that is read at once, at most: the file of a full circuit of a 70B model has 0.7 GB."""


def check_ordinary(path: str | Path) -> None:
    """Raise `OSError` unless there is an ordinary file: not a folder, a pipe or a device.

    A pipe may never answer, a device may never end, and opening one can have effects of its own.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device or a pipe and not a file", str(path))


def read_bytes(path: str | Path, *, most: int = MOST_BYTES) -> bytes:
    """The bytes of an ordinary file.

    Raises:
        OSError: there is none, it cannot be read, or it has more than `most` bytes.
    """
    check_ordinary(path)
    with open(path, "rb") as file:
        # Files of /proc have a size of 0 and hold more: what is read is bounded, not what is promised.
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return content


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise `OutputExists` when something is there that must not be replaced."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
        # A link that leads nowhere is something, too.
        is_there = path.exists() or path.is_symlink()
    except OSError as error:
        raise OutputExists(f"{str(path)[:80]!r} cannot be written: {error.strerror}.") from error
    if is_folder:
        raise OutputExists(f"{str(path)!r} is a folder. Choose another path.")
    if path.exists() and not is_file:
        raise OutputExists(f"{str(path)!r} is a device or a pipe and not a file. Choose another path.")
    if is_there and not overwrite:
        raise OutputExists(
            f"{str(path)!r} exists. Choose another path, or pass overwrite=True to replace it."
        )


@contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write to: it takes the place of `path` if all went well, and is gone otherwise.

    Args:
        durable: the bytes and then the name have reached the disk when this ends.

    Raises:
        CannotWrite: the disk is full, or the folder cannot be written to.
    """
    check_local(path)
    partial = path.with_name(_partial_name(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        yield partial
        if durable:
            # The bytes before the name: after a power cut a file that has its name is whole.
            sync(partial)
        os.replace(partial, path)
        if durable:
            sync(path.parent)
    except Exception as error:
        # HDF5 and safetensors have errors of their own for a full disk, which name it in their text alone.
        if isinstance(error, OSError) or any(text in str(error) for text in _FULL):
            reason = getattr(error, "strerror", None) or error
            raise CannotWrite(
                f"{str(path)!r} cannot be written: {reason}. Nothing was left there."
            ) from error
        raise
    finally:
        with suppress(OSError):  # its folder may not exist
            partial.unlink(missing_ok=True)


def check_local(path: Path) -> None:
    """Raise `CannotWrite` for a URL: `Path` would make a folder of that name here."""
    if _URL.match(path.as_posix()):
        raise CannotWrite(
            f"{str(path)!r} is a URL, and results are written to this machine. Give a local path."
        )


def sync(path: Path) -> None:
    """Return when the bytes of a file, or the names in a folder, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_output(out: Path, files: Sequence[str], *, overwrite: bool) -> None:
    """Raise `OutputExists` when the results cannot be written there, or would replace another run unasked."""
    try:
        parents = [folder for folder in (out, *out.parents) if folder.exists() or folder.is_symlink()]
        if parents and not parents[0].is_dir():
            raise OutputExists(f"{str(parents[0])!r} is not a folder; an output folder is needed.")
        if parents and not os.access(parents[0], os.W_OK):
            raise OutputExists(f"The folder {str(parents[0])!r} cannot be written to.")
        existing = [name for name in files if (out / name).exists()]
        folders = [name for name in existing if (out / name).is_dir()]
    except OSError as error:
        raise OutputExists(f"{str(out)[:80]!r} cannot be an output folder: {error.strerror}.") from error
    if folders:
        raise OutputExists(
            f"{str(out / folders[0])!r} is a folder where a file must be written. "
            "Choose another folder with --out."
        )
    if existing and not overwrite:
        raise OutputExists(
            f"{str(out)!r} holds another run; this would overwrite {', '.join(existing)}. "
            "Choose another folder with --out, or pass --overwrite (overwrite=True)."
        )


@contextmanager
def fresh_folder(name: str, root: Path = Path("runs")) -> Iterator[Path]:
    """The first of `runs/NAME-001`, `runs/NAME-002`, ... that is free; deleted again if it stays empty."""
    try:
        folder, claim = _claimed(name, root)
    except OSError as error:
        raise OutputExists(
            f"The folder {str(root)!r} cannot be written to: {error.strerror}. Choose another with --out."
        ) from error
    try:
        yield folder
    finally:
        for path in (claim, folder, root):
            # Refused where something is inside. Another run that ends now may be the one that removes `root`.
            with suppress(OSError):
                path.rmdir()


def _claimed(name: str, root: Path) -> tuple[Path, Path]:
    """A folder of this process's own in `root`, and what says so meanwhile."""
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    number = 1
    while True:
        folder = root / f"{name}-{number:03d}"
        # Should this run be killed, its claim tells the next one that the empty folder may be removed.
        claim = root / _partial_name(folder, f"{_CLAIM}{secrets.token_hex(4)}")
        # Again, since another run that ends without results removes `root`; with a claim in it, it stays.
        claim.mkdir(parents=True)
        try:
            # Making the folder claims it: two runs that start together get two.
            folder.mkdir()
            return folder, claim
        except FileExistsError:
            claim.rmdir()
            number += 1


@contextmanager
def replaced(out: Path, files: Sequence[str], *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to write the files into.

    They are moved in place at the end, so that a stopped run leaves nothing. Of `files`, those that this run did
    not write are gone then: an earlier run's would be taken for its own.

    Raises:
        OutputExists: `out` cannot be written to, or holds such files and `overwrite` is not given.
    """
    check_local(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # A folder that is there may be written to where the one that holds it may not.
        beside = out.parent if os.access(out.parent, os.W_OK) or not out.is_dir() else out
        _remove_leftovers(beside)
        partial = _partial_folder(out, beside)
        # A folder within: those of `mkdtemp` are closed to other users, and a run's need not be.
        written = partial / "files"
        written.mkdir()
    except OSError as error:
        raise OutputExists(
            f"The folder {str(out.parent)!r} cannot be written to: {error.strerror}."
        ) from error
    try:
        yield written
        # One run after the other, or two that end together would each see a free folder and mix.
        with alone(beside):
            check_output(out, files, overwrite=overwrite)
            _move(written, out, files)
    except CannotWrite as error:
        # The folder to come is what the caller knows.
        raise CannotWrite(str(error).replace(str(written), str(out))) from error
    except OSError as error:
        raise CannotWrite(f"{str(out)!r} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def alone(folder: Path, seconds: float = 60.0) -> Iterator[None]:
    """Let one process after the other do what is inside, of those that ask for the same folder.

    On a drive without locks, as some network drives are, nothing is waited for.

    Args:
        seconds: to wait for the others.

    Raises:
        CannotWrite: another process is still not done then.
    """
    handle, start = os.open(folder, os.O_RDONLY), time.monotonic()
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() - start > seconds:
                    raise CannotWrite(
                        f"{str(folder)!r} is being written to by another process. Let it finish, or stop it "
                        "first."
                    ) from error
                time.sleep(0.02)
                continue
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            break
        yield
    finally:
        os.close(handle)


def _move(written: Path, out: Path, files: Sequence[str]) -> None:
    """Move the files of a finished run in place."""
    if _may_be_replaced(out):
        try:
            # All at once: a run that is stopped here leaves every file or none.
            os.rename(written, out)
            return
        except OSError as error:
            if error.errno not in _OTHER_DRIVE:
                raise
    _remove_leftovers(out)
    partial = _partial_folder(out, out)
    try:
        near = partial / "files"
        try:
            os.rename(written, near)
        except OSError as error:
            if error.errno not in _OTHER_DRIVE:
                raise
            # A link leads to another drive, or one begins here. Copied before anything of the old run is
            # removed: the drive may be full.
            shutil.copytree(written, near)
        # All of the old run first: stopped in between, the folder lacks files, and does not mix two runs.
        for name in files:
            (out / name).unlink(missing_ok=True)
        for name in files:
            # A run need not write all of the files that one can have.
            if (near / name).exists():
                os.replace(near / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial_folder(out: Path, place: Path) -> Path:
    """A folder in `place` for what is not finished yet of `out`."""
    start, _, end = _partial_name(out, "?").rpartition("?")
    return Path(tempfile.mkdtemp(prefix=start, suffix=end, dir=place))


def _may_be_replaced(out: Path) -> bool:
    """Whether nothing is there, or an empty folder other than the current one.

    A shell whose folder is replaced stands in one that no longer exists.
    """
    if out.is_symlink():
        return False
    if not out.exists():
        return True
    return not any(out.iterdir()) and not out.samefile(Path.cwd())


# .NAME.HOST.PID-REST.workbench-partial: what is not finished yet, of that process on that machine.
_SUFFIX = ".workbench-partial"
_CLAIM = "claim"
_LEFT = re.compile(r"\.(?P<name>.*)\.(?P<host>\w+)\.(?P<owner>\d{1,9})-(?P<rest>.*)" + re.escape(_SUFFIX))


def _partial_name(path: Path, rest: str = "") -> str:
    """The name of what is not finished yet, with the machine and the process that it belongs to."""
    # Cut, because a name may be as long as file systems allow.
    return f".{path.name[:80]}.{_host()}.{os.getpid()}-{rest or secrets.token_hex(4)}{_SUFFIX}"


def _host() -> str:
    return "".join(c if c.isalnum() else "_" for c in socket.gethostname())


def _remove_leftovers(folder: Path) -> None:
    """Delete what runs of this machine left unfinished in a folder when they were killed."""
    for left in list(folder.glob(f".*{_SUFFIX}")):
        facts = _LEFT.fullmatch(left.name)
        # A process of another machine may well be running.
        if facts is None or facts["host"] != _host() or psutil.pid_exists(int(facts["owner"])):
            continue
        # What cannot be removed is another user's, and no harm to this run.
        with suppress(OSError):
            if facts["rest"].startswith(_CLAIM):
                with suppress(OSError):
                    (folder / facts["name"]).rmdir()  # refused by a folder that is not empty
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
