"""How heads and neurons of a block enter the residual stream: output weights, biases, norms after them.

Read `BlockWriters.of`, then `StreamWriter.reads`. Rows of stores are not known here (`direct_attribution`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.engine.bridge import Norm, block_norm
from workbench.engine.hooked.block import Block
from workbench.lenses.frozen_norm import FrozenNorm
from workbench.lenses.unembedding import unembedding_weight
from workbench.models.model import Model
from workbench.sites import Shape


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


@dataclass(frozen=True)
class BlockWriters:
    """The two writers of a block; `mlp` is None without MLPs."""

    heads: StreamWriter
    mlp: StreamWriter | None

    @classmethod
    def of(cls, model: Model, layer: int, shape: Shape) -> "BlockWriters":
        """The writers of a layer, read from the model."""
        block = Block.of(model, layer)
        # As an MLP is a linear map of its neurons, so are heads of their z: [head * d_head, d_model].
        w_out, b_out = block.w_out.double().cpu().flatten(0, 1), block.b_out.double().cpu()
        heads = _writer(w_out, b_out, block.attn_post, model)
        if shape.attn_only:
            return cls(heads, None)
        mlp = model.blocks[layer].mlp
        weight, bias = mlp.W_out.detach().double().cpu(), getattr(mlp, "b_out", None)
        if bias is None:
            bias = weight.new_zeros(shape.d_model)
        bias = bias.detach().double().cpu()
        return cls(heads, _writer(weight, bias, block_norm(model, layer, "ln2_post"), model))


def _writer(weight: Tensor, bias: Tensor, norm: Norm | None, model: Model) -> StreamWriter:
    like = unembedding_weight(model)
    frozen = None
    if norm is not None:
        frozen = FrozenNorm.of(norm, len(bias), like)
    return StreamWriter(weight, bias, frozen, like)
