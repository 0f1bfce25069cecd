"""The page of a sweep (`workbench sweep report`): its picture, the strongest effects, failures, and what was asked."""

import json
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
_NUMBERS = ("n_seeds", "n_examples", "mean", "low", "high", "p", "q", "share")


def report_sweep(sweep: Sweep, path: str | Path, *, overwrite: bool = False) -> Path:
    """A page of a sweep, finished or not; its footer names the command that ran the sweep.

    Raises:
        OutputExists: the page is there already.
    """
    status = sweep.status()
    sections: list[tuple[Any, ...]] = [("Picture", *_or_why(lambda: (plot(sweep), "")))]
    sections.append(("Strongest", *_or_why(lambda: strongest(sweep))))
    failures = status.failed.dropna(axis=1, how="all")
    if len(failures):
        kept = [
            "status",
            "what",
            *varying(failures, failures.columns.difference(["job", "status", "what", "error"]).tolist()),
        ]
        kept += ["error"] if "error" in failures else []
        more = f"The first {ROWS} of {len(failures)}." if len(failures) > ROWS else ""
        sections.append(("Failures", pd.DataFrame(failures[kept]).head(ROWS), more))
    asked = {name: value for name, value in sweep.spec.items() if value not in (None, [], {})}
    spec = pd.DataFrame(
        [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in asked.items()]
    )
    sections.append(
        ("Asked", spec.set_axis(["field", "value"], axis=1) if len(spec) else "Nothing is known.", "")
    )
    title = f"Sweep {sweep.folder.resolve().name}"
    return report(
        sections, path, title=title, subtitle=str(status), command=sweep.command, overwrite=overwrite
    )


def strongest(sweep: Sweep, most: int = ROWS) -> tuple[pd.DataFrame, str]:
    """The strongest rows of a sweep, seeds averaged, with the columns that tell them apart; and what is shown."""
    study = str(sweep.rows["study"].iloc[0]) if len(sweep.rows) else ""
    if study == "stability":
        table, by, numbers = (
            sweep.stability(),
            "jaccard",
            ["jaccard", "least", "most", "edges_least", "edges_most", "faithfulness"],
        )
    elif study == "pairs":
        table, by = sweep.synergy(), "synergy"
        numbers = ["effect_a", "effect_b", "effect_both", "synergy", "low", "high", "p", "q"]
    else:
        table, by, numbers = sweep.summary(), "mean", list(_NUMBERS)
    told = [name for name in ("site_a", "site_b", "what", "added") if name in table]
    flags = varying(
        table, ["model", "checkpoint", "task", "split", "variant", "seed", "base", "metric", "value", "step"]
    )
    size = np.nan_to_num(np.abs(table[by].to_numpy(dtype=float)), nan=-1)
    order = np.argsort(-size, kind="stable")[:most]
    caption = f"The {len(order)} of {len(table)} rows with the largest {by}; 95 % bootstrap intervals, q after Benjamini and Hochberg."
    shown = pd.DataFrame(
        table.loc[order.tolist(), [*told, *flags, *(name for name in numbers if name in table)]]
    )
    return shown.dropna(axis=1, how="all").reset_index(drop=True), caption


def _or_why(make: Any) -> tuple[Any, str]:
    """What is shown and its caption, or the message that says why there is nothing."""
    try:
        return make()
    except WorkbenchError as error:
        return str(error), ""
