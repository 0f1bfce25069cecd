"""`bind`: values for prompts that are followed by an answer.

They are written at the prompt's positions; the answer's tokens are left unchanged.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.named_values import other_side
from workbench.engine.values import Value
from workbench.metrics.continuations import Expansion
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Site


def bind(model: Model, rows: Expansion, value: Value, *, side: str = "clean") -> Bound:
    """A value made ready for the rows of pairs; stores are asked for the pairs' prompts, without answers.

    Args:
        side: "clean" or "corrupt", the run that is edited.
    """
    pairs = rows.examples
    bound = value.bind(model, pairs.side(side), pairs.side(other_side(side)))
    if rows.plain:
        return bound
    # A prompt with several answers is several rows, which share its value.
    return _ContinuedBound(bound.select(rows.owner.tolist()), rows.pairs.side(side))


_FIELD = {"pos": "pos", "query_pos": "pos", "key_pos": "key_pos"}
"""Axis of positions → the field of a site that names one position of it."""


class _ContinuedBound(Bound):
    """A value bound to the prompts of some rows, used on the rows, which are longer by their answers.

    Args:
        inner: the value for the prompts alone, row by row.
        prompts: the rows, each a prompt of `inner` and what follows it.
    """

    def __init__(self, inner: Bound, prompts: Prompts) -> None:
        super().__init__(inner.value, prompts)
        self.inner = inner

    @property
    def reach(self) -> Tensor:
        """The prompts' lengths, without the answers."""
        return self.inner.prompts.lengths

    def select(self, examples: Sequence[int]) -> Bound:
        """The same value for some of the rows."""
        return _ContinuedBound(self.inner.select(examples), self.prompts.select(examples))

    def new(self, site: Site, current: Tensor) -> Tensor:
        """The inner value at the prompt's positions; attention from or to the answer is left as it is."""
        axes = [axis for axis in KINDS[site.kind].axes if axis in _FIELD]
        free = [axis for axis in axes if getattr(site, _FIELD[axis]) is None]
        if not free:
            return self.inner.edited(site, current)  # a named position lies in the prompt, never in an answer
        # Of a pattern the last axes are positions; of everything else the one after the example.
        first = current.ndim - len(free) if site.kind == "pattern" else 1
        inner = self.inner.prompts
        inside = (torch.arange(inner.tokens.shape[1]) < inner.lengths[:, None]).to(current.device)
        # The inner value knows only the prompts' width, so it is asked for that window of the longer rows.
        window = (slice(None),) * first + (slice(inside.shape[1]),) * len(free)
        new, before = current.clone(), current[window]
        written = self.inner.edited(site, before)
        for axis in range(first, first + len(free)):
            # A pattern's two axes are masked in turn, so the mask [example, pos] lies along this axis alone.
            mask = inside.view(len(inside), *[1] * (axis - 1), -1, *[1] * (current.ndim - axis - 1))
            written = torch.where(mask, written, before)
        new[window] = written
        return new

    def has(self, site: Site) -> Tensor:
        """Whether the prompt has the site's position; its answer does not count."""
        return self.inner.has(site)

    def first_change(self, site: Site) -> Tensor:
        """The first change within the prompt; where nothing changes there, the row's whole length."""
        first = self.inner.first_change(site)
        return torch.where(first < self.inner.prompts.lengths, first, self.prompts.lengths)
