"""Grids of coloured cells.

One (`heatmap`), one for each cell of further axes (`heatmaps`), or with a text in every cell.

Begin with `cells`, which all of them use. Which grid fits a result is decided in `plots`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.render.figures.canvas import (
    GROUND,
    Picture,
    axes_of,
    check_filled,
    label_axis,
    labels_of,
    noted,
    over_examples,
    palette,
    set_heading,
    set_title,
    settled,
    styled,
    word,
)
from workbench.render.writing import shorten
from workbench.text import visible

MOST_PANELS = 48
"""The most panels of `heatmaps`; a note says how many were left out."""
_SMALL = {"axes.titlesize": 8.5, "axes.titleweight": "normal", "xtick.labelsize": 7, "ytick.labelsize": 7}
FEW = 8
"""Up to 8 words on an axis beside layers and heads get a panel each."""


def cells(
    axes: Axes,
    values: np.ndarray,
    colours: dict[str, Any],
    texts: np.ndarray | None = None,
    *,
    size: float = 7,
) -> Any:
    """An image of numbers [row, column] on the ground of what was not measured, with a text in every cell
    where given.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    axes.patch.set(**GROUND)
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **colours)
    axes.spines[:].set_visible(False)
    if texts is not None:
        for at in np.ndindex(values.shape):
            _cell_text(axes, image, at, float(values[at]), str(texts[at]), size)
    return image


def _cell_text(axes: Axes, image: Any, at: tuple[int, ...], value: float, text: str, size: float) -> None:
    """A text in the middle of a cell: white on dark colours; where nothing was measured, on plain grey."""
    known = bool(np.isfinite(value))
    red, green, blue, _ = image.to_rgba(value) if known else (1, 1, 1, 1)
    # luma of ITU-R BT.601: how bright a colour looks
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    box = None
    if text and not known:  # hatching would run through the text
        box = {"facecolor": GROUND["facecolor"], "linewidth": 0, "pad": 1}
    axes.text(
        at[1], at[0], text, ha="center", va="center", fontsize=size, color="white" if is_dark else "#1f2937",
        bbox=box, clip_on=True,
    )  # fmt: skip


