"""The run of a circuit: every reader sees the current value of the writers on its circuit edges and the other value of
the rest. `in_v += sum over edges (u, v) not in the circuit of (z'_u - z~_u)`.

With corrupt values the empty circuit is the corrupt run and the full circuit the clean run, exactly. Many circuits
run in one batch; edges are a masked product of writers and readers, never a loop.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.engine.edits import Bound
from workbench.engine.parts import Block, check_parts_add_up, final_norm
from workbench.engine.reference import Change, forward, rows_per_forward
from workbench.engine.run import stacked
from workbench.graph import Graph
from workbench.models.load import model_device
from workbench.sites import KINDS, Shape, Site


def circuit_logits(
    model: Any, circuits: Bool[np.ndarray, "circuit writer reader"], bound: Bound
) -> Float[Tensor, "circuit example pos vocab"]:
    """The logits of every circuit on the prompts that `bound` was made for.

    Args:
        circuits: edges that keep their current value; pruned ones are expected.
        bound: the other value z', bound to the prompts.
    """
    check_parts_add_up(model)
    walk = _Walk(model, circuits, bound)
    tokens = stacked(bound.prompts.tokens, len(circuits))
    logits = forward(model, tokens, raw_writes=walk.hooks()).logits
    return logits.view(len(circuits), len(bound.prompts), *logits.shape[1:])


def circuits_per_forward(model: Any, length: int, *, budget: int | None = None) -> int:
    """How many rows (a prompt under a circuit) fit into one pass: the writers' outputs are kept beside the model's own."""
    shape = Shape.of(model)
    kept = (len(Graph(shape).writers) + 6 * shape.n_heads) * shape.d_model
    return rows_per_forward(model, length, budget=budget, extra=kept)


class _Walk:
    """The hooks of one circuit run. Writers' differences z' - z~ are collected as the run reaches them."""

    def __init__(self, model: Any, circuits: np.ndarray, bound: Bound) -> None:
        self.model, self.bound, self.n = model, bound, len(circuits)
        self.shape = Shape.of(model)
        self.graph = Graph(self.shape)
        cut = self.graph.exists & ~circuits
        self.cut = torch.from_numpy(cut).to(model_device(model), next(model.parameters()).dtype)
        self.differences: list[Tensor] = []
        self.reader = {name: i for i, name in enumerate(self.graph.readers)}
        self.inputs: dict[str, Tensor] = {}

    def hooks(self) -> dict[str, Change]:
        hooks: dict[str, Change] = {}
        for layer in range(self.shape.n_layers):
            self._add_block(hooks, layer)
        last = KINDS["resid_post"].hook.format(layer=self.shape.n_layers - 1)
        hooks[last] = self._keep("logits")
        hooks["unembed.hook_in"] = self._write_logits()
        return hooks

    def _add_block(self, hooks: dict[str, Change], layer: int) -> None:
        block = Block.of(self.model, layer)
        hooks[Site("resid_pre", layer).hook] = self._enter(layer, block)
        for port in "qkv":
            hooks[Site(port, layer).hook] = self._write_port(layer, port)
        hooks[Site("z", layer).hook] = self._write_heads(layer, block)
        if block.mlp_norm is None:
            return
        if block.mlp_stream != Site("resid_pre", layer).hook:
            hooks[block.mlp_stream] = self._keep(f"m{layer}")
        hooks[f"blocks.{layer}.mlp.hook_in"] = self._write_mlp(layer, block)
        hooks[Site("mlp_out", layer).hook] = self._collect(Site("mlp_out", layer))

    def _enter(self, layer: int, block: Block) -> Change:
        """The stream arrives: from it and the differences so far, q, k and v of every head are made."""

        def change(stream: Tensor) -> Tensor:
            if layer == 0:
                self._difference(Site("resid_pre", 0), stream, lambda change: change[..., None, :])
            heads = [self.shape.n_heads, self.shape.n_kv_heads, self.shape.n_kv_heads]
            first = self.reader[f"a{layer}.0<q>"]
            normed = block.attn_norm(self._rebuilt(stream, slice(first, first + sum(heads))))
            for port, part in zip("qkv", normed.split(heads, 2), strict=True):
                self.inputs[f"{port}{layer}"] = block.project(part, port)
            self.inputs[f"m{layer}"] = stream
            return stream

        return change

    def _write_port(self, layer: int, port: str) -> Change:
        return lambda value: self.inputs.pop(f"{port}{layer}").view_as(value)

    def _write_heads(self, layer: int, block: Block) -> Change:
        def change(z: Tensor) -> Tensor:
            weight = block.w_out.to(z.dtype)
            self._difference(Site("z", layer), z, lambda change: torch.einsum("bphe,hed->bphd", change, weight))
            return z

        return change

    def _write_mlp(self, layer: int, block: Block) -> Change:
        def change(value: Tensor) -> Tensor:
            at = self.reader[f"m{layer}"]
            rebuilt = self._rebuilt(self.inputs.pop(f"m{layer}"), slice(at, at + 1))
            assert block.mlp_norm is not None
            return block.mlp_norm(rebuilt)[:, :, 0].view_as(value)

        return change

    def _write_logits(self) -> Change:
        def change(value: Tensor) -> Tensor:
            at = self.reader["logits"]
            rebuilt = self._rebuilt(self.inputs.pop("logits"), slice(at, at + 1))
            return final_norm(self.model)(rebuilt)[:, :, 0].view_as(value)

        return change

    def _keep(self, name: str) -> Change:
        def change(stream: Tensor) -> Tensor:
            self.inputs[name] = stream
            return stream

        return change

    def _collect(self, site: Site) -> Change:
        def change(value: Tensor) -> Tensor:
            self._difference(site, value, lambda change: change[..., None, :])
            return value

        return change

    def _difference(self, site: Site, current: Tensor, outputs: Change) -> None:
        """Append z' - z~ of the site's writers, [example, pos, writer, d_model]."""
        changes = [self.bound.edited(site, part) - part for part in current.split(len(self.bound.prompts))]
        self.differences.append(outputs(torch.cat(changes)))

    def _rebuilt(self, stream: Tensor, readers: slice) -> Tensor:
        """[row, pos, reader, d_model]: the stream with the other value on every edge that is cut."""
        written = torch.cat(self.differences, 2)
        cut = self.cut[:, : written.shape[2], readers]
        rows, length, _, width = written.shape
        split = written.view(self.n, rows // self.n * length, written.shape[2], width)
        change = torch.einsum("cxud,cuv->cxvd", split, cut)
        return stream[:, :, None] + change.reshape(rows, length, -1, width)
