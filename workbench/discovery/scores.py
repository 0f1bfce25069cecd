"""Scores of edges: how much each one supports the behaviour. Positive: without it the metric falls."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench.engine.edge_gradients import edge_products
from workbench.engine.edits import Value, check_value
from workbench.engine.reference import rows_per_forward
from workbench.engine.run import check_pairs
from workbench.errors import UnknownName
from workbench.graph import Graph
from workbench.models.load import check_eval
from workbench.results import effect_array
from workbench.tasks.metrics import Metric
from workbench.tasks.metrics import metric as as_metric
from workbench.tasks.pairs import PromptPairs

METHODS = ("eap",)
Axis = Literal["example", "pos"] | str


def score_edges(
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    method: Literal["eap"] | str = "eap",
    keep: Sequence[Axis] = (),
    budget: int | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """A score for every edge of the model's graph; positive means that without the edge the metric falls.

    That is support for the behaviour where a higher metric is better; `find_circuit` turns the others around.

    "eap": s(u, v) = (z_u - z'_u) . dm/d in_v at the clean run, summed over positions and d_model, mean over examples:
    minus the first-order change of the metric when the edge takes the other value.

    Args:
        value: the other value z' of the writers, as in `effects`.
        keep: axes not to sum or average over: "example", "pos".
        budget: bytes that one forward and backward pass may use.

    Returns:
        DataArray ([example, pos,] writer, reader) in graph order; NaN where no edge exists.

    Raises:
        UnknownName, MetricError, PromptError, StoreError, EditError: see the messages.

    Source: edge attribution patching, Syed et al. 2310.10348.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> scores = wb.score_edges(model, wb.load_task("ioi", model, n=4), value=wb.zero())
    >>> int(scores.notnull().sum())
    1519
    """
    check_eval(model)
    if method not in METHODS:
        raise UnknownName("method of score_edges", method, METHODS)
    check_value(value)
    unknown = [axis for axis in keep if axis not in ("example", "pos")]
    if unknown:
        raise UnknownName("axis to keep", unknown[0], ("example", "pos"))
    measure = as_metric(metric)
    measure.check(pairs)
    measure.check_attributable()
    check_pairs(model, pairs)
    graph = Graph.of(model)
    bound = value.bind(model, pairs.clean, pairs.corrupt)
    length = int(pairs.clean.lengths.max())
    shape = (len(pairs) if "example" in keep else 1, length if "pos" in keep else 1, len(graph.writers), len(graph.readers))
    total = torch.zeros(shape, dtype=torch.float64)
    kept = 3 * len(graph.writers) * graph.shape.d_model
    chunk = rows_per_forward(model, length, budget=budget, gradients=True, extra=kept)
    with tqdm(total=len(pairs), desc=f"edges ({method})", unit="example", disable=None if progress else True, leave=False) as bar:
        for start in range(0, len(pairs), chunk):
            part = pairs.select(slice(start, start + chunk))
            examples = range(start, start + len(part))
            products = edge_products(model, graph, part, bound.select(examples), measure, keep)
            rows = slice(start, start + len(part)) if "example" in keep else slice(None)
            total[rows, : products.shape[1]] += products.cpu()
            bar.update(len(part))
    if "example" not in keep:
        total /= len(pairs)
    total[..., ~torch.from_numpy(graph.exists)] = float("nan")
    if "example" in keep and "pos" in keep:
        beyond = torch.arange(length) >= pairs.clean.lengths[:, None]
        total[beyond] = float("nan")
    attrs = pairs.attrs(model) | {
        "kind": "edge_scores", "method": method, "value": value.describe(), "metric": measure.name, "unit": measure.unit,
        "higher_is_better": measure.higher_is_better, "graph": json.dumps(asdict(graph.shape)), "prompt_ids": " ".join((*pairs.clean.ids, *pairs.corrupt.ids)),
    }  # fmt: skip
    coords: dict[str, Any] = {"example": np.arange(len(pairs)), "pos": np.arange(length)}
    coords = {axis: coords[axis] for axis in ("example", "pos") if axis in keep}
    coords |= {"writer": list(graph.writers), "reader": list(graph.readers)}
    values = total.reshape([len(labels) for labels in coords.values()])
    values = values if next(model.parameters()).dtype == torch.float64 else values.float()
    return effect_array(values, tuple(coords), coords, name="score", attrs=attrs)
