"""What the jobs of each study measure: `STUDIES`, one function for each, over the jobs of one setting.

What the jobs share is computed once: a base run, the stores, and one walk of the engine over all their sites.
Errors are not caught here; `execute` does that.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from workbench.circuit.circuit import Circuit
from workbench.discovery.methods import find_by
from workbench.discovery.scores import METHODS as SCORES
from workbench.engine.named_values import make_value
from workbench.engine.runs import MeasuredRuns
from workbench.engine.values import Value, add, mean
from workbench.evaluation.curves import faithfulness_curve
from workbench.evaluation.evaluate import evaluate
from workbench.interventions.effects import effects
from workbench.interventions.paths import path_effects
from workbench.metrics.continuations import expand
from workbench.metrics.metric import Metric
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Shape, Site
from workbench.statistics import bootstrap
from workbench.sweeps.elements import elements_of
from workbench.sweeps.inputs import JobInputs, JobSetting, metric_of
from workbench.sweeps.jobs import Job
from workbench.sweeps.places import JOIN, sites_of
from workbench.sweeps.site_values import BySite, optimal

# Bootstrap draws for the interval of each step of a cumulative ablation.
DRAWS = 200


@dataclass(frozen=True)
class Measurement:
    """The numbers of one job, as its row in the log holds them.

    Attributes:
        values: [example], m(edited) - m(base); empty for circuits.
        m_base: [example], the metric of the base run.
        extra: what a study reports besides: a faithfulness, the steps of a cumulative ablation, edges.
    """

    values: list[float]
    m_base: list[float]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobContext:
    """Everything that the jobs of a setting work with."""

    inputs: JobInputs
    setting: JobSetting

    @property
    def metric(self) -> Metric:
        """The metric that is measured."""
        return metric_of(self.setting.metric, self.pairs)

    @property
    def model(self) -> Model:
        """The model that is run."""
        return self.inputs.model(self.setting)

    @property
    def pairs(self) -> PromptPairs:
        """The prompts."""
        return self.inputs.pairs(self.setting)

    @property
    def heldout(self) -> "JobContext":
        """The same with the prompts of the other split."""
        split = "heldout" if self.setting.split == "train" else "train"
        return JobContext(self.inputs, replace(self.setting, split=split))

    def base(self) -> list[float]:
        """[example]: the metric of the run that is edited."""
        rows = expand(self.model, self.pairs, self.metric)
        runs = MeasuredRuns(self.model, rows.pairs, self.setting.base, rows.metric)
        return rows.combine(runs.measured.cpu().to(torch.float64)).tolist()

    def value(self, sites: Sequence[Site] = ()) -> Value:
        """What is written at the sites; `optimal` is fitted to each of them."""
        setting = self.setting

        def fitted() -> Value:
            """The optimal constants of the sites."""
            return optimal(self.model, self.pairs, sites, metric=self.metric, base=setting.base)

        return make_value(
            setting.value,
            base=setting.base,
            stores=lambda: self.inputs.stores(setting, sites),
            seed=setting.seed,
            optimal=fitted,
        )


def _sites(what: str) -> tuple[Site, ...]:
    """The sites that are edited together."""
    return tuple(map(Site.parse, sites_of(what)))


def _effects(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    elements = [_sites(job.what) for job in jobs]
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
    clean, corrupt = context.inputs.stores(context.setting, sites)
    own, other = (clean, corrupt) if base == "clean" else (corrupt, clean)
    own_mean, other_mean = (mean(store).bind(context.model, prompts) for store in (own, other))
    vectors: dict[Site, torch.Tensor] = {}
    for site in dict.fromkeys(sites):
        unit = _unit_shape(site, shape)
        # A mean does not depend on the current activation, which only gives it the shape [example, pos,
        # *unit].
        blank = torch.zeros(len(prompts), 1, *unit)
        difference = other_mean.new(site, blank) - own_mean.new(site, blank)
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
    # [example, site] -> one list of examples for each site
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
    """Sites ablated in turn, each time the one whose loss changes the metric least, until none is left."""
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
        best = int(np.nanargmin(np.abs(np.nanmean(table, 0))))
        low, high = bootstrap(table[:, best : best + 1], lambda sample: np.nanmean(sample, 0), draws=DRAWS)
        ablated, last = ablated + remaining[best], table[:, best].tolist()
        steps["order"].append(JOIN.join(map(str, remaining.pop(best))))
        for name, number in (("mean", np.nanmean(last)), ("low", low[0]), ("high", high[0])):
            steps[name].append(float(number))
    return Measurement(last, context.base(), steps)


def _circuits(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    circuits = [Circuit.load(job.what) for job in jobs]
    return [_evaluated(context, circuit) for circuit in circuits]


def _evaluated(context: JobContext, circuit: Circuit, extra: Mapping[str, Any] | None = None) -> Measurement:
    """A circuit's faithfulness on the setting's prompts."""
    result = evaluate(
        circuit,
        context.model,
        context.pairs,
        value=context.value(),
        checks=(),
        metric=context.metric,
        progress=False,
    ).isel(circuit=0)
    numbers: dict[str, Any] = {name: float(result[name]) for name in ("faithfulness", "low", "high")}
    numbers["edges_in_circuit"] = int(circuit.n_edges)  # pyright: ignore[reportArgumentType]
    return Measurement([], context.base(), numbers | dict(extra or {}))


def _discovered(context: JobContext, job: Job) -> Any:
    """What a job's method finds on the setting's prompts: a circuit, and its scores where it has some."""
    method, _, size = job.what.rpartition("@")
    return find_by(
        method,
        context.model,
        context.pairs,
        value=context.value(),
        n_edges=None if method == "acdc" else int(size),
        seed=context.setting.seed,
        metric=context.metric,
        progress=False,
    )


def _methods(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    """What methods find, judged on the prompts of the other split."""
    measured: list[Measurement] = []
    heldout = context.heldout
    for job in jobs:
        start = time.perf_counter()
        discovery = _discovered(context, job)
        extra = {"find_seconds": time.perf_counter() - start}
        if job.what.rpartition("@")[0] in SCORES:
            # Areas under the faithfulness curve: edges by signed score (cpr), and by its magnitude (cmd).
            for name, by in (("cpr", "signed"), ("cmd", "magnitude")):
                curve = faithfulness_curve(
                    discovery.scores,
                    heldout.model,
                    heldout.pairs,
                    value=heldout.value(),
                    by=by,
                    metric=heldout.metric,
                    progress=False,
                )
                extra[name] = float(curve.attrs["area"])
        measured.append(_evaluated(heldout, discovery.circuit, extra))
    return measured


def _stability(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    """What a method finds on the prompts of a seed."""
    measured: list[Measurement] = []
    for job in jobs:
        circuit = _discovered(context, job).circuit
        edges = [f"{edge.writer}->{edge.reader}" for edge in circuit.edge_list]
        measured.append(_evaluated(context.heldout, circuit, {"edges": edges}))
    return measured


def _unit_shape(site: Site, shape: Shape) -> tuple[int, ...]:
    """The shape of a site's activation at one position."""
    if site.kind in ("mlp_pre", "mlp_post"):
        return () if site.neuron is not None else (shape.d_mlp,)
    if site.kind in ("z", "q", "k", "v"):
        heads = shape.n_kv_heads if site.kind in ("k", "v") else shape.n_heads
        return (shape.d_head,) if site.head is not None else (heads, shape.d_head)
    return (shape.d_model,)


STUDIES: Mapping[str, Callable[[JobContext, Sequence[Job]], list[Measurement]]] = {
    "effects": _effects, "pairs": _effects, "cumulative": _cumulative, "paths": _paths, "circuits": _circuits,
    "methods": _methods, "stability": _stability, "steering": _steering,
}  # fmt: skip
