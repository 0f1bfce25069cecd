"""One circuit evaluated on the prompts of a task: what `workbench evaluate` runs.

`judge` measures, `lines` puts a `Judgement` into text or JSON.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.engine.counterfactuals import pairs_for
from workbench.engine.given_values import writer_sites
from workbench.engine.named_values import canonical_name
from workbench.engine.values import Value
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.hypothesis_tests import circuit_tests
from workbench.experiment import PairsInModel
from workbench.models.model import Model
from workbench.statistics import interval_text
from workbench.tasks.registry import pairs_of

# The values of `named_values.NAMES` for edges of the clean run: without `clean`, which is the run that is
# edited, and without values that need a number or a fit.
VALUES = ("corrupt", "zero", "mean", "resample")
"""What can stand in for everything outside the circuit."""
_FIELDS = (
    "faithfulness", "error", "r", "kl_recovered", "answers_kept", "same_choice", "complement", "random",
    "incompleteness",
)  # fmt: skip
_FACTS = ("model", "task", "split", "n", "metric", "level")


@dataclass(frozen=True)
class Judgement:
    """What was measured of a circuit.

    Attributes:
        evaluation: over (ablation, circuit), with every check.
        tests: value → the hypothesis tests under it; empty where they were not wanted.
    """

    evaluation: xr.Dataset
    tests: dict[str, xr.Dataset]


def value_names(names: Sequence[str]) -> list[str]:
    """Names of values in their one spelling. Raises `UnknownName` for one that is not in `VALUES`."""
    return [canonical_name(name, choices=VALUES) for name in names]


def judge(
    circuit: Circuit,
    model: Model,
    task: str,
    *,
    values: Sequence[str] = ("corrupt",),
    n: int = 64,
    metric: str | None = None,
    seed: int = 0,
    split: str = "heldout",
    variant: str | None = None,
    tests: bool = False,
) -> Judgement:
    """A circuit on the prompts of a task, under several values by name, with every check.

    Args:
        task: a task's name, or a file of pairs.
        values: names from `VALUES`, measured side by side; "corrupt" is every counterfactual of the pairs,
            by its name where there are several.
        seed: of the prompts, of resample, and of random circuits and sets.
        tests: whether to run the hypothesis tests too.

    Raises:
        UnknownName: no such task, split, variant, metric or value.
        CircuitError: a circuit of another graph.
        PromptError: prompts that do not suit the model.
        MetricError: a metric that does not fit the prompts.
    """
    circuit.check_fits(model)  # refused before prompts are made and run
    pairs = pairs_of(task, model, n=n, seed=seed, split=split, variant=variant)
    sites = writer_sites(circuit.graph)
    data = PairsInModel.of(model, pairs, metric=metric or None, sites=sites, seed=seed)
    by_name: dict[str, Value] = {}
    for name in value_names(values):
        if name == "corrupt" and pairs.further:
            by_name |= data.counterfactuals
        else:
            by_name[name] = data.value(name)
    evaluation = evaluate(circuit, model, pairs, value=by_name, metric=data.metric, seed=seed)
    # The tests run many circuits for each value, so they are run only where they were asked for.
    results = {}
    if tests:
        for name, value in by_name.items():
            some = pairs_for(pairs, name)
            results[name] = circuit_tests(circuit, model, some, value=value, metric=data.metric, seed=seed)
    return Judgement(evaluation, results)


TRIED = (2, 6)
"""Prompts of the two trial runs of `seconds_of`."""


def seconds_of(run: Callable[[int], object], n: int) -> float:
    """About how many seconds work on `n` prompts takes, from two trials on a few of them.

    Args:
        run: the work on that many prompts. It is run warm: once more than it is timed.

    The time is taken to be a fixed part and one that grows with the prompts.
    """
    run(TRIED[0])
    taken = []
    for n_tried in TRIED:
        start = time.perf_counter()
        run(n_tried)
        taken.append(time.perf_counter() - start)
    # a second trial that was quicker than the first says that the prompts cost nothing beside the rest
    per_prompt = max(0.0, (taken[1] - taken[0]) / (TRIED[1] - TRIED[0]))
    return taken[1] + per_prompt * max(0, n - TRIED[1])


def lines(judgement: Judgement, *, as_json: bool) -> list[str]:
    """A judgement as text, or as one JSON object for each value and each test."""
    evaluation = judgement.evaluation.isel(circuit=0)
    printed = []
    for name in evaluation["ablation"].values:
        row = evaluation.sel(ablation=name)
        if as_json:
            printed.append(_row_as_json(str(name), row))
        else:
            printed += _row_as_text(str(name), row)
    for name, tests in judgement.tests.items():
        for test in tests["test"].values:
            printed.append(_test(name, str(test), tests.sel(test=test), as_json=as_json))
    return printed


def _row_as_json(name: str, row: xr.Dataset) -> str:
    facts = {key: row.attrs.get(key) for key in _FACTS}
    numbers = {str(key): _plain(row[key].values) for key in row.data_vars if row[key].ndim == 0}
    return json.dumps({"value": name, **facts, **numbers})


def _row_as_text(name: str, row: xr.Dataset) -> list[str]:
    printed = [f"value {name}, {row.attrs['n']} prompts, {row.attrs['metric']}"]
    for field in _FIELDS:
        # Faithfulness is the main number, so its interval has the plain names `low` and `high`.
        prefix = "" if field == "faithfulness" else f"{field}_"
        interval = interval_text(float(row[f"{prefix}low"]), float(row[f"{prefix}high"]))
        printed.append(f"  {field:16} {float(row[field]):7.3f} {interval}")
    unneeded = row["unneeded"].values or "none"
    return [
        *printed,
        f"  {'mean of ratios':16} {float(row['mean_of_ratios']):7.3f}",
        f"  {'minimal':16} {float(row['minimal']):7.3f} not needed: {unneeded}",
        f"  {'in sample':16} {float(row['in_sample']):7.3f} of the prompts were used to find it",
    ]


def _test(value: str, test: str, row: xr.Dataset, *, as_json: bool) -> str:
    numbers = {key: _plain(row[key].values) for key in ("statistic", "p", "rejected", "supports")}
    if as_json:
        return json.dumps({"value": value, "test": test, **numbers})
    verdict = "supports the circuit" if numbers["supports"] else "speaks against it"
    statistic, p = float(row["statistic"]), float(row["p"])
    return f"  {test:16} {value}: statistic {statistic:.3f}, p {p:.3f}, {verdict}"


def _plain(value: Any) -> Any:
    """A number or text for JSON; what was not measured is null."""
    # JSON has no NaN and no infinity.
    plain = np.asarray(value).item()
    if isinstance(plain, float) and not np.isfinite(plain):
        return None
    return plain
