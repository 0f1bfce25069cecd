"""The right figure for a result.

`plot` chooses by its type (`drawn`), its variables (`DATASETS`) or its axes.

How a figure is drawn is known to `figures`. A type of your own is drawn once a function for it is registered:
`drawn.register(MyResult)(lambda result, title, labels: ...)`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass, replace
from functools import singledispatch
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from workbench.circuit.circuit import Circuit
from workbench.circuit.compare import Comparison
from workbench.errors import WorkbenchError
from workbench.lenses.tuned_lens import TunedLens
from workbench.probes.fit import Probes
from workbench.render.circuit.view import CircuitView
from workbench.render.figures import circuit_plots, sweep_plots
from workbench.render.figures.canvas import check_filled, mean_note, noted, over_examples
from workbench.render.figures.grids import Part, heatmaps, tables, token_table
from workbench.render.figures.line_plots import bars, curve, side_by_side
from workbench.render.figures.probe_plots import causal_figure, probe_figures
from workbench.statistics import summary
from workbench.sweeps.table import Sweep

MOST_BARS, MOST_NEURONS = 60, 64
STRONGEST = 24
"""The strongest 24 cells are shown of an axis that has more than `MOST_BARS` (edges, paths) or
`MOST_NEURONS`.
"""
TRAJECTORIES = ("logit_lens", "norms")
"""Kinds of results that are a line over layers, with a band over examples, when layers are their only axis.
"""
Title = str | None
Labels = Sequence[str] | None


def plot(result: Any, *, title: str | None = None, labels: Sequence[str] | None = None) -> Any:
    """The figure that fits a result, of whatever kind the functions of this package return.

    Args:
        result: an array of effects, scores or measures (the mean over `example` is taken; two axes make a
            heatmap, more a panel for each cell of the leading ones); a Dataset of `summary`,
            `faithfulness_curve`, `evaluate`, `minimality`, `stability`, `circuit_tests`, `causal_check`,
            `top_tokens` or `neuron_maps`; `Probes`, a `TunedLens`, what `compare` or `measure` returns, rows
            of the benchmark, a `Sweep` or what `compare_sweeps` returns, or a circuit. Of a Dataset of
            curves, each label of a second axis becomes a line.
        title: of the figure.
        labels: token strings of the position axes, where the result carries none.
    Returns:
        A matplotlib `Figure` that notebooks show by themselves; for a circuit its `CircuitView`, which
        `to_svg` and `to_html` draw.
    Raises:
        WorkbenchError: no figure is known for such a result, or there is nothing in it to draw.

    >>> type(plot(xr.DataArray([[1.0, -1.0]], dims=("layer", "head")))).__name__
    'Picture'
    """
    return drawn(result, title, labels)


@singledispatch
def drawn(result: Any, title: Title, labels: Labels) -> Any:
    """The figure of a result by its type."""
    known = ", ".join(kind.__name__ for kind in drawn.registry if kind is not object)
    hint = ""
    if hasattr(result, "kinds"):  # an activation store
        hint = " Draw what is computed from it, such as norms(store) or attention_to(store, ...)."
    raise WorkbenchError(f"A {type(result).__name__} cannot be drawn. These can: {known}.{hint}")


@drawn.register
def _circuit(result: Circuit, title: Title, labels: Labels) -> CircuitView:
    return _view(CircuitView.of(result), title, labels)


@drawn.register
def _view(result: CircuitView, title: Title, labels: Labels) -> CircuitView:
    if labels is not None:
        raise WorkbenchError("A circuit has no axis that labels belong to: pass tokens= to CircuitView.of.")
    if title:
        return replace(result, title=title)
    return result


@drawn.register
def _comparison(result: Comparison, title: Title, labels: Labels) -> Figure:
    return circuit_plots.comparison(result, title)


@drawn.register
def _probes(result: Probes, title: Title, labels: Labels) -> Figure:
    return probe_figures(result.results, result.baselines, title=title)


@drawn.register
def _tuned_lens(result: TunedLens, title: Title, labels: Labels) -> Figure:
    return _lens_quality(result.heldout, title, labels)


@drawn.register
def _sweep(result: Sweep, title: Title, labels: Labels) -> Figure:
    return sweep_plots.sweep_figure(result, title)


@drawn.register
def _array(result: xr.DataArray, title: Title, labels: Labels) -> Figure:
    if result.dtype.kind not in "bfiu":
        raise WorkbenchError(
            f"The array {str(result.name or '')!r} holds {result.dtype}, and numbers are drawn."
        )
    if result.ndim:
        check_filled(result)
    if result.dims == ("example",):
        return bars(result.rename(example="prompt"), title=title)
    if not result.ndim:
        raise WorkbenchError(
            "A single number cannot be drawn: keep an axis of the result, such as its examples."
        )
    result = _strongest(_by_layer_and_head(_without_single(_up_to_end(result))))
    axes = [axis for axis in result.dims if axis != "example"]
    if len(axes) > 1:
        return heatmaps(result, title=title, labels=labels)
    with_interval = summary(result) if result.sizes.get("example", 1) > 1 else None
    if axes == ["layer"] and result.attrs.get("kind") in TRAJECTORIES:
        return _trajectory(result, with_interval, title)
    if with_interval is None:
        return bars(result, title=title, labels=labels)
    return bars(result, low=with_interval["low"], high=with_interval["high"], title=title, labels=labels)


def _trajectory(result: xr.DataArray, with_interval: xr.Dataset | None, title: Title) -> Figure:
    """A line over layers, with a band over examples where there are several."""
    if with_interval is None:
        data = over_examples(result).to_dataset(name="mean")
        return curve(data.assign_attrs(_facts(result)), x="layer", y="mean", title=title)
    data = with_interval.assign_attrs(_facts(result))
    return curve(data, x="layer", y="mean", low="low", high="high", title=title)


@drawn.register
def _dataset(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    names = set(map(str, result.variables))
    for needed, draw in DATASETS:
        if needed <= names:
            for name in needed:
                check_filled(result[name])
            return draw(result, title, labels)
    own = [str(name) for name in result.data_vars]
    if len(own) == 1:
        return _array(result[own[0]].assign_attrs(result.attrs | result[own[0]].attrs), title, labels)
    raise WorkbenchError(
        f"Which of {', '.join(own) or 'no variables'} is to be drawn? Pass one: plot(result[NAME])."
    )


@drawn.register(list)
@drawn.register(tuple)
def _rows(result: Sequence[Any], title: Title, labels: Labels) -> Figure:
    # a dataclass itself is one, too, not only its instances
    are_rows = all(is_dataclass(row) and not isinstance(row, type) for row in result)
    if not result or not are_rows:
        raise WorkbenchError(
            "A list cannot be drawn unless it holds rows, of the bench or of measure(): plot its items one "
            "by one."
        )
    return _frame(pd.DataFrame([asdict(row) for row in result]), title, labels)


@drawn.register
def _frame(result: pd.DataFrame, title: Title, labels: Labels) -> Figure:
    """Scores of `measure`, rows of the bench, what `compare_sweeps` returns, or a table of numbers alone."""
    columns = set(map(str, result.columns))
    if not len(result):
        raise WorkbenchError("There is nothing to draw: the table has no rows.")
    if {"behaviour", "score", "n"} <= columns:
        shown = xr.DataArray(
            _numbers(result, "score"),
            dims="behaviour",
            coords={"behaviour": list(result["behaviour"])},
            name="score",
        )
        return bars(noted(shown, "held-out prompts"), title=title, reference=1.0)
    if {"what", "difference", "low", "high"} <= columns:
        return sweep_plots.difference_figure(result, title)
    parts = _benchmark_parts(result) if "method" in columns else []
    if not parts and result.size and all(pd.api.types.is_numeric_dtype(kind) for kind in result.dtypes):
        parts = [Part("", result, "high")]
    if not parts:
        raise WorkbenchError(
            f"A table with columns {', '.join(map(str, result.columns))} cannot be drawn: rows of the bench "
            "(model, task, method and "
            f"{' or '.join(BENCH)}), scores of measure(), or numbers alone can. Select columns, as in "
            "table[['cpr']]."
        )
    return tables(parts, title=title)


BENCH: dict[str, Literal["high", "low"]] = {"edge_auroc": "high", "cpr": "high", "cmd": "low"}
"""Columns of the bench that are drawn, and which end of them is good."""


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    try:
        return table[column].to_numpy(dtype=float)
    except (TypeError, ValueError) as error:
        raise WorkbenchError(
            f"The column {column!r} cannot be drawn, as it holds more than numbers: {error}."
        ) from error


def _benchmark_parts(rows: pd.DataFrame) -> list[Part]:
    """Cases x methods of each measure of the benchmark, a table for each kind of ablation value."""
    axes = [name for name in ("model", "task") if name in rows]
    # a case is named by what differs between cases
    named = [name for name in axes if len(set(rows[name])) > 1] or axes[-1:]
    cases = []
    for labels in rows[named].to_numpy():
        cases.append(" ".join(dict.fromkeys(map(str, labels))).replace("planted-", ""))
    values = rows["value"].tolist() if "value" in rows else [""] * len(rows)
    parts = []
    for column, best in BENCH.items():
        if column not in rows:
            continue
        numbers = _numbers(rows, column)
        cells = pd.DataFrame(
            {"case": cases, "method": rows["method"], "of": values, "number": numbers}
        ).dropna()
        for value in dict.fromkeys(cells["of"].tolist()):
            of_value = pd.DataFrame(cells[cells["of"] == value])
            table = of_value.pivot_table(index="case", columns="method", values="number", sort=False)
            suffix = f", {value} values" if len(set(values)) > 1 else ""
            parts.append(Part(f"{column.replace('_', ' ')}{suffix} ({best} is good)", table, best))
    return parts


def _summary(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    """A mean with its interval over one axis, or the mean alone over several."""
    y = next(name for name in ("mean", "value") if name in result.variables)
    main, ends = result[y], [name for name in ("low", "high") if name in result.data_vars]
    named = main.rename(result.attrs.get("quantity", y)).assign_attrs(result.attrs)
    if main.ndim == 1 and _is_numeric_axis(result, str(main.dims[0])):
        low, high = ends if len(ends) == 2 else (*ends, None, None)[:2]
        return curve(result, x=str(main.dims[0]), y=y, low=low, high=high, title=title)
    if main.ndim == 1 and len(ends) == 2:
        shown = np.arange(len(named))
        if len(named) > MOST_BARS:
            shown = np.sort(_order(named)[:STRONGEST])
            named = noted(named, f"the {len(shown)} strongest of {len(named)}")
        low, high = result["low"][shown], result["high"][shown]
        return bars(named[shown], low=low, high=high, title=title, labels=labels)
    return _array(named, title, labels)


def _is_numeric_axis(result: xr.Dataset, axis: str) -> bool:
    """Whether an axis is a quantity; heads and neurons have numbers, but no order that means anything."""
    if axis in ("head", "kv_head", "neuron", "feature") or axis not in result.coords:
        return False
    return result[axis].dtype.kind in "iuf"


def _lens_quality(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    data = side_by_side(result, ["logit", "tuned"], "lens", quantity="KL to the last layer (nats)")
    return curve(data, x="layer", y="mean", low="low", high="high", over="lens", title=title)


def _neuron_maps(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    """Of the neurons that tell a concept best by themselves, how far the area under the ROC curve is from
    chance.
    """
    above_chance = (result["roc_auc"] - 0.5).rename("AUROC of the neuron alone − 0.5")
    if "concept" not in above_chance.dims:
        above_chance = above_chance.expand_dims("concept")
    above_chance = above_chance.assign_attrs(result.attrs).transpose("layer", "neuron", "concept")
    return _array(above_chance, title, labels)


def _top_tokens(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    return token_table(result, title=title, labels=labels)


def _probe_results(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    return probe_figures(result, None, title=title)


def _causal(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    return causal_figure(result, title=title)


def _unlabelled(
    draw: Callable[[xr.Dataset, Title], Figure],
) -> Callable[[xr.Dataset, Title, Labels], Figure]:
    """The same figure with an argument for labels, which it has no axis for."""
    return lambda result, title, labels: draw(result, title)


DATASETS: tuple[tuple[frozenset[str], Callable[[xr.Dataset, Title, Labels], Figure]], ...] = (
    (frozenset({"token", "prob", "layer", "pos"}), _top_tokens),
    (frozenset({"accuracy", "k", "control_kind"}), _probe_results),
    (frozenset({"effect", "random", "used", "edit"}), _causal),
    (frozenset({"roc_auc", "coefficient", "neuron"}), _neuron_maps),
    (frozenset({"tuned", "logit", "layer"}), _lens_quality),
    (frozenset({"p", "statistic", "supports"}), _unlabelled(circuit_plots.verdicts)),
    (frozenset({"jaccard", "low", "high", "n_edges"}), _unlabelled(circuit_plots.stability)),
    (frozenset({"missed", "needed", "node"}), _unlabelled(circuit_plots.minimality)),
    (frozenset({"faithfulness", "low", "high", "in_sample"}), _unlabelled(circuit_plots.evaluation)),
    (frozenset({"faithfulness"}), _unlabelled(circuit_plots.faithfulness)),
    (frozenset({"mean"}), _summary),
    (frozenset({"value"}), _summary),
)
"""Which variables a Dataset has to have for which figure; the first that fits is drawn."""


def _facts(result: xr.DataArray) -> dict[str, Any]:
    """Attributes of a mean over examples for a curve."""
    note = mean_note(result) if result.sizes.get("example", 1) > 1 else ""
    return dict(noted(result, note).attrs) | {"quantity": str(result.name or "value")}


def _up_to_end(result: xr.DataArray) -> xr.DataArray:
    """One prompt without the positions behind its end, whose tokens are ""."""
    tokens = result.coords.get("pos_token")
    if tokens is None or "pos" not in tokens.dims:
        return result
    others = tuple(i for i, dim in enumerate(tokens.dims) if dim != "pos")
    filled = np.flatnonzero((tokens.values != "").any(others))
    if len(filled):
        return result.isel(pos=slice(0, int(filled[-1]) + 1))
    return result


def _without_single(result: xr.DataArray) -> xr.DataArray:
    """The result without axes of one label, which become notes; one axis besides `example` stays."""
    notes = []
    for axis in [str(axis) for axis in result.dims]:
        if axis == "example" or result.sizes[axis] > 1:
            continue
        if sum(dim != "example" for dim in result.dims) == 1:
            break
        label = result[axis].values[0] if axis in result.coords else 0
        notes.append(f"{axis} {label}")
        result = result.isel({axis: 0}, drop=True)
    return noted(result, *notes)


def _by_layer_and_head(result: xr.DataArray) -> xr.DataArray:
    """An axis of heads `a3.4` and MLPs `m3` as two axes, layer and head, with the MLP as the last column.

    Done where there is more than one head, and no other axis than `example` and a few readers beside it. What
    is neither (input, bias, embeddings) becomes a note.
    """
    dim = next((str(axis) for axis in result.dims if axis in ("writer", "component")), None)
    others = [axis for axis in result.dims if axis not in ("example", dim)]
    if dim is None or any(axis != "reader" or result.sizes[axis] > 6 for axis in others):
        return result
    names = [str(name) for name in result[dim].values]
    cells: dict[int, tuple[int, str]] = {}  # index -> layer and column
    for i, name in enumerate(names):
        match = re.fullmatch(r"(?:a(\d+)\.(\d+)|m(\d+))", name)
        if match:
            cells[i] = int(match[1] or match[3]), match[2] or "mlp"
    rest = [i for i in range(len(names)) if i not in cells]
    heads = {int(column) for _, column in cells.values() if column != "mlp"}
    if len(heads) < 2 or any(names[i] not in ("input", "bias", "embed", "pos_embed") for i in rest):
        return result
    result = over_examples(result).transpose(*others, dim)
    layers = sorted({layer for layer, _ in cells.values()})
    columns = list(map(str, sorted(heads)))
    if any(column == "mlp" for _, column in cells.values()):
        columns.append("mlp")
    table = np.full((*result.shape[:-1], len(layers), len(columns)), np.nan)
    for i, (layer, column) in cells.items():
        table[..., layers.index(layer), columns.index(column)] = result.values[..., i]
    coords = {axis: result[axis] for axis in others}
    coords |= {"layer": layers, "head": np.array(columns, dtype=object)}
    dims = (*others, "layer", "head")
    grid = xr.DataArray(table, dims=dims, coords=coords, name=result.name, attrs=result.attrs)
    if others:
        return grid
    return noted(grid, *(f"{names[i]} {float(result.values[i]):+.3g}" for i in rest))


def _strongest(result: xr.DataArray) -> xr.DataArray:
    """The strongest neurons, edges or paths where there are too many to show; the rest of the axes stays.

    Layers and neurons become one axis.
    """
    axes = [str(axis) for axis in result.dims if axis != "example"]
    if result.sizes.get("neuron", 0) > MOST_NEURONS or ("neuron" in axes and len(axes) > 2):
        if "layer" in axes:
            result = _layers_and_neurons(result)
        return _cut(result, "neuron")
    is_ordered = axes[0] in ("layer", "pos", "query_pos", "key_pos")
    if len(axes) == 1 and result.sizes[axes[0]] > MOST_BARS and not is_ordered:
        return _cut(_edge_names(result), axes[0])
    return result


def _layers_and_neurons(result: xr.DataArray) -> xr.DataArray:
    """Neurons of all layers along one axis, named as in `m3:113`."""
    names = [f"m{layer}:{n}" for layer in result["layer"].values for n in result["neuron"].values]
    coords = [name for name, coord in result.coords.items() if {"layer", "neuron"} & set(coord.dims)]
    flat = result.drop_vars(coords).stack(at=("layer", "neuron"), create_index=False)
    return flat.rename(at="neuron").assign_coords(neuron=np.array(names, dtype=object))


def _edge_names(result: xr.DataArray) -> xr.DataArray:
    """An axis of edges with names as in `a3.4->logits`; other results as they are."""
    if "edge" not in result.dims or not {"writer", "reader"} <= set(result.coords):
        return result
    ends = zip(result["writer"].values, result["reader"].values, strict=True)
    names = [f"{writer}->{reader}" for writer, reader in ends]
    return result.drop_vars(("writer", "reader")).assign_coords(edge=np.array(names, dtype=object))


def _cut(result: xr.DataArray, axis: str) -> xr.DataArray:
    """The strongest cells along an axis, which becomes the first besides `example`."""
    shown = result.isel({axis: _order(result.transpose(axis, ...))[:STRONGEST]})
    if shown.sizes[axis] < result.sizes[axis]:
        shown = noted(shown, f"the {shown.sizes[axis]} strongest of {result.sizes[axis]:,} {axis}s")
    first = [dim for dim in ("example", axis) if dim in shown.dims]
    return shown.transpose(*first, ...)


def _order(result: xr.DataArray) -> np.ndarray:
    """Cells of the first axis by the size of their mean over examples, of other axes the largest.

    Strongest first.
    """
    size = abs(over_examples(result)).fillna(0)
    return np.argsort(-size.max([dim for dim in size.dims if dim != result.dims[0]]).values, kind="stable")
