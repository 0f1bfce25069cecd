"""The model families that the fast engine knows, one module each.

`read` picks the family and refuses what its arithmetic leaves out. Each module is a few lines on top of
`reading` (the places where a bridge keeps the weights of a block) that say what differs. Begin with `gpt2`.
"""

from torch import nn

from workbench.engine.bridge import Unsupported
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.families import gpt2, llama, native, neox
from workbench.models.locks import alone
from workbench.models.model import Model, every_module

_READERS = {name: family.read for family in (gpt2, llama, neox, native) for name in family.ARCHITECTURES}


def read(model: Model, length: int) -> Decoder:
    """The decoder of a bridge, for prompts of up to `length` tokens; its weights are views.

    Raises:
        Unsupported: the family is not known, or the model does something that the family's arithmetic leaves
            out.
    """
    architecture = getattr(model.cfg, "architecture", None)
    if architecture not in _READERS:
        raise Unsupported(f"its architecture {architecture} is not one of {', '.join(_READERS)}")
    if getattr(model, "compatibility_mode", False):
        raise Unsupported("its weights are folded (compatibility mode)")
    with alone(model):  # or the hooks of another thread's run would be taken for some of the caller's
        hooked = _hooked(model)
    if hooked:
        raise Unsupported(f"hooks are installed on it ({', '.join(hooked[:3])})")
    decoder = _READERS[architecture](model, length)
    window = decoder.max_length
    if window is not None and length > window:
        raise Unsupported(f"a prompt of {length} tokens is longer than its sliding window of {window}")
    return decoder


def _hooked(model: Model) -> list[str]:
    """The modules of a model on which somebody has installed hooks; the bridge's own do not count."""
    hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    # Names are worked out only where there is something to name.
    if any(_has_hooks(module) for module in every_module(model)):
        hooked += [name for name, module in model.named_modules() if _has_hooks(module)]
    return hooked


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody has installed hooks on a module."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    # TransformerLens 4.3 and transformers install some of their own, which leave the results as they are.
    own = ("transformer_lens", "transformers.")
    return any(not str(hook.__module__).startswith(own) for hook in hooks)
