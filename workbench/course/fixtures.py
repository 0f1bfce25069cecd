"""The models, prompts and activations that checkers work with, each loaded once in a process.

Checkers call these instead of loading by themselves: lessons share them, and a class of thirty notebooks
checks quickly. Nothing here is handed to a notebook, so that no cell can change what an answer is compared
with.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from workbench.experiment import PairsInModel
from workbench.models.load import load_model
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.stores.store import ActivationStore
from workbench.tasks.registry import load_task


@lru_cache(maxsize=8)
def model(name: str = "tiny") -> Any:
    """A model of the course."""
    # Not `Model`: as notebooks do, checkers call what only a bridge has (`to_tokens`, `ln_final`, `W_U`).
    return load_model(name)


def heads(bridge: Model) -> list[str]:
    """The names of a model's heads, as `a3.7`, layer by layer."""
    shape = (bridge.cfg.n_layers, bridge.cfg.n_heads)
    return [f"a{layer}.{head}" for layer, head in np.ndindex(*shape)]


@lru_cache(maxsize=16)
def data(
    task: str, n: int, *, split: str = "train", name: str = "tiny", variant: str | None = None
) -> PairsInModel:
    """A task's prompts as a notebook loads them, with a model's activations and values by name."""
    loaded = model(name)
    return PairsInModel.of(loaded, load_task(task, loaded, n=n, split=split, variant=variant))


def pairs(
    task: str, n: int, *, split: str = "train", name: str = "tiny", variant: str | None = None
) -> PromptPairs:
    """Prompts of a task, as a notebook loads them."""
    return data(task, n, split=split, name=name, variant=variant).pairs


def stores(
    task: str, n: int, *, split: str = "train", name: str = "tiny"
) -> tuple[ActivationStore, ActivationStore]:
    """Activations of the clean and the corrupt prompts."""
    # The same arguments as `pairs` gives, so that both share one entry of the cache.
    prompts = data(task, n, split=split, name=name, variant=None)
    return prompts.clean, prompts.corrupt
