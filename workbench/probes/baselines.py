"""Probes on all features, as yardsticks of the sparse ones: `BASELINES`, each by its name.

`logistic` is the L2 probe on every feature (ridge for numbers). `mass-mean` points from one class's mean to the other's, or
takes the nearest class mean (Marks and Tegmark, arXiv 2310.06824). `erased` is the L2 probe after LEACE took out all that
a linear probe can use (Belrose et al., arXiv 2306.03819): it must be at chance, or the other numbers mean nothing.
All read the activations only through products, so that they stream.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.probes.data import Activations, Columns
from workbench.probes.fits import ProbeSettings
from workbench.probes.solver import LOSSES, line_search

INNER = 200
"""Conjugate gradient steps within a Newton step at most."""
TOLERANCE = 1e-9
"""Newton decrement of a fit on all features, in nats."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A probe on all features per column.

    Attributes:
        direction, intercept: for the activations as they are.
        logits: of all rows.
    """

    direction: Float[Tensor, "column output feature"]
    intercept: Float[Tensor, "column output"]
    logits: Float[Tensor, "column output row"]
    converged: Bool[Tensor, "column"]


@dataclass(frozen=True, eq=False)
class Scaled:
    """Activations shifted and scaled per column by their training rows, and erased where asked, as two products.

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
        raw = self.raw(direction)
        products = self.activations.times(raw.flatten(0, 1)).unflatten(0, raw.shape[:2])
        return products - (raw * self.shift[:, None]).sum(2, keepdim=True)

    def sums(self, weight: Float[Tensor, "column output row"]) -> Float[Tensor, "column output feature"]:
        sums = self.activations.sums(weight.flatten(0, 1))[0].unflatten(0, weight.shape[:2])
        scaled = (sums - weight.sum(2, keepdim=True) * self.shift[:, None]) / self.scale[:, None]
        if self.erasing is None:
            return scaled
        cross, inverse = self.erasing
        return scaled - (scaled @ inverse) @ cross.mT


def _scaled(activations: Activations, columns: Columns, settings: ProbeSettings) -> Scaled:
    mean, square = activations.sums(columns.weight(False), powers=(1, 2))
    deviation = (square - mean**2).clamp(min=0).sqrt()
    scale = torch.where(deviation > 0, deviation.clamp(min=settings.std_floor), 1.0)
    return (
        Scaled(activations, mean, scale)
        if settings.standardize
        else Scaled(activations, 0 * mean, torch.ones_like(scale))
    )


def _conjugate(
    product: Callable[[Tensor], Tensor], right: Tensor, dims: tuple[int, ...], share: float
) -> Tensor:
    """The solution of product(v) = right by conjugate gradients, to a share of its norm; systems lie along the other dims."""
    found, rest = torch.zeros_like(right), right
    way, square = rest, (rest**2).sum(dims, keepdim=True)
    goal = square * share**2
    for _ in range(INNER):
        going = square > goal
        if not bool(going.any()):
            break
        turned = product(way)
        # A system that is done must stand still: rounding would be divided by rounding.
        size = torch.where(going, square / (way * turned).sum(dims, keepdim=True), 0.0)
        found, rest = found + size * way, rest - size * turned
        before, square = square, (rest**2).sum(dims, keepdim=True)
        way = torch.where(going, rest + square / before * way, 0.0)
    return found


