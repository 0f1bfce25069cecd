"""What all families share: the places where a bridge keeps the parts of a block, and what rules the fast engine out."""

from typing import Any

import torch

from workbench.engine.bridge import Act, Unsupported, child, norm
from workbench.engine.fast.decoder import Decoder, Layer, Rotary, linear, params
from workbench.sites import Shape


def layer(block: Any, *, scale: float, act: Act, post_norms: bool = False) -> Layer:
    """The weights of one block of a bridge. Raises `Unsupported` when a part is not what it is in the known families."""
    attn, mlp = block.attn, dict(block.named_children()).get("mlp")
    q, k, v, o = (child(attn, name) for name in "qkvo")
    mlp_in, gate, mlp_out = (None if mlp is None else child(mlp, name) for name in ("in", "gate", "out"))
    parts = [q, k, v, o, *([] if mlp is None else [mlp_in, mlp_out]), *([] if gate is None else [gate])]
    if not params(*parts):
        raise Unsupported("some of its weights are not plain linear maps")
    names = dict(block.named_children())
    extra = sorted(name for name in names if name.endswith("_post"))
    if extra and not post_norms:
        raise Unsupported(f"its blocks norm what their parts write ({', '.join(extra)})")
    own_norm = "ln2" in names
    return Layer(
        attn_norm=norm(names.get("ln1")),
        q=linear(q), k=linear(k), v=linear(v), o=linear(o),
        scale=scale,
        mlp_norm=None if mlp is None else norm(names["ln2"] if own_norm else names.get("ln1")),
        mlp_in=None if mlp is None else linear(mlp_in),
        mlp_gate=None if gate is None else linear(gate),
        mlp_out=None if mlp is None else linear(mlp_out),
        act=None if mlp is None else act,
        q_norm=child(attn, "q_norm"),
        k_norm=child(attn, "k_norm"),
    )  # fmt: skip


def decoder(
    model: Any,
    family: str,
    layers: tuple[Layer, ...],
    *,
    rotary: Rotary | None = None,
    softmax: torch.dtype | None = None,
    max_length: int | None = None,
) -> Decoder:
    """The whole model around its blocks."""
    unembed = child(model, "unembed")
    if not params(unembed):
        raise Unsupported("its unembedding is not a plain linear map")
    positions = child(model, "pos_embed")
    return Decoder(
        family=family,
        shape=Shape.of(model),
        layers=layers,
        embed=child(model, "embed").weight.detach(),
        pos_embed=None if positions is None else positions.weight.detach(),
        rotary=rotary,
        final_norm=norm(dict(model.named_children()).get("ln_final")),
        unembed=linear(unembed),
        softmax=softmax,
        max_length=max_length,
    )


def rotary_tables(model: Any, length: int) -> Rotary:
    """The rotation of a Hugging Face model for prompts of up to `length` tokens."""
    embed, module = child(model, "embed").weight, child(model, "rotary_emb")
    if getattr(module, "rope_type", "default") not in ("default", "linear", "llama3", "yarn"):
        raise Unsupported(f"its rotary positions ({module.rope_type}) depend on the length of the prompt")
    cos, sin = module(embed[:1, :1].detach(), torch.arange(length, device=embed.device)[None])
    return Rotary(cos[0], sin[0])
