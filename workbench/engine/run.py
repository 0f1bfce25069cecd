"""`run`: one forward pass with edits, the simplest use of the engine.

`Edit` is the write on hooks that an edit becomes.

`run` always takes hooks: a single pass has nothing to save. This module knows no pairs and no metric.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.arguments import checked
from workbench.engine.bound import Bound, apply_edit
from workbench.engine.first_not_finite import located
from workbench.engine.hooked.forward import Run, Write, forward
from workbench.engine.inputs import SiteLike, Tokens, as_prompts, as_sites, check_positions
from workbench.engine.values import Value
from workbench.errors import EditError, NotFinite
from workbench.finite import is_finite
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Shape, Site


@dataclass(frozen=True)
class Edit:
    """A bound value at a site.

    Attributes:
        rows: of the batch, where several edited runs share a forward pass; None: all of them.
        causal: whether queries of the model see earlier keys only.
    """

    site: Site
    bound: Bound
    rows: slice | None = None
    causal: bool = True

    def write(self) -> Write:
        """The write that performs the edit, in place, on the examples that have the site's position."""

        def change(value: Tensor) -> Tensor:
            """The whole batch [row, ...] with the edit's rows written."""
            n, rows = len(self.bound.prompts), value
            if self.rows is not None:
                rows = value[self.rows]  # a slice is a view, so that the batch itself is written
            # A value has rows of its own prompts: on other ones it would write the wrong example.
            if len(rows) != n:
                raise EditError(f"The edit at {self.site} is for {n} prompts and the batch has {len(rows)}.")
            apply_edit(self.site, self.bound, rows, causal=self.causal)
            return value

        return Write(self.site.kind, self.site.layer, change)


@checked
@model_call()
def run(
    model: Model,
    tokens: Tokens,
    *,
    edits: Mapping[SiteLike | tuple[SiteLike, ...], Value] | None = None,
    record: Iterable[SiteLike] = (),
    other: Prompts | None = None,
) -> Run:
    """One forward pass with edits: logits [example, pos, vocab], and activations recorded by (kind, layer).

    Args:
        tokens: prompts, texts, token ids [example, pos] as lists, a tensor or an array, or what a Hugging
            Face tokenizer returns (its `attention_mask` says what is padding; without one it is refused).
        edits: site (or a tuple of sites) → value.
        record: sites whose whole activation (after the edits) is kept.
        other: the other side of the pairs, which `from_store` matches by.

    Raises:
        SiteError: the model lacks a site.
        EditError: an edit did not run.
        NotFinite: logits or what is recorded are not finite; the message names the first such layer.
        ModelError: the model is in train mode, or torch's settings would change its numbers.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> result = wb.run(model, [[0, 5, 7]], edits={"z[1.2]": wb.zero()}, record=["resid_post[3]"])
    >>> tuple(result.recorded["resid_post", 3].shape)
    (1, 3, 128)
    """
    prompts = as_prompts(model, tokens)
    writes = []
    for sites, value in (edits or {}).items():
        bound = value.bind(model, prompts, other)
        # Bound once for all sites of an element: binding looks every prompt up in the store.
        for site in as_sites(sites):
            check_positions(site.check(model), prompts)
            writes.append(Edit(site, bound, causal=Shape.of(model).causal).write())
    keys: list[Key] = []
    # Whole activations, even where a site names one head: a caller can slice them, and hooks cannot.
    for element in record:
        keys += [site.check(model).key for site in as_sites(element)]
    result = forward(model, prompts, writes=writes, record=keys)
    with located(model, prompts):
        _check_finite(result, prompts)
    return result


def _check_finite(result: Run, prompts: Prompts) -> None:
    """Raise `NotFinite` where the logits, or what was recorded, of a real token are not finite."""
    if all(is_finite(numbers) for numbers in (result.logits, *result.recorded.values())):
        return
    inside = torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
    for key, numbers in {("logits", None): result.logits, **result.recorded}.items():
        unpadded = numbers
        if key[0] != "pattern":  # [example, head, query_pos, key_pos], with no one axis of tokens
            unpadded = numbers[inside.to(numbers.device)]
        if not is_finite(unpadded):
            raise NotFinite(f"{Site(*key)} is not finite. Check the edits and the model's dtype.")
