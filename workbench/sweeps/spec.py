"""What a sweep is to do: `SweepSpec`, the same in Python, in YAML and on the command line.

A spec is the product of models, checkpoints, tasks, seeds, values and metrics with the places, paths, circuits or methods
of one study. Presets are names for common studies: they stand for fields, and are gone once the spec is read.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from workbench.errors import SweepError, UnknownName

Study = Literal["effects", "pairs", "cumulative", "paths", "circuits", "methods", "stability", "steering"]
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
        "study": "methods",
        "methods": ["eap", "eap-ig-inputs", "exact", "random"],
        "values": ["other"],
    },
    "circuit-stability": {
        "study": "stability",
        "methods": ["eap-ig-inputs"],
        "seeds": [0, 1, 2, 3, 4],
        "values": ["other"],
    },
    "steering": {
        "study": "steering",
        "sites": ["resid_post"],
        "strengths": [-2.0, -1.0, 1.0, 2.0],
        "values": ["other"],
    },
}
VALUES = ("zero", "mean", "resample", "other", "optimal")
NUMBERED = ("constant", "scale")
FITTED = ("effects", "pairs", "cumulative")
FROM_CLEAN = ("circuits", "methods", "stability")
"""Studies of circuits, which are runs of clean prompts."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "effects": ("sites",), "pairs": ("sites",), "cumulative": ("sites",), "steering": ("sites", "strengths"),
    "paths": ("senders", "receivers"), "circuits": ("circuits",), "methods": ("methods", "n_edges"),
    "stability": ("methods", "n_edges"),
}  # fmt: skip


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskSpec(_Frozen):
    """Prompts: a task's name, or the path of a CSV or JSONL file of pairs.

    Attributes:
        n, split: None takes the sweep's.
        variant: the kind of corruption; None takes the task's first.
    """

    name: str
    n: int | None = Field(default=None, ge=1)
    split: Literal["train", "heldout"] | None = None
    variant: str | None = None


