"""Which tokens an edited run needs: from the first token that can differ, at the first layer that can.

A run that is edited at some place equals the base run before that token and below that layer (attention is
causal). Runs that begin at the same token of the same examples form a `Cohort`, whose attention is one
product.

Read `Element` (one edited run), then `cohorts`. All that is known here of a value is `Bound.first_change` and
`Bound.has`; no activation is looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Shape, Site

BEFORE, ATTENTION, MLP = 0, 1, 2
"""Where in a block a run joins: before it, in its attention, or in its MLP."""
KINDS_OF = {
    ATTENTION: ("q", "k", "v", "pattern", "z", "attn_out", "resid_mid"),
    MLP: ("mlp_pre", "mlp_post", "mlp_out"),
}
_HALF = {kind: half for half, kinds in KINDS_OF.items() for kind in kinds}

# Kinds through which a token acts on later ones even in the last block.
_SEEN_BY_LATER_TOKENS = ("embed", "pos_embed", "resid_pre", "k", "v")

NEVER = 2**31
"""A first token after the end of every prompt: the edit changes nothing that is read."""


@dataclass(frozen=True, eq=False)
class Element:
    """One edited run: sites edited together, each with what is written there."""

    edits: tuple[tuple[Site, Bound], ...]

    def at(self, kind: str, layer: int | None) -> list[tuple[Site, Bound]]:
        """The edits of one activation, in their order."""
        return [(site, bound) for site, bound in self.edits if site.key == (kind, layer)]

    def joins(self, shape: Shape) -> tuple[int, int]:
        """(layer, half of the block) from which it differs from the base run."""
        return min(_moment(site, shape) for site, _ in self.edits)

    @property
    def keys(self) -> list[Key]:
        """The activations that it edits."""
        return [site.key for site, _ in self.edits]

    def later(self, shape: Shape) -> list[Key]:
        """The activations that are edited after it has joined."""
        if len(self.edits) < 2:
            return []
        first = self.joins(shape)
        return [site.key for site, _ in self.edits if _moment(site, shape) > first]

    @property
    def layer_edit(self) -> tuple[Site, Bound] | None:
        """The edit of a whole layer that writes to this run's one head or neuron what its own edit does.

        None where the run has several edits or there is no such edit. Runs that share one depart together.
        """
        (site, bound), *more = self.edits
        if more or site.unit is None or site.kind not in ("z", "mlp_post") or not bound.value.unitwise:
            return None
        return Site(site.kind, site.layer, pos=site.pos), bound


def _moment(site: Site, shape: Shape) -> tuple[int, int]:
    """(layer, half of the block) at which an edit acts; moments compare in the order of computation."""
    if site.layer is None:
        return (0, BEFORE)
    if site.kind == "resid_post":
        return (site.layer + 1, BEFORE)
    return (site.layer, _HALF.get(site.kind, BEFORE))


@dataclass(eq=False)
class Cohort:
    """Runs that differ from the same token `start` on, in the same examples of the same `length`.

    No token of a cohort is padding: prompts of other lengths are in cohorts of their own.

    Attributes:
        examples: [example]: their indices in the batch.
        read: [example]: the one position whose logits are read, or None for all of them.
        elements: indices of the runs.
    """

    start: int
    length: int
    examples: Tensor
    read: Tensor | None
    elements: list[int] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Tokens of one of its runs."""
        return len(self.examples) * (self.length - self.start)

    @property
    def n_read(self) -> int:
        """Tokens of one of its runs that the last block still needs after its keys and values."""
        if self.read is None:
            return self.n_tokens
        return len(self.examples)

    def positions(self, *, read: bool) -> Tensor:
        """[example, pos]: the places of its tokens, or of those that are read."""
        if read and self.read is not None:
            return self.read[:, None]
        return torch.arange(self.start, self.length).expand(len(self.examples), -1)


def cohorts(elements: Sequence[Element], prompts: Prompts, shape: Shape, read: Tensor | None) -> list[Cohort]:
    """The tokens of every element, grouped; what provably changes nothing is in none of them.

    Args:
        read: [example]: the position whose logits are read, or None when all are.
    """
    by_tokens: dict[tuple[int, ...], Cohort] = {}
    by_firsts: dict[tuple[int, ...], list[Cohort]] = {}
    starts = _Starts(prompts, shape, read)
    for j, element in enumerate(elements):
        firsts = starts.of(element)
        if firsts not in by_firsts:
            by_firsts[firsts] = []
            for (start, length), members in _alike(firsts, prompts).items():
                examples = torch.tensor(members)
                read_in_cohort = None
                if read is not None:
                    read_in_cohort = read[examples]
                cohort = Cohort(start, length, examples, read_in_cohort)
                # Elements with other firsts in other examples may still share this cohort.
                by_firsts[firsts].append(by_tokens.setdefault((start, length, *members), cohort))
        for cohort in by_firsts[firsts]:
            cohort.elements.append(j)
    return list(by_tokens.values())


def _alike(firsts: Sequence[int], prompts: Prompts) -> dict[tuple[int, int], list[int]]:
    """(first token, length) → the examples that have both."""
    examples: dict[tuple[int, int], list[int]] = {}
    for i, (first, length) in enumerate(zip(firsts, prompts.lengths.tolist(), strict=True)):
        if first != NEVER:
            examples.setdefault((first, length), []).append(i)
    return examples


class _Starts:
    """Where each element begins to differ, example by example."""

    def __init__(self, prompts: Prompts, shape: Shape, read: Tensor | None) -> None:
        self.prompts, self.shape, self.read = prompts, shape, read
        self.known: dict[tuple[object, ...], tuple[int, ...]] = {}

    def of(self, element: Element) -> tuple[int, ...]:
        """[example]: the first token that can differ in what is read, `NEVER` where none can."""
        # Heads and neurons do not matter here, so a whole layer of runs is worked out once.
        form = tuple((site.key, site.pos, site.key_pos, bound) for site, bound in element.edits)
        if form not in self.known:
            self.known[form] = self._first(element)
        return self.known[form]

    def _first(self, element: Element) -> tuple[int, ...]:
        """[example]: the earliest first token over the element's edits."""
        first = torch.stack([self._of_site(site, bound) for site, bound in element.edits])
        # A prompt that lacks one of the positions is left out of the whole element: never half an edit. The
        # engine leaves its effect at 0, and `interventions.effects` puts NaN there.
        missing = torch.stack([~bound.has(site) for site, bound in element.edits]).any(0)
        return tuple(first.amin(0).masked_fill(missing, NEVER).tolist())

    def _of_site(self, site: Site, bound: Bound) -> Tensor:
        """[example]: the first token at which one edit can change what is read, `NEVER` where none can."""
        first = bound.first_change(site).clone()
        first[first >= self.prompts.lengths] = NEVER
        if self.read is None:
            return first
        if site.layer == self.shape.n_layers - 1 and site.kind not in _SEEN_BY_LATER_TOKENS:
            # After the last block's keys and values only the position that is read matters.
            if site.pos is None:
                first = torch.where(first <= self.read, self.read, NEVER)
            else:
                first = first.where(first == self.read, NEVER)
        # Attention is causal: what changes after the position that is read cannot reach it.
        return first.masked_fill(first > self.read, NEVER)
