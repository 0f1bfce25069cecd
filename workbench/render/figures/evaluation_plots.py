"""The picture of what `evaluate` measured: each measure where it should be, with its number and its bound.

One circuit gets a row for each measure, several circuits a panel for each measure. Read `evaluation`.
"""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.discovery.criteria import Criteria
from workbench.render.figures.canvas import (
    DASHED,
    GREY,
    GROUND,
    INK,
    SERIES,
    Picture,
    common_legend,
    is_narrow,
    light_grid,
    settled,
    styled,
)  # fmt: skip
from workbench.render.figures.headings import legend_name, set_heading
from workbench.statistics import interval_text
from workbench.text import visible

MARKS = "osD^vPX*"
GOOD: dict[str, Any] = {"color": "#dcf0e3", "linewidth": 0, "zorder": 0}
"""Where a measure should be."""
_BOUNDS = Criteria()
_END = 1.28


class Measure(NamedTuple):
    """A measure of a circuit: its variable, its words, and from where to where it is good."""

    name: str
    words: str
    good: tuple[float, float]
    want: str

    def ends(self, cell: xr.Dataset) -> tuple[float, float, float]:
        """The number and its interval."""
        # a result calls the ends of the interval of the faithfulness plainly `low` and `high`
        prefix = "" if self.name == "faithfulness" else f"{self.name}_"
        names = (self.name, f"{prefix}low", f"{prefix}high")
        mean, low, high = (float(cell[name]) if name in cell else np.nan for name in names)
        return mean, low, high


MEASURES = (
    Measure("faithfulness", "faithfulness", _BOUNDS.faithfulness, "near 1"),
    Measure("kl_recovered", "KL recovered", (_BOUNDS.kl_recovered, _END), "high"),
    Measure("r", "r with the model", (0.9, _END), "high"),
    Measure("answers_kept", "right answers kept", (_BOUNDS.answers_kept, _END), "high"),
    Measure("same_choice", "same first choice", (_BOUNDS.same_choice, _END), "high"),
    Measure("prompts_near", "prompts that are near", (_BOUNDS.prompts_near, _END), "high"),
    Measure("minimal", "components needed", (0.9, _END), "high"),
    Measure("error", "error per prompt", (0.0, _BOUNDS.error), "low"),
    Measure("random", "random circuits", (-_END, 0.5), "low"),
    Measure("complement", "all other edges", (-_END, 0.5), "low"),
    Measure("incompleteness", "incompleteness", (0.0, 0.15), "low"),
)
"""Every measure, those that should be high first. Bounds are those of `Criteria`, or a rule of thumb."""
FEW_VALUES = 2
"""Values of which the numbers are written: with more of them the rows are too narrow."""
SIDE_BY_SIDE = ("faithfulness", "error", "kl_recovered", "answers_kept")
"""Measures of several circuits."""


def evaluation(result: xr.Dataset, title: str | None = None) -> Figure:
    """Measures of one circuit, a row each; of several, a panel for each measure and a row for each circuit."""
    ablations = [""]
    if "ablation" in result.dims:
        ablations = [str(name) for name in result["ablation"].values]
    if result.sizes.get("circuit", 1) == 1:
        one = result.isel(circuit=0) if "circuit" in result.dims else result
        return _one_circuit(one, ablations, title)
    return _several(result, ablations, title)


def _cells(result: xr.Dataset, ablations: list[str]) -> list[xr.Dataset]:
    if "ablation" not in result.dims:
        return [result]
    return [result.sel(ablation=name) for name in ablations]


def _one_circuit(one: xr.Dataset, ablations: list[str], title: str | None) -> Figure:
    cells = _cells(one, ablations)
    measures = [
        measure for measure in MEASURES if np.isfinite([measure.ends(cell)[0] for cell in cells]).any()
    ]
    with styled():
        figure = Picture(figsize=(8.0, 2.0 + 0.34 * len(measures)), layout="constrained")
        axes = figure.subplots()
        low_end, high_end = -0.08, _END
        for row, measure in enumerate(measures):
            from_, to = np.clip(measure.good, low_end, high_end)
            axes.fill_betweenx([row - 0.42, row + 0.42], from_, to, **GOOD)
            _draw_row(axes, row, [measure.ends(cell) for cell in cells], (low_end, high_end))
            if len(cells) == 1:
                mean, low, high = measure.ends(cells[0])
                text = f"{mean:.2f} {interval_text(low, high, '.2f')}" if np.isfinite(low) else f"{mean:.2f}"
                axes.annotate(
                    text.replace("-", "−"),
                    (1.02, row),
                    xycoords=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=8.5,
                )
        names = [f"{measure.words}  (want {measure.want})" for measure in measures]
        _finish(axes, names, (low_end, high_end))
        first_low = next((row for row, measure in enumerate(measures) if measure.want == "low"), None)
        if first_low:
            axes.axhline(first_low - 0.5, color=GREY, linewidth=0.8)
        axes.set_xlabel("share of the model's effect, or of prompts")
        _legend(axes, ablations)
        edges = f"{int(np.ravel(one['n_edges'].values)[0]):,} edges" if "n_edges" in one else ""
        note = " · ".join(
            filter(None, [edges, "green: where it should be", "lines: 95 % intervals over prompts"])
        )
        set_heading(figure, one.assign_attrs(note=note), title)
        return settled(figure)


