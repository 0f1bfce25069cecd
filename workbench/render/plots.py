"""The right figure for a result: `plot` chooses by its type, its variables or its axes.

A type of your own is drawn once a function for it is registered: `drawn.register(Found)(lambda found, title, labels: ...)`.
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
"""So many cells are shown of an axis that has more than `MOST_BARS` (edges, paths) or `MOST_NEURONS`."""
TRAJECTORIES = ("logit_lens", "norms")
"""Kinds of results that are a line over layers, with a band over examples, when layers are their only axis."""
Title = str | None
Labels = Sequence[str] | None


def plot(result: Any, *, title: str | None = None, labels: Sequence[str] | None = None) -> Any:
    """The figure that fits a result, of whatever kind the functions of this package return.

    Args:
        result: an array of effects, scores or measures (the mean over `example` is taken; two axes make a heatmap, more a
            panel for each cell of the leading ones); a Dataset of `summary`, `faithfulness_curve`, `evaluate`, `minimality`,
            `stability`, `circuit_tests`, `causal_check`, `top_tokens` or `neuron_maps`; `Probes`, a `TunedLens`, what `compare`
            or `measure` returns, rows of the bench, a `Sweep` or what `compare_sweeps` returns,
            or a circuit. A Dataset with one axis besides its x is a line for each.
        title: of the figure.
        labels: token strings of the position axes, where the result carries none.
    Returns:
        A matplotlib `Figure` that notebooks show by themselves; for a circuit its `CircuitView`, which `to_svg` and `to_html` draw.
    Raises:
        WorkbenchError: nothing here draws it.

    >>> type(plot(xr.DataArray([[1.0, -1.0]], dims=("layer", "head")))).__name__
    'Picture'
    """
    return drawn(result, title, labels)


@singledispatch
def drawn(result: Any, title: Title, labels: Labels) -> Any:
    """The figure of a result by its type."""
    known = ", ".join(kind.__name__ for kind in drawn.registry if kind is not object)
    hint = (
        " Draw what is computed from it, such as norms(store) or attention_to(store, ...)."
        if hasattr(result, "kinds")
        else ""
    )
    raise WorkbenchError(f"A {type(result).__name__} cannot be drawn. These can: {known}.{hint}")


@drawn.register
def _circuit(result: Circuit, title: Title, labels: Labels) -> CircuitView:
    return _view(CircuitView.of(result), title, labels)


@drawn.register
def _view(result: CircuitView, title: Title, labels: Labels) -> CircuitView:
    if labels is not None:
        raise WorkbenchError("A circuit has no axis that labels belong to: pass tokens= to CircuitView.of.")
    return replace(result, title=title) if title else result


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
    found = summary(result) if result.sizes.get("example", 1) > 1 else None
    if axes == ["layer"] and result.attrs.get("kind") in TRAJECTORIES:
        data = (
            found
            if found is not None
            else over_examples(result).to_dataset(name="mean").assign_attrs(result.attrs)
        )
        ends: dict[str, Any] = {"low": "low", "high": "high"} if found is not None else {}
        return curve(data.assign_attrs(_facts(result)), x="layer", y="mean", title=title, **ends)
    low, high = (None, None) if found is None else (found["low"], found["high"])
    return bars(result, low=low, high=high, title=title, labels=labels)


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
    if not result or not all(is_dataclass(row) and not isinstance(row, type) for row in result):
        raise WorkbenchError(
            "A list cannot be drawn unless it holds rows, of the bench or of measure(): plot its items one by one."
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
    known = [name for name in BENCH if name in columns] if "method" in columns else []
    parts = [part for name in known for part in _pivots(result, name, BENCH[name])]
    if not parts and result.size and all(pd.api.types.is_numeric_dtype(kind) for kind in result.dtypes):
        parts = [Part("", result, "high")]
    if not parts:
        raise WorkbenchError(
            f"A table with columns {', '.join(map(str, result.columns))} cannot be drawn: rows of the bench (model, task, method and "
            f"{' or '.join(BENCH)}), scores of measure(), or numbers alone can. Select columns, as in table[['cpr']]."
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


def _pivots(rows: pd.DataFrame, column: str, best: Literal["high", "low"]) -> list[Part]:
    """Cases x methods of one column, a table for each kind of value."""
    named = [name for name in ("model", "task") if name in rows]
    told = [name for name in named if len(set(rows[name])) > 1] or named[-1:]
    cases = [" ".join(dict.fromkeys(map(str, row))).replace("planted-", "") for row in rows[told].to_numpy()]
    values = rows["value"].tolist() if "value" in rows else [""] * len(rows)
    known = pd.DataFrame(
        {"case": cases, "method": rows["method"], "of": values, "number": _numbers(rows, column)}
    ).dropna()
    made = []
    for value in dict.fromkeys(known["of"].tolist()):
        part = pd.DataFrame(known[known["of"] == value])
        table = part.pivot_table(index="case", columns="method", values="number", sort=False)
        many = f", {value} values" if len(set(values)) > 1 else ""
        made.append(Part(f"{column.replace('_', ' ')}{many} ({best} is good)", table, best))
    return made


def _summary(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    """A mean with its interval over one axis, or the mean alone over several."""
    y = next(name for name in ("mean", "value") if name in result.variables)
    main, ends = result[y], [name for name in ("low", "high") if name in result.data_vars]
    axis = str(main.dims[0]) if main.ndim else ""
    named = main.rename(result.attrs.get("quantity", y)).assign_attrs(result.attrs)
    if (
        main.ndim == 1
        and axis in result.coords
        and result[axis].dtype.kind in "iuf"
        and axis not in ("head", "kv_head", "neuron", "feature")
    ):
        return curve(result, x=axis, y=y, title=title, **dict(zip(("low", "high"), ends, strict=False)))  # pyright: ignore[reportArgumentType]
    if main.ndim == 1 and len(ends) == 2:
        order = np.sort(_order(named)[:STRONGEST]) if len(named) > MOST_BARS else np.arange(len(named))
        named = (
            noted(named, f"the {len(order)} strongest of {len(named)}") if len(order) < len(named) else named
        )
        return bars(
            named[order], low=result["low"][order], high=result["high"][order], title=title, labels=labels
        )
    return _array(named, title, labels)


def _lens_quality(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    data = side_by_side(result, ["logit", "tuned"], "lens", quantity="KL to the last layer (nats)")
    return curve(data, x="layer", y="mean", low="low", high="high", over="lens", title=title)


def _neuron_maps(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    """Of the neurons that tell a concept best by themselves, how far the area under the ROC curve is from chance."""
    apart = (result["roc_auc"] - 0.5).rename("AUROC of the neuron alone − 0.5").assign_attrs(result.attrs)
    apart = apart if "concept" in apart.dims else apart.expand_dims("concept")
    return _array(apart.transpose("layer", "neuron", "concept"), title, labels)


def _top_tokens(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    return token_table(result, title=title, labels=labels)


def _of_circuits(
    draw: Callable[[xr.Dataset, Title], Figure],
) -> Callable[[xr.Dataset, Title, Labels], Figure]:
    return lambda result, title, labels: draw(result, title)


DATASETS: tuple[tuple[frozenset[str], Callable[[xr.Dataset, Title, Labels], Figure]], ...] = (
    (frozenset({"token", "prob", "layer", "pos"}), _top_tokens),
    (
        frozenset({"accuracy", "k", "control_kind"}),
        lambda result, title, labels: probe_figures(result, None, title=title),
    ),
    (
        frozenset({"effect", "random", "used", "edit"}),
        lambda result, title, labels: causal_figure(result, title=title),
    ),
    (frozenset({"roc_auc", "coefficient", "neuron"}), _neuron_maps),
    (frozenset({"tuned", "logit", "layer"}), _lens_quality),
    (frozenset({"p", "statistic", "supports"}), _of_circuits(circuit_plots.verdicts)),
    (frozenset({"jaccard", "low", "high", "n_edges"}), _of_circuits(circuit_plots.stability)),
    (frozenset({"missed", "needed", "node"}), _of_circuits(circuit_plots.minimality)),
    (frozenset({"faithfulness", "low", "high", "in_sample"}), _of_circuits(circuit_plots.evaluation)),
    (frozenset({"faithfulness"}), _of_circuits(circuit_plots.faithfulness)),
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
    own = result.coords.get("pos_token")
    if own is None or "pos" not in own.dims:
        return result
    there = np.flatnonzero((own.values != "").any(tuple(i for i, dim in enumerate(own.dims) if dim != "pos")))
    return result.isel(pos=slice(0, int(there[-1]) + 1)) if len(there) else result


def _without_single(result: xr.DataArray) -> xr.DataArray:
    """The result without axes of one label, which become notes; one axis besides `example` stays."""
    notes = []
    for axis in [axis for axis in result.dims if axis != "example" and result.sizes[axis] == 1]:
        if sum(dim != "example" for dim in result.dims) == 1:
            break
        notes.append(f"{axis} {result[axis].values[0]}" if axis in result.coords else f"{axis} 0")
        result = result.isel({axis: 0}, drop=True)
    return noted(result, *notes)


def _by_layer_and_head(result: xr.DataArray) -> xr.DataArray:
    """An axis of heads `a3.4` and MLPs `m3` as two axes, layer and head with the MLP as the last one; other parts are notes.

    So it is with more than one head, when no other axis than `example` and a few readers is beside it.
    """
    dim = next((str(axis) for axis in result.dims if axis in ("writer", "component")), None)
    others = [axis for axis in result.dims if axis not in ("example", dim)]
    if dim is None or any(axis != "reader" or result.sizes[axis] > 6 for axis in others):
        return result
    names = [str(name) for name in result[dim].values]
    places = {i: re.fullmatch(r"(?:a(\d+)\.(\d+)|m(\d+))", name) for i, name in enumerate(names)}
    rest = [i for i, place in places.items() if place is None]
    heads = {int(place[2]) for place in places.values() if place and place[2]}
    if len(heads) < 2 or any(names[i] not in ("input", "bias", "embed", "pos_embed") for i in rest):
        return result
    result = over_examples(result).transpose(*others, dim)
    layers = sorted({int(place[1] or place[3]) for place in places.values() if place})
    columns = [
        *map(str, sorted(heads)),
        *(["mlp"] if any(place and place[3] for place in places.values()) else []),
    ]
    table = np.full((*result.shape[:-1], len(layers), len(columns)), np.nan)
    for i, place in places.items():
        if place:
            table[..., layers.index(int(place[1] or place[3])), columns.index(place[2] or "mlp")] = (
                result.values[..., i]
            )
    coords = {axis: result[axis] for axis in others} | {
        "layer": layers,
        "head": np.array(columns, dtype=object),
    }
    made = xr.DataArray(
        table, dims=(*others, "layer", "head"), coords=coords, name=result.name, attrs=result.attrs
    )
    alone = [f"{names[i]} {float(result.values[i]):+.3g}" for i in rest] if not others else []
    return noted(made, *alone)


def _strongest(result: xr.DataArray) -> xr.DataArray:
    """The strongest neurons, edges or paths where there are too many to show; the rest of the axes stays.

    Layers and neurons become one axis.
    """
    if result.sizes.get("neuron", 0) > MOST_NEURONS or (
        "neuron" in result.dims and result.ndim - ("example" in result.dims) > 2
    ):
        if "layer" in result.dims:
            names = np.array(
                [f"m{layer}:{n}" for layer in result["layer"].values for n in result["neuron"].values],
                dtype=object,
            )
            coords = [name for name, c in result.coords.items() if {"layer", "neuron"} & set(c.dims)]
            result = result.drop_vars(coords).stack(at=("layer", "neuron"), create_index=False)
            result = result.rename(at="neuron").assign_coords(neuron=names)
        return _cut(result, "neuron")
    axes = [str(axis) for axis in result.dims if axis != "example"]
    if (
        len(axes) == 1
        and result.sizes[axes[0]] > MOST_BARS
        and axes[0] not in ("layer", "pos", "query_pos", "key_pos")
    ):
        if axes[0] == "edge" and {"writer", "reader"} <= set(result.coords):
            names = [
                f"{w}->{r}" for w, r in zip(result["writer"].values, result["reader"].values, strict=True)
            ]
            result = result.drop_vars(("writer", "reader")).assign_coords(edge=np.array(names, dtype=object))
        return _cut(result, axes[0])
    return result


def _cut(result: xr.DataArray, axis: str) -> xr.DataArray:
    kept = result.isel({axis: _order(result.transpose(axis, ...))[:STRONGEST]})
    n = result.sizes[axis]
    kept = noted(kept, f"the {kept.sizes[axis]} strongest of {n:,} {axis}s") if n > kept.sizes[axis] else kept
    dims = [dim for dim in kept.dims if dim not in ("example", axis)]
    return kept.transpose(*(["example"] if "example" in kept.dims else []), axis, *dims)


def _order(result: xr.DataArray) -> np.ndarray:
    """Cells of the first axis by the size of their mean over examples, of other axes the largest; strongest first."""
    size = abs(over_examples(result)).fillna(0)
    return np.argsort(-size.max([dim for dim in size.dims if dim != result.dims[0]]).values, kind="stable")
