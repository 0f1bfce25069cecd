"""The jobs of a sweep: which there are, and the key that identifies each. Read `Job` and `plan` first.

A job's key is a hash of everything that its result depends on. A folder that holds the key holds the result,
so keys must never change by accident: `tests/sweeps/old_sweep` is a folder of an earlier version that has to
resume.
"""

import hashlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import xxhash

from workbench.discovery.methods import METHODS
from workbench.engine.named_values import covers_answers, key_name
from workbench.engine.nodes import readers, writer
from workbench.errors import SweepError, UnknownName
from workbench.files import read_bytes
from workbench.interventions.paths import senders_named
from workbench.metrics.metric import BUILT_IN
from workbench.models.fingerprint import model_fingerprint
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.results import versions
from workbench.sites import Shape
from workbench.sweeps.elements import elements_of, entry_text
from workbench.sweeps.inputs import JobInputs, JobSetting, metric_of, planted_variant
from workbench.sweeps.places import JOIN
from workbench.sweeps.spec import SweepSpec, TaskSpec

# Increased by one when a change of the code makes the same job give another number: old rows must not pass
# for new ones.
MEANING = 1
# Of jobs whose edits cover the tokens of answers, which earlier versions left unchanged.
MEANING_WITH_ANSWERS = 2


@dataclass(frozen=True)
class Job:
    """One number for each example, or one curve, to measure.

    Attributes:
        what: a site or several joined by `+`, a path, a circuit's file, METHOD@EDGES, or SITE*STRENGTH.
        key: hash of everything that determines its result: the setting, `what`, weights, prompts, metric,
            versions.
    """

    setting: JobSetting
    what: str
    key: str


@dataclass(frozen=True)
class SweepPlan:
    """The jobs of a spec, in groups that share a setting."""

    spec: SweepSpec
    groups: tuple[tuple[JobSetting, tuple[Job, ...]], ...]

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """All jobs, group by group."""
        return tuple(job for _, jobs in self.groups for job in jobs)

    def __len__(self) -> int:
        return len(self.jobs)


def plan(spec: SweepSpec, inputs: JobInputs) -> SweepPlan:
    """Every job of a spec. Models and prompts are loaded, since what a job depends on is part of its key.

    A path whose sender comes after its receiver gives no job.

    Raises:
        SweepError: there is nothing to do, or a metric or circuit file does not exist.
        UnknownName: an unknown task, metric, method, kind or position.
        SiteError: a site that the model does not have.
        ModelError, PromptError: as loading the models and tasks raises them.
    """
    groups: list[tuple[JobSetting, tuple[Job, ...]]] = []
    known_keys: set[str] = set()
    for setting in _settings(spec, inputs):
        model, pairs = inputs.model(setting), inputs.pairs(setting)
        setting_hash = _setting_hash(setting, model_fingerprint(model), pairs.fingerprint)
        jobs: list[Job] = []
        for target in _whats(spec, model, pairs):
            job_hash = setting_hash.copy()
            job_hash.update(_content(spec, target))
            key = job_hash.hexdigest()
            # Entries of a spec may overlap ("z" and "z[1.2]"): the first of equal jobs is kept.
            if key not in known_keys:
                known_keys.add(key)
                jobs.append(Job(setting, target, key))
        groups.append((setting, tuple(jobs)))
    if not known_keys:
        raise SweepError(
            "The sweep has no jobs: no site, path, circuit or method is left. Check sites, senders and "
            "receivers."
        )
    return SweepPlan(spec, tuple(groups))


def _settings(spec: SweepSpec, inputs: JobInputs) -> Iterator[JobSetting]:
    """Every combination of the spec's lists, models outermost: loading them costs most."""
    for model in spec.models:
        for step in spec.checkpoints or (None,):
            for task in spec.tasks:
                _check_planted(model, step, task)
                for seed in spec.seeds:
                    first = _setting(spec, model, step, task, seed, "", spec.values[0])
                    for metric in spec.metrics or (inputs.pairs(first).metric,):
                        metric_of(metric, inputs.pairs(first))  # called for its error, before anything runs
                        for value in spec.values:
                            yield _setting(spec, model, step, task, seed, metric, value)