class SweepSpec(_Frozen):
    """The whole of a sweep, as one immutable object.

    Attributes:
        models: names or directories, as `load_model` takes them, or `planted-VARIANT`, which brings its own prompts (task: planted).
        checkpoints: training steps of an embedded model; empty for the trained one.
        tasks: names, files, or `TaskSpec`s.  n, split: of those that do not say.
        study: "effects" of single places; "pairs" of two together, for synergy; "cumulative", least important first; "paths";
            faithfulness of "circuits"; discovery by "methods"; "stability" of what a method finds over seeds; "steering".
        sites: kinds ("z": each head; "mlp_post": each neuron; "resid_pre@each", "resid_pre@END": each layer there), sites
            ("z[1.2]"), or lists of sites that are edited together.
        senders, receivers: of paths, as `path_effects` takes them.
        circuits: files.  methods: of `score_edges`.  n_edges: sizes of what they find.  strengths: of steering.
        values: zero, mean, resample, other (the other run), optimal (the constant that harms least), constant:X, scale:X.
        metrics: names, or "module:function"; empty for the task's own.
        seeds: of prompts and of resampling.  base: the run that is edited.
    Raises:
        SweepError, UnknownName: from `read_spec`; pydantic's ValidationError from the class itself.

    >>> SweepSpec(preset="head-ablation", tasks=["ioi"]).sites
    ('z',)
    """

    study: Study
    models: tuple[str, ...] = Field(default=("tiny",), min_length=1)
    checkpoints: tuple[int, ...] = ()
    tasks: tuple[TaskSpec, ...] = Field(min_length=1)
    n: int = Field(default=32, ge=1)
    split: Literal["train", "heldout"] = "train"
    sites: tuple[str | Annotated[tuple[str, ...], Field(min_length=1)], ...] = ()
    senders: tuple[str, ...] = ()
    receivers: tuple[str, ...] = ()
    circuits: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    n_edges: tuple[Count, ...] = (30,)
    strengths: tuple[FiniteFloat, ...] = ()
    values: tuple[str, ...] = Field(default=("zero",), min_length=1)
    metrics: tuple[str, ...] = ()
    seeds: tuple[Count, ...] = Field(default=(0,), min_length=1)
    base: Literal["clean", "corrupt"] = "clean"

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, given: Any) -> Any:
        """The fields a preset stands for; what is given beside it wins."""
        if not isinstance(given, Mapping) or "preset" not in given:
            return given
        preset, rest = given["preset"], {key: value for key, value in given.items() if key != "preset"}
        if preset is None:
            return rest
        if preset not in [*PRESETS]:
            raise UnknownName("preset", preset, PRESETS)
        return {**PRESETS[preset], **rest}

    @field_validator("tasks", mode="before")
    @classmethod
    def _named(cls, tasks: Any) -> Any:
        return (
            [{"name": task} if isinstance(task, str) else task for task in tasks]
            if isinstance(tasks, list | tuple)
            else tasks
        )

    @field_validator("values")
    @classmethod
    def _known(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            name, _, number = value.partition(":")
            if name in NUMBERED:
                if not math.isfinite(float(number)):
                    raise ValueError(f"{value} is not finite")
            elif value not in VALUES:
                raise UnknownName("values", value, [*VALUES, *(f"{name}:NUMBER" for name in NUMBERED)])
        return values

    @model_validator(mode="after")
    def _complete(self) -> "SweepSpec":
        for name in _NEEDED[self.study]:
            if not getattr(self, name):
                raise ValueError(f"the study {self.study!r} needs {name}")
        if "optimal" in self.values and self.study not in FITTED:
            raise ValueError(
                f"the value 'optimal' is fitted to sites, which the study {self.study!r} has not; {', '.join(FITTED)} have"
            )
        if self.base == "corrupt" and self.study in FROM_CLEAN:
            raise ValueError(f"the study {self.study!r} runs clean prompts; leave out base")
        for name in (
            "models",
            "checkpoints",
            "tasks",
            "sites",
            "circuits",
            "methods",
            "n_edges",
            "values",
            "metrics",
            "seeds",
        ):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name} has entries that are there twice")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text; `read_spec` makes the same spec of it."""
        return self.model_dump(mode="json")


def read_spec(source: "SweepSpec | Mapping[str, Any] | str | Path", **changes: Any) -> SweepSpec:
    """A spec from a YAML or JSON file, a mapping, or a spec; `changes` win over what is there, a preset with all it stands for.

    Raises:
        SweepError: no such file, or a field that does not fit.  UnknownName: an unknown field, preset or value.
    """
    given = source.to_dict() if isinstance(source, SweepSpec) else source
    if isinstance(given, str | Path):
        given = _file(Path(given))
    if not isinstance(given, Mapping):
        raise SweepError(
            f"A sweep is a mapping of fields (tasks: [ioi], preset: head-ablation), not {type(given).__name__}."
        )
    try:
        stood_for = PRESETS.get(str(changes.get("preset")), {})
        return SweepSpec.model_validate(
            {key: value for key, value in given.items() if key not in stood_for} | changes
        )
    except ValidationError as error:
        raise _explained(error) from error


def _file(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(
            f"The spec {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SweepError(f"The spec {str(path)!r} is no YAML: {error}") from error


def _explained(error: ValidationError) -> Exception:
    first = min(
        error.errors(), key=lambda each: each["type"] != "extra_forbidden"
    )  # a name spelled wrong explains the rest
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = TaskSpec if first["loc"][0] == "tasks" else SweepSpec
        known = [*fields.model_fields, *(["preset"] if fields is SweepSpec else [])]
        return UnknownName("field" if fields is TaskSpec else "field of a sweep", first["loc"][-1], known)
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    told = "it is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "value_error") else f", not {str(first['input'])[:80]!r}"
    return SweepError(
        f"The sweep's {place or 'spec'}: {told}{given}{more}. `workbench sweep run --help` lists the fields."
    )
