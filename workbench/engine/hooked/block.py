"""`Block`: what a reader's input passes through in a block, its norm and its projection into q, k or v.

The circuit run and edge attribution rebuild every reader's input themselves, so that they work on models
whose split inputs TransformerLens 4.3 refuses (native ones, grouped-query attention). `check_parts_add_up`
says whether that is right for a model. This module knows neither circuits nor gradients of a metric.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.engine.bridge import Norm, block_norm, norm
from workbench.engine.hooked.forward import forward
from workbench.errors import ModelError
from workbench.models.model import Model
from workbench.models.verdicts import is_right, keep_right
from workbench.sites import Shape, Site

# What works on every model, for the end of refusals.
ALTERNATIVE = "effects(...) works on them."
# Models that have been checked; weak, so that the check keeps no model alive.
_add_up: "weakref.WeakSet[Any]" = weakref.WeakSet()


@dataclass(frozen=True)
class HeadOutputs:
    """How the heads of a block enter the stream.

    Attributes:
        w_out: [head, d_head, d_model].  b_out: [d_model], zeros where the model has none.
        attn_post: the norm that the sum of the heads passes before it is added to the stream, in models that
            have one.
    """

    w_out: Float[Tensor, "head d_head d_model"]
    b_out: Float[Tensor, "d_model"]
    attn_post: Norm | None

    @classmethod
    def of(cls, model: Model, layer: int) -> "HeadOutputs":
        """The outputs of a block's heads. Raises `ModelError` where its attention has no such weights."""
        attn = _attention(model, layer)
        w_out, b_out = _weight(attn, "W_O", layer), getattr(attn, "b_O", None)
        if b_out is None:
            b_out = w_out.new_zeros(w_out.shape[-1])
        return cls(w_out, b_out.detach(), block_norm(model, layer, "ln1_post"))


@dataclass(frozen=True)
class Block:
    """One block's readers.

    Attributes:
        attn_norm, mlp_norm: applied to a reader's input over its last axis. `mlp_norm` is None without MLPs.
        weights: port → [head or kv head, d_model, d_head] of q, k and v.
        biases: port → [head or kv head, d_head], zeros where the model has none.
        heads: how its heads enter the stream.
        mlp_stream: the hook whose value is the MLP's input before its norm.
    """

    attn_norm: Norm
    mlp_norm: Norm | None
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    heads: HeadOutputs
    mlp_stream: str

    @classmethod
    def of(cls, model: Model, layer: int) -> "Block":
        """The readers of a block. Raises `ModelError` where its attention has no q, k and v weights."""
        children = dict(model.blocks[layer].named_children())
        attn = _attention(model, layer)
        weights = {port: _weight(attn, f"W_{port.upper()}", layer) for port in "qkv"}
        biases = {}
        for port, weight in weights.items():
            bias = getattr(attn, f"b_{port.upper()}", None)
            if bias is None:
                bias = weight.new_zeros(weight.shape[0], weight.shape[2])
            # Architectures keep biases flat or by head; from here on they are [head, d_head].
            biases[port] = bias.detach().view(weight.shape[0], -1)
        attn_norm = norm(children.get("ln1"))  # None, as in OLMo 2: the identity
        mlp_norm, mlp_stream = attn_norm, Site("resid_pre", layer).hook
        if "mlp" not in children:
            mlp_norm = None
        elif "ln2" in children:
            mlp_norm, mlp_stream = norm(children["ln2"]), f"blocks.{layer}.ln2.hook_in"
        elif not Shape.of(model).parallel:
            # The MLP reads the stream between attention and itself as it is (OLMo 2, EXAONE 4).
            mlp_norm, mlp_stream = norm(None), mlp_input(layer)
        # What is left are parallel blocks such as GPT-J's, whose attention and MLP share one norm.
        return cls(attn_norm, mlp_norm, weights, biases, HeadOutputs.of(model, layer), mlp_stream)

    def project(
        self, normed: Float[Tensor, "example pos head d_model"], port: str
    ) -> Float[Tensor, "example pos head d_head"]:
        """q, k or v of every head from the normed input of each."""
        weight, bias = self.weights[port], self.biases[port]
        return torch.einsum("bphd,hde->bphe", normed, weight.to(normed.dtype)) + bias.to(normed.dtype)


