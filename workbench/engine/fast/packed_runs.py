"""The tokens of all runs that have joined a walk, packed: one cohort after the other, without padding.

Read `PackedRuns`. It knows which rows of a packed table [token, ...] are whose; what is computed on them is
`staircase`'s business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.engine.fast.cohorts import Cohort


@dataclass(eq=False)
class CohortRuns:
    """The runs of a cohort that have joined; their tokens [run, example, pos] lie together."""

    cohort: Cohort
    elements: list[int] = field(default_factory=list)

    def n_tokens(self, *, read: bool) -> int:
        """Tokens of all its runs, or those of them that are read."""
        n_each = self.cohort.n_tokens
        if read:
            n_each = self.cohort.n_read
        return len(self.elements) * n_each

    def view(self, flat: Tensor) -> Tensor:
        """[run, example, pos, ...] of its packed tokens."""
        n_runs, n = len(self.elements), len(self.cohort.examples)
        return flat.view(n_runs, n, len(flat) // (n_runs * n), *flat.shape[1:])


@dataclass(frozen=True, eq=False)
class Joining:
    """Runs of a cohort that are about to join, with their stream [..., d_model] from there on."""

    runs: CohortRuns
    elements: list[int]
    stream: Tensor


class PackedRuns:
    """Which rows of a packed table belong to which cohort's runs.

    Args:
        groups: the cohorts, in the order of their tokens.
    """

    def __init__(self, groups: Sequence[Cohort]) -> None:
        self.cohorts = [CohortRuns(group) for group in groups]

    def split(self, flat: Tensor, *, read: bool) -> Sequence[Tensor]:
        """The tokens of each cohort.

        Args:
            read: whether `flat` holds only the tokens that are read.
        """
        return flat.split([runs.n_tokens(read=read) for runs in self.cohorts])

    def at_read(self, flat: Tensor) -> Tensor:
        """The tokens that are read, out of all packed tokens."""
        at_read = []
        for runs, tokens in zip(self.cohorts, self.split(flat, read=False), strict=True):
            read = runs.cohort.read
            if runs.elements and read is not None:
                places = (read - runs.cohort.start).to(flat.device)
                rows = torch.arange(len(places), device=flat.device)
                tokens = runs.view(tokens)[:, rows, places].flatten(0, 1)
            # A cohort whose logits are all read keeps all its tokens.
            at_read.append(tokens)
        return torch.cat(at_read)

    def append(self, flat: Tensor, joining: Sequence[Joining], *, read: bool) -> Tensor:
        """The packed stream, with each joining run's tokens after those already in its cohort."""
        if not joining:
            return flat  # as it is: `torch.cat` would copy it
        # Split before any cohort grows: its number of runs says where its tokens end.
        tokens: dict[int, list[Tensor]] = {}
        for runs, joined in zip(self.cohorts, self.split(flat, read=read), strict=True):
            tokens[id(runs)] = [joined]
        for new in joining:
            tokens[id(new.runs)].append(new.stream.reshape(-1, new.stream.shape[-1]))
            new.runs.elements.extend(new.elements)
        return torch.cat([stream for streams in tokens.values() for stream in streams])
