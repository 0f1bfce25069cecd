"""Many edited runs under a memory budget: batches of examples, and within each, walks of as many runs as fit.

Read `StaircaseSweep.run` first, then `EditedRuns`, which says what a sweep runs: edits at sites (`SiteEdits`)
or patched paths (`paths.PatchedPaths`). The sweep itself knows neither sites nor paths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.engine.bound import apply_edit
from workbench.engine.fast.base_run import BaseRun, needed
from workbench.engine.fast.budget import WalkBudget
from workbench.engine.fast.cohorts import BEFORE, MLP, Cohort, Element
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.readout import Readout, read_position
from workbench.engine.fast.staircase import StaircaseWalk, WalkOutcome, run_base
from workbench.engine.runs import ElementsOf, MeasuredRuns, RunCost
from workbench.engine.threads import few_threads
from workbench.progress import progress_bar
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Key


@dataclass(frozen=True)
class ElementGroup:
    """Edited runs of a batch that are made together.

    Attributes:
        columns: of each, in the table of results.
    """

    elements: Sequence[Element]
    columns: Sequence[int]


@runtime_checkable
class EditedRuns(Protocol):
    """What a sweep runs, and on which base run."""

    @property
    def keys(self) -> frozenset[Key]:
        """The activations that are edited."""
        ...

    @property
    def n_elements(self) -> int:
        """Columns of the table of results."""
        ...

    def base_run(self, prompts: Prompts, budget: WalkBudget) -> BaseRun:
        """The base run of a batch, with all that the edits start from."""
        ...

    def planned(self, examples: Sequence[int], budget: WalkBudget) -> Iterator[Sequence[Element]]:
        """The same runs as in `groups` before anything is run: only their sites and first changes count."""
        ...

    def groups(self, base: BaseRun, examples: Sequence[int], budget: WalkBudget) -> Iterator[ElementGroup]:
        """The edited runs of a batch, in groups that are walked one after the other."""
        ...

    def without_walk(
        self, base: BaseRun, examples: Sequence[int], readout: Readout, budget: WalkBudget
    ) -> Iterator[WalkOutcome]:
        """The streams of runs for which no layer has to be computed."""
        ...


@dataclass(frozen=True)
class SiteEdits:
    """Edits of sites by bound values, which need nothing of the base run to be made.

    Attributes:
        keys: the activations that are edited.
        elements_of: the edited runs of a batch.
        n_elements: how many runs of each prompt there are.
    """

    keys: frozenset[Key]
    elements_of: ElementsOf
    n_elements: int

    def base_run(self, prompts: Prompts, budget: WalkBudget) -> BaseRun:
        """The base run of a batch, with the activations that are edited."""
        return run_base(budget.decoder, prompts, needed(self.keys), tile=budget.tile)

    def planned(self, examples: Sequence[int], budget: WalkBudget) -> Iterator[Sequence[Element]]:
        """All edited runs at once."""
        yield self.elements_of(examples)

    def groups(self, base: BaseRun, examples: Sequence[int], budget: WalkBudget) -> Iterator[ElementGroup]:
        """All edited runs in one group."""
        yield ElementGroup(self.elements_of(examples), range(self.n_elements))

    def without_walk(
        self, base: BaseRun, examples: Sequence[int], readout: Readout, budget: WalkBudget
    ) -> Iterator[WalkOutcome]:
        """No streams: every edit is walked."""
        return iter(())


@dataclass(frozen=True)
class StaircaseSweep:
    """Edited runs on the fast engine."""

    decoder: Decoder
    runs: MeasuredRuns
    edited: EditedRuns
    engine = "staircase"

    @torch.no_grad()
    def run(self, *, progress: bool, what: str) -> Tensor:
        """[example, element]: m(edited) - m(base), exactly 0 where nothing can change.

        Args:
            what: the name of the progress bar.
        """
        budget = self._budget
        # Effects are small differences: 16-bit models get a table of float32.
        wide = torch.promote_types(self.decoder.dtype, torch.float32)
        effects = torch.zeros((len(self.runs.pairs), self.edited.n_elements), dtype=wide)
        bar = progress_bar(effects.numel(), what, "run", shown=progress)
        with bar, few_threads(self.decoder.shape.d_model):
            for examples in budget.batches():
                pairs = self._pairs(examples)
                base = self.edited.base_run(pairs.side(self.runs.side), budget)
                readout = self._readout(pairs, base, budget)
                base_metric = readout.measure(readout.base_logits)
                batch_effects = torch.zeros((len(pairs), self.edited.n_elements), dtype=wide)
                for outcomes in self._outcomes(base, examples, readout):
                    readout.write(outcomes, batch_effects, base_metric)
                    bar.update(sum(len(one.elements) * len(one.cohort.examples) for one in outcomes))
                effects[list(examples)] = batch_effects
            bar.update(bar.total - bar.n)  # counted as done: what provably changes nothing was never run
        return effects

    def cost(self) -> RunCost:
        """What `run` will take; nothing is run."""
        budget = self._budget
        total = RunCost()
        for examples in budget.batches():
            prompts = self._pairs(examples).side(self.runs.side)
            base_bytes = budget.base_bytes(prompts)
            base_cost = replace(_base_cost(self.decoder, prompts), peak_bytes=base_bytes)
            total = total.plus(base_cost)
            if self._needs_clean_run:
                total = total.plus(base_cost)
            walks = RunCost()
            read = read_position(self.runs.metric, prompts)
            for elements in self.edited.planned(examples, budget):
                for cohorts in budget.walks(elements, prompts, read):
                    n_tokens = sum(cohort.n_tokens * len(cohort.elements) for cohort in cohorts)
                    peak = base_bytes + n_tokens * budget.walking + 2 * budget.tile
                    walk = _walk_cost(self.decoder, elements, cohorts)
                    walks = walks.plus(replace(walk, peak_bytes=peak))
            total = total.plus(replace(walks, skipped=len(prompts) * self.edited.n_elements - walks.runs))
        return total

    @property
    def _budget(self) -> WalkBudget:
        return WalkBudget(self.decoder, self.runs, self.edited.keys)

    @property
    def _needs_clean_run(self) -> bool:
        """Whether the metric compares with a clean run that is not the base run."""
        return self.runs.metric.needs_reference and self.runs.side == "corrupt"

    def _outcomes(
        self, base: BaseRun, examples: Sequence[int], readout: Readout
    ) -> Iterator[list[WalkOutcome]]:
        budget = self._budget
        for outcome in self.edited.without_walk(base, examples, readout, budget):
            yield [outcome]
        for group in self.edited.groups(base, examples, budget):
            walked: set[int] = set()
            for cohorts in budget.walks(group.elements, base.prompts, readout.read):
                for cohort in cohorts:
                    walked.update(cohort.elements)
                outcomes = StaircaseWalk(base, group.elements, cohorts, tile=budget.tile).run()
                yield [_in_columns(outcome, group.columns) for outcome in outcomes]
            # What is never walked is checked all the same: a value that does not fit is an error.
            _check_edits(base, [element for j, element in enumerate(group.elements) if j not in walked])

    def _pairs(self, examples: range) -> PromptPairs:
        if len(examples) == len(self.runs.pairs):
            return self.runs.pairs
        return self.runs.pairs.select(list(examples))

    def _readout(self, pairs: PromptPairs, base: BaseRun, budget: WalkBudget) -> Readout:
        clean = None
        if self._needs_clean_run:
            clean = run_base(self.decoder, pairs.clean, tile=budget.tile)
        return Readout(self.runs.metric, pairs, base, clean=clean, tile=budget.tile, dtype=self.runs.dtype)


def _in_columns(outcome: WalkOutcome, columns: Sequence[int]) -> WalkOutcome:
    """The outcome with its runs numbered as columns of the table."""
    return replace(outcome, elements=[columns[j] for j in outcome.elements])


def _check_edits(base: BaseRun, skipped: Sequence[Element]) -> None:
    """Raise for values that do not fit, though they would change nothing.

    Each activation and form of site is tried once.
    """
    checked = set()
    for element in skipped:
        for site, bound in element.edits:
            form = (site.key, id(bound), site.unit is None, site.pos is None, site.key_pos is None)
            if form not in checked and bool(bound.has(site).any()):
                checked.add(form)
                apply_edit(site, bound, base.whole(site.key).clone())


def _base_cost(decoder: Decoder, prompts: Prompts) -> RunCost:
    """What the base run of a batch takes."""
    whole = [Cohort(0, int(n), torch.tensor([i]), None, [0]) for i, n in enumerate(prompts.lengths)]
    return replace(_walk_cost(decoder, [Element(())], whole), runs=0)


def _walk_cost(decoder: Decoder, elements: Sequence[Element], cohorts: Sequence[Cohort]) -> RunCost:
    """What one walk takes: every run from the block where it joins."""
    shape, block = decoder.shape, decoder.token_flops()
    last = shape.n_layers - 1
    kv = 4 * shape.d_model * shape.n_kv_heads * shape.d_head
    mlp = 2 * decoder.mlp_products() * shape.d_model * shape.d_mlp
    n_runs, flops = 0, 0.0
    for cohort in cohorts:
        scores = 4 * shape.n_heads * shape.d_head * cohort.length
        for j in cohort.elements:
            layer, half = 0, BEFORE
            if elements[j].edits:
                layer, half = elements[j].joins(shape)
            n_runs += len(cohort.examples)
            rest = 0.0
            if half and layer < last + 1:
                # It joins inside a block: in a sequential block the MLP still has to run after the attention.
                if half != MLP and not shape.parallel:
                    n_tokens = cohort.n_tokens
                    if layer == last:
                        n_tokens = cohort.n_read
                    rest = n_tokens * mlp
                layer += 1
            if layer <= last:
                rest += (last - layer) * cohort.n_tokens * (block + scores)
                # The last block needs keys and values of every token, and the rest of it only where logits
                # are read.
                rest += cohort.n_tokens * kv + cohort.n_read * (block - kv + scores)
            flops += rest
    return RunCost(runs=n_runs, walks=1, token_layers=flops / block, flops=flops)
