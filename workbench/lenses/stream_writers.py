"""How heads and neurons of a block enter the residual stream: output weights, biases, norms after them.

Read `head_writer` and `neuron_writer`, then `StreamWriter.reads`. Rows of stores are not known here
(`direct_attribution`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.engine.bridge import Norm, block_norm
from workbench.engine.hooked.block import HeadOutputs
from workbench.errors import ModelError
from workbench.lenses.frozen_norm import FrozenNorm
from workbench.lenses.unembedding import unembedding_weight
from workbench.models.model import Model


@dataclass(frozen=True)
class StreamWriter:
    """How a sum of terms enters the stream: through weights, with a bias, and through a norm if there is
    one."""

    weight: Float[Tensor, "term d_model"]
    bias: Float[Tensor, "d_model"]
    norm: FrozenNorm | None
    like: Tensor

    def reads(
        self, terms: Float[Tensor, "row term"], back: Float[Tensor, "row d_model"]
    ) -> tuple[Tensor, Tensor]:
        """What `back` reads of every term [row, term], and what is constant [row]."""
        shift = torch.zeros(len(terms), dtype=torch.float64)
        if self.norm is not None:
            written = (terms.double().cpu() @ self.weight + self.bias).to(self.like)
            back, shift = self.norm.pull_back(back, self.norm.scale(written))
        return back @ self.weight.T, shift + back @ self.bias


def head_writer(model: Model, layer: int) -> StreamWriter:
    """How a layer's heads write. Raises `ModelError` where its attention has no output weights."""
    heads = HeadOutputs.of(model, layer)
    # As an MLP is a linear map of its neurons, so are heads of their z: [head * d_head, d_model].
    w_out, b_out = heads.w_out.double().cpu().flatten(0, 1), heads.b_out.double().cpu()
    return _writer(w_out, b_out, heads.attn_post, model)


def neuron_writer(model: Model, layer: int) -> StreamWriter:
    """How a layer's neurons write. Raises `ModelError` where its MLP has no output weights of its own."""
    mlp = model.blocks[layer].mlp
    try:
        weight, bias = mlp.W_out.detach().double().cpu(), getattr(mlp, "b_out", None)
    except AttributeError as error:
        raise ModelError(
            f"direct_attribution(by='neuron'): the MLP of layer {layer} has no neurons of its own, as a "
            "mixture of experts has none. Use by='component' or by='head'."
        ) from error
    if bias is None:
        bias = weight.new_zeros(weight.shape[-1])
    return _writer(weight, bias.detach().double().cpu(), block_norm(model, layer, "ln2_post"), model)


def _writer(weight: Tensor, bias: Tensor, norm: Norm | None, model: Model) -> StreamWriter:
    like = unembedding_weight(model)
    frozen = None
    if norm is not None:
        frozen = FrozenNorm.of(norm, len(bias), like)
    return StreamWriter(weight, bias, frozen, like)
