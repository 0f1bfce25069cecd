"""Which k features a probe gets: `SELECTORS`, each by its name. All look at training rows only, for all columns at once.

A selector is called with (activations, columns, ks, settings) and gives [column, k] feature indices for every k. `welch`,
`mean-difference` and `mutual-information` rank features once, from sums over one or two passes; `forward` and `add-prune`
fit as they go; `l1` follows the path of an L1 penalty.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.probes.data import Activations, Columns
from workbench.probes.fits import ProbeSettings, fit, padded_rows
from workbench.probes.solver import LOSSES

Selection = list[Int[Tensor, "column k"]]
Selector = Callable[[Activations, Columns, Sequence[int], ProbeSettings], Selection]
BINS = 16
"""Of equal frequency, for mutual information; a number as the target falls into a quarter of them."""
PENALTIES, STEPS, LEAST = 24, 40, 0.02
"""Of the L1 path: how many penalties, proximal steps at each, and the smallest as a share of the largest."""
ADDED, ROUNDS = 16, 3
"""Of add-prune: features added to the k best at a time, and how often."""


def _ranked(score: Callable[[Activations, Columns], Tensor]) -> Selector:
    """A selector that takes the k features of the highest scores [column, feature]; ties go to the lower index."""

    def select(
        activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings
    ) -> Selection:
        order = torch.nan_to_num(score(activations, columns)).argsort(dim=1, descending=True, stable=True)
        return [order[:, :k] for k in ks]

    return select


def _difference(
    activations: Activations, columns: Columns, *, standardised: bool
) -> Float[Tensor, "column feature"]:
    """|mean of a class - mean of the rest|, over its standard error for Welch's t; the largest over classes.

    For numbers, the absolute covariance with the feature, or correlation.
    """
    train = torch.from_numpy(columns.train).double()
    powers = (1, 2) if standardised else (1,)
    if columns.loss == "squares":
        n = train.sum(1, keepdim=True)
        target = columns.target[:, 0]
        centred = (target - (target * train).sum(1, keepdim=True) / n) * train
        covariance = activations.sums(centred)[0] / n
        sums = activations.sums(train, powers=powers) / n
        return (
            covariance / (sums[1] - sums[0] ** 2).clamp(min=0).sqrt() if standardised else covariance
        ).abs()
    members = columns.indicator * train[:, None]
    sums = activations.sums(members.flatten(0, 1), powers=powers).unflatten(1, members.shape[:2])
    counts = members.sum(2)[:, :, None]
    of_rest = (sums.sum(2, keepdim=True) - sums, counts.sum(1, keepdim=True) - counts)
    several = slice(1, None) if columns.n_classes == 2 else slice(None)
    moments = [
        (total[:, :, several] / n[:, several], n[:, several]) for total, n in ((sums, counts), of_rest)
    ]
    gap = moments[0][0][0] - moments[1][0][0]
    if standardised:
        errors = [(mean[1] - mean[0] ** 2).clamp(min=0) / (n - 1).clamp(min=1) for mean, n in moments]
        gap = gap / (errors[0] + errors[1]).sqrt()
    return torch.nan_to_num(gap.abs(), posinf=torch.finfo(gap.dtype).max).amax(1)


def _mutual_information(activations: Activations, columns: Columns) -> Float[Tensor, "column feature"]:
    """Mutual information (nats) of the class and the feature's bin. Bins are of equal frequency over all rows, blind to labels."""
    sample = torch.linspace(0, len(activations.prompt) - 1, min(len(activations.prompt), 4096)).long()
    kept = torch.cat(
        [
            x[sample[(sample >= rows.start) & (sample < rows.stop)] - rows.start]
            for rows, x in activations.blocks()
        ]
    )
    edges = kept.quantile(torch.linspace(0, 1, BINS + 1, dtype=kept.dtype)[1:-1], dim=0)
    members = columns.indicator
    if columns.loss == "squares":
        seen = torch.from_numpy(columns.train)
        rank = columns.target[:, 0].masked_fill(~seen, torch.inf).argsort(dim=1).argsort(dim=1)
        quarter = (rank * (BINS // 4) // seen.sum(1, keepdim=True)).clamp(max=BINS // 4 - 1)
        members = torch.nn.functional.one_hot(quarter, BINS // 4).mT.double()
    members = members * torch.from_numpy(columns.train)[:, None]
    flat = members.flatten(0, 1)
    counts = flat.new_zeros(BINS, len(flat), activations.n_features)
    for rows, x in activations.blocks():
        below = torch.zeros_like(x)
        for b in range(BINS):
            reached = (x <= edges[b]).double() if b < BINS - 1 else torch.ones_like(x)
            counts[b] += flat[:, rows] @ (reached - below)
            below = reached
    joint = (counts / flat.sum(1).clamp(min=1)[:, None]).unflatten(1, members.shape[:2])
    joint = joint * (members.sum(2) / members.sum((1, 2))[:, None])[:, :, None]
    expected = joint.sum(0, keepdim=True) * joint.sum(2, keepdim=True)
    return torch.special.xlogy(joint, joint / expected.clamp(min=1e-300)).sum((0, 2))


def _slopes(
    activations: Activations, columns: Columns, logits: Tensor, settings: ProbeSettings
) -> Float[Tensor, "column feature"]:
    """|gradient of the loss| by each feature not yet in the probe, in units of its standard deviation, largest over outputs.

    Args:
        logits: [column, output, train_row] of the probe so far.
    """
    rows, real = padded_rows(columns.train)
    weight = columns.weight(settings.balanced)
    outputs = columns.target.shape[1]
    mean = LOSSES["logistic" if _one_vs_rest(columns, settings) else columns.loss].mean(logits)
    residual = (columns.target.gather(2, rows[:, None].expand(-1, outputs, -1)) - mean) * real[:, None]
    spread = torch.zeros_like(columns.target).scatter_add_(2, rows[:, None].expand(-1, outputs, -1), residual)
    spread = spread * weight[:, None]
    spread = spread - weight[:, None] * spread.sum(2, keepdim=True)
    return activations.sums(spread.flatten(0, 1))[0].unflatten(0, (len(columns), outputs)).abs().amax(1)


def _one_vs_rest(columns: Columns, settings: ProbeSettings) -> bool:
    return columns.loss == "softmax" and settings.multiclass == "one-vs-rest"


def _base_logits(columns: Columns) -> Float[Tensor, "column output train_row"]:
    """Of the probe without features on balanced classes: all the same."""
    rows, _ = padded_rows(columns.train)
    logits = torch.zeros(len(columns), columns.target.shape[1], rows.shape[1], dtype=torch.float64)
    if columns.loss == "squares":
        logits += (columns.target * columns.weight(False)[:, None]).sum(2, keepdim=True)
    return logits


def _deviations(
    activations: Activations, columns: Columns, settings: ProbeSettings
) -> Float[Tensor, "column feature"]:
    sums = activations.sums(columns.weight(False), powers=(1, 2))
    return (sums[1] - sums[0] ** 2).clamp(min=0).sqrt()


def _greedy(
    activations: Activations,
    columns: Columns,
    ks: Sequence[int],
    settings: ProbeSettings,
    *,
    added: int,
    rounds: int,
) -> Selection:
    """For every k: add the features that the loss falls steepest by, refit, keep the k strongest, and again."""
    deviation = _deviations(activations, columns, settings)
    scaled = ProbeSettings(**{**settings.__dict__, "standardize": True})
    selection = []
    for k in ks:
        chosen, logits = torch.zeros(len(columns), 0, dtype=torch.long), _base_logits(columns)
        for _ in range(rounds):
            slopes = (
                (_slopes(activations, columns, logits, settings) / deviation)
                .nan_to_num(0, 0, 0)
                .scatter(1, chosen, -1.0)
            )
            more = min(added + k - chosen.shape[1], activations.n_features - chosen.shape[1])
            chosen = torch.cat([chosen, slopes.topk(more).indices], 1)
            chosen = chosen.gather(
                1,
                fit(activations, columns, chosen, scaled).strength.argsort(
                    dim=1, descending=True, stable=True
                )[:, :k],
            )
            logits = fit(activations, columns, chosen, scaled).training_logits
        selection.append(chosen)
    return selection


def _forward(
    activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings
) -> Selection:
    """One feature at a time: the one by which the loss of the probe so far falls steepest; then a refit."""
    deviation = _deviations(activations, columns, settings)
    scaled = ProbeSettings(**{**settings.__dict__, "standardize": True})
    chosen, logits, before = torch.zeros(len(columns), 0, dtype=torch.long), _base_logits(columns), None
    for _ in range(max(ks)):
        slopes = (
            (_slopes(activations, columns, logits, settings) / deviation)
            .nan_to_num(0, 0, 0)
            .scatter(1, chosen, -1.0)
        )
        chosen = torch.cat([chosen, slopes.argmax(1, keepdim=True)], 1)
        before = fit(activations, columns, chosen, scaled, previous=before)
        logits = before.training_logits
    return [chosen[:, :k] for k in ks]


def _l1(activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings) -> Selection:
    """Features by when they enter the path of an L1-penalised fit on standardised features, then by their coefficient.

    Proximal gradient steps with momentum (Beck and Teboulle 2009) for all columns together, from the largest penalty down.
    """
    x, deviation = activations.held.double(), _deviations(activations, columns, settings)
    weight, target, outputs = columns.weight(settings.balanced), columns.target, columns.target.shape[1]
    centre = activations.sums(columns.weight(False))[0]
    inverse = torch.where(deviation > 0, 1 / deviation, 0.0)
    loss = LOSSES["logistic" if _one_vs_rest(columns, settings) else columns.loss]
    owner = torch.arange(len(columns)).repeat_interleave(outputs)

    def slopes(at: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        raw = at * inverse[owner]
        logits = raw @ x.T + (intercept - (raw * centre[owner]).sum(1))[:, None]
        residual = (loss.mean(logits.unflatten(0, (-1, outputs))) - target) * weight[:, None]
        flat = residual.flatten(0, 1)
        return (flat @ x - flat.sum(1, keepdim=True) * centre[owner]) * inverse[owner], flat.sum(1)

    at = x.new_zeros(len(owner), x.shape[1])
    intercept = _base_logits(columns)[:, :, :1].flatten()
    largest = slopes(at, intercept)[0].unflatten(0, (-1, outputs)).abs().amax((1, 2))
    size = 1 / (
        _curvature(x, columns, weight, centre, inverse)
        * (1.0 if columns.loss == "squares" else 0.5 if outputs > 1 else 0.25)
    )
    entered = torch.full((len(columns), x.shape[1]), float(PENALTIES))
    for turn, share in enumerate(
        torch.logspace(0, torch.tensor(LEAST).log10().item(), PENALTIES, dtype=x.dtype)
    ):
        penalty = (largest * share * size)[owner, None]
        look, look_intercept, pace = at, intercept, 1.0
        for _ in range(STEPS):
            by, by_intercept = slopes(look, look_intercept)
            step = look - size[owner, None] * by
            nearer = step.sign() * (step.abs() - penalty).clamp(min=0)
            level = look_intercept - size[owner] * by_intercept
            faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
            look = nearer + (pace - 1) / faster * (nearer - at)
            look_intercept = level + (pace - 1) / faster * (level - intercept)
            at, intercept, pace = nearer, level, faster
        inside = (at != 0).unflatten(0, (-1, outputs)).any(1)
        entered = torch.where(inside & (entered == PENALTIES), float(turn), entered)
        if int((entered < PENALTIES).sum(1).min()) >= max(ks):
            break
    strength = at.unflatten(0, (-1, outputs)).abs().amax(1)
    order = (-entered + strength / (1 + strength.amax(1, keepdim=True))).argsort(
        dim=1, descending=True, stable=True
    )
    return [order[:, :k] for k in ks]


def _curvature(
    x: Tensor, columns: Columns, weight: Tensor, centre: Tensor, inverse: Tensor
) -> Float[Tensor, "column"]:
    """The largest eigenvalue of each column's weighted covariance of standardised features, intercept included, and a bit."""
    vector = torch.ones(len(columns), x.shape[1], dtype=x.dtype) / x.shape[1] ** 0.5
    norm = vector.new_ones(len(columns))
    for _ in range(20):
        raw = vector * inverse
        seen = (raw @ x.T - (raw * centre).sum(1, keepdim=True)) * weight
        vector = (seen @ x - seen.sum(1, keepdim=True) * centre) * inverse
        norm = vector.norm(dim=1).clamp(min=1e-12)
        vector = vector / norm[:, None]
    return 1.1 * norm + 1


SELECTORS: dict[str, Selector] = {
    "welch": _ranked(partial(_difference, standardised=True)),
    "mean-difference": _ranked(partial(_difference, standardised=False)),
    "mutual-information": _ranked(_mutual_information),
    "l1": _l1,
    "forward": _forward,
    "add-prune": partial(_greedy, added=ADDED, rounds=ROUNDS),
}
