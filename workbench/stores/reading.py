"""Reads files of a store: JSON, and safetensors through memory maps or, behind a URL, piece by piece.

Read `StoredFile`. Whatever is missing, cut off or damaged is a `StoreError` that names the file. Nothing here
knows of prompts or sites.
"""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import torch
from torch import Tensor

from workbench.errors import StoreError
from workbench.stores.format import DTYPES, Entry, memory_of


class StoredFile:
    """One safetensors file, local or behind an fsspec URL.

    Its header is read at once, its tensors when they are asked for.

    Raises:
        StoreError: it is missing, cut off, or not a safetensors file; the message names it.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.local = None if "://" in place else Path(place)
        self._files, self._path = (None, place) if self.local is not None else fsspec.core.url_to_fs(place)
        self.entries = self._read_header()
        # One view for each tensor: readers that share it share its pages of memory too.
        self._views: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        """The whole tensor: a view of the mapped file, or behind a URL a copy of its bytes."""
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
            return buffer[: os.preadv(file.fileno(), [memory_of(buffer)], begin)]

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

    def _size(self) -> int:
        """Bytes of the file, as its file system says."""
        if self._files is None:
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
            return json.loads(Path(place).read_bytes())
        with fsspec.open(place, "rb") as file:
            return json.loads(file.read())  # pyright: ignore[reportAttributeAccessIssue]
    except FileNotFoundError as error:
        raise StoreError(f"{place!r} is missing.") from error
    except (ValueError, OSError) as error:
        raise StoreError(f"{place!r} cannot be read as JSON: {error}.") from error


def _viewed(data: Tensor, entry: Entry, start: int, stop: int) -> Tensor:
    begin = entry.start + start * entry.row_bytes
    return (
        data[begin : begin + (stop - start) * entry.row_bytes]
        .view(entry.dtype)
        .view(stop - start, *entry.shape[1:])
    )