def _several(result: xr.Dataset, ablations: list[str], title: str | None) -> Figure:
    n = result.sizes["circuit"]
    names = [visible(str(name)) for name in result["circuit"].values]
    measures = [one for one in MEASURES if one.name in SIDE_BY_SIDE and one.name in result]
    if "n_edges" in result:
        sizes = np.asarray(result["n_edges"].values).reshape(-1, n)[0]
        names = [
            f"circuit {name} ({int(size):,} edges)" if name.isdecimal() else f"{name} ({int(size):,} edges)"
            for name, size in zip(names, sizes, strict=True)
        ]
    with styled({"axes.titlesize": 9.5}):
        across, size = len(measures), (9.6, 2.4 + 0.42 * n)
        if is_narrow():
            across, size = 2, (6.4, 2.4 + 1.1 * n)
        down = -(-len(measures) // across)
        figure = Picture(figsize=size, layout="constrained")
        grid = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
        for axes in grid[len(measures) :]:
            axes.set_axis_off()
        for axes, measure in zip(grid, measures, strict=False):
            axes.fill_betweenx([-0.6, n - 0.4], *np.clip(measure.good, -0.08, _END), **GOOD)
            for row in range(n):
                cells = _cells(result.isel(circuit=row), ablations)
                numbers = [measure.ends(cell) for cell in cells]
                _draw_row(axes, row, numbers, (-0.08, _END))
                if len(cells) <= FEW_VALUES:
                    _write_values(axes, row, numbers, (-0.08, _END))
            _finish(axes, names, (-0.08, _END))
            axes.set_title(f"{measure.words}\n(want {measure.want})", fontweight="normal")
        _legend(grid[0] if is_narrow() else grid[-1], ablations)
        note = "green: where it should be · lines: 95 % intervals over prompts · hatched: not measured"
        set_heading(figure, result.assign_attrs(note=note), title)
        return settled(figure)


def _draw_row(
    axes: Axes, row: int, numbers: list[tuple[float, float, float]], ends: tuple[float, float]
) -> None:
    """The number of each ablation as a mark with its interval; an arrow at the rim for what lies beyond."""
    step = 0.6 / max(1, len(numbers))
    for i, (mean, low, high) in enumerate(numbers):
        place = row + (i - (len(numbers) - 1) / 2) * step
        if not np.isfinite(mean):
            if len(numbers) == 1:
                axes.axhspan(row - 0.3, row + 0.3, linewidth=0, **GROUND)
            continue
        colour, shown = SERIES[i % len(SERIES)], float(np.clip(mean, *ends))
        if np.isfinite(low):
            axes.hlines(place, *np.clip((low, high), *ends), color=colour, linewidth=1.6)
        mark: Any = MARKS[i % len(MARKS)]
        if shown != mean:
            mark = "<" if mean < ends[0] else ">"
        axes.plot([shown], [place], marker=mark, color=colour, markersize=5.5, linestyle="", clip_on=False)


def _write_values(
    axes: Axes, row: int, numbers: list[tuple[float, float, float]], ends: tuple[float, float]
) -> None:
    """The number of each ablation behind its interval, or before it where there is no room behind."""
    step = 0.6 / max(1, len(numbers))
    for i, (mean, low, high) in enumerate(numbers):
        if not np.isfinite(mean):
            continue
        place = row + (i - (len(numbers) - 1) / 2) * step
        first, last = np.clip((np.nanmin((mean, low)), np.nanmax((mean, high))), *ends)
        # clear of the line at 1, and of the names at the left where the interval is as wide as the axis
        is_behind = last < 0.6
        before = first if first > 0.45 else float(np.clip(mean, *ends))
        axes.annotate(
            f"{mean:.2f}".replace("-", "−"),
            (last if is_behind else before, place),
            xytext=(5 if is_behind else -6, 0),
            textcoords="offset points",
            ha="left" if is_behind else "right",
            va="center",
            fontsize=7.5,
        )


def _finish(axes: Axes, names: list[str], ends: tuple[float, float]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(*ends)
    axes.set_xticks([0, 0.5, 1])
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.axvline(1, **DASHED)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    light_grid(axes, "x")


def _legend(axes: Axes, ablations: list[str]) -> None:
    if ablations == [""]:
        return
    for i, name in enumerate(ablations):
        axes.plot(
            [],
            [],
            marker=MARKS[i % len(MARKS)],
            color=SERIES[i % len(SERIES)],
            linestyle="",
            label=legend_name(name),
        )
    if is_narrow():
        figure = axes.get_figure(root=True)
        assert isinstance(figure, Figure)
        common_legend(figure, *axes.get_legend_handles_labels())
        return
    axes.legend(
        title="against",
        title_fontsize=8,
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
    )
