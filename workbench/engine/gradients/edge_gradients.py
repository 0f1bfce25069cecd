"""Gradient scores of edges, (z_u - z'_u) . dm/d in_v: what writers would change times gradients at readers.

Read `EdgeTable.add`, then `WriterDifferences`. There is no loop over edges: one product of matrices for each
layer of readers and block of writers. Blocks are as large as the budget allows; when all writers fit they are
worked out once. Which runs the gradients come from is not known here (`runs`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.circuits import CircuitBatch
from workbench.engine.edge_mixing import token_classes
from workbench.engine.fast.circuits import writer_kinds
from workbench.engine.gradients.reader_gradients import GradientRun, ReaderMaps, reader_gradients
from workbench.engine.hooked.block import Block
from workbench.engine.hooked.forward import forward
from workbench.sites import Key, Site

DifferenceBlock = tuple[slice, Callable[[], Tensor]]
"""Some writers, and a function that works out their differences [writer, example, pos, d_model]."""


@dataclass(frozen=True, eq=False)
class WriterDifferences:
    """What every writer of a batch changes: z_u - z'_u in the stream, in blocks of `graph.writers`.

    Attributes:
        blocks: in the order of writers.
        whole: all of them at once, where they fit.
        values, patched: key of a writer's activation → [example, pos, ...] of the clean run, and its patched
            value.
    """

    blocks: Sequence[DifferenceBlock]
    whole: Tensor | None
    values: Mapping[Key, Tensor]
    patched: Mapping[Key, Tensor]

    @classmethod
    def of(
        cls, batch: CircuitBatch, graph: Graph, model: Any, *, start: int, room: int
    ) -> "WriterDifferences":
        """The differences of a batch, from the token `start` on.

        Args:
            room: how many numbers a block may hold.
        """
        values, patched = _activations(batch, graph, model)
        values = {key: value[:, start:] for key, value in values.items()}
        patched = {key: value[:, start:] for key, value in patched.items()}
        change = {key: values[key] - patched[key] for key in values}
        blocks = list(_blocks(batch, graph, model, change, values, room))
        n_numbers = values["resid_pre", 0].numel() * len(graph.writers)
        whole = torch.cat([differences() for _, differences in blocks]) if n_numbers <= room else None
        return cls(blocks, whole, values, patched)

    def upto(self, n: int) -> Iterator[tuple[slice, Tensor]]:
        """The first `n` writers, [writer, example, pos, d_model]."""
        if self.whole is not None:
            yield slice(0, n), self.whole[:n]
            return
        for writers, differences in self.blocks:
            if writers.start < n:
                stop = min(writers.stop, n)
                yield slice(writers.start, stop), differences()[: stop - writers.start]

    @property
    def n_blocks(self) -> int:
        """In how many blocks the differences are worked out."""
        return 1 if self.whole is not None else len(self.blocks)


def _activations(
    batch: CircuitBatch, graph: Graph, model: Any
) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
    """The writers' activations in the clean run, and their patched values."""
    keys: list[Key] = [("resid_pre", 0)]
    for layer in range(graph.shape.n_layers):
        keys += [(kind, layer) for kind in writer_kinds(graph, layer)]
    if batch.walk is not None:
        values = {key: batch.walk.base.whole(key) for key in keys}
        return values, {key: batch.walk.patched.values[key] for key in keys}
    with torch.no_grad():
        values = dict(forward(model, batch.pairs.clean.tokens, record=keys).recorded)
        return values, {key: batch.bound.edited(Site(*key), values[key]) for key in keys}


def _blocks(
    batch: CircuitBatch,
    graph: Graph,
    model: Any,
    change: dict[Key, Tensor],
    values: dict[Key, Tensor],
    room: int,
) -> Iterator[DifferenceBlock]:
    """The blocks in the order of `graph.writers`: the input, then each layer's heads and MLP (or neurons)."""
    shape, stream, first = graph.shape, change["resid_pre", 0], 1
    yield slice(0, 1), lambda: stream[None]
    for layer in range(shape.n_layers):
        block = None if batch.walk is not None else Block.of(model, layer)
        heads = _heads(batch, block, layer, change["z", layer], values["z", layer])
        yield slice(first, first + shape.n_heads), heads
        first += shape.n_heads
        if ("mlp_out", layer) in change:
            yield slice(first, first + 1), lambda layer=layer: change["mlp_out", layer][None]
            first += 1
        elif ("mlp_post", layer) in change:
            assert batch.walk is not None
            out = batch.walk.decoder.layers[layer].mlp_out
            assert out is not None
            step = max(1, room // (2 * stream.numel()))
            for start in range(0, shape.d_mlp, step):
                neurons = slice(start, min(start + step, shape.d_mlp))
                post = change["mlp_post", layer][..., neurons].movedim(-1, 0)
                yield slice(first + neurons.start, first + neurons.stop), _neurons(post, out.weight[neurons])
            first += shape.d_mlp


def _neurons(post: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """What works out the differences of neurons: their change [neuron, example, pos] times their weights."""
    return lambda: post[..., None] * weight[:, None, None]


def _heads(
    batch: CircuitBatch, block: Block | None, layer: int, change: Tensor, z: Tensor
) -> Callable[[], Tensor]:
    """What works out the differences of a layer's heads."""
    if block is None:
        assert batch.walk is not None
        weight = batch.walk.decoder.layers[layer].o.weight.view(change.shape[2], change.shape[3], -1)
    else:
        weight = block.w_out.to(change.dtype)

    def differences() -> Tensor:
        """[head, example, pos, d_model]."""
        sent = (change.movedim(2, 0).flatten(1, 2) @ weight).view(len(weight), *change.shape[:2], -1)
        if block is None or block.attn_post is None:
            return sent
        # The heads' sum is normed before it is added (Gemma 2): the change is what the norm makes of it.
        whole = torch.einsum("bphe,hed->bpd", z, weight) + block.b_out.to(z.dtype)
        return block.attn_post(whole) - block.attn_post(whole - sent)

    return differences


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
        self.classes: Int[Tensor, "example pos"] | None = None if classes is None else classes[:, start:]
        n_places = 1 if graph.positions is None else len(graph.positions)
        if "pos" in keep:
            n_places = length
        size = (n if "example" in keep else 1, n_places, len(graph.writers), len(graph.readers))
        # float64, because scores of many batches are summed.
        self.values = torch.zeros(size, dtype=torch.float64)
        # [reader]: how many writers come before it; they are the first ones, in the order of the graph.
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
        wide = torch.float64 if change.dtype == torch.float64 else torch.float32
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
            scores = (change.flatten(1) @ gradient.flatten(1).T)[None, None]
        else:
            kept_axes = "".join(
                letter for axis, letter in (("example", "b"), ("pos", "p")) if axis in self.keep
            )
            scores = torch.einsum(f"ubpd,vbpd->{kept_axes}uv", change, gradient)
            # [example or 1, pos or 1, writer, reader]
            if "pos" not in self.keep:
                scores = scores.unsqueeze(-3)
            if "example" not in self.keep:
                scores = scores.unsqueeze(0)
        table = self.values[:, self.start :] if "pos" in self.keep else self.values[:, position_class]
        cells = table[..., writers, readers]
        # An index of a class drops that axis from the table, and so from the scores.
        if isinstance(position_class, int):
            scores = scores[:, 0]
        cells += share * scores.double().cpu()
