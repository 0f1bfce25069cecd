"""TransformerLens' own small models: LayerNorm, RMSNorm or none, attention-only or with (gated) MLPs."""

from typing import Any

from workbench.engine import bridge
from workbench.engine.fast.decoder import Decoder, Rotary
from workbench.engine.fast.families import reading
from workbench.models.model import Model

ARCHITECTURES = ("TransformerLensNative",)


def read(model: Model, length: int) -> Decoder:
    """The decoder of a native model.

    Raises:
        Unsupported: scores or logits are capped softly, attention is not causal, or MLPs have norms inside.
    """
    cfg = model.cfg
    if float(cfg.attn_scores_soft_cap) > 0 or float(cfg.output_logits_soft_cap) > 0:
        raise bridge.Unsupported("it caps scores or logits softly")
    attn = bridge.inner(model.blocks[0].attn)
    if not attn.causal:
        raise bridge.Unsupported("its attention is not causal")
    layers = []
    for block in model.blocks:
        act = _no_activation
        if not cfg.attn_only:
            mlp = bridge.inner(block.mlp)
            if getattr(mlp, "ln", None) is not None:
                raise bridge.Unsupported("it norms inside its MLPs")
            act = bridge.activation(mlp.act)
        # TransformerLens divides scores by `scale`; here they are multiplied.
        layers.append(reading.layer(block, scale=1 / bridge.inner(block.attn).scale, act=act))
    rotary = None
    if attn.rotary is not None:
        rotary = Rotary(attn.rotary.cos_cached, attn.rotary.sin_cached, adjacent=True)
    return reading.decoder(model, "native", tuple(layers), rotary=rotary)


def _no_activation(x: Any) -> Any:
    """Stands where there is no MLP."""
    return x
