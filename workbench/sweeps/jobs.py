"""The jobs of a sweep: which there are, what each depends on, and what several of them share."""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import xxhash

from workbench.discovery.methods import METHODS
from workbench.engine.capture import PAIR_KINDS, capture_pairs
from workbench.engine.nodes import readers, writer
from workbench.errors import SweepError, UnknownName
from workbench.interventions.paths import senders_named
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.load import load_model, model_fingerprint
from workbench.planted_models.pairs import planted_pairs
from workbench.planted_models.planted import planted
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.results import versions
from workbench.sites import KINDS, Position, Shape, Site, grid
from workbench.stores.store import ActivationStore
from workbench.sweeps.places import JOIN
from workbench.sweeps.spec import SweepSpec, TaskSpec
from workbench.tasks.registry import load_task

MEANING = 1
"""Raised when a change of the code makes the same job give another number, so that old rows are not taken for new ones."""


@dataclass(frozen=True)
class JobSetting:
    """What the jobs of a group have in common: the same prompts in the same model, edited by the same value, measured alike."""

    study: str
    model: str
    checkpoint: int | None
    task: str
    split: str
    variant: str | None
    n: int
    seed: int
    base: str
    metric: str
    value: str


@dataclass(frozen=True)
class Job:
    """One number, or one curve, to find.

    Attributes:
        what: a place or several joined by `+`, a path, a circuit's file, METHOD@EDGES, or SITE*STRENGTH.
        key: hash of everything that determines its result: the setting, `what`, weights, prompts, metric, versions.
    """

    setting: JobSetting
    what: str
    key: str


