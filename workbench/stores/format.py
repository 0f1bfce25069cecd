"""The bytes on disk: safetensors files whose tensors are written row by row, and read through memory maps.

Read `writing` and `StoredFile`. All shapes are known beforehand: the header is written first, and rows are
appended to each tensor as they come. Data begin at a multiple of 64 bytes, so that a map of the file can be
viewed as any dtype. A file gets its name only when it is whole and on the disk; while it is written it has a
hidden name and is locked, so that two writers cannot mix. The format knows nothing of prompts or sites.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import torch
import xxhash
from torch import Tensor

from workbench.errors import StoreError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGN = 64
_CHUNK = 2**22


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype, its shape, and the byte of the file where it begins."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.dtype.itemsize * math.prod(self.shape)


def layout(tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> tuple[bytes, dict[str, Entry]]:
    """The header of a file with these tensors, in their order, and where each lies.

    Wider dtypes come first for alignment.
    """
    header: dict[str, Any] = {}
    offset = 0
    ordered = sorted(tensors.items(), key=lambda item: -item[1][0].itemsize)
    for name, (dtype, shape) in ordered:
        size = dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    # Spaces behind JSON are allowed: they move the data to a multiple of 64 bytes.
    text += b" " * (-(8 + len(text)) % _ALIGN)
    begin = 8 + len(text)
    entries = {
        name: Entry(dtype, tuple(shape), begin + header[name]["data_offsets"][0])
        for name, (dtype, shape) in tensors.items()
    }
    return len(text).to_bytes(8, "little") + text, entries


class FileWriter:
    """Writes one file; use `writing`."""

    def __init__(self, handle: int, entries: Mapping[str, Entry]) -> None:
        self._handle, self._entries = handle, entries
        self._done = dict.fromkeys(entries, 0)

    def append(self, name: str, rows: Tensor) -> None:
        """Put rows [row, ...] behind those that a tensor has already."""
        entry = self._entries[name]
        data = _bytes(
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
        handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"{str(path)!r} is being written by another process. Let it finish, or stop it first."
            ) from error
        try:
            # Its writer may have finished between our opening and our lock: then the name is another file's.
            if os.fstat(handle).st_ino != os.stat(partial).st_ino:
                raise StoreError(
                    f"{str(path)!r} was written by another process just now. Let it finish, or stop it first."
                )
            os.ftruncate(handle, 0)
            os.pwrite(handle, header, 0)
            writer = FileWriter(handle, entries)
            yield writer
            writer.check_full()
            # The bytes reach the disk before the name does: after a power cut a file with its name is whole.
            os.fsync(handle)
            os.replace(partial, path)
            sync_folder(path.parent)
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


def write_json(path: Path, content: Any) -> None:
    """A JSON file, whole and on the disk or not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder have reached the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """xxh3_128 of a file's bytes."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


class StoredFile:
    """One safetensors file, local or behind an fsspec URL.

    Its header is read at once, its tensors when they are asked for.

    Raises:
        StoreError: it is missing, cut off, or no safetensors file; the message names it.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.local = None if "://" in place else Path(place)
        self._files, self._path = (None, place) if self.local is not None else fsspec.core.url_to_fs(place)
        self.entries = self._read_header()
        self._views: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        """The whole tensor: a view of the mapped file, or its bytes from far away."""
        if name not in self._views:
            entry = self._entry(name)
            if self.local is None:
                return self.rows(name, 0, entry.shape[0])
            self._views[name] = _viewed(self._map, entry, 0, entry.shape[0])
        return self._views[name]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """[row, ...] of some consecutive rows: a view of the map if there is one, else their bytes alone."""
        entry = self._entry(name)
        # The file is mapped once a whole tensor was asked for; a few rows are read faster without a map.
        if "_map" in self.__dict__:
            return _viewed(self._map, entry, start, stop)
        begin, size = entry.start + start * entry.row_bytes, (stop - start) * entry.row_bytes
        if not size:
            return torch.empty((0, *entry.shape[1:]), dtype=entry.dtype)
        buffer = self._read(begin, size)
        if len(buffer) != size:
            raise StoreError(
                f"{self.place!r} ends too early. Verify the store (workbench store verify), then repair it."
            )
        return buffer.view(entry.dtype).view(stop - start, *entry.shape[1:])

    def _read(self, begin: int, size: int) -> Tensor:
        """The bytes from `begin` on, fewer where the file ends."""
        if self._files is not None:
            return torch.frombuffer(
                bytearray(self._files.cat_file(self._path, start=begin, end=begin + size)), dtype=torch.uint8
            )
        buffer = torch.empty(size, dtype=torch.uint8)
        with open(self._path, "rb", buffering=0) as file:
            return buffer[: os.preadv(file.fileno(), [_bytes(buffer)], begin)]

    @cached_property
    def _map(self) -> Tensor:
        """The bytes of the file. The map is private: what is written to a tensor never reaches the disk."""
        assert self.local is not None
        return torch.from_file(
            str(self.local), shared=False, size=self.local.stat().st_size, dtype=torch.uint8
        )

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise StoreError(f"{self.place!r} holds no {name!r}; it has {', '.join(self.entries)}.")
        return self.entries[name]

    def _read_header(self) -> dict[str, Entry]:
        cure = "Verify the store (workbench store verify), then repair it."
        try:
            size = os.stat(self._path).st_size if self._files is None else self._files.size(self._path)
            # A safetensors file begins with the length of its header in eight bytes.
            length = int.from_bytes(self._read(0, min(size, 8)).numpy().tobytes(), "little")
            if not 0 < length <= size - 8:
                raise StoreError(f"{self.place!r} is cut off or no safetensors file. {cure}")
            header = json.loads(self._read(8, length).numpy().tobytes())
            entries, end = {}, 8 + length
            for name, facts in header.items():
                if name == "__metadata__":
                    continue
                begin, stop = facts["data_offsets"]
                entry = Entry(DTYPES[facts["dtype"]], tuple(facts["shape"]), 8 + length + begin)
                if stop - begin != entry.nbytes or begin < 0:
                    raise StoreError(f"{self.place!r}: the header contradicts itself about {name!r}. {cure}")
                entries[name], end = entry, max(end, 8 + length + stop)
        except FileNotFoundError as error:
            raise StoreError(f"{self.place!r} is missing. {cure}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{self.place!r} has no readable header. {cure}") from error
        except OSError as error:
            raise StoreError(f"{self.place!r} cannot be read: {error}.") from error
        if end != size:
            raise StoreError(
                f"{self.place!r} has {size} bytes where its header speaks of {end}: it is cut off. {cure}"
            )
        return entries


def read_json(place: str) -> Any:
    """A JSON file, local or behind a URL. Raises `StoreError` when it is missing or damaged."""
    try:
        with fsspec.open(place, "rb") if "://" in place else open(place, "rb") as file:
            return json.loads(file.read())  # pyright: ignore[reportAttributeAccessIssue]
    except FileNotFoundError as error:
        raise StoreError(f"{place!r} is missing.") from error
    except (ValueError, OSError) as error:
        raise StoreError(f"{place!r} cannot be read as JSON: {error}.") from error


def _bytes(data: Tensor) -> memoryview:
    """The memory of a flat tensor of bytes."""
    return memoryview(data.numpy())  # pyright: ignore[reportArgumentType]


def _viewed(data: Tensor, entry: Entry, start: int, stop: int) -> Tensor:
    begin = entry.start + start * entry.row_bytes
    return (
        data[begin : begin + (stop - start) * entry.row_bytes]
        .view(entry.dtype)
        .view(stop - start, *entry.shape[1:])
    )