def mlp_input(layer: int) -> str:
    """The hook that holds what an MLP reads, after its norm."""
    return f"blocks.{layer}.mlp.hook_in"


def _attention(model: Model, layer: int) -> Any:
    attn = dict(model.blocks[layer].named_children()).get("attn")
    if attn is None:
        raise ModelError(
            f"Block {layer} of this model has no attention, so there are no heads in it. "
            f"Edges and circuits of such models are not supported; {ALTERNATIVE}"
        )
    return attn


def _weight(attn: Any, name: str, layer: int) -> Tensor:
    """A weight of attention, [head, ...]."""
    try:
        return getattr(attn, name).detach()
    # TransformerLens 4.3 raises the first for latent attention (DeepSeek), the second where there is none.
    except (NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"Attention of block {layer} has no plain {name} ({error}). "
            f"Edges and circuits of such models are not supported; {ALTERNATIVE}"
        ) from error


@torch.no_grad()
def check_parts_add_up(model: Model) -> None:
    """Raise `ModelError` unless a block adds the plain sum of its heads' z . W_O, b_O and its MLP's output.

    Checked once per model, on four tokens: models differ in what they do between a part and the stream.
    """
    if model in _add_up or is_right(model, "parts add up"):
        _add_up.add(model)
        return
    shape = Shape.of(model)
    # Read first: a model without such weights is refused by what it lacks.
    outputs = [Block.of(model, layer).heads for layer in range(shape.n_layers)]
    kinds = ["resid_pre", "resid_post", "z"]
    if not shape.attn_only:
        kinds.append("mlp_out")
    record = [(kind, layer) for layer in range(shape.n_layers) for kind in kinds]
    tokens = torch.arange(4)[None] % shape.d_vocab
    kept = forward(model, tokens[:, : shape.n_ctx], record=record).recorded
    for layer in range(shape.n_layers):
        heads = outputs[layer]
        added = kept["resid_post", layer] - kept["resid_pre", layer]
        written = torch.einsum("bphe,hed->bpd", kept["z", layer], heads.w_out.to(added.dtype))
        if heads.attn_post is not None:
            # Such a norm (Gemma 2) sees the bias too, so no bias is left over below.
            written = heads.attn_post(written + heads.b_out.to(written.dtype))
        if not shape.attn_only:
            written = written + kept["mlp_out", layer]
        bias = (added - written).float()  # what is left must be b_O, the same at every position
        spread = float((bias - bias.mean((0, 1))).abs().max())
        # A scale or norm in between makes an error as large as the parts; half precision alone a few percent.
        half = added.dtype in (torch.bfloat16, torch.float16)
        tolerance = 0.05 if half else 1e-3
        # A block that adds next to nothing still rounds at the size of the stream.
        rounding = 8 * torch.finfo(added.dtype).eps * float(kept["resid_post", layer].abs().max())
        if spread > tolerance * float(added.abs().max()) + rounding:
            raise ModelError(
                f"Block {layer} does not add the plain sum of its heads (z . W_O) and its MLP to the stream: "
                f"it scales or norms them on the way (difference {spread:.2g}). "
                f"Edges and circuits of such models are not supported yet; {ALTERNATIVE}"
            )
    _add_up.add(model)
    keep_right(model, "parts add up")


def pull_back(
    norm: Norm, *, stream: Float[Tensor, "*tokens d_model"], gradient: Float[Tensor, "*more d_model"]
) -> Tensor:
    """The gradient at readers' inputs from the gradients after their norms, of the shape of `gradient`.

    Args:
        stream: the input; it is broadcast to the readers that share it.
        gradient: after the norm, of each reader.
    """
    with torch.enable_grad():
        # Cloned, because readers that share a stream have gradients of their own.
        entry = stream.detach().expand(gradient.shape).clone().requires_grad_()
        (at_input,) = torch.autograd.grad(norm(entry), entry, gradient)
    return at_input
