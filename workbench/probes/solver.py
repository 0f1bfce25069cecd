"""Many small penalised regressions solved at once by a damped Newton method, in float64: `solve`.

A batch holds problems of equal size. The objective of each is that of TransformerLens' sparse probes and,
with C = 1 / (l2 n), of scikit-learn's logistic regression:

    sum over rows of weight * loss(logits, target) + l2 / 2 * |coefficients|^2,   weights summing to 1, free
    intercepts.

The loss is one of three `LOSSES`; everything else is the same for logistic, softmax and ridge regression.
Convergence is judged by the Newton decrement g' H^-1 g / 2, an estimate of how far the objective is above its
minimum, and reported for every problem. Nothing here knows of probes or stores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

# Added to the equilibrated Hessian, in turn, until it can be factored: saturated fits leave it singular.
RIDGE = (1e-12, 1e-9, 1e-6)
# The least fall of the objective that a step has to reach, as a share of what the slope promises (Armijo's
# rule).
ARMIJO = 1e-4
# A step is halved at most this often: 2^-40 of it is below the rounding of any coefficient that matters.
HALVINGS = 40
# Bytes of design that are solved together: what a core's share of the cache holds.
CHUNK = 4 * 2**20


@dataclass(frozen=True)
class Loss:
    """A loss of logits [problem, output, row], all three functions row by row.

    Attributes:
        value: (logits, target) → [problem, row].
        mean: logits → the prediction; its difference from the target is the gradient by the logits.
        curvature: (mean, change) → the second derivative times a change of the logits.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor, Tensor], Tensor]


LOSSES = {
    "logistic": Loss(
        lambda z, y: (softplus(z) - y * z).sum(1),
        torch.sigmoid,
        lambda p, change: p * (1 - p) * change,
    ),
    "softmax": Loss(
        lambda z, y: z.logsumexp(1) - (y * z).sum(1),
        lambda z: z.softmax(1),
        lambda p, change: p * (change - (p * change).sum(1, keepdim=True)),
    ),
    "squares": Loss(
        lambda z, y: ((z - y) ** 2).sum(1) / 2,
        lambda z: z,
        lambda p, change: change,
    ),
}


@dataclass(frozen=True, eq=False)
class Solution:
    """The minimum of every problem of a batch, as far as it was reached.

    Attributes:
        coefficients: [problem, output, 1 + feature], the intercept first.
        converged: whether the decrement fell below the tolerance; False where the numbers are not finite.
        decrement: in nats (squared target units for ridge), at the last check.
        iterations: Newton steps taken.
    """

    coefficients: Float[Tensor, "problem output one_and_feature"]
    converged: Bool[Tensor, "problem"]
    decrement: Float[Tensor, "problem"]
    iterations: Int[Tensor, "problem"]


def design(rows: Float[Tensor, "problem feature row"]) -> Float[Tensor, "problem one_and_feature row"]:
    """The features with a row of ones above them, for the intercept."""
    return torch.cat([rows.new_ones(len(rows), 1, rows.shape[2]), rows], 1)


