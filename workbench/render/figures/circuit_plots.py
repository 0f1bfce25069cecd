"""Pictures of results about circuits: how faithful, how stable, how alike two are, and what the tests say.

One function for each kind of result; begin with `minimality`, the shortest. `plots` says which result goes to
which.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.circuit.compare import Comparison
from workbench.errors import WorkbenchError
from workbench.render.figures.bar_plots import bars, draw_bars
from workbench.render.figures.canvas import (
    DASHED,
    GREY,
    GROUND,
    LEGEND,
    SERIES,
    Picture,
    light_grid,
    plain_ticks,
    settled,
    styled,
)
from workbench.render.figures.headings import set_heading
from workbench.render.figures.line_plots import curve, side_by_side
from workbench.render.figures.notes import noted
from workbench.render.writing import BLUE, ORANGE, shortened
from workbench.statistics import interval_text
from workbench.text import visible

CHECKS = ("faithfulness", "complement", "random", "incompleteness")
MOST_EDGES = 24
"""The most edges of a test of minimality: those with the smallest p."""


def evaluation(result: xr.Dataset, title: str | None = None) -> Figure:
    """Faithfulness of circuits, and of a single circuit its checks too: bars, a series for each ablation."""
    is_one = result.sizes.get("circuit") == 1
    one = result
    if is_one:
        one = result.isel(circuit=0)
    checks = [name for name in CHECKS if name in one]
    if is_one:
        if "minimal" in one:
            checks.append("minimal")
        table = _checks_table(one, checks).transpose(..., "check")
    elif result.sizes.get("ablation", 1) > 1:
        # several circuits and ablations leave no room for further checks
        table = _checks_table(one, ["faithfulness"], quantity="faithfulness").isel(check=0, drop=True)
        table = table.transpose("ablation", "circuit")
    else:
        flat = one
        if "ablation" in one.dims:
            flat = one.squeeze("ablation")
        if len(checks) > 1:
            table = _checks_table(flat, checks).transpose("check", "circuit")
        else:
            table = _checks_table(flat, checks, quantity="faithfulness").squeeze("check", drop=True)
    shown = table["mean"].rename(table.attrs["quantity"]).assign_attrs(result.attrs)
    if "n_edges" in result and is_one and result["n_edges"].size:
        shown = noted(shown, f"{int(result['n_edges'].values.flat[0]):,} edges")
    return bars(shown, low=table["low"], high=table["high"], title=title, reference=1.0)


def _checks_table(
    result: xr.Dataset, names: Sequence[str], quantity: str = "share of the effect"
) -> xr.Dataset:
    """`mean`, `low` and `high` of each check."""
    # A result calls the ends of the interval of the faithfulness plainly `low` and `high`.
    named = result.assign(faithfulness_low=result["low"], faithfulness_high=result["high"])
    return side_by_side(named, names, "check", quantity=quantity)


def minimality(result: xr.Dataset, title: str | None = None) -> Figure:
    """How much of the metric is lost without each component of a circuit."""
    shown = result["missed"].rename("metric lost without it (share)").assign_attrs(result.attrs)
    needless = result["node"].values[result["needed"].values == 0]
    note = "every component is needed"
    if len(needless):
        note = f"not needed (less than 1 % lost): {', '.join(map(str, needless))}"
    return bars(noted(shown, note), low=result["low"], high=result["high"], title=title)


def stability(result: xr.Dataset, title: str | None = None) -> Figure:
    """How much circuits found on resampled prompts agree, and how many edges each of them has."""
    with styled():
        figure = Picture(figsize=(6.8, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 2.4])
        jaccard, low, high = (result[name].expand_dims("circuits") for name in ("jaccard", "low", "high"))
        draw_bars(left, jaccard.assign_coords(circuits=["resampled"]), low, high)
        left.set(ylim=(0, 1.02), xlim=(-0.8, 0.8), xticks=[], ylabel="Jaccard index of edges")
        interval = interval_text(float(result["low"]), float(result["high"]), ".2f")
        left.set_title(f"{float(result['jaccard']):.2f} {interval}", fontsize=9.5, fontweight="normal")
        counts = result["n_edges"].values
        # a bar for each number of edges, where they are few
        one_each = np.arange(counts.min(), counts.max() + 2) - 0.5
        right.hist(counts, bins=one_each if np.ptp(counts) < 30 else 20, color=BLUE)
        for axis in (right.xaxis, right.yaxis):
            axis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportAttributeAccessIssue]
        right.set(xlabel="number of edges after pruning", ylabel="resamples")
        light_grid(right)
        note = ""
        if "draws" in result.attrs:
            note = f"{result.attrs['draws']} resamples"
        set_heading(figure, result.assign_attrs(note=note), title)
        return settled(figure)


def comparison(result: Comparison, title: str | None = None) -> Figure:
    """Edges that two circuits share and those of one alone, by what they enter and what writes them."""
    frame = result.by_component
    present = frame["side"].tolist()
    sides = [side for side in ("reader", "writer") if side in present] or ["reader"]
    heights = [max(1, present.count(side)) for side in sides]
    with styled():
        figure = Picture(figsize=(7.2, 1.8 + 0.3 * max(3, len(frame))), layout="constrained")
        grid = figure.subplots(len(sides), 1, squeeze=False, sharex=True, height_ratios=heights)
        for axes, side in zip(grid[:, 0], sides, strict=True):
            _draw_shared(axes, pd.DataFrame(frame[frame["side"] == side]))
            axes.set_ylabel({"reader": "into", "writer": "out of"}[side])
        grid[0, 0].legend(**LEGEND)
        grid[-1, 0].set_xlabel("number of edges")
        note = (
            f"Jaccard of edges {result.jaccard:.2f}, of nodes {result.node_jaccard:.2f}"
            f" · precision of b {result.precision:.2f}, recall of a {result.recall:.2f}"
        )
        if result.collapsed:
            note += " · positions and neurons collapsed"
        set_heading(figure, xr.Dataset(attrs={"note": note}), title)
        return settled(figure)


def _draw_shared(axes: Axes, rows: pd.DataFrame) -> None:
    """A bar for each class of components: edges of both circuits, then those of one alone."""
    a, b, both = (rows[name].to_numpy() for name in ("a", "b", "both"))
    segments = (("both", both, BLUE), ("only a", a - both, SERIES[1]), ("only b", b - both, SERIES[2]))
    start, places = np.zeros(len(rows)), np.arange(len(rows))
    for name, counts, colour in segments:
        axes.barh(places, counts, 0.7, left=start, color=colour, label=name)
        start = start + counts
    axes.set_yticks(places, list(map(str, rows["class"])))
    axes.set_ylim(len(rows) - 0.4, -0.6)  # reversed, so that the first class is at the top as in the table
    axes.tick_params(axis="y", length=0)
    light_grid(axes, "x")


def verdicts(result: xr.Dataset, title: str | None = None) -> Figure:
    """The p-value of every test of a circuit, coloured by its verdict; for minimality also of every edge."""
    alpha = float(result.attrs.get("alpha", 0.05))
    n_tests, edges = result.sizes["test"], _smallest(result)
    height, ratios = 1.6 + 0.32 * n_tests, [1.0 + n_tests]
    if edges is not None:
        height += 0.9 + 0.19 * len(edges.names)
        ratios.append(0.6 * len(edges.names) + 1)
    with styled():
        figure = Picture(figsize=(7.2, height), layout="constrained")
        grid = figure.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)
        _draw_tests(grid[0, 0], result, alpha)
        grid[-1, 0].set_xlabel("p")
        if edges is not None:
            _draw_edges(grid[1, 0], edges, result.sizes["edge"] - len(edges.names), alpha)
        accepted = ""
        if "accepted" in result:
            accepted = f"accepted: {'yes' if bool(result['accepted']) else 'no'}"
        set_heading(figure, result.assign_attrs(note=f"{accepted} · dashed: alpha {alpha:g}"), title)
        return settled(figure)


def _draw_tests(axes: Axes, result: xr.Dataset, alpha: float) -> None:
    """A row for each test: its p-value, and in words what it says."""
    p, supports = result["p"].values, result["supports"].values.astype(bool)
    _draw_p_values(axes, p, [BLUE if good else ORANGE for good in supports], alpha)
    names = [visible(str(name).replace("_", " ")) for name in result["test"].values]
    axes.set_yticks(range(len(names)), names)
    for row, (statistic, good) in enumerate(zip(result["statistic"].values, supports, strict=True)):
        text = "nothing to test"
        if np.isfinite(p[row]):
            verdict = "supports" if good else "speaks against"
            text = f"statistic {statistic:.3g}: {verdict} the circuit"
        # x is a share of the axes and y a row, so that text stands outside the axes beside its row
        beside = axes.get_yaxis_transform()
        axes.text(1.02, row, text, transform=beside, va="center", fontsize=8, color=GREY)


@dataclass(frozen=True)
class _EdgeTests:
    """Names of edges and the p-values of their tests, smallest first."""

    names: list[str]
    p: np.ndarray


def _smallest(result: xr.Dataset) -> _EdgeTests | None:
    """The edges with the smallest p, at most `MOST_EDGES`; None where none was tested."""
    if "edge_p" not in result or not np.isfinite(result["edge_p"].values).any():
        return None
    order = np.argsort(result["edge_p"].values, kind="stable")[:MOST_EDGES]
    names = shortened(result["edge"].values[order], 32)
    return _EdgeTests(names, result["edge_p"].values[order])


def _draw_edges(axes: Axes, edges: _EdgeTests, n_left_out: int, alpha: float) -> None:
    _draw_p_values(axes, edges.p, [ORANGE if p < alpha else BLUE for p in edges.p], alpha)
    axes.set_yticks(range(len(edges.names)), edges.names, fontsize=7)
    left_out = ""
    if n_left_out:
        left_out = f"; {n_left_out} with larger p left out"
    axes.set_title(f"minimality, edge by edge (not corrected{left_out})", fontsize=9, fontweight="normal")


def _draw_p_values(axes: Axes, p: np.ndarray, colours: list[str], alpha: float) -> None:
    """A dot for each p-value on a logarithmic axis, with alpha dashed."""
    known = np.isfinite(p)
    rows = np.arange(len(p))
    # a p-value of 0 has no logarithm; no other one of these tests is below 1e-4
    shown = np.clip(p, 1e-4, 1)
    inks = [colours[row] for row in rows[known]]
    axes.hlines(rows[known], shown[known], 1, color=inks, linewidth=1.2, alpha=0.5)
    axes.scatter(shown[known], rows[known], c=inks, s=28, zorder=3)
    for row in rows[~known]:
        axes.axhspan(row - 0.3, row + 0.3, linewidth=0, **GROUND)
    axes.axvline(alpha, **DASHED)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set_xlim(min(0.5 * alpha, 0.7 * float(shown[known].min(initial=1.0))), 1.15)
    axes.set_ylim(len(p) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    light_grid(axes, "x")


def faithfulness(result: xr.Dataset, title: str | None = None) -> Figure:
    """Faithfulness against circuit size, a line for each label of a further axis, such as `method`."""
    dims = list(map(str, result["faithfulness"].dims))
    if not dims:
        raise WorkbenchError(
            "A single number cannot be drawn: keep an axis of the faithfulness, such as its sizes."
        )
    size = "size" if "size" in result.dims else dims[-1]
    over = next((dim for dim in dims if dim != size), None)
    x = "n_edges" if "n_edges" in result and size in result["n_edges"].dims else size
    low, high = None, None
    if {"low", "high"} <= set(result):
        low, high = "low", "high"
    if {"area", "area_name"} <= set(result.attrs) and over is None:
        result = result.assign_attrs(note=f"{result.attrs['area_name']} {result.attrs['area']:.3f}")
    return curve(result, x=x, y="faithfulness", low=low, high=high, over=over, title=title, reference=1.0)
