"""One circuit judged on the prompts of a task, and the benches as pages: what `workbench evaluate | bench` run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.evaluation.behaviours import Behaviour, areas_table, behaviours_table
from workbench.evaluation.benchmark import Row, overview, save_rows
from workbench.circuit.circuit import Circuit
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.hypothesis_tests import circuit_tests
from workbench.engine.capture import capture_pairs
from workbench.engine.values import Value, value_named
from workbench.files import replaced
from workbench.render.figures.grids import bench_figure
from workbench.render.report import report
from workbench.sites import KINDS, Shape
from workbench.statistics import interval_text
from workbench.workflows.effects import pairs_of
from workbench.prompts.pairs import PromptPairs

BENCH_FILES = ("bench.parquet", "bench.html")
BEHAVIOUR_FILES = ("behaviours.parquet", "behaviours.html")
_KINDS = ("resid_pre", "z", "mlp_out", "mlp_post")
_SCALES = ("faithfulness", "complement", "random", "incompleteness")


@dataclass(frozen=True)
class Judged:
    """What was measured: the evaluation over (ablation, circuit), and the tests of each value where they were asked for."""

    evaluation: xr.Dataset
    tests: dict[str, xr.Dataset]


def judged(
    circuit: Circuit,
    model: Any,
    task: str,
    *,
    values: Sequence[str] = ("from_store",),
    n: int = 64,
    metric: str | None = None,
    seed: int = 0,
    split: str = "heldout",
    variant: str | None = None,
    tests: bool = False,
) -> Judged:
    """A circuit on the prompts of a task, under several values by name, with every check.

    Raises:
        UnknownName, CircuitError, PromptError, MetricError: see the messages.
    """
    circuit.check_fits(model)
    pairs = pairs_of(task, model, n=n, seed=seed, split=split, variant=variant)
    made = _values(model, pairs, values, seed)
    measure = metric or pairs.metric
    found = evaluate(circuit, model, pairs, value=made, metric=measure, seed=seed)
    tested = {
        name: circuit_tests(circuit, model, pairs, value=value, metric=measure, seed=seed)
        for name, value in (made.items() if tests else ())
    }
    return Judged(found, tested)


def _values(model: Any, pairs: PromptPairs, names: Sequence[str], seed: int) -> dict[str, Value]:
    kinds = [kind for kind in _KINDS if not Shape.of(model).lacks(KINDS[kind])]
    clean, corrupt = capture_pairs(model, pairs, sites=kinds)
    return {name: value_named(name, own=clean, other=corrupt, seed=seed) for name in names}


def lines(found: Judged, *, as_json: bool) -> list[str]:
    """A judgement as text, or as one JSON object for each value and each test."""
    evaluation, printed = found.evaluation.isel(circuit=0), []
    for name in evaluation["ablation"].values:
        row = evaluation.sel(ablation=name)
        if as_json:
            scalars = {str(key): _plain(row[key].values) for key in row.data_vars if row[key].ndim == 0}
            facts = {key: evaluation.attrs.get(key) for key in ("model", "task", "split", "n", "metric", "level")}
            printed.append(json.dumps({"value": str(name), **facts, **scalars}))
            continue
        printed.append(f"value {name}, {evaluation.attrs['n']} prompts, {evaluation.attrs['metric']}")
        for field in _SCALES:
            low, high = ("low", "high") if field == "faithfulness" else (f"{field}_low", f"{field}_high")
            printed.append(f"  {field:16} {float(row[field]):7.3f} {interval_text(float(row[low]), float(row[high]))}")
        printed.append(f"  {'mean of ratios':16} {float(row['mean_of_ratios']):7.3f}")
        printed.append(f"  {'minimal':16} {float(row['minimal']):7.3f} not missed: {row['unneeded'].values or 'none'}")
        printed.append(f"  {'in sample':16} {float(row['in_sample']):7.3f} of the prompts were used to find it")
    for name, tests in found.tests.items():
        for test in tests["test"].values:
            row = tests.sel(test=test)
            numbers = {key: _plain(row[key].values) for key in ("statistic", "p", "rejected", "supports")}
            if as_json:
                printed.append(json.dumps({"value": name, "test": str(test), **numbers}))
            else:
                verdict = "supports the circuit" if numbers["supports"] else "speaks against it"
                printed.append(f"  {test:16} {name}: statistic {float(row['statistic']):.3f}, p {float(row['p']):.3f}, {verdict}")
    return printed


def _plain(value: Any) -> Any:
    """A number or text for JSON; what was not measured is null."""
    found = np.asarray(value).item()
    return None if isinstance(found, float) and not np.isfinite(found) else found


def write_bench(rows: Sequence[Row], folder: Path, command: str, *, overwrite: bool = False) -> list[Path]:
    """The table of a bench as parquet, and a page that shows it."""
    frame = pd.DataFrame([vars(row) for row in rows])
    sections: list[tuple[Any, ...]] = [
        ("Methods", overview(rows), "Planted models by kind of value: area under the ROC curve of edges ranked by the size of their scores (mean, and the worst model), MIB's area, the share of true edges among as many best ones as there are, and on held-out prompts CPR (signed) and CMD (by size). Below, the tasks of tiny, whose true edges nobody knows."),
    ]  # fmt: skip
    known = frame.dropna(subset=["edge_auroc"])
    for value in dict.fromkeys(known["value"].tolist()):
        part = pd.DataFrame(known[known["value"] == value])
        part["model"] = part["model"].str.removeprefix("planted-")
        table = part.pivot(index="model", columns="method", values="edge_auroc").reindex(
            columns=list(dict.fromkeys(part["method"]))
        )
        sections.append(
            (f"Edge AUROC, {value} values", bench_figure(table), "1: every true edge outranks every false one; 0.5: chance.")
        )
    tiny = pd.DataFrame(frame[frame["model"] == "tiny"])
    if len(tiny):
        table = tiny.pivot(index="task", columns="method", values="cmd").reindex(columns=list(dict.fromkeys(tiny["method"])))
        sections.append(
            (
                "CMD on tiny",
                bench_figure(table, best="low"),
                "Area between the faithfulness curve and 1, held-out prompts: 0 is best.",
            )
        )
    sections.append(("Every row", frame.round(4), ""))
    with replaced(folder, BENCH_FILES, overwrite=overwrite) as partial:
        save_rows(rows, partial / BENCH_FILES[0])
        report(sections, partial / BENCH_FILES[1], title="Which method tells the truth", command=command)
    return [folder / name for name in BENCH_FILES]


def write_behaviours(rows: Sequence[Behaviour], folder: Path, command: str, *, overwrite: bool = False) -> list[Path]:
    """The smallest circuits of behaviours as parquet, and a page that shows them."""
    share = f"{rows[0].share:.0%}" if rows else ""
    sections: list[tuple[Any, ...]] = [
        ("Smallest circuits", behaviours_table(rows), f"The fewest best-scored edges that keep {share} of the behaviour on the prompts of the search, by the method that needs fewest; pruned: those that are no dead ends. Faithfulness on held-out prompts, with 95 % bootstrap intervals. Jaccard: agreement of circuits of that size found on resampled prompts (published for indirect objects in GPT-2 small: .67)."),
        ("Every method", areas_table(rows), "Edges of the smallest circuit, faithfulness at 1 % of the edges, CPR (signed) and CMD (by size) on held-out prompts, and stability."),
    ]  # fmt: skip
    with replaced(folder, BEHAVIOUR_FILES, overwrite=overwrite) as partial:
        pd.DataFrame([vars(row) for row in rows]).to_parquet(partial / BEHAVIOUR_FILES[0])
        report(sections, partial / BEHAVIOUR_FILES[1], title="How small is a circuit?", command=command)
    return [folder / name for name in BEHAVIOUR_FILES]
