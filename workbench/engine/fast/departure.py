"""How an edited run departs from the base run: what its first edits add to the stream.

Read `Departure` first. Only differences are computed: an edit of one head costs one product with that head's
columns. `units_depart` does the same for many runs that each edit one head or neuron. Once departed, runs are
`staircase`'s.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.engine.bound import Bound, apply_edit
from workbench.engine.fast.base_run import BaseRun, edited_tokens, pattern_edit, tokens_of
from workbench.engine.fast.cohorts import Cohort, Element
from workbench.errors import WorkbenchError
from workbench.sites import Key, Site


def units_depart(
    base: BaseRun, edit: tuple[Site, Bound], sites: Sequence[Site], cohort: Cohort, *, read: bool
) -> tuple[Float[Tensor, "run example pos d_model"], Bool[Tensor, "run example"]]:
    """Runs that depart together, each with one head or neuron edited as an edit of its whole layer would.

    Args:
        edit: of the whole layer.
        sites: the head or neuron of each run.

    Returns:
        What each adds to the stream, and whether it writes, bit by bit, what is there already.
    """
    layer_site, bound = edit
    before = base.whole(layer_site.key)
    try:
        after = base.edited(layer_site.key, [edit])
    except WorkbenchError:
        base.edited(layer_site.key, [(sites[0], bound)])  # its message names the site that was asked for
        raise
    units = torch.tensor([site.unit for site in sites], device=before.device)
    # A run is skipped example by example, so a unit [unit, example] is unchanged only where all of its tokens
    # are equal.
    equal = (after == before)[cohort.examples.to(before.device)].movedim(2, 0).flatten(2).all(2)
    change = tokens_of(after, cohort, read=read) - tokens_of(before, cohort, read=read)
    change = change[:, :, units].movedim(2, 0)  # [run, example, pos, ...]
    return base.decoder.written(*layer_site.key, change, units), equal[units].cpu()


class Departure:
    """One run at the moment where it leaves the base run: what its first edits add to the stream.

    Args:
        keys: the activations whose edits come first, in one half of a block or before it.
        read: whether only the tokens that are read matter any more (the last block, after its keys and
            values).
    """

    def __init__(
        self, base: BaseRun, element: Element, cohort: Cohort, keys: Iterable[Key], *, read: bool
    ) -> None:
        self.base, self.decoder, self.element = base, base.decoder, element
        self.cohort, self.read = cohort, read
        self.edited = {key: base.edited(key, element.at(*key)) for key in keys}

    @property
    def unchanged(self) -> Tensor:
        """[example]: whether the edits write, bit by bit, what is there already."""
        examples = self.cohort.examples.to(self.decoder.device)
        equal = []
        for key, edited in self.edited.items():
            equal.append((edited == self.base.whole(key)).flatten(1).all(1)[examples])
        return torch.stack(equal).all(0)

    def tokens(self, whole: Tensor) -> Tensor:
        """[example, pos, ...]: the cohort's tokens."""
        return tokens_of(whole, self.cohort, read=self.read)

    def _after(self, key: Key, value: Tensor, *, first: bool) -> Tensor:
        """The cohort's tokens after the edits of an activation.

        Args:
            first: nothing before these edits has changed it, so that the edited base run can be read.
        """
        if key not in self.edited:
            return value
        if first:
            return self.tokens(self.edited[key])
        return edited_tokens(self.base, key, self.element.at(*key), self.cohort, value, read=self.read)

    def stream(self, layer: int) -> Tensor:
        """[example, pos, d_model] before a block, the embeddings or the stream there being edited."""
        # `first` stays True as long as the base run's own stream can be edited whole, which is cheaper.
        first = True
        value = self.tokens(self.base.whole(("resid_pre", layer)))
        for key, edited in self.edited.items():
            if key[1] is None:  # an embedding, which is a term of the stream
                value = value + self.tokens(edited) - self.tokens(self.base.whole(key))
                first = False
        for key in (("resid_post", layer - 1), ("resid_pre", layer)):
            value = self._after(key, value, first=first)
            first = first and key not in self.edited
        return value

    def attention(self, layer: int) -> Tensor | float:
        """[example, pos, d_model]: what edits from q to attn_out add to the stream; 0 without any."""
        z_key, out_key, change = ("z", layer), ("attn_out", layer), 0.0
        if any((kind, layer) in self.edited for kind in ("q", "k", "v", "pattern")):
            heads = self._heads(layer)
            z = self._after(z_key, self._head_outputs(layer, heads), first=False)
            weight = self.decoder.layers[layer].o.weight.view(*self.base.whole(z_key).shape[2:], -1)[heads]
            z_change = z - self.tokens(self.base.whole(z_key)[:, :, heads])
            change = z_change.flatten(-2) @ weight.flatten(0, 1)
        elif z_key in self.edited:
            change = self._written(z_key, self.edited[z_key])
        return self._with_output_edit(out_key, change)

    def mlp(self, layer: int) -> Tensor | float:
        """[example, pos, d_model]: what edits from mlp_pre to mlp_out add to the stream; 0 without any."""
        pre_key, post_key, change, post = ("mlp_pre", layer), ("mlp_post", layer), 0.0, None
        if pre_key in self.edited:
            pre = self.edited[pre_key]
            post = self.decoder.layers[layer].mlp_post(pre, self.base.kept.get(("mlp_linear", layer)))
            # Untouched neurons keep the base run's bits: computed anew they could differ in the last one.
            post = torch.where(pre == self.base.whole(pre_key), self.base.whole(post_key), post)
            for site, bound in self.element.at(*post_key):
                apply_edit(site, bound, post)
        elif post_key in self.edited:
            post = self.edited[post_key]
        if post is not None:
            change = self._written(post_key, post)
        return self._with_output_edit(("mlp_out", layer), change)

    def _with_output_edit(self, key: Key, change: Tensor | float) -> Tensor | float:
        """A change of `attn_out` or `mlp_out` after edits of that activation itself."""
        if key not in self.edited:
            return change
        # The edit is one of the whole activation, so it is applied to that, and the base run's is taken off.
        out = self.tokens(self.base.whole(key))
        return self._after(key, out + change, first=isinstance(change, float)) - out

    def mid(self, layer: int, value: Tensor, *, first: bool) -> Tensor:
        """The stream between attention and MLP after edits of its own."""
        return self._after(("resid_mid", layer), value, first=first)

    def _written(self, key: Key, edited: Tensor) -> Tensor:
        """What a changed writer adds; of one head or neuron alone where no other is edited."""
        before = self.base.whole(key)
        units = {site.unit for site, _ in self.element.edits if site.layer == key[1]}
        unit = None
        if len(units) == 1:
            (unit,) = units
        if unit is not None:
            edited, before = edited[:, :, unit], before[:, :, unit]
        return self.decoder.written(*key, self.tokens(edited) - self.tokens(before), unit)

    def _heads(self, layer: int) -> slice:
        """The heads whose output can change: those of one kv head where only its q, k or v are edited."""
        shape = self.decoder.shape
        if ("pattern", layer) in self.edited or ("z", layer) in self.edited:
            return slice(None)
        kv_heads: set[int | None] = set()
        for key in self.edited:
            for site, _ in self.element.at(*key):
                if site.kind == "q" and site.head is not None:
                    kv_heads.add(site.head // shape.group)
                elif site.kind in ("q", "k", "v"):
                    kv_heads.add(site.head)
        if len(kv_heads) != 1:
            return slice(None)
        (only,) = kv_heads
        if only is None:
            return slice(None)
        return slice(only * shape.group, (only + 1) * shape.group)

    def _head_outputs(self, layer: int, heads: slice) -> Tensor:
        """[example, pos, head, d_head]: z of heads whose q, k, v or pattern is edited; nothing before is."""
        base, cohort, decoder, edited = self.base, self.cohort, self.decoder, self.edited
        group = decoder.shape.group
        kv_heads = heads
        if heads.start is not None:
            kv_heads = slice(heads.start // group, heads.stop // group)
        queries, keys = (cohort.positions(read=read).to(decoder.device) for read in (self.read, False))
        q = self.tokens(edited.get(("q", layer), base.whole(("q", layer)))[:, :, heads])
        q = decoder.heads(q, layer, "q", queries)
        k = edited.get(("k", layer), base.kept["k rotated", layer])[:, :, kv_heads]
        k = tokens_of(k, cohort, read=False)
        # An edited k is one before rotation, as the hook shows it; the base run's is kept rotated.
        if ("k", layer) in edited:
            k = decoder.heads(k, layer, "k", keys)
        v = edited.get(("v", layer), base.whole(("v", layer)))[:, :, kv_heads]
        v = tokens_of(v, cohort, read=False)
        before = base.before(layer, cohort)
        if before is not None:
            # Only these heads are computed, so the shared keys and values of the others are left out.
            before = before[0][:, :, kv_heads], before[1][:, :, kv_heads]
        visible = keys[:, None, :] <= queries[:, :, None]
        edit = pattern_edit(base, layer, cohort, [self.element], read=self.read)
        return decoder.attend(layer, q[None], k[None], v[None], before, visible, edit)[0]
