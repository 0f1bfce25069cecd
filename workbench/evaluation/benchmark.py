"""The benchmark: every method on every model of known circuit, on the tasks of `tiny`, and on real models.

`bench_circuits` yields a `Row` for each; `by_construction` and `on_trained_models` sum them up.
Against known edges: both areas under the ROC curve and the precision at the true size, ranked by the size of
scores, on the edges that the kind of value can see. On trained models, whose true edges nobody knows:
how near the best tenth of the edges comes to the model prompt by prompt, and whether scores rank edges as their
exact effects do. Everywhere: CPR and CMD on held-out prompts, seconds, peak memory, passes.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import xarray as xr
from scipy.stats import spearmanr

from workbench.discovery.methods import METHODS, find_by
from workbench.discovery.score_arrays import graph_of, matrix_of
from workbench.discovery.search import find_circuit
from workbench.engine.values import Value
from workbench.errors import UnknownName, WorkbenchError, unwarned
from workbench.evaluation.benchmark_cases import FULL, QUICK, SLOW, Case, Extent, cases, known_models
from workbench.evaluation.curves import faithfulness_curve
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.ground_truth import edge_auroc, edge_auroc_mib, precision_at_true_size
from workbench.models.pinned import PINNED
from workbench.progress import progress_bar

LARGEST = 0.1
"""The share of the edges whose circuit is compared with the model prompt by prompt."""


@dataclass(frozen=True)
class Row:
    """One method on one model and task. What was not measured is NaN.

    Attributes:
        value: the patched value, "corrupt" or "zero"; the true edges are those that it can see.
        edge_auroc, edge_auroc_mib, precision: against known edges, scores ranked by size.
        cpr, cmd: on held-out prompts.
        faithfulness, error, r: on held-out prompts, of the tenth of the edges with the largest scores; as in
            `Resemblance`.
        noising, denoising: on trained models, Spearman's correlation of the sizes of scores with those of
            exact effects, over edges drawn at random (see `Case.exact`).
        seconds, peak_mb, forwards: of finding the scores; peak_mb is the growth of the process.
    """

    model: str
    task: str
    value: str
    method: str
    edge_auroc: float
    edge_auroc_mib: float
    precision: float
    cpr: float
    cmd: float
    faithfulness: float
    error: float
    r: float
    noising: float
    denoising: float
    seconds: float
    peak_mb: float
    forwards: int
    refusal: str = ""


def bench_circuits(
    *,
    quick: bool = False,
    methods: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Iterator[Row]:
    """Rows as they come.

    Args:
        quick: fewer prompts, the planted models with corrupt values only, and of `tiny` three tasks without
            the methods that try every edge; no real model unless it is named.
        methods, models: some of them; models are "tiny", "planted-NAME" and real models that `workbench models
            get` has brought, on which only methods run whose cost does not grow with the number of edges. None
            takes all.
        seed: of models, prompts and of what a method draws.

    Raises:
        UnknownName: a method or a model that does not exist.
    """
    chosen = list(METHODS) if methods is None else list(methods)
    there = known_models()
    wanted = (
        list(models) if models is not None else [name for name in there if not (quick and name in PINNED)]
    )
    for argument, names, known in (("methods", chosen, METHODS), ("models", wanted, there)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UnknownName(argument, unknown[0], known)
    extent = QUICK if quick else FULL
    every = list(cases(wanted, extent, seed))
    rows = [(case, method) for case in every for method in chosen if method in case.methods]
    with progress_bar(len(rows), "bench", "row", shown=progress) as bar:
        for case, method in rows:
            # On `tiny` the methods that try every edge take minutes a task.
            if not (quick and case.truth is None and method in SLOW):
                yield _row(case, method, extent, seed)
            bar.update()


def _row(case: Case, method: str, extent: Extent, seed: int) -> Row:
    """One method on one case; a method that refuses the case gives a row with its message."""
    train, heldout = case.train, case.heldout
    if method in SLOW and (extent.slow_prompts is not None or case.truth is None):
        train = train.select(range(min(extent.slow_prompts or SLOW[method], len(train))))
    not_measured = float("nan")
    own, held = train.value(case.value), heldout.value(case.value)
    steps = extent.training_steps if method.startswith("learn") else None
    # A refusal is a result too: atp-star, for one, does not run on every model.
    try:
        # What a row would be warned of, its numbers say.
        with unwarned(), _watched() as used:
            discovery = find_by(
                method,
                train.model,
                train.pairs,
                value=own,
                metric=train.metric,
                steps=steps,
                seed=seed,
                progress=False,
            )
    except WorkbenchError as error:
        return Row(
            case.name, case.task, case.value, method, *[not_measured] * 12, forwards=0, refusal=str(error)
        )

    def area(by: str) -> float:
        """CPR or CMD on held-out prompts."""
        curve = faithfulness_curve(
            discovery.scores, heldout.model, heldout.pairs, value=held, metric=heldout.metric, by=by,
            progress=False,
        )  # fmt: skip
        return float(curve.attrs["area"])

    auroc = auroc_mib = precision = not_measured
    beside = dict.fromkeys(("noising", "denoising"), not_measured)
    if case.truth is None:
        beside |= _agreement(case, discovery.scores)
    else:
        auroc = edge_auroc(discovery.scores, case.truth)
        auroc_mib = edge_auroc_mib(discovery.scores, case.truth)
        precision = precision_at_true_size(discovery.scores, case.truth)
    tenth = _tenth(case, discovery.scores, held)
    return Row(
        case.name, case.task, case.value, method, auroc, auroc_mib, precision, area("signed"),
        area("magnitude"), float(tenth["faithfulness"]), float(tenth["error"]), float(tenth["r"]),
        beside["noising"], beside["denoising"], used["seconds"], used["peak_mb"], discovery.forwards,
    )  # fmt: skip


def _tenth(case: Case, scores: xr.DataArray, value: Value) -> xr.Dataset:
    """The measures of the tenth of the edges with the largest scores, on held-out prompts."""
    held, graph = case.heldout, graph_of(scores)
    # Small planted graphs lose most of a tenth of their edges to dead ends: the numbers say so.
    with unwarned():
        circuit = find_circuit(scores, n_edges=max(1, int(LARGEST * graph.n_edges)))
    return evaluate(
        circuit, held.model, held.pairs, value=value, metric=held.metric, checks=(), progress=False
    ).squeeze(drop=True)


def _agreement(case: Case, scores: xr.DataArray) -> dict[str, float]:
    """Direction → Spearman's correlation of the sizes of scores and exact effects; NaN where either is constant."""
    sizes = np.abs(matrix_of(scores, graph_of(scores))[tuple(case.sample.T)])
    ranked = {}
    for direction, effects in case.exact.items():
        varied = np.ptp(sizes) > 0 and np.ptp(effects) > 0
        ranked[direction] = float(np.asarray(spearmanr(sizes, effects))[0]) if varied else float("nan")
    return ranked


