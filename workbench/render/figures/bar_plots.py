"""Bars with their intervals as strokes: `bars`, of one series or of several side by side.

`draw_bars`, `name_bars` and `mark_reference` do the same on axes that exist.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.render.figures.axis_labels import LABEL, POSITIONS, label_axis, names_of
from workbench.render.figures.canvas import (
    DASHED,
    GREY,
    GROUND,
    INK,
    LEGEND,
    NARROWEST,
    SERIES,
    Picture,
    light_grid,
    settled,
    styled,
)
from workbench.render.figures.cells import number_texts
from workbench.render.figures.headings import legend_name, set_title, word
from workbench.render.figures.meaning import oriented, quantity_of, supporting_sign
from workbench.render.figures.notes import axes_of, check_filled, over_examples
from workbench.render.writing import BLUE, ORANGE
from workbench.text import visible

NUMBERED = 40
"""Bars whose numbers are written beside them."""
_LONG, _LONGEST = 12, 44
"""Names of more than 12 characters stand beside horizontal bars, cut at 44."""


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
    longest = max(map(len, map(visible, names)), default=0)
    lying = dim not in POSITIONS and longest > _LONG
    length = 1.4 + result.size * (0.22 if lying or result.ndim == 2 else 0.32)
    # the margins with the quantity and the title take a part of the length; the names get the rest
    if lying:
        length = min(14, max(2.0, length))
        size, room = (6.8, length), length - 0.8
    else:
        length = min(14, max(NARROWEST, length))
        size, room = (length, 3.4), length - 1.2
    with styled():
        figure = Picture(figsize=size, layout="constrained")
        axes = figure.subplots()
        colours = None
        if result.ndim == 1:
            colours = sign_colours(result)
        draw_bars(axes, result, low, high, lying=lying, colours=colours)
        if result.ndim == 1 and result.size <= NUMBERED:
            write_numbers(axes, result, low, high, lying=lying)
        if reference is not None:
            mark_reference(axes, reference, lying=lying)
        name_bars(axes, result, labels, lying=lying, length=room, most=_LONGEST)
        if result.ndim == 2:
            axes.legend(title=word(result.dims[0]), title_fontsize=8, alignment="left", **LEGEND)
        set_title(axes, result, title)
        return settled(figure)


def sign_colours(result: xr.DataArray) -> list[str]:
    """The colour of each bar: blue where its number supports the behaviour, orange where it opposes it."""
    turned = oriented(np.asarray(result.values, dtype=float), supporting_sign(result))
    return [BLUE if value >= 0 else ORANGE for value in turned]


def write_numbers(
    axes: Axes, result: xr.DataArray, low: xr.DataArray | None, high: xr.DataArray | None, *, lying: bool
) -> None:
    """The number of each bar at its end, beyond its interval."""
    values = np.asarray(result.values, dtype=float)
    texts = number_texts(values)
    ends = values.copy()
    if low is not None and high is not None:
        farther = np.where(values >= 0, high.values, low.values).astype(float)
        ends = np.where(np.isfinite(farther), farther, values)
    for place, (end, text) in enumerate(zip(ends.tolist(), texts.tolist(), strict=True)):
        if not np.isfinite(end):
            continue
        away = 4 if values[place] >= 0 else -4
        # beyond the end of the bar and of its interval, on the side where the bar ends
        if lying:
            at, offset = (end, place), (away, 0)
            across, along = ("left" if away > 0 else "right"), "center"
        else:
            at, offset = (place, end), (0, away)
            across, along = "center", ("bottom" if away > 0 else "top")
        axes.annotate(
            text, at, xytext=offset, textcoords="offset points", fontsize=7.5, color=INK, ha=across, va=along
        )
    if lying:
        axes.margins(x=0.12)
    else:
        axes.margins(y=0.16)


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
    quantity = quantity or quantity_of(result, word(result.name or "value"))
    dim = str(result.dims[-1])
    if lying:
        axes.set_xlabel(quantity)
        label_axis(axes, "y", result, dim, labels, inches=length, most=most)
        axes.set_ylabel("")  # no label, since the names say what they are
    else:
        axes.set_ylabel(quantity)
        label_axis(axes, "x", result, dim, labels, inches=length, most=LABEL)


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
        """Those of lying bars, or of standing ones."""
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
    # a single series is drawn as one of several
    values = np.atleast_2d(np.asarray(result.values, dtype=float))
    bounds = []
    if low is not None and high is not None:
        bounds = [np.atleast_2d(np.asarray(end.values, dtype=float)) for end in (low, high)]
    names = [""]
    if result.ndim == 2:
        names, _ = names_of(result, str(result.dims[0]), None)
    # 0.72 of the room of a bar or group of bars; the rest is the gap that tells groups apart
    width, known = 0.72 / len(values), np.isfinite(values)
    draw = _Drawers.on(axes, lying)
    for i, (row, name) in enumerate(zip(values, names, strict=True)):
        places = np.arange(values.shape[1]) + (i - (len(values) - 1) / 2) * width
        shown = known[i]
        shades: Any = SERIES[i % len(SERIES)]
        if len(values) == 1:
            by_bar = colours or [BLUE if value >= 0 else ORANGE for value in row]
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
    if lying:  # reversed, because matplotlib would put the first bar at the bottom
        axes.set_ylim(values.shape[1] - 0.4, -0.6)
        light_grid(axes, "x")
    else:
        light_grid(axes)
