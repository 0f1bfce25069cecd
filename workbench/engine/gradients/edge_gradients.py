"""(z_u - z'_u) . dm/d in_v for every edge of a graph: products of what writers would change and of gradients at readers.

No loop over edges: one product of matrices for each layer of readers and block of sources. Blocks are as large as the
budget allows; when all sources fit they are worked out once.
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
from workbench.engine.fast.circuits import written_by
from workbench.engine.gradients.reader_gradients import GradientRun, ReaderMaps, reader_gradients
from workbench.engine.hooked.block import Block
from workbench.engine.hooked.forward import forward
from workbench.sites import Key, Site

DifferenceBlock = tuple[slice, Callable[[], Tensor]]


@dataclass(frozen=True, eq=False)
class WriterDifferences:
    """What every writer of a batch changes: z_u - z'_u in the stream, in pieces of `graph.writers`.

    Attributes:
        pieces: (writers, function that makes [writer, example, pos, d_model]).
        whole: all of them at once, where they fit.
        values, others: key of a writer's activation → [example, pos, ...] of the clean run, and its other value.
    """

    pieces: Sequence[DifferenceBlock]
    whole: Tensor | None
    values: Mapping[Key, Tensor]
    others: Mapping[Key, Tensor]

    @classmethod
    def of(
        cls, batch: CircuitBatch, graph: Graph, model: Any, *, start: int, room: int
    ) -> "WriterDifferences":
        """The sources of a batch, from the token `start` on.

        Args:
            room: how many numbers a piece may hold.
        """
        values, others = _activations(batch, graph, model)
        values, others = ({key: value[:, start:] for key, value in each.items()} for each in (values, others))
        pieces = list(
            _pieces(batch, graph, model, {key: values[key] - others[key] for key in values}, values, room)
        )
        tokens = values["resid_pre", 0].numel()
        whole = torch.cat([make() for _, make in pieces]) if tokens * len(graph.writers) <= room else None
        return cls(pieces, whole, values, others)

    def upto(self, n: int) -> Iterator[tuple[slice, Tensor]]:
        """The first `n` writers."""
        if self.whole is not None:
            yield slice(0, n), self.whole[:n]
            return
        for writers, make in self.pieces:
            if writers.start < n:
                stop = min(writers.stop, n)
                yield slice(writers.start, stop), make()[: stop - writers.start]

    @property
    def n_blocks(self) -> int:
        """In how many blocks the sources are worked out."""
        return 1 if self.whole is not None else len(self.pieces)


def _activations(
    batch: CircuitBatch, graph: Graph, model: Any
) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
    """The writers' activations in the clean run, and their other values."""
    keys: list[Key] = [("resid_pre", 0)]
    keys += [(kind, layer) for layer in range(graph.shape.n_layers) for kind in written_by(graph, layer)]
    if batch.walk is not None:
        values = {key: batch.walk.base.whole(key) for key in keys}
        return values, {key: batch.walk.others.values[key] for key in keys}
    with torch.no_grad():
        values = dict(forward(model, batch.pairs.clean.tokens, record=keys).recorded)
        return values, {key: batch.bound.edited(Site(*key), values[key]) for key in keys}


def _pieces(
    batch: CircuitBatch,
    graph: Graph,
    model: Any,
    change: dict[Key, Tensor],
    values: dict[Key, Tensor],
    room: int,
) -> Iterator[DifferenceBlock]:
    shape, stream, at = graph.shape, change["resid_pre", 0], 1
    yield slice(0, 1), lambda: stream[None]
    for layer in range(shape.n_layers):
        block = None if batch.walk is not None else Block.of(model, layer)
        heads = _heads(batch, block, layer, change["z", layer], values["z", layer])
        yield slice(at, at + shape.n_heads), heads
        at += shape.n_heads
        if ("mlp_out", layer) in change:
            yield slice(at, at + 1), lambda layer=layer: change["mlp_out", layer][None]
            at += 1
        elif ("mlp_post", layer) in change:
            assert batch.walk is not None
            out = batch.walk.decoder.layers[layer].mlp_out
            assert out is not None
            step = max(1, room // (2 * stream.numel()))
            for first in range(0, shape.d_mlp, step):
                part = slice(first, min(first + step, shape.d_mlp))
                post = change["mlp_post", layer][..., part].movedim(-1, 0)
                yield slice(at + part.start, at + part.stop), _neurons(post, out.weight[part])
            at += shape.d_mlp


def _neurons(post: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: post[..., None] * weight[:, None, None]


def _heads(
    batch: CircuitBatch, block: Block | None, layer: int, change: Tensor, z: Tensor
) -> Callable[[], Tensor]:
    if block is None:
        assert batch.walk is not None
        weight = batch.walk.decoder.layers[layer].o.weight.view(change.shape[2], change.shape[3], -1)
    else:
        weight = block.w_out.to(change.dtype)

    def make() -> Tensor:
        sent = (change.movedim(2, 0).flatten(1, 2) @ weight).view(len(weight), *change.shape[:2], -1)
        if block is None or block.attn_post is None:
            return sent
        # The heads' sum is normed before it is added: the change is what the norm makes of it.
        whole = torch.einsum("bphe,hed->bpd", z, weight) + block.b_out.to(z.dtype)
        return block.attn_post(whole) - block.attn_post(whole - sent)

    return make


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
        places = length if "pos" in keep else 1 if graph.positions is None else len(graph.positions)
        size = (n if "example" in keep else 1, places, len(graph.writers), len(graph.readers))
        self.values = torch.zeros(size, dtype=torch.float64)
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
            for readers, slope in reader_gradients(run, maps, self.graph, room=room):
                for mine, change in sources.upto(int(self.before[readers.start])):
                    first = mine.start
                    if writers is not None:
                        first, stop = max(mine.start, writers.start), min(mine.stop, writers.stop)
                        if first >= stop:
                            continue
                        mine, change = slice(first, stop), change[first - mine.start : stop - mine.start]
                    self.put(mine, readers, change, slope, share)

    def put(self, writers: slice, readers: slice, change: Tensor, slope: Tensor, share: float = 1.0) -> None:
        """Add the products of [writer, example, pos, d_model] with [reader, example, pos, d_model]."""
        wide = torch.float64 if change.dtype == torch.float64 else torch.float32
        change, slope = change.to(wide), slope.to(wide)
        if self.classes is None:
            self._sum(writers, readers, change, slope, share, slice(None))
            return
        for number in range(len(self.graph.positions or ())):
            here = (self.classes == number).to(slope)
            if bool(here.any()):
                self._sum(writers, readers, change, slope * here[..., None], share, number)

    def _sum(
        self, writers: slice, readers: slice, change: Tensor, slope: Tensor, share: float, place: slice | int
    ) -> None:
        if "example" not in self.keep and "pos" not in self.keep:
            found = (change.flatten(1) @ slope.flatten(1).T)[None, None]
        else:
            out = "".join(letter for axis, letter in (("example", "b"), ("pos", "p")) if axis in self.keep)
            found = torch.einsum(f"ubpd,vbpd->{out}uv", change, slope)
            found = found if "pos" in self.keep else found.unsqueeze(-3)
            found = found if "example" in self.keep else found.unsqueeze(0)
        table = self.values[:, self.start :] if "pos" in self.keep else self.values[:, place]
        target = table[..., writers, readers]
        target += share * (found[:, 0] if isinstance(place, int) else found).double().cpu()
