"""The base run of a batch, and how an edited run departs from it at the first place where it differs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.engine.bound import Bound, apply_edit
from workbench.engine.fast.cohorts import Cohort, Element
from workbench.engine.fast.decoder import Decoder, EditPattern
from workbench.errors import WorkbenchError
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Site

Edits = Sequence[tuple[Site, Bound]]
_NEEDS = {
    "q": ("q", "z"), "k": ("q", "k", "z"), "v": ("q", "v", "z"), "pattern": ("q", "pattern", "z"), "z": ("z",),
    "attn_out": ("attn_out",), "mlp_pre": ("mlp_pre", "mlp_linear", "mlp_post"), "mlp_post": ("mlp_post",),
    "mlp_out": ("mlp_out",), "embed": ("embed",), "pos_embed": ("pos_embed",),
}  # fmt: skip

ALWAYS = ("resid_pre", "resid_mid", "v", "k rotated")
"""What every later run needs of every layer."""


def needed(keys: Iterable[Key]) -> set[Key]:
    """The activations of the base run, beside its streams, keys and values, that edits of these need."""
    return {(kind, layer) for name, layer in keys for kind in _NEEDS.get(name, ())}


@dataclass(eq=False)
class BaseRun:
    """The base run of a batch. `staircase.run_base` makes it.

    Attributes:
        kept: (kind, layer) → [example, pos, ...], padded with zeros: what was asked for, and always `resid_pre` of every
            layer and of one more (the stream after the last block), `resid_mid` of sequential blocks, `v` and `k rotated`.
    """

    decoder: Decoder
    prompts: Prompts
    kept: dict[Key, Tensor]

    def whole(self, key: Key) -> Tensor:
        """[example, pos, ...] of an activation."""
        kind, layer = key
        return (
            self.kept["resid_pre", layer + 1]
            if kind == "resid_post" and layer is not None
            else self.kept[key]
        )

    def edited(self, key: Key, edits: Edits) -> Tensor:
        """[example, pos, ...]: the whole activation with these edits alone."""
        value = self.whole(key).clone()
        for site, bound in edits:
            apply_edit(site, bound, value)
        return value

    def before(self, layer: int, cohort: Cohort) -> tuple[Tensor, Tensor] | None:
        """Keys and values [example, pos, kv_head, d_head] before a cohort's first token."""
        if not cohort.start:
            return None
        k, v = self.kept["k rotated", layer], self.kept["v", layer]
        if len(cohort.examples) == len(k):
            return k[:, : cohort.start], v[:, : cohort.start]
        chosen = cohort.examples.to(k.device)
        return k[chosen, : cohort.start], v[chosen, : cohort.start]

    @property
    def nbytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.kept.values())


def at(whole: Tensor, cohort: Cohort, *, read: bool) -> Tensor:
    """[example, pos, ...]: a cohort's tokens of a whole activation, or those of them that are read."""
    if not read and len(cohort.examples) == len(whole):
        return whole[:, cohort.start : cohort.length]
    chosen = cohort.examples.to(whole.device)
    if not read or cohort.read is None:
        return whole[chosen, cohort.start : cohort.length]
    return whole[chosen, cohort.read.to(whole.device)][:, None]


def edited_rows(
    base: BaseRun, key: Key, edits: Edits, cohort: Cohort, value: Tensor, *, read: bool
) -> Float[Tensor, "example pos ..."]:
    """A cohort's tokens of an activation after edits, where `value` [example, pos, ...] are its tokens before them.

    For `pattern` the tokens are queries: [example, head, query, key].
    """
    if not edits:
        return value
    chosen, length = cohort.examples.to(value.device), cohort.length
    whole = base.whole(key)[chosen]
    queries = key[0] == "pattern"
    whole = whole[:, :, :length, :length] if queries else whole[:, :length]
    whole = whole.transpose(1, 2).contiguous() if queries else whole
    rows = torch.arange(len(chosen), device=value.device)[:, None]
    places = cohort.positions(read=read).to(value.device)
    whole[rows, places] = value.transpose(1, 2) if queries else value
    whole = whole.transpose(1, 2) if queries else whole
    everyone = len(chosen) == len(base.prompts)
    for site, bound in edits:
        apply_edit(site, bound if everyone else bound.select(chosen.tolist()), whole)
    return whole.transpose(1, 2)[rows, places].transpose(1, 2) if queries else whole[rows, places]


