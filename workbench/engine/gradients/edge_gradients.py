"""Gradient scores of edges, (z_u - z'_u) . dm/d in_v: what writers would change times gradients at readers.

Read `EdgeTable.add`. There is no loop over edges: one product of matrices for each layer of readers and block
of writers. Which runs the gradients come from is not known here (`runs`).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.circuits import CircuitBatch
from workbench.engine.edge_mixing import token_classes
from workbench.engine.gradients.gradient_run import GradientRun
from workbench.engine.gradients.reader_gradients import ReaderMaps, reader_gradients
from workbench.engine.gradients.writer_differences import WriterDifferences


class EdgeTable:
    """Sums of products of one batch: float64 [example or 1, pos or class or 1, writer, reader].

    Args:
        keep: axes that are not summed over: "example", "pos".
        start: the first token of what is summed; those before change nothing.
    """

    def __init__(self, batch: CircuitBatch, graph: Graph, keep: Sequence[str], *, start: int) -> None:
        self.graph, self.keep, self.start = graph, keep, start
        n, length = batch.pairs.clean.tokens.shape
        classes = token_classes(graph, batch.pairs.clean)
        self.classes: Int[Tensor, "example pos"] | None = None
        if classes is not None:
            self.classes = classes[:, start:]
        n_places = 1
        if "pos" in keep:
            n_places = length
        elif graph.positions is not None:
            n_places = len(graph.positions)
        if "example" not in keep:
            n = 1
        size = (n, n_places, len(graph.writers), len(graph.readers))
        # float64, because scores of many batches are summed.
        self.values = torch.zeros(size, dtype=torch.float64)
        # Writers before a reader are the first ones in the graph's order, so that their number says which
        # they are.
        self.before = graph.whole.exists.sum(0)

    def add(
        self,
        sources: WriterDifferences,
        run: GradientRun,
        maps: Sequence[ReaderMaps],
        *,
        room: int,
        writers: slice | None = None,
        share: float = 1.0,
    ) -> None:
        """Add (z_u - z'_u) . dm/d in_v, times `share`, of some writers (None: all)."""
        with torch.no_grad():
            for readers, gradient in reader_gradients(run, maps, self.graph, room=room):
                for block, change in sources.upto(int(self.before[readers.start])):
                    if writers is None:
                        self.put(block, readers, change, gradient, share)
                        continue
                    first, stop = max(block.start, writers.start), min(block.stop, writers.stop)
                    if first < stop:
                        chosen = change[first - block.start : stop - block.start]
                        self.put(slice(first, stop), readers, chosen, gradient, share)

    def put(
        self, writers: slice, readers: slice, change: Tensor, gradient: Tensor, share: float = 1.0
    ) -> None:
        """Add the products of [writer, example, pos, d_model] with [reader, example, pos, d_model]."""
        # Products of 16-bit numbers are summed in float32: there are thousands of terms.
        wide = torch.promote_types(change.dtype, torch.float32)
        change, gradient = change.to(wide), gradient.to(wide)
        if self.classes is None:
            self._sum(writers, readers, change, gradient, share, slice(None))
            return
        for number in range(len(self.graph.positions or ())):
            in_class = (self.classes == number).to(gradient)
            if bool(in_class.any()):
                self._sum(writers, readers, change, gradient * in_class[..., None], share, number)

    def _sum(
        self,
        writers: slice,
        readers: slice,
        change: Tensor,
        gradient: Tensor,
        share: float,
        position_class: slice | int,
    ) -> None:
        if "example" not in self.keep and "pos" not in self.keep:
            # Sums over examples and positions are one product of matrices, [writer, reader].
            scores = (change.flatten(1) @ gradient.flatten(1).T)[None, None]
        else:
            kept_axes = ""
            if "example" in self.keep:
                kept_axes += "b"
            if "pos" in self.keep:
                kept_axes += "p"
            scores = torch.einsum(f"ubpd,vbpd->{kept_axes}uv", change, gradient)
            # Axes that are summed over stay with size 1, so that every choice of `keep` indexes the table
            # alike.
            if "pos" not in self.keep:
                scores = scores.unsqueeze(-3)
            if "example" not in self.keep:
                scores = scores.unsqueeze(0)
        table = self.values[:, position_class]
        if "pos" in self.keep:
            # Tokens before `start` change nothing: their cells stay 0.
            table = self.values[:, self.start :]
        cells = table[..., writers, readers]
        # An index of a class drops that axis from the table, and so from the scores.
        if isinstance(position_class, int):
            scores = scores[:, 0]
        cells += share * scores.double().cpu()
