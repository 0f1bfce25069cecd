"""Features ranked by when they enter the path of an L1-penalised fit: `l1`.

Read `l1`, then `L1Problem.minimum`, the proximal steps at one penalty. All columns take their steps together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.probes.data import Activations, Columns
from workbench.probes.fits import ProbeSettings
from workbench.probes.stepwise import Selection, base_logits, deviations, loss_of

PENALTIES, STEPS, LEAST = 24, 40, 0.02
"""How many penalties, proximal steps at each, and the smallest penalty as a share of the largest."""
# Power iterations for the curvature of the L1 fit, which needs an upper bound and not a precise value.
POWER_STEPS = 20


def l1(activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings) -> Selection:
    """Features ranked by when they enter the path of a standardised L1-penalised fit, then by coefficient.

    Proximal gradient steps with momentum (Beck and Teboulle 2009) for all columns together, from the largest
    penalty down.
    """
    problem = L1Problem(activations, columns, settings)
    outputs, owner = problem.outputs, problem.owner
    coefficients = problem.x.new_zeros(len(owner), activations.n_features)
    intercept = base_logits(columns)[:, :, :1].flatten()
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
class L1Problem:
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
        deviation = deviations(self.activations, self.columns)
        return torch.where(deviation > 0, 1 / deviation, 0.0)

    def gradients(self, coefficients: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the loss without its penalty, with respect to coefficients and to intercepts."""
        centre, inverse = self.centre[self.owner], self.inverse_deviation[self.owner]
        # Standardising is moved to the coefficients, so that the activations are never copied for a column.
        raw = coefficients * inverse
        logits = raw @ self.x.T + (intercept - (raw * centre).sum(1))[:, None]
        mean = loss_of(self.columns, self.settings).mean(logits.unflatten(0, (-1, self.outputs)))
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
        # No second derivative by a logit is larger: 1 for squares, 1/2 for
        # softmax, 1/4 for the logistic loss.
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
