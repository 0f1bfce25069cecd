"""What jobs of a sweep work with.

`JobSetting` says which model, prompts and metric; `JobInputs` loads and keeps them.
Nothing here knows which jobs there are, or what they do.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.engine.capture import PAIR_KINDS, capture_pairs
from workbench.errors import SweepError
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.load import load_model
from workbench.models.model import Model
from workbench.planted_models.pairs import planted_pairs
from workbench.planted_models.planted import planted
from workbench.prompts.pair_tables import KINDS_OF_FILE
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Site
from workbench.stores.store import ActivationStore
from workbench.tasks.registry import load_task


@dataclass(frozen=True)
class JobSetting:
    """What the jobs of a group have in common: model, prompts, the run that is edited, metric and value.

    The fields are columns of the sweep's table, in this order; a job's key is a hash of them.
    """

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

    @property
    def model_name(self) -> str:
        """The model with its checkpoint, as `load_model` takes it."""
        if self.checkpoint is None:
            return self.model
        return f"{self.model}@{self.checkpoint}"


class JobInputs:
    """Models, prompts and stores that jobs share. The latest of each is kept; of prompts and stores, the
    latest of each split.

    Jobs come group by group, so that the latest is nearly always the one that is needed next.

    Args:
        device: where models run; None picks a GPU if there is one.
        bos: whether prompts begin with BOS; None as the tokenizer adds it.
    """

    def __init__(self, device: str | None = None, bos: bool | None = None) -> None:
        self.device = device
        self.bos = bos
        self._kept: dict[str, tuple[Any, Any]] = {}

    def model(self, setting: JobSetting) -> Model:
        """The model of a setting, at its checkpoint."""
        if variant := planted_variant(setting.model):
            return self._latest("model", setting.model, lambda: planted(variant)).model
        name = setting.model_name
        return self._latest("model", name, lambda: load_model(name, device=self.device, bos=self.bos))

    def pairs(self, setting: JobSetting) -> PromptPairs:
        """The clean and corrupt prompts of a setting."""
        model = (setting.model, setting.checkpoint)
        prompts = (setting.task, setting.split, setting.variant, setting.n, setting.seed)
        return self._latest(
            f"{setting.split} pairs", (model, prompts), lambda: _pairs(setting, self.model(setting))
        )

    def stores(
        self, setting: JobSetting, sites: Sequence[Site] = ()
    ) -> tuple[ActivationStore, ActivationStore]:
        """The activations of the clean and of the corrupt run.

        They hold what `capture_pairs` keeps by default. Where one of `sites` is of another kind they hold
        `sites` alone.
        """
        pairs = self.pairs(setting)
        uncommon = any(site.kind not in PAIR_KINDS for site in sites)
        # One capture of the usual kinds serves all jobs of a group, whichever of them each job edits.
        keys = None
        if uncommon:
            keys = sorted({Site(*site.key) for site in sites}, key=str)
        return self._latest(
            f"{setting.split} stores",
            (pairs.fingerprint, keys),
            lambda: capture_pairs(self.model(setting), pairs, sites=keys, progress=False),
        )

    def _latest(self, name: str, identity: Any, make: Callable[[], Any]) -> Any:
        if self._kept.get(name, (None, None))[0] != identity:
            # The old one goes before the new one is made: two models may not fit into memory.
            self._kept.pop(name, None)
            self._kept[name] = identity, make()
        return self._kept[name][1]


def planted_variant(model: str) -> str | None:
    """The variant of a model whose weights were set by hand, as in `planted-backup`, or None."""
    if model.startswith("planted-"):
        return model.removeprefix("planted-")
    return None


def metric_of(name: str, pairs: PromptPairs) -> Metric:
    """The metric of a setting: a built-in name, or a function of a module, as in `mine:my_metric`.

    Raises:
        SweepError: the module or its function cannot be imported.
        UnknownName: no metric has that name.
    """
    if ":" not in name:
        return as_metric(name or pairs.metric)
    module, _, function = name.partition(":")
    try:
        return as_metric(getattr(importlib.import_module(module), function))
    except Exception as error:  # the module's code runs here, and may raise anything
        raise SweepError(
            f"The metric {name!r} cannot be found: {error}. Write MODULE:FUNCTION of a module that can be "
            "imported from here."
        ) from error


def _pairs(setting: JobSetting, model: Model) -> PromptPairs:
    path = Path(setting.task)
    if variant := planted_variant(setting.model):
        return planted_pairs(planted(variant), n=setting.n, seed=setting.seed, split=setting.split)
    if path.suffix.lower() not in KINDS_OF_FILE:
        return load_task(
            setting.task, model, n=setting.n, seed=setting.seed, split=setting.split, variant=setting.variant
        )
    train, heldout = PromptPairs.from_file(model, path).split(seed=setting.seed)
    half = {"train": train, "heldout": heldout}[setting.split]
    return half.select(range(min(setting.n, len(half))))
