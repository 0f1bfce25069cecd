"""The models and prompts that checkers work with, each loaded once."""

from functools import lru_cache
from typing import Any

from workbench.engine.capture import capture_pairs
from workbench.models.load import load_model
from workbench.prompts.pairs import PromptPairs
from workbench.stores.store import ActivationStore
from workbench.tasks.registry import load_task


@lru_cache(maxsize=8)
def model(name: str = "tiny") -> Any:
    """A model of the course."""
    return load_model(name)


def heads(made: Any) -> list[str]:
    """The names of a model's heads, as `a3.7`, layer by layer."""
    return [f"a{layer}.{head}" for layer in range(made.cfg.n_layers) for head in range(made.cfg.n_heads)]


@lru_cache(maxsize=16)
def pairs(
    task: str, n: int, *, split: str = "train", name: str = "tiny", variant: str | None = None
) -> PromptPairs:
    """Prompts of a task."""
    return load_task(task, model(name), n=n, split=split, variant=variant)


@lru_cache(maxsize=8)
def stores(
    task: str, n: int, *, split: str = "train", name: str = "tiny"
) -> tuple[ActivationStore, ActivationStore]:
    """Activations of the clean and the corrupt prompts."""
    return capture_pairs(model(name), pairs(task, n, split=split, name=name), progress=False)
