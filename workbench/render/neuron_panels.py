"""Panels of neurons: `neurons`, on chosen prompts, and `top_samples`, the prompts that excite one most.

Both check what they are given in `panel_inputs.as_activations`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.render.panel import Panel
from workbench.render.panel_inputs import (
    NeuronActivations,
    as_activations,
)
from workbench.render.token_panels import STILL_LINES
from workbench.render.token_svg import TokenLine, tokens_svg


def neurons(
    strings: Sequence[str] | Sequence[Sequence[str]],
    activations: Any,
    *,
    layers: Sequence[object] | None = None,
    names: Sequence[object] | None = None,
    title: str = "Neuron activations",
) -> Panel:
    """Tokens of one or more prompts, coloured by a neuron's activation, with a choice of layer and neuron.

    Args:
        strings: token strings of one prompt, or of several.
        activations: [pos, layer, neuron] of one prompt, or a list of these.
        layers, names: labels of the layers and of the neurons.
        title: of the figure.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.
    """
    acts = as_activations(strings, activations, layers, names)
    props = {
        "tokens": acts.prompts,
        "activations": acts.tables,
        "firstDimensionLabels": acts.layers,
        "secondDimensionLabels": acts.neurons,
    }
    n_layers, n_neurons, n_prompts = len(acts.layers), len(acts.neurons), len(acts.prompts)
    chosen = list(np.ndindex(n_prompts, n_layers, n_neurons))
    return Panel(
        "TextNeuronActivations", props, _still(acts, chosen, title, name_prompts=n_prompts > 1), title
    )


def top_samples(
    strings: Sequence[Sequence[str]],
    activations: Sequence[Any],
    *,
    k: int = 5,
    layers: Sequence[object] | None = None,
    names: Sequence[object] | None = None,
    title: str = "Top samples",
) -> Panel:
    """The prompts with a neuron's greatest activations, greatest first, with a choice of layer and neuron.

    Args:
        strings: token strings of several prompts.
        activations: [pos, layer, neuron] of each prompt.
        k: how many prompts to show for each neuron; all, if there are fewer.
        layers, names: labels of the layers and of the neurons.
        title: of the figure.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.
    """
    acts = as_activations(strings, activations, layers, names)
    if not isinstance(k, int | np.integer) or k < 1:
        raise WorkbenchError(f"k={k}; ask for one prompt or more.")
    peaks = np.stack([table.max(0) for table in acts.tables])
    # stable: prompts with equal peaks keep their order, so that the page is the same in every run
    order = np.argsort(-peaks, axis=0, kind="stable")[:k]
    best = order.transpose(1, 2, 0).tolist()
    tokens, values, chosen = [], [], []
    for layer, row in enumerate(best):
        tokens.append([])
        values.append([])
        for neuron, ranked in enumerate(row):
            tokens[-1].append([acts.prompts[prompt] for prompt in ranked])
            values[-1].append([acts.tables[prompt][:, layer, neuron] for prompt in ranked])
            chosen += [(prompt, layer, neuron) for prompt in ranked]
    props = {
        "tokens": tokens,
        "activations": values,
        "zerothDimensionLabels": acts.layers,
        "firstDimensionLabels": acts.neurons,
    }
    return Panel("TopkSamples", props, _still(acts, chosen, title, name_prompts=True), title)


def _still(
    acts: NeuronActivations, chosen: Sequence[tuple[int, ...]], title: str, *, name_prompts: bool
) -> str:
    """The first of the chosen (prompt, layer, neuron) as lines of tokens."""
    lines = []
    for prompt, layer, neuron in chosen[:STILL_LINES]:
        label = f"layer {acts.layers[layer]}, neuron {acts.neurons[neuron]}"
        if name_prompts:
            label += f", prompt {prompt}"
        values = acts.tables[prompt][:, layer, neuron].tolist()
        lines.append(TokenLine(label, acts.prompts[prompt], values))
    note = ""
    if len(chosen) > len(lines):
        note = f"the first {len(lines)} of {len(chosen)} are drawn"
    return tokens_svg(lines, title=title, note=note)
