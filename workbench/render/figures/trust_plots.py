"""Pictures of what speaks for and against a circuit: controls, resamples, exact effects, other choices.

One function for each result of `evaluation.controls`, `rule_stability`, `agreement` and `specification`;
begin with `controls`.
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from workbench.render.figures.bar_plots import draw_bars
from workbench.render.figures.canvas import (
    DASHED,
    GREY,
    GROUND,
    SERIES,
    Picture,
    light_grid,
    plain_ticks,
    settled,
    styled,
)
from workbench.render.figures.headings import legend_name, set_heading
from workbench.render.writing import BLUE

FARTHEST = 2.0
"""Faithfulness and error are shown up to this size; what lies farther stands at the edge of the panel."""


def _names(result: xr.Dataset) -> list[str]:
    return [str(name) for name in result["ablation"].values]


def _colour(i: int) -> str:
    return SERIES[i % len(SERIES)]


def controls(result: xr.Dataset, title: str | None = None) -> Figure:
    """Faithfulness and error of each control as a mark with its range, beside those of the circuit as bands."""
    kinds = [str(name) for name in result["control"].values]
    labels = [f"{kind} ({int(n)})" for kind, n in zip(kinds, result["draws"].values, strict=True)]
    with styled():
        figure = Picture(figsize=(7.8, 2.5 + 0.42 * len(kinds)), layout="constrained")
        grid = figure.subplots(1, 2, sharey=True)
        for axes, name in zip(grid, ("faithfulness", "error"), strict=True):
            _draw_controls(axes, result, name)
        grid[0].set_yticks(range(len(kinds)), labels)
        grid[0].set_ylim(len(kinds) - 0.4, -0.6)
        grid[0].set_xlabel("faithfulness")
        grid[1].set_xlabel("error per prompt (share of the mean gap)")
        handles, legend = grid[0].get_legend_handles_labels()
        figure.legend(handles, legend, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
        note = (
            "lines: the circuit, with its 95 % interval · marks: controls, with the middle 95 % of the draws, or the "
            "interval over prompts where there is one circuit · in brackets: number of circuits"
        )
        set_heading(figure, result.assign_attrs(note=note), title or "Controls")
        return settled(figure)


def _draw_controls(axes: Axes, result: xr.Dataset, measure: str) -> None:
    names, n_kinds = _names(result), result.sizes["control"]
    for i, name in enumerate(names):
        one, colour = result.sel(ablation=name), _colour(i)
        own, low, high = (float(one[f"circuit_{measure}{end}"]) for end in ("", "_low", "_high"))
        axes.axvspan(low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axvline(own, color=colour, linewidth=1.4)
        values, lows, highs = (
            np.clip(np.asarray(one[f"{measure}{end}"].values, dtype=float), -FARTHEST, FARTHEST)
            for end in ("", "_low", "_high")
        )
        places = np.arange(n_kinds) + (i - (len(names) - 1) / 2) * 0.5 / max(1, len(names))
        known = np.isfinite(values)
        axes.hlines(places[known], lows[known], highs[known], color=colour, linewidth=2.4, alpha=0.55)
        axes.scatter(values[known], places[known], s=26, color=colour, label=f"against {legend_name(name)}")
    unknown = ~np.isfinite(result[measure].values).any(list(result[measure].dims).index("ablation"))
    for place in np.flatnonzero(unknown):
        axes.axhspan(place - 0.3, place + 0.3, linewidth=0, **GROUND)
    axes.axvline(1.0 if measure == "faithfulness" else 0.0, **DASHED)
    axes.tick_params(axis="y", length=0)
    light_grid(axes, "x")


def rule_stability(result: xr.Dataset, title: str | None = None) -> Figure:
    """The sizes that the rule found on resamples, and how alike these circuits are."""
    with styled():
        figure = Picture(figsize=(7.6, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2.4, 1.3])
        sizes = np.asarray(result["n_edges"].where(result["size"].notnull()).values, dtype=float)
        found = sizes[np.isfinite(sizes)]
        # Draws of the same size stand on top of each other, as in a histogram, and none is hidden.
        order = np.sort(found)
        heights = np.array([int((order[:k] == size).sum()) + 1 for k, size in enumerate(order)])
        left.scatter(order, heights, s=34, color=BLUE, label=f"{len(found)} of {len(sizes)} resamples")
        near, core = result.attrs.get("near"), int(result["core_size"])
        if near is not None:
            left.axvline(near, **DASHED)
            left.annotate(
                f"all prompts: {near:,}", (near, 1), xycoords=left.get_xaxis_transform(), xytext=(3, -9),
                textcoords="offset points", fontsize=7.5, color=GREY,
            )  # fmt: skip
        left.axvline(core, color=SERIES[1], linewidth=1.3, label=f"core: {core:,} edges")
        left.set(xlabel="number of edges, before refining", ylabel="resamples of this size")
        left.set_ylim(0, max(heights.max(initial=1) + 1.2, 3))
        left.yaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportAttributeAccessIssue]
        left.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=8, frameon=False)
        light_grid(left)
        _draw_jaccard(right, result)
        set_heading(figure, result, title)
        return settled(figure)


def _draw_jaccard(axes: Axes, result: xr.Dataset) -> None:
    """How much the edges of two draws agree: at their own sizes, and all cut at one size."""
    names = ("jaccard", "jaccard_near")
    columns = [
        xr.DataArray([float(result[f"{name}{end}"]) for name in names], dims="cut", name="Jaccard index")
        for end in ("", "_low", "_high")
    ]
    draw_bars(axes, *columns, colours=[BLUE, SERIES[2]])
    axes.set_xticks(range(2), ["own sizes", "one size"])
    axes.set(ylim=(0, 1.02), ylabel="Jaccard index of edges")


def agreement(result: xr.Dataset, title: str | None = None) -> Figure:
    """Each sampled edge's score against its exact effect, in both directions.

    Edges of the circuit are filled, others hollow; triangles are strong in one direction only. Effects that
    are 0 stand at the lower edge.
    """
    directions = [str(name) for name in result["direction"].values]
    with styled():
        figure = Picture(figsize=(7.8, 4.4), layout="constrained")
        grid = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
        for axes, direction in zip(grid, directions, strict=True):
            _draw_effects(axes, result, direction)
            axes.set_title(direction, fontsize=10)
            axes.set_xlabel("size of the score")
        grid[0].set_ylabel(f"size of the exact effect {_unit(result)}".rstrip())
        note = (
            "filled: in the circuit; hollow: outside · triangles: strong in one direction only (up: denoising, "
            "or-like; down: noising, and-like) · dashed: the circuit's median effect"
        )
        set_heading(figure, result.assign_attrs(note=note), title)
        return settled(figure)


def _unit(result: xr.Dataset) -> str:
    unit = result.attrs.get("unit", "")
    return f"({unit})" if unit else ""


def _draw_effects(axes: Axes, result: xr.Dataset, direction: str) -> None:
    sizes = result["size"].sel(direction=direction)
    positive = result["size"].values[result["size"].values > 0]
    scores = np.asarray(result["score"].values, dtype=float)
    known = scores[scores > 0]
    # Zeros have no logarithm: they stand at the edge of the panel, below everything that is not zero.
    floor = float(positive.min()) / 2 if len(positive) else 1e-6
    left = float(known.min()) / 2 if len(known) else 1e-6
    inside = result["inside"].values.astype(bool)
    for i, name in enumerate(_names(result)):
        colour = _colour(i)
        y = np.maximum(np.asarray(sizes.sel(ablation=name).values, dtype=float), floor)
        kinds = result["one_direction"].sel(ablation=name).values.astype(str)
        for stratum, chosen in (("inside", inside), ("outside", ~inside)):
            for kind, marker in (("", "o"), ("or-like", "^"), ("and-like", "v")):
                some = chosen & (kinds == kind)
                axes.scatter(
                    np.maximum(scores[some], left), y[some], s=18 if not kind else 30, marker=marker,
                    facecolors=colour if stratum == "inside" else "none", edgecolors=colour, linewidths=0.8, alpha=0.8,
                )  # fmt: skip
        rho = result["spearman"].sel(direction=direction, ablation=name)
        texts = [f"{stratum} {float(rho.sel(stratum=stratum)):.2f}" for stratum in ("inside", "outside")]
        axes.scatter([], [], s=18, color=colour, label=f"{legend_name(name, 16)}: {', '.join(texts)}")
        median = float(result["median"].sel(direction=direction, ablation=name))
        if np.isfinite(median) and median > 0:
            axes.axhline(median, color=colour, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=6))
        plain_ticks(axis)
    axes.legend(title="Spearman", title_fontsize=8, loc="lower right", fontsize=8, alignment="left")
    light_grid(axes, "both")


def specification(result: xr.Dataset, title: str | None = None) -> Figure:
    """How much each choice changes the circuit, and in what share of the specifications edges are."""
    with styled():
        figure = Picture(figsize=(7.8, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.6, 2])
        words = {"ablation": "value", "draw": "prompts", "score_method": "method"}
        choices = [words.get(str(name), str(name)) for name in result["choice"].values]
        columns = [result[f"jaccard{end}"].rename("Jaccard index") for end in ("", "_low", "_high")]
        draw_bars(left, *columns, colours=[BLUE] * len(choices))
        left.set_xticks(range(len(choices)), choices)
        left.set(ylim=(0, 1.02), ylabel="Jaccard index of edges", xlabel="other choice of")
        shares = result["share"].values
        shares = -np.sort(-shares[np.isfinite(shares) & (shares > 0)])
        right.plot(np.arange(1, len(shares) + 1), shares, color=BLUE, linewidth=1.8)
        right.axhline(0.8, **DASHED)
        right.set(ylim=(0, 1.02), xlabel="edges, by share", ylabel="share of the specifications")
        right.set_xscale("log")
        plain_ticks(right.xaxis)
        light_grid(right)
        n = result.attrs["n_specifications"]
        note = f"{n} specifications · {result.attrs['n_robust']} edges are in at least 80 % of them"
        set_heading(figure, result.assign_attrs(note=note), title)
        return settled(figure)
