"""`explain`: what a call of `effects` or `path_effects` will run and cost, before it is made.

Nothing is measured here: the plan comes from the sweep that the call itself would run.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from workbench.arguments import checked
from workbench.engine.given_values import GivenValue
from workbench.engine.runs import MeasuredRuns
from workbench.engine.select import CallPlan
from workbench.interventions.effects import Sites, explain_effects
from workbench.interventions.paths import Nodes, explain_paths
from workbench.metrics.continuations import expand
from workbench.metrics.metric import GivenMetric, metric_for
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs


@checked
@model_call()
def explain(
    model: Model,
    pairs: PromptPairs,
    *,
    value: GivenValue | None = None,
    sites: Sites | None = None,
    senders: Nodes | None = None,
    receivers: Nodes | None = None,
    paths: str | Sequence[str] | None = None,
    mlps: Literal["frozen", "recomputed"] | str = "frozen",
    metric: GivenMetric | None = None,
    base: Literal["clean", "corrupt"] | str = "clean",
    budget: int | None = None,
    readout: torch.dtype | None = None,
) -> CallPlan:
    """The plan of `effects(..., sites=)`; without sites, of `path_effects(senders=, receivers=, paths=)`.

    It says which engine takes the call and why, how many edited prompts are run and how many skipped as
    provably zero, the FLOPs and token-layers of it, and the peak memory under the budget. Nothing is run
    but a forward pass that is timed, what makes a value that is given by name, and the check that the fast engine
    makes when a model is first used.

    Raises:
        WorkbenchError: what the call itself raises.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> wb.explain(model, pairs, sites="heads", value="zero").path
    'staircase'
    """
    # Answers of several tokens are runs of their own, and their cost is that of these rows.
    measure = metric_for(metric, pairs)
    rows = expand(model, pairs, measure)
    runs = MeasuredRuns(model, rows.pairs, base, rows.metric, budget, readout)
    # Without sites it is a call of `path_effects`, all of whose nodes may be left out.
    if sites is not None:
        return explain_effects(runs, rows, sites, value, measure)
    return explain_paths(runs, rows, senders, receivers, paths, value, mlps)
