"""Panels of one size on a sheet, with one colour scale where they show the same quantity: `assembled`.

A panel draws itself on the axes it is given; this module knows nothing of sweeps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.render.figures.canvas import NARROWEST, Picture, common_legend, settled, styled
from workbench.render.figures.cells import colour_bar
from workbench.render.figures.grids import columns_of
from workbench.render.figures.headings import set_heading, set_title
from workbench.render.writing import shorten
from workbench.text import visible

_SMALL_TICKS = {"xtick.labelsize": 7.5, "ytick.labelsize": 7.5}
_SMALL_TITLES = {"axes.titlesize": 9, "axes.titleweight": "normal"}


@dataclass(frozen=True)
class SheetPanel:
    """One pair of axes.

    Attributes:
        name: its title.
        size: in inches.
        draw: fills the axes; may return an image, whose colours need a colour bar.
        quantity: what the colours of the image show.
    """

    name: str
    size: tuple[float, float]
    draw: Callable[[Axes], Any]
    quantity: str = ""


def assembled(
    panels: Sequence[SheetPanel], facts: xr.Dataset, title: str | None, *, across: int, one_scale: bool
) -> Figure:
    """Panels of one size in rows, on one scale; each panel has its own scale where their metrics differ."""
    n = len(panels)
    width = max(panel.size[0] for panel in panels)
    height = max(panel.size[1] for panel in panels)
    across = columns_of(n, width + 0.7, height + 0.6, across)
    down = -(-n // across)
    size = max(NARROWEST, 1.2 + across * (width + 0.7)), 1.5 + down * (height + 0.75)
    with styled(_SMALL_TICKS if n == 1 else _SMALL_TICKS | _SMALL_TITLES):
        figure = Picture(figsize=size, layout="constrained")
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        _fill(figure, grid, panels, one_scale, unit := str(facts.attrs.get("unit", "")))
        if unit:
            _add_unit(grid, unit)
        # the panel with the most lines stands for all of them
        legends = [axes.get_legend_handles_labels() for axes in grid]
        handles, labels = max(legends, key=lambda legend: len(legend[1]))
        if labels:
            common_legend(figure, handles, labels)
        if n == 1:
            set_title(grid[0], facts, ": ".join(filter(None, (title, panels[0].name))) or None)
        else:
            most = max(12, int((width + 0.7) * 15))
            for axes, panel in zip(grid, panels, strict=False):
                heading = ""
                if panel.name:  # `visible` would spell an empty name as ∅
                    heading = shorten(visible(panel.name), most)
                axes.set_title(heading, pad=4)
            set_heading(figure, facts, title)
        return settled(figure)


def _add_unit(grid: Sequence[Axes], unit: str) -> None:
    """The unit behind every axis of effects."""
    for axes in grid:
        for which in ("x", "y"):
            label = getattr(axes, f"get_{which}label")()
            if label in ("effect", "mean effect", "difference of effects"):
                getattr(axes, f"set_{which}label")(f"{label} ({unit})")


def _fill(
    figure: Figure, grid: Sequence[Axes], panels: Sequence[SheetPanel], one_scale: bool, unit: str
) -> None:
    """Draws every panel, its colour bar or the one for all of them, and leaves no empty axes."""
    bars: list[tuple[Axes, Any, str]] = []
    for axes, panel in zip(grid, panels, strict=False):
        image = panel.draw(axes)
        if image is not None:
            bars.append((axes, image, panel.quantity))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if not one_scale:
        for axes, image, quantity in bars:
            colour_bar(
                figure, image, axes, xr.DataArray(image.get_array(), name=quantity, attrs={"unit": unit})
            )
    elif bars:
        _, image, quantity = bars[0]
        colour_bar(
            figure, image, list(grid), xr.DataArray(image.get_array(), name=quantity, attrs={"unit": unit})
        )
    else:
        _share(grid[: len(panels)])


def _share(grid: Sequence[Axes]) -> None:
    """One scale for axes that show the same quantity."""
    for which in ("x", "y"):
        by_word: dict[str, list[Axes]] = {}
        for axes in grid:
            by_word.setdefault(getattr(axes, f"get_{which}label")(), []).append(axes)
        for label in set(by_word) & {"effect", "faithfulness"}:
            ends = np.array([getattr(axes, f"get_{which}lim")() for axes in by_word[label]])
            for axes in by_word[label]:
                getattr(axes, f"set_{which}lim")(ends.min(), ends.max())
