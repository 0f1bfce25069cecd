"""Model families that the fast engine knows: one module each, a few lines on top of `reading`, saying what differs."""

from typing import Any

from workbench.engine.bridge import Unsupported
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.families import gpt2, llama, native, neox

_READERS = {name: family.read for family in (gpt2, llama, neox, native) for name in family.ARCHITECTURES}


def read(model: Any, length: int) -> Decoder:
    """The decoder of a bridge, for prompts of up to `length` tokens; its weights are views.

    Raises:
        Unsupported: the family is not known, or the model does something that the family's arithmetic leaves out.
    """
    architecture = getattr(model.cfg, "architecture", None)
    if architecture not in _READERS:
        raise Unsupported(f"its architecture {architecture} is not one of {', '.join(_READERS)}")
    if getattr(model, "compatibility_mode", False):
        raise Unsupported("its weights are folded (compatibility mode)")
    hooked = _hooked(model)
    if hooked:
        raise Unsupported(f"hooks are installed on it ({', '.join(hooked[:3])})")
    made = _READERS[architecture](model, length)
    if made.max_length is not None and length > made.max_length:
        raise Unsupported(
            f"a prompt of {length} tokens is longer than its sliding window of {made.max_length}"
        )
    return made


def _hooked(model: Any) -> list[str]:
    """The parts of a model on which somebody has installed hooks; the bridge's own do not count."""
    points = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    parts = (
        (name, [*part._forward_hooks.values(), *part._forward_pre_hooks.values()])
        for name, part in model.named_modules()
    )
    foreign = [
        name
        for name, hooks in parts
        if any(not str(hook.__module__).startswith(("transformer_lens", "transformers.")) for hook in hooks)
    ]
    return points + foreign
