"""The base run of a batch: what every edited run shares until it departs.

Read `BaseRun` first; `staircase.run_base` fills one, `Recorder` while it walks. `edited_tokens` applies edits
to the tokens of a cohort. How runs depart from the base run is in `departure`, how they walk on in
`staircase`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.engine.bound import Bound, apply_edit
from workbench.engine.fast.cohorts import Cohort, Element
from workbench.engine.fast.decoder import Decoder, EditPattern
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Site

Edits = Sequence[tuple[Site, Bound]]

# Edited kind → the activations that its departure starts from. An edit of q needs z too, since what it adds
# to the stream is a difference of z.
_NEEDS = {
    "q": ("q", "z"), "k": ("q", "k", "z"), "v": ("q", "v", "z"), "pattern": ("q", "pattern", "z"),
    "z": ("z",), "attn_out": ("attn_out",), "mlp_pre": ("mlp_pre", "mlp_linear", "mlp_post"),
    "mlp_post": ("mlp_post",), "mlp_out": ("mlp_out",), "embed": ("embed",), "pos_embed": ("pos_embed",),
}  # fmt: skip

# What edited runs need of every layer: streams to depart from, and keys and values to attend to.
ALWAYS = ("resid_pre", "resid_mid", "v", "k rotated")


def needed(keys: Iterable[Key]) -> set[Key]:
    """The activations of the base run, beside `ALWAYS`, that edits of these need."""
    return {(kind, layer) for name, layer in keys for kind in _NEEDS.get(name, ())}


@dataclass(eq=False)
class BaseRun:
    """The base run of a batch. `staircase.run_base` makes it.

    Attributes:
        kept: (kind, layer) → [example, pos, ...], padded with zeros: what was asked for, and always
            `resid_pre` of every layer and of one more (the stream after the last block), `resid_mid` of
            sequential blocks, `v` and `k rotated`.
    """

    decoder: Decoder
    prompts: Prompts
    kept: dict[Key, Tensor]

    def whole(self, key: Key) -> Tensor:
        """[example, pos, ...] of an activation."""
        kind, layer = key
        if kind == "resid_post" and layer is not None:
            return self.kept["resid_pre", layer + 1]
        return self.kept[key]

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
            # All examples in their order: a view, where indexing would copy.
            return k[:, : cohort.start], v[:, : cohort.start]
        examples = cohort.examples.to(k.device)
        return k[examples, : cohort.start], v[examples, : cohort.start]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(value.numel() * value.element_size() for value in self.kept.values())


class Recorder:
    """Keeps activations of the base run while it is walked, cohort by cohort, in tables of the whole batch.

    Args:
        base: where they are kept.
        keys: which.
        always: the kinds that are kept of every layer.
        one_cohort: whether all prompts have one length, so that a cohort is the batch and nothing is copied.
    """

    def __init__(
        self, base: BaseRun, keys: set[Key], *, always: Sequence[str] = ALWAYS, one_cohort: bool
    ) -> None:
        self.base, self.keys, self.always, self.one_cohort = base, keys, always, one_cohort

    def wants(self, key: Key) -> bool:
        """Whether an activation is kept."""
        return key in self.keys or key[0] in self.always

    def keep(self, key: Key, cohort: Cohort, value: Tensor) -> None:
        """Keep [example, pos, ...] (`pattern`: [example, head, query, key]) of a cohort."""
        if not self.wants(key):
            return
        kept = self.base.kept
        if self.one_cohort:
            kept[key] = value
            return
        n, longest, length = len(self.base.prompts), int(self.base.prompts.lengths.max()), cohort.length
        square = key[0] == "pattern"
        if key not in kept:
            # No real token reads the zeros after shorter prompts, but whole rows are compared to see whether
            # an edit changes anything: uninitialised memory could hold NaN, which is unequal to itself.
            shape = (n, longest, *value.shape[2:])
            if square:
                shape = (n, value.shape[1], longest, longest)
            kept[key] = value.new_zeros(shape)
        examples = cohort.examples.to(value.device)
        if square:
            kept[key][examples, :, :length, :length] = value
        else:
            kept[key][examples, :length] = value

    def pattern_watcher(self, layer: int, cohort: Cohort) -> EditPattern:
        """An edit of patterns that changes nothing and keeps them."""

        def watch(pattern: Tensor) -> Tensor:
            """The pattern, unchanged; the base run is the only run there is."""
            self.keep(("pattern", layer), cohort, pattern[0])
            return pattern

        return watch


def tokens_of(whole: Tensor, cohort: Cohort, *, read: bool) -> Tensor:
    """[example, pos, ...]: a cohort's tokens of a whole activation, or those of them that are read."""
    if not read and len(cohort.examples) == len(whole):
        # All examples in their order: a view, where indexing would copy.
        return whole[:, cohort.start : cohort.length]
    examples = cohort.examples.to(whole.device)
    if not read or cohort.read is None:
        return whole[examples, cohort.start : cohort.length]
    return whole[examples, cohort.read.to(whole.device)][:, None]


def edited_tokens(
    base: BaseRun, key: Key, edits: Edits, cohort: Cohort, value: Tensor, *, read: bool
) -> Float[Tensor, "example pos ..."]:
    """A cohort's tokens of an activation after edits; `value` [example, pos, ...] are its tokens before them.

    For `pattern` the tokens are queries: [example, head, query, key].
    """
    if not edits:
        return value
    # Values may look at a whole prompt (`project`, resampled prompts), so the tokens are laid into the base
    # run's activation, the edit is applied there, and the same tokens are taken out again.
    examples, length = cohort.examples.to(value.device), cohort.length
    whole = base.whole(key)[examples]
    is_pattern = key[0] == "pattern"
    if is_pattern:
        whole = whole[..., :length]
    whole = _tokens_second(whole, is_pattern)[:, :length].contiguous()
    rows = torch.arange(len(examples), device=value.device)[:, None]
    places = cohort.positions(read=read).to(value.device)
    whole[rows, places] = _tokens_second(value, is_pattern)
    whole = _tokens_second(whole, is_pattern)
    everyone = len(examples) == len(base.prompts)
    for site, bound in edits:
        if not everyone:
            bound = bound.select(examples.tolist())
        apply_edit(site, bound, whole)
    return _tokens_second(_tokens_second(whole, is_pattern)[rows, places], is_pattern)


def _tokens_second(value: Tensor, is_pattern: bool) -> Tensor:
    """[example, token, ...]; of patterns [example, head, query, key] <-> [example, query, head, key]."""
    if is_pattern:
        return value.transpose(1, 2)
    return value


def pattern_edit(
    base: BaseRun, layer: int, cohort: Cohort, elements: Sequence[Element], *, read: bool
) -> EditPattern | None:
    """What changes the patterns [run, example, head, query, key] of these runs, or None."""
    edits = [element.at("pattern", layer) for element in elements]
    if not any(edits):
        return None

    def change(pattern: Tensor) -> Tensor:
        """The patterns after the edits of each run."""
        changed = []
        for run_edits, run_pattern in zip(edits, pattern, strict=True):
            run_pattern = edited_tokens(base, ("pattern", layer), run_edits, cohort, run_pattern, read=read)
            changed.append(run_pattern)
        return torch.stack(changed)

    return change
