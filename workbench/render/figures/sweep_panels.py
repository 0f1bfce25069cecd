"""The panels of a sweep: cells, bars, lines or a distribution, each for one setting, as a `SheetPanel`.

Begin with `setting_panels`, which chooses by the study. How panels are laid out is decided in `sheets`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.ticker import MaxNLocator

from workbench.errors import WorkbenchError
from workbench.render.figures.bar_plots import draw_bars, mark_reference, name_bars
from workbench.render.figures.canvas import GREY, SERIES, SIGNED, light_grid, plain_ticks
from workbench.render.figures.cells import cells, label_cells
from workbench.render.figures.headings import word
from workbench.render.figures.line_plots import draw_line
from workbench.render.figures.meaning import oriented, supporting_sign
from workbench.render.figures.sheets import SheetPanel
from workbench.render.writing import BLUE, ORANGE, shorten
from workbench.sites import Site
from workbench.sweeps.rows import axes_of, groups, labelled
from workbench.text import visible

STRONGEST = 20
MOST_LINES = 8
ALPHA = 0.05
"""Cells with q below it are marked."""


def setting_panels(
    study: str, cell: pd.DataFrame, name: str, over: str | None, bound: float
) -> list[SheetPanel]:
    """The panels of one setting.

    Args:
        cell: rows of that setting.
        over: the column whose labels are a line each.
        bound: the end of the colour scale.
    """
    if study == "pairs":
        return [_matrix(cell, name, bound)]
    if study == "stability":
        return _agreement(cell, name)
    if over is not None:
        return [_lines(cell, name, study, over)]
    if study in ("circuits", "methods"):
        return [bar_panel(cell, "what", name, "faithfulness", reference=1.0)]
    axes = axes_of(cell)
    if "neuron" in axes:
        strongest = bar_panel(strongest_rows(cell), "what", joined("strongest", name), "effect")
        return [_distribution(cell, name), strongest]
    if len(axes) == 2:
        grid = _filled(labelled(cell, axes, ["mean", "q"]))
        return [_cells(grid, name, bound, sign=sign_of(cell))]
    if axes == ["layer"]:
        return [bar_panel(cell.sort_values("layer"), "layer", name, "effect")]
    return [bar_panel(strongest_rows(cell), axes[0] if len(axes) == 1 else "what", name, "effect")]


def joined(*words: str) -> str:
    """The words that are not empty, as a list in text."""
    return ", ".join(filter(None, words))


def _filled(grid: xr.Dataset) -> xr.Dataset:
    """The grid with every layer and head up to the last; those that were not measured are NaN."""
    dims = [dim for dim in grid.dims if dim in ("layer", "head")]
    return grid.reindex({dim: np.arange(int(grid[dim].max()) + 1) for dim in dims})


def sign_of(rows: pd.DataFrame) -> int:
    """The sign of effects that show support, as `supporting_sign`; 0 where rows of both bases are mixed."""
    facts = {}
    for column in ("base", "metric"):
        labels = set(rows[column].dropna()) if column in rows else set()
        facts[column] = labels.pop() if len(labels) == 1 else None
    return supporting_sign(xr.Dataset(attrs={"kind": "effects"} | facts))


def _cells(
    grid: xr.Dataset, name: str, bound: float, quantity: str = "effect", *, sign: int = 0
) -> SheetPanel:
    values = grid["mean"].rename(quantity)
    rows, columns = values.shape
    size = (min(6.0, max(1.6, columns * 0.26)), min(5.0, max(1.1, rows * 0.26)))
    marks = np.where(grid["q"].transpose(*values.dims).values < ALPHA, "•", "")

    def draw(axes: Axes) -> Any:
        """The cells, and for the colour bar their image."""
        colours = {"cmap": SIGNED.reversed() if sign < 0 else SIGNED, "norm": CenteredNorm(0, bound)}
        image = cells(axes, np.asarray(values.values, dtype=float), colours, marks)
        label_cells(axes, values, None, size)
        return image

    return SheetPanel(name, size, draw, quantity)


def _matrix(cell: pd.DataFrame, name: str, bound: float) -> SheetPanel:
    """Synergy of two sites, on both sides of the diagonal."""
    sites = sorted({*cell["site_a"], *cell["site_b"]}, key=_site_order)
    index = {site: i for i, site in enumerate(sites)}
    mean, q = np.full((2, len(sites), len(sites)), np.nan)
    for rows in groups(cell, ["site_a", "site_b"]):
        pair = cell.iloc[rows]
        a, b = index[pair["site_a"].iloc[0]], index[pair["site_b"].iloc[0]]
        # of several seeds the mean, and the largest q: a cell is marked where every seed is significant
        mean[a, b] = mean[b, a] = pair["synergy"].mean()
        q[a, b] = q[b, a] = pair["q"].max(skipna=False)
    labels = np.array(list(map(_short, sites)), dtype=object)
    axes = ("site", "together with")
    grid = xr.Dataset({"mean": (axes, mean), "q": (axes, q)}, coords=dict.fromkeys(axes, labels))
    return _cells(grid, name, bound, "synergy")


def _site_order(text: str) -> tuple[Any, ...]:
    """A key that sorts sites by layer and head or neuron, and after them what is not a site."""
    try:
        site = Site.parse(text)
    except WorkbenchError:
        return (1, 0, 0, text)
    return (0, site.layer or 0, site.unit or 0, text)


def _short(text: str) -> str:
    """`a3.4` for the head `z[3.4]` at every position; other sites as they are."""
    try:
        site = Site.parse(text)
    except WorkbenchError:
        return text
    is_head = site.kind == "z" and site.head is not None and site.pos is None
    if is_head:
        return f"a{site.layer}.{site.head}"
    return text


def strongest_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the largest means, strongest first; all of them in their own order where they are few."""
    # -1 is below every magnitude, so rows without a mean come last
    order = np.argsort(-rows["mean"].abs().fillna(-1).to_numpy(), kind="stable")[:STRONGEST]
    if len(rows) <= STRONGEST:
        order = np.sort(order)
    return pd.DataFrame(rows.iloc[order])


