"""The right matplotlib figure for a result: `heatmap`, `curve`, `bars`, and `plot`, which chooses.

Figures are made without pyplot and without a global theme. A palette that diverges is centred on 0; a cell that was not
measured is hatched, never coloured as 0; positions carry their tokens; a curve shows its interval as a band.
"""

import base64
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from workbench.discovery.circuit import Circuit
from workbench.errors import WorkbenchError
from workbench.render.view import CircuitView, visible, xml

_WORDS = {
    "pos": "position", "query_pos": "query position", "key_pos": "key position", "kv_head": "kv head", "size": "number of edges",
    "n_edges": "number of edges", "k": "number of features",
}  # fmt: skip
_POSITIONS = ("pos", "query_pos", "key_pos")
_SEQUENTIAL_WORDS = ("pattern", "probab", "accuracy", "rank", "norm", "nll", "kl_", "auroc", "count")
SHADES = "Blues"
_BLUE, _RED, _MOST_TICKS, _LABEL = "#2369b0", "#c2410c", 40, 16
STYLE: dict[Any, Any] = {
    "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.edgecolor": "#64748b", "xtick.color": "#475569", "ytick.color": "#475569",
    "axes.labelcolor": "#1f2937", "svg.fonttype": "none", "svg.hashsalt": "workbench", "hatch.linewidth": 0.6,
    "text.parse_math": False,
}  # fmt: skip


def plot(result: Any, *, title: str | None = None, labels: Sequence[str] | None = None) -> Any:
    """The figure that fits a result.

    Args:
        result: an array with one or two axes besides `example` (over which the mean is taken), a Dataset over one axis with
            `mean` or `faithfulness`, `low` and `high` (drawn against `n_edges` where it has them), or a circuit.
        title: of the figure; the result's name without it.
        labels: token strings of the position axes, where the result carries none.
    Returns:
        A matplotlib `Figure`; for a circuit its `CircuitView`, which `to_svg` and `to_html` draw.
    Raises:
        WorkbenchError: nothing here draws it.

    >>> type(plot(xr.DataArray([[1.0, -1.0]], dims=("layer", "head")))).__name__
    'Figure'
    """
    if isinstance(result, Circuit):
        return CircuitView.of(result, title=title or "")
    if isinstance(result, CircuitView):
        return result
    if isinstance(result, xr.Dataset):
        return _plot_dataset(result, title, labels)
    if isinstance(result, xr.DataArray):
        result = _over_examples(result)
        if result.ndim == 2:
            return heatmap(result, title=title, labels=labels)
        if result.ndim == 1:
            return bars(result, title=title, labels=labels)
        raise WorkbenchError(
            f"An array with axes {_axes_of(result)} cannot be drawn: one or two besides example can. "
            "Select or average the others, as in result.isel(layer=0) or result.mean('pos')."
        )
    raise WorkbenchError(f"A {type(result).__name__} cannot be drawn: a DataArray, a Dataset or a Circuit can.")


def heatmap(result: xr.DataArray, *, title: str | None = None, labels: Sequence[str] | None = None) -> Figure:
    """A grid of coloured cells: rows are the first axis of the result, columns the second.

    Red is negative and blue positive, white is 0; a result without negative numbers that is no effect (a pattern, a
    probability) gets one colour. Layers grow upwards.

    Raises:
        WorkbenchError: the result does not have two axes besides `example`.
    """
    result = _over_examples(result)
    if result.ndim != 2:
        raise WorkbenchError(f"A heatmap needs two axes besides example; this result has {_axes_of(result)}.")
    values = np.asarray(result.values, dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    if not values.size:
        raise WorkbenchError(f"There is nothing to draw: the result has sizes {dict(result.sizes)}.")
    rows, columns = values.shape
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(min(14, max(4.2, 1.9 + columns * 0.34)), min(12, max(2.4, 1.2 + rows * 0.3))), layout="constrained"
        )
        axes = figure.subplots()
        axes.patch.set(facecolor="#e5e7eb", hatch="////", edgecolor="#b6bec9")
        image = axes.imshow(values, aspect="auto", interpolation="nearest", **_palette(result, values))
        if result.dims[0] == "layer":
            axes.invert_yaxis()
        _label_axis(axes, "y", result, str(result.dims[0]), labels)
        _label_axis(axes, "x", result, str(result.dims[1]), labels)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, label=visible(result.name or ""))
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        _set_title(axes, result, title)
        return settled(figure)


