"""Values that differ from site to site: `optimal` constants, and steering vectors (`BySite`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.capture import capture
from workbench.engine.hooked.forward import forward
from workbench.engine.run import Edit
from workbench.engine.runs import MeasuredRuns
from workbench.engine.values import Constant, Value, mean
from workbench.errors import EditError, MetricError
from workbench.metrics.continuations import expand
from workbench.metrics.metric import Metric
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Site


@dataclass(frozen=True, eq=False)
class BySite(Value):
    """A value for each site."""

    values: Mapping[Site, Value]
    name: str = "by_site"

    @property
    def covers_answers(self) -> bool:
        """As its values do, which are of one kind."""
        return all(value.covers_answers for value in self.values.values())

    def bind(self, model: Model, prompts: Prompts, other: Prompts | None = None) -> Bound:
        """The values for these prompts; `other` is not needed, since none of them depends on prompts."""
        return _BySiteBound(self, prompts, self.values)

    def describe(self) -> str:
        """What the values are, for results and errors."""
        return self.name


class _BySiteBound(Bound):
    def __init__(self, value: Value, prompts: Prompts, values: Mapping[Site, Value]) -> None:
        super().__init__(value, prompts)
        self.values = values

    def select(self, examples: Sequence[int]) -> "Bound":
        """The same values for some of the prompts."""
        return _BySiteBound(self.value, self.prompts.select(examples), self.values)

    def new(self, site: Site, current: Tensor) -> Tensor:
        """What the site's own value writes."""
        if site not in self.values:
            raise EditError(
                f"There is no value for {site}; there are values for "
                f"{', '.join(map(str, self.values))[:200]}."
            )
        return self.values[site].replace(current)


@model_call()
def optimal(
    model: Model,
    pairs: PromptPairs,
    sites: Sequence[Site],
    *,
    metric: Metric,
    base: str = "clean",
    steps: int = 40,
    rate: float = 0.1,
    copies: int = 16,
) -> BySite:
    """For each site its optimal constant: the one that, written in every example, keeps the metric nearest to
    the base run's.

    The mean of (m(edited) - m(base))² is minimised by Adam from the mean activation. The best constant of
    all steps is kept, so that it is never worse than the mean. Each site is fitted alone, also where it is
    later edited together with others.

    Args:
        base: the run that is edited.
        steps: of Adam.
        rate: of Adam, in standard deviations of the site's activation.
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
    unique = list(dict.fromkeys(sites))
    keys = sorted({Site(*site.key) for site in unique}, key=str)
    means = mean(capture(model, runs.prompts, sites=keys, progress=False)).bind(model, runs.prompts)
    constants: dict[Site, Value] = {}
    for first in range(0, len(unique), copies):
        constants |= _fit(runs, unique[first : first + copies], means, target, steps, rate)
    return BySite(constants, "optimal")


def _fit(
    runs: MeasuredRuns, sites: Sequence[Site], means: Bound, target: Tensor, steps: int, rate: float
) -> dict[Site, Value]:
    """The optimal constant of every site, in shared forward passes: copy k of the prompts is edited at site
    k."""
    starts, spreads = _starts(runs, sites, means)
    # Moves are in standard deviations, so that one rate suits sites of any scale.
    moves = [torch.zeros_like(start, requires_grad=True) for start in starts]
    adam = torch.optim.Adam(moves, lr=rate)
    best = [start.clone() for start in starts]
    least = torch.full((len(sites),), torch.inf)
    with torch.enable_grad():
        for _ in range(steps + 1):
            constants = [
                start + move * spread for start, move, spread in zip(starts, moves, spreads, strict=True)
            ]
            losses = _losses(runs, sites, constants, target)
            if not losses.requires_grad:
                raise MetricError(
                    f"The metric {runs.metric.name!r} has no gradient, so no optimal constant can be fitted "
                    "to it."
                )
            for k, loss in enumerate(losses.detach().cpu()):
                if loss < least[k]:
                    least[k], best[k] = loss, constants[k].detach().clone()
            # With respect to the moves alone: `backward` would also compute the gradients of the weights.
            gradients = torch.autograd.grad(losses.sum(), moves)
            for move, gradient in zip(moves, gradients, strict=True):
                move.grad = gradient
            adam.step()
    return {site: Constant(content) for site, content in zip(sites, best, strict=True)}


def _starts(runs: MeasuredRuns, sites: Sequence[Site], means: Bound) -> tuple[list[Tensor], list[float]]:
    """For each site its mean activation, where the fit begins, and the standard deviation of its numbers."""
    recorded = forward(runs.model, runs.prompts, record=[(site.kind, site.layer) for site in sites]).recorded
    starts: list[Tensor] = []
    spreads: list[float] = []
    for site in sites:
        current = _unit(recorded[site.kind, site.layer], site)
        starts.append(means.new(site, current).expand_as(current)[0, -1].detach().clone())
        # A site that never varies moves in units of 1.
        spreads.append(float(current.std()) or 1.0)
    return starts, spreads


def _losses(runs: MeasuredRuns, sites: Sequence[Site], constants: Sequence[Tensor], target: Tensor) -> Tensor:
    """[site]: the mean over examples of (m(edited) - m(base))² with its constant written at each site."""
    n = len(runs.prompts)
    copies = [slice(k * n, (k + 1) * n) for k in range(len(sites))]
    writes = []
    for site, content, copy in zip(sites, constants, copies, strict=True):
        writes.append(Edit(site, Constant(content).bind(runs.model, runs.prompts), copy).write())
    # Each site has its own copy of the prompts, so that one pass serves all: [copy * example, pos, vocab].
    logits = forward(runs.model, runs.prompts, copies=len(sites), writes=writes, gradients=True).logits
    losses: list[Tensor] = []
    for copy in copies:
        measured = runs.measure(logits[copy], runs.prompts, range(n))
        losses.append((measured - target).square().mean())
    return torch.stack(losses)


def _unit(activation: Tensor, site: Site) -> Tensor:
    """[example, pos, ...]: a head's or neuron's part of an activation."""
    unit = site.head if site.head is not None else site.neuron
    return activation if unit is None else activation[:, :, unit]
