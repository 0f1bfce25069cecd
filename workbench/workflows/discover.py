"""The main job in one call: a circuit that may be believed, with what speaks for and against it, or a plain no.

    1. Can the model do the task?            measure        on the prompts to find with
    2. How much does each edge matter?       score_edges    on the same, against every counterfactual
    3. Which size keeps the criteria?        by_criteria    on the prompts to select with
    4. How far can the circuit be trusted?   evaluate, ...  on the prompts to test with

`discover` is the call, `DiscoveryRun` (in `discovery_run`) what it returns; `discover_page` makes the
report's sections, `summary` the numbers by name.
"""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from workbench import results
from workbench.arguments import checked
from workbench.circuit.graph import Graph
from workbench.discovery.believable import REFINEMENTS
from workbench.discovery.criteria import Criteria
from workbench.discovery.methods import METHODS
from workbench.engine.named_values import canonical_name
from workbench.errors import CircuitError, UnknownName
from workbench.files import check_output, replaced
from workbench.metrics.metric import Metric
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.names import MetricName, SearchMethod
from workbench.progress import progress_bar
from workbench.prompts.pairs import PromptPairs
from workbench.render.page import Lead
from workbench.render.report import report
from workbench.tasks.registry import PAIR_READERS, load_task
from workbench.tasks.task import find_task
from workbench.workflows.discover_cost import DiscoverCost, cost_of
from workbench.workflows.discover_lead import lead_of
from workbench.workflows.discover_page import sections_of
from workbench.workflows.discovery_job import FEW, STEPS, DiscoveryJob
from workbench.workflows.discovery_run import DiscoveryRun
from workbench.workflows.prompt_sets import PromptSets
from workbench.workflows.summary import summary_text
from workbench.workflows.verdict import title_of

FILES = (
    "circuit.json", "summary.json", "effects.nc", "lens.nc", "edges.parquet", "frontier.nc", "evaluation.nc",
    "controls.nc", "stability.nc", "agreement.nc", "multiverse.nc", "report.html",
)  # fmt: skip
# The values of `named_values.NAMES` for edges of the clean run that need no draw (`resample`), no number
# (`constant:X`, `scale:X`) and no fit (`optimal`); without `clean`, which is the run that is edited.
VALUES = ("corrupt", "zero", "mean")
"""What can stand in for everything outside the circuit."""
log = logging.getLogger(__name__)
Refine = Literal["prune"] | str | None


