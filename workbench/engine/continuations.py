"""`bind`: values for prompts that are followed by an answer.

A value that does not depend on the position (zero, a constant, the mean of a data set, ...) is written at the
answer's tokens too, where a site names no position: a head that is ablated stays ablated while the answer is
read. What comes from another prompt (`from_store`, `resample`, `mean(per="pos")`), and every edit at a named
position, is written at the prompt's positions alone. `answer_attrs` says so in results.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound
from workbench.engine.values import Value
from workbench.metrics.continuations import Expansion, expand
from workbench.metrics.metric import GivenMetric
from workbench.models.model import Model
from workbench.names import other_side
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Site


def bind(model: Model, rows: Expansion, value: Value, *, side: str = "clean") -> Bound:
    """A value made ready for the rows of pairs; stores are asked for the pairs' prompts, without answers.

    Args:
        side: "clean" or "corrupt", the run that is edited.
    """
    pairs, other = rows.examples, other_side(side)
    bound = value.bind(model, pairs.side(side), pairs.side(other))
    if rows.plain:
        return bound
    whole = None
    if value.covers_answers:
        whole = value.bind(model, rows.pairs.side(side), rows.pairs.side(other))
    # A prompt with several answers is several rows, which share its value.
    return _ContinuedBound(bound.select(rows.owner.tolist()), rows.pairs.side(side), whole)


def answer_attrs(rows: Expansion, value: Value, sites: Iterable[Site] = ()) -> dict[str, str]:
    """`answer_tokens`, for the attrs of a result: whether edits cover answers' tokens.

    Empty where a metric reads one token, so that no run holds an answer.

    Args:
        sites: that are edited; none are named where all edits are at whole sequences (circuits, paths).
    """
    if rows.plain:
        return {}
    at_position = [_names_a_position(site) for site in sites]
    if not value.covers_answers or (at_position and all(at_position)):
        return {"answer_tokens": "unchanged"}
    if any(at_position):
        return {"answer_tokens": "edited where a site has no position"}
    return {"answer_tokens": "edited"}


def answers_attend(rows: Expansion, value: Value) -> bool:
    """Whether tokens of answers, which the value does not cover, follow a prompt (see `Graph`)."""
    pairs = rows.examples
    # Rows of wrong answers have negative weights; where there are none, the metric does not read these answers.
    read = [pairs.answers, pairs.wrong] if bool((rows.weight < 0).any()) else [pairs.answers]
    # By the width of the tables, not by the answers: parts of a set of prompts must agree on what is a dead end.
    longest = max(table.shape[2] for table in read)
    return not rows.plain and not value.covers_answers and longest > 1


def graph_as_run(graph: Graph, model: Model, pairs: PromptPairs, metric: GivenMetric, value: Value) -> Graph:
    """A graph with the dead ends that it has where these pairs are run with a value."""
    return replace(graph, answers_attend=answers_attend(expand(model, pairs, metric), value))


_FIELD = {"pos": "pos", "query_pos": "pos", "key_pos": "key_pos"}
"""Axis of positions → the field of a site that names one position of it."""


def _names_a_position(site: Site) -> bool:
    return site.pos is not None or site.key_pos is not None


class _ContinuedBound(Bound):
    """A value bound to the prompts of some rows, used on the rows, which are longer by their answers.

    Args:
        inner: the value for the prompts alone, row by row.
        prompts: the rows, each a prompt of `inner` and what follows it.
        whole: the value for the whole rows, where it covers answers.
    """

    def __init__(self, inner: Bound, prompts: Prompts, whole: Bound | None) -> None:
        super().__init__(inner.value, prompts)
        self.inner, self.whole = inner, whole

    @property
    def reach(self) -> Tensor:
        """The prompts' lengths; with the answers, where the value covers them."""
        if self.whole is not None:
            return self.prompts.lengths
        return self.inner.prompts.lengths

    def select(self, examples: Sequence[int]) -> Bound:
        """The same value for some of the rows."""
        whole = None if self.whole is None else self.whole.select(examples)
        return _ContinuedBound(self.inner.select(examples), self.prompts.select(examples), whole)

    def new(self, site: Site, current: Tensor) -> Tensor:
        """The whole value where it covers answers, else the inner one at the prompt's positions.

        Attention from or to an answer that is not covered is left as it is.
        """
        if self.whole is not None and not _names_a_position(site):
            return self.whole.edited(site, current)
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
