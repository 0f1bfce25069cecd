"""Many edited runs under a memory budget: batches of examples, and within each, walks of as many runs as fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.engine.bound import apply_edit
from workbench.engine.fast.base_run import BaseRun, needed
from workbench.engine.fast.cohorts import MLP, Cohort, Element, cohorts
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.readout import Readout
from workbench.engine.fast.staircase import StaircaseWalk, WalkOutcome, run_base
from workbench.engine.runs import ElementsOf, MeasuredRuns, RunCost
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Key


@dataclass(frozen=True)
class StaircaseSweep:
    """Edited runs on the fast engine. What the runs are, a subclass says: `SiteSweep`, `PathSweep`.

    Attributes:
        keys: the activations that are edited.
        n_elements: how many runs of each prompt there are, and so columns in the table.
    """

    decoder: Decoder
    runs: MeasuredRuns
    keys: frozenset[Key]
    n_elements: int
    engine = "staircase"

    @torch.no_grad()
    def run(self, *, progress: bool, what: str) -> Tensor:
        """[example, element]: m(edited) - m(base), exactly 0 where nothing can change."""
        wide = torch.float64 if self.decoder.dtype == torch.float64 else torch.float32
        table = torch.zeros((len(self.runs.pairs), self.n_elements), dtype=wide)
        with tqdm(
            total=table.numel(), desc=what, unit="run", disable=None if progress else True, leave=False
        ) as bar:
            for examples in self._batches():
                part = self._part(examples)
                prompts, done = (
                    part.side(self.runs.side),
                    torch.zeros((len(part), self.n_elements), dtype=wide),
                )
                base = self._unedited(prompts)
                readout = self._readout(part, self.runs.side)
                logits = readout.base_logits(base)
                if self.runs.metric.needs_reference:
                    readout.reference = logits if self.runs.side == "clean" else self._clean_logits(part)
                measured = readout.measure(logits)
                for outcomes in self._outcomes(base, part, examples, readout):
                    readout.write(outcomes, done, logits, measured)
                    bar.update(
                        sum(len(outcome.elements) * len(outcome.cohort.examples) for outcome in outcomes)
                    )
                table[list(examples)] = done
            bar.update(bar.total - bar.n)
        return table

    def cost(self) -> RunCost:
        """What `run` will take; nothing is run."""
        total = RunCost()
        for examples in self._batches():
            part = self._part(examples)
            prompts = part.side(self.runs.side)
            read = self._readout(part, self.runs.side).read
            kept = (self._kept + self._beside) * int(prompts.lengths.sum())
            passes = 2 if self.runs.metric.needs_reference and self.runs.side == "corrupt" else 1
            everything = [
                Cohort(0, int(n), torch.tensor([i]), None, [0]) for i, n in enumerate(prompts.lengths)
            ]
            unedited_run = replace(
                _walk_cost(self.decoder, [Element(())], everything), runs=0, peak_bytes=kept
            )
            for _ in range(passes):
                total = total.plus(unedited_run)
            walked = RunCost()
            for elements in self._planned(examples):
                for groups in self._walks(elements, prompts, read):
                    walking = sum(group.n_tokens * len(group.elements) for group in groups) * self._walking
                    peak = kept + walking + 2 * self._tile
                    walked = walked.plus(replace(_walk_cost(self.decoder, elements, groups), peak_bytes=peak))
            total = total.plus(replace(walked, skipped=len(part) * self.n_elements - walked.runs))
        return total

    # What a kind of sweep may do differently.

    def _unedited(self, prompts: Prompts) -> BaseRun:
        return run_base(self.decoder, prompts, needed(self.keys), tile=self._tile)

    def _planned(self, examples: Sequence[int]) -> Iterator[Sequence[Element]]:
        """The same groups of edited runs as `_work`, before anything is run: their sites and first changes are all that counts."""
        raise NotImplementedError

    def _work(
        self, base: BaseRun, examples: Sequence[int]
    ) -> Iterator[tuple[Sequence[Element], Sequence[int]]]:
        """Edited runs of a batch with their columns in the table, in groups that are walked one after the other."""
        raise NotImplementedError

    def _outcomes(
        self, base: BaseRun, pairs: PromptPairs, examples: Sequence[int], readout: Readout
    ) -> Iterator[list[WalkOutcome]]:
        prompts = pairs.side(self.runs.side)
        for elements, columns in self._work(base, examples):
            walked: set[int] = set()
            for groups in self._walks(elements, prompts, readout.read):
                walked.update(j for group in groups for j in group.elements)
                outcomes = StaircaseWalk(base, elements, groups, tile=self._tile).run()
                yield [
                    replace(outcome, elements=[columns[j] for j in outcome.elements]) for outcome in outcomes
                ]

            _check_edits(base, [element for j, element in enumerate(elements) if j not in walked])

    # How work is cut to the budget.

    @property
    def _tile(self) -> int:
        # A tile that a processor's cache holds is faster, unless it is small beside the weights that every tile reads again.
        shape, item = self.decoder.shape, self.decoder.embed.element_size()
        cached = (
            max(2**22, 4 * shape.d_model * shape.d_mlp * item) if self.decoder.device.type == "cpu" else 2**25
        )
        return max(2**16, min(2**25, cached, self.runs.memory // 8))

    @property
    def _kept(self) -> int:
        """Bytes of one token of the base run that are kept for the edited ones."""
        shape, layers = self.decoder.shape, self.decoder.shape.n_layers
        values = (2 * layers + 1) * shape.d_model + 2 * layers * shape.n_kv_heads * shape.d_head
        return (
            values + sum(self._width(kind) for kind, _ in needed(self.keys))
        ) * self.decoder.embed.element_size()

    @property
    def _beside(self) -> int:
        """Bytes of one token beside the walk: an activation that is being edited, and the logits that the metric is given."""
        item, metric, vocab = self.decoder.embed.element_size(), self.runs.metric, self.decoder.shape.d_vocab
        editing = 3 * max((self._width(kind) for kind, _ in self.keys), default=0) * item
        prompts = self.runs.pairs.side(self.runs.side)
        places = metric.positions_read(prompts)
        share = 1 if places is None else places[0].numel() / int(prompts.lengths.max())
        # The unedited logits, an edited copy, and the metric's own float32 copies; single rows come in tiles.
        copies = (2 if metric.rows(self.runs.pairs) is None else 0) if metric.rowwise else 5
        return editing + int(copies * share * vocab * max(item, 4))

    def _width(self, kind: str) -> int:
        """Numbers of one token in an activation."""
        shape, longest = self.decoder.shape, int(self.runs.pairs.side(self.runs.side).lengths.max())
        heads, kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
        widths = {"q": heads, "z": heads, "k": kv, "v": kv, "pattern": shape.n_heads * longest}
        widths |= dict.fromkeys(("mlp_pre", "mlp_linear", "mlp_post"), shape.d_mlp)
        return widths.get(kind, shape.d_model)

    @property
    def _walking(self) -> int:
        """Bytes of one token of an edited run on its way."""
        shape = self.decoder.shape
        values = 3 * shape.d_model + 2 * shape.d_head * (shape.n_heads + shape.n_kv_heads)
        return values * self.decoder.embed.element_size()

    def _batches(self) -> Iterator[range]:
        """Examples whose base run takes at most half of the budget."""
        lengths = self.runs.pairs.side(self.runs.side).lengths
        n, per_example = len(lengths), (self._kept + self._beside + self._walking) * int(lengths.max())
        size = max(1, min(n, self.runs.memory // 2 // per_example))
        for first in range(0, n, size):
            yield range(first, min(first + size, n))

    def _walks(
        self, elements: Sequence[Element], prompts: Prompts, read: Tensor | None
    ) -> Iterator[list[Cohort]]:
        """Cohorts that walk together: runs that join in neighbouring layers, as many as the budget holds."""
        shape = self.decoder.shape
        groups = cohorts(elements, prompts, shape, read)
        tokens: dict[int, int] = {}
        for group in groups:
            for j in group.elements:
                tokens[j] = tokens.get(j, 0) + group.n_tokens
        room = self.runs.memory - (self._kept + self._beside) * int(prompts.lengths.sum()) - 2 * self._tile
        most = max(1, room // self._walking)
        together: set[int] = set()
        size = 0
        for j in sorted(tokens, key=lambda j: elements[j].joins(shape)):
            if together and size + tokens[j] > most:
                yield _only(groups, together)
                together, size = set(), 0
            together.add(j)
            size += tokens[j]
        if together:
            yield _only(groups, together)

    def _part(self, examples: range) -> PromptPairs:
        return (
            self.runs.pairs
            if len(examples) == len(self.runs.pairs)
            else self.runs.pairs.select(list(examples))
        )

    def _readout(self, pairs: PromptPairs, side: str) -> Readout:
        return Readout(
            self.decoder, self.runs.metric, pairs, pairs.side(side), tile=self._tile, dtype=self.runs.dtype
        )

    def _clean_logits(self, pairs: PromptPairs) -> Tensor:
        return self._readout(pairs, "clean").base_logits(run_base(self.decoder, pairs.clean, tile=self._tile))


@dataclass(frozen=True)
class SiteSweep(StaircaseSweep):
    """Edits of sites by bound values, which need nothing of the base run to be made.

    Attributes:
        elements_of: the edited runs of a batch.
    """

    elements_of: ElementsOf

    def _planned(self, examples: Sequence[int]) -> Iterator[Sequence[Element]]:
        yield self.elements_of(examples)

    def _work(
        self, base: BaseRun, examples: Sequence[int]
    ) -> Iterator[tuple[Sequence[Element], Sequence[int]]]:
        yield self.elements_of(examples), range(self.n_elements)


def _check_edits(base: BaseRun, skipped: Sequence[Element]) -> None:
    """Raise for values that do not fit, though they would change nothing: once for each activation and way to write it."""
    seen = set()
    for element in skipped:
        for site, bound in element.edits:
            way = (site.key, id(bound), site.unit is None, site.pos is None, site.key_pos is None)
            if way not in seen and bool(bound.has(site).any()):
                seen.add(way)
                apply_edit(site, bound, base.whole(site.key).clone())


def _only(groups: Sequence[Cohort], chosen: set[int]) -> list[Cohort]:
    """The cohorts with these elements alone."""
    kept = (replace(group, elements=[j for j in group.elements if j in chosen]) for group in groups)
    return [group for group in kept if group.elements]


def _walk_cost(decoder: Decoder, elements: Sequence[Element], groups: Sequence[Cohort]) -> RunCost:
    """What one walk takes: every run from the block where it joins."""
    shape, block = decoder.shape, decoder.token_flops()
    last = shape.n_layers - 1
    kv = 4 * shape.d_model * shape.n_kv_heads * shape.d_head
    mlp = 2 * decoder.mlp_products() * shape.d_model * shape.d_mlp
    runs, flops = 0, 0.0
    for group in groups:
        scores = 4 * shape.n_heads * shape.d_head * group.length
        for j in group.elements:
            layer, half = elements[j].joins(shape) if elements[j].edits else (0, 0)
            runs += len(group.examples)
            rest = 0.0
            if half and layer < last + 1:
                inside = 0 if half == MLP or shape.parallel else mlp
                rest, layer = (group.n_read if layer == last else group.n_tokens) * inside, layer + 1
            if layer <= last:
                rest += (last - layer) * group.n_tokens * (block + scores)
                rest += group.n_tokens * kv + group.n_read * (block - kv + scores)
            flops += rest
    return RunCost(runs=runs, walks=1, token_layers=flops / block, flops=flops)
