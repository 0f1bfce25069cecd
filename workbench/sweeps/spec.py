"""What a sweep is to do: `SweepSpec`, the same in Python, in YAML and on the command line.

A spec is the product of models, checkpoints, tasks, seeds, values and metrics with the sites, paths, circuits
or methods of one study. A preset is a name for the fields of a common study; it is replaced by them when the
spec is read. This module knows names only: whether a model or a site exists is found out by `jobs.plan`.
"""

import inspect
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from workbench.arguments import shortened
from workbench.documents import read_yaml
from workbench.engine.named_values import NAMES, canonical_name
from workbench.errors import EditError, SweepError, UnknownName

Study = Literal["effects", "pairs", "cumulative", "paths", "circuits", "methods", "stability", "steering"]
# "other" is the run that is not edited, so that a preset goes with either base; the spec turns it into that
# run's name.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "head-ablation": {"study": "effects", "sites": ["z"]},
    "layer-ablation": {"study": "effects", "sites": ["attn_out", "mlp_out"]},
    "neuron-ablation": {"study": "effects", "sites": ["mlp_post"]},
    "cumulative-ablation": {"study": "cumulative", "sites": ["z"]},
    "pairwise-ablation": {"study": "pairs", "sites": ["z"]},
    "position-sweep": {"study": "effects", "sites": ["resid_pre@each"], "values": ["other"]},
    "path-sweep": {"study": "paths", "senders": ["heads"], "receivers": ["logits"], "values": ["other"]},
    "circuit-evaluation": {"study": "circuits", "values": ["other"]},
    "method-comparison": {
        "study": "methods", "methods": ["eap", "eap-ig-inputs", "exact", "random"], "values": ["other"],
    },
    "circuit-stability": {
        "study": "stability", "methods": ["eap-ig-inputs"], "seeds": [0, 1, 2, 3, 4], "values": ["other"],
    },
    "steering": {
        "study": "steering", "sites": ["resid_post"], "strengths": [-2.0, -1.0, 1.0, 2.0],
        "values": ["other"],
    },
}  # fmt: skip
# Studies whose jobs edit sites, so that a constant can be fitted to each.
FITTED = ("effects", "pairs", "cumulative")
# A circuit is a run of the clean prompts, so these studies have no other base.
FROM_CLEAN = ("circuits", "methods", "stability")


def _no_truth(number: Any) -> Any:
    """A number as it is. Raises `ValueError` for True and False, which Python takes for 1 and 0."""
    if isinstance(number, bool):
        raise ValueError(f"{number} is not a number")
    return number


_Whole = Annotated[int, BeforeValidator(_no_truth)]
# Keys of jobs and columns of tables hold 64-bit integers.
Count = Annotated[_Whole, Field(ge=0, lt=2**63)]
# Bounded above any real sweep: a wrong number in a file must not fill the memory before it is noticed.
PromptCount = Annotated[_Whole, Field(ge=1, le=10**7)]
Strength = Annotated[FiniteFloat, BeforeValidator(_no_truth)]
MOST_SETTINGS = 10**6
"""Combinations of models, checkpoints, tasks, seeds, metrics and values."""
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "effects": ("sites",), "pairs": ("sites",), "cumulative": ("sites",), "steering": ("sites", "strengths"),
    "paths": ("senders", "receivers"), "circuits": ("circuits",), "methods": ("methods", "n_edges"),
    "stability": ("methods", "n_edges"),
}  # fmt: skip
_WITHOUT_REPEATS = (
    "models", "checkpoints", "tasks", "sites", "circuits", "methods", "n_edges", "values", "metrics", "seeds",
)  # fmt: skip


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskSpec(_Frozen):
    """Prompts: a task's name, or the path of a CSV or JSONL file of pairs.

    Attributes:
        n, split: None takes the sweep's.
        variant: the kind of corruption; None takes the task's first.
    """

    name: str
    n: PromptCount | None = None
    split: Literal["train", "heldout"] | None = None
    variant: str | None = None


