"""One circuit judged on the prompts of a task, and the benches as pages: what `workbench evaluate | bench` run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.engine.capture import capture_pairs
from workbench.engine.values import Value, value_named
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.hypothesis_tests import circuit_tests
from workbench.prompts.pairs import PromptPairs
from workbench.sites import KINDS, Shape
from workbench.statistics import interval_text
from workbench.tasks.registry import pairs_of

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
            facts = {
                key: evaluation.attrs.get(key) for key in ("model", "task", "split", "n", "metric", "level")
            }
            printed.append(json.dumps({"value": str(name), **facts, **scalars}))
            continue
        printed.append(f"value {name}, {evaluation.attrs['n']} prompts, {evaluation.attrs['metric']}")
        for field in _SCALES:
            low, high = ("low", "high") if field == "faithfulness" else (f"{field}_low", f"{field}_high")
            printed.append(
                f"  {field:16} {float(row[field]):7.3f} {interval_text(float(row[low]), float(row[high]))}"
            )
        printed.append(f"  {'mean of ratios':16} {float(row['mean_of_ratios']):7.3f}")
        printed.append(
            f"  {'minimal':16} {float(row['minimal']):7.3f} not missed: {row['unneeded'].values or 'none'}"
        )
        printed.append(
            f"  {'in sample':16} {float(row['in_sample']):7.3f} of the prompts were used to find it"
        )
    for name, tests in found.tests.items():
        for test in tests["test"].values:
            row = tests.sel(test=test)
            numbers = {key: _plain(row[key].values) for key in ("statistic", "p", "rejected", "supports")}
            if as_json:
                printed.append(json.dumps({"value": name, "test": str(test), **numbers}))
            else:
                verdict = "supports the circuit" if numbers["supports"] else "speaks against it"
                printed.append(
                    f"  {test:16} {name}: statistic {float(row['statistic']):.3f}, p {float(row['p']):.3f}, {verdict}"
                )
    return printed


def _plain(value: Any) -> Any:
    """A number or text for JSON; what was not measured is null."""
    found = np.asarray(value).item()
    return None if isinstance(found, float) and not np.isfinite(found) else found
