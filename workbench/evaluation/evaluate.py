"""How well a circuit stands for the model: faithfulness with its interval, and what speaks against it.

f(C) = (m(C) - m(empty)) / (m(full) - m(empty)), a ratio of dataset means; the mean of ratios is reported beside it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from workbench.circuit.circuit import Circuit
from workbench.engine.circuits import Circuits
from workbench.engine.values import Value
from workbench.errors import CircuitError, UnknownName
from workbench.evaluation.checks import Checked
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.load import one_fingerprint
from workbench.prompts.pairs import PromptPairs
from workbench.results import clean_attrs
from workbench.statistics import bootstrap, check_level, check_seed, ratio_of_means

CHECKS = ("complement", "random", "completeness", "minimality")


@one_fingerprint()
def evaluate(
    circuit: Circuit | Sequence[Circuit],
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value | Mapping[str, Value],
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    checks: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
    budget: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """The faithfulness of circuits on prompts and what speaks against them, with bootstrap intervals over the prompts.

    Args:
        circuit: one circuit or several of one graph, run in common batches.
        value: the other value of what is not in the circuit, as in `score_edges`; a mapping of names to values measures them
            side by side, on an axis `ablation`.
        checks: of "complement" (faithfulness of the rest), "random" (of random circuits of as many edges), "completeness"
            (the largest difference between circuit and model when components are knocked out of both, in shares of
            m(full) - m(empty)), "minimality" (the share of components that are missed when they go). None: all of them
            for a single circuit, none for several.
        level: coverage of the intervals.  seed: of random circuits and sets.

    Returns:
        Dataset over (circuit,): `faithfulness` (ratio of means), `low`, `high`, `mean_of_ratios`, `n_edges`,
        `in_sample` (share of the pairs it was found on); of the checks `complement`, `random`, `incompleteness`, each with
        `_low` and `_high`, `incompleteness_set`, and `minimal` (the share of components that are needed) with
        `unneeded` (the others by name). Over (circuit, example) the metric `m_circuit`, over (example,) `m_full` and
        `m_empty`. Faithfulness is NaN where m(full) - m(empty) is ~0.

    Raises:
        CircuitError: circuits of other graphs, or none.  UnknownName: no such check.  MetricError, PromptError, StoreError,
            EditError: see the messages.

    Source: Wang et al. 2211.00593 (completeness, minimality), Marks et al. 2403.19647 (complement).

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> float(wb.evaluate(wb.Circuit.empty(model), model, pairs, value=wb.zero(), checks=())["faithfulness"][0])
    0.0
    """
    circuits = (
        [circuit] if isinstance(circuit, Circuit) else list(circuit) if isinstance(circuit, Iterable) else []
    )
    if not circuits or not all(isinstance(each, Circuit) for each in circuits):
        raise CircuitError("evaluate: give a Circuit or a non-empty list of them.")
    for one in circuits:
        one.check_fits(model)
        if one.graph != circuits[0].graph:
            raise CircuitError(
                f"evaluate: circuits of one graph run together; these have {circuits[0].graph} and {one.graph}."
            )
    asked = (
        (CHECKS if len(circuits) == 1 else ())
        if checks is None
        else ((checks,) if isinstance(checks, str) else tuple(checks))
    )
    wrong = [name for name in asked if name not in CHECKS]
    if wrong:
        raise UnknownName("checks", wrong[0], CHECKS)
    check_level(level)
    check_seed(seed)
    if isinstance(value, Mapping):
        if not value:
            raise CircuitError("evaluate: value={} names no value. Give one, as in {'zero': wb.zero()}.")
        each = [
            evaluate(circuits, model, pairs, value=one, metric=metric, checks=asked, level=level, seed=seed, budget=budget,
                     progress=progress)
            for one in value.values()
        ]  # fmt: skip
        joined = xr.concat(each, dim="ablation", combine_attrs="override").assign_coords(ablation=list(value))
        return joined.assign_attrs(value=", ".join(one.describe() for one in value.values()))
    measure = as_metric(metric)
    runs = Circuits(model, circuits[0].graph, pairs, value=value, metric=measure, budget=budget)
    masks = np.stack([np.zeros_like(circuits[0].edges), *(one.pruned.edges for one in circuits)])
    empty, *each = runs.measure(masks, progress=progress)
    data = _faithfulness(runs.full, empty, np.stack(each), level)
    ids = (*pairs.clean.ids,)
    data |= {
        "n_edges": ("circuit", np.array([c.n_edges for c in circuits])),
        "in_sample": (
            "circuit",
            np.array([float(np.mean([prompt in c.prompt_ids for prompt in ids])) for c in circuits]),
        ),
    }
    rows = [_checked(Checked(one, runs, empty, level, seed), asked) for one in circuits]
    data |= {name: ("circuit", np.array([row[name] for row in rows])) for name in rows[0]}
    attrs = pairs.attrs(model) | {
        "kind": "evaluation", "metric": measure.name, "unit": measure.unit, "value": value.describe(), "level": level,
        "engine": runs.engine, "seed_of_checks": seed,
    }  # fmt: skip
    return xr.Dataset(data, attrs=clean_attrs(attrs))


@one_fingerprint()
def minimality(
    circuit: Circuit,
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    level: float = 0.95,
    seed: int = 0,
    budget: int | None = None,
) -> xr.Dataset:
    """How much each head and MLP of a circuit is missed when it goes, beyond the set of others that shows it best.

    Returns:
        Dataset over (node,): `missed` in shares of F(M), `low`, `high`, `needed` (1 where it is at least 1 %), `without`.
    Source: Wang et al. 2211.00593.
    """
    if not isinstance(circuit, Circuit):
        raise CircuitError(f"minimality: give one Circuit, not {type(circuit).__name__}.")
    check_level(level)
    check_seed(seed)
    circuit.check_fits(model)
    measure = as_metric(metric)
    runs = Circuits(model, circuit.graph, pairs, value=value, metric=measure, budget=budget)
    found = Checked(circuit, runs, np.zeros(0), level, seed).minimality()
    attrs = pairs.attrs(model) | {
        "kind": "minimality",
        "metric": measure.name,
        "value": value.describe(),
        "level": level,
    }
    return found.assign_attrs(clean_attrs(attrs))


def _faithfulness(full: np.ndarray, empty: np.ndarray, each: np.ndarray, level: float) -> dict[str, Any]:
    """Both ratios of every circuit [circuit, example], with intervals, and what they are made of."""
    table = np.concatenate([full[None], empty[None], each]).T
    statistic = lambda sample: ratio_of_means(sample[:, 2:], sample[:, :1], sample[:, 1:2])  # noqa: E731
    low, high = bootstrap(table, statistic, level=level)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(np.abs(full - empty) < 1e-6, np.nan, full - empty)
        ratios = (
            np.nanmean((each - empty) / gap, axis=1) if np.isfinite(gap).any() else np.full(len(each), np.nan)
        )
    return {
        "faithfulness": ("circuit", statistic(table)), "low": ("circuit", low), "high": ("circuit", high),
        "mean_of_ratios": ("circuit", ratios), "m_circuit": (("circuit", "example"), each), "m_full": ("example", full),
        "m_empty": ("example", empty),
    }  # fmt: skip


def _checked(circuit: Checked, checks: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "complement" in checks:
        found |= circuit.complement()
    if "random" in checks:
        found |= circuit.random()
    if "completeness" in checks:
        numbers, names = circuit.completeness()
        found |= numbers | names
    if "minimality" in checks:
        each = circuit.minimality()
        found["minimal"] = float(each["needed"].mean()) if each.sizes["node"] else np.nan
        found["unneeded"] = ", ".join(each["node"].values[each["needed"].values == 0].tolist())
    return found
