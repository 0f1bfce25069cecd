"""The main job in one call: find a behaviour's circuit, measure how far it can be trusted, write a report.

`discover` is the call, `DiscoveryRun` (in `discovery_run`) what it returns; `discover_page` makes the
report's sections.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench import results
from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.methods import METHODS, find_by
from workbench.engine.named_values import canonical_name
from workbench.engine.values import from_store, zero
from workbench.errors import CircuitError, MetricError, UnknownName
from workbench.evaluation.checks import RANDOM_CIRCUITS
from workbench.evaluation.curves import faithfulness_curve
from workbench.evaluation.evaluate import evaluate
from workbench.experiment import Experiment, PairsInModel
from workbench.files import check_output, replaced
from workbench.interventions.effects import effects
from workbench.lenses.logit_lens import logit_lens
from workbench.metrics.metric import Metric
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.render.report import report
from workbench.sites import grid
from workbench.statistics import summary
from workbench.text import progress_bar
from workbench.workflows.discover_page import sections_of
from workbench.workflows.discovery_run import DiscoveryRun

FILES = ("circuit.json", "effects.nc", "lens.nc", "edges.parquet", "faithfulness.nc", "report.html")
# The values of `named_values.NAMES` for edges of the clean run that need no draw (`resample`), no number
# (`constant:X`, `scale:X`) and no fit (`optimal`); without `clean`, which is the run that is edited.
VALUES = ("corrupt", "zero", "mean")
"""What can stand in for everything outside the circuit."""


@checked
@model_call()
def discover(
    model: Model,
    task: str | PromptPairs,
    *,
    out: str | Path,
    n: int | None = None,
    seed: int = 0,
    variant: str | None = None,
    metric: str | Metric | None = None,
    value: str = "corrupt",
    method: str = "eap",
    n_edges: int | None = None,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DiscoveryRun:
    """Find a circuit on training prompts, test it on held-out ones, and write everything to a folder.

    Args:
        task: a task's name, or pairs of your own, which are split into two halves that share no prompt.
        out: folder for `circuit.json`, `effects.nc`, `lens.nc`, `edges.parquet`, `faithfulness.nc`,
            `report.html`.
        n: pairs of a task to find it on, and as many to test it on; None takes 64.
        seed: of the prompts.
        variant: the task's kind of corruption; None takes its first.
        metric: None takes the task's own.
        method: how the circuit is found: a method of `score_edges`, "acdc", "learn-edges" or "learn-nodes".
        value: what stands in for everything outside the circuit: the corrupt run ("corrupt"), "zero", or
            "mean".
        n_edges: size before pruning; None takes 2 % of the graph. ACDC decides the size itself.
        command: shown in the report.

    Returns:
        Everything that was measured, and the folder.

    Raises:
        OutputExists: the folder holds a run; nothing is touched.
        UnknownName: no such task, variant, metric, value or method; nothing is written, as for all errors
            below.
        PromptError: prompts of unequal length within a pair, or too few of them.
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
    value = canonical_name(value, choices=VALUES)
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    edges = Graph.of(model).n_edges
    if n_edges is not None and not 0 < n_edges <= edges:
        raise CircuitError(f"discover: n_edges={n_edges}; a circuit of this model has 1 to {edges} edges.")
    if isinstance(task, PromptPairs):
        task.check_equal_lengths(
            "Edges and circuits need equal lengths within a pair; row 1 of a file is pair 0."
        )
    experiment = Experiment.of(model, task, n=n, seed=seed, variant=variant, metric=metric)
    train, heldout = experiment.train, experiment.heldout
    with progress_bar(6, "discover", "step", shown=progress) as bar:

        def step(doing: str) -> None:
            bar.set_postfix_str(doing)
            bar.update()

        # A step is counted when it begins, so that the bar names what is running.
        step("heads")
        heads = effects(
            model, heldout.pairs, sites=grid("z", model), value=zero(), metric=heldout.metric, progress=False
        )
        step("patching")
        patching = _patching(heldout)
        step("edges")
        discovery = find_by(
            method,
            model,
            train.pairs,
            value=train.value(value),
            metric=train.metric,
            n_edges=n_edges,
            by_example=True,
            seed=seed,
            progress=progress,
        )
        scores, circuit = discovery.scores, discovery.circuit
        step("circuit")
        evaluation = _evaluations(circuit, experiment, value)
        if not np.isfinite(float(evaluation["faithfulness"].sel(circuit="held-out"))):
            raise MetricError(
                f"On the held-out prompts {heldout.metric.name} is the same in the clean run and with every "
                "edge replaced, so there is no effect to explain. Check the prompts, the answers and the "
                "metric."
            )
        step("curves")
        curve = _curve(scores, heldout, value)
        # Only edges with scores can be added one by one, strongest first.
        grown = intervals = None
        if circuit.n_edges > 0 and circuit.scores is not None:
            grown = _curve(circuit, heldout, value)
        # Methods that do not score single prompts have no intervals over prompts.
        if discovery.by_example is not None:
            intervals = summary(discovery.by_example, draws=200)
        step("report")
        run = DiscoveryRun(circuit, scores, heads, patching, evaluation, curve, out, intervals, grown)
        lens = logit_lens(heldout.clean, model, targets=heldout.pairs.answers, minus=heldout.pairs.wrong)
        _write(run, lens, sections_of(run, heldout, lens, value), command, overwrite)
    return run


