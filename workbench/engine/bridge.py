"""Reading the modules of a bridge."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Norm = Callable[[Tensor], Tensor]
Act = Callable[[Tensor], Tensor]

_ACTS: dict[str, Act] = {
    "NewGELUActivation": lambda x: F.gelu(x, approximate="tanh"),
    "PytorchGELUTanh": lambda x: F.gelu(x, approximate="tanh"),
    "GELUTanh": lambda x: F.gelu(x, approximate="tanh"),
    "GELUActivation": F.gelu,
    "SiLUActivation": F.silu,
    "SiLU": F.silu,
    "ReLU": F.relu,
}


class Unsupported(Exception):
    """Why the fast engine cannot run a model; the reference path can."""


def inner(part: Any) -> Any:
    """The module that a bridge component wraps."""
    found = getattr(part, "original_component", None)
    return part if found is None else found


def child(part: Any, name: str) -> Any:
    """The wrapped module of that name below a bridge component, or None."""
    found = dict(part.named_children()).get(name)
    return None if found is None else inner(found)


def norm(part: Any) -> Norm:
    """A norm over the last axis, computed as the bridge computes it; identity where a model has none."""
    module = inner(part)
    if part is None or isinstance(module, torch.nn.Identity):
        return lambda x: x
    if isinstance(module, torch.nn.LayerNorm):
        return lambda x: _layer_norm(module, x)
    if getattr(part, "use_native_layernorm_autograd", False):
        return module
    centred, eps, weight = not part.uses_rms_norm, part.config.eps, getattr(module, "weight", None)

    def bare(x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide - wide.mean(-1, keepdim=True) if centred else wide
        wide = wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return (wide if weight is None else wide * weight.detach()).to(x.dtype)

    return bare


def _layer_norm(module: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    weight, bias = (
        None if each is None else each.detach().to(x.dtype) for each in (module.weight, module.bias)
    )
    return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)


def activation(module: Act) -> Act:
    """An activation module as one fused function where torch has it."""
    if not callable(module):
        raise Unsupported("its activation function is not known")
    return _ACTS.get(type(module).__name__, module)
