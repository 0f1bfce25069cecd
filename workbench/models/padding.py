"""`padding_options`: what keeps the tokens of a padded batch from attending to the padding.

A causal model needs nothing, since no token sees what comes after it: its numbers stay those of a run without
a mask, bit by bit. Models that see the future (BERT) get an attention mask. Which of the two a model is, and
that the mask works, is tried once.
"""

import weakref
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.errors import ModelError
from workbench.models.load import model_device, model_name
from workbench.models.model import Model
from workbench.models.verdicts import is_right, keep_right

# Rounding that other rows of a batch may cause, in units of the last place of the largest logit.
_ROUNDING = 64
# How far a padded prompt may be from the prompt alone, as a share of the largest logit.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-2
# Model → whether it must be given a mask. Weak keys, so that this keeps no model alive.
_needs_mask: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


def padding_options(model: Model, lengths: Int[Tensor, "row"], width: int) -> dict[str, Tensor]:
    """The arguments that a forward pass of right-padded tokens [row, width] needs beside them, by name.

    Empty where no row is padded or no token sees the padding; else `attention_mask` [row, width].

    Args:
        lengths: how many tokens of each row are its prompt.

    Raises:
        ModelError: its tokens see the padding, and a mask does not help.
    """
    if int(lengths.min()) == width:
        return {}
    if model not in _needs_mask and is_right(model, "no token sees the padding"):
        _needs_mask[model] = False
    if model not in _needs_mask:
        sees_padding = _sees_the_future(model)
        if sees_padding:
            _check_mask(model)
        else:
            keep_right(model, "no token sees the padding")
        _needs_mask[model] = sees_padding
    return _mask(model, lengths, width) if _needs_mask[model] else {}


def _mask(model: Model, lengths: Tensor, width: int) -> dict[str, Tensor]:
    mask = torch.arange(width) < lengths.cpu()[:, None]
    return {"attention_mask": mask.long().to(model_device(model))}


def _tokens(model: Model, rows: list[list[int]]) -> Tensor:
    # Modulo and cut, for toy models: their vocabulary or their context may be smaller.
    tokens = torch.tensor(rows)[:, : model.cfg.n_ctx] % model.cfg.d_vocab
    return tokens.to(model_device(model))


@torch.no_grad()
def _sees_the_future(model: Model) -> bool:
    """Whether the first token's logits depend on later tokens, or the model says so."""
    if getattr(model.cfg, "attention_dir", "causal") != "causal":
        return True
    logits = model(_tokens(model, [[2, 3, 4, 5], [2, 7, 9, 8]]))
    change = float((logits[0, 0] - logits[1, 0]).abs().max())
    return change > _ROUNDING * torch.finfo(logits.dtype).eps * float(logits.abs().max())


@torch.no_grad()
def _check_mask(model: Model) -> None:
    """Raise `ModelError` where a prompt that is padded and masked differs from the prompt alone."""
    alone = model(_tokens(model, [[2, 3]]))
    tokens = _tokens(model, [[2, 3, 0, 0], [2, 7, 9, 8]])
    try:
        padded = model(tokens, **_mask(model, torch.tensor([2, 4]), tokens.shape[1]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(_refusal(model, f"it takes no attention mask: {error}")) from error
    tolerance = _HALF_TOLERANCE if alone.dtype in (torch.bfloat16, torch.float16) else _TOLERANCE
    difference = float((padded[0, :2] - alone[0]).abs().max())
    if difference > tolerance * float(alone.abs().max()):
        raise ModelError(_refusal(model, f"an attention mask changes its logits by {difference:.2g}"))


def _refusal(model: Model, reason: str) -> str:
    return (
        f"The tokens of {model_name(model)} see those after them, padding included, and {reason}. "
        "Give it prompts of one length at a time."
    )
