"""What every writer of a batch changes in the stream, z_u - z'_u, in blocks as large as the budget allows.

Read `WriterDifferences.upto`. When all writers fit they are worked out once. Readers and gradients are not
known here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.circuits import CircuitBatch
from workbench.engine.fast.patched_values import writer_kinds
from workbench.engine.hooked.block import HeadOutputs
from workbench.engine.hooked.forward import forward
from workbench.models.model import Model
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
        cls, batch: CircuitBatch, graph: Graph, model: Model, *, start: int, room: int
    ) -> "WriterDifferences":
        """The differences of a batch, from the token `start` on.

        Args:
            room: how many numbers a block may hold.
        """
        values, patched = _activations(batch, graph, model)
        change = {}
        for key in values:
            values[key], patched[key] = values[key][:, start:], patched[key][:, start:]
            change[key] = values[key] - patched[key]
        blocks = list(_blocks(batch, graph, model, change, values, room))
        n_numbers = values["resid_pre", 0].numel() * len(graph.writers)
        whole = None
        if n_numbers <= room:
            whole = torch.cat([differences() for _, differences in blocks])
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
        if self.whole is not None:
            return 1
        return len(self.blocks)


def _activations(
    batch: CircuitBatch, graph: Graph, model: Model
) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
    """The writers' activations in the clean run, and their patched values."""
    keys: list[Key] = [("resid_pre", 0)]
    for layer in range(graph.shape.n_layers):
        keys += [(kind, layer) for kind in writer_kinds(graph, layer)]
    if batch.walk is not None:
        values = {key: batch.walk.base.whole(key) for key in keys}
        return values, {key: batch.walk.patched.values[key] for key in keys}
    with torch.no_grad():
        values = dict(forward(model, batch.pairs.clean, record=keys).recorded)
        return values, {key: batch.bound.edited(Site(*key), values[key]) for key in keys}


def _blocks(
    batch: CircuitBatch,
    graph: Graph,
    model: Model,
    change: dict[Key, Tensor],
    values: dict[Key, Tensor],
    room: int,
) -> Iterator[DifferenceBlock]:
    """The blocks in the order of `graph.writers`: the input, then each layer's heads and MLP (or neurons)."""
    shape, stream, first = graph.shape, change["resid_pre", 0], 1
    yield slice(0, 1), lambda: stream[None]
    for layer in range(shape.n_layers):
        outputs = None
        if batch.walk is None:
            outputs = HeadOutputs.of(model, layer)
        heads = _heads(batch, outputs, layer, change["z", layer], values["z", layer])
        yield slice(first, first + shape.n_heads), heads
        first += shape.n_heads
        if ("mlp_out", layer) in change:
            # Bound as a default: the function is called when the loop is at another layer.
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
    batch: CircuitBatch, outputs: HeadOutputs | None, layer: int, change: Tensor, z: Tensor
) -> Callable[[], Tensor]:
    """What works out the differences of a layer's heads."""
    if outputs is None:
        assert batch.walk is not None
        weight = batch.walk.decoder.layers[layer].o.weight.view(change.shape[2], change.shape[3], -1)
    else:
        weight = outputs.w_out.to(change.dtype)

    def differences() -> Tensor:
        """[head, example, pos, d_model]."""
        sent = (change.movedim(2, 0).flatten(1, 2) @ weight).view(len(weight), *change.shape[:2], -1)
        if outputs is None or outputs.attn_post is None:
            return sent
        # The heads' sum is normed before it is added (Gemma 2): the change is what the norm makes of it.
        whole = torch.einsum("bphe,hed->bpd", z, weight) + outputs.b_out.to(z.dtype)
        return outputs.attn_post(whole) - outputs.attn_post(whole - sent)

    return differences
