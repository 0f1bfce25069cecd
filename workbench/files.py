"""Files are written whole or not at all, and nothing that exists is replaced unasked.

Read `whole` (one file) and `replaced` (the files of a run). It knows nothing of what is in a file.
"""

import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from workbench.errors import OutputExists


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise `OutputExists` when something is there that must not be replaced."""
    if path.is_dir():
        raise OutputExists(f"{str(path)!r} is a folder. Choose another path.")
    if path.exists() and not path.is_file():
        raise OutputExists(f"{str(path)!r} is a device or a pipe and not a file. Choose another path.")
    if path.exists() and not overwrite:
        raise OutputExists(
            f"{str(path)!r} exists. Choose another path, or pass overwrite=True to replace it."
        )


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to: it takes the place of `path` if all went well, and is gone otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
    number = 1
    while True:
        folder = root / f"{name}-{number:03d}"
        try:
            # Making the folder claims it: two runs that start together get two.
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
    try:
        yield folder
    finally:
        for path in (folder, root):
            if not any(path.iterdir()):
                path.rmdir()


@contextmanager
def replaced(out: Path, files: Sequence[str], *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to write the files into.

    They are moved in place at the end, so that a stopped run leaves nothing.

    Raises:
        OutputExists: `out` cannot be written to, or holds such files and `overwrite` is not given.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        partial = Path(tempfile.mkdtemp(prefix=_prefix(out, os.getpid()), suffix=_SUFFIX, dir=out.parent))
    except OSError as error:
        raise OutputExists(
            f"The folder {str(out.parent)!r} cannot be written to: {error.strerror}."
        ) from error
    try:
        yield partial
        check_output(out, files, overwrite=overwrite)
        out.mkdir(exist_ok=True)
        # All of the old run first: stopped in between, the folder lacks files, and does not mix two runs.
        for name in files:
            (out / name).unlink(missing_ok=True)
        for name in files:
            os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Delete what runs of this machine into this folder left beside it when they were killed."""
    start = _prefix(out, "")
    for leftover in out.parent.glob(f"{glob.escape(start)}*{_SUFFIX}"):
        owner = leftover.name.removeprefix(start).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(leftover, ignore_errors=True)


_SUFFIX = ".workbench-partial"


def _prefix(out: Path, process: int | str) -> str:
    """How the names of unfinished folders begin: they say whose they are."""
    host = "".join(c if c.isalnum() else "_" for c in socket.gethostname())
    return f".{out.name}.{host}." + (f"{process}-" if process else "")
