"""Many small penalised regressions solved at once by a damped Newton method, in float64.

A batch holds problems of equal size. The objective of each is TransformerLens' and, with C = 1 / (l2 n), scikit-learn's:

    sum over rows of weight * loss(logits, target) + l2 / 2 * |coefficients|^2,   weights summing to 1, free intercepts.

The loss is one of three `LOSSES`; everything else is the same for logistic, softmax and ridge regression. Convergence is
judged by the Newton decrement g' H^-1 g / 2, an estimate of how far the objective is above its minimum, and reported for
every problem.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

RIDGE = (1e-12, 1e-9, 1e-6)
"""Added to the equilibrated Hessian, in turn, until it can be factored: saturated fits leave it singular."""
ARMIJO = 1e-4
HALVINGS = 40
CHUNK = 4 * 2**20
"""Bytes of design that are solved together: what a core's share of the cache holds."""


@dataclass(frozen=True)
class Loss:
    """A loss of logits [problem, output, row], all three functions row by row.

    Attributes:
        value: (logits, target) → [problem, row].
        mean: logits → the prediction whose difference to the target is the slope.
        bend: (mean, change) → the second derivative times a change of the logits: how the slope changes with them.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]
    bend: Callable[[Tensor, Tensor], Tensor]


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
        l2: penalty on the coefficients; the intercept is free. scikit-learn's C is 1 / (l2 n), its ridge alpha l2 n.
        start: where to begin, zero unless told.
        tolerance: the largest decrement that counts as converged.
    """
    begin = x.new_zeros(len(x), target.shape[1], x.shape[1]) if start is None else start
    at_once = max(1, CHUNK // (x.shape[1] * x.shape[2] * x.element_size()))
    parts = []
    for i in range(0, len(x), at_once):
        portion = slice(i, i + at_once)
        given = (x[portion], target[portion], weight[portion], begin[portion])
        parts.append(_newton(*given, l2, LOSSES[loss], max_iter, tolerance))
    return Solution(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _newton(
    x: Tensor, y: Tensor, w: Tensor, start: Tensor, l2: float, loss: Loss, max_iter: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found, problems = start.clone(), len(x)
    converged = torch.zeros(problems, dtype=torch.bool)
    decrement, iterations = (
        torch.full((problems,), torch.inf, dtype=x.dtype),
        torch.zeros(problems, dtype=torch.long),
    )
    going, at = torch.arange(problems), start
    logits = at @ x
    penalty = torch.full((x.shape[1],), l2, dtype=x.dtype)
    penalty[0] = 0
    value = _objective(loss, logits, y, w, at, penalty)
    for iteration in range(max_iter + 1):
        mean = loss.mean(logits)
        gradient = ((mean - y) * w[:, None]) @ x.mT + penalty * at
        step = _direction(x, w, mean, gradient, penalty, loss)
        slope = (gradient * step).sum((1, 2))
        decrement[going] = slope / 2
        done = slope / 2 <= tolerance
        # At the minimum the step is within rounding, so taking it whole costs nothing and polishes the solution.
        found[going] = torch.where(done[:, None, None], at - step, at)
        converged[going] = done
        left = ~done & torch.isfinite(slope)
        if not bool(left.any()) or iteration == max_iter:
            break
        if not bool(left.all()):
            x, y, w, at, logits, value, step, slope, going = (
                given[left] for given in (x, y, w, at, logits, value, step, slope, going)
            )
        change = step @ x

        def objective(size: Tensor, given: tuple[Tensor, ...] = (logits, change, y, w, at, step)) -> Tensor:
            logits, change, y, w, at, step = given
            return _objective(loss, logits - size * change, y, w, at - size * step, penalty)

        size, value = line_search(objective, slope, value)  # pyright: ignore[reportGeneralTypeIssues]
        at = at - size * step
        logits = at @ x
        iterations[going] += 1
    return found, converged & found.isfinite().all(2).all(1), decrement, iterations


def _objective(loss: Loss, logits: Tensor, y: Tensor, w: Tensor, at: Tensor, penalty: Tensor) -> Tensor:
    return (loss.value(logits, y) * w).sum(1) + (penalty * at**2).sum((1, 2)) / 2


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


def _direction(x: Tensor, w: Tensor, mean: Tensor, gradient: Tensor, penalty: Tensor, loss: Loss) -> Tensor:
    """[problem, output, 1 + feature]: the Hessian's inverse times the gradient."""
    problems, outputs, width = gradient.shape
    hessian = x.new_empty(problems, outputs, width, outputs, width)
    for b in range(outputs):
        one = torch.zeros_like(mean)
        one[:, b] = 1
        bent = loss.bend(mean, one) * w[:, None]
        for a in range(b, outputs):
            hessian[:, a, :, b] = (x * bent[:, a, None]) @ x.mT
            hessian[:, b, :, a] = hessian[:, a, :, b]
        hessian[:, b, :, b].diagonal(dim1=1, dim2=2).add_(penalty)
    if outputs > 1:
        # Softmax does not see a constant added to all intercepts; the gradient has no part along it, nor may the step.
        hessian[:, :, 0, :, 0] += 1
    flat = hessian.view(problems, outputs * width, outputs * width)
    diagonal = flat.diagonal(dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 1.0)
    flat = flat * scale[:, :, None] * scale[:, None]
    right = (scale * gradient.flatten(1))[:, :, None]
    found = right
    for ridge in RIDGE:
        flat.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(flat)
        found = torch.where((failed == 0)[:, None, None], torch.cholesky_solve(right, factor), right)
        if not bool(failed.any()):
            break
    return (scale[:, :, None] * found).view_as(gradient)
