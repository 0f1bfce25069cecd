"""The picture of a sweep: what suits its study, a panel for each model, task, metric and value; seeds are averaged."""

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
    BLUE,
    GREY,
    SERIES,
    Picture,
    label_axis,
    light_grid,
    plain_ticks,
    set_heading,
    set_title,
    settled,
    shorten,
    styled,
    word,
)
from workbench.render.figures.grids import cells, colour_bar, columns_of, label_cells
from workbench.render.figures.line_plots import draw_bars, draw_line
from workbench.sites import Site
from workbench.sweeps.rows import axes_of, groups, labelled, varying
from workbench.sweeps.table import Sweep
from workbench.text import visible

SETTINGS = ("metric", "model", "checkpoint", "task", "split", "variant", "base", "value")
"""Flags that get a panel each where they vary."""
MOST_PANELS, STRONGEST, MOST_LINES = 24, 20, 8
ALPHA = 0.05
"""Cells with q below it are marked."""


@dataclass(frozen=True)
class _Panel:
    """One pair of axes: what it is called, its size in inches, and how it is filled; `draw` may return an image of a quantity."""

    name: str
    size: tuple[float, float]
    draw: Callable[[Axes], Any]
    quantity: str = ""


def sweep_figure(sweep: Sweep, title: str | None = None) -> Figure:
    """The figure of a sweep, by its study.

    Effects: layers x heads (or positions) as cells, layers as bars, of neurons the distribution and the strongest. Pairs: the
    synergy of two sites. Cumulative ablation and steering: lines with bands. Paths: writers x readers. Circuits and methods:
    faithfulness with intervals. Stability: Jaccard index of edges (least to largest) and numbers of edges.

    Raises:
        WorkbenchError: nothing was measured.
    """
    study = str(sweep.rows["study"].iloc[0]) if len(sweep.rows) else ""
    table = (
        sweep.synergy()
        if study == "pairs"
        else sweep.stability()
        if study == "stability"
        else sweep.summary()
    )
    lines = _over_lines(study, table)
    settings = [flag for flag in varying(table, SETTINGS) if flag != lines]
    panels: list[_Panel] = []
    for at in groups(table, settings):
        part = pd.DataFrame(table.iloc[at]).reset_index(drop=True)
        name = ", ".join(_setting(flag, part[flag].iloc[0]) for flag in settings)
        alike = pd.DataFrame(table[table["metric"] == part["metric"].iloc[0]])
        panels += _panels(study, part, name, lines, _bound(alike, study))
    if not panels:
        raise WorkbenchError(f"There is nothing to draw: no job of {sweep!r} was measured.")
    note = _note(sweep, table, panels, study)
    same = {flag: str(table[flag].iloc[0]) for flag in SETTINGS if flag not in settings and flag != lines}
    facts = {flag: label for flag, label in same.items() if flag in ("model", "task", "metric", "value")}
    across = len(panels) // len(groups(table, settings[:-1])) if settings else len(panels)
    shown = xr.Dataset(attrs=facts | {"note": note})
    return _assembled(panels[:MOST_PANELS], shown, title, across=across, one_scale="metric" not in settings)


def difference_figure(table: pd.DataFrame, title: str | None = None) -> Figure:
    """The largest differences between two sweeps, of `compare_sweeps`, with their intervals."""
    flags = varying(table, [*SETTINGS, "seed", "step"])
    shown = _strongest(table.rename(columns={"difference": "mean"}))
    names = [
        ", ".join([str(row["what"]), *(_setting(flag, row[flag]) for flag in flags)])
        for row in shown.to_dict("records")
    ]
    apart = [f"{flag}: {b} minus {a}" for flag, (a, b) in table.attrs.get("apart", {}).items()]
    left = f"the {len(shown)} largest of {len(table):,}" if len(shown) < len(table) else ""
    facts = xr.Dataset(attrs={"note": " · ".join(each for each in (*apart, left) if each)})
    panel = _bars(shown.assign(job=names), "job", "", "difference of effects")
    return _assembled([panel], facts, title, across=1, one_scale=True)


def _setting(flag: str, label: Any) -> str:
    named = "none" if pd.isna(label) else str(label)
    return named if flag in ("model", "task", "metric", "value") else f"{word(flag)} {named}"


def _note(sweep: Sweep, table: pd.DataFrame, panels: Sequence[_Panel], study: str) -> str:
    seeds = {record.get("seed") for record in sweep.records}
    notes = [f"over {len(seeds)} seeds" if len(seeds) > 1 else ""]
    notes += [
        f"dots: q < {ALPHA:g}"
        if "q" in table and bool((table["q"] < ALPHA).any()) and study in ("effects", "pairs", "paths")
        else ""
    ]
    notes += [
        f"the first {MOST_PANELS} of {len(panels)} panels: select them, as in .select()"
        if len(panels) > MOST_PANELS
        else ""
    ]
    failed = len(sweep.status().failed)
    notes += [f"{failed} of {len(sweep.records)} jobs failed" if failed else ""]
    return " · ".join(note for note in notes if note)


