"""The picture of a sweep, by its study: a panel for each model, task, metric and value; seeds are averaged.

`sweep_figure` draws one sweep, `difference_figure` what two of them differ in. Panels are made first, by
`sweep_panels`, and put together by `sheets`, which knows how large they all are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.metrics.metric import BUILT_IN
from workbench.render.figures.headings import word
from workbench.render.figures.sheets import SheetPanel, assembled
from workbench.render.figures.sweep_panels import (
    ALPHA,
    bar_panel,
    joined,
    setting_panels,
    sign_of,
    strongest_rows,
)
from workbench.statistics import interval_text
from workbench.sweeps.rows import groups, varying
from workbench.sweeps.table import Sweep
from workbench.text import visible

SETTINGS = ("metric", "model", "checkpoint", "task", "split", "variant", "base", "value")
"""Flags that get a panel each where they vary."""
NAMED_BY_LABEL = ("model", "task", "metric", "value")
"""Flags whose label says what it is; of others the flag stands before it."""
MOST_PANELS = 24


def sweep_figure(sweep: Sweep, title: str | None = None) -> Figure:
    """The figure of a sweep, by its study.

    Effects: layers x heads (or positions) as cells, layers as bars, of neurons the distribution and the
    strongest. Pairs: the synergy of two sites. Cumulative ablation and steering: lines with bands. Paths:
    writers x readers. Circuits and methods: faithfulness with intervals. Stability: Jaccard index of edges
    (least to largest) and numbers of edges.

    Raises:
        WorkbenchError: nothing was measured.
    """
    study = str(sweep.rows["study"].iloc[0]) if len(sweep.rows) else ""
    table = _table(sweep, study)
    over = _line_column(study, table)
    settings = [flag for flag in varying(table, SETTINGS) if flag != over]
    panels: list[SheetPanel] = []
    for rows in groups(table, settings):
        cell = pd.DataFrame(table.iloc[rows]).reset_index(drop=True)
        name = ", ".join(_setting(flag, cell[flag].iloc[0]) for flag in settings)
        # panels of a metric share a scale, so that they can be compared
        same_metric = pd.DataFrame(table[table["metric"] == cell["metric"].iloc[0]])
        panels += setting_panels(study, cell, name, over, _bound(same_metric, study))
    if not panels:
        raise WorkbenchError(f"There is nothing to draw: no job of {sweep!r} was measured.")
    facts = {"note": _note(sweep, table, panels, study), "conclusion": _strongest_row(table)}
    if study in ("effects", "cumulative", "paths", "pairs", "steering"):
        facts["unit"] = unit_of(table)
    for flag in NAMED_BY_LABEL:
        if flag not in settings and flag != over:
            facts[flag] = str(table[flag].iloc[0])
    # panels that differ in the last setting alone stand side by side, to be compared
    across = len(panels)
    if settings:
        across //= len(groups(table, settings[:-1]))
    data = xr.Dataset(attrs=facts)
    return assembled(panels[:MOST_PANELS], data, title, across=across, one_scale="metric" not in settings)


def _table(sweep: Sweep, study: str) -> pd.DataFrame:
    """The numbers that suit the study."""
    if study == "pairs":
        return sweep.synergy()
    if study == "stability":
        return sweep.stability()
    return sweep.means()


def difference_figure(table: pd.DataFrame, title: str | None = None) -> Figure:
    """The largest differences between two sweeps, of `compare_sweeps`, with their intervals."""
    flags = varying(table, [*SETTINGS, "seed", "step"])
    shown = strongest_rows(table.rename(columns={"difference": "mean"}))
    names = []
    for row in shown.to_dict("records"):
        names.append(joined(str(row["what"]), *(_setting(flag, row[flag]) for flag in flags)))
    notes = [f"{flag}: {b} minus {a}" for flag, (a, b) in table.attrs.get("apart", {}).items()]
    if len(shown) < len(table):
        notes.append(f"the {len(shown)} largest of {len(table):,}")
    notes.append("blue: above 0, orange: below")
    unit = unit_of(table)
    facts = xr.Dataset(
        attrs={"note": " · ".join(notes), "conclusion": _largest_difference(shown, names), "unit": unit}
    )
    panel = bar_panel(shown.assign(job=names), "job", "", "difference of effects")
    return assembled([panel], facts, title, across=1, one_scale=True)


def _largest_difference(shown: pd.DataFrame, names: Sequence[str]) -> str:
    """The largest difference with its interval, and what the interval says."""
    sizes = np.abs(shown["mean"].to_numpy(dtype=float))
    if not np.isfinite(sizes).any():
        return "No difference was measured."
    largest = int(np.nanargmax(sizes))
    row = shown.to_dict("records")[largest]
    text = f"The largest difference is {names[largest]} with {row['mean']:.3g}"
    if np.isfinite(row["low"]):
        text += f" {interval_text(float(row['low']), float(row['high']), '.3g')}"
    if row["low"] <= 0 <= row["high"]:
        return f"{text}, which may be none."
    return f"{text}. It was chosen as the largest: expect less on new prompts."


def unit_of(table: pd.DataFrame) -> str:
    """The unit of effects on one built-in metric; "" for several, and for functions of somebody's own."""
    metrics = set(map(str, table["metric"])) if "metric" in table else set()
    if len(metrics) != 1:
        return ""
    known = BUILT_IN.get(metrics.pop())
    return "" if known is None else known.unit


