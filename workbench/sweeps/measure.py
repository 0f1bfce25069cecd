"""What the jobs of each study measure: `STUDIES`, one function for each, over the jobs of one setting.

What the jobs share is computed once: a base run, the stores, and one walk of the engine over all their sites.
Errors are not caught here; `execute` does that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from workbench.engine.values import Value, add, mean
from workbench.interventions.effects import effects
from workbench.interventions.paths import path_effects
from workbench.interventions.site_values import BySite
from workbench.sites import Shape, Site
from workbench.statistics import bootstrap
from workbench.sweeps.circuit_studies import circuits, methods, stability
from workbench.sweeps.elements import elements_of
from workbench.sweeps.job_context import JobContext, Measurement
from workbench.sweeps.jobs import Job
from workbench.sweeps.places import JOIN, sites_of

DRAWS = 200
"""Bootstrap draws for the interval of each step of a cumulative ablation."""


def _sites(what: str) -> tuple[Site, ...]:
    """The sites that are edited together."""
    return tuple(map(Site.parse, sites_of(what)))


def _effects(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    elements = [_sites(job.what) for job in jobs]
    # One value for all jobs: its stores are read, and its constants fitted, once.
    value = context.value([site for element in elements for site in element])
    return _edited(context, elements, value)


def _steering(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    """The mean difference of the two runs at a site, times a strength, added to the run that is edited."""
    elements_by_strength: dict[float, dict[Job, tuple[Site, ...]]] = {}
    for job in jobs:
        text, _, strength = job.what.rpartition("*")
        elements_by_strength.setdefault(float(strength), {})[job] = _sites(text)
    all_sites = [site for job in jobs for site in _sites(job.what.rpartition("*")[0])]
    vectors = _mean_differences(context, all_sites)
    measured: dict[Job, Measurement] = {}
    for strength, elements in elements_by_strength.items():
        scaled = {site: add(vector * strength) for site, vector in vectors.items()}
        edited = _edited(context, list(elements.values()), BySite(scaled, "steering"))
        measured |= zip(elements, edited, strict=True)
    return [measured[job] for job in jobs]


def _mean_differences(context: JobContext, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
    """For each site the mean activation of the other run minus that of the run that is edited."""
    base = context.setting.base
    prompts, shape = context.pairs.side(base), Shape.of(context.model)
    base_store, other_store = context.inputs.stores(context.setting, sites)
    if base == "corrupt":
        base_store, other_store = other_store, base_store
    base_mean = mean(base_store).bind(context.model, prompts)
    other_mean = mean(other_store).bind(context.model, prompts)
    vectors: dict[Site, torch.Tensor] = {}
    for site in dict.fromkeys(sites):
        unit = _unit_shape(site, shape)
        # A mean does not depend on the current activation, which only gives it the shape [example, pos,
        # *unit].
        blank = torch.zeros(len(prompts), 1, *unit)
        difference = other_mean.new(site, blank) - base_mean.new(site, blank)
        vectors[site] = difference.reshape(-1, *unit)[0]
    return vectors


def _edited(context: JobContext, elements: Sequence[tuple[Site, ...]], value: Value) -> list[Measurement]:
    table = effects(
        context.model,
        context.pairs,
        sites=list(elements),
        value=value,
        base=context.setting.base,
        metric=context.metric,
        progress=False,
    )
    base = context.base()
    # A job is a site, so the columns of [example, site] become lists.
    return [Measurement(column, base) for column in table.values.T.astype(float).tolist()]


def _paths(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    ends = [job.what.split("->") for job in jobs]
    senders = list(dict.fromkeys(sender for sender, _ in ends))
    receivers = list(dict.fromkeys(receiver for _, receiver in ends))
    # The product of all ends in one walk; the jobs are some of its cells.
    table = path_effects(
        context.model,
        context.pairs,
        senders=senders,
        receivers=receivers,
        value=context.value(),
        mlps="recomputed",
        base=context.setting.base,
        metric=context.metric,
        progress=False,
    )
    base, values = context.base(), table.transpose("example", "writer", "reader").values.astype(float)
    measured: list[Measurement] = []
    for sender, receiver in ends:
        cell = values[:, senders.index(sender), receivers.index(receiver)]
        measured.append(Measurement(cell.tolist(), base))
    return measured


def _cumulative(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    return [_ablated_in_turn(context, job) for job in jobs]


def _ablated_in_turn(context: JobContext, job: Job) -> Measurement:
    """Sites ablated one after the other, each time the one that changes the metric least, until all are."""
    shape, side = Shape.of(context.model), context.setting.base
    remaining: list[tuple[Site, ...]] = []
    for entry in sites_of(job.what):
        remaining += [_sites(text) for text in elements_of(entry, shape, context.pairs, side)]
    value = context.value([site for element in remaining for site in element])
    ablated: tuple[Site, ...] = ()
    steps: dict[str, list[Any]] = {"order": [], "mean": [], "low": [], "high": []}
    last: list[float] = []
    while remaining:
        table = effects(
            context.model,
            context.pairs,
            sites=[ablated + element for element in remaining],
            value=value,
            base=side,
            metric=context.metric,
            progress=False,
        ).values.astype(float)
        # The size of the change counts: a gain is as much a departure from the model as a loss.
        best = int(np.nanargmin(np.abs(np.nanmean(table, 0))))
        low, high = bootstrap(table[:, best : best + 1], lambda sample: np.nanmean(sample, 0), draws=DRAWS)
        ablated, last = ablated + remaining[best], table[:, best].tolist()
        steps["order"].append(JOIN.join(map(str, remaining.pop(best))))
        for name, number in (("mean", np.nanmean(last)), ("low", low[0]), ("high", high[0])):
            steps[name].append(float(number))
    return Measurement(last, context.base(), steps)


def _unit_shape(site: Site, shape: Shape) -> tuple[int, ...]:
    """The shape of a site's activation at one position."""
    if site.kind in ("mlp_pre", "mlp_post"):
        if site.neuron is not None:
            return ()
        return (shape.d_mlp,)
    if site.kind in ("z", "q", "k", "v"):
        if site.head is not None:
            return (shape.d_head,)
        if site.kind in ("k", "v"):
            return (shape.n_kv_heads, shape.d_head)  # grouped queries share keys and values
        return (shape.n_heads, shape.d_head)
    return (shape.d_model,)


STUDIES: Mapping[str, Callable[[JobContext, Sequence[Job]], list[Measurement]]] = {
    "effects": _effects, "pairs": _effects, "cumulative": _cumulative, "paths": _paths, "circuits": circuits,
    "methods": methods, "stability": stability, "steering": _steering,
}  # fmt: skip
