"""Direct logit attribution: what every part of a model adds to a logit by itself, with the final norm's scale frozen.

It reads stores: a part's activation times what the logit reads of it (Elhage et al. 2021; `definitions`). Parts and `bias`
sum to the logit.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from workbench.engine.bridge import Norm, block_norm, final_norm
from workbench.engine.hooked.block import Block
from workbench.errors import ModelError, PromptError, StoreError, UnknownName
from workbench.lenses.unembedding import ReadOut, check_store, needed, one_token, token_rows
from workbench.models.load import model_device
from workbench.results import effect_array, versions
from workbench.sites import Position, Shape
from workbench.stores.store import ActivationStore

LEVELS = ("component", "head", "neuron")
CHUNK = 4096
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A layer norm or RMS norm with its scale frozen: v -> scale * gain * (v, centred or not), plus a shift.

    Attributes:
        gain, shift: [d_model].  centred: whether the mean is taken off.  norm: the norm itself.
    """

    norm: Norm
    gain: Float[Tensor, "d_model"]
    shift: Float[Tensor, "d_model"]
    centred: bool

    @classmethod
    def of(cls, norm: Norm, size: int, like: Tensor) -> "FrozenNorm":
        """Read off what the norm makes of three vectors, so that it fits every kind of norm that is one."""
        zero = like.new_zeros(size)
        signs = torch.ones(size, dtype=torch.float64)
        signs[::2] = -1
        probe = signs - signs.mean()
        with torch.no_grad():
            shift, ones, made = (
                norm(v.to(like)[None, None])[0, 0].double().cpu() for v in (zero, zero + 1, probe)
            )
        centred = bool((ones - shift).abs().max() < 1e-3 * (made - shift).abs().max())
        return cls(norm, (made - shift) / probe, shift, centred)

    def bare(self, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The norm without its scale and shift."""
        stream = stream.double().cpu()
        return self.gain * (stream - stream.mean(-1, keepdim=True) if self.centred else stream)

    def scale(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row"]:
        """What the norm multiplies each vector by. Raises `ModelError` when it is no norm of this form."""
        with torch.no_grad():
            normed = self.norm(stream[None])[0].double().cpu() - self.shift
        bare = self.bare(stream)
        found = (normed * bare).sum(-1) / (bare**2).sum(-1).clamp(min=1e-300)
        rough = 0.05 if stream.dtype in (torch.bfloat16, torch.float16) else 1e-3
        if float((bare * found[:, None] - normed).abs().max()) > rough * float(normed.abs().max()):
            raise ModelError(
                "A norm of this model is neither a layer norm nor an RMS norm, so its scale cannot be frozen for direct "
                "attribution. effects(...) works on it."
            )
        return found

    def pull_back(
        self, read: Float[Tensor, "row d_model"], scale: Float[Tensor, "row"]
    ) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, "row"]]:
        """What a reader of the norm's output reads of its input, and of its shift."""
        back = read * self.gain
        back = back - back.mean(-1, keepdim=True) if self.centred else back
        return back * scale[:, None], read @ self.shift


def direct_attribution(
    store: ActivationStore,
    model: Any,
    *,
    targets: Int[Tensor, "example alternative token"] | Int[Tensor, "example"],
    minus: Int[Tensor, "example wrong_alternative wrong_token"] | None = None,
    by: Literal["component", "head", "neuron"] | str = "head",
    pos: Position | Literal["each"] = "END",
    budget: int = 2**30,
) -> xr.DataArray:
    """What every part adds directly to the logit of the targets (minus that of others) at a position.

    Args:
        targets: tokens per example (`pairs.answers`); the mean over alternatives.  minus: tokens to subtract.
        by: "component": `input`, the attention `a0` and MLP `m0` of each layer, each with its output bias; "head": each head
            `a0.1`, and MLPs (the bias of an attention's output is no head's and is counted under `bias`); "neuron": each MLP
            neuron.
        pos: an index or name, or "each" for all positions.
        budget: bytes of activations at a time.

    Returns:
        DataArray (example, component[, pos]), or (example, layer, neuron[, pos]) for neurons. Component `bias` holds what
        depends on no activation. Attribute `gap`: the largest |sum of the parts - logit (difference)|, before a soft cap; for
        neurons |sum of a layer's - its MLP's part|, NaN when the store holds no `mlp_out`. Cells are NaN where an example
        has no such position.

    Raises:
        StoreError: the store is of another model, or lacks an activation; the message names it.
        PromptError: targets that fit no example.
        ModelError: the model's parts do not sum to its logits.
    """
    if by not in LEVELS:
        raise UnknownName("by", by, LEVELS)
    check_store(store, model, "direct_attribution")
    shape = Shape.of(model)
    kinds = _kinds(store, shape, by)
    read = _read_of(model, store, targets, minus)
    prompts, places = _places(store, pos)
    norm = FrozenNorm.of(final_norm(model), shape.d_model, model.W_U)
    blocks = [_BlockWriters.of(model, layer, shape) for layer in range(shape.n_layers)]
    one = 8 * (
        shape.d_model * 8
        + (shape.d_mlp * (shape.n_layers if by == "neuron" else 2))
        + shape.n_heads * shape.d_head
    )
    made, gap = [], 0.0
    for at in torch.arange(len(prompts)).split(max(1, min(CHUNK, budget // one))):
        rows = _StoreRows(store, prompts[at], places[at])
        final = rows("resid_post", shape.n_layers - 1)
        scale = norm.scale(final.to(model_device(model), model.W_U.dtype))
        back, shift = norm.pull_back(read[0][prompts[at]], scale)
        if by == "neuron":
            values, off = _neurons(rows, blocks, back, known="mlp_out" in kinds)
        else:
            values, const = _components(rows, blocks, back, kinds, by)
            off = float((values.sum(1) + const - (final.double().cpu() * back).sum(1)).abs().max())
            values = torch.cat([values, (const + shift + read[1][prompts[at]])[:, None]], 1)
        gap, size = max(gap, off), max(1.0, float(values.abs().max()))
        if gap > TOLERANCE.get(final.dtype, 0.1) * size:
            raise ModelError(
                f"The parts of this model do not sum to its logits (gap {gap:.2g}): it scales or norms them on the way in a "
                "manner that is not known here. effects(...) works on it."
            )
        made.append(values)
    flat = torch.cat(made).view(len(prompts), *((shape.n_layers, -1) if by == "neuron" else (-1,)))
    return _table(flat, prompts, places, store, shape, by, pos, {"minus": minus is not None, "gap": gap})


def _kinds(store: ActivationStore, shape: Shape, by: str) -> list[str]:
    """The kinds to read; raises `StoreError` for one that is missing at some layer."""
    layers, what = range(shape.n_layers), f"direct_attribution(by={by!r})"
    if by == "neuron" and shape.attn_only:
        raise StoreError("direct_attribution: this model has no MLPs, and so no neurons.")
    kinds = {"component": ["attn_out"], "head": ["z"], "neuron": ["mlp_post"]}[by]
    kinds += ["mlp_out"] if by != "neuron" and not shape.attn_only else []
    for kind in kinds:
        needed(store, kind, what, layers=layers)
    needed(store, "resid_post", what, layers=[shape.n_layers - 1])
    if by == "neuron":
        return [*kinds, *(["mlp_out"] if store.layers("mlp_out") == list(layers) else [])]
    whole_input = 0 in store.layers("resid_pre")
    if not whole_input and "embed" not in store.kinds:
        raise StoreError(f"{what} needs resid_pre[0] or embed; the store holds {', '.join(store.kinds)}.")
    return [
        *kinds,
        *(["resid_pre"] if whole_input else [k for k in ("embed", "pos_embed") if k in store.kinds]),
    ]


def _read_of(
    model: Any, store: ActivationStore, targets: Tensor, minus: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the logit (difference) of each example reads of the normed stream, [example, d_model], and its bias [example]."""
    weight, bias = model.W_U.detach().double().cpu(), ReadOut.of(model).bias.double().cpu()
    toward, const = (
        torch.zeros(len(store), len(weight), dtype=torch.float64),
        torch.zeros(len(store), dtype=torch.float64),
    )
    for sign, name, given in ((1, "targets", targets), (-1, "minus", minus)):
        if given is None:
            continue
        table = one_token(given, store, model, f"direct_attribution: {name}")[:, :, 0].cpu()
        share = (table >= 0).double() / (table >= 0).sum(1, keepdim=True)
        toward += sign * (weight[:, table.clamp(min=0)] * share).sum(2).T
        const += sign * (bias[table.clamp(min=0)] * share).sum(1)
    return toward, const


def _places(store: ActivationStore, pos: Position) -> tuple[Tensor, Tensor]:
    """The prompts and positions of the rows to explain."""
    if pos == "each":
        return token_rows(store["resid_post", store.layers("resid_post")[-1]])
    places = store.prompts.at(pos).cpu()
    prompts = (places >= 0).nonzero()[:, 0]
    if not len(prompts):
        raise PromptError(f"direct_attribution: no prompt has a position {pos!r}.")
    return prompts, places[prompts]


@dataclass(frozen=True)
class _StoreRows:
    """Activations of some rows of a store."""

    store: ActivationStore
    prompts: Tensor
    places: Tensor

    def __call__(self, kind: str, layer: int | None = None) -> Tensor:
        return self.store[kind, layer].rows(prompt=self.prompts, pos=self.places)


@dataclass(frozen=True)
class _StreamWriter:
    """How a sum of parts enters the stream: through its weights, with a bias, and past a norm where there is one."""

    weight: Float[Tensor, "part d_model"]
    bias: Float[Tensor, "d_model"]
    norm: FrozenNorm | None
    like: Tensor

    def reads(
        self, parts: Float[Tensor, "row part"], back: Float[Tensor, "row d_model"]
    ) -> tuple[Tensor, Tensor]:
        """What `back` reads of every part [row, part], and what is constant [row]."""
        shift = torch.zeros(len(parts), dtype=torch.float64)
        if self.norm is not None:
            written = (parts.double().cpu() @ self.weight + self.bias).to(self.like)
            back, shift = self.norm.pull_back(back, self.norm.scale(written))
        return back @ self.weight.T, shift + back @ self.bias


@dataclass(frozen=True)
class _BlockWriters:
    """The two writers of a block; `mlp` is None without MLPs."""

    heads: _StreamWriter
    mlp: _StreamWriter | None

    @classmethod
    def of(cls, model: Any, layer: int, shape: Shape) -> "_BlockWriters":
        block, like = Block.of(model, layer), model.W_U
        size = shape.d_model
        heads = _StreamWriter(
            block.w_out.double().cpu().flatten(0, 1),
            block.b_out.double().cpu(),
            None if block.attn_post is None else FrozenNorm.of(block.attn_post, size, like),
            like,
        )
        if shape.attn_only:
            return cls(heads, None)
        mlp, post = model.blocks[layer].mlp, block_norm(model, layer, "ln2_post")
        weight, bias = mlp.W_out.detach().double().cpu(), getattr(mlp, "b_out", None)
        bias = weight.new_zeros(size) if bias is None else bias.detach().double().cpu()
        return cls(
            heads,
            _StreamWriter(weight, bias, None if post is None else FrozenNorm.of(post, size, like), like),
        )


def _components(
    rows: _StoreRows,
    blocks: list[_BlockWriters],
    back: Float[Tensor, "row d_model"],
    kinds: list[str],
    by: str,
) -> tuple[Float[Tensor, "row component"], Float[Tensor, "row"]]:
    """What `back` reads of the input and of every block's parts, in the order of `_names`; and what is constant."""
    start = [
        rows(kind, 0 if kind == "resid_pre" else None)
        for kind in kinds
        if kind in ("resid_pre", "embed", "pos_embed")
    ]
    values = [torch.stack([(part.double().cpu() * back).sum(1) for part in start]).sum(0)[:, None]]
    const = torch.zeros(len(back), dtype=torch.float64)
    for layer, block in enumerate(blocks):
        if by == "head":
            z = rows("z", layer).double().cpu()
            read, shift = block.heads.reads(z.flatten(1), back)
            values.append((z * read.view_as(z)).sum(2))
            const += shift
        else:
            values.append((rows("attn_out", layer).double().cpu() * back).sum(1, keepdim=True))
        if block.mlp is not None:
            values.append((rows("mlp_out", layer).double().cpu() * back).sum(1, keepdim=True))
    return torch.cat(values, 1), const


def _neurons(
    rows: _StoreRows, blocks: list[_BlockWriters], back: Float[Tensor, "row d_model"], *, known: bool
) -> tuple[Float[Tensor, "row neurons"], float]:
    """What `back` reads of every neuron, and (where MLP outputs are `known`) how far a layer's neurons are from them."""
    values, gap = [], 0.0
    for layer, block in enumerate(blocks):
        assert block.mlp is not None
        post = rows("mlp_post", layer).double().cpu()
        read, const = block.mlp.reads(post, back)
        values.append(post * read)
        if known:
            out = (rows("mlp_out", layer).double().cpu() * back).sum(1)
            gap = max(gap, float((values[-1].sum(1) + const - out).abs().max()))
    return torch.cat(values, 1), gap if known else float("nan")


def _names(shape: Shape, by: str) -> list[str]:
    names = ["input"]
    for layer in range(shape.n_layers):
        names += [f"a{layer}.{head}" for head in range(shape.n_heads)] if by == "head" else [f"a{layer}"]
        names += [] if shape.attn_only else [f"m{layer}"]
    return [*names, "bias"]


def _table(
    flat: Tensor,
    prompts: Tensor,
    places: Tensor,
    store: ActivationStore,
    shape: Shape,
    by: str,
    pos: Position,
    facts: dict,
) -> xr.DataArray:
    """The rows as a labelled array; NaN where an example has no such position."""
    each = pos == "each"
    longest = int(places.max()) + 1 if each else 1
    table = torch.full((len(store), longest, *flat.shape[1:]), float("nan"), dtype=torch.float64)
    table[prompts, places if each else torch.zeros_like(places)] = flat
    table = table.movedim(1, -1) if each else table[:, 0]
    coords: dict[str, Any] = {"example": np.arange(len(store))}
    if by == "neuron":
        coords |= {"layer": np.arange(shape.n_layers), "neuron": np.arange(shape.d_mlp)}
    else:
        coords |= {"component": _names(shape, by)}
    coords |= {"pos": np.arange(longest)} if each else {}
    facts = {"kind": "direct_attribution", "by": by, "position": str(pos)} | store.attrs | facts
    exact = store["resid_post", shape.n_layers - 1].dtype == torch.float64
    return effect_array(
        table if exact else table.float(), list(coords), coords, name="attribution", attrs=facts | versions()
    )
