"""What the jobs of one setting work with, `JobContext`, and what each gives back, `Measurement`.

The model, prompts and stores behind a context are kept by `inputs`. Which studies there are is not known
here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from workbench.engine.named_values import make_value
from workbench.engine.runs import MeasuredRuns
from workbench.engine.values import Value
from workbench.interventions.site_values import optimal
from workbench.metrics.continuations import expand
from workbench.metrics.metric import Metric
from workbench.models.model import Model
from workbench.names import SIDES
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Site
from workbench.sweeps.inputs import JobInputs, JobSetting, metric_of


@dataclass(frozen=True)
class Measurement:
    """The numbers of one job, as its row in the log holds them.

    Attributes:
        values: [example], m(edited) - m(base); empty for circuits.
        m_base: [example], the metric of the base run.
        extra: what a study reports besides: a faithfulness, the steps of a cumulative ablation, edges.
    """

    values: list[float]
    m_base: list[float]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobContext:
    """Everything that the jobs of a setting work with."""

    inputs: JobInputs
    setting: JobSetting

    @property
    def metric(self) -> Metric:
        """The metric that is measured."""
        return metric_of(self.setting.metric, self.pairs)

    @property
    def model(self) -> Model:
        """The model that is run."""
        return self.inputs.model(self.setting)

    @property
    def pairs(self) -> PromptPairs:
        """The prompts."""
        return self.inputs.pairs(self.setting)

    @property
    def heldout(self) -> "JobContext":
        """The same with the prompts of the other split."""
        split = {"train": "heldout", "heldout": "train"}[self.setting.split]
        return JobContext(self.inputs, replace(self.setting, split=split))

    def base(self) -> list[float]:
        """[example]: the metric of the run that is edited."""
        rows = expand(self.model, self.pairs, self.metric)
        runs = MeasuredRuns(self.model, rows.pairs, self.setting.base, rows.metric)
        return rows.combine(runs.measured.cpu().to(torch.float64)).tolist()

    def value(self, sites: Sequence[Site] = ()) -> Value:
        """What is written at the sites; `optimal` is fitted to each of them."""
        setting = self.setting

        def fitted() -> Value:
            """The optimal constants of the sites."""
            return optimal(self.model, self.pairs, sites, metric=self.metric, base=setting.base)

        return make_value(
            setting.value,
            base=setting.base,
            store_of=lambda side: self.inputs.stores(setting, sites)[SIDES.index(side)],
            seed=setting.seed,
            optimal=fitted,
        )
