"""Lines with their intervals as bands: `curve`, one line or one for each label of a second axis.

`draw_line` does the same on axes that exist. Which result becomes a line is decided in `array_plots` and
`dataset_plots`.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.errors import WorkbenchError
from workbench.render.figures.axis_labels import names_of
from workbench.render.figures.canvas import (
    DASHED,
    GROUND,
    LEGEND,
    SERIES,
    Picture,
    light_grid,
    plain_ticks,
    settled,
    styled,
)
from workbench.render.figures.headings import legend_name, set_title, word
from workbench.render.figures.notes import axes_of
from workbench.text import visible


def curve(
    dataset: xr.Dataset,
    *,
    x: str,
    y: str,
    low: str | None = None,
    high: str | None = None,
    over: str | None = None,
    title: str | None = None,
    log: bool | None = None,
    reference: float | None = None,
) -> Figure:
    """A line with its interval as a band, or one for each label of a second axis.

    Args:
        x: axis or coordinate.
        y: variable.
        low, high: variables of the interval.
        over: the axis whose labels get a line each, such as `method`.
        log: logarithmic x; by default for sizes that span more than a factor of 20.
        reference: a level to mark with a dashed line, such as the faithfulness 1 of the whole model.
    Raises:
        WorkbenchError: a variable that the dataset lacks, that has other axes than x and `over`, or that was
            not measured.

    Where no line was measured, x is hatched; a line has a gap where it alone was not.
    """
    _check_variables(dataset, (x, y, low, high, over))
    _check_measured(dataset, y, over)
    lines = _series(dataset, y, over)
    with styled():
        figure = Picture(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        if reference is not None:
            axes.axhline(reference, **DASHED)
        places, known = np.zeros(0), np.zeros(0, dtype=bool)  # of all lines together, as they share one scale
        for i, (label, line) in enumerate(lines):
            order = np.argsort(line[x].values, kind="stable")
            names = [name for name in (x, y, low, high) if name is not None]
            at, *numbers = (np.asarray(line[name].values, dtype=float)[order] for name in names)
            measured = np.isfinite(numbers[0])
            places, known = np.concatenate([places, at]), np.concatenate([known, measured])
            # it has no line in the figure, and a legend that lacks it would hide that it was asked for
            if not measured.any():
                label += " (not measured)"
            draw_line(axes, at, *numbers, colour=SERIES[i % len(SERIES)], label=label)
        _hatch(axes, places, known)
        if over is not None:
            axes.legend(title=word(over), title_fontsize=8, alignment="left", **LEGEND)
        _scale(axes, places, log)
        # layers and sizes are whole numbers: ticks such as 2.5 would name what does not exist
        if np.array_equal(places, places.round()) and axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _name_axes(axes, dataset, x, y, places)
        light_grid(axes)
        set_title(axes, dataset, title)
        return settled(figure)


def _check_variables(dataset: xr.Dataset, names: Sequence[str | None]) -> None:
    """Raises `WorkbenchError` for a name that is neither a variable nor an axis."""
    for name in names:
        if name is not None and name not in dataset.variables and name not in dataset.dims:
            raise WorkbenchError(
                f"The dataset has no {name!r}. It has: {', '.join(map(str, dataset.variables))}."
            )


def _check_measured(dataset: xr.Dataset, y: str, over: str | None) -> None:
    """Raises `WorkbenchError` for a variable with other axes than a curve has, or without a number."""
    if dataset[y].ndim != 1 + (over is not None):
        needs = "one axis"
        if over is not None:
            needs = f"two axes, of which {over!r} is one"
        raise WorkbenchError(f"A curve needs {needs}; {y!r} has {axes_of(dataset[y])}.")
    if not bool(np.isfinite(dataset[y]).any()):
        raise WorkbenchError(f"There is nothing to draw: no cell of {y!r} was measured.")


def _name_axes(axes: Axes, dataset: xr.Dataset, x: str, y: str, places: np.ndarray) -> None:
    """The words of both axes; sizes of at most 1 are shares."""
    is_share = x == "size" and bool((places <= 1).all())
    axes.set_xlabel(word(x))
    if is_share:
        axes.set_xlabel("share of edges")
    quantity = dataset[y].attrs.get("long_name")
    if not quantity and y == "mean":
        quantity = dataset.attrs.get("quantity")
    axes.set_ylabel(word(y))
    if quantity:
        axes.set_ylabel(visible(quantity))


def _series(dataset: xr.Dataset, y: str, over: str | None) -> list[tuple[str, xr.Dataset]]:
    """Label and data of every line; one without a label where there is no further axis."""
    if over is None:
        return [("", dataset)]
    names, _ = names_of(dataset[y], over, None)
    return [(legend_name(name), dataset.isel({over: i})) for i, name in enumerate(names)]


def draw_line(
    axes: Axes, at: np.ndarray, mean: np.ndarray,
    low: np.ndarray | None = None, high: np.ndarray | None = None, *, colour: str, label: str = "",
) -> None:  # fmt: skip
    """A line with a mark at every number, and its interval as a band."""
    if low is not None and high is not None:
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(at, mean, color=colour, marker="o", markersize=4, linewidth=1.8, label=label or None)


def side_by_side(dataset: xr.Dataset, names: Sequence[str], axis: str, *, quantity: str) -> xr.Dataset:
    """Variables NAME, NAME_low and NAME_high as `mean`, `low`, `high` over a new axis of their names.

    A variable without an interval has NaN there.
    """
    # dtype float, because NaN would turn to a number in a variable of integers
    nothing = xr.full_like(dataset[names[0]], np.nan, dtype=float)
    columns = {}
    for end, tail in (("mean", ""), ("low", "_low"), ("high", "_high")):
        variables = [dataset.get(name + tail, nothing) for name in names]
        columns[end] = xr.concat(variables, dim=axis, coords="minimal", compat="override")
    label = np.array([name.replace("_", " ") for name in names], dtype=object)
    return xr.Dataset(columns, attrs=dataset.attrs | {"quantity": quantity}).assign_coords({axis: label})


def _hatch(axes: Axes, places: np.ndarray, known: np.ndarray) -> None:
    """Hatches x around the places where nothing is known, up to the middle between a place and the next."""
    every = np.unique(places)
    middle = (every[1:] + every[:-1]) / 2
    for place, left, right in zip(every, [every[0], *middle], [*middle, every[-1]], strict=True):
        if not known[places == place].any():
            axes.axvspan(left, right, linewidth=0, **GROUND)


def _scale(axes: Axes, places: np.ndarray, log: bool | None) -> None:
    """A logarithmic x where it is asked for, or by default where sizes span more than a factor of 20."""
    positive = places[places > 0]
    if log is None:
        log = len(positive) > 1 and bool(positive.max() > 20 * positive.min())
    if not log:
        return
    if (places <= 0).any():
        # 0 edges has no logarithm, and is worth showing: the axis is linear below the smallest size
        axes.set_xscale("symlog", linthresh=positive.min())
    else:
        axes.set_xscale("log")
    plain_ticks(axes.xaxis)
