"""The gradient of a metric at every reader's input, from one forward and one backward pass.

Queries, keys, values and neurons share their input, so autograd gives only the sum of their gradients there.
Each is therefore taken behind the projection and pulled back through it and the norm by itself; whole MLPs
and the logits have their own branch of the graph.

Read `GradientRun` (what a pass leaves behind), then `reader_gradients`. Edges, writers and batches are not
known here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound
from workbench.engine.bridge import Norm, final_norm
from workbench.engine.fast.base_run import BaseRun
from workbench.engine.fast.decoder import Decoder
from workbench.engine.hooked.block import Block, pull_back
from workbench.engine.hooked.forward import Write, forward, gradients_of
from workbench.sites import Key, Site


@dataclass(frozen=True, eq=False)
class GradientRun:
    """One forward and backward pass of several versions (rows) of a batch.

    Attributes:
        streams: layer → [row, example, pos, d_model], what attention reads.  mlp_streams: the same of its
            MLP.
        gradients: ("q" | "k" | "v" | "z" | "mlp" | "pre" | "linear", layer) or ("logits", n_layers) → dm/d of
            that; for "mlp" and "logits" at the reader's input itself.
    """

    streams: Mapping[int, Tensor]
    mlp_streams: Mapping[int, Tensor]
    gradients: Mapping[tuple[str, int], Tensor]


def decoder_run(
    base: BaseRun,
    graph: Graph,
    embedded: Float[Tensor, "row example pos d_model"],
    measure: Callable[[Tensor], Tensor],
    metric: str,
    *,
    start: int = 0,
    written: Mapping[Key, Tensor] | None = None,
    dropped: int | None = None,
) -> GradientRun:
    """A run of the fast decoder from these embeddings of the tokens from `start` on, after the base run's.

    Args:
        measure: stream after the last block [row, example, pos, d_model] → the summed metric.
        written: activations that are set: "z" or "mlp_out" of a layer.
        dropped: a layer whose writes pass no gradient on.
    """
    decoder, shape, written = base.decoder, graph.shape, written or {}
    pos = torch.arange(start, start + embedded.shape[2], device=embedded.device)
    visible = (pos[None, :] <= pos[:, None])[None]
    streams, mlp_streams, at = {}, {}, {}
    with torch.enable_grad():
        x = embedded.detach().requires_grad_()
        for layer, block in enumerate(decoder.layers):
            streams[layer] = x.detach()
            normed = block.attn_norm(x)
            for port, heads in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
                at[port, layer] = getattr(block, port)(normed).view(*x.shape[:3], heads, shape.d_head)
            z = written.get(("z", layer))
            if z is None:
                q, k = (decoder.heads(at[port, layer], layer, port, pos) for port in "qk")
                # The tokens before `start` are the base run's in every version: constants, without a
                # gradient.
                before = None
                if start:
                    before = base.kept["k rotated", layer][:, :start], base.kept["v", layer][:, :start]
                z = decoder.attend(layer, q, k, at["v", layer], before, visible)
            at["z", layer] = z
            attn_out = block.o(z.flatten(-2))
            if dropped == layer:
                attn_out = attn_out.detach()
            mid = x + attn_out
            if not shape.attn_only:
                assert block.mlp_norm is not None
                assert block.mlp_out is not None
                # view_as makes a branch of its own: the gradient here is what goes through this MLP alone.
                at["mlp", layer] = (x if shape.parallel else mid).view_as(x)
                mlp_streams[layer] = at["mlp", layer].detach()
                pre, linear = block.mlp_pre(block.mlp_norm(at["mlp", layer]))
                if layer in graph.neurons:
                    at["pre", layer] = pre
                    if linear is not None:
                        at["linear", layer] = linear
                mlp_out = written.get(("mlp_out", layer))
                if mlp_out is None:
                    mlp_out = block.mlp_out(block.mlp_post(pre, linear))
                if dropped == layer:
                    mlp_out = mlp_out.detach()
                mid = mid + mlp_out
            x = mid
        at["logits", shape.n_layers] = x
        differentiable = {key: value for key, value in at.items() if value.requires_grad}
        return GradientRun(streams, mlp_streams, gradients_of(measure(x), differentiable, metric))


def hooked_run(
    model: Any,
    bound: Bound,
    measure: Callable[[Tensor], Tensor],
    metric: str,
    writes: Sequence[Write] = (),
    rows: int = 1,
) -> GradientRun:
    """The same run of any model, on hooks and at every token.

    Args:
        measure: logits [row * example, pos, vocab] → the summed metric.
        writes: what is set on the way, for each of the `rows` versions of the batch.
    """
    blocks = [Block.of(model, layer) for layer in range(model.cfg.n_layers)]
    n_layers = len(blocks)
    tokens = bound.prompts.tokens.repeat(rows, 1)
    record: list[Key] = []
    for layer in range(n_layers):
        record += [(kind, layer) for kind in ("resid_pre", "q", "k", "v", "z")]
    raw_record = ["unembed.hook_in"]
    if hasattr(model, "ln_final"):
        raw_record.append("ln_final.hook_in")
    for layer, block in enumerate(blocks):
        if block.mlp_norm is not None:
            raw_record.append(f"blocks.{layer}.mlp.hook_in")
            # In blocks that read one stream for both (GPT-J), it is recorded as `resid_pre` already.
            if block.mlp_stream != Site("resid_pre", layer).hook:
                raw_record.append(block.mlp_stream)
    result = forward(model, tokens, writes=writes, record=record, raw_record=raw_record, gradients=True)
    seen = result.recorded
    # MLPs and the logits: the gradient behind the norm, since TransformerLens 4.3 has no hook between the
    # stream and the norm that the MLP alone passes.
    at: dict[tuple[str, int], Tensor] = {}
    for layer, block in enumerate(blocks):
        if block.mlp_norm is not None:
            at["normed", layer] = seen[f"blocks.{layer}.mlp.hook_in"]
        for port in ("q", "k", "v", "z"):
            at[port, layer] = seen[port, layer]
    at["normed", n_layers] = seen["unembed.hook_in"]
    gradients_there = gradients_of(measure(result.logits), at, metric)

    def by_row(value: Tensor) -> Tensor:
        """[row * example, ...] -> [row, example, ...]."""
        return value.detach().view(rows, -1, *value.shape[1:])

    streams = {layer: by_row(seen["resid_pre", layer]) for layer in range(n_layers)}
    mlp_streams, gradients = {}, {}
    for (name, layer), gradient in gradients_there.items():
        if name != "normed":
            gradients[name, layer] = by_row(gradient)
            continue
        is_last = layer == n_layers
        if is_last:
            norm, entry = final_norm(model), seen.get("ln_final.hook_in", seen["unembed.hook_in"])
        else:
            norm, entry = blocks[layer].mlp_norm, seen[_entry(blocks[layer], layer, seen)]
        assert norm is not None
        entry = entry.detach()
        pulled = pull_back(norm, stream=entry, gradient=gradient.view_as(entry))
        gradients["logits" if is_last else "mlp", layer] = by_row(pulled)
        if not is_last:
            mlp_streams[layer] = by_row(entry)
    return GradientRun(streams, mlp_streams, gradients)


def _entry(block: Block, layer: int, seen: Mapping[Any, Tensor]) -> Any:
    """The name under which the stream before an MLP's norm is recorded."""
    return block.mlp_stream if block.mlp_stream in seen else ("resid_pre", layer)


