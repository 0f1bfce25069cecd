"""A value that was worked out beforehand, as a table for each site: how path patching sets receivers' inputs."""

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
        prompts, chosen = self.prompts.select(examples), list(examples)
        n = prompts.tokens.shape[1] - self.start
        tables = {site: table[chosen, :n] for site, table in self.tables.items()}
        return Precomputed(prompts, tables, start=self.start, first=self.first[chosen])

    def new(self, site: Site, current: Tensor) -> Tensor:
        table, new = self.tables[site].to(current.dtype), current.clone()
        if site.pos is None:
            new[:, self.start :] = table
            return new
        place = SitePositions.of(site, self.prompts).first - self.start
        chosen = torch.arange(len(place))[place >= 0]
        new[chosen] = table[chosen, place[chosen]]
        return new

    def first_change(self, site: Site) -> Tensor:
        own = super().first_change(site)
        return (
            torch.maximum(own, self.first)
            if site.pos is None
            else own.where(own >= self.first, self.prompts.lengths)
        )