def bar_panel(
    rows: pd.DataFrame, axis: str, name: str, quantity: str, columns: Sequence[str] = ("mean", "low", "high"),
    reference: float | None = None,
) -> SheetPanel:  # fmt: skip
    """Bars with intervals; they lie where their names are long.

    Args:
        axis: the column with the names of the bars.
        columns: value, low and high of each.
        reference: a level to mark with a dashed line.
    """
    labels = rows[axis].astype(str).to_numpy(dtype=object)
    if axis in ("layer", "pos") and _all_whole(rows[axis].tolist()):
        labels = rows[axis].to_numpy(dtype=int)
    numbers = [rows[column].to_numpy(dtype=float) for column in columns]
    bar, low, high = (xr.DataArray(column, dims=axis, coords={axis: labels}) for column in numbers)
    lying = axis not in ("layer", "pos", "head")
    size = max(2.6, 0.34 * len(rows)), 2.1
    if lying:
        size = 3.4, max(1.0, 0.24 * len(rows))

    def draw(axes: Axes) -> None:
        """The bars with their names."""
        turned = oriented(numbers[0], sign_of(rows) if quantity == "effect" else 1)
        colours = [BLUE if number >= 0 else ORANGE for number in turned]
        draw_bars(axes, bar, low, high, lying=lying, colours=colours)
        if reference is not None:
            mark_reference(axes, reference, lying=lying)
        name_bars(axes, bar, None, lying=lying, length=size[lying], most=32, quantity=quantity)

    return SheetPanel(name, size, draw)


def _all_whole(column: Sequence[Any]) -> bool:
    return all(isinstance(label, int | np.integer) for label in column)


def _distribution(rows: pd.DataFrame, name: str) -> SheetPanel:
    """How many neurons have an effect of which size; the count is logarithmic, since few have a large one."""

    def draw(axes: Axes) -> None:
        """The histogram."""
        known = rows["mean"].dropna().to_numpy(dtype=float)
        axes.hist(known, bins=min(50, max(8, len(known) // 6)), color=BLUE)
        axes.set_yscale("log")  # thousands of neurons do nothing, and one alone must still be seen
        plain_ticks(axes.yaxis)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set(xlabel="mean effect", ylabel="neurons")
        light_grid(axes)

    return SheetPanel(joined(f"{len(rows):,} neurons", name), (3.4, 2.4), draw)


def _lines(cell: pd.DataFrame, name: str, study: str, over: str) -> SheetPanel:
    """A line with its band for each label of the column `over`."""
    x = {"cumulative": "step", "steering": "strength", "methods": "n_edges"}[study]
    if over == "site":  # steering names its jobs `SITE*STRENGTH`
        cell = cell.assign(site=cell["what"].str.rpartition("*")[0])
    # the whole model has faithfulness 1, and no edit the effect 0: the level that lines are read against
    level, quantity = 0.0, "effect"
    if study == "methods":
        level, quantity = 1.0, "faithfulness"

    def draw(axes: Axes) -> None:
        """The lines, each in its own colour."""
        axes.axhline(level, color=GREY, linewidth=0.8)
        lines = [pd.DataFrame(cell.iloc[rows]).sort_values(x) for rows in groups(cell, [over])][:MOST_LINES]
        for i, line in enumerate(lines):
            at, mean, low, high = (
                line[column].to_numpy(dtype=float) for column in (x, "mean", "low", "high")
            )
            label = shorten(visible(str(line[over].iloc[0])), 24)
            draw_line(axes, at, mean, low, high, colour=SERIES[i % len(SERIES)], label=label)
        axes.set_xlabel(word(x))
        axes.set_ylabel(quantity)
        if x != "strength":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if x == "step":
            axes.set_xlabel("sites edited together")
            _name_steps(axes, lines)
        light_grid(axes)

    return SheetPanel(name, (3.8, 2.4), draw)


def _name_steps(axes: Axes, lines: Sequence[pd.DataFrame]) -> None:
    """The site that each step adds, where all lines add the same ones and there is room for their names."""
    orders = {tuple(line["added"]) for line in lines}
    if len(orders) != 1 or len(lines[0]) > STRONGEST:
        return
    names = ["+ " + visible(_short(str(site))) for site in lines[0]["added"]]
    axes.set_xticks(lines[0]["step"].to_numpy(dtype=int), names)
    axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel("")  # no label, since the names say what is edited


def _agreement(rows: pd.DataFrame, name: str) -> list[SheetPanel]:
    """Of circuits of several seeds: how alike they are, and how many edges they have."""
    jaccard = ("jaccard", "least", "most")
    rows = rows.assign(edges=(rows["edges_least"] + rows["edges_most"]) / 2)
    edges = ("edges", "edges_least", "edges_most")
    return [
        bar_panel(rows, "what", name, "Jaccard index of edges", jaccard, reference=1.0),
        bar_panel(rows, "what", name, "edges, fewest to most", edges),
    ]
