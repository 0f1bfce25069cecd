"""What writers bring to readers in runs of circuits: their z - z', times the weights of the edges.

Read `Contributions.reaching`. `EdgeWeights` says which edges some circuit has or lacks, so that only those
are summed. How z is computed is not known here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.engine.edge_mixing import mixed


class EdgeWeights:
    """The weights of edges in several circuits, and what they say about single writers and readers.

    Args:
        keep: 1 where the edge is in the circuit, 0 where it is not, or something between.
        exists: [writer, reader] whether the graph has the edge.
        has_answer_tokens: whether tokens after the prompt are a position class of their own, the last one.
        like: whose device and precision the weights take.

    Attributes:
        soft: whether gradients flow to the weights.
        used: [circuit, writer] whether a circuit has any edge from the writer.
        kept, cut: [writer, reader] whether any circuit has the edge, and whether any lacks it.
        changed: [reader] whether any circuit lacks an edge into the reader.
    """

    def __init__(
        self,
        keep: Float[Tensor, "circuit *pos_class writer reader"],
        exists: Tensor,
        *,
        has_answer_tokens: bool,
        like: Tensor,
    ) -> None:
        if has_answer_tokens:
            # Behind the prompt every edge is there, so the tables below must count these tokens' edges too.
            whole = exists.to(keep).expand(len(keep), 1, *exists.shape)
            if keep.ndim == 3:
                keep = keep[:, None]
            keep = torch.cat((keep, whole), 1)
        self.values = keep.to(like)
        self.n, self.soft = len(keep), keep.requires_grad
        weights = keep.detach().cpu()
        self.used = np.ones((self.n, len(exists)), dtype=bool)
        # With gradients every edge takes part: an edge of weight 0 has a gradient too.
        if not self.soft:
            self.used = _any(weights != 0).numpy()
        self.kept = (weights != 0).flatten(0, -3).any(0).numpy()
        self.cut = (weights != 1).flatten(0, -3).any(0).numpy()
        self.changed = (weights != exists).flatten(0, -2).any(0).numpy()


@dataclass(eq=False)
class Contributions:
    """z - z' of writers, [circuit or 1, writer, example, pos, d_model] in blocks, and their sum.

    One row stands for all circuits.
    """

    writers: list[int] = field(default_factory=list)
    blocks: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None

    def add(self, writers: Sequence[int], change: Tensor) -> None:
        """Add z - z' of some writers."""
        self.writers += writers
        self.blocks.append(change)
        summed = change.sum(1)
        if self.total is not None:
            summed = self.total + summed
        self.total = summed

    def some(self, picked: np.ndarray) -> Tensor:
        """z - z' of the writers that are picked, [circuit, writer, example, pos, d_model]."""
        chosen, first = [], 0
        for block in self.blocks:
            in_block = picked[first : first + block.shape[1]]
            first += block.shape[1]
            if in_block.all():
                chosen.append(block)  # as it is: indexing would copy it
            elif in_block.any():
                chosen.append(block[:, np.flatnonzero(in_block)])
        return torch.cat(chosen, 1)

    def only_at(self, rows: Tensor, places: Int[Tensor, "example"]) -> None:
        """Forget all positions but one of each example."""
        # Each example is read at a place of its own, so example and pos are indexed together; the axis pos is
        # put back with size 1, because readers expect it.
        self.blocks = [block[:, :, rows, places][:, :, :, None] for block in self.blocks]
        if self.total is not None:
            self.total = self.total[:, rows, places][:, :, None]

    def reaching(
        self,
        columns: list[int],
        weights: EdgeWeights,
        rows: slice | Tensor,
        circuits: slice | Tensor,
        classes: Tensor | None,
    ) -> Iterator[Float[Tensor, "circuit_or_one reader_or_one example pos d_model"]]:
        """What the writers bring to readers: all but what is cut, or what is kept, whichever is less work.

        Args:
            columns: of the readers.
            rows: the rows of the contributions to use; all of them where one row stands for all circuits.
            circuits: whose edge weights are used.
            classes: the position class of each token, or None for one.
        """
        writers = self.writers
        if not writers:
            return
        kept = np.asarray(weights.kept[writers][:, columns].any(1))
        cut = np.asarray(weights.cut[writers][:, columns].any(1))
        picked, weight = kept, weights.values
        if weights.soft:
            picked = np.ones(len(writers), dtype=bool)
        elif cut.sum() <= kept.sum():
            # sum of all - sum of (1 - weight): the total is known, and few edges are left to subtract.
            assert self.total is not None
            yield self.total[rows][:, None]
            picked, weight = cut, weights.values - 1
        if picked.any():
            chosen = [writer for writer, is_picked in zip(writers, picked, strict=True) if is_picked]
            edge_weights = weight[..., chosen, :][..., columns][circuits]
            yield mixed(self.some(picked)[rows], edge_weights, classes)


def _any(mask: Tensor) -> Tensor:
    """[circuit, row] of a mask [circuit, (pos,) row, column]: whether any place in the row is set."""
    in_row = mask.any(-1)
    if in_row.ndim == 3:
        in_row = in_row.any(1)  # with positions, a row counts where any position has it
    return in_row
