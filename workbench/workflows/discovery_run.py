"""`DiscoveryRun`: what `discover` measured, by name. `discover` makes it, `discover_page` draws it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.discovery.criteria import Criteria
from workbench.render.cards.card import Card
from workbench.tasks.measure import Score
from workbench.text import wrapped

SHOWN = ("faithfulness", "low", "high", "error", "r", "kl_recovered", "answers_kept")
"""Columns of the table that a run shows of itself."""
MOST_LINES = 10
"""Lines of text that a run tells of itself."""


@dataclass(frozen=True, eq=False)
class DiscoveryRun:
    """What `discover` measured, and where it was written.

    Attributes:
        circuit: the recommended one; where none keeps the criteria, the best trade-off up to their largest
            size.
        recommended: whether the circuit keeps the criteria on the prompts that chose it; False also where
            nothing chose it by them.
        chosen_by: what decided the size: "criteria", "size" (a number of edges that was given), or "method"
            (one that decides it by itself).
        criteria: its bounds.
        competence: how well the model does the task, on the prompts to find with.
        scores: of every edge, on the same, joined over counterfactuals and prompts.
        frontier: the measures by size, on the prompts to select with (ablation, size), with attrs["chosen"],
            the circuit's number of edges; None for methods that decide the size themselves.
        evaluation: every circuit of `circuits` on the test prompts (ablation, circuit), as `evaluate`; the
            ablations are the counterfactuals and, where they were not the value itself, "zero" and "mean".
        competent: the same on those test prompts that the model gets right; None where these are all.
        checks: the further checks of the circuit against its first counterfactual; None where they were not
            made.
        in_sample: the circuit on the prompts to find with, (ablation, circuit).
        circuits: name → circuit: "circuit"; "before refining"; "core"; "difference NAME" for each single
            counterfactual.
        heads: the effect of ablating each head, on test prompts.
        patching: the effect of patching the clean residual stream into the corrupt run, on test prompts.
        controls, stability, agreement, multiverse: as the functions of `evaluation`; None where not made.
        left_out: name of a section → why it could not be made.
        folder: where the files are.
        intervals: of the scores over prompts; None for methods that do not score single prompts.
    """

    circuit: Circuit
    recommended: bool
    criteria: Criteria
    competence: Score
    scores: xr.DataArray
    frontier: xr.Dataset | None
    evaluation: xr.Dataset
    in_sample: xr.Dataset
    circuits: Mapping[str, Circuit]
    heads: xr.DataArray
    patching: xr.DataArray | None
    folder: Path
    competent: xr.Dataset | None = None
    checks: xr.Dataset | None = None
    controls: xr.Dataset | None = None
    stability: xr.Dataset | None = None
    agreement: xr.Dataset | None = None
    multiverse: xr.Dataset | None = None
    intervals: xr.Dataset | None = None
    chosen_by: Literal["criteria", "size", "method"] = "criteria"
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The title, what was found in sentences, and the path of the report: at most twelve lines."""
        from workbench.workflows.verdict import headline, title_of  # which read runs

        lines = wrapped(f"{title_of(self)}. {headline(self)}").splitlines()
        if len(lines) > MOST_LINES:
            lines = [*lines[:MOST_LINES], "  ..."]
        return "\n".join([*lines, f"report: {self.report}"])

    def _repr_html_(self) -> str:
        """The title and the sentences, the test beside the model, and the circuit as it draws itself."""
        from workbench.workflows.verdict import headline, title_of

        cells = self.evaluation.sel(circuit="circuit")
        rows = pd.DataFrame({name: cells[name].values for name in ("ablation", *SHOWN)})
        return Card(f"{title_of(self)}. {headline(self)}", rows, self.circuit._repr_html_).html()

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    @property
    def counterfactuals(self) -> tuple[str, ...]:
        """The names of what the criteria were held to."""
        return tuple(str(name) for name in self.in_sample["ablation"].values)
