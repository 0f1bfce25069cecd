"""`PlainRun`: the activations of prompts that nobody edits, by the fast engine where it knows the model, else by hooks.

Both give the same numbers but for rounding: `select.fast_decoder` compares them when a model is first used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.staircase import run_base
from workbench.engine.hooked.forward import forward
from workbench.engine.select import fast_decoder
from workbench.engine.threads import few_threads
from workbench.models.load import check_eval
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Shape


@dataclass(frozen=True)
class PlainRun:
    """A way to run prompts of a model and keep some activations.

    Attributes:
        keys: the activations that are kept.
        decoder: of the fast engine; None: hooks record them.
    """

    model: Model
    keys: tuple[Key, ...]
    decoder: Decoder | None

    @classmethod
    def of(cls, model: Model, keys: Sequence[Key], length: int) -> "PlainRun":
        """For prompts of up to `length` tokens. Raises `ModelError` in train mode."""
        check_eval(model)
        decoder = None
        # Longer prompts are refused by the model itself.
        if length <= Shape.of(model).n_ctx:
            decoder, _ = fast_decoder(model, length, [kind for kind, _ in keys])
        # In half precision the two round by whole percents apart, and hooks show what the model computes.
        if decoder is not None and decoder.dtype not in (torch.float32, torch.float64):
            decoder = None
        return cls(model, tuple(keys), decoder)

    def __call__(self, prompts: Prompts) -> Mapping[Key, Tensor]:
        """(kind, layer) → [example, pos, ...]; padding may hold anything."""
        if self.decoder is None:
            return forward(self.model, prompts, record=self.keys).recorded
        with few_threads(self.decoder.shape.d_model):
            base = run_base(self.decoder, prompts, map(_own_name, self.keys), always=())
        return {key: base.whole(key) for key in self.keys}


def _own_name(key: Key) -> Key:
    """The name under which a base run keeps an activation."""
    kind, layer = key
    # The stream after a block is the one before the next.
    if kind == "resid_post" and layer is not None:
        return "resid_pre", layer + 1
    return key
