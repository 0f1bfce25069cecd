"""What every figure shares.

Its style, palettes, axes with tokens or nodes on them, its title with the facts below.

Figures are made without pyplot and without a global theme. A palette that diverges is centred on 0; a cell
that was not measured is hatched, never coloured as 0; positions carry their tokens. Begin with `Picture`,
`styled` and `label_axis`, which every figure uses. Nothing here knows what kind of result is drawn.
"""

import base64
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from workbench.errors import WorkbenchError
from workbench.render.writing import BLUE, shorten
from workbench.text import visible, xml

WORDS = {
    "pos": "position", "query_pos": "query position", "key_pos": "key position", "kv_head": "kv head",
    "size": "number of edges", "n_edges": "number of edges", "k": "number of features", "kl": "KL (nats)",
    "roc_auc": "area under the ROC curve",
}  # fmt: skip
POSITIONS = ("pos", "query_pos", "key_pos")
NODES = ("writer", "reader", "component", "node")
SHADES = "Blues"
GREY, INK = "#64748b", "#334155"
SERIES = (BLUE, "#b45309", "#0f766e", "#7c3aed", "#be185d", "#4d7c0f", "#0891b2", "#475569", "#a16207")
GROUND: dict[str, Any] = {"facecolor": "#e5e7eb", "edgecolor": "#b6bec9", "hatch": "////"}
"""How a cell looks that was not measured."""
STYLE: dict[Any, Any] = {
    "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.edgecolor": GREY, "xtick.color": "#475569", "ytick.color": "#475569",
    "axes.labelcolor": "#1f2937", "svg.fonttype": "none", "svg.hashsalt": "workbench", "hatch.linewidth": 0.6,
    "text.parse_math": False,
}  # fmt: skip
LEGEND: dict[str, Any] = {
    "loc": "center left",
    "bbox_to_anchor": (1.01, 0.5),
    "frameon": False,
    "fontsize": 8,
}
DASHED: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": (0, (4, 3))}
"""A line that marks a level, such as the faithfulness 1 of the whole model."""
LABEL = 16
"""Characters of a label."""
_SEQUENTIAL = (
    "pattern",
    "prob",
    "accuracy",
    "rank",
    "norm",
    "nll",
    "kl",
    "auroc",
    "count",
    "attention",
    "entropy",
)
_TICK = 0.17
"""Inches that a tick label takes across its line."""


class Picture(Figure):
    """A figure that a notebook shows by itself, whether or not a backend of pyplot is there."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def word(name: object) -> str:
    """What an axis or a variable is called in a figure."""
    return WORDS.get(str(name), visible(str(name).replace("_", " ")))


def legend_name(name: object, most: int = 32) -> str:
    """A series in a legend, which matplotlib would leave out if its name began with `_`."""
    shown = shorten(visible(name), most)
    if shown.startswith("_"):
        return f" {shown}"
    return shown


def axes_of(result: xr.DataArray) -> str:
    """The axes of a result for a message."""
    return ", ".join(map(str, result.dims)) or "none"


def noted(result: xr.DataArray, *notes: str) -> xr.DataArray:
    """The result with more notes, which its figure shows below the title."""
    known = [note for note in (result.attrs.get("note", ""), *notes) if note]
    if known:
        return result.assign_attrs(note=" · ".join(known))
    return result


def check_filled(result: xr.DataArray) -> None:
    """Raises `WorkbenchError` for a result without a cell, whose figure would be blank."""
    if not result.size:
        raise WorkbenchError(f"There is nothing to draw: the result has sizes {dict(result.sizes)}.")


def mean_note(result: xr.DataArray) -> str:
    """Of how many examples the cells are means; cells that were not measured are left out of a mean."""
    counts = np.unique(result.count("example"))
    counts = counts[counts > 0] if counts.any() else np.array([result.sizes["example"]])
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean of {number} examples"


def over_examples(result: xr.DataArray) -> xr.DataArray:
    """The mean over `example`, with a note that it is one.

    Of a single example the numbers and the tokens themselves.
    """
    if "example" not in result.dims:
        return result
    if result.sizes["example"] == 1:
        return result.isel(example=0)
    check_filled(result)
    return noted(result.mean("example", skipna=True, keep_attrs=True), mean_note(result))


def palette(result: xr.DataArray) -> dict[str, Any]:
    """The colours of all cells.

    Centred on 0 where they have two signs or are effects, otherwise one colour from 0.
    """
    known = result.values[np.isfinite(result.values)]
    quantity = result.name if result.name is not None else result.attrs.get("kind", "")
    # an effect that happens to be positive everywhere keeps the colour of positive effects
    is_sequential = any(name in str(quantity).lower() for name in _SEQUENTIAL)
    if (known < 0).any() or not is_sequential:
        return {"cmap": "RdBu", "norm": CenteredNorm(0, float(np.abs(known).max(initial=0)) or 1.0)}
    return {"cmap": SHADES, "norm": Normalize(0, float(known.max(initial=0)) or 1.0)}


def labels_of(result: xr.DataArray, dim: str) -> list[str]:
    """The labels of an axis as text, by default its indices."""
    labels = result[dim].values if dim in result.coords else range(result.sizes[dim])
    return list(map(str, labels))


def names_of(result: xr.DataArray, dim: str, labels: Sequence[str] | None) -> tuple[list[str], bool]:
    """The names of the cells along an axis, and whether they are tokens: given ones, or the result's own."""
    size = result.sizes[dim]
    tokens = _tokens_of(result, dim, labels) if dim in POSITIONS else None
    if tokens is None:
        return labels_of(result, dim), False
    if len(tokens) < size:
        raise WorkbenchError(f"There are {len(tokens)} labels for {size} positions.")
    return tokens[:size], True


