"""`Judge`: scores of a probe's predictions on held-out rows, with intervals over resampled groups of prompts.

The measures themselves are in `metrics`; where scores are written is not known here (`tables`).
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.probes.metrics import resamples, scores


class Judge:
    """Scores of predictions with intervals over resampled groups; cells judged on the same rows share the
    resamples."""

    def __init__(self, groups: Int[np.ndarray, "row"], resampled: int, level: float, seed: int) -> None:
        self.groups, self.resampled, self.seed = groups, resampled, seed
        self.tails = [(1 - level) / 2 * 100, (1 + level) / 2 * 100]
        self._weights: dict[bytes, np.ndarray] = {}

    def __call__(
        self,
        logits: Float[np.ndarray, "output row"],
        codes: Float[np.ndarray, "row"],
        seen: Bool[np.ndarray, "row"],
        n_classes: int,
    ) -> dict[str, float]:
        """Every measure of one probe on its held-out rows, [row] `seen`."""
        key = seen.tobytes()
        if key not in self._weights:
            self._weights[key] = resamples(self.groups[seen], self.resampled, self.seed)
        measures: dict[str, float] = {}
        for metric, values in scores(logits[:, seen], codes[seen], self._weights[key], n_classes).items():
            # The first weighting is that of the rows themselves; the others are resamples.
            measures[metric] = values[0]
            known = values[1:][np.isfinite(values[1:])]
            if len(known):
                low, high = np.percentile(known, self.tails)
                if low == high and metric != "r2":
                    low, high = self._exact(values[0], len(np.unique(self.groups[seen])))
                measures[f"{metric}_low"], measures[f"{metric}_high"] = low, high
        return measures

    def _exact(self, value: float, n: int) -> tuple[float, float]:
        """The exact binomial limits of n groups that are all right, or all wrong; NaN for other scores.

        Where every resample scores the same, percentiles would give an interval of width 0.
        """
        limit = (self.tails[0] / 100) ** (1 / n)
        if value == 1:
            return limit, 1.0
        if value == 0:
            return 0.0, 1 - limit
        return np.nan, np.nan
