"""(z_u - z'_u) . dm/d in_v for every edge of the graph, from one forward and one backward pass, without a loop over edges.

The gradient at a reader's input is that at its q, k, v or normed input, taken back through the projection and the norm
for each reader by itself; layers are walked one at a time, so that only one layer's reader gradients are held.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.engine.edits import Bound
from workbench.engine.parts import Block, check_parts_add_up, final_norm, pull_back
from workbench.engine.reference import forward, slopes_of
from workbench.graph import Graph
from workbench.sites import Key, Site
from workbench.tasks.metrics import Metric
from workbench.tasks.pairs import PromptPairs


def edge_products(model: Any, graph: Graph, pairs: PromptPairs, bound: Bound, measure: Metric, keep: Sequence[str]) -> Tensor:
    """[example or 1, pos or 1, writer, reader]: (z_u - z'_u) . dm/d in_v, summed over what is not kept."""
    check_parts_add_up(model)
    shape = graph.shape
    blocks = [Block.of(model, layer) for layer in range(shape.n_layers)]
    record: list[Key] = []
    raw = ["unembed.hook_in", *(["ln_final.hook_in"] if hasattr(model, "ln_final") else [])]
    for layer, block in enumerate(blocks):
        record += [(kind, layer) for kind in ("resid_pre", "q", "k", "v", "z")]
        if block.mlp_norm is not None:
            record.append(("mlp_out", layer))
            raw.append(f"blocks.{layer}.mlp.hook_in")
            raw += [block.mlp_stream] if block.mlp_stream != Site("resid_pre", layer).hook else []
    result = forward(model, pairs.clean.tokens, record=record, raw_record=raw, gradients=True)
    logits = measure.read(result.logits, pairs.clean)
    reference = logits.detach() if measure.needs_reference else None
    measured = measure(logits, pairs, reference).sum()

    ports: list[Any] = [(port, layer) for layer in range(shape.n_layers) for port in "qkv"]
    inputs = [name for name in raw if name.endswith(("mlp.hook_in", "unembed.hook_in"))]
    slopes = slopes_of(measured, {name: result.recorded[name] for name in (*ports, *inputs)}, measure.name)
    with torch.no_grad():
        changes = _changes(result.recorded, blocks, bound)
        columns = _reader_slopes(model, blocks, result.recorded, slopes)
        tables = [
            _sum_products(changes[:, :, : _before(graph, first)], slope, keep, len(graph.writers)) for first, slope in columns
        ]
    return torch.cat(tables, -1)


def _changes(recorded: Any, blocks: Sequence[Block], bound: Bound) -> Tensor:
    """[example, pos, writer, d_model]: z_u - z'_u of every writer in graph order."""

    def change(site: Site) -> Tensor:
        value = recorded[site.kind, site.layer].detach()
        return value - bound.edited(site, value)

    parts = [change(Site("resid_pre", 0))[:, :, None]]
    for layer, block in enumerate(blocks):
        parts.append(torch.einsum("bphe,hed->bphd", change(Site("z", layer)), block.w_out.to(recorded["z", layer].dtype)))
        if block.mlp_norm is not None:
            parts.append(change(Site("mlp_out", layer))[:, :, None])
    return torch.cat(parts, 2)


def _reader_slopes(
    model: Any, blocks: Sequence[Block], recorded: Mapping[Any, Tensor], slopes: Mapping[Any, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """(first reader's name, dm/d in_v [example, pos, reader, d_model]) of every group of readers in graph order."""
    for layer, block in enumerate(blocks):
        stream = recorded["resid_pre", layer]
        ports = ((slopes[port, layer], block.weights[port].to(stream.dtype)) for port in "qkv")
        after = torch.cat([torch.einsum("bphe,hde->bphd", slope, weight) for slope, weight in ports], 2)
        yield f"a{layer}.0<q>", pull_back(block.attn_norm, stream=stream, slope=after)
        if block.mlp_norm is not None:
            entry = recorded.get(block.mlp_stream, stream)
            after = slopes[f"blocks.{layer}.mlp.hook_in"].view_as(entry)[:, :, None]
            yield f"m{layer}", pull_back(block.mlp_norm, stream=entry, slope=after)
    entry = recorded.get("ln_final.hook_in", recorded["unembed.hook_in"])
    yield "logits", pull_back(final_norm(model), stream=entry, slope=slopes["unembed.hook_in"][:, :, None])


def _before(graph: Graph, reader: str) -> int:
    """How many writers come before a reader."""
    return int(graph.exists[:, graph.readers.index(reader)].sum())


def _sum_products(changes: Tensor, slope: Tensor, keep: Sequence[str], writers: int) -> Tensor:
    """[example or 1, pos or 1, writer, reader] sums of products, in float64 from float32 products."""
    wide = torch.float64 if changes.dtype == torch.float64 else torch.float32
    out = "".join(letter if axis in keep else "" for axis, letter in (("example", "b"), ("pos", "p")))
    table = torch.einsum(f"bpud,bpvd->{out}uv", changes.to(wide), slope.to(wide)).double()
    table = table if "pos" in keep else table.unsqueeze(-3)
    table = table if "example" in keep else table.unsqueeze(0)
    return torch.nn.functional.pad(table, (0, 0, 0, writers - changes.shape[2]))
