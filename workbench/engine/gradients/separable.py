"""Whether one backward pass gives the gradient of each example: `check_separable`.

The measures of all examples are summed, and the gradient at an example's own activations is taken for its
own. That is so only where no measure depends on another example.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from workbench.errors import MetricError
from workbench.metrics.metric import Metric


def check_separable(
    metric: Metric, measured: Float[Tensor, "example"], source: Shaped[Tensor, "example ..."]
) -> None:
    """Raise `MetricError` where the measure of an example depends on other examples.

    Args:
        source: what was measured, with a gradient.
    """
    n = len(measured)
    if metric.rowwise or n < 2 or not measured.requires_grad:
        return
    numbers = torch.arange(n)
    # Two ways to part the examples: one in halves would miss neighbours that are compared.
    for inside in (numbers < n // 2, numbers % 2 == 0):
        for part in (inside, ~inside):
            total = measured[part.to(measured.device)].sum()
            (gradient,) = torch.autograd.grad(total, source, retain_graph=True, allow_unused=True)
            if gradient is not None and bool(gradient[~part.to(gradient.device)].any()):
                raise MetricError(
                    f"The metric {metric.name!r} compares examples, so its gradient at one of them is not "
                    "that example's own. Use method='exact', or scores that are means over examples."
                )
