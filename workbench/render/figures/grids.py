"""Grids of coloured cells: one (`heatmap`), or one for each cell of further axes (`heatmaps`).

Begin with `heatmap`. The cells themselves are drawn by `cells`; which grid fits a result is decided in
`array_plots`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.render.figures.axis_labels import labels_of
from workbench.render.figures.canvas import NARROWEST, Picture, is_narrow, palette, settled, styled
from workbench.render.figures.cells import cells, colour_bar, label_cells, number_texts
from workbench.render.figures.headings import set_heading, set_title, word
from workbench.render.figures.notes import axes_of, check_filled, noted, over_examples
from workbench.render.writing import shorten
from workbench.text import visible

MOST_PANELS = 48
"""The most panels of `heatmaps`; a note says how many were left out."""
NUMBERED = 160
"""The most cells of a grid whose numbers are written in them."""
WRITTEN = 26
"""The most columns of all panels together whose cells have their numbers too."""
_SMALL = {"axes.titlesize": 8.5, "axes.titleweight": "normal", "xtick.labelsize": 7, "ytick.labelsize": 7}
FEW = 8
"""Up to 8 words on an axis beside layers and heads get a panel each."""


def heatmap(result: xr.DataArray, *, title: str | None = None, labels: Sequence[str] | None = None) -> Figure:
    """A grid of coloured cells: rows are the first axis of the result, columns the second.

    Blue supports the behaviour and orange opposes it (`meaning.supporting_sign`), white is 0; a few cells have
    their numbers too. A result that is not an effect and has no negative numbers (a pattern, a probability)
    is drawn in shades of one colour. Layers grow upwards.

    Raises:
        WorkbenchError: the result does not have two axes besides `example`.
    """
    result = over_examples(result)
    if result.ndim != 2:
        raise WorkbenchError(f"A heatmap needs two axes besides example; this result has {axes_of(result)}.")
    check_filled(result)
    rows, columns = result.shape
    cell_width, cell_height = 0.34, 0.3
    has_numbers = result.size <= NUMBERED and columns <= 16
    if has_numbers:
        cell_width = max(0.46, 4.4 / columns) if columns <= 6 else 0.5
    # many cells are smaller, so that a grid still fits on a screen
    if columns > 30:
        cell_width = 0.14
    if rows > 30:
        cell_height = 0.19
    width = min(14, max(NARROWEST, 1.9 + columns * cell_width))
    height = min(12, max(2.6, 1.9 + rows * cell_height))
    with styled():
        figure = Picture(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        values = np.asarray(result.values, dtype=float)
        image = cells(axes, values, palette(result), number_texts(values) if has_numbers else None)
        label_cells(axes, result, labels, (width - 1.9, height - 1.9))
        colour_bar(figure, image, axes, result)
        set_title(axes, result, title)
        return settled(figure)


def heatmaps(
    result: xr.DataArray, *, title: str | None = None, labels: Sequence[str] | None = None
) -> Figure:
    """A small heatmap for each cell of the leading axes, on one colour scale; at most `MOST_PANELS`.

    The last two axes make a panel; of layers x heads x a few words (named positions, kinds of score) each
    word makes one.
    """
    result = over_examples(result)
    if result.ndim < 3:
        return heatmap(result, title=title, labels=labels)
    check_filled(result)
    panels = _Panels.of(result)
    result, names = panels.values, panels.names
    # of all panels, also of those left out: the scale must not depend on how many of them fit
    colours = palette(result)
    if len(names) > MOST_PANELS:
        left = len(names) - MOST_PANELS
        result = noted(
            result,
            f"the first {MOST_PANELS} of {len(names)} panels; {left} left out: select them, as in .isel()",
        )
        result, names = result[:MOST_PANELS], names[:MOST_PANELS]
    n, rows, columns = result.shape
    width, height = (min(5.0, max(1.3, size * 0.22)) for size in (columns, rows))
    has_numbers = n * columns <= WRITTEN and rows <= 16
    if has_numbers:
        width = max(1.3, columns * 0.44)
    across = columns_of(n, width, height, panels.across)
    down = -(-n // across)  # rounded up, as the last row of panels may be short
    room = max(8, int(width * 13))
    # "reader a3.7<q>" without the axis says more than its beginning
    if any(len(name) > room for name in names):
        names = [name.removeprefix(panels.axis) for name in names]
    with styled(_SMALL):
        figure = Picture(
            figsize=(max(NARROWEST, 1.9 + across * (width + 0.15)), 1.7 + down * (height + 0.3)),
            layout="constrained",
        )
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        image = None
        texts = number_texts(np.asarray(result.values, dtype=float))
        for i, axes in enumerate(grid[:n]):
            values = np.asarray(result.values[i], dtype=float)
            image = cells(axes, values, colours, texts[i] if has_numbers else None, size=6.5)
            label_cells(axes, result[i], labels, (width, height))
            axes.set_title(shorten(visible(names[i]), room), pad=3)
            # labels only at the edge of the grid: neighbours share them
            if i % across:
                axes.tick_params(labelleft=False)
                axes.set_ylabel("")
            if i + across < n:
                axes.tick_params(labelbottom=False)
                axes.set_xlabel("")
        for axes in grid[n:]:
            axes.set_axis_off()
        colour_bar(figure, image, grid, result)
        set_heading(figure, result, title)
        return settled(figure)


@dataclass(frozen=True)
class _Panels:
    """A result as (panel, row, column), and what each panel is called.

    Attributes:
        across: how many stand side by side, None to choose.
        axis: what every name begins with, where one axis makes them.
    """

    values: xr.DataArray
    names: list[str]
    across: int | None
    axis: str = ""

    @classmethod
    def of(cls, result: xr.DataArray) -> "_Panels":
        """The leading axes as panels, or of layer x head x a few words the words."""
        dims = list(map(str, result.dims))
        last = labels_of(result, dims[2])
        are_words = dims[2] in result.coords and result[dims[2]].dtype.kind in "OUT"
        if len(dims) == 3 and dims[0] == "layer" and are_words and len(last) <= FEW:
            return cls(result.transpose(dims[2], ...), last, None)
        lead = dims[:-2]
        if len(lead) == 1:
            names = [_panel_name(lead, [label]) for label in labels_of(result, lead[0])]
            return cls(result, names, None, f"{word(lead[0])} ")
        stacked = result.stack(panel=lead, create_index=False).transpose("panel", ...)
        names = [_panel_name(lead, labels) for labels in product(*(labels_of(result, dim) for dim in lead))]
        return cls(stacked, names, result.sizes[lead[-1]])


def _panel_name(dims: Sequence[str], labels: Sequence[str]) -> str:
    if list(dims) == ["layer", "head"]:
        return f"a{labels[0]}.{labels[1]}"
    return ", ".join(f"{word(dim)} {label}" for dim, label in zip(dims, labels, strict=True))


def columns_of(n: int, width: float, height: float, wanted: int | None) -> int:
    """How many panels stand side by side.

    As many as the last leading axis has, where they fit; otherwise so that the figure is about 1.6 times as
    wide as high and few gaps are left in its last row.
    """
    most = max(1, int((5.0 if is_narrow() else 12.5) / (width + 0.15)))
    if wanted is not None and wanted <= most:
        return min(n, wanted)
    if n <= min(most, 4) and n * width < 8:
        return n
    square = max(1, round(np.sqrt(n * 1.6 * height / width)))
    # an empty place costs 1, and a column away from the square 1.5: small gaps are better than odd shapes
    return min(range(1, min(most, n) + 1), key=lambda across: (-n % across) + 1.5 * abs(across - square))