@dataclass(frozen=True, eq=False)
class ReaderMaps:
    """How what a block's readers compute depends on their input: its norms, and the weights of q, k and v.

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
    def all_of(cls, model: Any, decoder: Decoder | None) -> "list[ReaderMaps]":
        """Of every block."""
        if decoder is None:
            blocks = [Block.of(model, layer) for layer in range(model.cfg.n_layers)]
            return [cls(block.attn_norm, block.weights) for block in blocks]
        width, maps = decoder.shape.d_head, []
        for block in decoder.layers:
            ports = {}
            for port in "qkv":
                weight = getattr(block, port).weight
                # [d_model, head * d_head] -> [head, d_model, d_head]
                ports[port] = weight.view(len(weight), -1, width).transpose(0, 1)
            mlp_in, mlp_gate = (half.weight if half else None for half in (block.mlp_in, block.mlp_gate))
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
                # [head, row * example * pos, d_head] @ [head, d_head, d_model]
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
    # Of a gated MLP both halves read the same input: their gradients add up behind the norm.
    halves = (("pre", maps.mlp_in if maps.mlp_gate is None else maps.mlp_gate), ("linear", maps.mlp_in))
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
    """Gradients behind a norm as gradients before it, summed over the rows of a run."""
    pulled = pull_back(norm, stream=stream.flatten(0, 2), gradient=behind_norm)
    return pulled.view(len(behind_norm), *stream.shape).sum(1)


def _shifted(units: slice, first: int) -> slice:
    return slice(first + units.start, first + units.stop)


def _slices(n: int, stream: Tensor, room: int) -> Iterator[slice]:
    """Slices of n readers; pulling one back takes about four tables of the stream's size."""
    step = max(1, room // (4 * stream.numel()))
    for first in range(0, n, step):
        yield slice(first, min(first + step, n))
