"""How good predictions are, with bootstrap intervals over held-out groups, and how many bits they leave to send."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

METRICS = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "average_precision", "r2")
"""`r2` for numbers, the others for classes; with several classes f1, roc_auc and average_precision are means over
one-vs-rest, and balanced accuracy is the mean recall."""


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
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        if not n_classes:
            error = weight @ (codes - logits[0]) ** 2
            mean = weight @ codes / weight.sum(1)
            return {"r2": 1 - error / (weight @ codes**2 - weight.sum(1) * mean**2)}
        said = (logits[0] >= 0).astype(int) if n_classes == 2 else logits.argmax(0)
        truth, guess = (np.arange(n_classes)[:, None] == given for given in (codes, said))
        hits, members, claims = (weight @ table.T.astype(float) for table in (truth & guess, truth, guess))
        recall, f1 = hits / members, 2 * hits / (members + claims)
        ranked = [(logits[0], truth[1])] if n_classes == 2 else list(zip(logits, truth, strict=True))
        curves = [_ranking(score, positive, weight) for score, positive in ranked]
        return {
            "accuracy": hits.sum(1) / weight.sum(1),
            "balanced_accuracy": _known_mean(recall),
            "f1": np.where(members[:, 1] + claims[:, 1] > 0, f1[:, 1], 0.0)
            if n_classes == 2
            else _known_mean(f1),
            "roc_auc": np.mean([auc for auc, _ in curves], axis=0),
            "average_precision": np.mean([precision for _, precision in curves], axis=0),
        }


def _known_mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(1) / known.sum(1)


def _ranking(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC-AUC and average precision; rows of equal score share one threshold."""
    order = np.argsort(score)
    ordered, is_positive = score[order], positive[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ups, downs = weight[:, order] * is_positive, weight[:, order] * ~is_positive
    if len(starts) < len(order):
        ups, downs = (np.add.reduceat(side, starts, axis=1) for side in (ups, downs))
    reached, passed = np.cumsum(ups, 1), np.cumsum(downs, 1)
    total, rest = reached[:, -1], passed[:, -1]
    auc = (ups * (passed - downs / 2)).sum(1) / (total * rest)
    above, all_above = (
        total[:, None] - reached + ups,
        (total + rest)[:, None] - reached - passed + ups + downs,
    )
    precision = np.divide(above, all_above, out=np.zeros_like(above), where=all_above > 0)
    return auc, (ups * precision).sum(1) / total


def bits(
    logits: Float[Tensor, "output row"], codes: Int[Tensor, "row"], n_classes: int
) -> Float[Tensor, "row"]:
    """-log2 of the probability given to the label of each row."""
    if n_classes == 2:
        return torch.nn.functional.softplus(torch.where(codes == 1, -logits[0], logits[0])) / np.log(2)
    return -logits.log_softmax(0).gather(0, codes[None])[0] / np.log(2)
