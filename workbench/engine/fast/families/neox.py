"""GPT-NeoX and Pythia: parallel (or sequential) blocks with two norms, partial rotary positions."""

from workbench.engine import bridge
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.families import reading
from workbench.models.model import Model

ARCHITECTURES = ("GPTNeoXForCausalLM",)


def read(model: Model, length: int) -> Decoder:
    """The decoder of a GPT-NeoX or Pythia."""
    layers = tuple(
        reading.layer(
            block, scale=bridge.inner(block.attn).scaling, act=bridge.activation(bridge.inner(block.mlp).act)
        )
        for block in model.blocks
    )
    return reading.decoder(model, "neox", layers, rotary=reading.rotary_tables(model, length))
