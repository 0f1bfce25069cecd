"""Panels of attention, tokens and neurons.

What each figure of circuitsvis needs, computed from stores and results.

Begin with `attention` and `tokens`. Each function returns a `Panel`: it draws itself in a notebook, can be
put into a report, and `str()` of it is a page of its own. What they are given is checked in `panel_inputs`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import SiteError, WorkbenchError
from workbench.render.panel import Panel
from workbench.render.panel_inputs import (
    Decode,
    NeuronActivations,
    as_activations,
    as_array,
    as_decoder,
    as_finite,
    as_head,
    as_strings,
    example_of,
)
from workbench.render.panel_svg import Guess, TokenLine, attention_svg, tokens_svg, top_k_svg
from workbench.render.writing import BLUE, RED, shorten
from workbench.stores.store import ActivationStore
from workbench.text import visible

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

_STILL_LINES = 12
"""Lines of tokens in a still picture; the interactive panel has all."""


def attention(
    store: ActivationStore,
    *,
    heads: Sequence[str | tuple[int, int] | int] | None = None,
    layer: int | None = None,
    prompt: int | str = 0,
) -> Panel:
    """Attention patterns of some heads on one prompt of a store.

    Args:
        store: holds `pattern` of the heads' layers.
        heads: names as in "a3.4", (layer, head) pairs, or with `layer` plain numbers; None for every head of
            `layer`.
        layer: of heads that are plain numbers.
        prompt: its index, or its id.
    Raises:
        SiteError: no heads named, text that is not a head, or heads that the model does not have.
        StoreError: no such prompt, or no patterns of that layer.
    """
    example = example_of(store, prompt)
    if heads is None:
        if layer is None:
            raise SiteError(
                "Which heads? Pass heads=['a3.4', ...] or layer=3; the store has patterns of layers "
                f"{store.layers('pattern')}."
            )
        heads = range(len(store["pattern", layer].prompt(example)))
    pairs = [as_head(head, layer) for head in heads]
    patterns: dict[int, np.ndarray] = {}  # layer -> [head, query_pos, key_pos]
    for at, head in pairs:
        if at not in patterns:
            patterns[at] = store["pattern", at].prompt(example).detach().float().cpu().numpy()
        if head not in range(len(patterns[at])):
            raise SiteError(
                f"There is no head a{at}.{head}: layer {at} has heads 0 to {len(patterns[at]) - 1}."
            )
    strings = store.prompts.strings[example]
    values = np.zeros((len(pairs), len(strings), len(strings)))
    for row, (at, head) in enumerate(pairs):
        values[row] = patterns[at][head]
    return attention_panel(strings, values, [f"a{at}.{head}" for at, head in pairs])


def attention_panel(tokens: Sequence[str], pattern: Any, names: Sequence[str]) -> Panel:
    """Attention patterns on one prompt, given as numbers; see `attention`.

    Args:
        tokens: token strings of one prompt.
        pattern: [head, query_pos, key_pos] attention weights.
        names: one per head, as in `a3.4`.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.
    """
    values, names = as_array(pattern, "the attention pattern"), list(map(str, names))
    if values.shape != (len(names), len(tokens), len(tokens)):
        raise WorkbenchError(
            f"A pattern of shape {values.shape} does not fit {len(names)} heads and {len(tokens)} tokens: "
            f"[head, query_pos, key_pos] = {(len(names), len(tokens), len(tokens))} is needed."
        )
    if not len(names) or not len(tokens):
        raise WorkbenchError("An attention panel needs at least one head and one token.")
    if not np.isfinite(values).all():
        raise WorkbenchError(
            "The attention pattern has cells that are not finite: cut the prompt to its own length first."
        )
    title = "Attention of " + ", ".join(names)
    scale = max(1.0, float(np.abs(values).max()))
    props = {
        "attention": np.round(values, 4),
        "attentionHeadNames": names,
        "maskUpperTri": not np.triu(values, 1).any(),
        "maxValue": scale,
        "minValue": -scale,
        "negativeColor": RED,
        "positiveColor": BLUE,
        "tokens": [shorten(visible(token), 40) for token in tokens],
    }
    return Panel("AttentionHeads", props, attention_svg(tokens, values, names, title=title), title)


def tokens(
    strings: Sequence[str], values: Any, *, labels: Sequence[str] | None = None, title: str = "Tokens"
) -> Panel:
    """Tokens on the colour of their values: blue above 0, red below; one scale for all rows.

    Args:
        strings: token strings of one prompt.
        values: [pos], or [row, pos] for several values of each token (layers, heads, ...) to choose from.
        labels: of the rows.
        title: of the figure.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.
    """
    strings, numbers = as_strings(strings), as_finite(values, "The values of the tokens")
    rows = numbers[None] if numbers.ndim == 1 else numbers  # [row, pos]
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != len(strings):
        raise WorkbenchError(
            f"Values of shape {numbers.shape} do not fit {len(strings)} tokens: [pos] = ({len(strings)},) or "
            "[row, pos] is needed."
        )
    names = [f"row {i}" for i in range(len(rows))] if labels is None else list(map(str, labels))
    if len(names) != len(rows):
        raise WorkbenchError(
            f"{len(names)} labels do not fit {len(rows)} rows of values: one for each row is needed."
        )
    # a single row that was not named needs no heading
    headings = [""] if labels is None and len(rows) == 1 else names
    lines = []
    for heading, row in list(zip(headings, rows.tolist(), strict=True))[:_STILL_LINES]:
        lines.append(TokenLine(heading, strings, row))
    note = f"the first {_STILL_LINES} of {len(rows)} rows are drawn" if len(rows) > _STILL_LINES else ""
    still = tokens_svg(lines, title=title, note=note)
    scale = float(np.abs(rows).max()) or 1.0
    if len(rows) == 1:
        props = {
            "tokens": strings,
            "values": rows[0],
            "maxValue": scale,
            "minValue": -scale,
            "negativeColor": RED,
            "positiveColor": BLUE,
        }
        return Panel("ColoredTokens", props, still, title)
    # the component writes its bounds with six decimals, and divides by them
    bound = max(scale, 1e-6)
    props = {
        "tokens": strings,
        "values": rows.T,
        "labels": names,
        "positiveBounds": [bound] * len(rows),
        "negativeBounds": [-bound] * len(rows),
    }
    return Panel("ColoredTokensMulti", props, still, title)


def top_tokens(
    lens: xr.Dataset,
    decode: Decode,
    *,
    prompt: int = 0,
    strings: Sequence[str] | None = None,
    title: str = "Likeliest tokens",
) -> Panel:
    """The likeliest tokens at every layer and position of one prompt, from the Dataset of
    `workbench.top_tokens`.

    Args:
        lens: (example, layer, pos, rank) `token` ids and `prob`; `example` may have been selected already.
        decode: a token's string from its id: a function such as `tokenizer.decode`, or the list of all
            strings.
        prompt: index along `example`.
        strings: token strings of the prompt, for the columns.
        title: of the figure.
    Raises:
        WorkbenchError: another Dataset, a prompt that is not there, or ids that `decode` does not know.
    """
    lens = _one_prompt(lens, prompt)
    ids, probs = (
        lens[name].transpose(*_LENS_AXES).values for name in ("token", "prob")
    )  # [layer, pos, rank]
    # a shorter prompt was not measured up to the end: there the ids are -1
    measured = np.flatnonzero((ids >= 0).all((0, 2)))
    if not measured.size or not ids.size:
        raise WorkbenchError(f"Prompt {prompt} has no position with tokens at every layer.")
    positions: list[int] = (lens["pos"].values[measured] if "pos" in lens.coords else measured).tolist()
    if strings is not None and len(as_strings(strings)) <= max(positions):
        raise WorkbenchError(
            f"{len(strings)} token strings do not reach position {max(positions)} of the Dataset."
        )
    columns = [str(pos) if strings is None else f"{pos} {visible(strings[pos])}" for pos in positions]
    numbers = lens["layer"].values if "layer" in lens.coords else range(len(ids))
    layers = [f"layer {layer}" for layer in numbers]
    ids = ids[:, measured].astype(int)
    probs = as_finite(probs[:, measured], "The probabilities")
    word = as_decoder(decode)
    vocabulary, index = _by_layer(ids)
    nothing = [[[]] for _ in layers]
    props = {
        "tokens": [[word(token) for token in known] for known in vocabulary],
        # the component wants [layer, prompt, rank, pos]
        "topkVals": probs.transpose(0, 2, 1)[:, None],
        "topkIdxs": index.transpose(0, 2, 1)[:, None],
        "bottomkVals": nothing,
        "bottomkIdxs": nothing,
        "sampleLabels": layers,
        "firstDimensionName": "Prompt",
        "firstDimensionLabels": [str(prompt)],
        "thirdDimensionName": "Position",
    }
    cells = []
    for layer_ids, layer_probs in zip(ids.tolist(), probs.tolist(), strict=True):
        cells.append([_guesses(word, *cell) for cell in zip(layer_ids, layer_probs, strict=True)])
    return Panel("TopkTokens", props, top_k_svg(columns, layers, cells, title=title), title)


_LENS_AXES = ("layer", "pos", "rank")


def _one_prompt(lens: xr.Dataset, prompt: int) -> xr.Dataset:
    """The (layer, pos, rank) tables of one prompt of a `workbench.top_tokens`."""
    is_dataset = isinstance(lens, xr.Dataset)
    if not is_dataset or not {"token", "prob"} <= set(lens) or not set(_LENS_AXES) <= set(lens.dims):
        has = f"variables {', '.join(map(str, lens))}" if is_dataset else f"a {type(lens).__name__}"
        raise WorkbenchError(
            "top_tokens draws the Dataset of workbench.top_tokens, (example, layer, pos, rank) `token` and "
            f"`prob`; this has {has}."
        )
    if "example" not in lens.dims:
        return lens
    if prompt not in range(lens.sizes["example"]):
        raise WorkbenchError(
            f"There is no prompt {prompt}: the Dataset has examples 0 to {lens.sizes['example'] - 1}."
        )
    return lens.isel(example=prompt)


def _by_layer(ids: np.ndarray) -> tuple[list[list[int]], np.ndarray]:
    """The distinct ids of each layer as they appear, and [layer, pos, rank] indices into these lists."""
    vocabulary, index = [], []
    for table in ids:
        known = list(dict.fromkeys(table.ravel().tolist()))
        number = {token: i for i, token in enumerate(known)}
        vocabulary.append(known)
        index.append(np.vectorize(number.get)(table))
    return vocabulary, np.stack(index)


def _guesses(word: Callable[[int], str], ids: Sequence[int], probs: Sequence[float]) -> list[Guess]:
    return [(word(token), prob) for token, prob in zip(ids, probs, strict=True)]


def log_probs(
    strings: Sequence[str],
    logprobs: Any,
    *,
    ids: Sequence[int],
    decode: Decode,
    k: int = 10,
    title: str = "Next tokens",
) -> Panel:
    """The probability that the model gave each token of a prompt, and the tokens that it found likelier.

    Args:
        strings: token strings of one prompt.
        logprobs: [pos, token] log-probabilities of the next token at each position, in nats, as from
            `log_softmax(-1)`.
        ids: [pos] the prompt's token ids.
        decode: a token's string from its id: a function such as `tokenizer.decode`, or the list of all
            strings.
        k: how many guesses to show at each position.
        title: of the figure.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are no log-probabilities.
    """
    strings, table = as_strings(strings), as_array(logprobs, "the log-probabilities")
    numbers = as_array(ids, "ids")
    if not np.array_equal(numbers, numbers.round()):
        raise WorkbenchError("ids are token ids, and not all of them are whole numbers.")
    numbers = numbers.astype(int)
    n = len(strings)
    if table.ndim != 2 or len(table) != n or numbers.shape != (n,) or n < 2:
        raise WorkbenchError(
            f"Log-probabilities of shape {table.shape} and ids of shape {numbers.shape} do not fit {n} "
            "tokens: "
            f"[pos, token] = ({n}, ...) and [pos] = ({n},), for two tokens or more, are needed."
        )
    if numbers.min() < 0 or numbers.max() >= table.shape[1]:
        raise WorkbenchError(
            f"ids reach from {numbers.min()} to {numbers.max()}; there are {table.shape[1]} "
            "log-probabilities."
        )
    if not isinstance(k, int | np.integer) or not 1 <= k <= table.shape[1]:
        raise WorkbenchError(f"k={k}; ask for 1 to {table.shape[1]} guesses, as many tokens as there are.")
    with np.errstate(over="ignore"):
        sums = np.exp(table).sum(1)
    if not (np.abs(sums - 1) < 0.02).all():
        raise WorkbenchError(
            "These are no log-probabilities: their exponentials do not sum to 1 at every position. Pass "
            "logits.log_softmax(-1)."
        )
    # [pos, token] without the last position, whose next token is not in the prompt; JSON has no -inf
    table = np.maximum(table[:-1], -1e4)
    right = table[np.arange(n - 1), numbers[1:]]
    best = np.stack([np.argsort(-row, kind="stable")[:k] for row in table])  # [pos, rank]
    best_logprobs = np.take_along_axis(table, best, 1)
    word = as_decoder(decode)
    words = [[word(token) for token in row] for row in best.tolist()]
    props = {
        "prompt": strings,
        "topKLogProbs": best_logprobs,
        "topKTokens": words,
        "correctTokenRank": (table > right[:, None]).sum(1),
        "correctTokenLogProb": right,
    }
    actual = [[(token, prob)] for token, prob in zip(strings[1:], np.exp(right).tolist(), strict=True)]
    likeliest = []
    for row, probs in zip(words, np.exp(best_logprobs).tolist(), strict=True):
        likeliest.append(list(zip(row, probs, strict=True)))
    note = "after each token: the probability of the next one, and the likeliest ones"
    still = top_k_svg(strings[:-1], ["next", "likeliest"], [actual, likeliest], title=title, note=note)
    return Panel("TokenLogProbs", props, still, title)


def neurons(
    strings: Sequence[str] | Sequence[Sequence[str]],
    activations: Any,
    *,
    layers: Sequence[object] | None = None,
    names: Sequence[object] | None = None,
    title: str = "Neuron activations",
) -> Panel:
    """Tokens of one or several prompts on the colour of a neuron's activation, with a choice of layer and
    neuron.

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
    peaks = np.stack([table.max(0) for table in acts.tables])  # [prompt, layer, neuron]
    order = np.argsort(-peaks, axis=0, kind="stable")[:k]  # [rank, layer, neuron]
    best = order.transpose(1, 2, 0).tolist()  # [layer][neuron][rank]
    tokens, values, chosen = [], [], []
    for layer, row in enumerate(best):
        tokens.append([[acts.prompts[prompt] for prompt in ranked] for ranked in row])
        values.append([])
        for neuron, ranked in enumerate(row):
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
    for prompt, layer, neuron in chosen[:_STILL_LINES]:
        label = f"layer {acts.layers[layer]}, neuron {acts.neurons[neuron]}"
        if name_prompts:
            label += f", prompt {prompt}"
        values = acts.tables[prompt][:, layer, neuron].tolist()
        lines.append(TokenLine(label, acts.prompts[prompt], values))
    note = f"the first {len(lines)} of {len(chosen)} are drawn" if len(chosen) > len(lines) else ""
    return tokens_svg(lines, title=title, note=note)
