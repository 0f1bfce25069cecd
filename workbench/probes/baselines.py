"""Probes on all features, to compare the sparse ones with: `BASELINES`, each by its name.

`logistic` is the L2 probe on every feature (ridge for numbers). `mass-mean` points from one class's mean to
the other's, or takes the nearest class mean (Marks and Tegmark, arXiv 2310.06824). `erased` is the L2 probe
after LEACE removed all that a linear probe can use (Belrose et al., arXiv 2306.03819): it must be at chance,
or the other numbers mean nothing. All read the activations through matrix products only, block by block.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.probes.data import Activations, Columns, variance_of
from workbench.probes.fits import ProbeSettings
from workbench.probes.solver import LOSSES, Loss, line_search

# At most this many conjugate gradient steps within a Newton step.
INNER = 200
"""Conjugate gradient steps within a Newton step at most."""
# Newton decrement of a fit on all features, in nats: looser than of a sparse one, since steps are not exact.
TOLERANCE = 1e-9
ERASER_RIDGE, ERASER_SHARE, ERASER_RANK = 1e-6, 1e-6, 1e-8
"""The three tolerances of LEACE.

A ridge on the covariance of standardised features; the share of the right side that conjugate gradients leave
over; the share of the largest singular value below which a direction of the labels counts as none.
"""


@dataclass(frozen=True, eq=False)
class Dense:
    """A probe on all features per column.

    Attributes:
        direction, intercept: for the activations as they are.
        logits: of all rows.
        converged: False too where the training rows have one label only.
    """

    direction: Float[Tensor, "column output feature"]
    intercept: Float[Tensor, "column output"]
    logits: Float[Tensor, "column output row"]
    converged: Bool[Tensor, "column"]


@dataclass(frozen=True, eq=False)
class Scaled:
    """Activations shifted and scaled per column by training rows, and erased where asked, never copied: only
    products with them are computed.

    Attributes:
        shift, scale: [column, feature].
        erasing: (S, A) [column, feature, class]: a row x becomes x - S A' x.
    """

    activations: Activations
    shift: Float[Tensor, "column feature"]
    scale: Float[Tensor, "column feature"]
    erasing: tuple[Tensor, Tensor] | None = None

    def raw(
        self, direction: Float[Tensor, "column output feature"]
    ) -> Float[Tensor, "column output feature"]:
        """The direction in the activations as they are that reads what this one reads here."""
        if self.erasing is not None:
            cross, inverse = self.erasing
            direction = direction - (direction @ cross) @ inverse.mT
        return direction / self.scale[:, None]

    def times(self, direction: Float[Tensor, "column output feature"]) -> Float[Tensor, "column output row"]:
        """The product of every scaled row with every direction."""
        raw = self.raw(direction)
        products = self.activations.times(raw.flatten(0, 1)).unflatten(0, raw.shape[:2])
        return products - (raw * self.shift[:, None]).sum(2, keepdim=True)

    def sums(self, weight: Float[Tensor, "column output row"]) -> Float[Tensor, "column output feature"]:
        """The sum over rows of weight times the scaled row: the transpose of `times`."""
        sums = self.activations.sums(weight.flatten(0, 1))[0].unflatten(0, weight.shape[:2])
        scaled = (sums - weight.sum(2, keepdim=True) * self.shift[:, None]) / self.scale[:, None]
        if self.erasing is None:
            return scaled
        cross, inverse = self.erasing
        return scaled - (scaled @ inverse) @ cross.mT


def _scaled(activations: Activations, columns: Columns, settings: ProbeSettings) -> Scaled:
    mean, square = activations.sums(columns.weight(False), powers=(1, 2), origin=activations.origin)
    if not settings.standardize:
        return Scaled(activations, torch.zeros_like(mean), torch.ones_like(mean))
    deviation = variance_of(mean, square).sqrt()
    scale = torch.where(deviation > 0, deviation.clamp(min=settings.std_floor), 1.0)
    return Scaled(activations, mean + activations.origin, scale)


def _conjugate(
    product: Callable[[Tensor], Tensor], right: Tensor, dims: tuple[int, ...], share: float
) -> Tensor:
    """The solution of product(v) = right by conjugate gradients.

    Args:
        product: multiplies by a symmetric positive matrix.
        dims: the axes of one system; the others hold many systems.
        share: of the norm of `right` that the residual may keep.
    """
    solution, residual = torch.zeros_like(right), right
    direction, square = residual, (residual**2).sum(dims, keepdim=True)
    goal = square * share**2
    for _ in range(INNER):
        is_open = square > goal
        if not bool(is_open.any()):
            break
        image = product(direction)
        # A system that is solved must not move any more: rounding would be divided by rounding.
        size = torch.where(is_open, square / (direction * image).sum(dims, keepdim=True), 0.0)
        solution, residual = solution + size * direction, residual - size * image
        before, square = square, (residual**2).sum(dims, keepdim=True)
        direction = torch.where(is_open, residual + square / before * direction, 0.0)
    return solution


@dataclass(frozen=True, eq=False)
class _DenseProblem:
    """The objective of the L2 probe on all features; coefficients are [column, output, 1 + feature],
    intercept first."""

    scaled: Scaled
    loss: Loss
    target: Float[Tensor, "column output row"]
    weight: Float[Tensor, "column row"]
    penalty: Float[Tensor, "one_and_feature"]

    def logits(self, coefficients: Tensor) -> Float[Tensor, "column output row"]:
        """Of all rows."""
        return self.scaled.times(coefficients[:, :, 1:]) + coefficients[:, :, :1]

    def sums(self, weight: Float[Tensor, "column output row"]) -> Tensor:
        """The sums over rows that gradients are made of, the intercept's first."""
        return torch.cat([weight.sum(2, keepdim=True), self.scaled.sums(weight)], 2)

    def objective(self, logits: Tensor, coefficients: Tensor) -> Float[Tensor, "column"]:
        """The value to minimise."""
        fit = (self.loss.value(logits, self.target) * self.weight).sum(1)
        return fit + (self.penalty * coefficients**2).sum((1, 2)) / 2

    def gradient(self, mean: Tensor, coefficients: Tensor) -> Tensor:
        """The gradient of the objective with respect to the coefficients."""
        return self.sums((mean - self.target) * self.weight[:, None]) + self.penalty * coefficients

    def curvature(self, mean: Tensor, direction: Tensor) -> Tensor:
        """The Hessian times a direction: two passes over the activations, and no matrix of features by
        features."""
        row_curvature = self.loss.curvature(mean, self.logits(direction)) * self.weight[:, None]
        return self.sums(row_curvature) + self.penalty * direction

    def along(self, logits: Tensor, change: Tensor, at: Tensor, step: Tensor, size: Tensor) -> Tensor:
        """The objective after a step of this size; logits are linear in the size."""
        return self.objective(logits - size * change, at - size * step)