def _over_lines(study: str, table: pd.DataFrame) -> str | None:
    """The column whose labels are a line each."""
    if study == "cumulative":
        return "value"
    if study == "steering":
        return "site"
    return (
        "method"
        if study == "methods" and "n_edges" in table and len(table["n_edges"].drop_duplicates()) > 1
        else None
    )


def _panels(study: str, part: pd.DataFrame, name: str, lines: str | None, bound: float) -> list[_Panel]:
    if study == "pairs":
        return [_matrix(part, name, bound)]
    if study == "stability":
        return _agreement(part, name)
    if lines is not None:
        return [_lines(part, name, study, lines)]
    if study in ("circuits", "methods"):
        return [_bars(part, "what", name, "faithfulness", reference=1.0)]
    axes = axes_of(part)
    if "neuron" in axes:
        return [
            _distribution(part, name),
            _bars(_strongest(part), "what", _joined("strongest", name), "effect"),
        ]
    if len(axes) == 2:
        return [_cells(_filled(labelled(part, axes, ["mean", "q"])), name, bound)]
    if axes == ["layer"]:
        return [_bars(part.sort_values("layer"), "layer", name, "effect")]
    return [_bars(_strongest(part), axes[0] if len(axes) == 1 else "what", name, "effect")]


def _joined(*words: str) -> str:
    return ", ".join(each for each in words if each)


def _bound(table: pd.DataFrame, study: str) -> float:
    numbers = table["synergy" if study == "pairs" else "mean" if "mean" in table else "jaccard"].to_numpy(
        dtype=float
    )
    return float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0)) or 1.0


def _filled(grid: xr.Dataset) -> xr.Dataset:
    """The grid with every layer and head up to the last; those that were not asked for are NaN."""
    whole = {dim: range(int(grid[dim].max()) + 1) for dim in grid.dims if dim in ("layer", "head")}
    return grid.reindex({dim: np.array(labels) for dim, labels in whole.items()})


def _cells(grid: xr.Dataset, name: str, bound: float, quantity: str = "effect") -> _Panel:
    values = grid["mean"].rename(quantity)
    rows, columns = values.shape
    size = (min(6.0, max(1.6, columns * 0.26)), min(5.0, max(1.1, rows * 0.26)))
    marks = np.where(grid["q"].transpose(*values.dims).values < ALPHA, "•", "")

    def draw(axes: Axes) -> Any:
        image = cells(
            axes,
            np.asarray(values.values, dtype=float),
            {"cmap": "RdBu", "norm": CenteredNorm(0, bound)},
            marks,
        )
        label_cells(axes, values, None, size)
        return image

    return _Panel(name, size, draw, quantity)


def _matrix(part: pd.DataFrame, name: str, bound: float) -> _Panel:
    """Synergy of two sites, on both sides of the diagonal."""
    sites = sorted({*part["site_a"], *part["site_b"]}, key=_order)
    place = {site: i for i, site in enumerate(sites)}
    mean, q = np.full((2, len(sites), len(sites)), np.nan)
    for row in groups(part, ["site_a", "site_b"]):
        pair = part.iloc[row]
        a, b = place[pair["site_a"].iloc[0]], place[pair["site_b"].iloc[0]]
        # several seeds: their mean, marked where every one is
        mean[a, b] = mean[b, a] = pair["synergy"].mean()
        q[a, b] = q[b, a] = pair["q"].max(skipna=False)
    labels = np.array([_short(site) for site in sites], dtype=object)
    grid = xr.Dataset(
        {"mean": (("site", "other"), mean), "q": (("site", "other"), q)},
        coords={"site": labels, "other": labels},
    )
    return _cells(grid.rename(other="together with"), name, bound, "synergy")


def _order(site: str) -> tuple[Any, ...]:
    try:
        found = Site.parse(site)
    except WorkbenchError:
        return (1, 0, 0, site)
    return (0, found.layer or 0, found.unit or 0, site)


def _short(site: str) -> str:
    try:
        found = Site.parse(site)
    except WorkbenchError:
        return site
    return (
        f"a{found.layer}.{found.head}"
        if found.kind == "z" and found.head is not None and found.pos is None
        else site
    )


def _strongest(part: pd.DataFrame) -> pd.DataFrame:
    order = np.argsort(-part["mean"].abs().fillna(-1).to_numpy(), kind="stable")[:STRONGEST]
    return pd.DataFrame(part.iloc[np.sort(order) if len(part) <= STRONGEST else order])


