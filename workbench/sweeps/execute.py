"""Running the jobs of one setting: what they share is computed once, and a job that fails does not take others with it."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from workbench.circuit.circuit import Circuit
from workbench.discovery.methods import find_by
from workbench.discovery.scores import METHODS as SCORES
from workbench.engine.runs import MeasuredRuns
from workbench.engine.values import Value, add, constant, mean, resample, scale, zero
from workbench.engine.values import from_store as other_run
from workbench.errors import NotFinite
from workbench.evaluation.curves import faithfulness_curve
from workbench.evaluation.evaluate import evaluate
from workbench.interventions.effects import effects
from workbench.interventions.paths import path_effects
from workbench.metrics.continuations import expand
from workbench.metrics.metric import Metric
from workbench.models.load import one_fingerprint
from workbench.sites import Shape, Site
from workbench.statistics import bootstrap
from workbench.sweeps.jobs import Job, JobInputs, JobSetting, elements_of, metric_of
from workbench.sweeps.places import JOIN, sites_of
from workbench.sweeps.site_values import BySite, optimal

LogRow = dict[str, Any]
SEPARATE = ("circuits", "methods", "stability", "cumulative")
"""Studies whose jobs have nothing to share but the model and the prompts: each is a batch of its own."""


@dataclass(frozen=True)
class _SettingInputs:
    """Everything that the jobs of a setting work with."""

    lab: JobInputs
    setting: JobSetting

    @property
    def how(self) -> dict[str, Any]:
        return {"metric": self.metric, "progress": False}

    @property
    def metric(self) -> Metric:
        return metric_of(self.setting.metric, self.lab.pairs(self.setting))

    @property
    def model(self) -> Any:
        return self.lab.model(self.setting)

    @property
    def pairs(self) -> Any:
        return self.lab.pairs(self.setting)

    @property
    def heldout(self) -> "_SettingInputs":
        """The same with the prompts of the other split."""
        return _SettingInputs(
            self.lab, replace(self.setting, split="heldout" if self.setting.split == "train" else "train")
        )

    def base(self) -> list[float]:
        """[example]: the metric of the run that is edited."""
        rows = expand(self.model, self.pairs, self.metric)
        runs = MeasuredRuns(self.model, rows.pairs, self.setting.base, rows.metric)
        return rows.combine(runs.measured.cpu().to(torch.float64)).tolist()

    def value(self, sites: Sequence[Site] = ()) -> Value:
        """What is written, by its name in the spec; `optimal` is fitted to each site."""
        name, _, number = self.setting.value.partition(":")
        if name == "optimal":
            return optimal(self.model, self.pairs, sites, metric=self.metric, base=self.setting.base)
        if name in ("constant", "scale"):
            return {"constant": constant, "scale": scale}[name](float(number))
        if name == "zero":
            return zero()
        own, other = self.lab.stores(self.setting, sites)
        return {
            "mean": lambda: mean(own),
            "resample": lambda: resample(own, self.setting.seed),
            "other": lambda: other_run(other),
        }[name]()


def run_jobs(lab: JobInputs, jobs: Sequence[Job]) -> list[LogRow]:
    """A row for each job, in order; every job is of one setting.

    Where a batch fails its halves are run, and theirs, so that only the jobs at fault are recorded as failed.
    """
    try:
        return _timed(lab, jobs)
    except Exception as error:
        if len(jobs) == 1:
            return [_failure(jobs[0], error)]
    middle = len(jobs) // 2
    return run_jobs(lab, jobs[:middle]) + run_jobs(lab, jobs[middle:])


def _timed(lab: JobInputs, jobs: Sequence[Job]) -> list[LogRow]:
    setting, start = jobs[0].setting, time.perf_counter()
    with one_fingerprint():
        rows = _STUDIES[setting.study](_SettingInputs(lab, setting), jobs)
    each, told = (time.perf_counter() - start) / len(jobs), asdict(setting)
    return [
        {"job": job.key, "status": _status(row), "seconds": round(each, 6), **told, "what": job.what, **row}
        for job, row in zip(jobs, rows, strict=True)
    ]


def _failure(job: Job, error: Exception) -> LogRow:
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)
    status = "nan" if isinstance(error, NotFinite) else "memory" if memory else "failed"
    told = "".join(traceback.format_exception(error))[-8000:]
    return unmeasured(job, status, f"{type(error).__name__}: {error}", told)


def unmeasured(job: Job, status: str, error: str, told: str | None = None) -> LogRow:
    """The row of a job that gave no numbers, with the reason and its traceback."""
    about = {"job": job.key, "status": status, "seconds": 0.0, **asdict(job.setting), "what": job.what}
    return about | {"values": [], "m_base": [], "error": error, "traceback": told}


def _status(row: LogRow) -> str:
    """`nan` where a job measured nothing, or something that is not a number though the base run is."""
    numbers = [*row["values"], *(x for x in row.get("extra", {}).values() if isinstance(x, float))]
    base_known = any(np.isfinite(row["m_base"])) if row["m_base"] else True
    return "done" if base_known and (not numbers or any(np.isfinite(numbers))) else "nan"


def _together(what: str) -> tuple[Site, ...]:
    """The sites that are edited together."""
    return tuple(map(Site.parse, sites_of(what)))


def _effects(bench: _SettingInputs, jobs: Sequence[Job]) -> list[LogRow]:
    elements = [_together(job.what) for job in jobs]
    value = bench.value([site for element in elements for site in element])
    return _edited(bench, elements, value)


def _steering(bench: _SettingInputs, jobs: Sequence[Job]) -> list[LogRow]:
    """The mean difference of the two runs at a place, in multiples, added to the run that is edited."""
    prompts, shape = bench.pairs.side(bench.setting.base), Shape.of(bench.model)
    asked: dict[float, dict[Job, tuple[Site, ...]]] = {}
    for job in jobs:
        text, _, strength = job.what.rpartition("*")
        asked.setdefault(float(strength), {})[job] = _together(text)
    sites = [site for elements in asked.values() for element in elements.values() for site in element]
    here, there = (mean(store).bind(bench.model, prompts) for store in bench.lab.stores(bench.setting, sites))
    rows: dict[Job, LogRow] = {}
    for strength, elements in asked.items():
        way = {}
        for site in dict.fromkeys(site for element in elements.values() for site in element):
            unit = _unit(site, shape)
            blank = torch.zeros(len(prompts), 1, *unit)
            apart = there.new(site, blank) - here.new(site, blank)
            way[site] = add(apart.reshape(-1, *unit)[0] * strength)
        rows |= zip(elements, _edited(bench, [*elements.values()], BySite(way, "steering")), strict=True)
    return [rows[job] for job in jobs]


def _edited(bench: _SettingInputs, elements: Sequence[tuple[Site, ...]], value: Value) -> list[LogRow]:
    table = effects(
        bench.model, bench.pairs, sites=list(elements), value=value, base=bench.setting.base, **bench.how
    )
    base = bench.base()
    return [_row(column, base) for column in table.values.T.astype(float).tolist()]


def _row(values: list[float], base: list[float], **extra: Any) -> LogRow:
    return {"values": values, "m_base": base, "error": None, "extra": extra}


def _paths(bench: _SettingInputs, jobs: Sequence[Job]) -> list[LogRow]:
    parts = [job.what.split("->") for job in jobs]
    senders, readers = ([*dict.fromkeys(names)] for names in zip(*parts, strict=True))
    table = path_effects(
        bench.model, bench.pairs, senders=senders, receivers=readers, value=bench.value(), mlps="recomputed",
        base=bench.setting.base, **bench.how,
    )  # fmt: skip
    base, values = bench.base(), table.transpose("example", "writer", "reader").values.astype(float)
    return [_row(values[:, senders.index(a), readers.index(b)].tolist(), base) for a, b in parts]


def _cumulative(bench: _SettingInputs, jobs: Sequence[Job]) -> list[LogRow]:
    """Sites taken out one after the other, each time the one that is missed least, until all are."""
    rows = []
    for job in jobs:
        shape, side = Shape.of(bench.model), bench.setting.base
        every = [
            text for entry in sites_of(job.what) for text in elements_of(entry, shape, bench.pairs, side)
        ]
        left = [_together(text) for text in every]
        value = bench.value([site for element in left for site in element])
        gone: tuple[Site, ...] = ()
        steps: dict[str, list[Any]] = {"order": [], "mean": [], "low": [], "high": []}
        last: list[float] = []
        while left:
            table = effects(
                bench.model,
                bench.pairs,
                sites=[gone + each for each in left],
                value=value,
                base=side,
                **bench.how,
            ).values.astype(float)
            best = int(np.nanargmin(np.abs(np.nanmean(table, 0))))
            low, high = bootstrap(table[:, best : best + 1], lambda sample: np.nanmean(sample, 0), draws=200)
            gone, last = gone + left[best], table[:, best].tolist()
            steps["order"].append(JOIN.join(map(str, left.pop(best))))
            for name, number in (("mean", np.nanmean(last)), ("low", low[0]), ("high", high[0])):
                steps[name].append(float(number))
        rows.append(_row(last, bench.base(), **steps))
    return rows


def _circuits(bench: _SettingInputs, jobs: Sequence[Job]) -> list[LogRow]:
    circuits = [Circuit.load(job.what) for job in jobs]
    return [_judged(bench, circuit) for circuit in circuits]


def _judged(bench: _SettingInputs, circuit: Circuit, **extra: Any) -> LogRow:
    """A circuit's faithfulness on the setting's prompts."""
    result = evaluate(circuit, bench.model, bench.pairs, value=bench.value(), checks=(), **bench.how).isel(
        circuit=0
    )
    numbers = {name: float(result[name]) for name in ("faithfulness", "low", "high")}
    numbers["edges_in_circuit"] = int(circuit.n_edges)  # pyright: ignore[reportArgumentType]
    return _row([], bench.base(), **numbers, **extra)


def _found(bench: _SettingInputs, job: Job) -> Any:
    method, _, size = job.what.rpartition("@")
    return find_by(
        method, bench.model, bench.pairs, value=bench.value(), n_edges=None if method == "acdc" else int(size),
        seed=bench.setting.seed, **bench.how,
    )  # fmt: skip


def _methods(bench: _SettingInputs, jobs: Sequence[Job]) -> list[LogRow]:
    """What methods find, judged on the prompts of the other split."""
    rows = []
    for job in jobs:
        start = time.perf_counter()
        found = _found(bench, job)
        seconds = time.perf_counter() - start
        held = bench.heldout
        areas = {}
        if job.what.rpartition("@")[0] in SCORES:
            for name, by in (("cpr", "signed"), ("cmd", "magnitude")):
                curve = faithfulness_curve(
                    found.scores, held.model, held.pairs, value=held.value(), by=by, **held.how
                )
                areas[name] = float(curve.attrs["area"])
        rows.append(_judged(held, found.circuit, find_seconds=seconds, **areas))
    return rows


def _stability(bench: _SettingInputs, jobs: Sequence[Job]) -> list[LogRow]:
    """What a method finds on the prompts of a seed."""
    rows = []
    for job in jobs:
        circuit = _found(bench, job).circuit
        held = bench.heldout
        rows.append(
            _judged(held, circuit, edges=[f"{edge.writer}->{edge.reader}" for edge in circuit.edge_list])
        )
    return rows


def _unit(site: Site, shape: Shape) -> tuple[int, ...]:
    """The shape of a site's activation at one position."""
    if site.kind in ("mlp_pre", "mlp_post"):
        return () if site.neuron is not None else (shape.d_mlp,)
    if site.kind in ("z", "q", "k", "v"):
        heads = shape.n_kv_heads if site.kind in ("k", "v") else shape.n_heads
        return (shape.d_head,) if site.head is not None else (heads, shape.d_head)
    return (shape.d_model,)


_STUDIES: Mapping[str, Callable[[_SettingInputs, Sequence[Job]], list[LogRow]]] = {
    "effects": _effects, "pairs": _effects, "cumulative": _cumulative, "paths": _paths, "circuits": _circuits,
    "methods": _methods, "stability": _stability, "steering": _steering,
}  # fmt: skip