def heatmap(result: xr.DataArray, *, title: str | None = None, labels: Sequence[str] | None = None) -> Figure:
    """A grid of coloured cells: rows are the first axis of the result, columns the second.

    Red is negative and blue positive, white is 0; a result without negative numbers that is no effect (a
    pattern, a probability) gets one colour. Layers grow upwards.

    Raises:
        WorkbenchError: the result does not have two axes besides `example`.
    """
    result = over_examples(result)
    if result.ndim != 2:
        raise WorkbenchError(f"A heatmap needs two axes besides example; this result has {axes_of(result)}.")
    check_filled(result)
    rows, columns = result.shape
    # many cells are smaller, so that a grid still fits on a screen
    cell_width = 0.34 if columns <= 30 else 0.14
    cell_height = 0.3 if rows <= 30 else 0.19
    width = min(14, max(4.2, 1.9 + columns * cell_width))
    height = min(12, max(2.4, 1.2 + rows * cell_height))
    with styled():
        figure = Picture(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        image = cells(axes, np.asarray(result.values, dtype=float), palette(result))
        label_cells(axes, result, labels, (width - 1.9, height - 1.2))
        colour_bar(figure, image, axes, result.name)
        set_title(axes, result, title)
        return settled(figure)


def heatmaps(
    result: xr.DataArray, *, title: str | None = None, labels: Sequence[str] | None = None
) -> Figure:
    """A small heatmap for each cell of the leading axes, on one colour scale.

    At most `MOST_PANELS`, the first ones.

    The last two axes make a panel; of layers x heads x a few words (named positions, kinds of score) each
    word makes one.
    """
    result = over_examples(result)
    if result.ndim < 3:
        return heatmap(result, title=title, labels=labels)
    check_filled(result)
    panels = _Panels.of(result)
    result, names = panels.values, panels.names
    colours = palette(result)
    if len(names) > MOST_PANELS:
        left = len(names) - MOST_PANELS
        result = noted(
            result,
            f"the first {MOST_PANELS} of {len(names)} panels; {left} left out: select them, as in .isel()",
        )
        result, names = result[:MOST_PANELS], names[:MOST_PANELS]
    n, rows, columns = result.shape
    width, height = (min(5.0, max(0.95, size * 0.18)) for size in (columns, rows))
    across = columns_of(n, width, height, panels.across)
    down = -(-n // across)
    room = max(8, int(width * 13))
    # "reader a3.7<q>" without the axis says more than its beginning
    if any(len(name) > room for name in names):
        names = [name.removeprefix(panels.axis) for name in names]
    with styled(_SMALL):
        figure = Picture(
            figsize=(max(4.2, 1.9 + across * (width + 0.15)), 1.2 + down * (height + 0.3)),
            layout="constrained",
        )
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        image = None
        for i, axes in enumerate(grid[:n]):
            image = cells(axes, np.asarray(result.values[i], dtype=float), colours)
            label_cells(axes, result[i], labels, (width, height))
            axes.set_title(shorten(visible(names[i]), room), pad=3)
            # labels only at the rim: neighbours share them
            if i % across:
                axes.tick_params(labelleft=False)
                axes.set_ylabel("")
            if i + across < n:
                axes.tick_params(labelbottom=False)
                axes.set_xlabel("")
        for axes in grid[n:]:
            axes.set_axis_off()
        colour_bar(figure, image, grid, result.name)
        set_heading(figure, result, title)
        return settled(figure)


def token_table(
    result: xr.Dataset, *, title: str | None = None, labels: Sequence[str] | None = None
) -> Figure:
    """The likeliest token at every layer and position of one prompt (the first one), coloured by its
    probability.

    Args:
        result: of `top_tokens`; its coordinate `text` says what the tokens are, otherwise their ids are
            shown.
    """
    best = result.isel(rank=0) if "rank" in result.dims else result
    if {*best["prob"].dims} - {"example"} != {"layer", "pos"}:
        raise WorkbenchError(
            f"A table of tokens needs the axes layer and pos; this result has {axes_of(best['prob'])}. "
            "Select with lists, as in "
            ".isel(layer=[0])."
        )
    note = ""
    if "example" in best.dims:
        n = best.sizes["example"]
        if n > 1:
            first = best["example"].values[0] if "example" in best.coords else 0
            note = f"example {first} of {n}"
        best = best.isel(example=0)
    prob = best["prob"].transpose("layer", "pos").rename("probability").assign_attrs(result.attrs)
    prob = noted(prob, note)
    known = np.isfinite(prob.values).any(0)
    if not known.any():
        raise WorkbenchError("There is nothing to draw: no token was read at any layer and position.")
    prob = prob.isel(pos=slice(0, int(np.flatnonzero(known)[-1]) + 1))
    names = best["text" if "text" in best.coords else "token"].transpose("layer", "pos").values
    shortened = [[shorten(visible(name), 12) for name in row] for row in names]
    texts = np.array(shortened, dtype=object)[:, : prob.sizes["pos"]]
    texts = np.where(np.isfinite(prob.values), texts, "")
    wide = max(0.34, 0.12 + 0.075 * max(len(text) for text in texts.flat))
    width, height = wide * prob.sizes["pos"], 0.27 * prob.sizes["layer"]
    with styled():
        figure = Picture(figsize=(max(4.2, 1.9 + width), max(2.4, 1.4 + height)), layout="constrained")
        axes = figure.subplots()
        image = cells(axes, prob.values, {"cmap": "Blues", "norm": Normalize(0, 1)}, texts)
        label_cells(axes, prob, labels, (width, height))
        colour_bar(figure, image, axes, prob.name)
        set_title(axes, prob, title)
        return settled(figure)


def bench_figure(table: pd.DataFrame, *, best: Literal["high", "low"] = "high") -> Figure:
    """A table of numbers, rows x columns, coloured from worst to best, each cell with its number.

    Args:
        best: which end of the scale is good and dark.
    """
    return tables([Part("", table, best)])


class Part(NamedTuple):
    """A table of numbers with its name, and which end of the scale is good and dark."""

    name: str
    table: pd.DataFrame
    best: Literal["high", "low"]


def tables(parts: Sequence[Part], *, title: str | None = None) -> Figure:
    """Tables of numbers below each other, each with a name and coloured on its own from worst to best."""
    columns = max(part.table.shape[1] for part in parts)
    rows = [part.table.shape[0] for part in parts]
    size = 2.4 + 0.8 * columns, sum(1.6 + 0.3 * n for n in rows)
    with styled():
        figure = Picture(figsize=size, layout="constrained")
        grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=[1 + 0.3 * n for n in rows])
        for axes, part in zip(grid[:, 0], parts, strict=True):
            _draw_table(axes, part)
        set_heading(figure, xr.Dataset(), title)
        return settled(figure)


def _draw_table(axes: Axes, part: "Part") -> None:
    """Numbers as coloured cells with their names at the rim."""
    values = part.table.to_numpy(dtype=float)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    # equal numbers have no scale of their own
    norm = Normalize(low, high if high > low else low + 1)
    texts = np.array([[_number_text(value) for value in row] for row in values])
    cells(axes, values, {"cmap": "Blues" if part.best == "high" else "Blues_r", "norm": norm}, texts)
    across = [shorten(visible(name), 32) for name in part.table.columns]
    down = [shorten(visible(name), 32) for name in part.table.index]
    axes.set_xticks(range(len(across)), across, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(down)), down, fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(visible(part.name) if part.name else "", fontsize=9.5)


def _number_text(value: float) -> str:
    if np.isfinite(value):
        return f"{value:.3f}"
    return "not run"


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
        dims = [str(dim) for dim in result.dims]
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
    most = max(1, int(12.5 / (width + 0.15)))
    if wanted is not None and wanted <= most:
        return min(n, wanted)
    if n <= min(most, 4) and n * width < 8:
        return n
    square = max(1, round(np.sqrt(n * 1.6 * height / width)))
    return min(range(1, min(most, n) + 1), key=lambda across: (-n % across) + 1.5 * abs(across - square))


def label_cells(
    axes: Axes, result: xr.DataArray, labels: Sequence[str] | None, inches: tuple[float, float]
) -> None:
    """Words and labels on both axes of an image of `cells`; layers grow upwards."""
    rows, columns = map(str, result.dims)
    if rows == "layer":
        axes.invert_yaxis()
    label_axis(axes, "y", result, rows, labels, inches=max(inches[1], 0.4))
    label_axis(axes, "x", result, columns, labels, inches=max(inches[0], 0.4))


def colour_bar(figure: Figure, image: Any, axes: Any, name: object) -> None:
    """The scale of an image, beside the axes it is for."""
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, label=word(name) if name else "")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
