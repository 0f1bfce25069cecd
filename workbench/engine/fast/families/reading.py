"""What all families share: where a bridge keeps the weights of a block, and what rules the fast engine out.

Read `layer`. A family calls it for each block, and `decoder` for the rest of the model.
"""

from dataclasses import replace
from typing import Any

import torch

from workbench.engine.bridge import Act, Unsupported, child, norm
from workbench.engine.fast.decoder import Decoder, Layer, Rotary, are_linear, linear
from workbench.models.model import Model
from workbench.sites import Shape


def layer(block: Any, *, scale: float, act: Act) -> Layer:
    """The weights of one block of a bridge.

    Raises:
        Unsupported: the block has something that no known family has.
    """
    attn, children = block.attn, dict(block.named_children())
    mlp = children.get("mlp")
    q, k, v, o = (child(attn, name) for name in "qkvo")
    if not are_linear(q, k, v, o):
        raise Unsupported("some of its weights are not plain linear maps")
    extra = sorted(name for name in children if name.endswith("_post"))
    attention = Layer(
        attn_norm=norm(children.get("ln1")),
        q=linear(q), k=linear(k), v=linear(v), o=linear(o),
        scale=scale,
        q_norm=child(attn, "q_norm"),
        k_norm=child(attn, "k_norm"),
    )  # fmt: skip
    mlp_in, gate, mlp_out = (None, None, None)
    if mlp is not None:
        mlp_in, gate, mlp_out = (child(mlp, name) for name in ("in", "gate", "out"))
        if not are_linear(mlp_in, mlp_out) or (gate is not None and not are_linear(gate)):
            raise Unsupported("some of its weights are not plain linear maps")
    if extra:
        raise Unsupported(f"its blocks norm what their parts write ({', '.join(extra)})")
    if mlp is None:
        return attention
    # Parallel blocks of one norm have no `ln2`: attention and MLP read the same normed stream, as they would
    # in GPT-J, which has no family here.
    return replace(
        attention,
        mlp_norm=norm(children.get("ln2", children.get("ln1"))),
        mlp_in=linear(mlp_in),
        mlp_gate=None if gate is None else linear(gate),
        mlp_out=linear(mlp_out),
        act=act,
    )


def decoder(
    model: Model,
    family: str,
    layers: tuple[Layer, ...],
    *,
    rotary: Rotary | None = None,
    softmax: torch.dtype | None = None,
    max_length: int | None = None,
) -> Decoder:
    """The whole model around its blocks."""
    unembed = child(model, "unembed")
    if not are_linear(unembed):
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


def rotary_tables(model: Model, length: int) -> Rotary:
    """The rotation of a Hugging Face model for prompts of up to `length` tokens."""
    embed, module = child(model, "embed").weight, child(model, "rotary_emb")
    if getattr(module, "rope_type", "default") not in ("default", "linear", "llama3", "yarn"):
        raise Unsupported(f"its rotary positions ({module.rope_type}) depend on the length of the prompt")
    cos, sin = module(embed[:1, :1].detach(), torch.arange(length, device=embed.device)[None])
    return Rotary(cos[0], sin[0])
