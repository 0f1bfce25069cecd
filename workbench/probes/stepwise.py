"""Features chosen by repeated fits: `forward`, one at a time, and `add_prune`, many at a time.

Both look for the feature by which the loss of the probe so far falls steepest (`_steepness`), without fitting
a probe for each candidate. Names of selectors are not known here (`selectors`).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.probes.data import Activations, Columns
from workbench.probes.fits import ProbeSettings, fit, padded_rows
from workbench.probes.solver import LOSSES, Loss

Selection = list[Int[Tensor, "column k"]]
"""The chosen features of every column, for every k."""

# Of add-prune: features added to the k best in a round, and the rounds.
ADDED, ROUNDS = 16, 3
"""Of add-prune: features added to the k best at a time, and how often."""


def _steepness(
    activations: Activations, columns: Columns, logits: Tensor, settings: ProbeSettings
) -> Float[Tensor, "column feature"]:
    """|gradient of the loss| by each feature's coefficient, features not scaled; the largest over outputs.

    Args:
        logits: [column, output, train_row] of the probe so far.
    """
    train = padded_rows(columns.train)
    weight = columns.weight(settings.balanced)
    outputs = columns.target.shape[1]
    index = train.index[:, None].expand(-1, outputs, -1)
    residual = (columns.target.gather(2, index) - loss_of(columns, settings).mean(logits)) * train.real[
        :, None
    ]
    # `scatter_add_`, because padding repeats row 0: what it adds there is 0.
    spread = torch.zeros_like(columns.target).scatter_add_(2, index, residual) * weight[:, None]
    # The intercept would take the mean out: what is left is the gradient with the intercept at its best.
    spread = spread - weight[:, None] * spread.sum(2, keepdim=True)
    return activations.sums(spread.flatten(0, 1))[0].unflatten(0, (len(columns), outputs)).abs().amax(1)


def loss_of(columns: Columns, settings: ProbeSettings) -> Loss:
    """The loss of every output: one-vs-rest fits a logistic probe for each class."""
    one_vs_rest = columns.loss == "softmax" and settings.multiclass == "one-vs-rest"
    if one_vs_rest:
        return LOSSES["logistic"]
    return LOSSES[columns.loss]


def base_logits(columns: Columns) -> Float[Tensor, "column output train_row"]:
    """Of the probe without features on balanced classes: all the same."""
    n_rows = padded_rows(columns.train).index.shape[1]
    logits = torch.zeros(len(columns), columns.target.shape[1], n_rows, dtype=torch.float64)
    if columns.loss == "squares":
        logits += (columns.target * columns.weight(False)[:, None]).sum(2, keepdim=True)
    return logits


def deviations(activations: Activations, columns: Columns) -> Float[Tensor, "column feature"]:
    """Standard deviations in the training rows."""
    mean, square = activations.sums(columns.weight(False), powers=(1, 2))
    return (square - mean**2).clamp(min=0).sqrt()


def _candidates(
    activations: Activations,
    columns: Columns,
    logits: Tensor,
    settings: ProbeSettings,
    deviation: Tensor,
    chosen: Tensor,
) -> Float[Tensor, "column feature"]:
    """How steeply the loss falls by each standardised feature; -1 for those that are chosen already."""
    steepness = _steepness(activations, columns, logits, settings) / deviation
    return steepness.nan_to_num(0, 0, 0).scatter(1, chosen, -1.0)


def add_prune(
    activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings
) -> Selection:
    """For every k, `ROUNDS` times: add the features by which the loss falls steepest, refit, keep the k
    strongest."""
    deviation = deviations(activations, columns)
    # Coefficients of standardised features can be compared.
    scaled = replace(settings, standardize=True)
    selection: Selection = []
    for k in ks:
        chosen, logits = torch.zeros(len(columns), 0, dtype=torch.long), base_logits(columns)
        for _ in range(ROUNDS):
            steepness = _candidates(activations, columns, logits, settings, deviation, chosen)
            n_kept = chosen.shape[1]
            n_new = min(ADDED + k - n_kept, activations.n_features - n_kept)
            chosen = torch.cat([chosen, steepness.topk(n_new).indices], 1)
            strength = fit(activations, columns, chosen, scaled).strength
            strongest = strength.argsort(dim=1, descending=True, stable=True)[:, :k]
            chosen = chosen.gather(1, strongest)
            logits = fit(activations, columns, chosen, scaled).training_logits
        selection.append(chosen)
    return selection


def forward(
    activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings
) -> Selection:
    """One feature at a time: the one by which the loss of the probe so far falls steepest; then a refit."""
    deviation = deviations(activations, columns)
    scaled = replace(settings, standardize=True)
    chosen, logits, before = torch.zeros(len(columns), 0, dtype=torch.long), base_logits(columns), None
    for _ in range(max(ks)):
        steepness = _candidates(activations, columns, logits, settings, deviation, chosen)
        chosen = torch.cat([chosen, steepness.argmax(1, keepdim=True)], 1)
        before = fit(activations, columns, chosen, scaled, previous=before)
        logits = before.training_logits
    return [chosen[:, :k] for k in ks]
