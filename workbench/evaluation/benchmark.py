"""The benchmark: every method on every model of known circuit, and on the tasks of `tiny`.

`bench_circuits` yields a `Row` for each; `overview` sums them up. Against known edges: both areas under the
ROC curve and the precision at the true size, ranked by the size of scores, on the edges that the kind of
value can see. Everywhere: CPR and CMD on held-out prompts, seconds, peak memory, passes.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from workbench.discovery.methods import METHODS, find_by
from workbench.engine.capture import capture_pairs
from workbench.engine.values import Value, from_store, zero
from workbench.errors import UnknownName, WorkbenchError, unwarned
from workbench.evaluation.curves import faithfulness_curve
from workbench.evaluation.ground_truth import edge_auroc, edge_auroc_mib, precision_at_true_size
from workbench.models.load import load_model
from workbench.models.model import Model
from workbench.planted_models.pairs import planted_pairs
from workbench.planted_models.planted import VARIANTS, planted
from workbench.prompts.pairs import PromptPairs
from workbench.tasks.registry import TASKS, load_task
from workbench.text import progress_bar

SLOW = {"exact": 48, "conditional": 8}
"""Prompts of `tiny` for the methods that try every edge; the others get `PROMPTS`. `quick`: 12 for all."""
PROMPTS = 64


@dataclass(frozen=True)
class _Extent:
    """How much a run of the benchmark does.

    Attributes:
        planted_prompts, tiny_prompts: of each kind of model.
        slow_prompts: for the methods of `SLOW`; None takes what `SLOW` says.
        values: patched values on planted models.
        tasks: of `tiny`.
        training_steps: of learned masks.
    """

    planted_prompts: int
    tiny_prompts: int
    slow_prompts: int | None
    values: tuple[str, ...]
    tasks: tuple[str, ...]
    training_steps: int


QUICK = _Extent(24, 32, 12, ("corrupt",), ("ioi", "induction", "agreement"), 60)
FULL = _Extent(32, PROMPTS, None, ("corrupt", "zero"), tuple(TASKS), 200)


@dataclass(frozen=True)
class Row:
    """One method on one model and task. What was not measured is NaN.

    Attributes:
        value: the patched value, "corrupt" or "zero"; the true edges are those that it can see.
        edge_auroc, edge_auroc_mib, precision: against known edges, scores ranked by size.
        cpr, cmd: on held-out prompts.
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
    seconds: float
    peak_mb: float
    forwards: int
    error: str = ""


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
            the methods that try every edge.
        methods, models: some of them; models are "tiny" and "planted-NAME". None takes all.
        seed: of models, prompts and of what a method draws.

    Raises:
        UnknownName: a method or a model that does not exist.
    """
    chosen = list(METHODS) if methods is None else list(methods)
    known_models = ["tiny", *(f"planted-{name}" for name in VARIANTS)]
    wanted = known_models if models is None else list(models)
    for argument, names, known in (("methods", chosen, METHODS), ("models", wanted, known_models)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UnknownName(argument, unknown[0], known)
    extent = QUICK if quick else FULL
    cases = list(_cases(wanted, extent, seed))
    with progress_bar(len(cases) * len(chosen), "bench", "row", shown=progress) as bar:
        for case in cases:
            for method in chosen:
                # On `tiny` the methods that try every edge take minutes a task.
                if not (quick and case.truth is None and method in SLOW):
                    yield _row(case, method, extent, seed)
                bar.update()


@dataclass(frozen=True)
class _Case:
    """A model with a task, on one kind of value.

    Attributes:
        truth: the known edges, None where nobody knows them.
    """

    model: Model
    name: str
    task: str
    value: str
    metric: str
    train: PromptPairs
    heldout: PromptPairs
    truth: frozenset[str] | None


def _cases(names: Sequence[str], extent: _Extent, seed: int) -> Iterator[_Case]:
    for name in names:
        if name == "tiny":
            yield from _tiny_cases(extent, seed)
            continue
        known = planted(name.removeprefix("planted-"), seed=seed, n=extent.planted_prompts)
        train = planted_pairs(known)
        heldout = planted_pairs(known, n=extent.planted_prompts, split="heldout")
        for value in extent.values:
            yield _Case(known.model, name, name, value, "logit_diff", train, heldout, known.edges[value])


def _tiny_cases(extent: _Extent, seed: int) -> Iterator[_Case]:
    model = load_model("tiny")
    n = extent.tiny_prompts
    for task in extent.tasks:
        train, heldout = (
            load_task(task, model, n=n, seed=seed, split=split) for split in ("train", "heldout")
        )
        yield _Case(model, "tiny", task, "corrupt", TASKS[task].metric, train, heldout, None)


def _row(case: _Case, method: str, extent: _Extent, seed: int) -> Row:
    """One method on one case; a method that refuses the case gives a row with its message."""
    train = case.train
    if method in SLOW and (extent.slow_prompts is not None or case.truth is None):
        train = train.select(range(min(extent.slow_prompts or SLOW[method], len(train))))
    not_measured = float("nan")
    own, held = (_value(case, pairs) for pairs in (train, case.heldout))
    steps = extent.training_steps if method.startswith("learn") else None
    # A refusal is a result too: atp-star, for one, does not run on every model.
    try:
        # What a row would be warned of, its numbers say.
        with unwarned(), _watched() as used:
            discovery = find_by(
                method,
                case.model,
                train,
                value=own,
                metric=case.metric,
                steps=steps,
                seed=seed,
                progress=False,
            )
    except WorkbenchError as error:
        return Row(
            case.name, case.task, case.value, method, *[not_measured] * 7, forwards=0, error=str(error)
        )

    def area(by: str) -> float:
        """CPR or CMD on held-out prompts."""
        curve = faithfulness_curve(
            discovery.scores, case.model, case.heldout, value=held, metric=case.metric, by=by, progress=False
        )
        return float(curve.attrs["area"])

    auroc = auroc_mib = precision = not_measured
    if case.truth is not None:
        auroc = edge_auroc(discovery.scores, case.truth)
        auroc_mib = edge_auroc_mib(discovery.scores, case.truth)
        precision = precision_at_true_size(discovery.scores, case.truth)
    return Row(
        case.name, case.task, case.value, method, auroc, auroc_mib, precision, area("signed"),
        area("magnitude"), used["seconds"], used["peak_mb"], discovery.forwards,
    )  # fmt: skip


def _value(case: _Case, pairs: PromptPairs) -> Value:
    return zero() if case.value == "zero" else from_store(capture_pairs(case.model, pairs, progress=False)[1])


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


def overview(rows: Sequence[Row]) -> pd.DataFrame:
    """Each method over the planted models, and over `tiny`.

    Planted: mean and worst AUROC, mean precision, CPR and CMD. `tiny`: mean CPR and CMD. Both: seconds in
    all.
    """
    frame = pd.DataFrame([asdict(row) for row in rows])
    lines = []
    planted_rows = pd.DataFrame(frame[frame["model"] != "tiny"])
    for value, method in dict.fromkeys(zip(planted_rows["value"], planted_rows["method"], strict=True)):
        of_method = (planted_rows["value"] == value) & (planted_rows["method"] == method)
        group = pd.DataFrame(planted_rows[of_method])
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
    for method, group in frame[frame["model"] == "tiny"].groupby("method", sort=False):
        lines.append(
            {
                "value": "tiny", "method": method, "models": len(group), "mean CPR": group["cpr"].mean(),
                "mean CMD": group["cmd"].mean(), "seconds": group["seconds"].sum(),
            }
        )  # fmt: skip
    return pd.DataFrame(lines).round(3)


def save_rows(rows: Sequence[Row], path: Path) -> None:
    """Write all rows as a table to a parquet file."""
    pd.DataFrame([asdict(row) for row in rows]).to_parquet(path)
