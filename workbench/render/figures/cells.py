"""Coloured cells on axes that exist: `cells`, their labels and their colour bar.

Every grid and table uses them; they know nothing of results.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.render.figures.axis_labels import label_axis
from workbench.render.figures.canvas import CELL, GROUND
from workbench.render.figures.headings import word
from workbench.render.figures.meaning import quantity_of


def cells(
    axes: Axes,
    values: np.ndarray,
    colours: dict[str, Any],
    texts: np.ndarray | None = None,
    *,
    size: float = 7,
) -> Any:
    """An image of numbers [row, column], hatched where nothing was measured, with a text in every cell if
    given."""
    # infinite numbers have no colour either; NaN leaves the hatched ground bare
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
    is_dark, box = False, None
    if np.isfinite(value):
        red, green, blue, _ = image.to_rgba(value)
        # the luma of ITU-R BT.601 says how bright a colour looks, and so which ink can be read on it
        is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    elif text:  # hatching would run through the text
        box = {"facecolor": GROUND["facecolor"], "linewidth": 0, "pad": 1}
    axes.text(
        at[1], at[0], text, ha="center", va="center", fontsize=size, color="white" if is_dark else "#1f2937",
        bbox=box, clip_on=True, gid=f"{CELL}-dark" if is_dark else CELL,
    )  # fmt: skip


def label_cells(
    axes: Axes, result: xr.DataArray, labels: Sequence[str] | None, inches: tuple[float, float]
) -> None:
    """Words and labels on both axes of an image of `cells`; layers grow upwards."""
    rows, columns = map(str, result.dims)
    if rows == "layer":
        axes.invert_yaxis()
    label_axis(axes, "y", result, rows, labels, inches=max(inches[1], 0.4))
    label_axis(axes, "x", result, columns, labels, inches=max(inches[0], 0.4))


def number_texts(values: np.ndarray) -> np.ndarray:
    """Every number as the text of its cell, all with the same digits; an empty text where none was measured."""
    known = values[np.isfinite(values)]
    largest = float(np.abs(known).max(initial=0))
    digits = 1 if largest >= 10 else 2
    texts = np.full(values.shape, "", dtype=object)
    for at in np.ndindex(values.shape):
        if np.isfinite(values[at]):
            text = f"{values[at]:.{digits}f}".replace("-", "−")
            texts[at] = "0" if float(text.replace("−", "-")) == 0 else text
    return texts


def colour_bar(figure: Figure, image: Any, axes: Any, result: xr.DataArray) -> None:
    """The scale of an image, beside the axes it is for: the quantity with its unit.

    Its ends are arrows where numbers go beyond it.
    """
    label = ""
    if result.name:
        label = quantity_of(result, word(result.name))
    known = result.values[np.isfinite(result.values)]
    beyond, below = bool((known > image.norm.vmax).any()), bool((known < image.norm.vmin).any())
    extend = {(True, True): "both", (True, False): "max", (False, True): "min"}.get(
        (beyond, below), "neither"
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, extend=extend)
    bar.set_label(label, fontsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
