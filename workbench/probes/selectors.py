"""Which k features a probe gets: `SELECTORS`, by name. They see training rows only, all columns at once.

A selector is called with (activations, columns, ks, settings) and gives [column, k] feature indices for every
k. `welch`, `mean-difference` and `mutual-information` rank features once, from sums over one or two passes;
`forward` and `add-prune` fit as they go (`stepwise`); `l1` follows the path of an L1 penalty (`l1_path`).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.probes.data import ROUNDING, Activations, Columns, variance_of
from workbench.probes.fits import ProbeSettings
from workbench.probes.l1_path import l1
from workbench.probes.stepwise import Selection, add_prune, forward

Selector = Callable[[Activations, Columns, Sequence[int], ProbeSettings], Selection]
# Bins of equal frequency, for mutual information; a target that is a number gets a quarter as many.
BINS = 16
"""Bins of equal frequency, for mutual information; a target that is a number falls into a quarter of them."""
# Rows that the edges of bins are taken from: quantiles of more of them hardly move.
SAMPLE = 4096


def _ranked(score: Callable[[Activations, Columns], Tensor]) -> Selector:
    """A selector that takes the k features of the highest scores [column, feature]; ties go to the lower
    index."""

    def select(
        activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings
    ) -> Selection:
        """The k features of the highest scores."""
        order = torch.nan_to_num(score(activations, columns)).argsort(dim=1, descending=True, stable=True)
        return [order[:, :k] for k in ks]

    return select


def _difference(
    activations: Activations, columns: Columns, *, standardised: bool
) -> Float[Tensor, "column feature"]:
    """|mean of a class - mean of the rest|, over its standard error for Welch's t; the largest over classes.

    For numbers, the absolute covariance with the feature, or correlation.
    """
    if columns.loss == "squares":
        return _covariance(activations, columns, standardised=standardised)
    # Variances need a second pass over squares; the plain difference of means does not.
    powers = (1, 2)[: 1 + standardised]
    members = columns.indicator * torch.from_numpy(columns.train).double()[:, None]
    # Columns and classes share one pass over the activations: [power, column, class, feature].
    sums = activations.sums(members.flatten(0, 1), powers=powers, origin=activations.origin)
    sums = sums.unflatten(1, members.shape[:2])
    counts = members.sum(2)[:, :, None]
    rest_sums, rest_counts = sums.sum(2, keepdim=True) - sums, counts.sum(1, keepdim=True) - counts
    classes = slice(None)
    if columns.n_classes == 2:
        classes = slice(1, None)  # the second is the rest of the first, and says the same
    n, n_rest = counts[:, classes], rest_counts[:, classes]
    moments, rest_moments = sums[:, :, classes] / n, rest_sums[:, :, classes] / n_rest
    gap = moments[0] - rest_moments[0]
    # Of a feature that never varies, rounding over rounding could be any t.
    gap = torch.where(gap.abs() > ROUNDING * torch.maximum(moments[0].abs(), rest_moments[0].abs()), gap, 0.0)
    if standardised:
        variance, rest_variance = (
            variance_of(*moment) / (count - 1).clamp(min=1)
            for moment, count in ((moments, n), (rest_moments, n_rest))
        )
        gap = gap / (variance + rest_variance).sqrt()
    # A feature without variance that differs separates the classes perfectly: t is infinite and ranks first.
    return torch.nan_to_num(gap.abs(), posinf=torch.finfo(gap.dtype).max).amax(1)


def _covariance(
    activations: Activations, columns: Columns, *, standardised: bool
) -> Float[Tensor, "column feature"]:
    """The absolute covariance of a number with each feature, or their correlation up to the number's own
    deviation."""
    train = torch.from_numpy(columns.train).double()
    n = train.sum(1, keepdim=True)
    target = columns.target[:, 0]
    centred = (target - (target * train).sum(1, keepdim=True) / n) * train
    covariance = activations.sums(centred, origin=activations.origin)[0] / n
    if not standardised:
        return covariance.abs()
    variance = variance_of(*activations.sums(train, powers=(1, 2), origin=activations.origin) / n)
    # What does not vary tells nothing of the number; its covariance is rounding.
    return torch.where(variance > 0, covariance / variance.sqrt(), 0.0).abs()


def _mutual_information(activations: Activations, columns: Columns) -> Float[Tensor, "column feature"]:
    """Mutual information (nats) of the class and the feature's bin.

    Bins are of equal frequency over all rows, blind to labels.
    """
    edges = _bin_edges(activations)
    # Held-out rows have no part in the selection: [column, class, row].
    members = _classes(columns) * torch.from_numpy(columns.train)[:, None]
    flat = members.flatten(0, 1)
    counts = flat.new_zeros(BINS, len(flat), activations.n_features)
    for rows, x in activations.blocks():
        below = torch.zeros_like(x)
        for b in range(BINS):
            # The last bin has no upper edge, so every number is below it.
            up_to_edge = torch.ones_like(x)
            if b < BINS - 1:
                up_to_edge = (x <= edges[b]).double()
            counts[b] += flat[:, rows] @ (up_to_edge - below)
            below = up_to_edge
    # P(bin, class) is P(bin | class) P(class), and counts give the first: [bin, column, class, feature].
    joint = (counts / flat.sum(1).clamp(min=1)[:, None]).unflatten(1, members.shape[:2])
    joint = joint * (members.sum(2) / members.sum((1, 2))[:, None])[:, :, None]
    independent = joint.sum(0, keepdim=True) * joint.sum(2, keepdim=True)
    # The floor keeps 0 log(0 / 0) at 0.
    return torch.special.xlogy(joint, joint / independent.clamp(min=1e-300)).sum((0, 2))


def _bin_edges(activations: Activations) -> Float[Tensor, "edge feature"]:
    """The inner edges of bins of equal frequency, from evenly spaced rows."""
    n_rows = len(activations.prompt)
    sample = torch.linspace(0, n_rows - 1, min(n_rows, SAMPLE)).long()
    blocks: list[Tensor] = []
    for rows, x in activations.blocks():
        blocks.append(x[sample[(sample >= rows.start) & (sample < rows.stop)] - rows.start])
    kept = torch.cat(blocks)
    return kept.quantile(torch.linspace(0, 1, BINS + 1, dtype=kept.dtype)[1:-1], dim=0)


def _classes(columns: Columns) -> Float[Tensor, "column class row"]:
    """1 where a row is of a class; numbers fall into bins by their rank among the training rows."""
    if columns.loss != "squares":
        return columns.indicator
    train, n_bins = torch.from_numpy(columns.train), BINS // 4
    rank = columns.target[:, 0].masked_fill(~train, torch.inf).argsort(dim=1).argsort(dim=1)
    number_bin = (rank * n_bins // train.sum(1, keepdim=True)).clamp(max=n_bins - 1)
    return torch.nn.functional.one_hot(number_bin, n_bins).mT.double()


SELECTORS: dict[str, Selector] = {
    "welch": _ranked(partial(_difference, standardised=True)),
    "mean-difference": _ranked(partial(_difference, standardised=False)),
    "mutual-information": _ranked(_mutual_information),
    "l1": l1,
    "forward": forward,
    "add-prune": add_prune,
}
