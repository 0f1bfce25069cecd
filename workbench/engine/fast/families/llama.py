"""Llama, Mistral, Qwen 2 and 3: RMSNorm, rotary positions, grouped queries, gated MLP, softmax in float32."""

from typing import Any

import torch

from workbench.engine import bridge
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.families import reading
from workbench.models.model import Model

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def read(model: Model, length: int) -> Decoder:
    """The decoder of such a model; with a sliding window, for prompts that fit into the window."""
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
    """The length of the sliding window, or None where every token sees all before it."""
    # Newer configs say it layer by layer; Qwen's carry a window that a flag switches off.
    layer_types = getattr(config, "layer_types", None)
    slides = getattr(config, "use_sliding_window", True)
    if layer_types:
        slides = "sliding_attention" in layer_types
    if not slides:
        return None
    return getattr(config, "sliding_window", None)
