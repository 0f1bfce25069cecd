"""Tables with a text in every coloured cell: the likeliest tokens (`token_table`), and numbers (`tables`).

Begin with `bench_figure`, one table of numbers.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.render.figures.canvas import NARROWEST, Picture, settled, styled
from workbench.render.figures.cells import cells, colour_bar, label_cells
from workbench.render.figures.headings import set_heading, set_title
from workbench.render.figures.notes import axes_of, noted
from workbench.render.writing import shortened
from workbench.text import visible


def token_table(
    result: xr.Dataset, *, title: str | None = None, labels: Sequence[str] | None = None
) -> Figure:
    """The likeliest token at every layer and position of the first prompt, coloured by its probability.

    Args:
        result: of `top_tokens`; its coordinate `text` says what the tokens are, otherwise their ids are
            shown.
    """
    best = result
    if "rank" in result.dims:
        best = result.isel(rank=0)
    if {*best["prob"].dims} - {"example"} != {"layer", "pos"}:
        raise WorkbenchError(
            f"A table of tokens needs the axes layer and pos; this result has {axes_of(best['prob'])}. "
            "Select with lists, as in .isel(layer=[0])."
        )
    note = ""
    if "example" in best.dims:
        n = best.sizes["example"]
        if n > 1:
            note = f"example {best['example'].values[0]} of {n}"
        best = best.isel(example=0)
    prob = best["prob"].transpose("layer", "pos").rename("probability").assign_attrs(result.attrs)
    prob = noted(prob, note)
    known = np.isfinite(prob.values).any(0)
    if not known.any():
        raise WorkbenchError("There is nothing to draw: no token was read at any layer and position.")
    # shorter prompts are padded: the table ends with the last position that was read
    prob = prob.isel(pos=slice(0, int(np.flatnonzero(known)[-1]) + 1))
    names = best["text" if "text" in best.coords else "token"].transpose("layer", "pos").values
    short_names = [shortened(row, 12) for row in names]
    texts = np.array(short_names, dtype=object)[:, : prob.sizes["pos"]]
    texts = np.where(np.isfinite(prob.values), texts, "")
    wide = max(0.34, 0.12 + 0.075 * max(map(len, texts.flat)))
    width, height = wide * prob.sizes["pos"], 0.27 * prob.sizes["layer"]
    with styled():
        figure = Picture(figsize=(max(NARROWEST, 1.9 + width), max(2.4, 1.4 + height)), layout="constrained")
        axes = figure.subplots()
        image = cells(axes, prob.values, {"cmap": "Blues", "norm": Normalize(0, 1)}, texts)
        label_cells(axes, prob, labels, (width, height))
        colour_bar(figure, image, axes, prob)
        set_title(axes, prob, title)
        return settled(figure)


def bench_figure(table: pd.DataFrame, *, best: Literal["high", "low"] = "high") -> Figure:
    """A table of numbers, rows x columns, coloured from worst to best, each cell with its number.

    Args:
        best: which end of the scale is good and dark.
    """
    return tables([NumberTable("", table, best)])


class NumberTable(NamedTuple):
    """A table of numbers with its name, and which end of the scale is good and dark."""

    name: str
    table: pd.DataFrame
    best: Literal["high", "low"]


def tables(numbers: Sequence[NumberTable], *, title: str | None = None) -> Figure:
    """Tables of numbers below each other, each with a name and coloured on its own from worst to best."""
    columns = max(one.table.shape[1] for one in numbers)
    rows = [one.table.shape[0] for one in numbers]
    size = 2.4 + 0.8 * columns, sum(1.6 + 0.3 * n for n in rows)
    with styled():
        figure = Picture(figsize=size, layout="constrained")
        grid = figure.subplots(len(numbers), 1, squeeze=False, height_ratios=[1 + 0.3 * n for n in rows])
        for axes, one in zip(grid[:, 0], numbers, strict=True):
            _draw_table(axes, one)
        set_heading(figure, xr.Dataset(), title)
        return settled(figure)


def _draw_table(axes: Axes, numbers: NumberTable) -> None:
    """Numbers as coloured cells with their names at the rim."""
    values = numbers.table.to_numpy(dtype=float)
    known = values[np.isfinite(values)]
    low, high = 0.0, 1.0
    if known.size:
        low, high = float(known.min()), float(known.max())
    if high == low:  # equal numbers have no scale of their own
        high = low + 1
    colours = {"cmap": {"high": "Blues", "low": "Blues_r"}[numbers.best], "norm": Normalize(low, high)}
    texts = np.array([list(map(_number_text, row)) for row in values])
    cells(axes, values, colours, texts)
    across, down = shortened(numbers.table.columns, 32), shortened(numbers.table.index, 32)
    axes.set_xticks(range(len(across)), across, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(down)), down, fontsize=8)
    axes.tick_params(length=0)
    name = ""
    if numbers.name:  # `visible` would spell an empty name as ∅
        name = visible(numbers.name)
    axes.set_title(name, fontsize=9.5)


def _number_text(value: float) -> str:
    if np.isfinite(value):
        return f"{value:.3f}"
    return "not run"
