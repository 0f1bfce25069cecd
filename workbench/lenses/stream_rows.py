"""Rows of several sites of a store and of the last stream side by side, in blocks: `StreamRows`.

Read `StreamRows.blocks`. What is computed of the rows is not known here (`translators`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import ProbeError
from workbench.lenses.store_reading import finite_rows
from workbench.stores.store import SiteView

BLOCK = 4096
"""Rows of a store that are read at a time."""


@dataclass(frozen=True, eq=False)
class StreamBlock:
    """Some rows: their indices, their activations at every site, and their last stream."""

    rows: Tensor
    streams: list[Tensor]
    target: Tensor

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Which rows, streams [layer, row, d_model] and last streams [row, d_model]."""
        for start in range(0, len(self.target), size):
            chosen = slice(start, start + size)
            yield (
                self.rows[chosen],
                torch.stack([stream[chosen] for stream in self.streams]),
                self.target[chosen],
            )


class StreamRows:
    """The same rows of several sites and of the last stream, in blocks."""

    def __init__(self, views: Sequence[SiteView], final: SiteView, chosen: Tensor) -> None:
        self.views, self.final, self.chosen = views, final, chosen
        if not bool(chosen.any()):
            raise ProbeError("fit_tuned_lens: there are no rows but BOS ones to train on or to hold out.")

    def blocks(self, *, shuffle: bool, seed: int = 0) -> Iterator[StreamBlock]:
        """Every chosen row once."""
        of_views = [
            view.data.blocks(size=BLOCK, shuffle=shuffle, seed=seed) for view in (*self.views, self.final)
        ]
        for blocks in zip(*of_views, strict=True):
            rows = blocks[0][0]
            # One seed shuffles all sites alike; a map between different rows would be silent nonsense.
            assert all(bool((other == rows).all()) for other, _ in blocks[1:])
            kept = self.chosen[rows]
            if bool(kept.any()):
                views = (*self.views, self.final)
                kept_rows = []
                for (_, values), view in zip(blocks, views, strict=True):
                    kept_rows.append(finite_rows(values[kept], view))
                *streams, target = kept_rows
                yield StreamBlock(rows[kept], streams, target)

    def n_batches(self, size: int) -> int:
        """Batches of up to `size` rows, of which none lies in two blocks."""
        return sum(-(-len(block.rows) // size) for block in self.blocks(shuffle=False))