def solve(
    x: Float[Tensor, "problem one_and_feature row"],
    target: Float[Tensor, "problem output row"],
    weight: Float[Tensor, "problem row"],
    *,
    l2: float,
    loss: str = "logistic",
    start: Float[Tensor, "problem output one_and_feature"] | None = None,
    max_iter: int = 50,
    tolerance: float = 1e-12,
) -> Solution:
    """Coefficients that minimise each problem's objective.

    Args:
        x: float64 features, the first one being 1 (see `design`).
        target: 0 or 1 (logistic), one-hot (softmax) or numbers (squares).
        weight: summing to 1 in each problem; 0 leaves a row out.
        l2: penalty on the coefficients; the intercept is free. scikit-learn's C is 1 / (l2 n), its ridge
            alpha l2 n.
        start: where to begin; None is zero.
        tolerance: the largest decrement that counts as converged.
    """
    begin = x.new_zeros(len(x), target.shape[1], x.shape[1]) if start is None else start
    at_once = max(1, CHUNK // (x.shape[1] * x.shape[2] * x.element_size()))
    # No penalty on the intercept, which comes first and only carries how frequent the classes are.
    penalty = torch.full((x.shape[1],), l2, dtype=x.dtype)
    penalty[0] = 0
    solutions: list[Solution] = []
    for first in range(0, len(x), at_once):
        chunk = slice(first, first + at_once)
        problems = _Problems(x[chunk], target[chunk], weight[chunk], penalty, LOSSES[loss])
        solutions.append(_newton(problems, begin[chunk], max_iter, tolerance))
    return Solution(
        coefficients=torch.cat([solution.coefficients for solution in solutions]),
        converged=torch.cat([solution.converged for solution in solutions]),
        decrement=torch.cat([solution.decrement for solution in solutions]),
        iterations=torch.cat([solution.iterations for solution in solutions]),
    )


@dataclass(frozen=True, eq=False)
class _Problems:
    """A batch of problems: x [problem, one_and_feature, row], target [problem, output, row], weight [problem,
    row]."""

    x: Tensor
    target: Tensor
    weight: Tensor
    penalty: Tensor
    loss: Loss

    def objective(self, logits: Tensor, coefficients: Tensor) -> Tensor:
        """[problem]: the value to minimise."""
        fit = (self.loss.value(logits, self.target) * self.weight).sum(1)
        return fit + (self.penalty * coefficients**2).sum((1, 2)) / 2

    def gradient(self, mean: Tensor, coefficients: Tensor) -> Tensor:
        """[problem, output, one_and_feature]."""
        return ((mean - self.target) * self.weight[:, None]) @ self.x.mT + self.penalty * coefficients

    def select(self, kept: Tensor) -> "_Problems":
        """Some of the problems."""
        return _Problems(self.x[kept], self.target[kept], self.weight[kept], self.penalty, self.loss)


def _newton(problems: _Problems, start: Tensor, max_iter: int, tolerance: float) -> Solution:
    n = len(problems.x)
    minimum, converged = start.clone(), torch.zeros(n, dtype=torch.bool)
    decrement = torch.full((n,), torch.inf, dtype=start.dtype)
    iterations = torch.zeros(n, dtype=torch.long)
    # Problems that are done leave the batch, which shrinks; `open_` are the indices of the others in the
    # whole batch.
    open_, at = torch.arange(n), start
    logits = at @ problems.x
    value = problems.objective(logits, at)
    for iteration in range(max_iter + 1):
        mean = problems.loss.mean(logits)
        gradient = problems.gradient(mean, at)
        step = _direction(problems, mean, gradient)
        slope = (gradient * step).sum((1, 2))
        decrement[open_] = slope / 2
        done = slope / 2 <= tolerance
        # At the minimum the step is within rounding: taking it whole costs nothing and refines the result.
        minimum[open_] = torch.where(done[:, None, None], at - step, at)
        converged[open_] = done
        # Further steps cannot repair a problem whose numbers overflowed.
        left = ~done & torch.isfinite(slope)
        if not bool(left.any()) or iteration == max_iter:
            break
        if not bool(left.all()):
            problems, open_ = problems.select(left), open_[left]
            at, logits, value, step, slope = at[left], logits[left], value[left], step[left], slope[left]
        line = partial(_along, problems, logits, step @ problems.x, at, step)
        size, value = line_search(line, slope, value)
        at = at - size * step
        # Computed from the coefficients, not updated: the differences of many steps would add up rounding.
        logits = at @ problems.x
        iterations[open_] += 1
    return Solution(minimum, converged & minimum.isfinite().all(2).all(1), decrement, iterations)


def _along(
    problems: _Problems, logits: Tensor, change: Tensor, at: Tensor, step: Tensor, size: Tensor
) -> Tensor:
    """[problem]: the objective after a step of a size [problem, 1, 1]; logits are linear in it, so no product
    is needed."""
    return problems.objective(logits - size * change, at - size * step)


def line_search(
    objective: Callable[[Tensor], Tensor], slope: Float[Tensor, "problem"], value: Float[Tensor, "problem"]
) -> tuple[Float[Tensor, "problem 1 1"], Float[Tensor, "problem"]]:
    """Per problem the largest of 1, 1/2, 1/4, ... that lowers the objective enough, and the objective there.

    Args:
        objective: of step sizes [problem, 1, 1].
        slope: how fast it falls at first.
    """
    size, reached = torch.ones_like(value), value
    for _ in range(HALVINGS):
        reached = objective(size[:, None, None])
        # Near the minimum the fall is below rounding; a step that does not climb by more than that is good.
        good = reached <= value - ARMIJO * size * slope + 1e-14 * (1 + value.abs())
        if bool(good.all()):
            break
        size = torch.where(good, size, size / 2)
    return size[:, None, None], reached


def _direction(problems: _Problems, mean: Tensor, gradient: Tensor) -> Tensor:
    """[problem, output, 1 + feature]: the Hessian's inverse times the gradient."""
    hessian = _hessian(problems, mean)
    # Equilibrated, so that one ridge suits features of any scale.
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 1.0)
    hessian = hessian * scale[:, :, None] * scale[:, None]
    right = (scale * gradient.flatten(1))[:, :, None]
    step = right
    for ridge in RIDGE:
        hessian.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        # Where no ridge helps, the gradient itself is the step: it descends, if slowly.
        step = torch.where((failed == 0)[:, None, None], torch.cholesky_solve(right, factor), right)
        if not bool(failed.any()):
            break
    return (scale[:, :, None] * step).view_as(gradient)


def _hessian(problems: _Problems, mean: Tensor) -> Tensor:
    """[problem, output * (1 + feature), output * (1 + feature)], the penalty included."""
    x, (n, outputs), width = problems.x, mean.shape[:2], problems.x.shape[1]
    hessian = x.new_empty(n, outputs, width, outputs, width)
    for b in range(outputs):
        unit = torch.zeros_like(mean)
        unit[:, b] = 1
        curvature = problems.loss.curvature(mean, unit) * problems.weight[:, None]
        for a in range(b, outputs):
            hessian[:, a, :, b] = (x * curvature[:, a, None]) @ x.mT
            hessian[:, b, :, a] = hessian[:, a, :, b]
        hessian[:, b, :, b].diagonal(dim1=1, dim2=2).add_(problems.penalty)
    if outputs > 1:
        # Softmax does not see a constant added to all intercepts; the gradient has no part along it, nor may
        # the step.
        hessian[:, :, 0, :, 0] += 1
    return hessian.view(n, outputs * width, outputs * width)
