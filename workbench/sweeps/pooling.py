"""The numbers of several jobs pooled for a summary: what they measured on one example counts once.

Begin with `samples`. Intervals and p-values are worked out of these by `rows.estimates`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from workbench.sweeps.rows import PROMPTS, groups


def samples(
    rows: pd.DataFrame, members: Sequence[np.ndarray], values: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """For each group of several jobs the numbers that its mean is over; nothing for a single job."""
    stepped = np.zeros(len(rows), dtype=bool)
    if "step" in rows:
        stepped = rows["step"].notna().to_numpy()
    prompts = np.zeros(len(rows), dtype=int)
    for number, same_prompts in enumerate(groups(rows, PROMPTS)):
        prompts[same_prompts] = number
    jobs: list[str] = rows["job"].tolist()
    means = rows["mean"].to_numpy()
    pooled: list[np.ndarray] = []
    for group in members:
        if len(group) == 1:
            pooled.append(np.zeros(0))
            continue
        by_row: dict[int, np.ndarray] = {}
        for row in group:
            by_row[row] = values[jobs[row]]
            # The log keeps the examples of a last step only, and circuits have none: one number each.
            if stepped[row] or not len(by_row[row]):
                by_row[row] = means[row : row + 1]
        pooled.append(_pooled(by_row, prompts))
    return pooled


def _pooled(by_row: Mapping[int, np.ndarray], prompts: np.ndarray) -> np.ndarray:
    """The numbers of several jobs, those on the same example averaged."""
    pools: dict[tuple[int, int], list[np.ndarray]] = {}
    for row, values in by_row.items():
        pools.setdefault((prompts[row], len(values)), []).append(values)
    return np.concatenate([_known_mean(np.stack(pool)) for pool in pools.values()])


def _known_mean(pool: np.ndarray) -> np.ndarray:
    """The mean over jobs of the numbers that are known."""
    known = np.isfinite(pool)
    n = known.sum(0)
    return np.where(known, pool, 0).sum(0) / np.where(n, n, np.nan)
