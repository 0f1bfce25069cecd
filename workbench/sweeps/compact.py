"""Rows of a sweep as a reader wants them: `compact`.

The largest first, with the columns that tell rows apart; what is the same in all of them becomes a caption.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.sweeps.rows import varying

OF_EFFECTS = ("mean", "low", "high", "q")
OF_CIRCUITS = ("jaccard", "least", "most", "edges_least", "edges_most", "faithfulness")
OF_PAIRS = ("effect_a", "effect_b", "effect_both", "synergy", "low", "high", "q")
_NAMES = ("site_a", "site_b", "what", "added")
_SETTINGS = (
    "task", "value", "model", "checkpoint", "split", "variant", "seed", "base", "metric", "step", "n_seeds",
    "n_examples",
)  # fmt: skip


def compact(table: pd.DataFrame, by: str, numbers: Sequence[str]) -> pd.DataFrame:
    """The rows in the order of the size of `by`, with few columns and attrs["caption"].

    Args:
        numbers: columns that are kept beside the names and the settings that differ.
    """
    names = [name for name in _NAMES if name in table]
    settings = varying(table, _SETTINGS)
    kept = [name for name in numbers if name in table]
    # -1 is below every size, so that NaN comes last.
    size = np.nan_to_num(np.abs(table[by].to_numpy(dtype=float)), nan=-1)
    order = np.argsort(-size, kind="stable").tolist()
    shown = pd.DataFrame(table.loc[order, [*names, *settings, *kept]])
    shown = shown.dropna(axis=1, how="all").reset_index(drop=True)
    shown.attrs["caption"] = _caption(table, [name for name in _SETTINGS if name not in settings], by)
    return shown


def _caption(table: pd.DataFrame, constant: Sequence[str], by: str) -> str:
    """What all rows have in common, and how they are ordered."""
    facts = []
    for name in constant:
        value = table[name].iloc[0] if name in table and len(table) else None
        if value is not None and not pd.isna(value):
            facts.append(f"{name.removeprefix('n_')} {value}")
    order = f"{len(table)} rows by the size of their {by}; 95 % bootstrap intervals, q after Benjamini and Hochberg."
    return f"{order} All with {', '.join(facts)}." if facts else order
