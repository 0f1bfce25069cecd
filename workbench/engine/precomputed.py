"""`Precomputed`: activations worked out beforehand, as a table for each site.

Path patching sets the inputs of receivers with it.

It is a `Bound` like any other, so that a patched path is an edited run like any other.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workbench.engine.bound import Bound, SitePositions
from workbench.engine.values import Value
from workbench.prompts.prompts import Prompts
from workbench.sites import Site


class Precomputed(Bound):
    """What is written at each site, worked out beforehand for the tokens from `start` on.

    Args:
        tables: site → [example, pos, ...] of its part, from `start` on.
        first: [example]: before it, nothing has changed.
    """

    def __init__(self, prompts: Prompts, tables: Mapping[Site, Tensor], *, start: int, first: Tensor) -> None:
        super().__init__(Value(), prompts)
        self.tables, self.start, self.first = tables, start, first

    def select(self, examples: Sequence[int]) -> Bound:
        """The tables of some of the prompts, as long as the longest of these."""
        prompts, chosen = self.prompts.select(examples), list(examples)
        # Fewer prompts may be shorter: a table is cut to the tokens that the run then has.
        n = prompts.tokens.shape[1] - self.start
        tables = {site: table[chosen, :n] for site, table in self.tables.items()}
        return Precomputed(prompts, tables, start=self.start, first=self.first[chosen])

    def new(self, site: Site, current: Tensor) -> Tensor:
        """The table from `start` on, the current activation before it."""
        table, new = self.tables[site].to(current.dtype), current.clone()
        if site.pos is None:
            new[:, self.start :] = table
            return new
        # One position of each example: `current` has no axis of positions then, the table has.
        column = SitePositions.of(site, self.prompts).first - self.start
        # A negative column is a position before the table, where nothing has changed.
        reached = torch.arange(len(column))[column >= 0]
        new[reached] = table[reached, column[reached]]
        return new

    def first_change(self, site: Site) -> Tensor:
        """Not before `first`; an edit at a single position before it changes nothing."""
        of_site = super().first_change(site)
        # Tables may begin earlier than the change: their rows before `first` are those of the base run.
        if site.pos is None:
            return torch.maximum(of_site, self.first)
        return of_site.where(of_site >= self.first, self.prompts.lengths)
