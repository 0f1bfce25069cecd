"""Direct logit attribution: what every component adds to a logit by itself, the final norm's scale frozen.

It reads stores: a component's activation times the direction that the logit reads (Elhage et al. 2021).
Components and `bias` sum to the logit, which is checked. Read `direct_attribution`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from workbench.arguments import checked
from workbench.engine.bridge import final_norm
from workbench.engine.store_values import check_same_model
from workbench.errors import ModelError, PromptError, StoreError, UnknownName
from workbench.finite import check_finite
from workbench.lenses.frozen_norm import FrozenNorm
from workbench.lenses.store_reading import TokenRows, finite_rows, needed, one_token, token_rows
from workbench.lenses.stream_writers import StreamWriter, head_writer, neuron_writer
from workbench.lenses.unembedding import ReadOut, unembedding_weight
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.results import effect_array, versions
from workbench.sites import Position, Shape
from workbench.stores.store import ActivationStore

LEVELS = ("component", "head", "neuron")
CHUNK = 4096
"""Rows that are explained at a time at most."""
# How large a gap rounding can leave in sums of thousands of terms, as a share of the largest attribution.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
HALF_TOLERANCE = 0.1


@checked
@model_call()
def direct_attribution(
    store: ActivationStore,
    model: Model,
    *,
    targets: Int[Tensor, "example alternative token"] | Int[Tensor, "example"],
    minus: Int[Tensor, "example wrong_alternative wrong_token"] | None = None,
    by: Literal["component", "head", "neuron"] | str = "head",
    pos: Position | Literal["each"] = "END",
    budget: int = 2**30,
) -> xr.DataArray:
    """What every component adds directly to the logit of the targets (minus that of others) at a position.

    Args:
        targets: tokens per example (`pairs.answers`); the mean over alternatives.
        minus: tokens whose logit is subtracted.
        by: "component": `input`, the attention `a0` and MLP `m0` of each layer, each with its output bias;
            "head": each head `a0.1`, and MLPs (the bias of an attention's output belongs to no head and is
            counted under `bias`); "neuron": each MLP neuron.
        pos: an index or name, or "each" for all positions.
        budget: bytes of activations at a time.

    Returns:
        DataArray (example, component[, pos]), or (example, layer, neuron[, pos]) for neurons. Component
        `bias` holds what depends on no activation. Attribute `gap`: the largest |sum of all - logit
        (difference)|, before a soft cap; for neurons |sum of a layer's - its MLP's|, NaN when the store holds
        no `mlp_out`. Cells are NaN where an example has no such position.

    Raises:
        StoreError: the store is of another model, or lacks an activation; the message names it.
        UnknownName: no such `by`, or a position that no prompt names.
        PromptError: targets that do not fit the examples, or a position that no prompt has.
        ModelError: the model's parts do not sum to its logits, or (`by="neuron"`) its MLPs are mixtures of
            experts.
        NotFinite: the store's rows, or what they add, are NaN or infinite.
    """
    if by not in LEVELS:
        raise UnknownName("by", by, LEVELS)
    check_same_model(store, model, "direct_attribution")
    shape = Shape.of(model)
    writers = _writers(model, shape, by)
    kinds = _kinds(store, shape, by)
    reading = _logit_reading(model, store, targets, minus)
    explained = _rows(store, pos)
    weight = unembedding_weight(model)
    norm = FrozenNorm.of(final_norm(model), shape.d_model, weight)
    chunks: list[Tensor] = []
    gap = 0.0
    for chosen in torch.arange(len(explained.prompts)).split(_rows_at_once(shape, by, budget)):
        prompts = explained.prompts[chosen]
        rows = _StoreRows(store, prompts, explained.positions[chosen])
        final = rows("resid_post", shape.n_layers - 1)
        scale = norm.scale(final.to(weight))
        back, shift = norm.pull_back(reading.direction[prompts], scale)
        if by == "neuron":
            values, chunk_gap = _neurons(rows, writers, back, known="mlp_out" in kinds)
        else:
            values, constant = _components(rows, writers, back, kinds)
            logit = (final.double().cpu() * back).sum(1)
            chunk_gap = float((values.sum(1) + constant - logit).abs().max())
            bias = constant + shift + reading.bias[prompts]
            values = torch.cat([values, bias[:, None]], 1)
        cure = "Check the model's weights and the precision of the store."
        check_finite(values, "The direct attribution of these components", cure)
        gap = max(gap, chunk_gap)
        if gap > TOLERANCE.get(final.dtype, HALF_TOLERANCE) * max(1.0, float(values.abs().max())):
            raise ModelError(
                f"The parts of this model do not sum to its logits (gap {gap:.2g}): it scales or norms them "
                "on the way in a form that is not supported. effects(...) works on it."
            )
        chunks.append(values)
    flat = torch.cat(chunks)
    if by == "neuron":
        # Parts were joined layer after layer on one axis: [row, layer * neuron] -> [row, layer, neuron].
        flat = flat.view(len(flat), shape.n_layers, -1)
    facts = {"kind": "direct_attribution", "by": by, "position": str(pos)} | store.attrs
    facts |= {"minus": minus is not None, "gap": gap, "unit": "logits"}
    return _table(flat, explained, store, shape, by, facts | versions(), each_position=pos == "each")


def _rows_at_once(shape: Shape, by: str, budget: int) -> int:
    """Rows whose activations and attributions fit the budget, in float64."""
    n_neurons = shape.d_mlp * (shape.n_layers if by == "neuron" else 2)
    row = 8 * (shape.d_model * 8 + n_neurons + shape.n_heads * shape.d_head)
    return max(1, min(CHUNK, budget // row))


def _writers(model: Model, shape: Shape, by: str) -> list[StreamWriter | None]:
    """How each layer's heads or neurons write; None where its components are not split.

    Raises:
        ModelError: the model has no weights that split them.
    """
    if by == "component" or (by == "neuron" and shape.attn_only):
        return [None] * shape.n_layers
    read = head_writer if by == "head" else neuron_writer
    return [read(model, layer) for layer in range(shape.n_layers)]


def _kinds(store: ActivationStore, shape: Shape, by: str) -> list[str]:
    """The kinds to read; raises `StoreError` for one that is missing at some layer."""
    layers, caller = range(shape.n_layers), f"direct_attribution(by={by!r})"
    if by == "neuron" and shape.attn_only:
        raise StoreError("direct_attribution: this model has no MLPs, and so no neurons.")
    kinds = {"component": ["attn_out"], "head": ["z"], "neuron": ["mlp_post"]}[by]
    if by != "neuron" and not shape.attn_only:
        kinds.append("mlp_out")
    for kind in kinds:
        needed(store, kind, caller, layers=layers)
    needed(store, "resid_post", caller, layers=[shape.n_layers - 1])
    if by == "neuron":
        # It only serves to measure the gap, so a store without it is enough.
        has_mlp_out = store.layers("mlp_out") == list(layers)
        return [*kinds, "mlp_out"] if has_mlp_out else kinds
    if 0 in store.layers("resid_pre"):
        return [*kinds, "resid_pre"]
    if "embed" not in store.kinds:
        raise StoreError(f"{caller} needs resid_pre[0] or embed; the store holds {', '.join(store.kinds)}.")
    return [*kinds, *(kind for kind in ("embed", "pos_embed") if kind in store.kinds)]


@dataclass(frozen=True, eq=False)
class _LogitReading:
    """What the logit (difference) of each example reads of the normed stream, and its bias."""

    direction: Float[Tensor, "example d_model"]
    bias: Float[Tensor, "example"]


def _logit_reading(
    model: Model, store: ActivationStore, targets: Tensor, minus: Tensor | None
) -> _LogitReading:
    weight, bias = unembedding_weight(model).double().cpu(), ReadOut.of(model).bias.double().cpu()
    direction = torch.zeros(len(store), len(weight), dtype=torch.float64)
    constant = torch.zeros(len(store), dtype=torch.float64)
    for sign, name, tokens in ((1, "targets", targets), (-1, "minus", minus)):
        if tokens is None:
            continue
        table = one_token(tokens, store, model, f"direct_attribution: {name}")[:, :, 0].cpu()
        share = (table >= 0).double() / (table >= 0).sum(1, keepdim=True)
        # Padding is -1; its share is 0, so that any token may stand for it.
        index = table.clamp(min=0)
        direction += sign * (weight[:, index] * share).sum(2).T
        constant += sign * (bias[index] * share).sum(1)
    return _LogitReading(direction, constant)


def _rows(store: ActivationStore, pos: Position) -> TokenRows:
    """The rows to explain."""
    if pos == "each":
        return token_rows(store["resid_post", store.layers("resid_post")[-1]])
    positions = store.prompts.at(pos).cpu()
    prompts = (positions >= 0).nonzero()[:, 0]
    if not len(prompts):
        raise PromptError(f"direct_attribution: no prompt has a position {pos!r}.")
    return TokenRows(prompts, positions[prompts])


@dataclass(frozen=True)
class _StoreRows:
    """Activations of some rows of a store."""

    store: ActivationStore
    prompts: Tensor
    positions: Tensor

    def __call__(self, kind: str, layer: int | None = None) -> Tensor:
        view = self.store[kind, layer]
        return finite_rows(view.rows(prompt=self.prompts, pos=self.positions), view)

    def products(self, kind: str, layer: int | None, back: Tensor) -> Float[Tensor, "row"]:
        """What `back` reads of an activation in the stream."""
        return (self(kind, layer).double().cpu() * back).sum(1)


def _components(
    rows: _StoreRows,
    writers: Sequence[StreamWriter | None],
    back: Float[Tensor, "row d_model"],
    kinds: list[str],
) -> tuple[Float[Tensor, "row component"], Float[Tensor, "row"]]:
    """What `back` reads of the input and of every component, in the order of `_names`, and the constant
    rest."""
    whole_input = torch.zeros(len(back), dtype=torch.float64)
    for kind in kinds:
        if kind in ("resid_pre", "embed", "pos_embed"):
            whole_input += rows.products(kind, 0 if kind == "resid_pre" else None, back)
    values = [whole_input[:, None]]
    constant = torch.zeros(len(back), dtype=torch.float64)
    for layer, heads in enumerate(writers):
        if heads is None:
            values.append(rows.products("attn_out", layer, back)[:, None])
        else:
            z = rows("z", layer).double().cpu()
            read, shift = heads.reads(z.flatten(1), back)
            values.append((z * read.view_as(z)).sum(2))
            constant += shift
        if "mlp_out" in kinds:
            values.append(rows.products("mlp_out", layer, back)[:, None])
    return torch.cat(values, 1), constant


def _neurons(
    rows: _StoreRows,
    writers: Sequence[StreamWriter | None],
    back: Float[Tensor, "row d_model"],
    *,
    known: bool,
) -> tuple[Float[Tensor, "row neurons"], float]:
    """What `back` reads of every neuron, and how far a layer's neurons are from their MLP's output.

    The gap is NaN where MLP outputs are not `known`.
    """
    values: list[Tensor] = []
    gap = 0.0
    for layer, neurons in enumerate(writers):
        assert neurons is not None
        post = rows("mlp_post", layer).double().cpu()
        read, constant = neurons.reads(post, back)
        values.append(post * read)
        if known:
            off = values[-1].sum(1) + constant - rows.products("mlp_out", layer, back)
            gap = max(gap, float(off.abs().max()))
    return torch.cat(values, 1), gap if known else float("nan")


def _names(shape: Shape, by: str) -> list[str]:
    names = ["input"]
    for layer in range(shape.n_layers):
        if by == "head":
            names += [f"a{layer}.{head}" for head in range(shape.n_heads)]
        else:
            names.append(f"a{layer}")
        if not shape.attn_only:
            names.append(f"m{layer}")
    return [*names, "bias"]


def _table(
    flat: Tensor,
    rows: TokenRows,
    store: ActivationStore,
    shape: Shape,
    by: str,
    attrs: dict[str, Any],
    *,
    each_position: bool,
) -> xr.DataArray:
    """The rows as a labelled array; NaN where an example has no such position."""
    n_positions = rows.n_positions if each_position else 1
    index = rows.positions if each_position else torch.zeros_like(rows.positions)
    table = torch.full((len(store), n_positions, *flat.shape[1:]), float("nan"), dtype=torch.float64)
    table[rows.prompts, index] = flat
    table = table.movedim(1, -1) if each_position else table[:, 0]
    coords: dict[str, Any] = {"example": np.arange(len(store))}
    if by == "neuron":
        coords |= {"layer": np.arange(shape.n_layers), "neuron": np.arange(shape.d_mlp)}
    else:
        coords["component"] = _names(shape, by)
    if each_position:
        coords["pos"] = np.arange(n_positions)
    if store["resid_post", shape.n_layers - 1].dtype != torch.float64:
        table = table.float()
    return effect_array(table, list(coords), coords, name="attribution", attrs=attrs)