def _fit(scaled: Scaled, columns: Columns, settings: ProbeSettings) -> Dense:
    """The L2 probe on all features: Newton steps, each solved by conjugate gradients."""
    one_vs_rest = columns.loss == "softmax" and settings.multiclass == "one-vs-rest"
    at = columns.target.new_zeros(len(columns), columns.target.shape[1], 1 + scaled.activations.n_features)
    # No penalty on the intercept, which only carries how frequent the classes are.
    penalty = torch.full((at.shape[2],), settings.l2, dtype=at.dtype)
    penalty[0] = 0
    loss = LOSSES["logistic" if one_vs_rest else columns.loss]
    problem = _DenseProblem(scaled, loss, columns.target, columns.weight(settings.balanced), penalty)
    logits, decrement = problem.logits(at), torch.full((len(columns),), torch.inf)
    value = problem.objective(logits, at)
    for _ in range(settings.max_iter):
        mean = loss.mean(logits)
        gradient = problem.gradient(mean, at)
        # Far from the minimum a rough step will do; its precision grows with the gradient's fall, so that the
        # end is fast.
        share = min(0.1, float(gradient.norm()) ** 0.5)
        step = _conjugate(partial(problem.curvature, mean), gradient, (1, 2), share)
        slope = (gradient * step).sum((1, 2))
        decrement = slope / 2
        if bool((decrement <= TOLERANCE).all()):
            break
        change = problem.logits(step)
        size, value = line_search(partial(problem.along, logits, change, at, step), slope, value)
        at, logits = at - size * step, logits - size * change
    raw = scaled.raw(at[:, :, 1:])
    intercept = at[:, :, 0] - (raw * scaled.shift[:, None]).sum(2)
    return Dense(raw, intercept, logits, (decrement <= TOLERANCE) & torch.from_numpy(columns.varied))


