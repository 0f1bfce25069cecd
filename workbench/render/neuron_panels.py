"""Panels of neurons: `neurons`, on chosen prompts, and `top_samples`, the prompts that excite one most.

Both check what they are given in `panel_inputs.as_activations`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.render.panel import Panel
from workbench.render.panel_inputs import (
    NeuronActivations,
    as_activations,
    quoted,
)
from workbench.render.token_panels import STILL_LINES
from workbench.render.token_svg import TokenLine, tokens_svg


def neurons(
    strings: Sequence[str] | Sequence[Sequence[str]],
    activations: Any,
    *,
    layers: Sequence[object] | None = None,
    names: Sequence[object] | None = None,
    title: str | None = None,
) -> Panel:
    """Tokens of one or more prompts, coloured by a neuron's activation, with a choice of layer and neuron.

    Args:
        strings: token strings of one prompt, or of several.
        activations: [pos, layer, neuron] of one prompt, or a list of these.
        layers, names: labels of the layers and of the neurons.
        title: of the figure; None says where the largest activation is.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.

    >>> neurons(["a", " cat"], [[[0.0, 0.1]], [[2.5, 0.2]]], layers=[3]).title
    'Largest activation: 2.5 of layer 3, neuron 0 at "cat"'
    """
    acts = as_activations(strings, activations, layers, names)
    props = {
        "tokens": acts.prompts,
        "activations": acts.tables,
        "firstDimensionLabels": acts.layers,
        "secondDimensionLabels": acts.neurons,
    }
    groups = {
        (layer, neuron): list(range(len(acts.prompts)))
        for layer, neuron in np.ndindex(len(acts.layers), len(acts.neurons))
    }
    title = title or _largest(acts)
    return Panel("TextNeuronActivations", props, _still(acts, groups, title), title)


def top_samples(
    strings: Sequence[Sequence[str]],
    activations: Sequence[Any],
    *,
    k: int = 5,
    layers: Sequence[object] | None = None,
    names: Sequence[object] | None = None,
    title: str | None = None,
) -> Panel:
    """The prompts with a neuron's greatest activations, greatest first, with a choice of layer and neuron.

    Args:
        strings: token strings of several prompts.
        activations: [pos, layer, neuron] of each prompt.
        k: how many prompts to show for each neuron; all, if there are fewer.
        layers, names: labels of the layers and of the neurons.
        title: of the figure; None says where the largest activation is.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.

    >>> top_samples([["a", " cat"], ["a", " dog"]], [[[[0.0]], [[2.5]]], [[[0.0]], [[0.5]]]], k=1).title
    'Largest activation: 2.5 of layer 0, neuron 0 at "cat" in prompt 0'
    """
    acts = as_activations(strings, activations, layers, names)
    if not isinstance(k, int | np.integer) or k < 1:
        raise WorkbenchError(f"k={k}; ask for one prompt or more.")
    peaks = np.stack([table.max(0) for table in acts.tables])
    # stable: prompts with equal peaks keep their order, so that the page is the same in every run
    order = np.argsort(-peaks, axis=0, kind="stable")[:k]
    best = order.transpose(1, 2, 0).tolist()
    tokens, values, groups = [], [], {}
    for layer, row in enumerate(best):
        tokens.append([])
        values.append([])
        for neuron, ranked in enumerate(row):
            tokens[-1].append([acts.prompts[prompt] for prompt in ranked])
            values[-1].append([acts.tables[prompt][:, layer, neuron] for prompt in ranked])
            groups[layer, neuron] = ranked
    props = {
        "tokens": tokens,
        "activations": values,
        "zerothDimensionLabels": acts.layers,
        "firstDimensionLabels": acts.neurons,
    }
    title = title or _largest(acts)
    return Panel("TopkSamples", props, _still(acts, groups, title), title)


def _neuron_name(acts: NeuronActivations, layer: int, neuron: int) -> str:
    return f"layer {acts.layers[layer]}, neuron {acts.neurons[neuron]}"


def _largest(acts: NeuronActivations) -> str:
    """Where the largest activation of all is, in words."""
    prompt = int(np.argmax([table.max() for table in acts.tables]))
    table = acts.tables[prompt]
    pos, layer, neuron = map(int, np.unravel_index(table.argmax(), table.shape))
    text = f"Largest activation: {table[pos, layer, neuron]:.3g} of {_neuron_name(acts, layer, neuron)}"
    text += f" at {quoted(acts.prompts[prompt][pos])}"
    if len(acts.prompts) > 1:
        text += f" in prompt {prompt}"
    return text


def _still(acts: NeuronActivations, groups: Mapping[tuple[int, int], Sequence[int]], title: str) -> str:
    """The prompts of each (layer, neuron) as lines of tokens, under a heading for each neuron."""
    lines, signs = [], False
    n_lines = sum(map(len, groups.values()))
    for (layer, neuron), prompts in groups.items():
        for rank, prompt in enumerate(prompts):
            values = acts.tables[prompt][:, layer, neuron]
            # + 0.0, because the maximum may be a negative 0
            label = f"prompt {prompt}: up to {values.max() + 0.0:.3g}" if len(acts.prompts) > 1 else ""
            heading = _neuron_name(acts, layer, neuron) if rank == 0 else ""
            lines.append(TokenLine(label, acts.prompts[prompt], values.tolist(), heading))
            signs = signs or bool((values < 0).any())
    note = ""
    if n_lines > STILL_LINES:
        note = f"the first {STILL_LINES} of {n_lines} lines are drawn"
    return tokens_svg(lines[:STILL_LINES], title=title, note=note, signs=signs)