@checked
@model_call()
def discover(
    model: Model,
    task: str | Path | PromptPairs,
    *,
    out: str | Path,
    n: int | None = None,
    seed: int = 0,
    variant: str | None = None,
    metric: MetricName | Metric | None = None,
    value: Literal["corrupt", "zero", "mean"] | str = "corrupt",
    method: SearchMethod = "eap-ig-inputs",
    n_edges: int | None = None,
    criteria: Criteria | None = None,
    refine: Refine = "prune",
    quick: bool = False,
    multiverse: bool = False,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DiscoveryRun:
    """Find a circuit that reproduces the model, or say that there is none, and write everything to a folder.

    Scores are made on one set of prompts, the size is chosen on a second by `Criteria` that must hold against
    every counterfactual, and the numbers that are reported are those of a third.

    Args:
        task: a task's name, or pairs of your own or their file: a quarter to find with, a quarter to select with, half to
            test with, and no prompt in two of them.
        out: folder for the files of `FILES`.
        n: pairs to find with; as many choose the size and twice as many test. Of pairs of your own it is an
            upper limit. None takes 64 pairs of a task, and all pairs of your own.
        seed: of the prompts, of intervals and draws.
        variant: the one kind of corruption; None takes every counterfactual that the task has.
        metric: None takes the task's own.
        value: what stands in for everything outside the circuit: "corrupt" (every counterfactual), "zero", or
            "mean".
        method: how edges are scored: a method of `score_edges`; or "acdc", "learn-edges", "learn-nodes", which
            decide the circuit by themselves, against the first counterfactual.
        n_edges: the size before pruning, instead of the smallest that keeps the criteria.
        criteria: None takes the bounds of `Criteria`.
        refine: "prune" leaves out edges as long as the criteria hold; None does not.
        quick: 16 pairs to find with, one counterfactual, no controls and no resamples: a first look.
        multiverse: also the specification curve: the edges that are found whatever values, metric, method and
            prompts are chosen; 16 times the scores.
        command: shown in the report.

    Returns:
        Everything that was measured, and the folder. `recommended` is False where no circuit keeps the
        criteria: that is a result too.

    Raises:
        OutputExists: the folder holds a run; nothing is touched.
        UnknownName: no such task, variant, metric, value or method; nothing is written, as for all errors
            below.
        PromptError: prompts of unequal length within a pair, the same on both sides, or too few of them.
        CircuitError: more edges than the model has.
        MetricError: a metric that does not fit the prompts, or that nothing changes.

    >>> import workbench as wb
    >>> run = wb.discover(wb.load_model("tiny"), "ioi", out="runs/ioi")  # doctest: +SKIP
    >>> run.report  # doctest: +SKIP
    PosixPath('runs/ioi/report.html')
    """
    out = Path(out)
    # Everything that can be refused is refused before minutes of work.
    check_output(out, FILES, overwrite=overwrite)
    job = _job(
        model, task, n=n, seed=seed, variant=variant, metric=metric, value=value, method=method,
        n_edges=n_edges, criteria=criteria, refine=refine, quick=quick, multiverse=multiverse,
        progress=progress,
    )  # fmt: skip
    sets = job.sets
    with progress_bar(len(STEPS), "discover", "step", shown=progress) as bar:

        def step(doing: str) -> None:
            # A step is counted when it begins, so that the bar names what is running.
            bar.set_postfix_str(doing)
            log.info("%s", doing)
            bar.update()

        run = job.run(out, step)
        step("report")
        lens = job.lens()
        sections = sections_of(run, sets, lens, job.value)
        _write(run, lens, sections, lead_of(run, sets), command, overwrite)
    return run


@checked
@model_call()
def discover_cost(
    model: Model,
    task: str | Path | PromptPairs,
    *,
    n: int | None = None,
    variant: str | None = None,
    metric: MetricName | Metric | None = None,
    value: Literal["corrupt", "zero", "mean"] | str = "corrupt",
    criteria: Criteria | None = None,
    refine: Refine = "prune",
    quick: bool = False,
) -> DiscoverCost:
    """What `discover` with these arguments will cost, in seconds, from trial runs on a few prompts.

    Raises: as `discover`.

    >>> import workbench as wb
    >>> cost = wb.discover_cost(wb.load_model("tiny"), "ioi", n=8, quick=True)
    >>> list(cost.steps)
    ['scores', 'size', 'test', 'heads']
    """
    job = _job(
        model, task, n=n, seed=0, variant=variant, metric=metric, value=value, method="eap-ig-inputs",
        n_edges=None, criteria=criteria, refine=refine, quick=quick, multiverse=False, progress=False,
    )  # fmt: skip
    return cost_of(job)


def _job(
    model: Model,
    task: str | Path | PromptPairs,
    *,
    n: int | None,
    seed: int,
    variant: str | None,
    metric: str | Metric | None,
    value: str,
    method: str,
    n_edges: int | None,
    criteria: Criteria | None,
    refine: Refine,
    quick: bool,
    multiverse: bool,
    progress: bool,
) -> DiscoveryJob:
    """The measurements that the arguments ask for. Raises for what cannot be measured."""
    value = canonical_name(value, choices=VALUES)
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    if refine is not None and refine not in REFINEMENTS:
        raise UnknownName("refine", refine, REFINEMENTS)
    graph = Graph.of(model)
    if n_edges is not None and not 0 < n_edges <= graph.n_edges:
        raise CircuitError(
            f"discover: n_edges={n_edges}; a circuit of this model has 1 to {graph.n_edges} edges."
        )
    sets = _prompt_sets(model, task, n, seed, variant, metric, quick)
    return DiscoveryJob(
        sets, criteria or Criteria(), value, method, n_edges, refine, quick=quick, multiverse=multiverse,
        seed=seed, progress=progress,
    )  # fmt: skip


def _prompt_sets(
    model: Model,
    task: str | Path | PromptPairs,
    n: int | None,
    seed: int,
    variant: str | None,
    metric: str | Metric | None,
    quick: bool,
) -> PromptSets:
    """The three sets of prompts; `quick` takes few, with the first counterfactual alone."""
    if quick and n is None:
        n = FEW
    if not isinstance(task, PromptPairs):
        is_file = Path(task).suffix.lower() in PAIR_READERS
        task = load_task(task, model) if is_file else str(task)
    if isinstance(task, PromptPairs):
        if quick:
            task = task.against(task.counterfactual)
    elif quick and variant is None:
        variant = find_task(task).counterfactuals[0]
    return PromptSets.of(model, task, n=n, seed=seed, variant=variant, metric=metric)


def _write(
    run: DiscoveryRun,
    lens: xr.DataArray | None,
    sections: list[tuple[Any, ...]],
    lead: Lead,
    command: str | None,
    overwrite: bool,
) -> None:
    """Everything that a run leaves in its folder."""
    # All files or none: a reader never finds a report beside the circuit of an earlier run.
    with replaced(run.folder, FILES, overwrite=overwrite) as partial:
        run.circuit.save(partial / "circuit.json")
        (partial / "summary.json").write_text(summary_text(run), encoding="utf-8")
        measured = xr.Dataset({"heads_zeroed": run.heads})
        if run.patching is not None:
            measured["resid_pre_denoised"] = run.patching
        results.save(measured, partial / "effects.nc")
        results.save(run.evaluation, partial / "evaluation.nc")
        if lens is not None:
            results.save(lens, partial / "lens.nc")
        for name in ("frontier", "controls", "stability", "agreement", "multiverse"):
            measured = getattr(run, name)
            if measured is not None:
                results.save(measured, partial / f"{name}.nc")
        edges_frame(run).to_parquet(partial / "edges.parquet")
        report(sections, partial / "report.html", title=title_of(run), lead=lead, command=command)


def edges_frame(run: DiscoveryRun) -> pd.DataFrame:
    """A table with one row per edge, the largest scores first.

    Columns: `edge writer reader`, `score` (joined over counterfactuals and prompts, positive supports),
    `in_circuit`, and `in_core` where there is a core.
    """
    circuit = run.circuit
    cells = np.argwhere(circuit.graph.exists)
    writers, readers = np.asarray(circuit.graph.writers), np.asarray(circuit.graph.readers)
    frame = pd.DataFrame({"writer": writers[cells[:, 0]], "reader": readers[cells[:, 1]]})
    frame.insert(0, "edge", frame["writer"] + "->" + frame["reader"])
    at = tuple(cells.T)
    frame["score"] = run.scores.values[at]
    frame["in_circuit"] = circuit.edges[at]
    if "core" in run.circuits:
        frame["in_core"] = run.circuits["core"].edges[at]
    # Sorting is stable, so that edges of equal score keep graph order in every run.
    order = np.argsort(-frame["score"].abs().to_numpy(), kind="stable")
    return frame.iloc[order].reset_index(drop=True)