def curve(
    dataset: xr.Dataset,
    *,
    x: str,
    y: str,
    low: str | None = None,
    high: str | None = None,
    title: str | None = None,
    log: bool | None = None,
    reference: float | None = None,
) -> Figure:
    """A line with its interval as a band.

    Args:
        x: axis or coordinate.  y: variable.  low, high: variables of the interval.
        log: logarithmic x; by default for sizes that span more than a factor of 20.
        reference: a level to mark with a dashed line, such as the faithfulness 1 of the whole model.
    Raises:
        WorkbenchError: a variable that the dataset lacks, or that has another axis than x.
    """
    for name in (x, y, low, high):
        if name is not None and name not in dataset.variables:
            raise WorkbenchError(f"The dataset has no {name!r}. It has: {', '.join(map(str, dataset.variables))}.")
    if dataset[y].ndim != 1:
        raise WorkbenchError(f"A curve needs one axis; {y!r} has {_axes_of(dataset[y])}.")
    order = np.argsort(dataset[x].values, kind="stable")
    places, middle = np.asarray(dataset[x].values, dtype=float)[order], np.asarray(dataset[y].values, dtype=float)[order]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        if reference is not None:
            axes.axhline(reference, color="#64748b", linewidth=1, linestyle=(0, (4, 3)))
        if low and high:
            bounds = [np.asarray(dataset[name].values, dtype=float)[order] for name in (low, high)]
            axes.fill_between(places, bounds[0], bounds[1], color=_BLUE, alpha=0.18, linewidth=0)
        axes.plot(places, middle, color=_BLUE, marker="o", markersize=4, linewidth=1.8)
        positive = places[places > 0]
        if log if log is not None else len(positive) > 1 and positive.max() > 20 * positive.min():
            # 0 edges has no logarithm, and is worth showing
            axes.set_xscale("symlog", linthresh=positive.min()) if (places <= 0).any() else axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        share = x == "size" and bool((places <= 1).all())
        axes.set_xlabel("share of edges" if share else _WORDS.get(x, visible(x.replace("_", " "))))
        named = (
            dataset[y].attrs.get("long_name") or (dataset.attrs.get("quantity") if y == "mean" else None) or y.replace("_", " ")
        )
        axes.set_ylabel(visible(named))
        axes.grid(axis="y", color="#e5e9ef")
        axes.set_axisbelow(True)
        _set_title(axes, dataset, title)
        return settled(figure)


def bars(
    result: xr.DataArray,
    *,
    low: xr.DataArray | None = None,
    high: xr.DataArray | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """One bar per cell of a result with one axis besides `example`; a cell that was not measured is hatched.

    Args:
        low, high: the interval of each cell, drawn as a line over its bar.
    """
    result = _over_examples(result)
    if result.ndim != 1:
        raise WorkbenchError(f"Bars need one axis besides example; this result has {_axes_of(result)}.")
    values = np.asarray(result.values, dtype=float)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(min(14, max(4.2, 1.4 + len(values) * 0.32)), 3.2), layout="constrained")
        axes = figure.subplots()
        known = np.isfinite(values)
        places = np.arange(len(values))
        axes.bar(places[known], values[known], color=[_BLUE if value >= 0 else _RED for value in values[known]], width=0.72)
        if low is not None and high is not None:
            axes.vlines(places[known], low.values[known], high.values[known], color="#334155", linewidth=1.3)
        for place in places[~known]:
            axes.axvspan(place - 0.4, place + 0.4, facecolor="#e5e7eb", edgecolor="#b6bec9", hatch="////", linewidth=0)
        axes.axhline(0, color="#64748b", linewidth=0.8)
        axes.set_ylabel(visible(result.name or "value"))
        axes.grid(axis="y", color="#e5e9ef")
        axes.set_axisbelow(True)
        _label_axis(axes, "x", result, str(result.dims[0]), labels)
        _set_title(axes, result, title)
        return settled(figure)


