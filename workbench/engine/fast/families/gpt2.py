"""GPT-2: LayerNorm, learned positions, sequential blocks."""

from workbench.engine import bridge
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.families import reading
from workbench.models.model import Model
from workbench.sites import Shape

ARCHITECTURES = ("GPT2LMHeadModel",)


def read(model: Model, length: int) -> Decoder:
    """The decoder of a GPT-2.

    Raises:
        Unsupported: the variant computes attention in another order.
    """
    config = model.original_model.config
    if getattr(config, "reorder_and_upcast_attn", False):
        raise bridge.Unsupported("its attention is reordered and upcast")
    scale = Shape.of(model).d_head ** -0.5
    inverse = getattr(config, "scale_attn_by_inverse_layer_idx", False)
    layers = []
    for i, block in enumerate(model.blocks):
        # Mistral's GPT-2s (stanford-crfm) divide scores by the number of the layer too.
        layer_scale = scale
        if inverse:
            layer_scale = scale / (i + 1)
        activation = bridge.activation(bridge.inner(block.mlp).act)
        layers.append(reading.layer(block, scale=layer_scale, act=activation))
    return reading.decoder(model, "gpt2", tuple(layers))