class JobInputs:
    """Models, prompts and stores that jobs share; the latest of each is kept, prompts and stores of each split.

    Args:
        device: where models run; None picks a GPU if there is one.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device = device
        self._kept: dict[str, tuple[Any, Any]] = {}

    def model(self, setting: JobSetting) -> Any:
        if planted_one := _planted_name(setting.model):
            return self._latest("model", setting.model, lambda: planted(planted_one)).model
        name = setting.model if setting.checkpoint is None else f"{setting.model}@{setting.checkpoint}"
        return self._latest("model", name, lambda: load_model(name, device=self.device))

    def pairs(self, setting: JobSetting) -> PromptPairs:
        about = (
            setting.model,
            setting.checkpoint,
            setting.task,
            setting.split,
            setting.variant,
            setting.n,
            setting.seed,
        )
        return self._latest(f"{setting.split} pairs", about, lambda: self._read(setting, self.model(setting)))

    def stores(
        self, setting: JobSetting, sites: Sequence[Site] = ()
    ) -> tuple[ActivationStore, ActivationStore]:
        """(the edited run's, the other run's) activations; those of `sites` alone where one is of a kind seldom kept."""
        pairs = self.pairs(setting)
        seldom = any(site.kind not in PAIR_KINDS for site in sites)
        keys = sorted({Site(*site.key) for site in sites}, key=str) if seldom else None
        clean, corrupt = self._latest(
            f"{setting.split} stores",
            (pairs.fingerprint, keys),
            lambda: capture_pairs(self.model(setting), pairs, sites=keys, progress=False),
        )
        return (clean, corrupt) if setting.base == "clean" else (corrupt, clean)

    def _latest(self, what: str, about: Any, make: Callable[[], Any]) -> Any:
        if self._kept.get(what, (None, None))[0] != about:
            self._kept.pop(what, None)  # first, so that two are never held at once
            self._kept[what] = about, make()
        return self._kept[what][1]

    @staticmethod
    def _read(setting: JobSetting, model: Any) -> PromptPairs:
        path = Path(setting.task)
        if name := _planted_name(setting.model):
            return planted_pairs(planted(name), n=setting.n, seed=setting.seed, split=setting.split)
        if path.suffix not in (".csv", ".jsonl"):
            return load_task(
                setting.task,
                model,
                n=setting.n,
                seed=setting.seed,
                split=setting.split,
                variant=setting.variant,
            )
        read = PromptPairs.from_csv if path.suffix == ".csv" else PromptPairs.from_jsonl
        half = read(model, path).split(seed=setting.seed)[setting.split == "heldout"]
        return half.select(range(min(setting.n, len(half))))


@dataclass(frozen=True)
class SweepPlan:
    """The jobs of a spec, in groups that share a setting."""

    spec: SweepSpec
    groups: tuple[tuple[JobSetting, tuple[Job, ...]], ...]

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(job for _, jobs in self.groups for job in jobs)

    def __len__(self) -> int:
        return len(self.jobs)


def plan(spec: SweepSpec, lab: JobInputs) -> SweepPlan:
    """Every job of a spec. Models and prompts are loaded, since what a job depends on is part of its key.

    A path whose sender comes after its receiver is no job.

    Raises:
        SweepError: there is nothing to do, or a metric or circuit file that is not there.
        UnknownName, SiteError, ...: as loading the models and tasks raises them.
    """
    groups, seen = [], set()
    for setting in _settings(spec, lab):
        pairs = lab.pairs(setting)
        prefix = _hashed(setting, model_fingerprint(lab.model(setting)), pairs.fingerprint)
        jobs = []
        for what in _whats(spec, lab.model(setting), pairs):
            key = prefix.copy()
            key.update(_content(spec, what))
            jobs.append(Job(setting, what, key.hexdigest()))
        jobs = [job for job in jobs if job.key not in seen and not seen.add(job.key)]
        groups.append((setting, tuple(jobs)))
    if not any(jobs for _, jobs in groups):
        raise SweepError(
            "The sweep has no jobs: no site, path, circuit or method is left. Check sites, senders and receivers."
        )
    return SweepPlan(spec, tuple(groups))


def metric_of(name: str, pairs: PromptPairs) -> Metric:
    """The metric of a setting: a built-in name, or a function of a module, as in `mine:my_metric`."""
    if ":" not in name:
        return as_metric(name or pairs.metric)
    module, _, function = name.partition(":")
    try:
        return as_metric(getattr(importlib.import_module(module), function))
    except Exception as error:  # the module is run, and may raise anything
        raise SweepError(
            f"The metric {name!r} cannot be found: {error}. Write MODULE:FUNCTION of a module that can be imported from here."
        ) from error


def _planted_name(model: str) -> str | None:
    """The variant of a model whose weights were set by hand, as in `planted-backup`; its task is its own."""
    return model.removeprefix("planted-") if model.startswith("planted-") else None


def _settings(spec: SweepSpec, lab: JobInputs) -> Iterator[JobSetting]:
    for model in spec.models:
        for step in spec.checkpoints or (None,):
            for task in spec.tasks:
                if _planted_name(model) and (task.name != "planted" or task.variant or step is not None):
                    raise SweepError(
                        f"The model {model!r} brings its own prompts and has no checkpoints: write tasks: [planted], without "
                        "variant and checkpoints."
                    )
                for seed in spec.seeds:
                    first = _setting(spec, model, step, task, seed, "", spec.values[0])
                    for metric in spec.metrics or (lab.pairs(first).metric,):
                        metric_of(metric, lab.pairs(first))
                        for value in spec.values:
                            yield _setting(spec, model, step, task, seed, metric, value)


def _setting(
    spec: SweepSpec, model: str, step: int | None, task: TaskSpec, seed: int, metric: str, value: str
) -> JobSetting:
    split, n = task.split or spec.split, task.n or spec.n
    return JobSetting(
        spec.study, model, step, task.name, split, task.variant, n, seed, spec.base, metric, value
    )


def _whats(spec: SweepSpec, model: Any, pairs: PromptPairs) -> list[str]:
    """What the jobs of a setting are about, in order."""
    shape = Shape.of(model)
    if spec.study == "circuits":
        return list(spec.circuits)
    if spec.study in ("methods", "stability"):
        for method in spec.methods:
            if method not in METHODS:
                raise UnknownName("method", method, METHODS)
        return [f"{method}@{size}" for method in spec.methods for size in spec.n_edges]
    if spec.study == "paths":
        return _paths(spec, shape)
    if spec.study == "cumulative":
        for entry in spec.sites:
            elements_of(entry, shape, pairs, spec.base)
        return [JOIN.join(_text(entry) for entry in spec.sites)]
    elements = [element for entry in spec.sites for element in elements_of(entry, shape, pairs, spec.base)]
    if spec.study == "steering":
        return [f"{element}*{strength:g}" for element in elements for strength in spec.strengths]
    if spec.study == "pairs":
        return elements + [JOIN.join(pair) for pair in combinations(elements, 2)]
    return elements


def elements_of(entry: str | Sequence[str], shape: Shape, pairs: PromptPairs, base: str) -> list[str]:
    """The places that an entry of `sites` stands for: one, several edited together, or all of a kind."""
    prompts = pairs.side(base)
    if not isinstance(entry, str) or "[" in entry or JOIN in entry:
        sites = [
            Site.parse(text).check(shape) for text in (entry.split(JOIN) if isinstance(entry, str) else entry)
        ]
        for site in sites:
            _check_place(site.pos, entry, prompts)
        return [JOIN.join(map(str, sites))]
    kind, at, place = entry.partition("@")
    if kind not in KINDS or (at and not place):
        Site.parse(entry)
    pos: Any = "all" if not place else [int(place) if place.isdigit() else place]
    if place == "each":
        pos = list(range(int(prompts.lengths.max())))
    elif place:
        _check_place(pos[0], entry, prompts)
    return [str(site) for site in grid(kind, shape, pos=pos)]


def _check_place(pos: Position | None, entry: Any, prompts: Prompts) -> None:
    """Raise unless some prompt has that position."""
    if pos is not None and bool((prompts.at(pos) < 0).all()):
        raise SweepError(
            f"The site {_text(entry)!r}: no prompt has that position; the longest has {int(prompts.lengths.max())} tokens."
        )


def _text(entry: str | Sequence[str]) -> str:
    return entry if isinstance(entry, str) else JOIN.join(entry)


def _paths(spec: SweepSpec, shape: Shape) -> list[str]:
    senders: list[str] = []
    for name in spec.senders:
        named = senders_named(name, shape)
        senders += [name] if named == name else list(map(str, named))
    writers = {sender: writer(sender, shape) for sender in senders}
    read = {receiver: readers(receiver, shape) for receiver in spec.receivers}
    return [
        f"{sender}->{receiver}"
        for sender in senders
        for receiver in spec.receivers
        if any(writers[sender].reaches(reader) for reader in read[receiver])
    ]


def _hashed(setting: JobSetting, model: str, data: str) -> Any:
    """The hash of what a whole group depends on, to be completed by each job."""
    about = asdict(setting) | {"model_fingerprint": model, "data_fingerprint": data, "meaning": MEANING}
    about |= {
        "metric_source": _source(setting.metric),
        "transformer_lens": versions()["version_transformer_lens"],
    }
    return xxhash.xxh3_128(json.dumps(about, sort_keys=True).encode())


@cache
def _source(metric: str) -> str:
    """A hash of the module that a metric of one's own is in: changed code is another job."""
    if ":" not in metric:
        return ""
    file = importlib.import_module(metric.partition(":")[0]).__file__
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def _content(spec: SweepSpec, what: str) -> bytes:
    if spec.study != "circuits":
        return what.encode()
    try:
        return Path(what).read_bytes()
    except OSError as error:
        raise SweepError(f"The circuit {what!r} cannot be read: {error.strerror}.") from error
