"""The gradient of a metric at every reader's input, from the passes of `gradient_run`.

A pass holds gradients of queries, keys, values and neurons after their projection. Each is pulled back
through it and the norm by itself, since only their sum could be read at the input that they share.

Read `reader_gradients`. Edges, writers and batches are not known here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.bridge import Norm
from workbench.engine.fast.decoder import Decoder
from workbench.engine.gradients.gradient_run import GradientRun
from workbench.engine.hooked.block import Block, pull_back
from workbench.models.model import Model


@dataclass(frozen=True, eq=False)
class ReaderMaps:
    """What gradients at a block's readers are pulled back through: its norms, and the weights of q, k and v.

    Attributes:
        ports: port → [head or kv head, d_model, d_head].
        mlp_in, mlp_gate: [d_model, neuron], of the linear half of a gated MLP and of the other; for neurons.
    """

    attn_norm: Norm
    ports: Mapping[str, Tensor]
    mlp_norm: Norm | None = None
    mlp_in: Tensor | None = None
    mlp_gate: Tensor | None = None

    @classmethod
    def all_of(cls, model: Model, decoder: Decoder | None) -> "list[ReaderMaps]":
        """The maps of every block."""
        if decoder is None:
            blocks = [Block.of(model, layer) for layer in range(model.cfg.n_layers)]
            return [cls(block.attn_norm, block.weights) for block in blocks]
        width, maps = decoder.shape.d_head, []
        for block in decoder.layers:
            ports = {}
            for port in "qkv":
                weight = getattr(block, port).weight
                # Gradients go back through each head by itself: heads come first, [head, d_model, d_head].
                ports[port] = weight.view(len(weight), -1, width).transpose(0, 1)
            mlp_in = mlp_gate = None
            if block.mlp_in is not None:
                mlp_in = block.mlp_in.weight
            if block.mlp_gate is not None:
                mlp_gate = block.mlp_gate.weight
            maps.append(cls(block.attn_norm, ports, block.mlp_norm, mlp_in, mlp_gate))
        return maps


def reader_gradients(
    run: GradientRun, maps: Sequence[ReaderMaps], graph: Graph, *, room: int
) -> Iterator[tuple[slice, Float[Tensor, "reader example pos d_model"]]]:
    """dm/d in_v of every reader, summed over the rows of the run: slices of `graph.readers` in graph order.

    Args:
        room: how many numbers a group of readers may hold; groups are cut accordingly.
    """
    first, shape = 0, graph.shape
    for layer in range(shape.n_layers):
        stream = run.streams[layer]
        for port, n_heads in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
            weight, gradient = maps[layer].ports[port], run.gradients.get((port, layer))
            if gradient is None:
                # z was set, so q, k and v of this layer reach nothing.
                gradient = stream.new_zeros(*stream.shape[:3], n_heads, shape.d_head)
            for heads in _slices(n_heads, stream, room):
                # One batched product takes the gradient of every head [head, row * example * pos, d_head]
                # back through its own columns.
                back_map = weight[heads].transpose(1, 2).to(gradient.dtype)
                behind_norm = gradient[..., heads, :].movedim(-2, 0).flatten(1, 3) @ back_map
                yield _shifted(heads, first), _through_norm(maps[layer].attn_norm, stream, behind_norm)
            first += n_heads
        if layer in graph.neurons:
            for neurons in _slices(shape.d_mlp, run.mlp_streams[layer], room):
                yield _shifted(neurons, first), _neuron_gradients(run, maps[layer], layer, neurons)
            first += shape.d_mlp
        elif not shape.attn_only:
            yield slice(first, first + 1), run.gradients["mlp", layer].sum(0)[None]
            first += 1
    yield slice(first, first + 1), run.gradients["logits", shape.n_layers].sum(0)[None]


def _neuron_gradients(run: GradientRun, maps: ReaderMaps, layer: int, neurons: slice) -> Tensor:
    """dm/d in_v [neuron, example, pos, d_model] of some neurons."""
    assert maps.mlp_norm is not None
    # Of a gated MLP both halves read the same input: their gradients add up after the norm.
    halves = [("pre", maps.mlp_in)]
    if maps.mlp_gate is not None:
        halves = [("pre", maps.mlp_gate), ("linear", maps.mlp_in)]
    behind_norm: Tensor | float = 0.0
    for name, weight in halves:
        if (name, layer) in run.gradients and weight is not None:
            gradient = run.gradients[name, layer][..., neurons].movedim(-1, 0).flatten(1)
            behind_norm = behind_norm + gradient[..., None] * weight[:, neurons].T[:, None]
    assert isinstance(behind_norm, Tensor)
    return _through_norm(maps.mlp_norm, run.mlp_streams[layer], behind_norm)


def _through_norm(
    norm: Norm, stream: Tensor, behind_norm: Float[Tensor, "reader token d_model"]
) -> Float[Tensor, "reader example pos d_model"]:
    """Gradients after a norm as gradients before it, summed over the rows of a run."""
    pulled = pull_back(norm, stream=stream.flatten(0, 2), gradient=behind_norm)
    return pulled.view(len(behind_norm), *stream.shape).sum(1)


def _shifted(units: slice, first: int) -> slice:
    return slice(first + units.start, first + units.stop)


def _slices(n: int, stream: Tensor, room: int) -> Iterator[slice]:
    """Slices of n readers; pulling one back takes about four tables of the stream's size."""
    step = max(1, room // (4 * stream.numel()))
    for first in range(0, n, step):
        yield slice(first, min(first + step, n))