def _check_planted(model: str, step: int | None, task: TaskSpec) -> None:
    if planted_variant(model) and (task.name != "planted" or task.variant or step is not None):
        raise SweepError(
            f"The model {model!r} brings its own prompts and has no checkpoints: write tasks: [planted], "
            "without variant and checkpoints."
        )


def _setting(
    spec: SweepSpec, model: str, step: int | None, task: TaskSpec, seed: int, metric: str, value: str
) -> JobSetting:
    return JobSetting(
        study=spec.study, model=model, checkpoint=step, task=task.name, split=task.split or spec.split,
        variant=task.variant, n=task.n or spec.n, seed=seed, base=spec.base, metric=metric, value=value,
    )  # fmt: skip


def _whats(spec: SweepSpec, model: Model, pairs: PromptPairs) -> list[str]:
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
    elements: list[str] = []
    for entry in spec.sites:
        elements += elements_of(entry, shape, pairs, spec.base)
    if spec.study == "cumulative":
        # One job for all of them, since every step depends on the steps before it. The loop above has only
        # checked its entries.
        return [JOIN.join(map(entry_text, spec.sites))]
    if spec.study == "steering":
        return [f"{element}*{strength:g}" for element in elements for strength in spec.strengths]
    if spec.study == "pairs":
        return elements + [JOIN.join(pair) for pair in combinations(elements, 2)]
    return elements


def _paths(spec: SweepSpec, shape: Shape) -> list[str]:
    """Every sender with every receiver that it can reach."""
    senders: list[str] = []
    for name in spec.senders:
        named = senders_named(name, shape)
        if named == name:
            senders.append(name)
        else:
            senders += map(str, named)
    writers = {sender: writer(sender, shape) for sender in senders}
    ends = {receiver: readers(receiver, shape) for receiver in spec.receivers}
    paths: list[str] = []
    for sender in senders:
        for receiver in spec.receivers:
            # A receiver before its sender would be a run with an effect of exactly 0.
            if any(map(writers[sender].reaches, ends[receiver])):
                paths.append(f"{sender}->{receiver}")
    return paths


def _setting_hash(setting: JobSetting, model: str, data: str) -> Any:
    """The hash of what a whole group depends on, to be completed by each job."""
    facts = asdict(setting) | {
        # Earlier versions called the run that is not edited "other". Keys keep that spelling, so that their
        # folders resume.
        "value": key_name(setting.value, base=setting.base),
        "model_fingerprint": model,
        "data_fingerprint": data,
        "meaning": _meaning(setting),
        "metric_source": _metric_source(setting.metric),
        "transformer_lens": versions()["version_transformer_lens"],
    }
    return xxhash.xxh3_128(json.dumps(facts, sort_keys=True).encode())


def _meaning(setting: JobSetting) -> int:
    """The number that stands in a key for what the code makes of such a job."""
    named = BUILT_IN.get(setting.metric)
    if named is None or not named.reads_answer_tokens:
        return MEANING
    # Steering adds vectors, whatever its spec says under `values`.
    if setting.study == "steering" or covers_answers(setting.value, base=setting.base):
        return MEANING_WITH_ANSWERS
    return MEANING


@cache
def _metric_source(metric: str) -> str:
    """A hash of the module that defines a metric of the user's own: changed code is another job."""
    if ":" not in metric:
        return ""
    file = importlib.import_module(metric.partition(":")[0]).__file__
    if not file:
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _content(spec: SweepSpec, what: str) -> bytes:
    """What a job adds to the hash of its group: its text, or for a circuit the content of its file."""
    if spec.study != "circuits":
        return what.encode()
    try:
        return read_bytes(what)
    except OSError as error:
        raise SweepError(f"The circuit {what!r} cannot be read: {error.strerror}.") from error
