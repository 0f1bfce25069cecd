"""How good predictions are (`scores`, under `resamples` of the groups), and what they cost in `bits`.

Everything is computed for all bootstrap draws at once: a draw is a weighting of the rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

METRICS = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "average_precision", "r2")
"""`r2` is for numbers, the others for classes.

With several classes f1, roc_auc and average_precision are means over one-vs-rest, and balanced accuracy is
the mean recall.
"""


def resamples(groups: Int[np.ndarray, "row"], draws: int, seed: int) -> Float[np.ndarray, "draw row"]:
    """Weights of rows: first all 1, then as often as the row's group was drawn with replacement."""
    owner = np.unique(groups, return_inverse=True)[1]
    n = owner.max() + 1
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    return np.concatenate([np.ones((1, len(owner))), counts[:, owner]]).astype(float)


def scores(
    logits: Float[np.ndarray, "output row"],
    codes: Float[np.ndarray, "row"],
    weight: Float[np.ndarray, "draw row"],
    n_classes: int,
) -> Mapping[str, Float[np.ndarray, "draw"]]:
    """Every metric that applies under each weighting of the rows; NaN where a class that it needs is absent.

    Args:
        logits: of the positive class, of each class, or the predicted number (`n_classes` 2, more, 0).
        codes: index of the class, or the number.
        weight: as `resamples` gives it.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        if not n_classes:
            error = weight @ (codes - logits[0]) ** 2
            mean = weight @ codes / weight.sum(1)
            return {"r2": 1 - error / (weight @ codes**2 - weight.sum(1) * mean**2)}
        binary = n_classes == 2
        predicted = (logits[0] >= 0).astype(int) if binary else logits.argmax(0)
        is_class, is_predicted = (np.arange(n_classes)[:, None] == labels for labels in (codes, predicted))
        # A draw is a row of weights, so that one product of matrices counts for all draws: [draw, class].
        hits, members, claims = (
            weight @ table.T.astype(float) for table in (is_class & is_predicted, is_class, is_predicted)
        )
        f1 = 2 * hits / (members + claims)
        if binary:
            # Without the positive class, a probe that never predicts it has an F1 of 0 by convention.
            f1_score = np.where(members[:, 1] + claims[:, 1] > 0, f1[:, 1], 0.0)
            rankings = [_ranking(logits[0], is_class[1], weight)]
        else:
            f1_score = _known_mean(f1)
            rankings = [_ranking(*pair, weight) for pair in zip(logits, is_class, strict=True)]
        return {
            "accuracy": hits.sum(1) / weight.sum(1),
            "balanced_accuracy": _known_mean(hits / members),
            "f1": f1_score,
            "roc_auc": np.mean([ranking.auc for ranking in rankings], axis=0),
            "average_precision": np.mean([ranking.average_precision for ranking in rankings], axis=0),
        }


def _known_mean(values: np.ndarray) -> np.ndarray:
    """[draw]: the mean over classes that a draw has."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(1) / known.sum(1)


@dataclass(frozen=True)
class _Ranking:
    """[draw]: how well a score ranks the positive rows above the others."""

    auc: np.ndarray
    average_precision: np.ndarray


def _ranking(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> _Ranking:
    """ROC-AUC and average precision; rows of equal score share one threshold."""
    order = np.argsort(score)
    ordered, is_positive = score[order], positive[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    # No threshold tells rows of equal score apart, so weights are summed at each score: [draw, threshold].
    positives, negatives = weight[:, order] * is_positive, weight[:, order] * ~is_positive
    if len(starts) < len(order):
        positives, negatives = (np.add.reduceat(side, starts, axis=1) for side in (positives, negatives))
    positives_up_to, negatives_up_to = np.cumsum(positives, 1), np.cumsum(negatives, 1)
    n_positive, n_negative = positives_up_to[:, -1], negatives_up_to[:, -1]
    # A positive row beats the negatives below it, and half of those that tie with it.
    auc = (positives * (negatives_up_to - negatives / 2)).sum(1) / (n_positive * n_negative)
    positives_above = n_positive[:, None] - positives_up_to + positives
    all_above = positives_above + n_negative[:, None] - negatives_up_to + negatives
    precision = np.divide(positives_above, all_above, out=np.zeros_like(positives_above), where=all_above > 0)
    return _Ranking(auc, (positives * precision).sum(1) / n_positive)


def bits(
    logits: Float[Tensor, "output row"], codes: Int[Tensor, "row"], n_classes: int
) -> Float[Tensor, "row"]:
    """-log2 of the probability given to the label of each row."""
    if n_classes == 2:
        return torch.nn.functional.softplus(torch.where(codes == 1, -logits[0], logits[0])) / np.log(2)
    return -logits.log_softmax(0).gather(0, codes[None])[0] / np.log(2)
