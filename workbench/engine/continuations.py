"""Values for prompts that go on with an answer: they are written where the prompt is, and the answer's tokens
are left be.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.values import Value
from workbench.metrics.continuations import Expansion
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Site


def bind(model: Any, rows: Expansion, value: Value, *, side: str = "clean") -> Bound:
    """A value made ready for the rows of pairs; stores are asked for the prompts of the pairs, without
    answers.

    Args:
        side: "clean" or "corrupt", the run that is edited.
    """
    prompts, other = rows.examples.side(side), rows.examples.side("corrupt" if side == "clean" else "clean")
    bound = value.bind(model, prompts, other)
    return bound if rows.plain else _ContinuedBound(bound.select(rows.owner.tolist()), rows.pairs.side(side))


class _ContinuedBound(Bound):
    """A value that is bound to the prompts of some rows, for the longer rows.

    Args:
        inner: the value for the prompts alone, row by row.
        prompts: the rows, each a prompt of `inner` and what follows it.
    """

    def __init__(self, inner: Bound, prompts: Prompts) -> None:
        super().__init__(inner.value, prompts)
        self.inner = inner

    @property
    def reach(self) -> Tensor:
        return self.inner.prompts.lengths

    def select(self, examples: Sequence[int]) -> Bound:
        return _ContinuedBound(self.inner.select(examples), self.prompts.select(examples))

    def new(self, site: Site, current: Tensor) -> Tensor:
        """The inner value at the prompt's positions; attention from or to the answer is left as it is."""
        free = [
            axis for axis in KINDS[site.kind].axes if axis in _PLACE and getattr(site, _PLACE[axis]) is None
        ]
        if not free:
            return self.inner.edited(site, current)
        # Of a pattern the last axes are positions; of everything else the one behind the example.
        first = current.ndim - len(free) if site.kind == "pattern" else 1
        inside = torch.arange(self.inner.prompts.tokens.shape[1]) < self.inner.prompts.lengths[:, None]
        inside = inside.to(current.device)
        window = (slice(None),) * first + (slice(inside.shape[1]),) * len(free)
        new, before = current.clone(), current[window]
        written = self.inner.edited(site, before)
        for axis in range(first, first + len(free)):
            here = inside.view(len(inside), *[1] * (axis - 1), -1, *[1] * (current.ndim - axis - 1))
            written = torch.where(here, written, before)
        new[window] = written
        return new

    def has(self, site: Site) -> Tensor:
        return self.inner.has(site)

    def first_change(self, site: Site) -> Tensor:
        first = self.inner.first_change(site)
        return torch.where(first < self.inner.prompts.lengths, first, self.prompts.lengths)


_PLACE = {"pos": "pos", "query_pos": "pos", "key_pos": "key_pos"}
