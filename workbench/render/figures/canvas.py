"""What every figure shares: its style, palettes, axes with tokens or nodes on them, its title with the facts below.

Figures are made without pyplot and without a global theme. A palette that diverges is centred on 0; a cell that was not
measured is hatched, never coloured as 0; positions carry their tokens.
"""

import base64
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
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
from workbench.text import visible, xml

WORDS = {
    "pos": "position", "query_pos": "query position", "key_pos": "key position", "kv_head": "kv head", "size": "number of edges",
    "n_edges": "number of edges", "k": "number of features", "kl": "KL (nats)", "roc_auc": "area under the ROC curve",
}  # fmt: skip
POSITIONS = ("pos", "query_pos", "key_pos")
NODES = ("writer", "reader", "component", "node")
SHADES = "Blues"
BLUE, RED, GREY, INK = "#2369b0", "#c2410c", "#64748b", "#334155"
SERIES = (BLUE, "#b45309", "#0f766e", "#7c3aed", "#be185d", "#4d7c0f", "#0891b2", "#475569", "#a16207")
GROUND: dict[str, Any] = {"facecolor": "#e5e7eb", "edgecolor": "#b6bec9", "hatch": "////"}
"""How a cell looks that was not measured."""
STYLE: dict[Any, Any] = {
    "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titleweight": "bold",
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
LABEL = 16
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
        made = io.BytesIO()
        self.savefig(made, format="png", dpi=110)
        return made.getvalue()


def word(name: object) -> str:
    """What an axis or a variable is called in a figure."""
    return WORDS.get(str(name), visible(str(name).replace("_", " ")))


def shorten(label: str, most: int = LABEL) -> str:
    """The label, cut with an ellipsis when it is longer than `most`."""
    return label if len(label) <= most else label[: most - 1] + "…"


def legend_name(name: object, most: int = 32) -> str:
    """A series in a legend, which matplotlib would leave out if its name began with `_`."""
    shown = shorten(visible(name), most)
    return f" {shown}" if shown.startswith("_") else shown


def axes_of(result: xr.DataArray) -> str:
    """The axes of a result for a message."""
    return ", ".join(map(str, result.dims)) or "none"


def noted(result: xr.DataArray, *notes: str) -> xr.DataArray:
    """The result with more notes, which its figure shows below the title."""
    found = [note for note in (result.attrs.get("note", ""), *notes) if note]
    return result.assign_attrs(note=" · ".join(found)) if found else result


def check_filled(result: xr.DataArray) -> None:
    """Raises `WorkbenchError` for a result without a cell, whose figure would be blank."""
    if not result.size:
        raise WorkbenchError(f"There is nothing to draw: the result has sizes {dict(result.sizes)}.")


def mean_note(result: xr.DataArray) -> str:
    """Of how many examples the cells are means; those not measured have no part in one."""
    counts = np.unique(result.count("example"))
    counts = counts[counts > 0] if counts.any() else np.array([result.sizes["example"]])
    return (
        f"mean of {counts[0]} examples"
        if len(counts) == 1
        else f"mean of {counts[0]} to {counts[-1]} examples"
    )


def over_examples(result: xr.DataArray) -> xr.DataArray:
    """The mean over `example`, with a note that it is one; of a single example the numbers and the tokens themselves."""
    if "example" not in result.dims:
        return result
    if result.sizes["example"] == 1:
        return result.isel(example=0)
    check_filled(result)
    return noted(result.mean("example", skipna=True, keep_attrs=True), mean_note(result))


def palette(result: xr.DataArray) -> dict[str, Any]:
    """The colours of all cells: centred on 0 where they have two signs or are effects, otherwise one colour from 0."""
    known = result.values[np.isfinite(result.values)]
    named = str(result.name or "").lower() + " " + str(result.attrs.get("kind", "")) * (result.name is None)
    if (known < 0).any() or not any(part in named for part in _SEQUENTIAL):
        return {"cmap": "RdBu", "norm": CenteredNorm(0, float(np.abs(known).max(initial=0)) or 1.0)}
    return {"cmap": SHADES, "norm": Normalize(0, float(known.max(initial=0)) or 1.0)}


def names_of(result: xr.DataArray, dim: str, labels: Sequence[str] | None) -> tuple[list[str], bool]:
    """The names of the cells along an axis, and whether they are tokens: given ones, or the result's own."""
    size, names = result.sizes[dim], None
    if dim in POSITIONS:
        own = next(
            (
                c
                for n, c in result.coords.items()
                if n in ("token", f"{dim}_token", "tokens") and c.dims == (dim,)
            ),
            None,
        )
        names = (
            [str(token) for token in own.values]
            if own is not None
            else list(labels)
            if labels is not None
            else None
        )
        if names is not None and len(names) < size:
            raise WorkbenchError(f"There are {len(names)} labels for {size} positions.")
    if names is not None:
        return names[:size], True
    return [str(label) for label in (result[dim].values if dim in result.coords else range(size))], False


def label_axis(
    axes: Axes, which: str, result: xr.DataArray, dim: str, labels: Sequence[str] | None, *, inches: float | None = None,
    most: int = LABEL,
) -> None:  # fmt: skip
    """The axis word, and labels of the cells: tokens on positions where they are known, coordinates elsewhere.

    Args:
        inches: the length of the axis; labels that would not fit are left out, and many nodes are named by layer.
        most: characters of a label.
    """
    names, tokens = names_of(result, dim, labels)
    room = 40 if inches is None else max(2, int(inches / _TICK))
    axis, size = axes.xaxis if which == "x" else axes.yaxis, len(names)
    if dim in NODES and size > room:
        places, names = _by_layer(axes, which, names, size / room)
    else:
        step = (
            1
            if size <= room
            else int(MaxNLocator(nbins=max(1, room // 2), integer=True).tick_values(0, size)[1]) or 1
        )
        places = list(range(0, size, step))
        names = [names[place] for place in places]
    shown = [shorten(visible(name), most) for name in names]
    long = max(map(len, shown), default=0)
    cell = (inches or size * _TICK * 2) / max(1, len(shown))
    tilted = which == "x" and (long + 1) * _letter(axes) > cell  # a letter between neighbours
    axis.set_ticks(
        places, shown, rotation=45 if tilted else 0, ha="right" if which == "y" or tilted else "center"
    )
    if tilted:
        for label in axis.get_ticklabels():
            label.set_rotation_mode("anchor")
            label.set_verticalalignment("top")
    axis.set_tick_params(length=0)
    axis.set_label_text(word(dim) + (" (token)" if tokens else ""))


def _letter(axes: Axes) -> float:
    """About how many inches a letter of a label takes."""
    return float(axes.xaxis.get_ticklabels(which="both")[0].get_fontsize()) * 0.62 / 72


def _by_layer(axes: Axes, which: str, names: Sequence[str], gap: float) -> tuple[list[float], list[str]]:
    """Ticks in the middle of every run of nodes of one layer and port, and lines between the runs."""
    runs, start = [], 0
    for name, members in groupby(names, _layer_of):
        n = len(list(members))
        runs.append((n, start + (n - 1) / 2, name))
        start += n
        if start < len(names):
            (axes.axvline if which == "x" else axes.axhline)(start - 0.5, color="white", linewidth=0.8)
    kept: list[tuple[float, str]] = []
    for _, middle, name in sorted(runs, key=lambda run: (-run[0], run[1])):
        if all(abs(middle - other) >= gap for other, _ in kept):
            kept.append((middle, name))
    kept.sort()
    return [middle for middle, _ in kept], [name for _, name in kept]


def _layer_of(node: str) -> str:
    """`a3 q` of `a3.4<q>`, `a3` of `a3.4`, `m3` of `m3:7`."""
    found = re.fullmatch(r"([am]\d+)[.:]\d+(?:<(\w)>)?", node)
    return node if found is None else " ".join(part for part in found.groups() if part)


def facts_of(result: xr.DataArray | xr.Dataset, width: float) -> list[str]:
    """The line or lines below a title: where the numbers come from, and notes on what is shown; `width` in inches."""
    keys = ("model", "task", "metric", "value", "method")
    facts = [shorten(visible(result.attrs[key])) for key in keys if result.attrs.get(key)]
    facts += [visible(note) for note in str(result.attrs.get("note", "")).split(" · ") if note]
    most, lines = max(24, int(width * 15)), [""]
    for fact in facts:
        joined = f"{lines[-1]} · {fact}" if lines[-1] else fact
        lines[-1:] = [joined] if len(joined) <= most else [lines[-1], *textwrap.wrap(fact, most)]
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
        place: dict[str, Any] = {
            "xy": (0, 1),
            "xycoords": "axes fraction",
            "xytext": (0, 5),
            "textcoords": "offset points",
        }
        axes.annotate("\n".join(lines), **place, fontsize=8, color=GREY, va="bottom").set_in_layout(False)
    axes.set_title(title_lines(title, width) if title else " " if lines else "", pad=8 + 12 * len(lines))


def set_heading(figure: Figure, result: xr.DataArray | xr.Dataset, title: str | None) -> None:
    """The title of a figure of several panels; the facts stand at its foot."""
    if title:
        figure.suptitle(
            title_lines(title, figure.get_figwidth()), x=0.01, ha="left", fontsize=11, fontweight="bold"
        )
    lines = facts_of(result, figure.get_figwidth())
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=GREY)


def styled(**more: Any) -> Any:
    """The style of figures, and what else is given with `_` for `.`, while it is entered."""
    style: dict[Any, Any] = STYLE | {name.replace("_", ".", 1): value for name, value in more.items()}
    return matplotlib.rc_context(style)


def plain_ticks(axis: Any) -> None:
    """Numbers as they are, also on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def light_grid(axes: Axes, which: str = "y") -> None:
    """Faint lines behind what is drawn."""
    axes.grid(axis=which, color="#e5e9ef")  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


def settled(figure: Figure) -> Figure:
    """The figure with its layout done once: laid out again at each drawing, it would creep, and its bytes with it."""
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
    """Text stays text in SVG and is drawn with the reader's fonts, so a glyph missing from ours needs no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
