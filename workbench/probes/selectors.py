"""Which k features a probe gets: `SELECTORS`, each by its name. They see training rows only, all columns at
once.

A selector is called with (activations, columns, ks, settings) and gives [column, k] feature indices for every
k. `welch`, `mean-difference` and `mutual-information` rank features once, from sums over one or two passes;
`forward` and `add-prune` fit as they go; `l1` follows the path of an L1 penalty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.probes.data import Activations, Columns
from workbench.probes.fits import ProbeSettings, fit, padded_rows
from workbench.probes.solver import LOSSES, Loss

Selection = list[Int[Tensor, "column k"]]
Selector = Callable[[Activations, Columns, Sequence[int], ProbeSettings], Selection]
# Of equal frequency, for mutual information; a number as the target falls into a quarter of them.
BINS = 16
# Rows that the edges of bins are taken from: quantiles of more of them hardly move.
SAMPLE = 4096
# Of the L1 path: how many penalties, proximal steps at each, and the smallest penalty as a share of the
# largest.
PENALTIES, STEPS, LEAST = 24, 40, 0.02
# Of add-prune: features added to the k best at a time, and how often.
ADDED, ROUNDS = 16, 3
# Power iterations for the curvature of the L1 fit, which needs an upper bound and not a precise value.
POWER_STEPS = 20


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
    powers = (1, 2) if standardised else (1,)
    members = columns.indicator * torch.from_numpy(columns.train).double()[:, None]
    # [power, column, class, feature]
    sums = activations.sums(members.flatten(0, 1), powers=powers).unflatten(1, members.shape[:2])
    # [column, class, 1]
    counts = members.sum(2)[:, :, None]
    rest_sums, rest_counts = sums.sum(2, keepdim=True) - sums, counts.sum(1, keepdim=True) - counts
    # Of two classes the second is the rest of the first, and says the same.
    classes = slice(1, None) if columns.n_classes == 2 else slice(None)
    n, n_rest = counts[:, classes], rest_counts[:, classes]
    moments, rest_moments = sums[:, :, classes] / n, rest_sums[:, :, classes] / n_rest
    gap = moments[0] - rest_moments[0]
    if standardised:
        variance, rest_variance = (
            (moment[1] - moment[0] ** 2).clamp(min=0) / (count - 1).clamp(min=1)
            for moment, count in ((moments, n), (rest_moments, n_rest))
        )
        gap = gap / (variance + rest_variance).sqrt()
    # A feature without variance that differs tells the classes perfectly: its t is infinite, and it comes
    # first.
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
    covariance = activations.sums(centred)[0] / n
    if not standardised:
        return covariance.abs()
    mean, square = activations.sums(train, powers=(1, 2)) / n
    return (covariance / (square - mean**2).clamp(min=0).sqrt()).abs()


def _mutual_information(activations: Activations, columns: Columns) -> Float[Tensor, "column feature"]:
    """Mutual information (nats) of the class and the feature's bin.

    Bins are of equal frequency over all rows, blind to labels.
    """
    edges = _bin_edges(activations)
    # [column, class, row]
    members = _classes(columns) * torch.from_numpy(columns.train)[:, None]
    flat = members.flatten(0, 1)
    counts = flat.new_zeros(BINS, len(flat), activations.n_features)
    for rows, x in activations.blocks():
        below = torch.zeros_like(x)
        for b in range(BINS):
            # The last bin has no upper edge.
            up_to_edge = torch.ones_like(x)
            if b < BINS - 1:
                up_to_edge = (x <= edges[b]).double()
            counts[b] += flat[:, rows] @ (up_to_edge - below)
            below = up_to_edge
    # [bin, column, class, feature]: the shares of bins in each class, times the share of the class
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


def _steepness(
    activations: Activations, columns: Columns, logits: Tensor, settings: ProbeSettings
) -> Float[Tensor, "column feature"]:
    """|gradient of the loss| by each feature's coefficient, features in units of 1, largest over outputs.

    Args:
        logits: [column, output, train_row] of the probe so far.
    """
    train = padded_rows(columns.train)
    weight = columns.weight(settings.balanced)
    outputs = columns.target.shape[1]
    index = train.index[:, None].expand(-1, outputs, -1)
    residual = (columns.target.gather(2, index) - _loss(columns, settings).mean(logits)) * train.real[:, None]
    # Padding adds its 0 to row 0, so that rows may repeat.
    spread = torch.zeros_like(columns.target).scatter_add_(2, index, residual) * weight[:, None]
    # The intercept would take the mean out: what is left is the gradient with the intercept at its best.
    spread = spread - weight[:, None] * spread.sum(2, keepdim=True)
    return activations.sums(spread.flatten(0, 1))[0].unflatten(0, (len(columns), outputs)).abs().amax(1)


def _loss(columns: Columns, settings: ProbeSettings) -> Loss:
    """The loss of every output: one-vs-rest fits a logistic probe for each class."""
    one_vs_rest = columns.loss == "softmax" and settings.multiclass == "one-vs-rest"
    return LOSSES["logistic" if one_vs_rest else columns.loss]


def _base_logits(columns: Columns) -> Float[Tensor, "column output train_row"]:
    """Of the probe without features on balanced classes: all the same."""
    n_rows = padded_rows(columns.train).index.shape[1]
    logits = torch.zeros(len(columns), columns.target.shape[1], n_rows, dtype=torch.float64)
    if columns.loss == "squares":
        logits += (columns.target * columns.weight(False)[:, None]).sum(2, keepdim=True)
    return logits


def _deviations(activations: Activations, columns: Columns) -> Float[Tensor, "column feature"]:
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


def _add_prune(
    activations: Activations,
    columns: Columns,
    ks: Sequence[int],
    settings: ProbeSettings,
) -> Selection:
    """For every k: add the features that the loss falls steepest by, refit, keep the k strongest, and
    again."""
    deviation = _deviations(activations, columns)
    # Coefficients of standardised features can be compared.
    scaled = replace(settings, standardize=True)
    selection: Selection = []
    for k in ks:
        chosen, logits = torch.zeros(len(columns), 0, dtype=torch.long), _base_logits(columns)
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


def _forward(
    activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings
) -> Selection:
    """One feature at a time: the one by which the loss of the probe so far falls steepest; then a refit."""
    deviation = _deviations(activations, columns)
    scaled = replace(settings, standardize=True)
    chosen, logits, before = torch.zeros(len(columns), 0, dtype=torch.long), _base_logits(columns), None
    for _ in range(max(ks)):
        steepness = _candidates(activations, columns, logits, settings, deviation, chosen)
        chosen = torch.cat([chosen, steepness.argmax(1, keepdim=True)], 1)
        before = fit(activations, columns, chosen, scaled, previous=before)
        logits = before.training_logits
    return [chosen[:, :k] for k in ks]


def _l1(activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings) -> Selection:
    """Features by when they enter the path of an L1-penalised fit on standardised features, then by their
    coefficient.

    Proximal gradient steps with momentum (Beck and Teboulle 2009) for all columns together, from the largest
    penalty down.
    """
    problem = _L1Problem(activations, columns, settings)
    outputs, owner = problem.outputs, problem.owner
    coefficients = problem.x.new_zeros(len(owner), activations.n_features)
    intercept = _base_logits(columns)[:, :, :1].flatten()
    # The penalty at which the first feature enters: none has a coefficient above it.
    largest = problem.gradients(coefficients, intercept)[0].unflatten(0, (-1, outputs)).abs().amax((1, 2))
    entered = torch.full((len(columns), activations.n_features), float(PENALTIES))
    shares = torch.logspace(0, torch.tensor(LEAST).log10().item(), PENALTIES, dtype=problem.x.dtype)
    for turn, share in enumerate(shares):
        coefficients, intercept = problem.minimum((largest * share)[owner], coefficients, intercept)
        inside = (coefficients != 0).unflatten(0, (-1, outputs)).any(1)
        entered = torch.where(inside & (entered == PENALTIES), float(turn), entered)
        if int((entered < PENALTIES).sum(1).min()) >= max(ks):
            break
    strength = coefficients.unflatten(0, (-1, outputs)).abs().amax(1)
    # The coefficient breaks ties alone: it is scaled to stay below one turn.
    rank = -entered + strength / (1 + strength.amax(1, keepdim=True))
    order = rank.argsort(dim=1, descending=True, stable=True)
    return [order[:, :k] for k in ks]


@dataclass(frozen=True, eq=False)
class _L1Problem:
    """The fits of all columns and outputs on standardised features; coefficients are [column * output,
    feature]."""

    activations: Activations
    columns: Columns
    settings: ProbeSettings

    @cached_property
    def x(self) -> Float[Tensor, "row feature"]:
        """The activations in float64."""
        return self.activations.held.double()

    @cached_property
    def outputs(self) -> int:
        """Logits of each column."""
        return self.columns.target.shape[1]

    @cached_property
    def owner(self) -> Int[Tensor, "column_output"]:
        """The column of each output."""
        return torch.arange(len(self.columns)).repeat_interleave(self.outputs)

    @cached_property
    def weight(self) -> Float[Tensor, "column row"]:
        """Of the training rows."""
        return self.columns.weight(self.settings.balanced)

    @cached_property
    def centre(self) -> Float[Tensor, "column feature"]:
        """Means over the training rows."""
        return self.activations.sums(self.columns.weight(False))[0]

    @cached_property
    def inverse_deviation(self) -> Float[Tensor, "column feature"]:
        """1 / standard deviation; 0 for a feature that never varies."""
        deviation = _deviations(self.activations, self.columns)
        return torch.where(deviation > 0, 1 / deviation, 0.0)

    def gradients(self, coefficients: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Of the loss without its penalty, by the coefficients and by the intercepts."""
        centre, inverse = self.centre[self.owner], self.inverse_deviation[self.owner]
        # Standardising is moved to the coefficients, so that the activations are never copied for a column.
        raw = coefficients * inverse
        logits = raw @ self.x.T + (intercept - (raw * centre).sum(1))[:, None]
        mean = _loss(self.columns, self.settings).mean(logits.unflatten(0, (-1, self.outputs)))
        residual = ((mean - self.columns.target) * self.weight[:, None]).flatten(0, 1)
        total = residual.sum(1)
        return (residual @ self.x - total[:, None] * centre) * inverse, total

    def minimum(self, penalty: Tensor, coefficients: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients and intercepts after `STEPS` accelerated proximal steps from these."""
        size = self.step_size[self.owner]
        threshold = (penalty * size)[:, None]
        ahead, ahead_intercept, momentum = coefficients, intercept, 1.0
        for _ in range(STEPS):
            gradient, intercept_gradient = self.gradients(ahead, ahead_intercept)
            step = ahead - size[:, None] * gradient
            # The proximal step of an L1 penalty is soft thresholding; the intercept has no penalty.
            new = step.sign() * (step.abs() - threshold).clamp(min=0)
            new_intercept = ahead_intercept - size * intercept_gradient
            next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = new + (momentum - 1) / next_momentum * (new - coefficients)
            ahead_intercept = new_intercept + (momentum - 1) / next_momentum * (new_intercept - intercept)
            coefficients, intercept, momentum = new, new_intercept, next_momentum
        return coefficients, intercept

    @cached_property
    def step_size(self) -> Float[Tensor, "column"]:
        """1 / the largest curvature of the loss, at which no step overshoots."""
        # The largest second derivative by a logit: 1 of squares, 1/2 of softmax, 1/4 of the logistic loss.
        bound = 0.25
        if self.columns.loss == "squares":
            bound = 1.0
        elif self.outputs > 1:
            bound = 0.5
        return 1 / (self._largest_eigenvalue() * bound)

    def _largest_eigenvalue(self) -> Float[Tensor, "column"]:
        """Of each column's weighted covariance of standardised features, by power iteration.

        Plus 1 for the intercept and a tenth, since power iteration approaches it from below.
        """
        n_features = self.x.shape[1]
        vector = torch.ones(len(self.columns), n_features, dtype=self.x.dtype) / n_features**0.5
        norm = vector.new_ones(len(self.columns))
        for _ in range(POWER_STEPS):
            raw = vector * self.inverse_deviation
            products = (raw @ self.x.T - (raw * self.centre).sum(1, keepdim=True)) * self.weight
            back = products @ self.x - products.sum(1, keepdim=True) * self.centre
            vector = back * self.inverse_deviation
            norm = vector.norm(dim=1).clamp(min=1e-12)
            vector = vector / norm[:, None]
        return 1.1 * norm + 1


SELECTORS: dict[str, Selector] = {
    "welch": _ranked(partial(_difference, standardised=True)),
    "mean-difference": _ranked(partial(_difference, standardised=False)),
    "mutual-information": _ranked(_mutual_information),
    "l1": _l1,
    "forward": _forward,
    "add-prune": _add_prune,
}
