"""The same work as `sweep` on the reference path: full forward passes with hooks, several edited runs in each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.engine.bound import Bound
from workbench.engine.fast.cohorts import Element
from workbench.engine.hooked.forward import forward
from workbench.engine.run import Edit
from workbench.engine.runs import ElementsOf, MeasuredRuns, RunCost, forward_flops
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Shape, Site


@dataclass(frozen=True)
class HookedSweep:
    """Edited runs on the reference path.

    Attributes:
        elements_of: the edited runs of a batch.
    """

    runs: MeasuredRuns
    elements_of: ElementsOf
    n_elements: int
    engine = "reference"

    def cost(self) -> RunCost:
        """What `run` will take."""
        tokens, shape = self.runs.prompts.tokens.numel(), Shape.of(self.runs.model)
        n = self.n_elements + 1
        per_row = self.runs.memory // self.runs.per_forward
        rows = min(self.runs.per_forward, n * len(self.runs.prompts))
        runs = self.n_elements * len(self.runs.prompts)
        return RunCost(
            runs,
            0,
            n,
            float(tokens * shape.n_layers * n),
            float(tokens * forward_flops(shape) * n),
            per_row * rows,
        )

    def run(self, *, progress: bool, what: str) -> Tensor:
        """[example, element]: m(edited) - m(base), exactly 0 where every edit writes what is there."""
        runs, n = self.runs, len(self.runs.prompts)
        table = torch.zeros((n, self.n_elements), dtype=torch.float64)
        with tqdm(
            total=table.numel(), desc=what, unit="run", disable=None if progress else True, leave=False
        ) as bar:
            for examples in runs.batches():
                part, elements = runs.prompts.select(examples), self.elements_of(examples)
                held = _BaseRun(runs.model, part)
                together = max(1, runs.per_forward // len(part))
                waiting: list[int] = []
                for j, element in enumerate(elements):
                    if not all(held.unchanged(site, bound) for site, bound in element.edits):
                        waiting.append(j)
                    if waiting and (len(waiting) == together or j == len(elements) - 1):
                        chosen = [elements[k] for k in waiting]
                        table[examples.start : examples.stop, waiting] = self._edited(
                            chosen, part, examples
                        ).to(table)
                        waiting = []
                    bar.update(len(part))
        return table if runs.measured.dtype == torch.float64 else table.float()

    def _edited(self, elements: Sequence[Element], prompts: Prompts, examples: Sequence[int]) -> Tensor:
        """[example, element] of runs that share one forward pass."""
        n, causal = len(prompts), Shape.of(self.runs.model).causal
        placed = (
            (slice(k * n, (k + 1) * n), edit) for k, element in enumerate(elements) for edit in element.edits
        )
        writes = [Edit(site, bound, rows, causal).write() for rows, (site, bound) in placed]
        logits = self.runs.logits(prompts, len(elements), writes)
        measured = [self.runs.measure(one, prompts, examples) for one in logits.split(n)]
        return torch.stack(measured, 1) - self.runs.measured[list(examples)][:, None]


class _BaseRun:
    """Activations of the unedited run of a batch; those of the last (kind, layer) asked for are kept."""

    def __init__(self, model: Any, prompts: Prompts) -> None:
        self.model, self.prompts = model, prompts
        self.held: dict[Key, Tensor] = {}

    def unchanged(self, site: Site, bound: Bound) -> bool:
        """Whether an edit writes, bit by bit, what is there already in every example."""
        if site.key not in self.held:
            self.held = {
                site.key: forward(self.model, self.prompts.tokens, record=[site.key]).recorded[site.key]
            }
        before = self.held[site.key]
        after = Edit(site, bound, causal=Shape.of(self.model).causal).write().change(before.clone())
        if site.kind == "pattern":
            return bool(torch.equal(before, after))
        inside = (torch.arange(before.shape[1]) < self.prompts.lengths[:, None]).to(before.device)
        return bool(torch.equal(before[inside], after[inside]))
