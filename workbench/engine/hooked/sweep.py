"""`HookedSweep`: many edited runs as full forward passes with hooks, several of them in each.

It gives the same table as the fast engine's sweep, for any model and any site. It knows nothing of what the
edits mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.fast.cohorts import Element
from workbench.engine.hooked.forward import forward
from workbench.engine.run import Edit
from workbench.engine.runs import ElementsOf, MeasuredRuns, RunCost, forward_flops
from workbench.errors import NotFinite
from workbench.models.model import Model
from workbench.progress import progress_bar
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Shape, Site


@dataclass(frozen=True)
class HookedSweep:
    """Edited runs on hooks.

    Attributes:
        elements_of: the edited runs of a batch.
        n_elements: how many there are, and so columns in the table.
    """

    runs: MeasuredRuns
    elements_of: ElementsOf
    n_elements: int
    engine = "reference"

    def cost(self) -> RunCost:
        """What `run` will take."""
        tokens, shape = self.runs.prompts.tokens.numel(), Shape.of(self.runs.model)
        n = self.n_elements + 1  # one more, for the base run
        # The budget is what `per_forward` rows take; fewer take their share of it.
        per_row = self.runs.memory // self.runs.per_forward
        rows = min(self.runs.per_forward, n * len(self.runs.prompts))
        runs = self.n_elements * len(self.runs.prompts)
        token_layers, flops = tokens * shape.n_layers * n, tokens * forward_flops(shape) * n
        return RunCost(runs, 0, n, float(token_layers), float(flops), per_row * rows)

    def run(self, *, progress: bool, what: str) -> Tensor:
        """[example, element]: m(edited) - m(base), exactly 0 where every edit writes what is there.

        Args:
            what: the name of the progress bar.
        """
        runs, n = self.runs, len(self.runs.prompts)
        table = torch.zeros((n, self.n_elements), dtype=torch.float64)
        with progress_bar(table.numel(), what, "run", shown=progress) as bar:
            for examples in runs.batches():
                prompts, elements = runs.prompts.select(examples), self.elements_of(examples)
                base_run = _BaseRun(runs.model, prompts)
                per_pass = max(1, runs.per_forward // len(prompts))
                waiting: list[int] = []
                for j, element in enumerate(elements):
                    # Not run at all, because the same numbers in a larger batch may differ in their last bit.
                    if not all(base_run.unchanged(site, bound) for site, bound in element.edits):
                        waiting.append(j)
                    if waiting and (len(waiting) == per_pass or j == len(elements) - 1):
                        effects = self._edited(elements, waiting, prompts, examples)
                        table[examples.start : examples.stop, waiting] = effects.to(table)
                        waiting = []
                    bar.update(len(prompts))
        return table if runs.measured.dtype == torch.float64 else table.float()

    def _edited(
        self,
        elements: Sequence[Element],
        columns: Sequence[int],
        prompts: Prompts,
        examples: Sequence[int],
    ) -> Tensor:
        """[example, column] of some of the elements, whose runs share one forward pass."""
        n, causal = len(prompts), Shape.of(self.runs.model).causal
        writes = []
        for k, element in enumerate(elements[j] for j in columns):
            rows = slice(k * n, (k + 1) * n)  # each element edits a copy of the batch of its own
            writes += [Edit(site, bound, rows, causal).write() for site, bound in element.edits]
        logits = self.runs.logits(prompts, len(columns), writes)
        base = self.runs.measured[list(examples)][:, None]
        measured = []
        for j, of_element in zip(columns, logits.split(n), strict=True):
            try:
                measured.append(self.runs.measure(of_element, prompts, examples))
            except NotFinite as error:
                error.run = j
                raise
        return torch.stack(measured, 1) - base


class _BaseRun:
    """Activations of the base run of a batch; those of the last (kind, layer) asked for are kept."""

    def __init__(self, model: Model, prompts: Prompts) -> None:
        self.model, self.prompts = model, prompts
        self.kept: dict[Key, Tensor] = {}  # of one key: all of them would not fit

    def unchanged(self, site: Site, bound: Bound) -> bool:
        """Whether an edit writes, bit by bit, what is there already in every example."""
        if site.key not in self.kept:
            self.kept = dict(forward(self.model, self.prompts, record=[site.key]).recorded)
        before = self.kept[site.key]
        after = Edit(site, bound, causal=Shape.of(self.model).causal).write().change(before.clone())
        if site.kind == "pattern":
            return bool(torch.equal(before, after))
        # Padding may differ: nothing that is measured reads it.
        inside = (torch.arange(before.shape[1]) < self.prompts.lengths[:, None]).to(before.device)
        return bool(torch.equal(before[inside], after[inside]))
