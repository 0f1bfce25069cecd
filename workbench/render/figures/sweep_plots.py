"""The picture of a sweep: what suits its study, a panel for each model, task, metric and value.

Seeds are averaged.

`sweep_figure` draws one sweep, `difference_figure` what two of them differ in. Panels are made first, as
`_Panel`, and put together by `_assembled`, which knows how large they all are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.errors import WorkbenchError
from workbench.render.figures.canvas import (
    GREY,
    SERIES,
    Picture,
    light_grid,
    plain_ticks,
    set_heading,
    set_title,
    settled,
    styled,
    word,
)
from workbench.render.figures.grids import cells, colour_bar, columns_of, label_cells
from workbench.render.figures.line_plots import draw_bars, draw_line, mark_reference, name_bars
from workbench.render.writing import BLUE, shorten
from workbench.sites import Site
from workbench.sweeps.rows import axes_of, groups, labelled, varying
from workbench.sweeps.table import Sweep
from workbench.text import visible

SETTINGS = ("metric", "model", "checkpoint", "task", "split", "variant", "base", "value")
"""Flags that get a panel each where they vary."""
NAMED_BY_LABEL = ("model", "task", "metric", "value")
"""Flags whose label says what it is; of others the flag stands before it."""
MOST_PANELS, STRONGEST, MOST_LINES = 24, 20, 8
_SMALL_TICKS = {"xtick.labelsize": 7.5, "ytick.labelsize": 7.5}
_SMALL_TITLES = {"axes.titlesize": 9, "axes.titleweight": "normal"}
ALPHA = 0.05
"""Cells with q below it are marked."""


@dataclass(frozen=True)
class _Panel:
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


def sweep_figure(sweep: Sweep, title: str | None = None) -> Figure:
    """The figure of a sweep, by its study.

    Effects: layers x heads (or positions) as cells, layers as bars, of neurons the distribution and the
    strongest. Pairs: the synergy of two sites. Cumulative ablation and steering: lines with bands. Paths:
    writers x readers. Circuits and methods: faithfulness with intervals. Stability: Jaccard index of edges
    (least to largest) and numbers of edges.

    Raises:
        WorkbenchError: nothing was measured.
    """
    study = str(sweep.rows["study"].iloc[0]) if len(sweep.rows) else ""
    table = _table(sweep, study)
    over = _line_column(study, table)
    settings = [flag for flag in varying(table, SETTINGS) if flag != over]
    panels: list[_Panel] = []
    for rows in groups(table, settings):
        cell = pd.DataFrame(table.iloc[rows]).reset_index(drop=True)
        name = ", ".join(_setting(flag, cell[flag].iloc[0]) for flag in settings)
        # one scale for all panels of a metric
        same_metric = pd.DataFrame(table[table["metric"] == cell["metric"].iloc[0]])
        panels += _panels(study, cell, name, over, _bound(same_metric, study))
    if not panels:
        raise WorkbenchError(f"There is nothing to draw: no job of {sweep!r} was measured.")
    facts = {"note": _note(sweep, table, panels, study)}
    for flag in NAMED_BY_LABEL:
        if flag not in settings and flag != over:
            facts[flag] = str(table[flag].iloc[0])
    # the labels of the last setting stand side by side
    across = len(panels) // len(groups(table, settings[:-1])) if settings else len(panels)
    data = xr.Dataset(attrs=facts)
    return _assembled(panels[:MOST_PANELS], data, title, across=across, one_scale="metric" not in settings)


def _table(sweep: Sweep, study: str) -> pd.DataFrame:
    """The numbers that suit the study."""
    if study == "pairs":
        return sweep.synergy()
    if study == "stability":
        return sweep.stability()
    return sweep.summary()


def difference_figure(table: pd.DataFrame, title: str | None = None) -> Figure:
    """The largest differences between two sweeps, of `compare_sweeps`, with their intervals."""
    flags = varying(table, [*SETTINGS, "seed", "step"])
    shown = _strongest(table.rename(columns={"difference": "mean"}))
    names = []
    for row in shown.to_dict("records"):
        names.append(_joined(str(row["what"]), *(_setting(flag, row[flag]) for flag in flags)))
    notes = [f"{flag}: {b} minus {a}" for flag, (a, b) in table.attrs.get("apart", {}).items()]
    if len(shown) < len(table):
        notes.append(f"the {len(shown)} largest of {len(table):,}")
    facts = xr.Dataset(attrs={"note": " · ".join(notes)})
    panel = _bars(shown.assign(job=names), "job", "", "difference of effects")
    return _assembled([panel], facts, title, across=1, one_scale=True)


def _setting(flag: str, label: Any) -> str:
    """How a setting is called in the title of a panel."""
    text = "none" if pd.isna(label) else str(label)
    if flag in NAMED_BY_LABEL:
        return text
    return f"{word(flag)} {text}"


def _note(sweep: Sweep, table: pd.DataFrame, panels: Sequence[_Panel], study: str) -> str:
    """What a reader needs to know of the numbers, and what is not shown."""
    notes = []
    seeds = {record.get("seed") for record in sweep.records}
    if len(seeds) > 1:
        notes.append(f"over {len(seeds)} seeds")
    if study in ("effects", "pairs", "paths") and "q" in table and bool((table["q"] < ALPHA).any()):
        notes.append(f"dots: q < {ALPHA:g}")
    if len(panels) > MOST_PANELS:
        notes.append(f"the first {MOST_PANELS} of {len(panels)} panels: select them, as in .select()")
    failed = len(sweep.status().failed)
    if failed:
        notes.append(f"{failed} of {len(sweep.records)} jobs failed")
    return " · ".join(notes)


def _line_column(study: str, table: pd.DataFrame) -> str | None:
    """The column whose labels are a line each, None for a study that is not drawn as lines."""
    if study == "cumulative":
        return "value"
    if study == "steering":
        return "site"
    has_sizes = "n_edges" in table and len(table["n_edges"].drop_duplicates()) > 1
    if study == "methods" and has_sizes:
        return "method"
    return None


def _panels(study: str, cell: pd.DataFrame, name: str, over: str | None, bound: float) -> list[_Panel]:
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
        return [_bars(cell, "what", name, "faithfulness", reference=1.0)]
    axes = axes_of(cell)
    if "neuron" in axes:
        strongest = _bars(_strongest(cell), "what", _joined("strongest", name), "effect")
        return [_distribution(cell, name), strongest]
    if len(axes) == 2:
        return [_cells(_filled(labelled(cell, axes, ["mean", "q"])), name, bound)]
    if axes == ["layer"]:
        return [_bars(cell.sort_values("layer"), "layer", name, "effect")]
    return [_bars(_strongest(cell), axes[0] if len(axes) == 1 else "what", name, "effect")]


def _joined(*words: str) -> str:
    return ", ".join(filter(None, words))


def _bound(table: pd.DataFrame, study: str) -> float:
    """The largest magnitude of the numbers that a study is drawn with."""
    column = "synergy" if study == "pairs" else next(name for name in ("mean", "jaccard") if name in table)
    numbers = table[column].to_numpy(dtype=float)
    return float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0)) or 1.0


def _filled(grid: xr.Dataset) -> xr.Dataset:
    """The grid with every layer and head up to the last; those that were not measured are NaN."""
    dims = [dim for dim in grid.dims if dim in ("layer", "head")]
    return grid.reindex({dim: np.arange(int(grid[dim].max()) + 1) for dim in dims})


def _cells(grid: xr.Dataset, name: str, bound: float, quantity: str = "effect") -> _Panel:
    values = grid["mean"].rename(quantity)
    rows, columns = values.shape
    size = (min(6.0, max(1.6, columns * 0.26)), min(5.0, max(1.1, rows * 0.26)))
    marks = np.where(grid["q"].transpose(*values.dims).values < ALPHA, "•", "")

    def draw(axes: Axes) -> Any:
        colours = {"cmap": "RdBu", "norm": CenteredNorm(0, bound)}
        image = cells(axes, np.asarray(values.values, dtype=float), colours, marks)
        label_cells(axes, values, None, size)
        return image

    return _Panel(name, size, draw, quantity)


def _matrix(cell: pd.DataFrame, name: str, bound: float) -> _Panel:
    """Synergy of two sites, on both sides of the diagonal."""
    sites = sorted({*cell["site_a"], *cell["site_b"]}, key=_order)
    index = {site: i for i, site in enumerate(sites)}
    mean, q = np.full((2, len(sites), len(sites)), np.nan)
    for rows in groups(cell, ["site_a", "site_b"]):
        pair = cell.iloc[rows]
        a, b = index[pair["site_a"].iloc[0]], index[pair["site_b"].iloc[0]]
        # several seeds: their mean, marked where every one is
        mean[a, b] = mean[b, a] = pair["synergy"].mean()
        q[a, b] = q[b, a] = pair["q"].max(skipna=False)
    labels = np.array([_short(site) for site in sites], dtype=object)
    axes = ("site", "together with")
    grid = xr.Dataset({"mean": (axes, mean), "q": (axes, q)}, coords=dict.fromkeys(axes, labels))
    return _cells(grid, name, bound, "synergy")


def _order(text: str) -> tuple[Any, ...]:
    """A key that sorts sites by layer and head or neuron, and behind them what is not a site."""
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


def _strongest(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the largest means, strongest first; all of them in their own order where they are few."""
    order = np.argsort(-rows["mean"].abs().fillna(-1).to_numpy(), kind="stable")[:STRONGEST]
    return pd.DataFrame(rows.iloc[np.sort(order) if len(rows) <= STRONGEST else order])


