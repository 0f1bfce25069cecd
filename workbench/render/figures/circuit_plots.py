"""Pictures of results about circuits: how faithful, how stable, how alike two are, and what the tests say.

One function for each kind of result; begin with `minimality`, the shortest. `plots` says which result goes to
which.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.circuit.compare import Comparison
from workbench.errors import WorkbenchError
from workbench.evaluation.nulls import REJECTION_SUPPORTS
from workbench.render.figures.bar_plots import bars
from workbench.render.figures.canvas import (
    DASHED,
    GREY,
    GROUND,
    INK,
    LEGEND,
    Picture,
    is_narrow,
    light_grid,
    plain_ticks,
    settled,
    styled,
)
from workbench.render.figures.headings import set_heading
from workbench.render.figures.line_plots import curve
from workbench.render.figures.notes import noted
from workbench.render.writing import BLUE, ORANGE, shortened
from workbench.text import visible

GOOD: dict[str, Any] = {"color": "#dcf0e3", "linewidth": 0, "zorder": 0}
"""Where a number speaks for the circuit."""
CORE = 0.9
"""The share of circuits that an edge of the core is in."""
MOST_EDGES = 24
"""The most edges of a test of minimality: those with the smallest p; and of a picture of stability."""


def minimality(result: xr.Dataset, title: str | None = None) -> Figure:
    """How much of the metric is lost without each component of a circuit."""
    shown = result["missed"].rename("metric lost without it (share)").assign_attrs(result.attrs)
    needless = result["node"].values[result["needed"].values == 0]
    note = "every component is needed"
    if len(needless):
        note = f"not needed (less than 1 % lost): {', '.join(map(str, needless))}"
    return bars(noted(shown, note), low=result["low"], high=result["high"], title=title)


def stability(result: xr.Dataset, title: str | None = None) -> Figure:
    """How often each edge is in the circuits found on resampled prompts, and how many edges each circuit has."""
    counts = result["n_edges"].values
    frequency = result["frequency"].values if "frequency" in result else np.zeros(0)
    n_always = int((frequency == 1).sum())
    with styled():
        figure = Picture(figsize=(7.2, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        places = np.arange(1, len(frequency) + 1)
        left.fill_between(places, frequency, step="mid", color=BLUE, alpha=0.2, linewidth=0)
        left.step(places, frequency, where="mid", color=BLUE, linewidth=1.6)
        left.axhline(CORE, **DASHED)
        left.annotate(
            f"in {CORE:.0%} of the circuits: {int((frequency >= CORE).sum())} edges", (0.99, CORE - 0.02),
            xycoords=left.get_yaxis_transform(), fontsize=8, color=GREY, ha="right", va="top",
        )  # fmt: skip
        left.set(ylim=(0, 1.05), xlim=(0.5, max(1.5, len(frequency) + 0.5)))
        left.set(xlabel="edges, the most frequent first", ylabel="share of circuits that have it")
        light_grid(left)
        # a bar for each number of edges, where they are few
        one_each = np.arange(counts.min(), counts.max() + 2) - 0.5
        right.hist(counts, bins=one_each if np.ptp(counts) < 30 else 20, color=BLUE, rwidth=0.9)
        for axis in (right.xaxis, right.yaxis):
            axis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportAttributeAccessIssue]
        right.set(xlabel="edges of a circuit (pruned)", ylabel="resamples")
        light_grid(right)
        if not len(frequency):  # a result of an earlier version does not say which edges
            left.set_axis_off()
            left.texts[0].remove()
            left.lines[-1].remove()
        rare = shortened(result["edge"].values[frequency < CORE][-3:], 24) if len(frequency) else []
        notes = [f"{result.attrs['draws']} resamples"] if "draws" in result.attrs else []
        if len(frequency):
            notes.append(f"{n_always} of {len(frequency)} edges are in all circuits")
        if rare:
            notes.append(f"seldom: {', '.join(rare)}")
        set_heading(figure, result.assign_attrs(note=" · ".join(notes)), title)
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
        shared = int((result.a.edges & result.b.edges).sum())
        either = int((result.a.edges | result.b.edges).sum())
        told = f"Both circuits have {shared:,} of the {either:,} edges of either (Jaccard index {result.jaccard:.2f})."
        note = (
            f"Jaccard of edges {result.jaccard:.2f}, of nodes {result.node_jaccard:.2f}"
            f" · precision of b {result.precision:.2f}, recall of a {result.recall:.2f}"
        )
        if result.collapsed:
            note += " · positions and neurons collapsed"
        set_heading(figure, xr.Dataset(attrs={"note": note, "conclusion": told}), title)
        return settled(figure)


def _draw_shared(axes: Axes, rows: pd.DataFrame) -> None:
    """A bar for each class of components: edges of both circuits, then those of one alone."""
    a, b, both = (rows[name].to_numpy() for name in ("a", "b", "both"))
    # Only what differs has a colour, and a hatch besides.
    segments: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("both", both, {"color": "#cbd5e1"}),
        ("only a", a - both, {"color": BLUE}),
        ("only b", b - both, {"color": ORANGE, "hatch": "///", "edgecolor": "white"}),
    )
    start, places = np.zeros(len(rows)), np.arange(len(rows))
    for name, counts, look in segments:
        axes.barh(places, counts, 0.7, left=start, label=name, linewidth=0, **look)
        ink = INK if name == "both" else "white"
        # white on a hatch of white would not be read
        box = {"facecolor": ORANGE, "linewidth": 0, "pad": 0.8} if name == "only b" else None
        # not `bar_label`, whose labels cannot be copied for a figure of a paper
        for place, count, left in zip(places, counts, start, strict=True):
            if count >= 2:
                middle = left + count / 2
                axes.text(
                    middle,
                    float(place),
                    str(int(count)),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=ink,
                    bbox=box,
                )
        start = start + counts
    axes.set_yticks(places, list(map(str, rows["class"])))
    axes.set_ylim(len(rows) - 0.4, -0.6)  # reversed, so that the first class is at the top as in the table
    axes.tick_params(axis="y", length=0)
    light_grid(axes, "x")


def verdicts(result: xr.Dataset, title: str | None = None) -> Figure:
    """The p-value of every test of a circuit, coloured by its verdict; for minimality also of every edge."""
    alpha = float(result.attrs.get("alpha", 0.05))
    n_tests, edges = result.sizes["test"], _smallest(result)
    height, ratios = 1.9 + 0.46 * n_tests, [1.0 + 1.6 * n_tests]
    if edges is not None:
        height += 0.9 + 0.19 * len(edges.names)
        ratios.append(0.6 * len(edges.names) + 1)
    with styled():
        figure = Picture(figsize=(6.4 if is_narrow() else 9.0, height), layout="constrained")
        grid = figure.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)
        _draw_tests(grid[0, 0], result, alpha)
        grid[-1, 0].set_xlabel("p")
        if edges is not None:
            _draw_edges(grid[1, 0], edges, result.sizes["edge"] - len(edges.names), alpha)
        accepted = ""
        if "accepted" in result:
            accepted = f"accepted: {'yes' if bool(result['accepted']) else 'no'}"
        note = f"{accepted} · green: p that speaks for the circuit · dashed: alpha {alpha:g}"
        set_heading(figure, result.assign_attrs(note=note), title)
        return settled(figure)


NULLS = {
    "equivalence": "circuit and model score alike",
    "independence": "what is outside does not matter",
    "minimality": "no edge is superfluous",
    "sufficiency": "random circuits do as well",
    "partial_necessity": "removing random edges harms as much",
}
"""What each test would reject: its null hypothesis, in words."""


def _draw_tests(axes: Axes, result: xr.Dataset, alpha: float) -> None:
    """A row for each test: the p-values that speak for the circuit shaded, its own, and the verdict in words."""
    p, supports = result["p"].values, result["supports"].values.astype(bool)
    _draw_p_values(axes, p, [BLUE if good else ORANGE for good in supports], alpha)
    tests = list(map(str, result["test"].values))
    left, right = axes.get_xlim()
    for row, test in enumerate(tests):
        # a small p is good where the null speaks against the circuit, and bad where it speaks for it
        ends = (left, alpha) if REJECTION_SUPPORTS.get(test, False) else (alpha, right)
        axes.fill_betweenx([row - 0.4, row + 0.4], *ends, **GOOD)
    names = [visible(test.replace("_", " ")) if is_narrow() else _null_of(test) for test in tests]
    axes.set_yticks(range(len(tests)), names, fontsize=8)
    beside = axes.get_yaxis_transform()
    for row, good in enumerate(supports):
        text = "nothing to test"
        if np.isfinite(p[row]):
            decision = "rejected" if p[row] < alpha else "not rejected"
            text = f"{'✓' if good else '✗'} {decision}: {'for' if good else 'against'} the circuit"
            if is_narrow():
                text = "✓ for it" if good else "✗ against it"
        # x is a share of the axes and y a row, so that text stands outside the axes beside its row
        colour = BLUE if good else ORANGE
        axes.text(1.02, row, text, transform=beside, va="center", fontsize=8, color=colour)


def _null_of(test: str) -> str:
    name = visible(test.replace("_", " "))
    if test not in NULLS:
        return name
    return f"{name}\n“{NULLS[test]}”"


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