def pattern_edit(
    base: BaseRun, layer: int, cohort: Cohort, elements: Sequence[Element], *, read: bool
) -> EditPattern | None:
    """What changes the patterns [run, example, head, query, key] of these runs, or None."""
    edits = [element.at("pattern", layer) for element in elements]
    if not any(edits):
        return None

    def change(pattern: Tensor) -> Tensor:
        rows = (
            edited_rows(base, ("pattern", layer), e, cohort, p, read=read)
            for e, p in zip(edits, pattern, strict=True)
        )
        return torch.stack(list(rows))

    return change


def units_depart(
    base: BaseRun, edit: tuple[Site, Bound], sites: Sequence[Site], cohort: Cohort, *, read: bool
) -> tuple[Float[Tensor, "run example pos d_model"], Bool[Tensor, "run example"]]:
    """Runs that leave together, each with one head or neuron edited as an edit of its whole layer would.

    Args:
        edit: of the whole layer.
        sites: the head or neuron of each run.
    Returns:
        What each adds to the stream, and whether it writes, bit by bit, what is there already.
    """
    (layer, bound), before = edit, base.whole(edit[0].key)
    try:
        after = base.edited(layer.key, [edit])
    except WorkbenchError:
        base.edited(layer.key, [(sites[0], bound)])  # its message names what was asked for
        raise
    units = torch.tensor([site.unit for site in sites], device=before.device)
    same = (after == before)[cohort.examples.to(before.device)].movedim(2, 0).flatten(2).all(2)[units].cpu()
    change = (at(after, cohort, read=read) - at(before, cohort, read=read))[:, :, units].movedim(2, 0)
    return base.decoder.written_by_each(*layer.key, change, units), same