def _setting(flag: str, label: Any) -> str:
    """What a setting is called in the title of a panel."""
    text = "none" if pd.isna(label) else str(label)
    if flag in NAMED_BY_LABEL:
        return text
    return f"{word(flag)} {text}"


def _note(sweep: Sweep, table: pd.DataFrame, panels: Sequence[SheetPanel], study: str) -> str:
    """What a reader needs to know of the numbers, and what is not shown."""
    notes = []
    if study in ("effects", "cumulative", "paths") and sign_of(table):
        notes.append("blue: supports, orange: opposes")
    seeds = {record.get("seed") for record in sweep.records}
    if len(seeds) > 1:
        notes.append(f"over {len(seeds)} seeds")
    if study in ("effects", "pairs", "paths") and "q" in table and bool((table["q"] < ALPHA).any()):
        notes.append(f"dots: q < {ALPHA:g}")
    if len(panels) > MOST_PANELS:
        notes.append(f"the first {MOST_PANELS} of {len(panels)} panels: select them, as in .select()")
    failed = len(sweep.status().failed)
    if failed:
        notes.append(f"{failed} of {len(sweep.records)} jobs failed")
    return " · ".join(notes)


def _strongest_row(table: pd.DataFrame) -> str:
    """The strongest row of a table of effects in a sentence; "" for tables without means."""
    if "mean" not in table or "what" not in table or not bool(table["mean"].notna().any()):
        return ""
    row = table.loc[table["mean"].abs().idxmax()]
    interval = ""
    if "low" in table and np.isfinite(row["low"]):
        interval = f" {interval_text(float(row['low']), float(row['high']), '.3g')}"
    return f"The strongest of {len(table):,} rows is {visible(row['what'])} with {row['mean']:.3g}{interval}."


def _line_column(study: str, table: pd.DataFrame) -> str | None:
    """The column whose labels are a line each, None for a study that is not drawn as lines."""
    if study == "cumulative":
        return "value"
    if study == "steering":
        return "site"
    has_sizes = "n_edges" in table and len(table["n_edges"].drop_duplicates()) > 1
    if study == "methods" and has_sizes:
        return "method"
    return None


def _bound(table: pd.DataFrame, study: str) -> float:
    """The largest magnitude of the numbers that a study is drawn with."""
    column = {"pairs": "synergy", "stability": "jaccard"}.get(study, "mean")
    numbers = table[column].to_numpy(dtype=float)
    return float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0)) or 1.0
