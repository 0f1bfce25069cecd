"""Writes files of a store: safetensors whose tensors grow row by row, and JSON.

Read `writing`. A file gets its name only when it is whole and on the disk; while it is written it has a
hidden name and is locked, so that two writers cannot mix. Nothing here knows of prompts or sites.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import StoreError
from workbench.files import sync, whole
from workbench.stores.format import Entry, layout, memory_of


class FileWriter:
    """Writes one file; use `writing`."""

    def __init__(self, handle: int, entries: Mapping[str, Entry]) -> None:
        self._handle, self._entries = handle, entries
        self._done = dict.fromkeys(entries, 0)

    def append(self, name: str, rows: Tensor) -> None:
        """Write rows [row, ...] behind those that a tensor already has."""
        entry = self._entries[name]
        data = memory_of(
            rows.detach().to(device="cpu", dtype=entry.dtype).contiguous().flatten().view(torch.uint8)
        )
        offset = entry.start + self._done[name]
        self._done[name] += len(data)
        if self._done[name] > entry.nbytes:
            raise StoreError(f"{name}: more rows than the {entry.shape[0]} that were planned.")
        # A write may take fewer bytes than it was given, near a full disk or on a network drive.
        while data:
            written = os.pwrite(self._handle, data, offset)
            data, offset = data[written:], offset + written

    def check_full(self) -> None:
        """Raise `StoreError` when a tensor has fewer rows than planned."""
        short = [name for name, entry in self._entries.items() if self._done[name] != entry.nbytes]
        if short:
            raise StoreError(
                f"{short[0]}: fewer rows than the {self._entries[short[0]].shape[0]} that were planned."
            )


@contextmanager
def writing(path: Path, tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> Iterator[FileWriter]:
    """A writer of a file that gets its name at the end, whole and synced to the disk, or is deleted.

    Raises:
        StoreError: another process is writing this file; the disk is full; the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    header, entries = layout(tensors)
    try:
        # Its name can be foreseen: a link of that name, in a folder of somebody else, is not followed.
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"{str(path)!r} is being written by another process. Let it finish, or stop it first."
            ) from error
        # Its writer may have finished between our opening and our lock: then the name is nobody's, or that of
        # a third writer's file, which is not ours to remove.
        if not _has_name(handle, partial):
            raise StoreError(
                f"{str(path)!r} was written by another process just now. Let it finish, or stop it first."
            )
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, header, 0)
            writer = FileWriter(handle, entries)
            yield writer
            writer.check_full()
            # The bytes reach the disk before the name does: after a power cut a file with its name is whole.
            os.fsync(handle)
            os.replace(partial, path)
            sync(path.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StoreError(
                f"{str(path)!r} cannot be written: {error.strerror}. What was written before it is kept."
            ) from error
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    finally:
        os.close(handle)


def _has_name(handle: int, path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def write_json(path: Path, content: Any) -> None:
    """A JSON file, whole and on the disk or not there."""
    try:
        with whole(path, durable=True) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