def _logistic(activations: Activations, columns: Columns, settings: ProbeSettings) -> Dense:
    return _fit(_scaled(activations, columns, settings), columns, settings)


def eraser(activations: Activations, columns: Columns, settings: ProbeSettings) -> Scaled:
    """The activations after LEACE, per column: x - S (A'S)^+ A'(x - mean) with S = Cov(x, label) and A =
    Cov(x)^-1 S.

    Whatever A is, Cov(erased x, label) = S - S (A'S)^+ (A'S) = 0 in the training rows, so that no linear
    probe can use them; this A moves the activations least.
    """
    base = _scaled(activations, columns, replace(settings, standardize=True))
    weight = columns.weight(False)[:, None]
    label = columns.indicator if columns.loss == "softmax" else columns.target
    cross = base.sums((label - (label * weight).sum(2, keepdim=True)) * weight)

    def covariance(direction: Tensor) -> Tensor:
        """The covariance of the scaled activations times a direction."""
        return base.sums(base.times(direction) * weight) + ERASER_RIDGE * direction

    inverse = _conjugate(covariance, cross, (2,), ERASER_SHARE)
    inner = torch.linalg.pinv(inverse @ cross.mT, rtol=ERASER_RANK)
    return Scaled(activations, base.shift, base.scale, (cross.mT, (inner.mT @ inverse).mT))


def _erased(activations: Activations, columns: Columns, settings: ProbeSettings) -> Dense:
    return _fit(eraser(activations, columns, settings), columns, settings)


def _mass_mean(activations: Activations, columns: Columns, settings: ProbeSettings) -> Dense:
    if columns.loss == "squares":
        # Numbers have no class means: not measured.
        nothing = columns.target * torch.nan
        directions = nothing[:, :, :1].expand(-1, -1, activations.n_features)
        return Dense(directions, nothing[:, :, 0], nothing, torch.zeros(len(columns), dtype=torch.bool))
    # Held-out rows have no part in the means: [column, class, row].
    members = columns.indicator * torch.from_numpy(columns.train)[:, None]
    members = members / members.sum(2, keepdim=True).clamp(min=1)
    means = activations.sums(members.flatten(0, 1))[0].unflatten(0, members.shape[:2])
    # The nearest mean is that of the largest x . mean - |mean|^2 / 2, which is linear in x as logits are.
    intercept = -(means**2).sum(2) / 2
    if columns.n_classes == 2:
        means, intercept = means[:, 1:] - means[:, :1], intercept[:, 1:] - intercept[:, :1]
    logits = activations.times(means.flatten(0, 1)).unflatten(0, means.shape[:2]) + intercept[:, :, None]
    return Dense(means, intercept, logits, torch.from_numpy(columns.varied))


BASELINES: dict[str, Callable[[Activations, Columns, ProbeSettings], Dense]] = {
    "logistic": _logistic,
    "mass-mean": _mass_mean,
    "erased": _erased,
}
