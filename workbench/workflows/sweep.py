"""The page of a sweep (`workbench sweep report`): its picture, the strongest effects, failures, and its spec.

`report_sweep` writes it; `strongest` is also what `workbench sweep table` prints. No model is loaded.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError
from workbench.render.plots import plot
from workbench.render.report import report
from workbench.sweeps.rows import varying
from workbench.sweeps.table import Sweep

ROWS = 30
_OF_EFFECTS = ("n_seeds", "n_examples", "mean", "low", "high", "p", "q", "share")
_OF_CIRCUITS = ("jaccard", "least", "most", "edges_least", "edges_most", "faithfulness")
_OF_PAIRS = ("effect_a", "effect_b", "effect_both", "synergy", "low", "high", "p", "q")
_SETTINGS = ["model", "checkpoint", "task", "split", "variant", "seed", "base", "metric", "value", "step"]


def report_sweep(sweep: Sweep, path: str | Path, *, overwrite: bool = False) -> Path:
    """A page of a sweep, finished or not; its footer names the command that ran the sweep.

    Raises:
        OutputExists: the page is there already.
    """
    # A sweep that is still running has a page too, of what is measured so far.
    status = sweep.status()
    sections: list[tuple[Any, ...]] = [
        ("Picture", *_or_reason(lambda: (plot(sweep), ""))),
        ("Strongest", *_or_reason(lambda: strongest(sweep))),
    ]
    if len(status.failed):
        sections.append(("Failures", *_failures(status.failed)))
    sections.append(("Asked", _spec_table(sweep), ""))
    title = f"Sweep {sweep.folder.resolve().name}"
    return report(
        sections, path, title=title, subtitle=str(status), command=sweep.command, overwrite=overwrite
    )


def _failures(failed: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The failed jobs with the settings that tell them apart, and a caption."""
    # Empty columns would only widen the table.
    failures = failed.dropna(axis=1, how="all")
    settings = failures.columns.difference(["job", "status", "what", "error"]).tolist()
    columns = ["status", "what", *varying(failures, settings)]
    if "error" in failures:  # last, because it is the widest
        columns.append("error")
    caption = ""
    if len(failures) > ROWS:
        caption = f"The first {ROWS} of {len(failures)}."
    return pd.DataFrame(failures[columns]).head(ROWS), caption


def _spec_table(sweep: Sweep) -> pd.DataFrame | str:
    rows = []
    for name, value in sweep.spec.items():
        if value not in (None, [], {}):
            # Texts as they are: JSON would put them in quotes.
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    if not rows:
        return "Nothing is known."
    return pd.DataFrame(rows, columns=["field", "value"])


def strongest(sweep: Sweep, most: int = ROWS) -> tuple[pd.DataFrame, str]:
    """The strongest rows of a sweep, seeds averaged, with the columns that tell them apart; and a caption."""
    summary = _summary(sweep)
    table, by = summary.table, summary.by
    names = [name for name in ("site_a", "site_b", "what", "added") if name in table]
    settings = varying(table, _SETTINGS)
    numbers = [name for name in summary.numbers if name in table]
    # -1 is below every size, so that NaN comes last.
    size = np.nan_to_num(np.abs(table[by].to_numpy(dtype=float)), nan=-1)
    order = np.argsort(-size, kind="stable")[:most]
    caption = (
        f"The {len(order)} of {len(table)} rows with the largest {by}; 95 % bootstrap intervals, "
        "q after Benjamini and Hochberg."
    )
    shown = pd.DataFrame(table.loc[order.tolist(), [*names, *settings, *numbers]])
    return shown.dropna(axis=1, how="all").reset_index(drop=True), caption


@dataclass(frozen=True)
class _Summary:
    """The table of a study: the column that it is ordered by, and those of its numbers."""

    table: pd.DataFrame
    by: str
    numbers: tuple[str, ...]


def _summary(sweep: Sweep) -> _Summary:
    study = str(sweep.rows["study"].iloc[0]) if len(sweep.rows) else ""
    if study == "stability":
        return _Summary(sweep.stability(), "jaccard", _OF_CIRCUITS)
    if study == "pairs":
        return _Summary(sweep.synergy(), "synergy", _OF_PAIRS)
    return _Summary(sweep.summary(), "mean", _OF_EFFECTS)


def _or_reason(make: Callable[[], tuple[Any, str]]) -> tuple[Any, str]:
    """What is shown and its caption, or the message that says why there is nothing."""
    try:
        return make()
    except WorkbenchError as error:
        return str(error), ""
