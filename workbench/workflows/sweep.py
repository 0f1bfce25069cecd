"""The page of a sweep (`workbench sweep report`): its picture, the strongest effects, failures, and its spec.

`report_sweep` writes it, with the rows of `sweeps.strongest`. No model is loaded.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.render.page import KeyNumber, Lead
from workbench.render.plots import plot
from workbench.render.report import report
from workbench.sweeps.rows import varying
from workbench.sweeps.strongest import ROWS, strongest
from workbench.sweeps.table import Sweep
from workbench.text import listed


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
    return report(sections, path, title=title, lead=_lead(sweep), command=sweep.command, overwrite=overwrite)


def _lead(sweep: Sweep) -> Lead:
    """What was varied, how far it is, the strongest row, and what to be careful about."""
    status = sweep.status()
    varied = {name: value for name, value in sweep.spec.items() if isinstance(value, list) and len(value) > 1}
    words = [f"{len(value)} {name}" for name, value in varied.items()]
    asked = f"{listed(words)}: {status}." if words else f"{status}."
    against, numbers, found = [], [], "No effect to name: see the rows below."
    if status.failures:
        against.append(f"{len(status.failures)} jobs failed or gave no number: they are listed below.")
    if status.remaining:
        against.append(f"{status.remaining:,} jobs have not ended: these are the results so far.")
    try:
        rows, _ = strongest(sweep, 1)
    except WorkbenchError as error:
        return Lead(asked=asked, found=str(error), verdict="bad", against=against)
    row = rows.to_dict("records")[0]
    if "mean" in row:
        interval = f"[{row['low']:.3g}, {row['high']:.3g}]" if "low" in row else ""
        beside = f"q = {row['q']:.2g}, corrected for the number of rows" if "q" in row else ""
        numbers.append(KeyNumber(f"Strongest: {row['what']}", f"{row['mean']:.3g}", interval, beside))
        found = f"The strongest is {row['what']} with {row['mean']:.3g} {interval}."
        against.append("The strongest of many rows is large in part by chance: expect less on new prompts.")
    return Lead(asked=asked, found=found, numbers=numbers, against=against)


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


def _or_reason(make: Callable[[], tuple[Any, str]]) -> tuple[Any, str]:
    """What is shown and its caption, or the message that says why there is nothing."""
    try:
        return make()
    except WorkbenchError as error:
        return str(error), ""
