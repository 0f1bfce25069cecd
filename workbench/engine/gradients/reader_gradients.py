"""The gradient of a metric at every reader's input, from one forward and one backward pass, on the decoder or on hooks.

Queries, keys, values and neurons share their input, so their gradient is taken behind the projection and brought back
through it and the norm, each by itself; whole MLPs and the logits have their own branch of the graph.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
        streams: layer → [row, example, pos, d_model], what attention reads.  mlp_streams: the same of its MLP.
        slopes: ("q" | "k" | "v" | "z" | "mlp" | "pre" | "linear", layer) or ("logits", n_layers) → the gradient there;
            for "mlp" and "logits" at the reader's input itself.
        kept: activations of the run that were asked for.
    """

    streams: Mapping[int, Tensor]
    mlp_streams: Mapping[int, Tensor]
    slopes: Mapping[tuple[str, int], Tensor]
    kept: Mapping[Key, Tensor] = field(default_factory=dict)


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
    """A run of the fast decoder from given embeddings of the tokens from `start` on; what comes before is the base run.

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
            q, k = (decoder.heads(at[port, layer], layer, port, pos) for port in "qk")
            before = (
                tuple(base.kept[name, layer][:, :start] for name in ("k rotated", "v")) if start else None
            )
            z = written.get(("z", layer))
            at["z", layer] = decoder.attend(layer, q, k, at["v", layer], before, visible) if z is None else z  # pyright: ignore[reportArgumentType]
            out = block.o(at["z", layer].flatten(-2))
            mid = x + (out.detach() if dropped == layer else out)
            if not shape.attn_only:
                assert block.mlp_norm is not None
                assert block.mlp_out is not None
                at["mlp", layer] = (x if shape.parallel else mid).view_as(x)
                mlp_streams[layer] = at["mlp", layer].detach()
                pre, linear = block.mlp_pre(block.mlp_norm(at["mlp", layer]))
                if layer in graph.neurons:
                    at["pre", layer] = pre
                    at |= {} if linear is None else {("linear", layer): linear}
                out = written.get(("mlp_out", layer))
                out = block.mlp_out(block.mlp_post(pre, linear)) if out is None else out
                mid = mid + (out.detach() if dropped == layer else out)
            x = mid
        at["logits", shape.n_layers] = x
        return GradientRun(
            streams,
            mlp_streams,
            gradients_of(measure(x), {key: v for key, v in at.items() if v.requires_grad}, metric),
        )


def hooked_run(
    model: Any,
    bound: Bound,
    measure: Callable[[Tensor], Tensor],
    metric: str,
    writes: Sequence[Write] = (),
    rows: int = 1,
) -> GradientRun:
    """The same of any model, at every token.

    Args:
        measure: logits [row * example, pos, vocab] → the summed metric.
        writes: what is set on the way, for each of the `rows` versions of the batch.
    """
    blocks = [Block.of(model, layer) for layer in range(model.cfg.n_layers)]
    tokens = bound.prompts.tokens.repeat(rows, 1)
    record: list[Key] = [
        (kind, layer) for layer in range(len(blocks)) for kind in ("resid_pre", "q", "k", "v", "z")
    ]
    raw = ["unembed.hook_in", *(["ln_final.hook_in"] if hasattr(model, "ln_final") else [])]
    for layer, block in enumerate(blocks):
        if block.mlp_norm is not None:
            raw.append(f"blocks.{layer}.mlp.hook_in")
            raw += [block.mlp_stream] if block.mlp_stream != Site("resid_pre", layer).hook else []
    result = forward(model, tokens, writes=writes, record=record, raw_record=raw, gradients=True)
    seen = result.recorded
    inputs = {
        ("normed", layer): seen[f"blocks.{layer}.mlp.hook_in"]
        for layer, b in enumerate(blocks)
        if b.mlp_norm is not None
    }
    inputs |= {
        (port, layer): seen[port, layer] for layer in range(len(blocks)) for port in ("q", "k", "v", "z")
    }
    found = gradients_of(
        measure(result.logits), inputs | {("normed", len(blocks)): seen["unembed.hook_in"]}, metric
    )

    def apart(value: Tensor) -> Tensor:
        return value.detach().view(rows, -1, *value.shape[1:])

    streams = {layer: apart(seen["resid_pre", layer]) for layer in range(len(blocks))}
    mlp_streams, slopes = {}, {}
    for (name, layer), slope in found.items():
        if name != "normed":
            slopes[name, layer] = apart(slope)
            continue
        last = layer == len(blocks)
        entry = (
            seen.get("ln_final.hook_in", seen["unembed.hook_in"])
            if last
            else seen[_entry(blocks[layer], layer, seen)]
        )
        norm = final_norm(model) if last else blocks[layer].mlp_norm
        assert norm is not None
        entry = entry.detach()
        pulled = pull_back(norm, stream=entry, gradient=slope.view_as(entry))
        slopes["logits" if last else "mlp", layer] = apart(pulled)
        if not last:
            mlp_streams[layer] = apart(entry)
    return GradientRun(streams, mlp_streams, slopes)


def _entry(block: Block, layer: int, seen: Mapping[Any, Tensor]) -> Any:
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
        width, made = decoder.shape.d_head, []
        for block in decoder.layers:
            ports = {port: getattr(block, port).weight for port in "qkv"}
            split = {
                port: weight.view(len(weight), -1, width).transpose(0, 1) for port, weight in ports.items()
            }
            into, gate = (None if each is None else each.weight for each in (block.mlp_in, block.mlp_gate))
            made.append(cls(block.attn_norm, split, block.mlp_norm, into, gate))
        return made


def reader_gradients(
    run: GradientRun, maps: Sequence[ReaderMaps], graph: Graph, *, room: int
) -> Iterator[tuple[slice, Float[Tensor, "reader example pos d_model"]]]:
    """dm/d in_v of every reader, summed over the rows of the run: slices of `graph.readers` in graph order.

    Args:
        room: how many numbers a piece may hold; groups of readers are cut accordingly.
    """
    at, shape = 0, graph.shape
    for layer in range(shape.n_layers):
        for port, heads in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
            weight, slope = maps[layer].ports[port], run.slopes.get((port, layer))
            if slope is None:
                slope = run.streams[layer].new_zeros(*run.streams[layer].shape[:3], heads, shape.d_head)
            for part in _parts(heads, run.streams[layer], room):
                after = slope[..., part, :].movedim(-2, 0).flatten(1, 3) @ weight[part].transpose(1, 2).to(
                    slope.dtype
                )
                pulled = _back(maps[layer].attn_norm, run.streams[layer], after)
                yield slice(at + part.start, at + part.stop), pulled
            at += heads
        if layer in graph.neurons:
            for part in _parts(shape.d_mlp, run.mlp_streams[layer], room):
                yield slice(at + part.start, at + part.stop), _neuron_slopes(run, maps[layer], layer, part)
            at += shape.d_mlp
        elif not shape.attn_only:
            yield slice(at, at + 1), run.slopes["mlp", layer].sum(0)[None]
            at += 1
    yield slice(at, at + 1), run.slopes["logits", shape.n_layers].sum(0)[None]


def _neuron_slopes(run: GradientRun, maps: ReaderMaps, layer: int, part: slice) -> Tensor:
    """dm/d in_v [neuron, example, pos, d_model] of some neurons."""
    assert maps.mlp_norm is not None
    halves = (("pre", maps.mlp_in if maps.mlp_gate is None else maps.mlp_gate), ("linear", maps.mlp_in))
    after: Tensor | float = 0.0
    for name, weight in halves:
        if (name, layer) in run.slopes and weight is not None:
            slope = run.slopes[name, layer][..., part].movedim(-1, 0).flatten(1)
            after = after + slope[..., None] * weight[:, part].T[:, None]
    assert isinstance(after, Tensor)
    return _back(maps.mlp_norm, run.mlp_streams[layer], after)


def _back(norm: Norm, stream: Tensor, after: Float[Tensor, "reader token d_model"]) -> Tensor:
    """[reader, example, pos, d_model]: gradients behind a norm as gradients before it, summed over the rows of a run."""
    return pull_back(norm, stream=stream.flatten(0, 2), gradient=after).view(len(after), *stream.shape).sum(1)


def _parts(n: int, stream: Tensor, room: int) -> Iterator[slice]:
    step = max(1, room // (4 * stream.numel()))
    for first in range(0, n, step):
        yield slice(first, min(first + step, n))
