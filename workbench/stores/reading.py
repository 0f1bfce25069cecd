"""Reads files of a store: JSON, and safetensors through memory maps or, behind a URL, piece by piece.

Read `StoredFile`. Whatever is missing, cut off or damaged is a `StoreError` that names the file. Nothing here
knows of prompts or sites.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import torch
import xxhash
from torch import Tensor

from workbench.checksums import file_sum
from workbench.documents import parse_json
from workbench.errors import StoreError
from workbench.files import MOST_BYTES, check_ordinary, read_bytes
from workbench.stores.format import DTYPES, Entry, memory_of


def filesystem(place: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        StoreError: an unknown scheme, or one that needs a package that is not installed.
    """
    try:
        return fsspec.core.url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise StoreError(
            f"{place!r} cannot be opened: {error}. Give a folder, or a URL that fsspec knows, such as "
            "https://... or s3://..."
        ) from error


class StoredFile:
    """One safetensors file, local or behind an fsspec URL.

    Its header is read at once, its tensors when they are asked for.

    Raises:
        StoreError: it is missing, cut off, or not a safetensors file; the message names it.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.local = None if "://" in place else Path(place)
        self._files, self._path = (None, place) if self.local is not None else filesystem(place)
        self.entries = self._read_header()
        # One view for each tensor: readers that share it share its pages of memory too.
        self._views: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        """The whole tensor: a view of the mapped file, or behind a URL a copy of its bytes."""
        if name not in self._views:
            entry = self.entry(name)
            if self.local is None:
                return self.rows(name, 0, entry.shape[0])
            self._views[name] = _viewed(self._map, entry, 0, entry.shape[0])
        return self._views[name]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """[row, ...] of some consecutive rows: a view of the map if there is one, else their bytes alone."""
        entry = self.entry(name)
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
            return buffer[: os.preadv(file.fileno(), [memory_of(buffer)], begin)]

    @cached_property
    def _map(self) -> Tensor:
        """The bytes of the file. The map is private: what is written to a tensor never reaches the disk."""
        assert self.local is not None
        return torch.from_file(
            str(self.local), shared=False, size=self.local.stat().st_size, dtype=torch.uint8
        )

    def entry(self, name: str) -> Entry:
        """Where a tensor lies. Raises `StoreError` when there is none of that name."""
        if name not in self.entries:
            raise StoreError(f"{self.place!r} holds no {name!r}; it has {', '.join(self.entries)}.")
        return self.entries[name]

    def _size(self) -> int:
        """Bytes of the file, as its file system says."""
        if self._files is None:
            check_ordinary(self._path)
            return os.stat(self._path).st_size
        return self._files.size(self._path)

    def _read_header(self) -> dict[str, Entry]:
        cure = "Verify the store (workbench store verify), then repair it."
        try:
            size = self._size()
            # A safetensors file begins with the length of its header in eight bytes.
            length = int.from_bytes(self._read(0, min(size, 8)).numpy().tobytes(), "little")
            if not 0 < length <= size - 8:
                raise StoreError(f"{self.place!r} is cut off or not a safetensors file. {cure}")
            header = parse_json(self._read(8, length).numpy().tobytes())
            entries, end = {}, 8 + length
            for name, facts in header.items():
                if name == "__metadata__":
                    continue
                begin, stop = facts["data_offsets"]
                if not all(type(number) is int and number >= 0 for number in (begin, stop, *facts["shape"])):
                    raise ValueError("a size or place that is not a whole number from 0 up")
                entry = Entry(DTYPES[facts["dtype"]], tuple(facts["shape"]), 8 + length + begin)
                if stop - begin != entry.nbytes:
                    raise StoreError(f"{self.place!r}: the header contradicts itself about {name!r}. {cure}")
                entries[name], end = entry, max(end, 8 + length + stop)
        except FileNotFoundError as error:
            raise StoreError(f"{self.place!r} is missing. {cure}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{self.place!r} has no readable header. {cure}") from error
        except OSError as error:
            raise StoreError(f"{self.place!r} cannot be read: {error}.") from error
        # The header may be whole and the data not, as when a copy was interrupted.
        if end != size:
            raise StoreError(
                f"{self.place!r} has {size} bytes, and its header describes {end}: it is cut off. {cure}"
            )
        return entries


def read_json(place: str) -> Any:
    """A JSON file, local or behind a URL. Raises `StoreError` when it is missing or damaged."""
    try:
        if "://" not in place:
            return parse_json(read_bytes(place))
        with fsspec.open(place, "rb") as file:
            return parse_json(file.read(MOST_BYTES))  # pyright: ignore[reportAttributeAccessIssue]
    except FileNotFoundError as error:
        raise StoreError(f"{place!r} is missing.") from error
    except (ValueError, OSError) as error:
        raise StoreError(f"{place!r} cannot be read as JSON: {error}.") from error


def stored_sum(place: str) -> str:
    """xxh3_128 of a file's bytes, local or behind a URL. Raises `StoreError` when it cannot be read."""
    try:
        if "://" not in place:
            check_ordinary(place)
            return file_sum(Path(place))
        digest = xxhash.xxh3_128()
        with fsspec.open(place, "rb") as file:
            while block := file.read(2**22):  # pyright: ignore[reportAttributeAccessIssue]
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise StoreError(f"{place!r} cannot be read: {error}.") from error


def _viewed(data: Tensor, entry: Entry, start: int, stop: int) -> Tensor:
    begin = entry.start + start * entry.row_bytes
    return (
        data[begin : begin + (stop - start) * entry.row_bytes]
        .view(entry.dtype)
        .view(stop - start, *entry.shape[1:])
    )
