"""`read_out`: the logits of the last stream by hand, in the precision of that stream.

Read it when a model's own unembedding would compute in too few bits. `check_read_out` says whether what is
done here by hand is all that a model does.
"""

import weakref
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.engine.bridge import child, final_norm, output_projection
from workbench.engine.hooked.forward import forward
from workbench.errors import ModelError
from workbench.models.model import Model
from workbench.models.verdicts import is_right, keep_right
from workbench.sites import Shape

# Models that have been checked; weak, so that the check keeps no model alive.
_checked: "weakref.WeakSet[Any]" = weakref.WeakSet()
# How far it may be from the model's logits, as a share of the largest; half precision rounds whole percents.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-2


@torch.no_grad()
def read_out(
    model: Model, stream: Float[Tensor, "example pos d_model"]
) -> Float[Tensor, "example pos vocab"]:
    """Final norm, projection and unembedding of the stream after the last block."""
    unembed, normed = child(model, "unembed"), final_norm(model)(stream)
    projection, bias = output_projection(model), unembed.bias
    if projection is not None:
        normed = normed @ projection.to(stream.dtype)
    if bias is not None:
        bias = bias.detach().to(stream.dtype)
    logits = torch.nn.functional.linear(normed, unembed.weight.detach().to(stream.dtype), bias)
    # TransformerLens (4.3) caps logits in `forward`, after `unembed`; -1 stands for no cap.
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1.0
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def check_read_out(model: Model) -> None:
    """Raise `ModelError` where `read_out` does not give the model's logits, tried once on four tokens."""
    if model in _checked or is_right(model, "read-out"):
        _checked.add(model)
        return
    shape = Shape.of(model)
    last = ("resid_post", shape.n_layers - 1)
    run = forward(model, torch.arange(4)[None, : shape.n_ctx] % shape.d_vocab, record=[last])
    difference = float((read_out(model, run.recorded[last]) - run.logits).abs().max())
    half = run.logits.dtype in (torch.bfloat16, torch.float16)
    tolerance = _HALF_TOLERANCE if half else _TOLERANCE
    if difference > tolerance * float(run.logits.abs().max()):
        raise ModelError(
            "The logits of this model are more than the final norm and unembedding of its last stream "
            f"(difference {difference:.2g}), so they cannot be read out in another precision: leave out "
            "readout=, or load the model in that precision (dtype=)."
        )
    _checked.add(model)
    keep_right(model, "read-out")