@contextmanager
def _watched() -> Iterator[dict[str, float]]:
    """Seconds, and the largest growth of the process's memory, sampled every few milliseconds.

    By a thread, because the peak that the system keeps for a process never falls between two measurements.
    """
    # Resident memory and not what Python allocates: torch has its own allocator.
    process, used, done = psutil.Process(), {"seconds": 0.0, "peak_mb": 0.0}, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        """Keep the largest growth until it is told to stop."""
        while not done.wait(0.005):
            used["peak_mb"] = max(used["peak_mb"], (process.memory_info().rss - before) / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    start = time.perf_counter()
    thread.start()
    try:
        yield used
    finally:
        used["seconds"] = time.perf_counter() - start
        done.set()
        thread.join()


def json_line(row: Any) -> str:
    """A row as one JSON object; what was not measured is null."""
    return json.dumps({key: _for_json(value) for key, value in asdict(row).items()})


def _for_json(value: Any) -> Any:
    """Four digits of a number; null for NaN, which JSON does not have."""
    if not isinstance(value, float):
        return value
    return round(value, 4) if np.isfinite(value) else None


def by_construction(rows: Sequence[Row]) -> pd.DataFrame:
    """Each method over the planted models: mean and worst AUROC, mean precision, CPR and CMD, seconds in all."""
    lines = []
    for (value, method), group in _groups(rows, ["value", "method"], planted=True):
        ranked = group.dropna(subset=["edge_auroc"]).sort_values("edge_auroc", kind="stable")
        lines.append(
            {
                "value": value, "method": method, "models": len(group),
                "mean AUROC": group["edge_auroc"].mean(), "worst AUROC": group["edge_auroc"].min(),
                "worst on": "" if ranked.empty else ranked.iloc[0]["model"],
                "mean AUROC (MIB)": group["edge_auroc_mib"].mean(),
                "mean precision": group["precision"].mean(), "mean CPR": group["cpr"].mean(),
                "mean CMD": group["cmd"].mean(), "seconds": group["seconds"].sum(),
            }
        )  # fmt: skip
    return pd.DataFrame(lines).round(3)


def on_trained_models(rows: Sequence[Row]) -> pd.DataFrame:
    """Each method over the tasks of a trained model, where nobody knows the true edges.

    Means of CPR and CMD; of faithfulness, error and r, prompt by prompt, of the best tenth of the edges; and of
    the agreement with exact effects. Seconds in all.
    """
    means = {
        "cmd": "CMD", "error": "error at 10 %", "r": "r at 10 %", "faithfulness": "f at 10 %",
        "noising": "agreement, noising", "denoising": "agreement, denoising", "cpr": "CPR",
    }  # fmt: skip
    lines = []
    for (model, value, method), group in _groups(rows, ["model", "value", "method"], planted=False):
        line = {"model": model, "value": value, "method": method, "tasks": len(group)}
        line |= {label: group[name].mean() for name, label in means.items()}
        lines.append(line | {"seconds": group["seconds"].sum()})
    return pd.DataFrame(lines).round(3)


def _groups(
    rows: Sequence[Row], by: list[str], *, planted: bool
) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """The rows of planted or of trained models in groups, in the order in which they were measured."""
    frame = pd.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(Row)])
    is_planted = frame["model"].str.startswith("planted-")
    chosen = pd.DataFrame(frame[is_planted == planted])
    for key in dict.fromkeys(chosen[by].itertuples(index=False, name=None)):
        belongs = (chosen[by] == list(key)).all(axis=1)
        yield tuple(map(str, key)), pd.DataFrame(chosen[belongs])


def save_rows(rows: Sequence[Row], path: Path) -> None:
    """Write all rows as a table to a parquet file."""
    pd.DataFrame([asdict(row) for row in rows]).to_parquet(path)