def _bars(
    part: pd.DataFrame, axis: str, name: str, quantity: str, columns: Sequence[str] = ("mean", "low", "high"),
    reference: float | None = None,
) -> _Panel:  # fmt: skip
    """Bars with intervals; they lie where their names are long."""
    labels = (
        part[axis].to_numpy(dtype=int)
        if axis in ("layer", "pos") and _whole(part[axis].tolist())
        else part[axis].astype(str).to_numpy(dtype=object)
    )
    bar, low, high = (
        xr.DataArray(part[c].to_numpy(dtype=float), dims=axis, coords={axis: labels}) for c in columns
    )
    lying = axis not in ("layer", "pos", "head")
    size = (3.4, max(1.0, 0.24 * len(part))) if lying else (max(2.6, 0.34 * len(part)), 2.1)

    def draw(axes: Axes) -> None:
        draw_bars(axes, bar, low, high, lying=lying)
        if reference is not None:
            (axes.axvline if lying else axes.axhline)(
                reference, color=GREY, linewidth=1, linestyle=(0, (4, 3))
            )
        label_axis(axes, "y" if lying else "x", bar, axis, None, inches=size[lying], most=32 if lying else 16)
        (axes.set_xlabel if lying else axes.set_ylabel)(quantity)
        if lying:
            axes.set_ylabel("")

    return _Panel(name, size, draw)


def _whole(column: Sequence[Any]) -> bool:
    return all(isinstance(label, int | np.integer) for label in column)


def _distribution(part: pd.DataFrame, name: str) -> _Panel:
    """How many neurons have an effect of which size; the count is logarithmic, for those that matter are few."""

    def draw(axes: Axes) -> None:
        known = part["mean"].dropna().to_numpy(dtype=float)
        axes.hist(known, bins=min(50, max(8, len(known) // 6)), color=BLUE)
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set(xlabel="mean effect", ylabel="neurons")
        light_grid(axes)

    return _Panel(_joined(f"{len(part):,} neurons", name), (3.4, 2.4), draw)


def _lines(part: pd.DataFrame, name: str, study: str, over: str) -> _Panel:
    x = {"cumulative": "step", "steering": "strength", "methods": "n_edges"}[study]
    part = part.assign(site=part["what"].str.rpartition("*")[0]) if over == "site" else part
    quantity = "faithfulness" if study == "methods" else "effect"

    def draw(axes: Axes) -> None:
        axes.axhline(1.0 if study == "methods" else 0.0, color=GREY, linewidth=0.8)
        parts = [pd.DataFrame(part.iloc[at]).sort_values(x) for at in groups(part, [over])][:MOST_LINES]
        for i, line in enumerate(parts):
            numbers = (line[column].to_numpy(dtype=float) for column in (x, "mean", "low", "high"))
            label = shorten(visible(str(line[over].iloc[0])), 24)
            draw_line(axes, *numbers, colour=SERIES[i % len(SERIES)], label=label)
        axes.set(xlabel="sites edited together" if x == "step" else word(x), ylabel=quantity)
        if x != "strength":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if x == "step" and len({tuple(line["added"]) for line in parts}) == 1 and len(parts[0]) <= STRONGEST:
            axes.set_xticks(
                parts[0]["step"].to_numpy(dtype=int),
                ["+ " + visible(_short(str(site))) for site in parts[0]["added"]],
            )
            axes.tick_params(axis="x", rotation=45)
            axes.set_xlabel("")
        light_grid(axes)

    return _Panel(name, (3.8, 2.4), draw)


def _agreement(part: pd.DataFrame, name: str) -> list[_Panel]:
    part = part.assign(edges=(part["edges_least"] + part["edges_most"]) / 2)
    jaccard = _bars(part, "what", name, "Jaccard index of edges", ("jaccard", "least", "most"), reference=1.0)
    return [
        jaccard,
        _bars(part, "what", name, "edges, fewest to most", ("edges", "edges_least", "edges_most")),
    ]


def _assembled(
    panels: Sequence[_Panel], facts: xr.Dataset, title: str | None, *, across: int, one_scale: bool
) -> Figure:
    """Panels of one size in rows, with one scale for all of them, or for each its own where their metrics differ."""
    n, (width, height) = len(panels), (max(panel.size[i] for panel in panels) for i in (0, 1))
    across = columns_of(n, width + 0.7, height + 0.6, across)
    down = -(-n // across)
    small = {"axes_titlesize": 9, "axes_titleweight": "normal"} if n > 1 else {}
    with styled(xtick_labelsize=7.5, ytick_labelsize=7.5, **small):
        figure = Picture(
            figsize=(max(4.4, 1.2 + across * (width + 0.7)), 1.1 + down * (height + 0.75)),
            layout="constrained",
        )
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        images = [(axes, panel.draw(axes), panel) for axes, panel in zip(grid, panels, strict=False)]
        images = [found for found in images if found[1] is not None]
        for axes in grid[n:]:
            axes.set_axis_off()
        for axes, image, panel in images[:1] if one_scale else images:
            colour_bar(figure, image, grid if one_scale else axes, panel.quantity)
        if one_scale and not images:
            _share(grid[:n])
        handles, labels = max(
            (axes.get_legend_handles_labels() for axes in grid), key=lambda found: len(found[1])
        )
        if labels:
            figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
        if n == 1:
            set_title(grid[0], facts, ": ".join(each for each in (title, panels[0].name) if each) or None)
        else:
            for axes, panel in zip(grid, panels, strict=False):
                axes.set_title(
                    shorten(visible(panel.name), max(12, int((width + 0.7) * 15))) if panel.name else "",
                    pad=4,
                )
            set_heading(figure, facts, title)
        return settled(figure)


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
