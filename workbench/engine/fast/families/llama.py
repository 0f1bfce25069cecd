"""Llama, Mistral, Qwen 2 and 3: RMSNorm, rotary positions, grouped-query attention, gated MLP; softmax in float32."""

from typing import Any

import torch

from workbench.engine import bridge
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.families import reading

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def read(model: Any, length: int) -> Decoder:
    """The decoder; with a sliding window it holds for prompts that fit into the window."""
    config = model.original_model.config
    layers = tuple(
        reading.layer(
            block,
            scale=bridge.inner(block.attn).scaling,
            act=bridge.activation(bridge.inner(block.mlp).act_fn),
        )
        for block in model.blocks
    )
    return reading.decoder(
        model,
        "llama",
        layers,
        rotary=reading.rotary_tables(model, length),
        softmax=torch.float32,
        max_length=_window(config),
    )


def _window(config: Any) -> int | None:
    kinds = getattr(config, "layer_types", None)
    sliding = (
        any(kind == "sliding_attention" for kind in kinds)
        if kinds
        else getattr(config, "use_sliding_window", True)
    )
    return getattr(config, "sliding_window", None) if sliding else None
