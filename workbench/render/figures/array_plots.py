"""The figure of an array of effects, scores or measures, by its axes: `array_figure`.

One axis makes bars (or a line over layers), two a heatmap, more a panel for each cell of the leading ones.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.render.figures.array_axes import (
    axes_of_cells,
    by_layer_and_head,
    by_strength,
    comparable_positions,
    strongest_cells,
    up_to_end,
    without_single,
)
from workbench.render.figures.bar_plots import bars
from workbench.render.figures.canvas import Labels, Title
from workbench.render.figures.grids import heatmaps
from workbench.render.figures.line_plots import curve
from workbench.render.figures.notes import check_filled, mean_note, noted, over_examples
from workbench.statistics import summary

FEW_PATHS = 24
"""Paths that become bars and not a grid."""
TRAJECTORIES = ("logit_lens", "norms")
"""Kinds of results that are a line over layers, with a band over examples, when layers are their only axis.
"""


def array_figure(result: xr.DataArray, title: Title, labels: Labels) -> Figure:
    """The figure of an array, by its axes.

    Args:
        title: of the figure.
        labels: token strings of the position axes.
    Raises:
        WorkbenchError: it holds other things than numbers, or has no axis, or an empty one.
    """
    if result.dtype.kind not in "bfiu":
        raise WorkbenchError(
            f"The array {str(result.name or '')!r} holds {result.dtype}, and numbers are drawn."
        )
    if result.ndim:
        check_filled(result)
    if result.dims == ("example",):
        # under its own name the axis would be averaged, and one bar would be left
        return bars(result.rename(example="prompt"), title=title)
    if not result.ndim:
        raise WorkbenchError(
            "A single number cannot be drawn: keep an axis of the result, such as its examples."
        )
    result = comparable_positions(result)
    result = strongest_cells(by_layer_and_head(without_single(up_to_end(result))))
    axes = axes_of_cells(result)
    if _are_few_paths(result):
        return _path_bars(result, title)
    if len(axes) > 1:
        return heatmaps(result, title=title, labels=labels)
    with_interval = None
    if result.sizes.get("example", 1) > 1:  # one example has no spread
        with_interval = summary(result)
    if axes == ["layer"] and result.attrs.get("kind") in TRAJECTORIES:
        return _trajectory(result, with_interval, title)
    if with_interval is None:
        return bars(result, title=title, labels=labels)
    return bars(result, low=with_interval["low"], high=with_interval["high"], title=title, labels=labels)


def _are_few_paths(result: xr.DataArray) -> bool:
    """Whether it is a table of so few writers and readers that bars with intervals say more than a grid."""
    cells = result.sizes.get("writer", 0) * result.sizes.get("reader", 0)
    return set(axes_of_cells(result)) == {"writer", "reader"} and cells <= FEW_PATHS


def _path_bars(result: xr.DataArray, title: Title) -> Figure:
    """A bar for each measured path, named `writer→reader`, the strongest first."""
    flat = result.stack(path=("writer", "reader"), create_index=False)
    ends = zip(flat["writer"].values, flat["reader"].values, strict=True)
    named = flat.drop_vars(("writer", "reader")).assign_coords(
        path=np.array([f"{writer} → {reader}" for writer, reader in ends], dtype=object)
    )
    order = by_strength(named.transpose("path", ...))
    means = over_examples(named)
    measured = [i for i in order if np.isfinite(float(means[int(i)]))]
    shown = named.isel(path=measured)
    if shown.sizes.get("example", 1) > 1:
        interval = summary(shown)
        return bars(shown, low=interval["low"], high=interval["high"], title=title)
    return bars(shown, title=title)


def _trajectory(result: xr.DataArray, with_interval: xr.Dataset | None, title: Title) -> Figure:
    """A line over layers, with a band over examples where there are several."""
    if with_interval is None:
        data = over_examples(result).to_dataset(name="mean")
        return curve(data.assign_attrs(_facts(result)), x="layer", y="mean", title=title)
    data = with_interval.assign_attrs(_facts(result))
    return curve(data, x="layer", y="mean", low="low", high="high", title=title)


def _facts(result: xr.DataArray) -> dict[str, Any]:
    """Attributes of a mean over examples for a curve."""
    note = ""
    if result.sizes.get("example", 1) > 1:
        note = mean_note(result)
    return dict(noted(result, note).attrs) | {"quantity": str(result.name or "value")}
