"""How well a circuit stands for the model: faithfulness with its interval, and the curve against circuit size.

f(C) = (m(C) - m(empty)) / (m(full) - m(empty)), a ratio of dataset means; the mean of ratios is reported beside it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from torch import Tensor

from workbench.discovery.circuit import Circuit
from workbench.discovery.search import find_circuit, graph_of
from workbench.engine.circuits import Circuits
from workbench.engine.edits import Value
from workbench.errors import CircuitError
from workbench.results import clean_attrs
from workbench.statistics import bootstrap, ratio_of_means
from workbench.tasks.metrics import Metric
from workbench.tasks.metrics import metric as as_metric
from workbench.tasks.pairs import PromptPairs

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def evaluate(
    circuit: Circuit | Sequence[Circuit],
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    level: float = 0.95,
    budget: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """The faithfulness of circuits on prompts, with bootstrap intervals over the prompts.

    Args:
        circuit: one circuit or several, run in common batches.
        value: the other value of what is not in the circuit, as in `score_edges`.
        level: coverage of the intervals.

    Returns:
        Dataset over (circuit,): `faithfulness` (ratio of means), `low`, `high`, `mean_of_ratios`, `n_edges`,
        `in_sample` (share of the pairs it was found on), and over (circuit, example) the metric `m_circuit`, over
        (example,) `m_full` and `m_empty`. Faithfulness is NaN where m(full) - m(empty) is ~0.

    Raises:
        CircuitError: a circuit of another graph, or none.  MetricError, PromptError, StoreError, EditError: see the
            messages.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> float(wb.evaluate(wb.Circuit.empty(model), model, pairs, value=wb.zero())["faithfulness"][0])
    0.0
    """
    circuits = [circuit] if isinstance(circuit, Circuit) else list(circuit)
    if not circuits or not all(isinstance(each, Circuit) for each in circuits):
        raise CircuitError("evaluate: give a Circuit or a non-empty list of them.")
    for one in circuits:
        one.check_fits(model)
    measure = as_metric(metric)
    runs = Circuits(model, circuits[0].graph, pairs, value=value, metric=measure, budget=budget)
    masks = np.stack([np.zeros_like(circuits[0].edges), *(one.edges for one in circuits)])
    measured = runs.measure(masks, progress=progress)
    full = runs.full
    empty, each = measured[0], measured[1:]
    table = np.concatenate([full[None], empty[None], each]).T
    low, high = bootstrap(table, lambda sample: ratio_of_means(sample[:, 2:], sample[:, :1], sample[:, 1:2]), level=level)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(np.abs(full - empty) < 1e-6, np.nan, full - empty)
        ratios = np.nanmean((each - empty) / gap, axis=1) if np.isfinite(gap).any() else np.full(len(each), np.nan)
    ids = (*pairs.clean.ids,)
    in_sample = [float(np.mean([prompt in c.prompt_ids for prompt in ids])) for c in circuits]
    data = {
        "faithfulness": ("circuit", ratio_of_means(table[:, 2:], table[:, :1], table[:, 1:2])),
        "low": ("circuit", low),
        "high": ("circuit", high),
        "mean_of_ratios": ("circuit", ratios),
        "n_edges": ("circuit", np.array([c.n_edges for c in circuits])),
        "in_sample": ("circuit", np.array(in_sample)),
        "m_circuit": (("circuit", "example"), each),
        "m_full": ("example", full),
        "m_empty": ("example", empty),
    }
    attrs = pairs.attrs(model) | {
        "kind": "evaluation", "metric": measure.name, "unit": measure.unit, "value": value.describe(), "level": level,
    }  # fmt: skip
    return xr.Dataset(data, attrs=clean_attrs(attrs))


def faithfulness_curve(
    scores: xr.DataArray,
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    by: Literal["signed", "magnitude"] | str = "signed",
    sizes: Sequence[float] = SIZES,
    budget: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Faithfulness of the best-scored edges at several circuit sizes, all in one batched evaluation.

    Args:
        by: rank edges by their score ("signed") or by its size ("magnitude").
        sizes: shares of the graph's edges; n = int(share * edges).

    Returns:
        Dataset over (size,): `faithfulness`, `low`, `high`, `n_edges` (chosen, before pruning), `n_pruned`; `area` in
        the attrs is CPR (by="signed") or CMD (by="magnitude") when the sizes are MIB's ten.

    Source: MIB, Mueller et al. 2504.13151.
    """
    graph = graph_of(scores)
    counts = [int(share * graph.n_edges) for share in sizes]
    circuits = [find_circuit(scores, n_edges=n, by=by) for n in counts]
    result = evaluate(circuits, model, pairs, value=value, metric=metric, budget=budget, progress=progress)
    faithful = result["faithfulness"].values
    area = np.trapezoid(faithful if by == "signed" else np.abs(1 - faithful), np.asarray(sizes))
    data = {name: ("size", result[name].values) for name in ("faithfulness", "low", "high")}
    data |= {"n_edges": ("size", np.array(counts)), "n_pruned": ("size", result["n_edges"].values)}
    attrs = dict(result.attrs) | {"kind": "faithfulness_curve", "ranked_by": by, "method": scores.attrs.get("method", "")}
    attrs |= {"area": float(area), "area_name": "CPR" if by == "signed" else "CMD"} if tuple(sizes) == SIZES else {}
    return xr.Dataset(data, coords={"size": list(sizes)}, attrs=clean_attrs(attrs))
