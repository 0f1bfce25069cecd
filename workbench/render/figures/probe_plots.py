"""Pictures of probes: how well a concept is read at every layer, beside controls, and whether it is used.

Begin with `probe_figure` (one concept) and `causal_figure`. Nothing is fitted here.
"""

from itertools import cycle, product
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.errors import WorkbenchError
from workbench.render.figures.bar_plots import draw_bars
from workbench.render.figures.canvas import (
    DASHED,
    GREY,
    LEGEND,
    SERIES,
    SHADES,
    Picture,
    common_legend,
    is_narrow,
    light_grid,
    settled,
    styled,
)
from workbench.render.figures.grids import MOST_PANELS
from workbench.render.figures.headings import set_heading
from workbench.text import visible

CONTROLS = {
    "shuffle": ("shuffled labels", GREY),
    "random-features": ("random features", "#b45309"),
    "control-task": ("control task", "#7c3aed"),
}
"""Kinds of controls: how a legend calls them, and their colour."""
BASELINES = ("#0f766e", "#be185d", "#4d7c0f")
_INNER = ("layer", "k", "control")
"""The axes that one pair of axes shows."""
_USED, _NOT_SHOWN = "#2369b0", "#9dbfe0"


def probe_figure(
    results: xr.Dataset, baselines: xr.Dataset | None, concept: str, *, measure: str | None = None
) -> Figure:
    """The held-out score of a concept's probes over layers.

    There is a line for each k, with the interval of the largest k. Controls are dashed, with the range of
    their draws; probes on all features are dotted.

    Args:
        results, baselines: of one kind of site, one position and one selector: axes layer, k, control.
        concept: one of the labels.
        measure: by default accuracy for classes and r2 for numbers.
    Raises:
        WorkbenchError: an axis is left open, or the concept was not measured.
    """
    cell = results.sel(concept=concept)
    extra = [axis for axis in cell["accuracy"].dims if axis not in _INNER]
    if extra:
        raise WorkbenchError(f"A picture of probes shows one {', '.join(map(str, extra))}: select it first.")
    with styled():
        figure = Picture(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        dense = None
        if baselines is not None:
            dense = baselines.sel(concept=concept)
        _draw(axes, cell, dense, concept, measure)
        axes.set_title(visible(concept))
        axes.legend(**LEGEND)
        return settled(figure)


def probe_figures(results: xr.Dataset, baselines: xr.Dataset | None, *, title: str | None = None) -> Figure:
    """`probe_figure` of every concept, kind of site, position and selector, a panel each, up to
    `MOST_PANELS`.
    """
    open_axes = [str(axis) for axis in results["accuracy"].dims if axis not in _INNER]
    cells = []
    for labels in product(*(results[axis].values.tolist() for axis in open_axes)):
        cell = dict(zip(open_axes, labels, strict=True))
        if _measured(results.sel(cell)):
            cells.append(cell)
    if not cells:
        raise WorkbenchError("There is nothing to draw: no probe was measured.")
    shown = cells[:MOST_PANELS]
    across = 1 if is_narrow() else _columns(len(shown))
    down = -(-len(shown) // across)
    with styled({"axes.titlesize": 9.5}):
        figure = Picture(figsize=(2.2 + 4.2 * across, 1.2 + 2.6 * down), layout="constrained")
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        lines: dict[str, Any] = {}  # by name, so that the legend has each once
        for axes, cell in zip(grid, shown, strict=False):
            dense = None
            if baselines is not None:
                # baselines have no selector: they use all features
                dense = baselines.sel({axis: label for axis, label in cell.items() if axis in baselines.dims})
            _draw(axes, results.sel(cell), dense, str(cell.get("concept", "")), None)
            axes.set_title(_cell_name(results, cell))
            handles, names = axes.get_legend_handles_labels()
            for name, handle in zip(names, handles, strict=True):
                lines.setdefault(name, handle)
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        # one legend for all: a panel may lack lines that were not measured for its cell
        common_legend(figure, lines.values(), lines.keys())
        left_out = len(cells) - len(shown)
        note = "solid: k features, with the 95 % interval of the largest k · dashed: controls, mean and range of draws"
        if left_out:
            note += f" · the first {len(shown)} of {len(cells)} panels; {left_out} left out"
        set_heading(figure, results.assign_attrs(note=note), title)
        return settled(figure)


def _columns(n: int) -> int:
    """How many panels stand side by side."""
    if n == 1:
        return 1
    if n < 7:
        return 2
    return 3


def _cell_name(results: xr.Dataset, cell: dict[str, Any]) -> str:
    """The concept, and the labels of every other axis that has more than one."""
    words = [str(label) for axis, label in cell.items() if results.sizes[axis] > 1 or axis == "concept"]
    if words:
        return visible(", ".join(words))
    return ""


def causal_figure(result: xr.Dataset, *, title: str | None = None) -> Figure:
    """The effect of erasing and of swapping a probe's direction at each layer, beside the largest of the
    random directions.

    Full colour: the model uses the direction (`used`); pale: it is not shown to use it. Grey: the range of
    random directions.
    """
    edits = list(map(str, np.atleast_1d(result["edit"].values)))
    for axis in ("edit", "layer"):
        if axis not in result.dims:  # an edit or layer that was selected has lost its axis
            result = result.expand_dims(axis)
    result = result.transpose("layer", "edit", ...)
    width = 2.6 + len(edits) * max(2.4, 0.5 * result.sizes["layer"])
    with styled({"axes.titlesize": 9.5}):
        figure = Picture(figsize=(width, 3.8), layout="constrained")
        grid = figure.subplots(1, len(edits), squeeze=False, sharey=True)[0]
        for axes, edit in zip(grid, edits, strict=True):
            _draw_edit(axes, result.sel(edit=edit), edit)
        _causal_legend(grid[-1])
        unit = f" ({result.attrs['unit']})" if result.attrs.get("unit") else ""
        grid[0].set_ylabel(f"change of {result.attrs.get('metric', 'the metric')}{unit}")
        facts = [
            f"{name} {result.attrs[name]}" for name in ("concept", "site", "position") if name in result.attrs
        ]
        set_heading(figure, result.assign_attrs(note=" · ".join(facts)), title)
        return settled(figure)


def _draw_edit(axes: Axes, cell: xr.Dataset, edit: str) -> None:
    """The effects of one edit over layers."""
    reach, places = cell["random"].values, np.arange(cell.sizes["layer"])
    axes.bar(places, 2 * reach, 0.92, bottom=-reach, color="#dbe1e8", label="random directions")
    colours = [_USED if used else _NOT_SHOWN for used in cell["used"].values]
    draw_bars(axes, cell["effect"], cell["low"], cell["high"], colours=colours)
    if edit == "swap":
        whole = cell["whole"].values
        axes.plot(places, whole, "D", color=SERIES[1], markersize=4.5, label="whole activation")
    if "total" in cell.attrs:
        axes.axhline(float(cell.attrs["total"]), **DASHED)
    axes.set_xticks(places, list(map(str, cell["layer"].values)))
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("layer")
    axes.set_title(visible(edit))


def _causal_legend(axes: Axes) -> None:
    """What the colours mean: bars have one of two, so samples of both stand in for them."""
    axes.bar([0], [0], color=_USED, label="effect, used")
    axes.bar([0], [0], color=_NOT_SHOWN, label="effect, not shown to be used")
    axes.plot([], [], label="corrupt run", **DASHED)
    axes.legend(**LEGEND)


def _measured(cell: xr.Dataset) -> bool:
    return any(bool(cell[name].notnull().any()) for name in ("accuracy", "r2"))


def _draw(
    axes: Axes, cell: xr.Dataset, baselines: xr.Dataset | None, concept: str, measure: str | None
) -> None:
    if measure is None:
        # accuracy is NaN for concepts that are numbers, r2 for those that are classes
        measure = "r2"
        if bool(cell["accuracy"].notnull().any()):
            measure = "accuracy"
    if not bool(cell[measure].notnull().any()):
        raise WorkbenchError(f"The probes of {concept!r} have no {measure}: none was measured.")
    cell = cell.transpose("layer", "k", "control", ...)
    layers, ks = cell["layer"].values, cell["k"].values
    _draw_controls(axes, cell, measure)
    probes = cell.sel(control="none")
    # the palette begins at white, so the palest line is a third of the way into it
    for depth, k in zip(np.linspace(0.35, 1, len(ks)), ks, strict=True):
        line, colour = probes.sel(k=k), matplotlib.colormaps[SHADES](depth)
        axes.plot(
            layers, line[measure], color=colour, marker="o", markersize=3.5, linewidth=1.7, label=f"k = {k}"
        )
        if k == ks[-1]:  # the bands of all of them would hide each other
            low, high = line[f"{measure}_low"], line[f"{measure}_high"]
            axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    if baselines is not None:
        for name, colour in zip(baselines["baseline"].values, cycle(BASELINES), strict=False):
            values, label = baselines.sel(baseline=name, control="none")[measure], f"{name}, all features"
            axes.plot(layers, values, color=colour, linestyle=":", linewidth=1.6, label=label)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"held-out {measure.replace('_', ' ')}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    light_grid(axes)


def _draw_controls(axes: Axes, cell: xr.Dataset, measure: str) -> None:
    """Each kind of control at the largest k: the mean of its draws, and their range."""
    largest = cell.isel(k=-1)
    layers = largest["layer"].values
    for kind, (label, colour) in CONTROLS.items():
        draws = largest[measure].values[:, largest["control_kind"].values == kind]
        if not np.isfinite(draws).any():
            continue
        low, mean, high = np.nanmin(draws, 1), np.nanmean(draws, 1), np.nanmax(draws, 1)
        axes.fill_between(layers, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(layers, mean, color=colour, linestyle=(0, (4, 3)), linewidth=1.3, label=label)