class Departure:
    """One run at the moment where it leaves the base run: what its first edits add to the stream.

    Args:
        keys: the activations whose edits come first, in one half of a block or before it.
        read: whether only the tokens that are read matter any more (the last block, behind its keys and values).
    """

    def __init__(
        self, base: BaseRun, element: Element, cohort: Cohort, keys: Iterable[Key], *, read: bool
    ) -> None:
        self.base, self.decoder, self.element, self.cohort, self.read = (
            base,
            base.decoder,
            element,
            cohort,
            read,
        )
        self.edited = {key: base.edited(key, element.at(*key)) for key in keys}

    @property
    def same(self) -> Tensor:
        """[example]: whether the edits write, bit by bit, what is there already."""
        chosen = self.cohort.examples.to(self.decoder.device)
        masks = [(new == self.base.whole(key)).flatten(1).all(1)[chosen] for key, new in self.edited.items()]
        return torch.stack(masks).all(0)

    def rows(self, whole: Tensor) -> Tensor:
        """[example, pos, ...]: the cohort's tokens."""
        return at(whole, self.cohort, read=self.read)

    def _after(self, key: Key, value: Tensor, *, first: bool) -> Tensor:
        """The cohort's tokens after the edits of an activation; `first`: nothing before them has changed it."""
        if key not in self.edited:
            return value
        if first:
            return self.rows(self.edited[key])
        return edited_rows(self.base, key, self.element.at(*key), self.cohort, value, read=self.read)

    def stream(self, layer: int) -> Tensor:
        """[example, pos, d_model] before a block, the embeddings or the stream there being edited."""
        value, first = self.rows(self.base.whole(("resid_pre", layer))), True
        for key, new in self.edited.items():
            if key[1] is None:
                value, first = value + self.rows(new) - self.rows(self.base.whole(key)), False
        for key in (("resid_post", layer - 1), ("resid_pre", layer)):
            value, first = self._after(key, value, first=first), first and key not in self.edited
        return value

    def attention(self, layer: int) -> Tensor | float:
        """[example, pos, d_model]: what edits from q to attn_out add to the stream; 0 without any."""
        inside = any((kind, layer) in self.edited for kind in ("q", "k", "v", "pattern"))
        key, change = ("z", layer), 0.0
        if inside:
            heads = self._heads(layer)
            z = self._after(key, self._head_outputs(layer, heads), first=False)
            weight = self.decoder.layers[layer].o.weight.view(*self.base.whole(key).shape[2:], -1)[heads]
            change = (z - self.rows(self.base.whole(key)[:, :, heads])).flatten(-2) @ weight.flatten(0, 1)
        elif key in self.edited:
            change = self._written(key, self.edited[key])
        key = ("attn_out", layer)
        if key in self.edited:
            out = self.rows(self.base.whole(key))
            change = self._after(key, out + change, first=isinstance(change, float)) - out
        return change

    def mlp(self, layer: int) -> Tensor | float:
        """[example, pos, d_model]: what edits from mlp_pre to mlp_out add to the stream; 0 without any."""
        key, change, post = ("mlp_post", layer), 0.0, None
        if ("mlp_pre", layer) in self.edited:
            pre = self.edited["mlp_pre", layer]
            post = self.decoder.layers[layer].mlp_post(pre, self.base.kept.get(("mlp_linear", layer)))
            # Untouched neurons keep the base run's bits: computed anew they could differ in the last one.
            post = torch.where(pre == self.base.whole(("mlp_pre", layer)), self.base.whole(key), post)
            for site, bound in self.element.at(*key):
                apply_edit(site, bound, post)
        elif key in self.edited:
            post = self.edited[key]
        if post is not None:
            change = self._written(key, post)
        key = ("mlp_out", layer)
        if key in self.edited:
            out = self.rows(self.base.whole(key))
            change = self._after(key, out + change, first=isinstance(change, float)) - out
        return change

    def mid(self, layer: int, value: Tensor, *, first: bool) -> Tensor:
        """The stream between attention and MLP after edits of its own."""
        return self._after(("resid_mid", layer), value, first=first)

    def _written(self, key: Key, edited: Tensor) -> Tensor:
        """What a changed writer adds; of one head or neuron alone where no other is edited."""
        before, units = (
            self.base.whole(key),
            {site.unit for site, _ in self.element.edits if site.layer == key[1]},
        )
        unit = units.pop() if len(units) == 1 else None
        if unit is not None:
            edited, before = edited[:, :, unit], before[:, :, unit]
        return self.decoder.written(*key, self.rows(edited) - self.rows(before), unit)

    def _heads(self, layer: int) -> slice:
        """The heads that can write something else: those of one kv head where its q, k or v alone are edited."""
        shape = self.decoder.shape
        if ("pattern", layer) in self.edited or ("z", layer) in self.edited:
            return slice(None)
        sites = [
            site for key in self.edited for site, _ in self.element.at(*key) if site.kind in ("q", "k", "v")
        ]
        kv = {
            None if site.head is None else site.head // shape.group if site.kind == "q" else site.head
            for site in sites
        }
        only = kv.pop() if len(kv) == 1 else None
        return slice(None) if only is None else slice(only * shape.group, (only + 1) * shape.group)

    def _head_outputs(self, layer: int, heads: slice) -> Tensor:
        """[example, pos, head, d_head]: z of heads of a run whose q, k, v or pattern is edited here and nothing before."""
        base, cohort, decoder, edited, group = (
            self.base,
            self.cohort,
            self.decoder,
            self.edited,
            self.decoder.shape.group,
        )
        kv = heads if heads.start is None else slice(heads.start // group, heads.stop // group)
        queries, keys = (cohort.positions(read=which).to(decoder.device) for which in (self.read, False))
        q = self.rows(edited.get(("q", layer), base.whole(("q", layer)))[:, :, heads])
        q = decoder.heads(q, layer, "q", queries)
        k = at(edited.get(("k", layer), base.kept["k rotated", layer])[:, :, kv], cohort, read=False)
        k = decoder.heads(k, layer, "k", keys) if ("k", layer) in edited else k
        v = at(edited.get(("v", layer), base.whole(("v", layer)))[:, :, kv], cohort, read=False)
        before = base.before(layer, cohort)
        before = None if before is None else (before[0][:, :, kv], before[1][:, :, kv])
        visible = keys[:, None, :] <= queries[:, :, None]
        edit = pattern_edit(base, layer, cohort, [self.element], read=self.read)
        return decoder.attend(layer, q[None], k[None], v[None], before, visible, edit)[0]
