"""Pictures of what was found about circuits: how faithful, how stable, how alike two are, and what the tests say."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.circuit.compare import Comparison
from workbench.errors import WorkbenchError
from workbench.render.figures.canvas import (
    BLUE,
    GREY,
    GROUND,
    LEGEND,
    RED,
    SERIES,
    Picture,
    light_grid,
    noted,
    plain_ticks,
    set_heading,
    settled,
    shorten,
    styled,
)
from workbench.render.figures.line_plots import bars, curve, draw_bars, side_by_side
from workbench.statistics import interval_text
from workbench.text import visible

CHECKS = ("faithfulness", "complement", "random", "incompleteness")
MOST_EDGES = 24
"""Of a test of minimality: those with the smallest p."""


def evaluation(found: xr.Dataset, title: str | None = None) -> Figure:
    """Faithfulness of circuits, and of one circuit also its checks: bars with intervals, a series for each ablation."""
    one = found.isel(circuit=0) if found.sizes.get("circuit") == 1 else found
    renamed = one.assign(faithfulness_low=one["low"], faithfulness_high=one["high"])
    names = [name for name in CHECKS if name in one]
    share = renamed["faithfulness"]
    if one is not found:
        names += ["minimal"] if "minimal" in one else []
        made = side_by_side(renamed, names, "check", quantity="share of the effect")
        made = made.transpose(..., "check")
    elif "ablation" in found.dims and found.sizes["ablation"] > 1:
        made = side_by_side(renamed, ["faithfulness"], "check", quantity="faithfulness").isel(
            check=0, drop=True
        )
        made = made.transpose("ablation", "circuit")
    elif len(names) > 1:
        made = side_by_side(
            renamed.squeeze("ablation") if "ablation" in found.dims else renamed,
            names,
            "check",
            quantity="share of the effect",
        )
        made = made.transpose("check", "circuit")
    else:
        made = xr.Dataset(
            {"mean": share, "low": one["low"], "high": one["high"]},
            attrs=found.attrs | {"quantity": "faithfulness"},
        ).squeeze()
    shown = made["mean"].rename(made.attrs["quantity"]).assign_attrs(found.attrs)
    if "n_edges" in found and one is not found and found["n_edges"].size:
        shown = noted(shown, f"{int(found['n_edges'].values.flat[0]):,} edges")
    return bars(shown, low=made["low"], high=made["high"], title=title, reference=1.0)


def minimality(found: xr.Dataset, title: str | None = None) -> Figure:
    """How much each component of a circuit is missed when it goes."""
    shown = found["missed"].rename("missed (share of the metric)").assign_attrs(found.attrs)
    needless = found["node"].values[found["needed"].values == 0]
    shown = noted(
        shown,
        f"less than 1 %: {', '.join(map(str, needless))}" if len(needless) else "every component is missed",
    )
    return bars(shown, low=found["low"], high=found["high"], title=title)


def stability(found: xr.Dataset, title: str | None = None) -> Figure:
    """How much circuits found on resampled prompts agree, and how many edges each of them has."""
    with styled():
        figure = Picture(figsize=(6.8, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 2.4])
        jaccard = found["jaccard"].expand_dims(circuits=["resampled"])
        draw_bars(left, jaccard, found["low"].expand_dims("circuits"), found["high"].expand_dims("circuits"))
        left.set(ylim=(0, 1.02), xlim=(-0.8, 0.8), xticks=[], ylabel="Jaccard index of edges")
        numbers = [float(found[name]) for name in ("jaccard", "low", "high")]
        left.set_title(
            f"{numbers[0]:.2f} {interval_text(numbers[1], numbers[2], '.2f')}",
            fontsize=9.5,
            fontweight="normal",
        )
        counts = found["n_edges"].values
        right.hist(
            counts,
            bins=np.arange(counts.min(), counts.max() + 2) - 0.5 if np.ptp(counts) < 30 else 20,
            color=BLUE,
        )
        right.xaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportAttributeAccessIssue]
        right.yaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportAttributeAccessIssue]
        right.set(xlabel="number of edges after pruning", ylabel="resamples")
        light_grid(right)
        set_heading(
            figure,
            found.assign_attrs(note=f"{found.attrs['draws']} resamples" if "draws" in found.attrs else ""),
            title,
        )
        return settled(figure)


def comparison(found: Comparison, title: str | None = None) -> Figure:
    """Edges that two circuits share and those of one alone, by what they enter and what writes them."""
    frame, colours = found.by_component, {"both": BLUE, "only a": SERIES[1], "only b": SERIES[2]}
    present = frame["side"].tolist()
    sides = [side for side in ("reader", "writer") if side in present] or ["reader"]
    heights = [max(1, present.count(side)) for side in sides]
    with styled():
        figure = Picture(figsize=(7.2, 1.8 + 0.3 * max(3, len(frame))), layout="constrained")
        grid = figure.subplots(len(sides), 1, squeeze=False, sharex=True, height_ratios=heights)
        for axes, side in zip(grid[:, 0], sides, strict=True):
            part = pd.DataFrame(frame[frame["side"] == side])
            a, b, both = (part[name].to_numpy() for name in ("a", "b", "both"))
            parts = {"both": both, "only a": a - both, "only b": b - both}
            start, places = np.zeros(len(part)), np.arange(len(part))
            for name, counts in parts.items():
                axes.barh(places, counts, 0.7, left=start, color=colours[name], label=name)
                start = start + counts
            axes.set_yticks(places, [str(name) for name in part["class"]])
            axes.set_ylim(len(part) - 0.4, -0.6)
            axes.set_ylabel("into" if side == "reader" else "out of")
            axes.tick_params(axis="y", length=0)
            light_grid(axes, "x")
        grid[0, 0].legend(**LEGEND)
        grid[-1, 0].set_xlabel("number of edges")
        note = f"Jaccard of edges {found.jaccard:.2f}, of nodes {found.node_jaccard:.2f} · precision of b {found.precision:.2f}, recall of a {found.recall:.2f}"
        note += " · positions and neurons collapsed" if found.collapsed else ""
        set_heading(figure, xr.Dataset(attrs={"note": note}), title)
        return settled(figure)


def verdicts(found: xr.Dataset, title: str | None = None) -> Figure:
    """The p-value of every test of a circuit, coloured by what its outcome says; of minimality also those of the edges."""
    names = [str(name) for name in found["test"].values]
    p, supports = found["p"].values, found["supports"].values.astype(bool)
    alpha = float(found.attrs.get("alpha", 0.05))
    edges = _smallest(found)
    with styled():
        figure = Picture(
            figsize=(7.2, 1.6 + 0.32 * len(names) + (0.9 + 0.19 * len(edges[0]) if edges else 0)),
            layout="constrained",
        )
        grid = figure.subplots(
            1 + bool(edges),
            1,
            squeeze=False,
            height_ratios=[1 + len(names), *([0.6 * len(edges[0]) + 1] if edges else [])],
        )
        axes = grid[0, 0]
        _p_values(axes, p, [BLUE if good else RED for good in supports], alpha)
        axes.set_yticks(range(len(names)), [visible(name.replace("_", " ")) for name in names])
        for row, (number, good) in enumerate(zip(found["statistic"].values, supports, strict=True)):
            text = (
                f"statistic {number:.3g}: {'supports' if good else 'speaks against'} the circuit"
                if np.isfinite(p[row])
                else "nothing to test"
            )
            axes.text(
                1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=GREY
            )
        axes.set_xlabel("p" if not edges else "")
        if edges:
            _p_values(grid[1, 0], edges[1], [RED if value < alpha else BLUE for value in edges[1]], alpha)
            grid[1, 0].set_yticks(range(len(edges[0])), edges[0], fontsize=7)
            grid[1, 0].set_xlabel("p")
            left = found.sizes["edge"] - len(edges[0])
            more = f"; {left} with larger p left out" if left else ""
            grid[1, 0].set_title(
                f"minimality, edge by edge (not corrected{more})", fontsize=9, fontweight="normal"
            )
        accepted = "accepted: " + ("yes" if bool(found["accepted"]) else "no") if "accepted" in found else ""
        set_heading(figure, found.assign_attrs(note=f"{accepted} · dashed: alpha {alpha:g}"), title)
        return settled(figure)


def _smallest(found: xr.Dataset) -> tuple[list[str], np.ndarray] | None:
    if "edge_p" not in found or not found.sizes["edge"] or not np.isfinite(found["edge_p"].values).any():
        return None
    order = np.argsort(found["edge_p"].values, kind="stable")[:MOST_EDGES]
    return [shorten(visible(name), 32) for name in found["edge"].values[order]], found["edge_p"].values[order]


def _p_values(axes: Axes, p: np.ndarray, colours: list[Any], alpha: float) -> None:
    known = np.isfinite(p)
    rows = np.arange(len(p))
    # a p-value of 0 has no logarithm; nothing here is below 1e-4 but such
    shown = np.clip(p, 1e-4, 1)
    axes.hlines(
        rows[known], shown[known], 1, color=[colours[row] for row in rows[known]], linewidth=1.2, alpha=0.5
    )
    axes.scatter(shown[known], rows[known], c=[colours[row] for row in rows[known]], s=28, zorder=3)
    for row in rows[~known]:
        axes.axhspan(row - 0.3, row + 0.3, linewidth=0, **GROUND)
    axes.axvline(alpha, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set_xlim(min(0.5 * alpha, 0.7 * float(shown[known].min(initial=1.0))), 1.15)
    axes.set_ylim(len(p) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    light_grid(axes, "x")


def faithfulness(found: xr.Dataset, title: str | None = None) -> Figure:
    """Faithfulness against circuit size, a line for each label of a further axis, such as `method`."""
    if not found["faithfulness"].ndim:
        raise WorkbenchError(
            "A single number cannot be drawn: keep an axis of the faithfulness, such as its sizes."
        )
    size = "size" if "size" in found.dims else str(found["faithfulness"].dims[-1])
    over = next((str(dim) for dim in found["faithfulness"].dims if dim != size), None)
    counted = "n_edges" in found and size in found["n_edges"].dims
    bounds: dict[str, Any] = {"low": "low", "high": "high"} if {"low", "high"} <= set(found) else {}
    found = (
        found.assign_attrs(note=f"{found.attrs['area_name']} {found.attrs['area']:.3f}")
        if {"area", "area_name"} <= set(found.attrs) and over is None
        else found
    )
    return curve(
        found,
        x="n_edges" if counted else size,
        y="faithfulness",
        over=over,
        title=title,
        reference=1.0,
        **bounds,
    )