def _patching(heldout: PairsInModel) -> xr.DataArray:
    """The clean residual stream patched into the corrupt run, at each position that all prompts name."""
    # A position that some prompt lacks would be NaN for it and bias the mean.
    names = [name for name, index in heldout.pairs.clean.positions.items() if bool((index >= 0).all())]
    return effects(
        heldout.model,
        heldout.pairs,
        sites=grid("resid_pre", heldout.model, pos=names),
        value=from_store(heldout.clean),
        base="corrupt",
        metric=heldout.metric,
        progress=False,
    )


def _curve(ranking: xr.DataArray | Circuit, heldout: PairsInModel, value: str) -> xr.Dataset:
    """Faithfulness of the best edges by number, on held-out pairs."""
    return faithfulness_curve(
        ranking,
        heldout.model,
        heldout.pairs,
        value=heldout.value(value),
        metric=heldout.metric,
        progress=False,
    )


def _evaluations(circuit: Circuit, experiment: Experiment, value: str) -> xr.Dataset:
    """The circuit on held-out and training prompts, its complement, and random circuits of its size."""
    heldout, train = experiment.heldout, experiment.train
    checked = evaluate(
        circuit,
        heldout.model,
        heldout.pairs,
        value=heldout.value(value),
        metric=heldout.metric,
        progress=False,
    )
    in_sample = evaluate(
        circuit,
        train.model,
        train.pairs,
        value=train.value(value),
        metric=train.metric,
        checks=(),
        progress=False,
    )
    best = checked.isel(circuit=0)
    rows = {"held-out": best, "in-sample": in_sample.isel(circuit=0)}
    fields = ("faithfulness", "low", "high", "mean_of_ratios", "n_edges", "in_sample")
    # Four rows of different checks become one table, which the report and `circuit=` select from.
    columns = {field: [float(row[field]) for row in rows.values()] for field in fields}
    controls = {
        "complement, held-out": ("complement", circuit.graph.n_edges - circuit.n_edges),
        f"{RANDOM_CIRCUITS} random circuits": ("random", circuit.n_requested),
    }
    for name, edges in controls.values():
        kept = [float(best[f"{name}{end}"]) for end in ("", "_low", "_high")]
        # Controls have no mean of ratios, and none of their prompts was used to find them.
        for field, number in zip(fields, (*kept, float("nan"), edges, 0.0), strict=True):
            columns[field].append(number)
    data = {field: ("circuit", numbers) for field, numbers in columns.items()}
    attrs: dict[str, Any] = {}
    # Of the circuit alone, so they have no cell in the rows of its controls.
    for name in ("incompleteness", "incompleteness_low", "incompleteness_high", "minimal"):
        attrs[name] = float(best[name])
    for name in ("incompleteness_set", "unneeded"):
        attrs[name] = str(best[name].values)
    return xr.Dataset(data, coords={"circuit": [*rows, *controls]}, attrs=checked.attrs | attrs)


def _write(
    run: DiscoveryRun,
    lens: xr.DataArray,
    sections: list[tuple[Any, ...]],
    command: str | None,
    overwrite: bool,
) -> None:
    """Everything that a run leaves in its folder."""
    # All files or none: a reader never finds a report beside the circuit of an earlier run.
    with replaced(run.folder, FILES, overwrite=overwrite) as partial:
        run.circuit.save(partial / "circuit.json")
        both = xr.Dataset({"heads_zeroed": run.heads, "resid_pre_denoised": run.patching})
        results.save(both, partial / "effects.nc")
        results.save(lens, partial / "lens.nc")
        results.save(run.curve, partial / "faithfulness.nc")
        edges_frame(run.scores, run.circuit).to_parquet(partial / "edges.parquet")
        task = run.heads.attrs.get("task", "own prompts")
        title = f"{task} in {run.heads.attrs['model']}"
        report(sections, partial / "report.html", title=title, command=command)


def edges_frame(scores: xr.DataArray, circuit: Circuit) -> pd.DataFrame:
    """A table with one row per edge: `edge writer reader score in_circuit`, strongest support first."""
    cells = np.argwhere(circuit.graph.exists)
    writers, readers = np.asarray(circuit.graph.writers), np.asarray(circuit.graph.readers)
    frame = pd.DataFrame({"writer": writers[cells[:, 0]], "reader": readers[cells[:, 1]]})
    frame.insert(0, "edge", frame["writer"] + "->" + frame["reader"])
    # Sorting is stable, so that edges of equal score keep graph order in every run.
    frame["score"] = scores.values[tuple(cells.T)]
    frame["in_circuit"] = circuit.edges[tuple(cells.T)]
    return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)
