"""Pictures of probes: how well a concept can be read at every layer, beside its controls."""

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.errors import WorkbenchError
from workbench.render.plots import SHADES, STYLE, settled
from workbench.render.view import visible

CONTROLS = {"shuffle": ("shuffled labels", "#64748b"), "random-features": ("random features", "#b45309"), "control-task": ("control task", "#7c3aed")}  # fmt: skip
BASELINES = ("#0f766e", "#be185d", "#4d7c0f")


def probe_figure(results: xr.Dataset, baselines: xr.Dataset | None, concept: str, *, measure: str | None = None) -> Figure:
    """The held-out measure of a concept's probes over layers: a line for each k, with the interval of the largest; controls
    dashed, with the range of their draws; probes on all features dotted.

    Args:
        results, baselines: of one kind of site, one position and one selector: axes layer, k, control.
        measure: accuracy for classes and r2 for numbers, unless told.
    Raises:
        WorkbenchError: an axis is left open, or the concept was not measured.
    """
    cell = results.sel(concept=concept)
    extra = [axis for axis in cell["accuracy"].dims if axis not in ("layer", "k", "control")]
    if extra:
        raise WorkbenchError(f"A picture of probes is of one {', '.join(map(str, extra))}: select it first.")
    measure = measure or ("accuracy" if bool(cell["accuracy"].notnull().any()) else "r2")
    if not bool(cell[measure].notnull().any()):
        raise WorkbenchError(f"The probes of {concept!r} have no {measure}: none was measured.")
    layers = cell["layer"].values
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        _controls(axes, cell, measure)
        ks = cell["k"].values
        main = cell.sel(control="none")
        for shade, k in zip(np.linspace(0.35, 1, len(ks)), ks, strict=True):
            line = main.sel(k=k)
            colour = matplotlib.colormaps[SHADES](shade)
            axes.plot(layers, line[measure], color=colour, marker="o", markersize=3.5, linewidth=1.7, label=f"k = {k}")
            if k == ks[-1]:
                axes.fill_between(layers, line[f"{measure}_low"], line[f"{measure}_high"], color=colour, alpha=0.15, linewidth=0)
        if baselines is not None:
            for name, colour in zip(baselines["baseline"].values, BASELINES * len(baselines["baseline"]), strict=False):
                values = baselines.sel(concept=concept, baseline=name, control="none")[measure]
                axes.plot(layers, values, color=colour, linestyle=":", linewidth=1.6, label=f"{name}, all features")
        axes.set_xlabel("layer")
        axes.set_ylabel(f"held-out {measure.replace('_', ' ')}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#e5e9ef")
        axes.set_axisbelow(True)
        axes.set_title(visible(concept))
        legend: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False, "fontsize": 8}
        axes.legend(**legend)
        return settled(figure)


def _controls(axes: Axes, cell: xr.Dataset, measure: str) -> None:
    """Each kind of control at the largest k: the mean of its draws, and their range."""
    most = cell.isel(k=-1)
    for kind, (label, colour) in CONTROLS.items():
        draws = most[measure].values[:, most["control_kind"].values == kind] if kind in most["control_kind"].values else None
        if draws is None or not np.isfinite(draws).any():
            continue
        layers = most["layer"].values
        axes.fill_between(layers, np.nanmin(draws, 1), np.nanmax(draws, 1), color=colour, alpha=0.12, linewidth=0)
        axes.plot(layers, np.nanmean(draws, 1), color=colour, linestyle=(0, (4, 3)), linewidth=1.3, label=label)