class SweepSpec(_Frozen):
    """The whole of a sweep, as one immutable object.

    Attributes:
        models: names or directories, as `load_model` takes them, or `planted-VARIANT`, which brings its own
            prompts (task: planted).
        checkpoints: training steps of an embedded model; empty for the trained one.
        tasks: names, files, or `TaskSpec`s.
        n, split: of the tasks that do not set their own.
        study: "effects" of single sites; "pairs" of two together, for synergy; "cumulative", least important
            first; "paths"; faithfulness of "circuits"; discovery by "methods"; "stability" of what a method
            finds over seeds; "steering".
        sites: kinds ("z": each head; "mlp_post": each neuron; "resid_pre@each", "resid_pre@END": each layer
            at these positions), sites ("z[1.2]"), or lists of sites that are edited together.
        senders, receivers: of paths, as `path_effects` takes them.
        circuits: files.
        methods: of `score_edges`, "acdc", "learn-edges" or "learn-nodes" (`workbench ls methods`).
        n_edges: sizes of the circuits that methods find.
        strengths: of steering.
        base: the run that is edited, "clean" or "corrupt".
        values: clean or corrupt (the run that is not edited), zero, mean, resample, optimal (the optimal
            constant: lowest loss), constant:X, scale:X. `other` and `from_store` are read as the run that is
            not edited.
        metrics: names, or "module:function"; empty for the task's own.
        seeds: of prompts and of resampling.
        bos: whether prompts begin with BOS; None as the tokenizer adds it.

    Raises:
        SweepError: a field that does not fit.
        UnknownName: an unknown preset, field or value.

    >>> SweepSpec(preset="head-ablation", tasks=["ioi"]).sites
    ('z',)
    >>> SweepSpec(preset="position-sweep", tasks=["ioi"]).values
    ('corrupt',)
    """

    study: Study
    models: tuple[str, ...] = Field(default=("tiny",), min_length=1)
    checkpoints: tuple[_Whole, ...] = ()
    tasks: tuple[TaskSpec, ...] = Field(min_length=1)
    n: PromptCount = 32
    split: Literal["train", "heldout"] = "train"
    sites: tuple[str | Annotated[tuple[str, ...], Field(min_length=1)], ...] = ()
    senders: tuple[str, ...] = ()
    receivers: tuple[str, ...] = ()
    circuits: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    n_edges: tuple[Count, ...] = (30,)
    strengths: tuple[Strength, ...] = ()
    # Before `values`, whose validator needs it: pydantic validates fields in this order.
    base: Literal["clean", "corrupt"] = "clean"
    values: tuple[str, ...] = Field(default=("zero",), min_length=1)
    metrics: tuple[str, ...] = ()
    seeds: tuple[Count, ...] = Field(default=(0,), min_length=1)
    bos: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, fields: Any) -> Any:
        """The fields that a preset stands for; a field beside it wins."""
        if not isinstance(fields, Mapping) or "preset" not in fields:
            return fields
        preset = fields["preset"]
        rest = dict(fields)
        del rest["preset"]
        if preset is None:
            return rest
        # A list of the names and not the mapping: what cannot be hashed is refused too.
        if preset not in list(PRESETS):
            raise UnknownName("preset", preset, PRESETS)
        return {**PRESETS[preset], **rest}

    @field_validator("tasks", mode="before")
    @classmethod
    def _named(cls, tasks: Any) -> Any:
        """Tasks as mappings: a bare name is a mapping of that name."""
        if not isinstance(tasks, list | tuple):
            return tasks
        mappings: list[Any] = []
        for task in tasks:
            if isinstance(task, str):
                task = {"name": task}
            mappings.append(task)
        return mappings

    @field_validator("values")
    @classmethod
    def _canonical(cls, values: tuple[str, ...], info: Any) -> tuple[str, ...]:
        """Values under their one name, so that specs which mean the same are equal."""
        # `info` is pydantic's ValidationInfo (2.x), a protocol: the run-time check of types cannot test it.
        base = info.data.get("base", "clean")
        try:
            canonical: list[str] = []
            for value in values:
                canonical.append(canonical_name(value, base=base, choices=NAMES, argument="values"))
            return tuple(canonical)
        except EditError as error:  # pydantic collects ValueErrors alone
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _complete(self) -> "SweepSpec":
        """The spec, if it has what its study needs and lists nothing twice."""
        for name in _NEEDED[self.study]:
            if not getattr(self, name):
                raise ValueError(f"the study {self.study!r} needs {name}")
        if "optimal" in self.values and self.study not in FITTED:
            raise ValueError(
                f"the value 'optimal' is fitted to sites, and the study {self.study!r} has none; it goes "
                f"with the studies {', '.join(FITTED)}"
            )
        if self.base == "corrupt" and self.study in FROM_CLEAN:
            raise ValueError(f"the study {self.study!r} runs clean prompts; leave out base")
        for name in _WITHOUT_REPEATS:
            entries = getattr(self, name)
            if len(set(entries)) < len(entries):
                raise ValueError(f"{name} has an entry twice")
        axes = (self.models, self.checkpoints, self.tasks, self.seeds, self.metrics, self.values)
        n_settings = prod(max(1, len(axis)) for axis in axes)
        if n_settings > MOST_SETTINGS:
            raise ValueError(
                f"it has {n_settings} combinations of models, tasks, seeds, metrics and values; a sweep may "
                f"have {MOST_SETTINGS}: split it"
            )
        return self

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _explained(error) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text; `read_spec` makes an equal spec of it."""
        return self.model_dump(mode="json")


# pydantic's own has a validator in every annotation: 1,800 characters.
SweepSpec.__signature__ = shortened(inspect.signature(SweepSpec))


class FileFields(dict[str, Any]):
    """Fields of a spec that were read from a file: code that they name may be anybody's (see `trust`)."""


