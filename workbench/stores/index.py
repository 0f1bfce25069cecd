"""Where the rows of each prompt lie, and the packed rows themselves: in one segment in memory, in one for
each shard on disk.
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
        """The index of prompts with so many rows each, one after the other in an order (None: as they come)."""
        counts = counts.cpu().long()
        order = torch.arange(len(counts)) if order is None else order
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
        keys = (self.prompts.numpy().astype(np.int64) << 32) + self.positions.numpy()
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def find(self, prompts: Int[Tensor, "row"], positions: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """The row of each (prompt, position); -1 where there is none."""
        if self.kept is None:
            inside = (positions >= 0) & (positions < self.counts[prompts])
            return (self.starts[prompts] + positions).where(inside, -1)
        keys, rows = self._places
        asked = (prompts.numpy().astype(np.int64) << 32) + positions.numpy()
        at = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
        return torch.from_numpy(np.where(keys[at] == asked, rows[at], -1))


@runtime_checkable
class Segment(Protocol):
    """Consecutive rows that lie in one place."""

    def __len__(self) -> int: ...

    def whole(self) -> Tensor:
        """[row, ...] without a copy where that can be."""
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

    def whole(self) -> Tensor:
        return self.rows

    def part(self, start: int, stop: int) -> Tensor:
        return self.rows[start:stop]


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Packed:
    """The rows of a site, [row, ...], in segments."""

    def __init__(self, segments: Sequence[Segment], *, dtype: torch.dtype, shape: Sequence[int]) -> None:
        """`shape` is that of one row."""
        self.segments, self.dtype, self.row_shape = list(segments), dtype, tuple(shape)
        self._ends = np.cumsum([len(segment) for segment in self.segments])

    @classmethod
    def of(cls, rows: Tensor) -> "Packed":
        return cls([MemorySegment(rows)], dtype=rows.dtype, shape=rows.shape[1:])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def whole(self) -> Tensor:
        """All rows; without a copy if they lie in one segment."""
        return (
            self.segments[0].whole()
            if len(self.segments) == 1
            else torch.cat([segment.whole() for segment in self.segments])
        )

    def part(self, start: int, stop: int) -> Tensor:
        """[row, ...] of consecutive rows, without a copy where they lie in one segment that is in memory or
        mapped.
        """
        found = [segment.part(a, b) for segment, a, b in self._cut(start, stop)]
        if not found:
            return torch.empty((0, *self.row_shape), dtype=self.dtype)
        return found[0] if len(found) == 1 else torch.cat(found)

    def take(self, rows: Int[Tensor, "row"]) -> Tensor:
        """[row, ...] of any rows, in the order asked for."""
        if len(self.segments) == 1:
            whole = self.segments[0].whole()
            return whole[rows.to(whole.device)]
        which = torch.from_numpy(np.searchsorted(self._ends, rows.numpy(), side="right"))
        order = torch.argsort(which, stable=True)
        counts = torch.bincount(which, minlength=len(self.segments)).tolist()
        found = torch.empty((len(rows), *self.row_shape), dtype=self.dtype)
        for segment, end, here in zip(self.segments, self._ends.tolist(), order.split(counts), strict=True):
            if len(here):
                found.index_copy_(0, here, segment.whole().index_select(0, rows[here] - (end - len(segment))))
        return found

    def columns(self, columns: Iterable[int]) -> Tensor:
        """[row, column]: some of the numbers of each row, flattened; one segment is touched after the other."""
        chosen, size = list(columns), math.prod(self.row_shape)
        if not chosen or not all(0 <= column < size for column in chosen):
            raise StoreError(
                f"columns: name at least one, each from 0 to {size - 1}; asked for {chosen[:5]}."
            )
        found = torch.empty((len(self), len(chosen)), dtype=self.dtype)
        bits = _BITS[self.dtype.itemsize]
        column = found.view(bits).numpy()[:, 0]
        for segment, end in zip(self.segments, self._ends.tolist(), strict=True):
            rows = segment.whole()
            if (
                len(chosen) == 1 and rows.device.type == "cpu"
            ):  # numpy copies a strided view in less time than torch
                column[end - len(rows) : end] = rows.view(bits).numpy().reshape(len(rows), size)[:, chosen[0]]
            else:
                found[end - len(rows) : end] = rows.view(len(rows), size)[:, chosen]
        return found

    def blocks(
        self, *, size: int, shuffle: bool, seed: int, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Which rows they are, and the rows, in blocks of up to `size` that lie in one segment each.

        Args:
            shuffle: blocks come in a random order and their rows are mixed.
            share: (i, n): of n readers, the blocks of the i-th.
        """
        starts = [
            (segment, int(end) - len(segment), a)
            for segment, end in zip(self.segments, self._ends, strict=True)
            for a in range(0, len(segment), size)
        ]
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(starts)) if shuffle else np.arange(len(starts))
        for number in order[share[0] :: share[1]].tolist():
            segment, first, a = starts[number]
            block = segment.whole()[a : a + size]
            rows = torch.arange(first + a, first + a + len(block))
            if shuffle:
                mixed = torch.from_numpy(np.random.default_rng([seed, number]).permutation(len(block)))
                block, rows = block[mixed.to(block.device)], rows[mixed]
            yield rows, block

    def _cut(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int]]:
        first = 0
        for segment, end in zip(self.segments, self._ends.tolist(), strict=True):
            if start < end and stop > first:
                yield segment, max(start, first) - first, min(stop, end) - first
            first = end
