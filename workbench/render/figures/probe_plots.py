"""Pictures of probes: how well a concept can be read at every layer beside its controls, and whether the model uses it."""

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.errors import WorkbenchError
from workbench.render.figures.canvas import (
    GREY,
    LEGEND,
    SERIES,
    SHADES,
    Picture,
    light_grid,
    set_heading,
    settled,
    styled,
)
from workbench.render.figures.grids import MOST_PANELS
from workbench.render.figures.line_plots import draw_bars
from workbench.text import visible

CONTROLS = {"shuffle": ("shuffled labels", GREY), "random-features": ("random features", "#b45309"), "control-task": ("control task", "#7c3aed")}  # fmt: skip
BASELINES = ("#0f766e", "#be185d", "#4d7c0f")
_INNER = ("layer", "k", "control")


def probe_figure(
    results: xr.Dataset, baselines: xr.Dataset | None, concept: str, *, measure: str | None = None
) -> Figure:
    """The held-out measure of a concept's probes over layers: a line for each k, with the interval of the largest; controls
    dashed, with the range of their draws; probes on all features dotted.

    Args:
        results, baselines: of one kind of site, one position and one selector: axes layer, k, control.
        measure: accuracy for classes and r2 for numbers, unless told.
    Raises:
        WorkbenchError: an axis is left open, or the concept was not measured.
    """
    cell = results.sel(concept=concept)
    extra = [axis for axis in cell["accuracy"].dims if axis not in _INNER]
    if extra:
        raise WorkbenchError(f"A picture of probes is of one {', '.join(map(str, extra))}: select it first.")
    with styled():
        figure = Picture(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        _draw(axes, cell, None if baselines is None else baselines.sel(concept=concept), concept, measure)
        axes.set_title(visible(concept))
        axes.legend(**LEGEND)
        return settled(figure)


def probe_figures(results: xr.Dataset, baselines: xr.Dataset | None, *, title: str | None = None) -> Figure:
    """`probe_figure` of every concept, kind of site, position and selector, a panel each: at most `MOST_PANELS`."""
    open_axes = [str(axis) for axis in results["accuracy"].dims if axis not in _INNER]
    panels: list[dict[str, Any]] = [{}]
    for axis in open_axes:
        panels = [place | {axis: label} for place in panels for label in results[axis].values.tolist()]
    panels = [place for place in panels if _measured(results.sel(place))]
    if not panels:
        raise WorkbenchError("There is nothing to draw: no probe was measured.")
    shown = panels[:MOST_PANELS]
    across = 1 if len(shown) == 1 else 2 if len(shown) < 7 else 3
    down = -(-len(shown) // across)
    with styled(axes_titlesize=9.5):
        figure = Picture(figsize=(2.0 + 4.2 * across, 0.6 + 2.6 * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        lines: dict[str, Any] = {}
        for axes, place in zip(grid.flat, shown, strict=False):
            dense = None
            if baselines is not None:
                dense = baselines.sel(
                    {axis: label for axis, label in place.items() if axis in baselines.dims}
                )
            _draw(axes, results.sel(place), dense, str(place.get("concept", "")), None)
            words = [
                str(label) for axis, label in place.items() if results.sizes[axis] > 1 or axis == "concept"
            ]
            axes.set_title(visible(", ".join(words)) if words else "")
            handles, names = axes.get_legend_handles_labels()
            lines |= {name: handle for name, handle in zip(names, handles, strict=True) if name not in lines}
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_axis_off()
        legend = {"loc": "outside right upper", "frameon": False, "fontsize": 8}
        figure.legend(lines.values(), lines.keys(), **legend)
        left = len(panels) - len(shown)
        note = f"the first {len(shown)} of {len(panels)} panels; {left} left out" if left else ""
        set_heading(figure, results.assign_attrs(note=note), title)
        return settled(figure)


def causal_figure(found: xr.Dataset, *, title: str | None = None) -> Figure:
    """The effect of erasing and of swapping a probe's direction at each layer, beside the largest of the random directions.

    Full colour: the model uses the direction (`used`); pale: not shown to. Grey: up to where random directions reach.
    """
    edits = [str(edit) for edit in np.atleast_1d(found["edit"].values)]
    found = found if "edit" in found.dims else found.expand_dims("edit")
    found = (found if "layer" in found.dims else found.expand_dims("layer")).transpose("layer", "edit", ...)
    layers = found["layer"].values
    facts = {name: found.attrs[name] for name in ("concept", "site", "position") if name in found.attrs}
    with styled(axes_titlesize=9.5):
        figure = Picture(figsize=(1.9 + len(edits) * max(2.2, 0.5 * len(layers)), 3.2), layout="constrained")
        grid = figure.subplots(1, len(edits), squeeze=False, sharey=True)
        for axes, edit in zip(grid[0], edits, strict=True):
            cell = found.sel(edit=edit)
            reach, places = cell["random"].values, np.arange(len(layers))
            axes.bar(places, 2 * reach, 0.92, bottom=-reach, color="#dbe1e8", label="random directions")
            used = ["#2369b0" if value else "#9dbfe0" for value in cell["used"].values]
            draw_bars(axes, cell["effect"], cell["low"], cell["high"], colours=used)
            if edit == "swap":
                axes.plot(
                    places,
                    cell["whole"].values,
                    "D",
                    color=SERIES[1],
                    markersize=4.5,
                    label="whole activation",
                )
            if "total" in found.attrs:
                axes.axhline(float(found.attrs["total"]), color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_xticks(places, [str(layer) for layer in layers])
            axes.tick_params(axis="x", length=0)
            axes.set_xlabel("layer")
            axes.set_title(visible(edit))
            if edit == edits[-1]:
                axes.bar([0], [0], color="#2369b0", label="effect, used")
                axes.bar([0], [0], color="#9dbfe0", label="effect, not shown to be used")
                axes.plot([], [], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="corrupt run")
                axes.legend(**LEGEND)
        grid[0, 0].set_ylabel("change of the metric")
        note = " · ".join(f"{name} {label}" for name, label in facts.items())
        set_heading(figure, found.assign_attrs(note=note), title)
        return settled(figure)


def _measured(cell: xr.Dataset) -> bool:
    return any(bool(cell[name].notnull().any()) for name in ("accuracy", "r2"))


def _draw(
    axes: Axes, cell: xr.Dataset, baselines: xr.Dataset | None, concept: str, measure: str | None
) -> None:
    measure = measure or ("accuracy" if bool(cell["accuracy"].notnull().any()) else "r2")
    if not bool(cell[measure].notnull().any()):
        raise WorkbenchError(f"The probes of {concept!r} have no {measure}: none was measured.")
    cell = cell.transpose("layer", "k", "control", ...)
    layers = cell["layer"].values
    _controls(axes, cell, measure)
    ks = cell["k"].values
    main = cell.sel(control="none")
    for shade, k in zip(np.linspace(0.35, 1, len(ks)), ks, strict=True):
        line = main.sel(k=k)
        colour = matplotlib.colormaps[SHADES](shade)
        axes.plot(
            layers, line[measure], color=colour, marker="o", markersize=3.5, linewidth=1.7, label=f"k = {k}"
        )
        if k == ks[-1]:
            axes.fill_between(
                layers, line[f"{measure}_low"], line[f"{measure}_high"], color=colour, alpha=0.15, linewidth=0
            )
    if baselines is not None:
        for name, colour in zip(
            baselines["baseline"].values, BASELINES * len(baselines["baseline"]), strict=False
        ):
            values = baselines.sel(baseline=name, control="none")[measure]
            axes.plot(
                layers, values, color=colour, linestyle=":", linewidth=1.6, label=f"{name}, all features"
            )
    axes.set_xlabel("layer")
    axes.set_ylabel(f"held-out {measure.replace('_', ' ')}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    light_grid(axes)


def _controls(axes: Axes, cell: xr.Dataset, measure: str) -> None:
    """Each kind of control at the largest k: the mean of its draws, and their range."""
    most = cell.isel(k=-1)
    for kind, (label, colour) in CONTROLS.items():
        draws = (
            most[measure].values[:, most["control_kind"].values == kind]
            if kind in most["control_kind"].values
            else None
        )
        if draws is None or not np.isfinite(draws).any():
            continue
        layers = most["layer"].values
        axes.fill_between(
            layers, np.nanmin(draws, 1), np.nanmax(draws, 1), color=colour, alpha=0.12, linewidth=0
        )
        axes.plot(
            layers, np.nanmean(draws, 1), color=colour, linestyle=(0, (4, 3)), linewidth=1.3, label=label
        )