def bench_figure(table: pd.DataFrame, *, best: Literal["high", "low"] = "high") -> Figure:
    """A table of numbers, rows x columns, coloured from worst to best, each cell with its number.

    Args:
        best: which end of the scale is good and dark.
    """
    values = table.to_numpy(dtype=float)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    high = high if high > low else low + 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 + 0.8 * table.shape[1], 1.6 + 0.3 * table.shape[0]), layout="constrained")
        axes = figure.subplots()
        palette = "Blues" if best == "high" else "Blues_r"
        axes.imshow(np.ma.masked_invalid(values), cmap=palette, vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            share = (value - low) / (high - low)
            dark = (share if best == "high" else 1 - share) > 0.6
            text = f"{value:.3f}" if np.isfinite(value) else "not run"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
        columns, rows = ([visible(str(name)) for name in names] for names in (table.columns, table.index))
        axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.spines[:].set_visible(False)
        return settled(figure)


def figure_html(figure: Figure, *, alt: str = "") -> str:
    """The figure as an `<img>` with the SVG inside. Same figure, same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "workbench"}), _any_glyph():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    width = round(figure.get_figwidth() * 96)
    return f'<img class="plot" alt="{xml(alt)}" width="{width}" src="data:image/svg+xml;base64,{data}">'


def _plot_dataset(result: xr.Dataset, title: str | None, labels: Sequence[str] | None) -> Figure:
    names = [str(name) for name in result.data_vars]
    y = next((name for name in ("mean", "faithfulness", "value") if name in names), names[0] if len(names) == 1 else None)
    if y is None:
        raise WorkbenchError(f"Which of {', '.join(names) or 'no variables'} is to be drawn? Pass one: plot(result[NAME]).")
    main = result[y]
    bounds = next(((a, b) for a, b in (("low", "high"), (f"{y}_low", f"{y}_high")) if a in names and b in names), (None, None))
    is_scale = main.ndim == 1 and main.dims[0] in result.coords and main[main.dims[0]].dtype.kind in "iuf"
    if not is_scale or main.dims[0] in ("head", "kv_head", "neuron", "feature"):
        named = main.rename(result.attrs.get("quantity", y)).assign_attrs(result.attrs)
        if main.ndim == 1 and bounds[0] and bounds[1]:
            return bars(named, low=result[bounds[0]], high=result[bounds[1]], title=title, labels=labels)
        return plot(named, title=title, labels=labels)
    whole = 1.0 if "faithful" in f"{y} {result.attrs.get('quantity', '')}" else None
    x = "n_edges" if "n_edges" in names and result["n_edges"].dims == main.dims else str(main.dims[0])
    return curve(result, x=x, y=y, low=bounds[0], high=bounds[1], title=title, reference=whole)


def _over_examples(result: xr.DataArray) -> xr.DataArray:
    return result.mean("example", skipna=True, keep_attrs=True) if "example" in result.dims else result


def _axes_of(result: xr.DataArray) -> str:
    return ", ".join(map(str, result.dims)) or "none"


def _palette(result: xr.DataArray, values: np.ndarray) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    word = str(result.name or "").lower() + " " + str(result.attrs.get("kind", "")) * (result.name is None)
    if (known < 0).any() or not any(part in word for part in _SEQUENTIAL_WORDS):
        return {"cmap": "RdBu", "norm": CenteredNorm(0, float(np.abs(known).max(initial=0)) or 1.0)}
    return {"cmap": "Blues", "norm": Normalize(0, float(known.max(initial=0)) or 1.0)}


def _label_axis(axes: Axes, which: str, result: xr.DataArray, dim: str, labels: Sequence[str] | None) -> None:
    """The axis word, and labels of the cells: tokens on positions where they are known, coordinates elsewhere."""
    size, names = result.sizes[dim], None
    if dim in _POSITIONS:
        own = next((c for n, c in result.coords.items() if n in ("token", f"{dim}_token", "tokens") and c.dims == (dim,)), None)
        names = [str(token) for token in own.values] if own is not None else list(labels) if labels is not None else None
        if names is not None and len(names) < size:
            raise WorkbenchError(f"There are {len(names)} labels for {size} positions.")
    tokens = names is not None
    if names is None:
        names = [str(label) for label in (result[dim].values if dim in result.coords else range(size))]
    axis = axes.xaxis if which == "x" else axes.yaxis
    step = 1 if size <= _MOST_TICKS else int(MaxNLocator(nbins=20, integer=True).tick_values(0, size)[1]) or 1
    shown = [_shorten(visible(name)) for name in names[:size:step]]
    tilted = which == "x" and any(len(label) > 3 for label in shown)
    axis.set_ticks(range(0, size, step), shown, rotation=45 if tilted else 0, ha="right" if which == "y" or tilted else "center")
    if tilted:
        for label in axis.get_ticklabels():
            label.set_rotation_mode("anchor")
            label.set_verticalalignment("top")
    axis.set_tick_params(length=0)
    axis.set_label_text(_WORDS.get(dim, dim.replace("_", " ")) + (" (token)" if tokens else ""))


def settled(figure: Figure) -> Figure:
    """The figure with its layout done once: laid out again at each drawing, it would creep, and its bytes with it."""
    with _any_glyph():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


@contextmanager
def _any_glyph() -> Iterator[None]:
    """Text stays text in SVG and is drawn with the reader's fonts, so a glyph missing from ours needs no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _shorten(label: str) -> str:
    return label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"


def _set_title(axes: Axes, result: xr.DataArray | xr.Dataset, title: str | None) -> None:
    facts = [
        _shorten(visible(result.attrs[key])) for key in ("model", "task", "metric", "value", "method") if key in result.attrs
    ]
    head = visible(title) if title else ""
    if facts:
        axes.text(0, 1.02, " · ".join(facts), transform=axes.transAxes, fontsize=8, color="#64748b", va="bottom")
    if head:
        axes.set_title(head, pad=20 if facts else 8)