def read_spec(source: "SweepSpec | Mapping[str, Any] | str | Path", **changes: Any) -> SweepSpec:
    """A spec from a YAML or JSON file, a mapping, or a spec.

    `changes` replace fields of the source. A preset among them replaces every field that it stands for.

    Raises:
        SweepError: no such file, or a field that does not fit.
        UnknownName: an unknown field, preset or value.
    """
    fields: Any = source
    if isinstance(source, SweepSpec):
        fields = source.to_dict()
    if isinstance(fields, str | Path):
        fields = _file(Path(fields))
    if not isinstance(fields, Mapping):
        raise SweepError(
            "A sweep is a mapping of fields (tasks: [ioi], preset: head-ablation), not "
            f"{type(fields).__name__}."
        )
    # YAML has keys of other kinds, numbers for one.
    unnamed = [name for name in fields if not isinstance(name, str)]
    if unnamed:
        raise UnknownName("field", unnamed[0], [*SweepSpec.model_fields, "preset"])
    replaced = PRESETS.get(str(changes.get("preset")), {})
    kept = {name: value for name, value in fields.items() if name not in replaced}
    try:
        return SweepSpec.model_validate(kept | changes)
    except ValidationError as error:
        raise _explained(error) from error


def _file(path: Path) -> Any:
    try:
        return read_yaml(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SweepError(f"The spec {str(path)!r} cannot be read: {reason}.") from error
    except ValueError as error:
        raise SweepError(f"The spec {str(path)!r} is not YAML: {error}") from error


def _explained(error: ValidationError) -> Exception:
    """Pydantic's first complaint as an error of ours, which names the field."""
    # A misspelled field explains the others (its right name is then missing), so it comes first.
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    field = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        if first["loc"][0] == "tasks":
            return UnknownName("field of a task", first["loc"][-1], list(TaskSpec.model_fields))
        return UnknownName("field", first["loc"][-1], [*SweepSpec.model_fields, "preset"])
    complaint = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        complaint = "it is missing"
    elif first["type"] != "value_error":
        complaint += f", not {str(first['input'])[:80]!r}"
    more = ""
    if error.error_count() > 1:
        more = f" ({error.error_count() - 1} more)"
    return SweepError(
        f"The sweep's {field or 'spec'}: {complaint}{more}. `workbench sweep run --help` lists the fields."
    )
