"""The right figure for a result: `plot` chooses it.

It chooses by type (`drawn`); for a Dataset by its variables (`dataset_plots.DATASETS`), for an array by its
axes (`array_plots`).

How a figure is drawn is known to `figures`. A type of your own is drawn once a function for it is registered:
`drawn.register(MyResult)(lambda result, title, labels: ...)`.
"""

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from functools import singledispatch
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.compare import Comparison
from workbench.errors import WorkbenchError
from workbench.lenses.tuned_lens import TunedLens
from workbench.probes.fit import Probes
from workbench.render.cards.headlines import headline, probe_rows, probes_headline
from workbench.render.circuit.view import CircuitView
from workbench.render.figures import circuit_plots, sweep_plots
from workbench.render.figures.array_plots import array_figure
from workbench.render.figures.bar_plots import bars
from workbench.render.figures.bench_tables import BENCH, benchmark_tables, numbers_of
from workbench.render.figures.canvas import Labels, Title
from workbench.render.figures.dataset_plots import dataset_figure, lens_quality
from workbench.render.figures.notes import noted
from workbench.render.figures.probe_plots import probe_figures
from workbench.render.figures.tables import NumberTable, tables
from workbench.sweeps.table import Sweep
from workbench.text import visible


@checked
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
    if hasattr(result, "kinds"):  # an activation store, of which only what is computed from it has a picture
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
    # what the card of the probes says first
    told = probes_headline(probe_rows(result.results))
    return probe_figures(result.results.assign_attrs(conclusion=told), result.baselines, title=title)


@drawn.register
def _tuned_lens(result: TunedLens, title: Title, labels: Labels) -> Figure:
    return lens_quality(result.heldout, title, labels)


@drawn.register
def _sweep(result: Sweep, title: Title, labels: Labels) -> Figure:
    return sweep_plots.sweep_figure(result, title)


@drawn.register
def _array(result: xr.DataArray, title: Title, labels: Labels) -> Figure:
    return array_figure(concluded(result), title, labels)


@drawn.register
def _dataset(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    return dataset_figure(concluded(result), title, labels)


def concluded(result: Any) -> Any:
    """A result with its headline as `attrs["conclusion"]`, which its figure shows below the title."""
    try:
        return result.assign_attrs(conclusion=headline(result))
    except WorkbenchError:  # a part of a result, or an array of somebody else's: it has no headline
        return result


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


def _abilities(scores: pd.DataFrame) -> str:
    """What a model can do least, and how many behaviours reach their bars."""
    known = [row for row in scores.to_dict("records") if np.isfinite(row["score"])]
    if not known:
        return "No behaviour was measured."
    least = min(known, key=lambda row: row["score"])
    text = (
        f"The lowest score is {least['score']:.2f} on {visible(least['behaviour'])} ({least['n']} prompts)."
    )
    barred = [row for row in known if np.isfinite(row.get("bar", np.nan))]
    if barred:
        text += f" {sum(row['score'] >= row['bar'] for row in barred)} of {len(barred)} reach their bar."
    return text


@drawn.register
def _frame(result: pd.DataFrame, title: Title, labels: Labels) -> Figure:
    """Scores of `measure`, rows of the bench, what `compare_sweeps` returns, or a table of numbers alone."""
    columns = set(map(str, result.columns))
    if not len(result):
        raise WorkbenchError("There is nothing to draw: the table has no rows.")
    if {"behaviour", "score", "n"} <= columns:
        shown = xr.DataArray(
            numbers_of(result, "score"),
            dims="behaviour",
            coords={"behaviour": list(result["behaviour"])},
            name="score",
        )
        return bars(noted(shown, "held-out prompts").assign_attrs(conclusion=_abilities(result)), title=title)
    if {"what", "difference", "low", "high"} <= columns:
        return sweep_plots.difference_figure(result, title)
    if "method" in columns:
        measures = benchmark_tables(result)
        if measures:
            return tables(measures, title=title)
    is_numeric = all(map(pd.api.types.is_numeric_dtype, result.dtypes))
    if not result.size or not is_numeric:
        raise WorkbenchError(
            f"A table with columns {', '.join(map(str, result.columns))} cannot be drawn: rows of the bench "
            f"(model, task, method and {' or '.join(BENCH)}), scores of measure(), or numbers "
            "alone can. Select columns, as in table[['cpr']]."
        )
    return tables([NumberTable("", result, "high")], title=title)
