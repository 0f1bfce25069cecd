"""Values that differ from site to site: the constants that harm least, and steering vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.engine.capture import capture
from workbench.engine.hooked.forward import forward
from workbench.engine.inputs import stacked
from workbench.engine.run import Edit
from workbench.engine.runs import MeasuredRuns
from workbench.engine.values import Bound, Constant, Value, mean
from workbench.errors import EditError, MetricError
from workbench.metrics.continuations import expand
from workbench.metrics.metric import Metric
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Site


@dataclass(frozen=True, eq=False)
class BySite(Value):
    """Another value for each site."""

    values: Mapping[Site, Value]
    name: str = "by_site"

    def bind(self, model: Any, prompts: Prompts, other: Prompts | None = None) -> Bound:
        return _BySiteBound(self, prompts, self.values)

    def describe(self) -> str:
        return self.name


class _BySiteBound(Bound):
    def __init__(self, value: Value, prompts: Prompts, values: Mapping[Site, Value]) -> None:
        super().__init__(value, prompts)
        self.values = values

    def select(self, examples: Sequence[int]) -> "Bound":
        return _BySiteBound(self.value, self.prompts.select(examples), self.values)

    def new(self, site: Site, current: Tensor) -> Tensor:
        if site not in self.values:
            raise EditError(
                f"There is no value for {site}; there are values for {', '.join(map(str, self.values))[:200]}."
            )
        return self.values[site].replace(current)


def optimal(
    model: Any,
    pairs: PromptPairs,
    sites: Sequence[Site],
    *,
    metric: Metric,
    base: str = "clean",
    steps: int = 40,
    rate: float = 0.1,
    copies: int = 16,
) -> BySite:
    """For each site the constant that, written there in every example, leaves the metric nearest to that of the base run.

    The mean of (m(edited) - m(base))² is made small by Adam from the mean activation; the best constant on the way is kept, so
    that it is never worse than the mean. Each site has its own, whatever it is edited together with.

    Args:
        rate: step, in standard deviations of the site's activation.
        copies: sites that share a forward pass.
    Raises:
        MetricError: the metric has no gradient, or reads answers of several tokens.
    Source: optimal ablation, Li & Janson 2409.09951.
    """
    rows = expand(model, pairs, metric)
    if not rows.plain:
        raise MetricError(
            f"The value 'optimal' cannot be fitted to {metric.name}, which reads answers of several tokens."
        )
    runs = MeasuredRuns(model, rows.pairs, base, rows.metric)
    runs.check()
    target = runs.measured.detach()
    unique = [*dict.fromkeys(sites)]
    store = capture(
        model, runs.prompts, sites=sorted({Site(*site.key) for site in unique}, key=str), progress=False
    )
    means, fitted = mean(store).bind(model, runs.prompts), dict[Site, Value]()
    for first in range(0, len(unique), copies):
        part = unique[first : first + copies]
        fitted |= _fit(runs, part, means, target, steps, rate)
    return BySite(fitted, "optimal")


def _fit(
    runs: MeasuredRuns, sites: Sequence[Site], means: Bound, target: Tensor, steps: int, rate: float
) -> dict[Site, Value]:
    n, model = len(runs.prompts), runs.model
    recorded = forward(
        model, runs.prompts.tokens, record=[(site.kind, site.layer) for site in sites]
    ).recorded
    start, spread = [], []
    for site in sites:
        here = _part(recorded[site.kind, site.layer], site)
        start.append(means.new(site, here).expand_as(here)[0, -1].detach().clone())
        spread.append(float(here.std()) or 1.0)
    moves = [torch.zeros_like(vector, requires_grad=True) for vector in start]
    adam = torch.optim.Adam(moves, lr=rate)
    best = [vector.clone() for vector in start]
    least = torch.full((len(sites),), torch.inf)
    with torch.enable_grad():
        for _ in range(steps + 1):
            now = [vector + move * size for vector, move, size in zip(start, moves, spread, strict=True)]
            writes = [
                Edit(site, Constant(content).bind(model, runs.prompts), slice(k * n, (k + 1) * n)).write()
                for k, (site, content) in enumerate(zip(sites, now, strict=True))
            ]
            logits = forward(
                model, stacked(runs.prompts.tokens, len(sites)), writes=writes, gradients=True
            ).logits
            losses = torch.stack(
                [
                    (runs.measure(logits[k * n : (k + 1) * n], runs.prompts, range(n)) - target)
                    .square()
                    .mean()
                    for k in range(len(sites))
                ]
            )
            if not losses.requires_grad:
                raise MetricError(
                    f"The metric {runs.metric.name!r} has no gradient, so no optimal constant can be fitted to it."
                )
            for k, loss in enumerate(losses.detach().cpu()):
                if loss < least[k]:
                    least[k], best[k] = loss, now[k].detach().clone()
            slopes = torch.autograd.grad(
                losses.sum(), moves
            )  # of these alone: the weights' own are not wanted
            for move, slope in zip(moves, slopes, strict=True):
                move.grad = slope
            adam.step()
    return {site: Constant(content) for site, content in zip(sites, best, strict=True)}


def _part(activation: Tensor, site: Site) -> Tensor:
    """[example, pos, ...]: a head's or neuron's part of an activation."""
    unit = site.head if site.head is not None else site.neuron
    return activation if unit is None else activation[:, :, unit]
