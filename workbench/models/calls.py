"""What holds while a public function runs a model, whatever the notebook around it has set: `model_call`.

torch keeps settings that change what code computes: `inference_mode`, `set_grad_enabled(False)`, autocast, a
default device. Within `plain_torch` they are as torch starts with them, and afterwards as before.
What cannot be set aside for one thread alone (a default dtype, global hooks of modules) is refused.
No model is known here.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.modules import module as torch_module

from workbench.errors import ModelError
from workbench.models.fingerprint import one_fingerprint

# Kinds of devices whose autocast would round what models, metrics and lenses compute.
_DEVICES = ("cpu", "cuda", "mps", "xpu")
# torch's tables of hooks that every module runs.
_HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)


@contextmanager
def model_call() -> Iterator[None]:
    """Around every public function that runs a model: torch is plain, and each model is hashed once."""
    with plain_torch(), one_fingerprint():
        yield


@contextmanager
def plain_torch() -> Iterator[None]:
    """torch as it starts: gradients may flow, no autocast, tensors are made on the CPU.

    All of these belong to the thread, so that other threads notice nothing.

    Raises:
        ModelError: the default dtype is not float32, or global hooks of modules are installed.
    """
    _check_process()
    with ExitStack() as settings:
        if torch.is_inference_mode_enabled():
            settings.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            settings.enter_context(torch.enable_grad())
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                settings.enter_context(torch.autocast(device, enabled=False))
        # Only where it is set: such a context slows every operation down a little.
        if torch.get_default_device().type != "cpu":
            settings.enter_context(torch.device("cpu"))
        yield


def _check_process() -> None:
    """Raise `ModelError` for settings of the whole process, which other threads rely on."""
    if torch.get_default_dtype() != torch.float32:
        raise ModelError(
            f"torch's default dtype is {torch.get_default_dtype()}, which changes the precision of numbers "
            "on the way. Call torch.set_default_dtype(torch.float32) first; load_model(..., dtype=) sets the "
            "precision of a model."
        )
    # Hooks of torch itself (its counter of operations, its profilers) only look on.
    hooks = [hook for table in _HOOKS for hook in getattr(torch_module, table).values()]
    if any(not str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks):
        raise ModelError(
            "Global hooks of modules are installed (torch.nn.modules.module.register_module_forward_hook and "
            "the like). They may change what every module computes, and runs without modules would not see "
            "it. Remove them first; hooks on the model itself are taken into account."
        )
