"""Scores of edges: how much each one supports the behaviour. Positive: without it the metric falls."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench.engine.edits import Bound, Value
from workbench.engine.parts import Block, final_norm, pull_back
from workbench.engine.reference import Key, forward, rows_per_forward, slopes_of
from workbench.engine.run import check_context, end_logits
from workbench.errors import EditError, PromptError, UnknownName
from workbench.graph import Graph
from workbench.models.load import check_eval, model_fingerprint, model_name
from workbench.results import effect_array, versions
from workbench.sites import Shape, Site
from workbench.tasks.metrics import Metric
from workbench.tasks.metrics import metric as as_metric
from workbench.tasks.pairs import PromptPairs

METHODS = ("eap",)
Axis = Literal["example", "pos"] | str


def score_edges(
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    method: Literal["eap"] | str = "eap",
    keep: Sequence[Axis] = (),
    budget: int | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """A score for every edge of the model's graph; positive means that the edge supports the behaviour.

    "eap": s(u, v) = (z_u - z'_u) . dm/d in_v at the clean run, summed over positions and d_model, mean over examples:
    minus the first-order change of the metric when the edge takes the other value.

    Args:
        value: the other value z' of the writers, as in `effects`.
        keep: axes not to sum or average over: "example", "pos".
        budget: bytes that one forward and backward pass may use.

    Returns:
        DataArray ([example, pos,] writer, reader) in graph order; NaN where no edge exists.

    Source: edge attribution patching, Syed et al. 2310.10348.
    """
    check_eval(model)
    if method not in METHODS:
        raise UnknownName("method of score_edges", method, METHODS)
    if not isinstance(value, Value):
        raise EditError(f"value is {type(value).__name__}, not a value such as from_store(store) or zero().")
    unknown = [axis for axis in keep if axis not in ("example", "pos")]
    if unknown:
        raise UnknownName("axis to keep", unknown[0], ("example", "pos"))
    measure = as_metric(metric)
    measure.check(pairs)
    check_pairs(model, pairs)
    graph = Graph.of(model)
    value.bind(model, pairs.clean, pairs.corrupt)
    length = int(pairs.clean.lengths.max())
    shape = (len(pairs) if "example" in keep else 1, length if "pos" in keep else 1, len(graph.writers), len(graph.readers))
    total = torch.zeros(shape, dtype=torch.float64)
    chunk = max(1, rows_per_forward(model, length, budget=budget, gradients=True) // (1 + len(graph.writers) // 64))
    with tqdm(total=len(pairs), desc=f"edges ({method})", unit="example", disable=None if progress else True, leave=False) as bar:
        for start in range(0, len(pairs), chunk):
            part = pairs.select(slice(start, start + chunk))
            bound = value.bind(model, part.clean, part.corrupt)
            products = _products(model, graph, part, bound, measure, keep)
            rows = slice(start, start + len(part)) if "example" in keep else slice(None)
            total[rows, : products.shape[1]] += products.cpu()
            bar.update(len(part))
    if "example" not in keep:
        total /= len(pairs)
    total[..., ~torch.from_numpy(graph.exists)] = float("nan")
    if "example" in keep and "pos" in keep:
        beyond = torch.arange(length) >= pairs.clean.lengths[:, None]
        total[beyond] = float("nan")
    attrs = {
        "kind": "edge_scores", "method": method, "value": value.describe(), "metric": measure.name, "unit": measure.unit,
        "model": model_name(model), "model_fingerprint": model_fingerprint(model), "data_fingerprint": pairs.fingerprint,
        "task": pairs.provenance.get("task"), "variant": pairs.provenance.get("variant"), "seed": pairs.provenance.get("seed"),
        "split": pairs.provenance.get("split"), "n": len(pairs), "graph": json.dumps(asdict(graph.shape)),
        "prompt_ids": " ".join((*pairs.clean.ids, *pairs.corrupt.ids)), **versions(),
    }  # fmt: skip
    coords: dict[str, Any] = {"example": np.arange(len(pairs)), "pos": np.arange(length)}
    coords = {axis: coords[axis] for axis in ("example", "pos") if axis in keep}
    coords |= {"writer": list(graph.writers), "reader": list(graph.readers)}
    values = total.reshape([len(labels) for labels in coords.values()])
    values = values if next(model.parameters()).dtype == torch.float64 else values.float()
    return effect_array(values, tuple(coords), coords, name="score", attrs=attrs)


def check_pairs(model: Any, pairs: PromptPairs) -> None:
    """Raise `PromptError` when circuits cannot be run on these pairs: unequal lengths, prompts over the context."""
    check_context(model, pairs.clean)
    check_context(model, pairs.corrupt)
    if not pairs.equal_lengths:
        i = int((pairs.clean.lengths != pairs.corrupt.lengths).nonzero()[0])
        raise PromptError(
            f"Pair {i} has clean and corrupt prompts of {int(pairs.clean.lengths[i])} and {int(pairs.corrupt.lengths[i])} tokens. "
            "Edges and circuits need equal lengths within a pair."
        )


def _products(model: Any, graph: Graph, pairs: PromptPairs, bound: Bound, measure: Metric, keep: Sequence[Axis]) -> Tensor:
    """[example or 1, pos or 1, writer, reader]: (z_u - z'_u) . dm/d in_v, summed over what is not kept."""
    shape = graph.shape
    blocks = [Block.of(model, layer) for layer in range(shape.n_layers)]
    kept: dict[str, Tensor] = {}

    def tracked(name: str) -> Callable[[Tensor], Tensor]:
        def change(stream: Tensor) -> Tensor:
            kept[name] = stream.clone() if stream.requires_grad else stream.detach().requires_grad_()
            return kept[name]

        return change

    raw = {"unembed.hook_in": tracked("logits"), "ln_final.hook_in": tracked("logits stream")}
    raw = raw if "ln_final" in dict(model.named_children()) else {"unembed.hook_in": tracked("logits")}
    record: list[Key] = []
    for layer, block in enumerate(blocks):
        record += [(kind, layer) for kind in ("resid_pre", "q", "k", "v", "z")]
        if block.mlp_norm is not None:
            record.append(("mlp_out", layer))
            raw[f"blocks.{layer}.mlp.hook_in"] = tracked(f"m{layer}")
            if block.mlp_stream != Site("resid_pre", layer).hook:
                raw[block.mlp_stream] = tracked(f"m{layer} stream")
    result = forward(model, pairs.clean.tokens, record=record, raw_writes=raw, gradients=True)
    logits = end_logits(result.logits, pairs.clean) if measure.positions == "END" else result.logits
    reference = logits.detach() if measure.needs_reference else None
    measured = measure(logits, pairs, reference).sum()

    readers: dict[str, Tensor] = {
        f"{port}{layer}": result.recorded[port, layer] for layer in range(shape.n_layers) for port in "qkv"
    }
    readers |= {name: value for name, value in kept.items() if not name.endswith("stream")}
    slopes = slopes_of(measured, readers, measure.name)
    changes = _changes(result.recorded, blocks, bound)
    with torch.no_grad():
        columns = _reader_slopes(shape, blocks, result.recorded, kept, slopes, final_norm(model))
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
    shape: Shape, blocks: Sequence[Block], recorded: Any, kept: Any, slopes: Any, last: Any
) -> list[tuple[str, Tensor]]:
    """(first reader's name, dm/d in_v [example, pos, reader, d_model]) of every group of readers in graph order."""
    columns: list[tuple[str, Tensor]] = []
    for layer, block in enumerate(blocks):
        stream = recorded["resid_pre", layer].detach()
        for port in "qkv":
            after = torch.einsum("bphe,hde->bphd", slopes[f"{port}{layer}"], block.weights[port].to(stream.dtype))
            columns.append((f"a{layer}.0<{port}>", pull_back(block.attn_norm, stream, after)))
        if block.mlp_norm is not None:
            entry = kept.get(f"m{layer} stream", recorded["resid_pre", layer])
            columns.append((f"m{layer}", pull_back(block.mlp_norm, entry, slopes[f"m{layer}"].view_as(entry)[:, :, None])))
    entry = kept.get("logits stream", kept["logits"])
    columns.append(("logits", pull_back(last, entry, slopes["logits"][:, :, None])))
    return columns


def _before(graph: Graph, reader: str) -> int:
    """How many writers come before a reader."""
    return int(graph.exists[:, graph.readers.index(reader)].sum())


def _sum_products(changes: Tensor, slope: Tensor, keep: Sequence[Axis], writers: int) -> Tensor:
    """[example or 1, pos or 1, writer, reader] sums of products, in float64 from float32 products."""
    wide = torch.float64 if changes.dtype == torch.float64 else torch.float32
    out = "".join(letter if axis in keep else "" for axis, letter in (("example", "b"), ("pos", "p")))
    table = torch.einsum(f"bpud,bpvd->{out}uv", changes.to(wide), slope.to(wide)).double()
    table = table if "pos" in keep else table.unsqueeze(-3)
    table = table if "example" in keep else table.unsqueeze(0)
    return torch.nn.functional.pad(table, (0, 0, 0, writers - changes.shape[2]))
