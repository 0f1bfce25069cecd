"""The criteria of a circuit against its size: `frontier`, a panel for each group of criteria.

What is allowed is shaded, the circuit that was chosen is marked. The numbers and bounds are those that
`discovery.frontier` measured; nothing is judged here.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.render.figures.canvas import (
    DASHED,
    GREY,
    SERIES,
    Picture,
    light_grid,
    plain_ticks,
    settled,
    styled,
)
from workbench.render.figures.headings import legend_name, set_heading
from workbench.render.figures.line_plots import draw_line

ALLOWED = {"color": "#16a34a", "alpha": 0.1, "linewidth": 0}
"""How the region looks in which a criterion holds."""
BEYOND = {"color": "#94a3b8", "alpha": 0.18, "linewidth": 0}
"""How sizes look that no longer count as a circuit."""
CLIPPED = {"faithfulness": (-0.6, 1.9), "error": (0.0, 1.3), "kl_recovered": (-0.3, 1.04)}
"""The most that a panel shows: a few edges can be anywhere, and would flatten what decides."""
NEAR = 0.12
"""Reference lines closer than this share one label."""


def frontier(result: xr.Dataset, title: str | None = None) -> Figure:
    """Faithfulness, error, KL recovered and answers kept against size, a colour for each counterfactual.

    Args:
        result: as `discovery.frontier` returns it. attrs["chosen"], where it is there, is the number of edges
            of the circuit that was chosen, and is marked.
    """
    with styled():
        figure = Picture(figsize=(7.8, 6.4), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True)
        for axes in grid.flat:
            _mark_sizes(axes, result)
        _faithfulness(grid[0, 0], result)
        _measure(grid[0, 1], result, "error", "error (share of the gap)", at_most="error_at_most")
        _measure(grid[1, 0], result, "kl_recovered", "KL recovered", at_least="kl_recovered_at_least")
        _answers(grid[1, 1], result)
        for axes in grid.flat:
            axes.set_xscale("log")
            plain_ticks(axes.xaxis)
            light_grid(axes)
        for axes in grid[1]:
            axes.set_xlabel("number of edges")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=4, frameon=False, fontsize=8)
        notes = [
            "green: the bound holds (of (b), that of the error)",
            "grey: too large to count as a circuit",
            "bands: 95 % intervals over prompts",
        ]
        # with a title the legend has a line of its own beside it
        set_heading(figure, result.assign_attrs(note=" · ".join(notes)), title or "Size against the criteria")
        return settled(figure)


def _names(result: xr.Dataset) -> list[str]:
    return [str(name) for name in result["ablation"].values]


def _line(axes: Axes, result: xr.Dataset, i: int, name: str, prefix: str, label: str = "") -> None:
    """One measure against the i-th counterfactual, with its interval."""
    one = result.isel(ablation=i)
    low, high = (np.asarray(one[f"{prefix}{end}"].values, dtype=float) for end in ("low", "high"))
    at, mean = np.asarray(one["size"].values), np.asarray(one[name].values, dtype=float)
    draw_line(axes, at, mean, low, high, colour=SERIES[i % len(SERIES)], label=label)


def _show(axes: Axes, name: str, values: np.ndarray, *needed: float) -> None:
    """Set the y axis to what was measured and what is needed, within `CLIPPED`."""
    least, most = CLIPPED[name]
    known = values[np.isfinite(values)]
    low = max(least, float(min(known.min(initial=np.inf), *needed)))
    high = min(most, float(max(known.max(initial=-np.inf), *needed)))
    room = 0.05 * (high - low)
    axes.set_ylim(low - room, high + room)


def _mark_sizes(axes: Axes, result: xr.Dataset) -> None:
    """Shade the sizes beyond the largest that counts, and mark the circuit that was chosen."""
    sizes, facts = result["size"].values, result.attrs
    axes.set_xlim(sizes.min() * 0.85, sizes.max() * 1.18)
    if "largest" in facts and facts["largest"] < sizes.max():
        axes.axvspan(facts["largest"], sizes.max() * 1.18, **BEYOND)
    if "chosen" in facts:
        axes.axvline(facts["chosen"], color=GREY, linewidth=1.4, linestyle=":")


def _faithfulness(axes: Axes, result: xr.Dataset) -> None:
    facts = result.attrs
    if {"faithfulness_from", "faithfulness_to"} <= set(facts):
        axes.axhspan(facts["faithfulness_from"], facts["faithfulness_to"], **ALLOWED)
    for i, name in enumerate(_names(result)):
        _line(axes, result, i, "faithfulness", "", f"against {legend_name(name)}")
    axes.set_ylabel("faithfulness")
    bands = [result[name].values for name in ("faithfulness", "low", "high")]
    _show(axes, "faithfulness", np.concatenate([band.ravel() for band in bands]), 0.0, 1.2)
    _references(axes, result)
    if "chosen" in facts:
        # x is a number of edges and y a share of the axes.
        axes.annotate(
            f"{facts['chosen']:,} chosen", (facts["chosen"], 1), xycoords=axes.get_xaxis_transform(),
            xytext=(3, 2), textcoords="offset points", fontsize=7.5, color=GREY,
        )  # fmt: skip


def _references(axes: Axes, result: xr.Dataset) -> None:
    """Lines at the whole model, at no edge, and at a metric of 0 where that means no preference."""
    lines: list[tuple[float, str]] = [(1.0, "model"), (0.0, "corrupted")]
    if str(result.attrs.get("metric", "")).endswith("_diff"):
        for name in _names(result):
            full, empty = (float(result[key].sel(ablation=name)) for key in ("m_full", "m_empty"))
            neutral = -empty / (full - empty)
            if all(abs(neutral - level) > NEAR for level, _ in lines) and 0 < neutral < 1:
                lines.append((neutral, f"no preference ({legend_name(name, 12)})"))
    right = axes.get_yaxis_transform()
    for level, label in lines:
        axes.axhline(level, **DASHED)
        # at the left of the model's line and at the right of the others, where curves seldom are
        x, side = (0.01, "left") if level == 1.0 else (0.99, "right")
        axes.text(x, level, label, transform=right, fontsize=7.5, color=GREY, va="bottom", ha=side)


def _measure(
    axes: Axes, result: xr.Dataset, name: str, label: str, *, at_most: str = "", at_least: str = ""
) -> None:
    """One measure with its interval, and the side of its bound where the criterion holds."""
    needed = [0.0]
    if at_most in result.attrs:
        needed.append(2 * result.attrs[at_most])
        axes.axhspan(0, result.attrs[at_most], **ALLOWED)
    if at_least in result.attrs:
        needed = [1.0, 2 * result.attrs[at_least] - 1]
        axes.axhspan(result.attrs[at_least], 1, **ALLOWED)
    for i in range(len(_names(result))):
        _line(axes, result, i, name, f"{name}_")
    axes.set_ylabel(label)
    # the bands too, within what is worth drawing
    bands = [result[f"{name}{end}"].values for end in ("", "_low", "_high")]
    _show(axes, name, np.concatenate([band.ravel() for band in bands]), *needed)


def _answers(axes: Axes, result: xr.Dataset) -> None:
    """Right answers kept as lines, the model's first choice kept as dashes."""
    styles: Sequence[tuple[str, str, str]] = (
        ("answers_kept", "-", "right answers kept"), ("same_choice", "--", "first choice kept"),
    )  # fmt: skip
    for name, dashes, label in styles:
        for i in range(len(_names(result))):
            values = np.asarray(result[name].isel(ablation=i).values, dtype=float)
            axes.plot(
                result["size"].values, values, dashes, color=SERIES[i % len(SERIES)], linewidth=1.6, marker="o",
                markersize=3,
            )  # fmt: skip
        # An empty line, for a legend of what dashes mean whatever the colour.
        axes.plot([], [], dashes, color=GREY, label=label)
        bound = result.attrs.get(f"{name}_at_least")
        if bound is not None:
            axes.axhspan(bound, 1, **ALLOWED)
    axes.set_ylabel("share of prompts")
    axes.set_ylim(-0.04, 1.04)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