def _bars(
    rows: pd.DataFrame, axis: str, name: str, quantity: str, columns: Sequence[str] = ("mean", "low", "high"),
    reference: float | None = None,
) -> _Panel:  # fmt: skip
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
    size = (3.4, max(1.0, 0.24 * len(rows))) if lying else (max(2.6, 0.34 * len(rows)), 2.1)

    def draw(axes: Axes) -> None:
        draw_bars(axes, bar, low, high, lying=lying)
        if reference is not None:
            mark_reference(axes, reference, lying=lying)
        name_bars(axes, bar, None, lying=lying, length=size[lying], most=32, quantity=quantity)

    return _Panel(name, size, draw)


def _all_whole(column: Sequence[Any]) -> bool:
    return all(isinstance(label, int | np.integer) for label in column)


def _distribution(rows: pd.DataFrame, name: str) -> _Panel:
    """How many neurons have an effect of which size.

    The count is logarithmic, for those that matter are few.
    """

    def draw(axes: Axes) -> None:
        known = rows["mean"].dropna().to_numpy(dtype=float)
        axes.hist(known, bins=min(50, max(8, len(known) // 6)), color=BLUE)
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set(xlabel="mean effect", ylabel="neurons")
        light_grid(axes)

    return _Panel(_joined(f"{len(rows):,} neurons", name), (3.4, 2.4), draw)


def _lines(cell: pd.DataFrame, name: str, study: str, over: str) -> _Panel:
    """A line with its band for each label of the column `over`."""
    x = {"cumulative": "step", "steering": "strength", "methods": "n_edges"}[study]
    if over == "site":  # steering names its jobs `SITE*STRENGTH`
        cell = cell.assign(site=cell["what"].str.rpartition("*")[0])
    is_faithfulness = study == "methods"

    def draw(axes: Axes) -> None:
        axes.axhline(1.0 if is_faithfulness else 0.0, color=GREY, linewidth=0.8)
        lines = [pd.DataFrame(cell.iloc[rows]).sort_values(x) for rows in groups(cell, [over])][:MOST_LINES]
        for i, line in enumerate(lines):
            at, mean, low, high = (
                line[column].to_numpy(dtype=float) for column in (x, "mean", "low", "high")
            )
            label = shorten(visible(str(line[over].iloc[0])), 24)
            draw_line(axes, at, mean, low, high, colour=SERIES[i % len(SERIES)], label=label)
        axes.set_xlabel("sites edited together" if x == "step" else word(x))
        axes.set_ylabel("faithfulness" if is_faithfulness else "effect")
        if x != "strength":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if x == "step":
            _name_steps(axes, lines)
        light_grid(axes)

    return _Panel(name, (3.8, 2.4), draw)


def _name_steps(axes: Axes, lines: Sequence[pd.DataFrame]) -> None:
    """The site that each step adds, where all lines add the same ones and there is room for their names."""
    orders = {tuple(line["added"]) for line in lines}
    if len(orders) != 1 or len(lines[0]) > STRONGEST:
        return
    names = ["+ " + visible(_short(str(site))) for site in lines[0]["added"]]
    axes.set_xticks(lines[0]["step"].to_numpy(dtype=int), names)
    axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel("")


def _agreement(rows: pd.DataFrame, name: str) -> list[_Panel]:
    """Of circuits of several seeds: how alike they are, and how many edges they have."""
    jaccard = ("jaccard", "least", "most")
    rows = rows.assign(edges=(rows["edges_least"] + rows["edges_most"]) / 2)
    edges = ("edges", "edges_least", "edges_most")
    return [
        _bars(rows, "what", name, "Jaccard index of edges", jaccard, reference=1.0),
        _bars(rows, "what", name, "edges, fewest to most", edges),
    ]


def _assembled(
    panels: Sequence[_Panel], facts: xr.Dataset, title: str | None, *, across: int, one_scale: bool
) -> Figure:
    """Panels of one size in rows, with one scale for all of them, or for each its own where their metrics
    differ.
    """
    n = len(panels)
    width = max(panel.size[0] for panel in panels)
    height = max(panel.size[1] for panel in panels)
    across = columns_of(n, width + 0.7, height + 0.6, across)
    down = -(-n // across)
    size = max(4.4, 1.2 + across * (width + 0.7)), 1.1 + down * (height + 0.75)
    with styled(_SMALL_TICKS if n == 1 else _SMALL_TICKS | _SMALL_TITLES):
        figure = Picture(figsize=size, layout="constrained")
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        _fill(figure, grid, panels, one_scale)
        legends = [axes.get_legend_handles_labels() for axes in grid]
        handles, labels = max(legends, key=lambda legend: len(legend[1]))
        if labels:
            figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
        if n == 1:
            set_title(grid[0], facts, ": ".join(filter(None, (title, panels[0].name))) or None)
        else:
            most = max(12, int((width + 0.7) * 15))
            for axes, panel in zip(grid, panels, strict=False):
                axes.set_title(shorten(visible(panel.name), most) if panel.name else "", pad=4)
            set_heading(figure, facts, title)
        return settled(figure)


def _fill(figure: Figure, grid: Sequence[Axes], panels: Sequence[_Panel], one_scale: bool) -> None:
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
            colour_bar(figure, image, axes, quantity)
    elif bars:
        _, image, quantity = bars[0]
        colour_bar(figure, image, list(grid), quantity)
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
