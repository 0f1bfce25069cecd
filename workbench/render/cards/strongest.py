"""The strongest cells of a result as a table, with the names that they have in circuits and their intervals.

Read `strongest`. The interval of a cell is its own: the strongest of many cells is likely weaker on new prompts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.errors import WorkbenchError
from workbench.render.figures.headings import word
from workbench.statistics import mean_interval
from workbench.text import visible

SHOWN = 8
"""Rows of a table that nobody asked to be longer."""
NAMED = ("site", "edge", "path", "node", "component", "writer", "reader", "circuit", "test", "control")
"""Axes whose labels are names by themselves."""


def strongest(
    result: xr.DataArray | xr.Dataset, n: int = SHOWN, *, circuit: Circuit | None = None
) -> pd.DataFrame:
    """The cells of an array, or of `summary`'s Dataset, with the largest means over prompts.

    Args:
        n: how many.
        circuit: whether it has the edge or the component is in the column `in circuit`.

    Returns:
        Columns `what`, `mean`, `low`, `high` (NaN for a single prompt), largest size first; `n` where cells were
        measured on different numbers of prompts.

    >>> data = xr.DataArray([[[0.0, 2.0]], [[0.0, 4.0]]], dims=("example", "layer", "head"))
    >>> strongest(data)[["what", "mean"]].values.tolist()
    [['a0.1', 3.0], ['a0.0', 0.0]]
    """
    means = means_of(result)
    flat = means.values.ravel()
    # NaN is what was not measured: it is never among the strongest.
    sizes = np.where(np.isfinite(flat), np.abs(flat), -1.0)
    chosen = np.argsort(-sizes, kind="stable")[: min(n, int((sizes >= 0).sum()))]
    places = [tuple(map(int, np.unravel_index(cell, means.shape))) for cell in chosen]
    low, high = _intervals(result, means, chosen)
    table = pd.DataFrame(
        {
            "what": [cell_name(means, place) for place in places],
            "mean": flat[chosen],
            "low": low,
            "high": high,
        }
    )
    counts = counts_of(result)
    if counts is not None and counts.min() < counts.max():
        table["n"] = counts.ravel()[chosen]
    if circuit is not None:
        table["in circuit"] = ["yes" if _has(circuit, name) else "" for name in table["what"]]
    return table


def is_summary(result: xr.DataArray | xr.Dataset) -> bool:
    """Whether a result has a mean and an interval for each cell, as `summary` returns them."""
    return isinstance(result, xr.Dataset) and {"mean", "low", "high"} <= set(result.data_vars)


def has_prompts(result: xr.DataArray) -> bool:
    """Whether cells have a number for every prompt; an array over prompts alone has no other cells."""
    return "example" in result.dims and result.dims != ("example",)


def at_largest(result: Any, sizes: xr.DataArray) -> Any:
    """The cell of a result where a number that it has for each is largest; NaN is left out."""
    return result.isel(sizes.argmax(...))


def means_of(result: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """The cells of a result: means over prompts where it has them."""
    if isinstance(result, xr.Dataset):
        if "mean" not in result:
            raise WorkbenchError(
                f"The cells of {', '.join(map(str, result.data_vars))} have no mean: take one of them."
            )
        return result["mean"]
    if result.dtype.kind not in "bfiu":
        raise WorkbenchError(
            f"The array {str(result.name or '')!r} holds {result.dtype}, and numbers are shown."
        )
    cells = result.astype(float)
    return cells.mean("example", keep_attrs=True) if has_prompts(result) else cells


def _intervals(
    result: xr.DataArray | xr.Dataset, means: xr.DataArray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends for the chosen cells; NaN where there is nothing to resample."""
    if isinstance(result, xr.Dataset) and is_summary(result):
        return result["low"].values.ravel()[chosen], result["high"].values.ravel()[chosen]
    if isinstance(result, xr.Dataset) or not has_prompts(result):
        return np.full(len(chosen), np.nan), np.full(len(chosen), np.nan)
    by_prompt = result.transpose("example", *means.dims).values.reshape(result.sizes["example"], -1)
    chosen_cells = by_prompt[:, chosen].astype(float)
    low, high = mean_interval(chosen_cells)
    # Resamples of a single number are that number, which is no interval.
    several = np.isfinite(chosen_cells).sum(0) > 1
    return np.where(several, low, np.nan), np.where(several, high, np.nan)


def counts_of(result: xr.DataArray | xr.Dataset) -> np.ndarray | None:
    """How many prompts each cell was measured on; None where the result does not say it."""
    if isinstance(result, xr.Dataset):
        return result["n"].values if "n" in result and result["n"].dims == result["mean"].dims else None
    if not has_prompts(result):
        return None
    return result.notnull().sum("example").values


def cell_name(cells: xr.DataArray, place: tuple[int, ...]) -> str:
    """The name of a cell: of an edge, a head, an MLP or a neuron where it is one, else its labels.

    >>> cell_name(xr.DataArray([[1.0]], coords={"layer": [3], "pos": ["END"]}, dims=("layer", "pos")), (0, 0))
    'layer 3, position END'
    """
    labels: dict[str, Any] = {}
    for axis, index in zip(map(str, cells.dims), place, strict=True):
        labels[axis] = cells[axis].values[index] if axis in cells.coords else index
    words = [_component_name(labels)]
    words += [visible(labels.pop(axis)) for axis in NAMED if axis in labels]
    words += [f"{word(axis)} {visible(label)}" for axis, label in labels.items()]
    return ", ".join(filter(None, words))


def _component_name(labels: dict[str, Any]) -> str:
    """The name that axes make together, which are taken out of the labels; "" where they make none."""
    if {"writer", "reader"} <= labels.keys():
        return f"{visible(labels.pop('writer'))}->{visible(labels.pop('reader'))}"
    for axis, name in (("head", "a{layer}.{head}"), ("neuron", "m{layer}:{neuron}")):
        if {"layer", axis} <= labels.keys():
            part = labels.pop(axis)
            layer = labels.pop("layer")
            return f"m{layer}" if part == "mlp" else name.format(**{"layer": layer, axis: part})
    return ""


def _has(circuit: Circuit, name: str) -> bool:
    """Whether a circuit has the edge or the component of a cell."""
    if "->" in name:
        return name in set(map(str, circuit.edge_list))
    return name in circuit.nodes


def interval(row: Mapping[str, Any], unit: str = "") -> str:
    """A mean with its interval and unit, in three digits.

    >>> interval({"mean": -2.3, "low": -2.9, "high": -1.8}, "logits")
    '-2.30 logits [-2.90, -1.80]'
    """
    text = f"{three_digits(float(row['mean']))}{f' {unit}' if unit else ''}"
    low, high = float(row["low"]), float(row["high"])
    # Where there is none nothing is said of it: a table beside the sentence has a dash.
    known = np.isfinite(low) and np.isfinite(high)
    return f"{text} [{three_digits(low)}, {three_digits(high)}]" if known else text


def three_digits(value: float) -> str:
    """A number with three digits, zeros at its end among them, so that numbers beside each other look alike.

    >>> three_digits(5.0), three_digits(-26.04), three_digits(999.6), three_digits(1234.0)
    ('5.00', '-26.0', '1000', '1234')
    """
    # from 999.5 on three digits are an exponent
    if abs(value) >= 999.5 or not np.isfinite(value):
        return f"{value:.0f}"
    return f"{value:#.3g}".removesuffix(".")
