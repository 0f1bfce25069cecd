"""Labels on the axes of figures: tokens on positions, names on heads and nodes, as many as there is room for.

Begin with `label_axis`; `names_of` says what the cells along an axis are called.
"""

import re
from collections.abc import Sequence
from itertools import groupby

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from workbench.errors import WorkbenchError
from workbench.render.figures.headings import LABEL, word
from workbench.render.writing import shortened

POSITIONS = ("pos", "query_pos", "key_pos")
NODES = ("writer", "reader", "component", "node")
_TICK = 0.17
"""Inches that a tick label takes across its line."""


def labels_of(result: xr.DataArray, dim: str) -> list[str]:
    """The labels of an axis as text, by default its indices."""
    # xarray counts an axis without coordinates from 0
    return list(map(str, result[dim].values))


def names_of(result: xr.DataArray, dim: str, labels: Sequence[str] | None) -> tuple[list[str], bool]:
    """The names of the cells along an axis, and whether they are tokens: given ones, or the result's own."""
    size = result.sizes[dim]
    tokens = _tokens_of(result, dim, labels)
    if tokens is None:
        return labels_of(result, dim), False
    if len(tokens) < size:
        raise WorkbenchError(f"There are {len(tokens)} labels for {size} positions.")
    return tokens[:size], True


def _tokens_of(result: xr.DataArray, dim: str, labels: Sequence[str] | None) -> list[str] | None:
    """The tokens along a position axis: the result's own, or the labels; None where neither is known."""
    if dim not in POSITIONS:
        return None
    for name, coord in result.coords.items():
        if name in ("token", f"{dim}_token", "tokens") and coord.dims == (dim,):
            return list(map(str, coord.values))
    if labels is None:
        return None
    return list(labels)


def label_axis(
    axes: Axes, which: str, result: xr.DataArray, dim: str, labels: Sequence[str] | None, *,
    inches: float | None = None, most: int = LABEL,
) -> None:  # fmt: skip
    """The word of an axis, and labels of its cells: tokens on positions where known, coordinates elsewhere.

    Args:
        inches: the length of the axis; labels that would not fit are left out, and many nodes are named by
            layer.
        most: characters of a label.
    """
    names, are_tokens = names_of(result, dim, labels)
    room = 40
    if inches is not None:
        room = max(2, int(inches / _TICK))
    if dim in NODES and len(names) > room:
        ticks = _by_layer(axes, which, names, len(names) / room)
    else:
        ticks = [(float(i), names[i]) for i in range(0, len(names), _step(len(names), room))]
    shown = shortened((name for _, name in ticks), most)
    longest = max(map(len, shown), default=0)
    cell = (inches or len(names) * _TICK * 2) / max(1, len(shown))
    # labels that would touch are turned: neighbours have to stay a letter apart
    tilted = which == "x" and (longest + 1) * _letter(axes) > cell
    _place_labels(axes, which, [tick for tick, _ in ticks], shown, tilted=tilted)
    axis_word = word(dim)
    if are_tokens:
        axis_word += " (token)"
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(axis_word)


def _place_labels(
    axes: Axes, which: str, ticks: Sequence[float], shown: Sequence[str], *, tilted: bool
) -> None:
    """Labels at the ticks of an axis, level or tilted, and no marks."""
    align, rotation = "center", 0
    if which == "y":
        align = "right"
    if tilted:
        align, rotation = "right", 45
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, shown, rotation=rotation, ha=align)
    if tilted:  # by default the middle of a turned label, not its end, would stand below the tick
        for label in axis.get_ticklabels():
            label.set_rotation_mode("anchor")
            label.set_verticalalignment("top")
    axis.set_tick_params(length=0)


def _step(size: int, room: int) -> int:
    """The step from one labelled cell to the next, a round number, where `room` labels fit."""
    if size <= room:
        return 1
    return int(MaxNLocator(nbins=max(1, room // 2), integer=True).tick_values(0, size)[1]) or 1


def _letter(axes: Axes) -> float:
    """About how many inches a letter of a label takes."""
    label = axes.xaxis.get_ticklabels(which="both")[0]
    # a letter is about 0.62 em wide, and an inch has 72 points
    return float(label.get_fontsize()) * 0.62 / 72


def _by_layer(axes: Axes, which: str, names: Sequence[str], gap: float) -> list[tuple[float, str]]:
    """Ticks in the middle of every run of nodes of one layer and port, at least `gap` apart.

    It also draws lines between the runs.
    """
    runs, start = [], 0
    for name, members in groupby(names, _layer_of):
        n = len(list(members))
        runs.append((n, start + (n - 1) / 2, name))
        start += n
        if start < len(names):
            mark = axes.axvline if which == "x" else axes.axhline
            mark(start - 0.5, color="white", linewidth=0.8)
    ticks: list[tuple[float, str]] = []
    # where not every run can be named, the longest ones are
    for _, middle, name in sorted(runs, key=lambda run: (-run[0], run[1])):
        if all(abs(middle - other) >= gap for other, _ in ticks):
            ticks.append((middle, name))
    return sorted(ticks)


def _layer_of(node: str) -> str:
    """`a3 q` of `a3.4<q>`, `a3` of `a3.4`, `m3` of `m3:7`."""
    match = re.fullmatch(r"([am]\d+)[.:]\d+(?:<(\w)>)?", node)
    if match is None:
        return node
    return " ".join(filter(None, match.groups()))
