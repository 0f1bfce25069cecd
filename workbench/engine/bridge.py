"""Reading the modules that a TransformerLens bridge wraps: norms, activation functions, children by name.

`norm` is the one reader of norms: the fast engine, the hooked circuit run, gradients and lenses all compute a
norm through it. `Unsupported` is how a reader says that the fast engine cannot run a model. This module knows
no engine.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from workbench.models.model import Model

Norm = Callable[[Tensor], Tensor]
Act = Callable[[Tensor], Tensor]

# Fused functions in place of the modules of transformers, which compute the same in several steps.
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
    """Why the fast engine cannot run a model; hooks can."""


def inner(component: Any) -> Any:
    """The module that a bridge component wraps, or the component itself where it wraps none."""
    module = getattr(component, "original_component", None)
    if module is None:
        return component
    return module


def child(component: Any, name: str) -> Any:
    """The wrapped module of that name below a bridge component, or None."""
    # Not `getattr`: a bridge of TransformerLens 4.3 passes unknown names on to the wrapped model.
    named = dict(component.named_children()).get(name)
    if named is None:
        return None
    return inner(named)


def norm(component: Any) -> Norm:
    """A norm over the last axis, as the bridge computes it but without its hooks; None: the identity.

    Gradients flow to the input, not to the weights where they are applied here.
    """
    if component is None:
        return _identity
    module = inner(component)
    if isinstance(module, torch.nn.Identity):
        return _identity
    # Subclasses may compute something else: Nemotron's multiplies by 1 + weight.
    if getattr(type(module), "forward", None) is torch.nn.LayerNorm.forward:
        return lambda x: _layer_norm(module, x)
    # With folded weights TransformerLens 4.3 runs the wrapped module, not its own formula.
    if _runs_the_module_itself(component):
        return module
    return lambda x: _norm_by_hand(component, module, x)


def block_norm(model: Model, layer: int, name: str) -> Norm | None:
    """A norm of a block, such as the one after its MLP (`ln2_post`); None where it has no such norm."""
    component = dict(model.blocks[layer].named_children()).get(name)
    if component is None:
        return None  # not the identity: callers leave out a step that a model does not have
    return norm(component)


def final_norm(model: Model) -> Norm:
    """The norm before the unembedding."""
    return norm(dict(model.named_children()).get("ln_final"))


def output_projection(model: Model) -> Float[Tensor, "d_model d_embed"] | None:
    """What maps the normed last stream to the width of the unembedding; None where both have one width.

    OPT-350m has one, because its embeddings are narrower than its stream.
    """
    projection = child(model, "project_out")
    return None if projection is None else projection.weight.detach().T


def output_vocabulary(model: Model) -> int:
    """How many logits the model gives for a token: rows of its unembedding."""
    weight = getattr(child(model, "unembed"), "weight", None)
    if weight is not None and weight.ndim == 2:
        return len(weight)
    return int(model.cfg.d_vocab)


def activation(module: Act) -> Act:
    """An activation module as one fused function where torch has it."""
    if not callable(module):
        raise Unsupported("its activation function is not known")
    return _ACTS.get(type(module).__name__, module)


def _identity(x: Tensor) -> Tensor:
    return x


def _runs_the_module_itself(component: Any) -> bool:
    """Whether the component calls the module that it wraps. All do but some norms of the bridge's own."""
    if not hasattr(component, "uses_rms_norm"):
        return True
    folded = getattr(component.config, "layer_norm_folding", False)
    return bool(component.use_native_layernorm_autograd or folded)


def _layer_norm(module: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm in the precision of its input, wider than the weights under `readout=torch.float32`."""
    weight, bias = module.weight, module.bias  # either is None in models that train none
    if weight is not None:
        weight = weight.detach().to(x.dtype)
    if bias is not None:
        bias = bias.detach().to(x.dtype)
    return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)


def _norm_by_hand(component: Any, module: Any, x: Tensor) -> Tensor:
    """The formula of TransformerLens 4.3's `NormalizationBridge`.

    Its order of operations is kept, so that the bits agree.
    """
    wide = x if x.dtype == torch.float64 else x.float()  # variances of half precision would lose most bits
    if not component.uses_rms_norm:
        wide = wide - wide.mean(-1, keepdim=True)
    wide = wide / (wide.pow(2).mean(-1, keepdim=True) + component.config.eps).sqrt()
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if weight is not None:
        factor = weight.detach()
        # Gemma stores its weight as the distance from 1.
        if component.uses_weight_offset:
            factor = 1.0 + factor
        wide = wide * factor
    if bias is not None and not component.uses_rms_norm:
        wide = wide + bias.detach()
    return wide.to(x.dtype)
