"""The rows of a sweep that a reader wants first: what `workbench sweep table`, its report and notebooks show."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.sweeps.rows import varying
from workbench.sweeps.table import Sweep

ROWS = 30
_OF_EFFECTS = ("n_seeds", "n_examples", "mean", "low", "high", "p", "q", "share")
_OF_CIRCUITS = ("jaccard", "least", "most", "edges_least", "edges_most", "faithfulness")
_OF_PAIRS = ("effect_a", "effect_b", "effect_both", "synergy", "low", "high", "p", "q")
_SETTINGS = ["model", "checkpoint", "task", "split", "variant", "seed", "base", "metric", "value", "step"]


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
