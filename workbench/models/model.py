"""`Model`: what the package asks of a model.

TransformerLens' `TransformerBridge` is one; nothing else needs to be.

A protocol instead of the class, because importing TransformerLens takes seconds and only `models/load.py` may
do it. Everything that is not listed here is read through `getattr` with a default, since not every bridge has
it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


def every_module(root: Any) -> Iterator[nn.Module]:
    """Each module below a root once, and the root. `root.modules()` is slow: it works out the name of each."""
    seen, waiting = set[int](), [root]
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield module
            waiting += [child for child in module._modules.values() if child is not None]


@runtime_checkable
class Model(Protocol):
    """A decoder whose activations have names: a `TransformerBridge` of TransformerLens 4.3."""

    cfg: Any
    """The sizes: `n_layers`, `n_heads`, `d_model`, `n_ctx`, ...; `sites.Shape.of(model)` reads them."""
    original_model: Any
    """The wrapped Hugging Face or native module; its `config` tells families apart."""
    blocks: Any
    """The blocks in order, with the components `attn`, `mlp`, `ln1`, `ln2` that the architecture has."""
    tokenizer: Any
    """A Hugging Face tokenizer, or None: such a model takes token ids only."""
    training: bool

    def __call__(self, tokens: Any, **options: Any) -> Any:
        """The logits [example, pos, vocab] of token ids."""
        ...

    def eval(self) -> Any:
        """The model itself, without dropout."""
        ...

    @property
    def hook_dict(self) -> Mapping[str, Any]:
        """Hook points by their canonical names."""
        ...

    def run_with_hooks(
        self, tokens: Tensor, *, fwd_hooks: Sequence[tuple[str, Callable[..., Any]]], **options: Any
    ) -> Any:
        """The logits of a forward pass with these hooks installed for it."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every weight."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Every component, without names."""
        ...

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The bridge's own components by name."""
        ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every component below the bridge by its path."""
        ...

    def to_string(self, tokens: Any) -> Any:
        """The text of token ids."""
        ...

    def to(self, target: torch.device | torch.dtype | str) -> Any:
        """The model on another device or in another precision."""
        ...