def _fit(scaled: Scaled, columns: Columns, settings: ProbeSettings) -> Dense:
    """The L2 probe on all features: Newton steps, each solved by conjugate gradients."""
    one_vs_rest = columns.loss == "softmax" and settings.multiclass == "one-vs-rest"
    loss, target = LOSSES["logistic" if one_vs_rest else columns.loss], columns.target
    weight = columns.weight(settings.balanced)
    # The intercept is one more coefficient, in front, without a penalty.
    at = target.new_zeros(len(columns), target.shape[1], 1 + scaled.activations.n_features)
    penalty = torch.full((at.shape[2],), settings.l2, dtype=at.dtype)
    penalty[0] = 0

    def times(given: Tensor) -> Tensor:
        return scaled.times(given[:, :, 1:]) + given[:, :, :1]

    def sums(given: Tensor) -> Tensor:
        return torch.cat([given.sum(2, keepdim=True), scaled.sums(given)], 2)

    def objective(logits: Tensor, at: Tensor) -> Tensor:
        return (loss.value(logits, target) * weight).sum(1) + (penalty * at**2).sum((1, 2)) / 2

    logits, decrement = times(at), torch.full((len(columns),), torch.inf)
    value = objective(logits, at)
    for _ in range(settings.max_iter):
        mean = loss.mean(logits)
        gradient = sums((mean - target) * weight[:, None]) + penalty * at

        def product(given: Tensor, mean: Tensor = mean) -> Tensor:
            return sums(loss.bend(mean, times(given)) * weight[:, None]) + penalty * given

        step = _conjugate(product, gradient, (1, 2), min(0.1, float(gradient.norm()) ** 0.5))
        slope = (gradient * step).sum((1, 2))
        decrement = slope / 2
        if bool((decrement <= TOLERANCE).all()):
            break
        change = times(step)

        def moved(size: Tensor, given: tuple[Tensor, ...] = (logits, change, at, step)) -> Tensor:
            logits, change, at, step = given
            return objective(logits - size * change, at - size * step)

        size, value = line_search(moved, slope, value)  # pyright: ignore[reportGeneralTypeIssues]
        at, logits = at - size * step, logits - size * change
    raw = scaled.raw(at[:, :, 1:])
    intercept = at[:, :, 0] - (raw * scaled.shift[:, None]).sum(2)
    return Dense(raw, intercept, logits, (decrement <= TOLERANCE) & torch.from_numpy(columns.varied))


def _logistic(activations: Activations, columns: Columns, settings: ProbeSettings) -> Dense:
    return _fit(_scaled(activations, columns, settings), columns, settings)


def eraser(activations: Activations, columns: Columns, settings: ProbeSettings) -> Scaled:
    """The activations after LEACE, per column: x - S (A'S)^+ A'(x - mean) with S = Cov(x, label) and A = Cov(x)^-1 S.

    Whatever A is, Cov(erased x, label) = S - S (A'S)^+ (A'S) = 0 in the training rows, so that no linear probe can use
    them; this A moves the activations least.
    """
    base = _scaled(activations, columns, ProbeSettings(**{**settings.__dict__, "standardize": True}))
    weight = columns.weight(False)[:, None]
    label = columns.indicator if columns.loss == "softmax" else columns.target
    cross = base.sums((label - (label * weight).sum(2, keepdim=True)) * weight)
    inverse = _conjugate(
        lambda given: base.sums(base.times(given) * weight) + 1e-6 * given, cross, (2,), 1e-6
    )
    inner = torch.linalg.pinv(inverse @ cross.mT, rtol=1e-8)
    return Scaled(activations, base.shift, base.scale, (cross.mT, (inner.mT @ inverse).mT))


def _erased(activations: Activations, columns: Columns, settings: ProbeSettings) -> Dense:
    return _fit(eraser(activations, columns, settings), columns, settings)


def _mass_mean(activations: Activations, columns: Columns, settings: ProbeSettings) -> Dense:
    if columns.loss == "squares":  # numbers have no class means: not measured
        nothing = columns.target * torch.nan
        directions = nothing[:, :, :1].expand(-1, -1, activations.n_features)
        return Dense(directions, nothing[:, :, 0], nothing, torch.zeros(len(columns), dtype=torch.bool))
    members = columns.indicator * torch.from_numpy(columns.train)[:, None]
    members = members / members.sum(2, keepdim=True).clamp(min=1)
    means = activations.sums(members.flatten(0, 1))[0].unflatten(0, members.shape[:2])
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
