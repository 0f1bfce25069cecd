"""One forward and backward pass of a metric: `GradientRun`, on the fast decoder or on hooks.

Queries, keys, values and neurons share their input, so autograd gives only the sum of their gradients there.
Each is therefore taken after the projection; whole MLPs and the logits have their own branch of the graph.

Read `decoder_run`, then `hooked_run`, the same for any model. Edges and writers are not known here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound
from workbench.engine.bridge import final_norm
from workbench.engine.fast.base_run import BaseRun
from workbench.engine.hooked.block import Block, mlp_input, pull_back
from workbench.engine.hooked.forward import Write, forward, gradients_of
from workbench.models.model import Model
from workbench.sites import Key, Site


@dataclass(frozen=True, eq=False)
class GradientRun:
    """One forward and backward pass of several versions (rows) of a batch.

    Attributes:
        streams: layer → [row, example, pos, d_model], what attention reads.
        mlp_streams: layer → the same of what its MLP reads.
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
                # The tokens before `start` are the base run's in every version: constants without a gradient.
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
                mlp_stream = mid
                if shape.parallel:
                    mlp_stream = x
                at["mlp", layer] = mlp_stream.view_as(x)
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
    model: Model,
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
    record: list[Key] = []
    for layer in range(n_layers):
        record += [(kind, layer) for kind in ("resid_pre", "q", "k", "v", "z")]
    raw_record = ["unembed.hook_in"]
    if hasattr(model, "ln_final"):
        raw_record.append("ln_final.hook_in")
    for layer, block in enumerate(blocks):
        if block.mlp_norm is not None:
            raw_record.append(mlp_input(layer))
            # In blocks that read one stream for both (GPT-J), it is recorded as `resid_pre` already.
            if block.mlp_stream != Site("resid_pre", layer).hook:
                raw_record.append(block.mlp_stream)
    result = forward(
        model, bound.prompts, copies=rows, writes=writes, record=record, raw_record=raw_record, gradients=True
    )
    seen = result.recorded
    # MLPs and the logits: the gradient after the norm, since TransformerLens 4.3 has no hook between the
    # stream and the norm that the MLP alone passes.
    at: dict[tuple[str, int], Tensor] = {}
    for layer, block in enumerate(blocks):
        if block.mlp_norm is not None:
            at["normed", layer] = seen[mlp_input(layer)]
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
        if layer == n_layers:
            reader, norm = "logits", final_norm(model)
            entry = seen.get("ln_final.hook_in", seen["unembed.hook_in"]).detach()
        else:
            reader, norm = "mlp", blocks[layer].mlp_norm
            entry = seen[_entry(blocks[layer], layer, seen)].detach()
            mlp_streams[layer] = by_row(entry)
        assert norm is not None
        # `view_as`: hooks after a norm may show the same numbers in another shape.
        pulled = pull_back(norm, stream=entry, gradient=gradient.view_as(entry))
        gradients[reader, layer] = by_row(pulled)
    return GradientRun(streams, mlp_streams, gradients)


def _entry(block: Block, layer: int, seen: Mapping[Any, Tensor]) -> Any:
    """The name under which the stream before an MLP's norm is recorded."""
    if block.mlp_stream in seen:
        return block.mlp_stream
    return ("resid_pre", layer)
