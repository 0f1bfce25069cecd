"""Lines with their intervals as bands, and bars with theirs as strokes.

`curve` and `bars`, of one series or several.

`draw_line` and `draw_bars` do the same on axes that exist. Which result becomes a line is decided in `plots`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.errors import WorkbenchError
from workbench.render.figures.canvas import (
    DASHED,
    GREY,
    GROUND,
    INK,
    LABEL,
    LEGEND,
    POSITIONS,
    SERIES,
    Picture,
    axes_of,
    check_filled,
    label_axis,
    legend_name,
    light_grid,
    names_of,
    over_examples,
    plain_ticks,
    set_title,
    settled,
    styled,
    word,
)
from workbench.render.writing import BLUE, RED
from workbench.text import visible

_LONG, _LONGEST = 12, 44
"""Names of more than 12 characters stand beside horizontal bars, cut at 44."""


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
    for name in (x, y, low, high, over):
        if name is not None and name not in dataset.variables and name not in dataset.dims:
            raise WorkbenchError(
                f"The dataset has no {name!r}. It has: {', '.join(map(str, dataset.variables))}."
            )
    if dataset[y].ndim != 1 + (over is not None):
        needs = "one axis" if over is None else f"two axes, of which {over!r} is one"
        raise WorkbenchError(f"A curve needs {needs}; {y!r} has {axes_of(dataset[y])}.")
    if not bool(np.isfinite(dataset[y]).any()):
        raise WorkbenchError(f"There is nothing to draw: no cell of {y!r} was measured.")
    lines = _series(dataset, y, over)
    with styled():
        figure = Picture(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        if reference is not None:
            axes.axhline(reference, **DASHED)
        places, known = np.zeros(0), np.zeros(0, dtype=bool)  # of all lines together
        for i, (label, line) in enumerate(lines):
            order = np.argsort(line[x].values, kind="stable")
            names = [name for name in (x, y, low, high) if name is not None]
            at, *numbers = (np.asarray(line[name].values, dtype=float)[order] for name in names)
            measured = np.isfinite(numbers[0])
            places, known = np.concatenate([places, at]), np.concatenate([known, measured])
            if not measured.any():
                label += " (not measured)"
            draw_line(axes, at, *numbers, colour=SERIES[i % len(SERIES)], label=label)
        _hatch(axes, places, known)
        if over is not None:
            axes.legend(title=word(over), title_fontsize=8, alignment="left", **LEGEND)
        _scale(axes, places, log)
        if np.array_equal(places, places.round()) and axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        is_share = x == "size" and bool((places <= 1).all())
        axes.set_xlabel("share of edges" if is_share else word(x))
        quantity = dataset[y].attrs.get("long_name")
        if not quantity and y == "mean":
            quantity = dataset.attrs.get("quantity")
        axes.set_ylabel(visible(quantity) if quantity else word(y))
        light_grid(axes)
        set_title(axes, dataset, title)
        return settled(figure)


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


def bars(
    result: xr.DataArray,
    *,
    low: xr.DataArray | None = None,
    high: xr.DataArray | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    reference: float | None = None,
) -> Figure:
    """One bar per cell of a result with one axis besides `example`; a cell that was not measured is hatched.

    With two axes each label of the first is a series of its own colour. Long names lie beside horizontal
    bars.

    Args:
        low, high: the interval of each cell, drawn as a line over its bar.
        reference: a level to mark with a dashed line.
    """
    result = over_examples(result)
    if result.ndim not in (1, 2):
        raise WorkbenchError(
            f"Bars need one axis besides example, or two; this result has {axes_of(result)}."
        )
    check_filled(result)
    dim = str(result.dims[-1])
    names, _ = names_of(result, dim, labels)
    longest = max((len(visible(name)) for name in names), default=0)
    lying = dim not in POSITIONS and longest > _LONG
    n = result.size if result.ndim == 2 else len(names)
    length = 1.4 + n * (0.22 if lying or result.ndim == 2 else 0.32)
    size = (6.8, min(14, max(2.0, length))) if lying else (min(14, max(4.2, length)), 3.2)
    with styled():
        figure = Picture(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw_bars(axes, result, low, high, lying=lying)
        if reference is not None:
            mark_reference(axes, reference, lying=lying)
        name_bars(
            axes, result, labels, lying=lying, length=size[lying] - (0.8 if lying else 1.2), most=_LONGEST
        )
        if result.ndim == 2:
            axes.legend(title=word(result.dims[0]), title_fontsize=8, alignment="left", **LEGEND)
        set_title(axes, result, title)
        return settled(figure)


def mark_reference(axes: Axes, value: float, *, lying: bool) -> None:
    """A dashed line across the bars at a value of theirs."""
    _Drawers.on(axes, lying).level(value, **DASHED)


def name_bars(
    axes: Axes, result: xr.DataArray, labels: Sequence[str] | None, *, lying: bool, length: float, most: int,
    quantity: str | None = None,
) -> None:  # fmt: skip
    """The quantity along the bars, and their names beside them.

    Args:
        length: of the axis of the names, in inches.
        most: characters of a name beside lying bars; below standing ones they are 16.
        quantity: by default the name of the result.
    """
    set_quantity = axes.set_xlabel if lying else axes.set_ylabel
    set_quantity(quantity or word(result.name or "value"))
    dim, which = str(result.dims[-1]), "y" if lying else "x"
    label_axis(axes, which, result, dim, labels, inches=length, most=most if lying else LABEL)
    if lying:  # the names say what they are
        axes.set_ylabel("")


@dataclass(frozen=True)
class _Drawers:
    """The functions that draw on axes with standing or with lying bars.

    Attributes:
        bar: at a place, of a length and a width.
        interval: a line over a bar, from one value to another.
        span: a band over all values, from one place to another.
        level: a line across all bars, at a value.
    """

    bar: Callable[..., Any]
    interval: Callable[..., Any]
    span: Callable[..., Any]
    level: Callable[..., Any]

    @classmethod
    def on(cls, axes: Axes, lying: bool) -> "_Drawers":
        if lying:
            return cls(axes.barh, axes.hlines, axes.axhspan, axes.axvline)
        return cls(axes.bar, axes.vlines, axes.axvspan, axes.axhline)


def draw_bars(
    axes: Axes, result: xr.DataArray, low: xr.DataArray | None, high: xr.DataArray | None, *,
    lying: bool = False, colours: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Bars of one series, or of several side by side, with their intervals; what was not measured is hatched.

    Args:
        colours: of the bars of one series; by default blue, and red below 0.
    """
    values = np.atleast_2d(np.asarray(result.values, dtype=float))  # [series, bar]
    bounds = []
    if low is not None and high is not None:
        bounds = [np.atleast_2d(np.asarray(end.values, dtype=float)) for end in (low, high)]
    names = [""] if result.ndim == 1 else names_of(result, str(result.dims[0]), None)[0]
    width, known = 0.72 / len(values), np.isfinite(values)
    draw = _Drawers.on(axes, lying)
    for i, (row, name) in enumerate(zip(values, names, strict=True)):
        places = np.arange(values.shape[1]) + (i - (len(values) - 1) / 2) * width
        shown = known[i]
        shades: Any = SERIES[i % len(SERIES)]
        if len(values) == 1:
            by_bar = colours or [BLUE if value >= 0 else RED for value in row]
            shades = [by_bar[bar] for bar in np.flatnonzero(shown).tolist()]
        # without a label matplotlib makes one of its own, which legends leave out
        label: dict[str, Any] = {"label": legend_name(name)} if name else {}
        draw.bar(places[shown], row[shown], width, color=shades, **label)
        if bounds:
            low_end, high_end = (end[i][shown] for end in bounds)
            draw.interval(places[shown], low_end, high_end, color=INK, linewidth=1.3)
        for place in places[~shown].tolist():
            draw.span(place - width * 0.55, place + width * 0.55, linewidth=0, **GROUND)
    draw.level(0, color=GREY, linewidth=0.8)
    if lying:  # the first bar at the top
        axes.set_ylim(values.shape[1] - 0.4, -0.6)
    light_grid(axes, "x" if lying else "y")


def side_by_side(dataset: xr.Dataset, names: Sequence[str], axis: str, *, quantity: str) -> xr.Dataset:
    """Variables NAME with their NAME_low and NAME_high as `mean`, `low`, `high` over a new axis of their
    names.

    A variable without an interval has NaN there.
    """
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