def _tokens_of(result: xr.DataArray, dim: str, labels: Sequence[str] | None) -> list[str] | None:
    """The tokens along a position axis: the result's own, or the labels; None where neither is known."""
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
    """The axis word, and labels of the cells.

    Tokens on positions where they are known, coordinates elsewhere.

    Args:
        inches: the length of the axis; labels that would not fit are left out, and many nodes are named by
            layer.
        most: characters of a label.
    """
    names, are_tokens = names_of(result, dim, labels)
    room = 40 if inches is None else max(2, int(inches / _TICK))
    if dim in NODES and len(names) > room:
        ticks = _by_layer(axes, which, names, len(names) / room)
    else:
        ticks = [(float(i), names[i]) for i in range(0, len(names), _step(len(names), room))]
    shown = [shorten(visible(name), most) for _, name in ticks]
    longest = max(map(len, shown), default=0)
    cell = (inches or len(names) * _TICK * 2) / max(1, len(shown))
    # labels stay a letter apart from their neighbours
    tilted = which == "x" and (longest + 1) * _letter(axes) > cell
    align = "right" if which == "y" or tilted else "center"
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks([place for place, _ in ticks], shown, rotation=45 if tilted else 0, ha=align)
    if tilted:
        for label in axis.get_ticklabels():
            label.set_rotation_mode("anchor")
            label.set_verticalalignment("top")
    axis.set_tick_params(length=0)
    axis.set_label_text(word(dim) + (" (token)" if are_tokens else ""))


def _step(size: int, room: int) -> int:
    """Every how many cells are labelled, a round number, where `room` labels fit."""
    if size <= room:
        return 1
    return int(MaxNLocator(nbins=max(1, room // 2), integer=True).tick_values(0, size)[1]) or 1


def _letter(axes: Axes) -> float:
    """About how many inches a letter of a label takes."""
    return float(axes.xaxis.get_ticklabels(which="both")[0].get_fontsize()) * 0.62 / 72


def _by_layer(axes: Axes, which: str, names: Sequence[str], gap: float) -> list[tuple[float, str]]:
    """Ticks in the middle of every run of nodes of one layer and port, at least `gap` apart.

    Lines between the runs.
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


def facts_of(result: xr.DataArray | xr.Dataset, width: float) -> list[str]:
    """The line or lines below a title: where the numbers come from, and notes on what is shown.

    `width` in inches.
    """
    keys = ("model", "task", "metric", "value", "method")
    facts = [shorten(visible(result.attrs[key]), LABEL) for key in keys if result.attrs.get(key)]
    facts += [visible(note) for note in str(result.attrs.get("note", "")).split(" · ") if note]
    most, lines = max(24, int(width * 15)), [""]
    for fact in facts:
        joined = f"{lines[-1]} · {fact}" if lines[-1] else fact
        if len(joined) <= most:
            lines[-1] = joined
        else:
            lines += textwrap.wrap(fact, most)
    return [line for line in lines if line]


def title_lines(title: str, width: float) -> str:
    """The title in up to three lines of so many inches, cut with an ellipsis after them."""
    return "\n".join(textwrap.wrap(visible(title), max(16, int(width * 8)), max_lines=3, placeholder="…"))


def set_title(axes: Axes, result: xr.DataArray | xr.Dataset, title: str | None) -> None:
    """The title of a figure of one panel, above the facts."""
    figure = axes.figure
    width = figure.get_figwidth() - 1 if isinstance(figure, Figure) else 6
    lines = facts_of(result, width)
    if lines:
        facts = axes.annotate(
            "\n".join(lines), xy=(0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points",
            fontsize=8, color=GREY, va="bottom",
        )  # fmt: skip
        # the layout would shrink the axes to fit a long line, which may run over their edge instead
        facts.set_in_layout(False)
    # without a title a space, because an empty text would leave no room for the facts
    untitled = " " if lines else ""
    axes.set_title(title_lines(title, width) if title else untitled, pad=8 + 12 * len(lines))


def set_heading(figure: Figure, result: xr.DataArray | xr.Dataset, title: str | None) -> None:
    """The title of a figure of several panels; the facts stand at its foot."""
    if title:
        figure.suptitle(
            title_lines(title, figure.get_figwidth()), x=0.01, ha="left", fontsize=11, fontweight="bold"
        )
    lines = facts_of(result, figure.get_figwidth())
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=GREY)


def styled(changes: Mapping[str, Any] | None = None) -> Any:
    """The style of figures, while it is entered.

    Args:
        changes: settings of matplotlib that differ from it, such as `{"axes.titlesize": 9}`.
    """
    settings: dict[Any, Any] = STYLE | dict(changes or {})
    return matplotlib.rc_context(settings)


def plain_ticks(axis: Any) -> None:
    """Numbers as they are, also on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def light_grid(axes: Axes, which: str = "y") -> None:
    """Faint lines behind what is drawn."""
    axes.grid(axis=which, color="#e5e9ef")  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


def settled(figure: Figure) -> Figure:
    """The figure with its layout done once.

    Laid out again at each drawing, it would creep, and its bytes with it.
    """
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(w_pad=0.08)  # text is a little wider at other resolutions
    with _any_glyph():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def figure_html(figure: Figure, *, alt: str = "") -> str:
    """The figure as an `<img>` with the SVG inside. Same figure, same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "workbench"}), _any_glyph():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    width = round(figure.get_figwidth() * 96)
    return f'<img class="plot" alt="{xml(alt)}" width="{width}" src="data:image/svg+xml;base64,{data}">'


@contextmanager
def _any_glyph() -> Iterator[None]:
    """Text stays text in SVG and is drawn with the reader's fonts, so a glyph missing from ours needs no
    warning.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
