"""Which rows of a store belong to which prompt, and the rows themselves, packed without padding.

`RowIndex` knows where the rows of each prompt lie; `Packed` reads rows, columns and blocks of one site from
its segments: one in memory, one for each shard on disk. Neither knows of models, sites or files.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from workbench.errors import StoreError


@dataclass(frozen=True, eq=False)
class RowIndex:
    """Which rows belong to which prompt.

    Attributes:
        starts, counts: [example]: the first row of each prompt, and how many it has.
        order: [example]: the prompts in the order in which their rows lie.
        kept: [row] token position of every row; None where every token of a prompt has a row, in order.
    """

    starts: Int[Tensor, "example"]
    counts: Int[Tensor, "example"]
    order: Int[Tensor, "example"]
    kept: Int[Tensor, "row"] | None = None

    @classmethod
    def of(
        cls,
        counts: Int[Tensor, "example"],
        *,
        order: Int[Tensor, "example"] | None = None,
        kept: Tensor | None = None,
    ) -> "RowIndex":
        """The index of prompts with that many rows each, lying in `order` (None: their own order)."""
        counts = counts.cpu().long()
        if order is None:
            order = torch.arange(len(counts))
        # The rows of the i-th prompt in order begin where those of the one before end.
        ends = counts[order].cumsum(0)
        starts = torch.empty_like(counts)
        starts[order] = ends - counts[order]
        return cls(starts, counts, order, kept)

    def squares(self, heads: int) -> "RowIndex":
        """The index of attention patterns, [head * query_pos * key_pos] numbers for a prompt."""
        return RowIndex.of(self.counts**2 * heads, order=self.order)

    @cached_property
    def prompts(self) -> Int[Tensor, "row"]:
        """The prompt of every row."""
        return torch.repeat_interleave(self.order, self.counts[self.order])

    @cached_property
    def positions(self) -> Int[Tensor, "row"]:
        """The token position of every row; -1 where a row is a mean over its prompt."""
        if self.kept is not None:
            return self.kept
        return torch.arange(len(self.prompts)) - self.starts[self.prompts]

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted (prompt, position) keys of all rows, and the row of each."""
        # Prompt and position in one integer, so that pairs are sorted and searched as numbers.
        keys = (self.prompts.numpy().astype(np.int64) << 32) + self.positions.numpy()
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def find(self, prompts: Int[Tensor, "row"], positions: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """The row of each (prompt, position); -1 where there is none."""
        if self.kept is None:
            inside = (positions >= 0) & (positions < self.counts[prompts])
            return (self.starts[prompts] + positions).where(inside, -1)
        keys, rows = self._places
        wanted_keys = (prompts.numpy().astype(np.int64) << 32) + positions.numpy()
        nearest = np.searchsorted(keys, wanted_keys).clip(max=len(keys) - 1)
        return torch.from_numpy(np.where(keys[nearest] == wanted_keys, rows[nearest], -1))


@runtime_checkable
class Segment(Protocol):
    """Consecutive rows that lie in one place."""

    def __len__(self) -> int: ...

    def whole(self, *, check: bool = False) -> Tensor:
        """[row, ...] without a copy where that can be; `check`: compared with the checksum, if any."""
        ...

    def part(self, start: int, stop: int) -> Tensor:
        """[row, ...] of some consecutive rows."""
        ...


@dataclass(frozen=True, eq=False)
class MemorySegment:
    """A segment that is a tensor."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def whole(self, *, check: bool = False) -> Tensor:
        """[row, ...] of all rows: the tensor itself."""
        return self.rows

    def part(self, start: int, stop: int) -> Tensor:
        """[row, ...] of some consecutive rows: a view."""
        return self.rows[start:stop]


# numpy has no bfloat16: rows are copied as integers of the same width, bit by bit.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Packed:
    """The rows of a site, [row, ...], in segments."""

    def __init__(self, segments: Sequence[Segment], *, dtype: torch.dtype, shape: Sequence[int]) -> None:
        """`shape` is that of one row."""
        self.segments, self.dtype, self.row_shape = list(segments), dtype, tuple(shape)
        self._ends = np.cumsum([len(segment) for segment in self.segments])

    @classmethod
    def of(cls, rows: Tensor) -> "Packed":
        """The rows of a tensor in memory."""
        return cls([MemorySegment(rows)], dtype=rows.dtype, shape=rows.shape[1:])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def whole(self) -> Tensor:
        """All rows, checked; without a copy if they lie in one segment."""
        if len(self.segments) == 1:
            return self.segments[0].whole(check=True)
        return torch.cat([segment.whole(check=True) for segment in self.segments])

    def part(self, start: int, stop: int) -> Tensor:
        """[row, ...] of consecutive rows.

        Without a copy where they lie in one segment that is in memory or mapped.
        """
        rows = [segment.part(first, last) for segment, first, last in self._overlaps(start, stop)]
        if not rows:
            return torch.empty((0, *self.row_shape), dtype=self.dtype)
        # A single segment stays a view: `cat` would copy it.
        if len(rows) == 1:
            return rows[0]
        return torch.cat(rows)

    def take(self, rows: Int[Tensor, "row"]) -> Tensor:
        """[row, ...] of any rows, in the order of `rows`; a row may come twice."""
        if len(self.segments) == 1:
            whole = self.segments[0].whole()
            return whole[rows.to(whole.device)]
        # Rows are gathered segment by segment, so that each file is read from front to back and opened once.
        segment_of_row = torch.from_numpy(np.searchsorted(self._ends, rows.numpy(), side="right"))
        order = torch.argsort(segment_of_row, stable=True)
        counts = torch.bincount(segment_of_row, minlength=len(self.segments)).tolist()
        taken = torch.empty((len(rows), *self.row_shape), dtype=self.dtype)
        for segment, end, targets in zip(
            self.segments, self._ends.tolist(), order.split(counts), strict=True
        ):
            if len(targets):
                first = end - len(segment)
                taken.index_copy_(0, targets, segment.whole().index_select(0, rows[targets] - first))
        return taken

    def columns(self, columns: Iterable[int]) -> Tensor:
        """[row, column]: some of the numbers of each row, flattened; each segment is read and checked."""
        chosen, size = list(columns), math.prod(self.row_shape)
        if not chosen or not all(0 <= column < size for column in chosen):
            raise StoreError(
                f"columns: name at least one, each from 0 to {size - 1}; asked for {chosen[:5]}."
            )
        table = torch.empty((len(self), len(chosen)), dtype=self.dtype)
        bits = _BITS[self.dtype.itemsize]
        column = table.view(bits).numpy()[:, 0]
        for segment, end in zip(self.segments, self._ends.tolist(), strict=True):
            rows = segment.whole(check=True)
            # numpy copies a strided view in less time than torch.
            if len(chosen) == 1 and rows.device.type == "cpu":
                column[end - len(rows) : end] = rows.view(bits).numpy().reshape(len(rows), size)[:, chosen[0]]
            else:
                table[end - len(rows) : end] = rows.view(len(rows), size)[:, chosen]
        return table

    def blocks(
        self, *, size: int, shuffle: bool, seed: int, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Which rows they are, and the rows, checked, in blocks of up to `size` that lie in one segment each.

        Args:
            shuffle: blocks come in a random order, and the rows of each are permuted.
            share: (i, n): of n readers, the blocks of the i-th.
        """
        starts: list[tuple[Segment, int, int]] = []
        for segment, end in zip(self.segments, self._ends.tolist(), strict=True):
            starts += [(segment, end - len(segment), offset) for offset in range(0, len(segment), size)]
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(starts)) if shuffle else np.arange(len(starts))
        reader, n_readers = share
        for number in order[reader::n_readers].tolist():
            segment, first, offset = starts[number]
            block = segment.whole(check=True)[offset : offset + size]
            rows = torch.arange(first + offset, first + offset + len(block))
            if shuffle:
                # A generator for each block: its rows are permuted alike whichever reader gets it.
                permutation = torch.from_numpy(np.random.default_rng([seed, number]).permutation(len(block)))
                block, rows = block[permutation.to(block.device)], rows[permutation]
            yield rows, block

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int]]:
        """The segments that hold rows `start` to `stop`, each with the first and last of its own rows."""
        first = 0
        for segment, end in zip(self.segments, self._ends.tolist(), strict=True):
            if start < end and stop > first:
                yield segment, max(start, first) - first, min(stop, end) - first
            first = end
