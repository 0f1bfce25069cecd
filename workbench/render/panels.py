"""Panels of attention, tokens and neurons: the figures of circuitsvis, made from stores and results.

Begin with `attention` and `tokens`. Each function returns a `Panel`: it draws itself in a notebook, can be
put into a report, and `str()` of it is a page of its own. What they are given is checked in `panel_inputs`.
"""

from workbench.render.attention_panels import attention, attention_panel
from workbench.render.lens_panels import top_tokens
from workbench.render.neuron_panels import neurons, top_samples
from workbench.render.panel import Panel
from workbench.render.token_panels import log_probs, tokens

__all__ = [
    "Panel",
    "attention",
    "attention_panel",
    "log_probs",
    "neurons",
    "tokens",
    "top_samples",
    "top_tokens",
]
