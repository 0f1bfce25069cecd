"""Panels of attention, tokens and neurons: what each figure of circuitsvis needs, made from stores and results.

Each function returns a `Panel`: it draws itself in a notebook, stands in a report, and `str()` of it is a page of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.errors import SiteError, StoreError, WorkbenchError
from workbench.render.panel import Panel
from workbench.render.panel_svg import attention_svg, tokens_svg, top_k_svg
from workbench.render.writing import BLUE, RED, shorten
from workbench.sites import Node
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
Decode = Callable[[int], str] | Sequence[str] | Mapping[int, str]


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
        heads: names as in "a3.4", (layer, head) pairs, or with `layer` plain numbers; None for every head of `layer`.
        layer: of heads that are plain numbers.
        prompt: its index, or its id.
    Raises:
        SiteError: heads that are none, or that the model does not have.
        StoreError: no such prompt, or no patterns of that layer.
    """
    example = _example(store, prompt)
    if heads is None and layer is None:
        raise SiteError(
            f"Which heads? Pass heads=['a3.4', ...] or layer=3; the store has patterns of layers {store.layers('pattern')}."
        )
    if heads is None:
        assert layer is not None
        pairs = [(layer, head) for head in range(len(store["pattern", layer].prompt(example)))]
    else:
        pairs = [_head(head, layer) for head in heads]
    found: dict[int, np.ndarray] = {}
    for at, head in pairs:
        if at not in found:
            found[at] = store["pattern", at].prompt(example).detach().float().cpu().numpy()
        if head not in range(len(found[at])):
            raise SiteError(f"There is no head a{at}.{head}: layer {at} has heads 0 to {len(found[at]) - 1}.")
    strings = store.prompts.strings[example]
    pattern = (
        np.stack([found[at][head] for at, head in pairs])
        if pairs
        else np.zeros((0, len(strings), len(strings)))
    )
    return attention_panel(strings, pattern, [f"a{at}.{head}" for at, head in pairs])


def attention_panel(tokens: Sequence[str], pattern: Any, names: Sequence[str]) -> Panel:
    """Attention patterns on one prompt, given as numbers; see `attention`.

    Args:
        tokens: token strings of one prompt.
        pattern: [head, query_pos, key_pos] attention weights.
        names: one per head, as in `a3.4`.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.
    """
    values, names = _array(pattern, "the attention pattern"), list(map(str, names))
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
    scale, title = max(1.0, float(np.abs(values).max())), "Attention of " + ", ".join(names)
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
    strings, numbers = _strings(strings), _finite(values, "The values of the tokens")
    rows = numbers[None] if numbers.ndim == 1 else numbers
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != len(strings):
        raise WorkbenchError(
            f"Values of shape {numbers.shape} do not fit {len(strings)} tokens: [pos] = ({len(strings)},) or [row, pos] is needed."
        )
    names = [f"row {i}" for i in range(len(rows))] if labels is None else list(map(str, labels))
    if len(names) != len(rows):
        raise WorkbenchError(
            f"{len(names)} labels do not fit {len(rows)} rows of values: one for each row is needed."
        )
    named = names if labels is not None or len(rows) > 1 else [""]
    kept = list(zip(named, rows.tolist(), strict=True))[:_STILL_LINES]
    note = f"the first {_STILL_LINES} of {len(rows)} rows are drawn" if len(rows) > _STILL_LINES else ""
    still = tokens_svg([(name, strings, row) for name, row in kept], title=title, note=note)
    scale = float(np.abs(rows).max()) or 1.0
    if len(rows) == 1:
        props = {
            "values": rows[0],
            "maxValue": scale,
            "minValue": -scale,
            "negativeColor": RED,
            "positiveColor": BLUE,
        }
        return Panel("ColoredTokens", {"tokens": strings, **props}, still, title)
    # The component writes its bounds with six decimals.
    bound = max(scale, 1e-6)
    bounds = {"positiveBounds": [bound] * len(rows), "negativeBounds": [-bound] * len(rows)}
    return Panel(
        "ColoredTokensMulti", {"tokens": strings, "values": rows.T, "labels": names, **bounds}, still, title
    )


def top_tokens(
    lens: xr.Dataset,
    decode: Decode,
    *,
    prompt: int = 0,
    strings: Sequence[str] | None = None,
    title: str = "Likeliest tokens",
) -> Panel:
    """The likeliest tokens at every layer and position of one prompt, from the Dataset of `workbench.top_tokens`.

    Args:
        lens: (example, layer, pos, rank) `token` ids and `prob`; `example` may have been selected already.
        decode: a token's string from its id: a function such as `tokenizer.decode`, or the list of all strings.
        prompt: index along `example`.
        strings: token strings of the prompt, for the columns.
        title: of the figure.
    Raises:
        WorkbenchError: another Dataset, a prompt that is not there, or ids that `decode` does not know.
    """
    axes = ("layer", "pos", "rank")
    if (
        not isinstance(lens, xr.Dataset)
        or not {"token", "prob"} <= set(lens.data_vars)
        or not set(axes) <= set(lens.dims)
    ):
        has = (
            f"variables {', '.join(map(str, lens))}"
            if isinstance(lens, xr.Dataset)
            else f"a {type(lens).__name__}"
        )
        raise WorkbenchError(
            f"top_tokens draws the Dataset of workbench.top_tokens, (example, layer, pos, rank) `token` and `prob`; this has {has}."
        )
    if "example" in lens.dims:
        if prompt not in range(lens.sizes["example"]):
            raise WorkbenchError(
                f"There is no prompt {prompt}: the Dataset has examples 0 to {lens.sizes['example'] - 1}."
            )
        lens = lens.isel(example=prompt)
    ids, probs = (lens[name].transpose(*axes).values for name in ("token", "prob"))
    measured = [int(p) for p in np.flatnonzero((ids >= 0).all((0, 2)))]
    if not measured or not ids.size:
        raise WorkbenchError(f"Prompt {prompt} has no position with tokens at every layer.")
    places = [int(lens["pos"].values[p]) if "pos" in lens.coords else p for p in measured]
    if strings is not None and len(_strings(strings)) <= max(places):
        raise WorkbenchError(
            f"{len(strings)} token strings do not reach position {max(places)} of the Dataset."
        )
    columns = [str(p) if strings is None else f"{p} {visible(strings[p])}" for p in places]
    layers = [
        f"layer {layer}" for layer in (lens["layer"].values if "layer" in lens.coords else range(len(ids)))
    ]
    ids, probs, word = (
        ids[:, measured].astype(int),
        _finite(probs[:, measured], "The probabilities"),
        _words(decode),
    )
    known = [list(dict.fromkeys(table.ravel().tolist())) for table in ids]
    index = [
        np.vectorize({token: i for i, token in enumerate(row)}.get)(table)
        for row, table in zip(known, ids, strict=True)
    ]
    nothing = [[[]] for _ in layers]
    props = {
        "tokens": [[word(token) for token in row] for row in known],
        "topkVals": probs.transpose(0, 2, 1)[:, None],
        "topkIdxs": np.stack(index).transpose(0, 2, 1)[:, None],
        "bottomkVals": nothing,
        "bottomkIdxs": nothing,
        "sampleLabels": layers,
        "firstDimensionName": "Prompt",
        "firstDimensionLabels": [str(prompt)],
        "thirdDimensionName": "Position",
    }
    cells = [
        [[(word(token), prob) for token, prob in zip(*pair, strict=True)] for pair in zip(*row, strict=True)]
        for row in zip(ids.tolist(), probs.tolist(), strict=True)
    ]
    return Panel("TopkTokens", props, top_k_svg(columns, layers, cells, title=title), title)


def log_probs(
    strings: Sequence[str],
    logprobs: Any,
    *,
    ids: Sequence[int],
    decode: Decode,
    k: int = 10,
    title: str = "Next tokens",
) -> Panel:
    """How likely the model held each token of a prompt, and what it held likelier.

    Args:
        strings: token strings of one prompt.
        logprobs: [pos, token] log-probabilities of the next token at each position, in nats, as from `log_softmax(-1)`.
        ids: [pos] the prompt's token ids.
        decode: a token's string from its id: a function such as `tokenizer.decode`, or the list of all strings.
        k: how many guesses to show at each position.
        title: of the figure.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are no log-probabilities.
    """
    strings, table = _strings(strings), _array(logprobs, "the log-probabilities")
    numbers = _array(ids, "ids")
    if not np.array_equal(numbers, numbers.round()):
        raise WorkbenchError("ids are token ids, and not all of them are whole numbers.")
    numbers = numbers.astype(int)
    n = len(strings)
    if table.ndim != 2 or len(table) != n or numbers.shape != (n,) or n < 2:
        raise WorkbenchError(
            f"Log-probabilities of shape {table.shape} and ids of shape {numbers.shape} do not fit {n} tokens: "
            f"[pos, token] = ({n}, ...) and [pos] = ({n},), for two tokens or more, are needed."
        )
    if numbers.min() < 0 or numbers.max() >= table.shape[1]:
        raise WorkbenchError(
            f"ids reach from {numbers.min()} to {numbers.max()}; there are {table.shape[1]} log-probabilities."
        )
    if not isinstance(k, int | np.integer) or not 1 <= k <= table.shape[1]:
        raise WorkbenchError(f"k={k}; ask for 1 to {table.shape[1]} guesses, as many tokens as there are.")
    with np.errstate(over="ignore"):
        sums = np.exp(table).sum(1)
    if not (np.abs(sums - 1) < 0.02).all():
        raise WorkbenchError(
            "These are no log-probabilities: their exponentials do not sum to 1 at every position. Pass logits.log_softmax(-1)."
        )
    table = np.maximum(table[:-1], -1e4)
    best = np.stack([np.argsort(-row, kind="stable")[:k] for row in table])
    word, right = _words(decode), table[np.arange(n - 1), numbers[1:]]
    guesses = np.take_along_axis(table, best, 1)
    words = [[word(token) for token in row] for row in best.tolist()]
    props = {
        "prompt": strings,
        "topKLogProbs": guesses,
        "topKTokens": words,
        "correctTokenRank": (table > right[:, None]).sum(1),
        "correctTokenLogProb": right,
    }
    cells = [
        [[(token, float(np.exp(value)))] for token, value in zip(strings[1:], right, strict=True)],
        [
            list(zip(row, np.exp(values).tolist(), strict=True))
            for row, values in zip(words, guesses, strict=True)
        ],
    ]
    note = "after each token: the probability of the next one, and the likeliest ones"
    return Panel(
        "TokenLogProbs",
        props,
        top_k_svg(strings[:-1], ["next", "likeliest"], cells, title=title, note=note),
        title,
    )


def neurons(
    strings: Sequence[str] | Sequence[Sequence[str]],
    activations: Any,
    *,
    layers: Sequence[object] | None = None,
    names: Sequence[object] | None = None,
    title: str = "Neuron activations",
) -> Panel:
    """Tokens of one or several prompts on the colour of a neuron's activation, with a choice of layer and neuron.

    Args:
        strings: token strings of one prompt, or of several.
        activations: [pos, layer, neuron] of one prompt, or a list of these.
        layers, names: labels of the layers and of the neurons.
        title: of the figure.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.
    """
    prompts, tables, labels = _activations(strings, activations, layers, names)
    props = {
        "tokens": prompts,
        "activations": tables,
        "firstDimensionLabels": labels[0],
        "secondDimensionLabels": labels[1],
    }
    shown = [
        (i, u, p) for p in range(len(prompts)) for i in range(len(labels[0])) for u in range(len(labels[1]))
    ]
    lines = [
        (
            f"layer {labels[0][i]}, neuron {labels[1][u]}" + f", prompt {p}" * (len(prompts) > 1),
            prompts[p],
            tables[p][:, i, u],
        )
        for i, u, p in shown[:_STILL_LINES]
    ]
    return Panel("TextNeuronActivations", props, _still(lines, len(shown), title), title)


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
    prompts, tables, labels = _activations(strings, activations, layers, names)
    if not isinstance(k, int | np.integer) or k < 1:
        raise WorkbenchError(f"k={k}; ask for one prompt or more.")
    peaks = np.stack([table.max(0) for table in tables])
    order = np.argsort(-peaks, axis=0, kind="stable")[:k]
    places = [[order[:, i, u].tolist() for u in range(len(labels[1]))] for i in range(len(labels[0]))]
    values = [
        [[tables[p][:, i, u] for p in chosen] for u, chosen in enumerate(row)] for i, row in enumerate(places)
    ]
    props = {
        "tokens": [[[prompts[p] for p in chosen] for chosen in row] for row in places],
        "activations": values,
        "zerothDimensionLabels": labels[0],
        "firstDimensionLabels": labels[1],
    }
    shown = [(i, u, p) for i, row in enumerate(places) for u, chosen in enumerate(row) for p in chosen]
    lines = [
        (f"layer {labels[0][i]}, neuron {labels[1][u]}, prompt {p}", prompts[p], tables[p][:, i, u])
        for i, u, p in shown[:_STILL_LINES]
    ]
    return Panel("TopkSamples", props, _still(lines, len(shown), title), title)


def _array(values: Any, what: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise WorkbenchError(f"{what} cannot be read as one array of numbers: {error}.") from error


def _finite(values: Any, what: str) -> np.ndarray:
    numbers = _array(values, what)
    if not np.isfinite(numbers).all():
        raise WorkbenchError(f"{what} are not all finite: leave out the positions that were not measured.")
    return numbers


def _strings(strings: Sequence[str]) -> list[str]:
    if isinstance(strings, str) or not len(strings) or not all(isinstance(text, str) for text in strings):
        raise WorkbenchError(
            f"{strings!r:.60} is no list of token strings: one string for each token is needed."
        )
    return list(map(str, strings))


def _words(decode: Decode) -> Callable[[int], str]:
    """A function from a token id to its string."""
    if callable(decode):
        return lambda token: str(decode(token))

    def word(token: int) -> str:
        try:
            return str(decode[token])
        except (LookupError, TypeError) as error:
            raise WorkbenchError(
                f"decode has no string for token {token}; it has {len(decode)} of them."
            ) from error

    return word


def _example(store: ActivationStore, prompt: int | str) -> int:
    example = store.example(prompt) if isinstance(prompt, str) else int(prompt)
    if example is None or example not in range(len(store)):
        raise StoreError(
            f"There is no prompt {prompt!r} in {store!r}: name one by its id, or by 0 to {len(store) - 1}."
        )
    return example


def _head(head: str | tuple[int, int] | int, layer: int | None) -> tuple[int, int]:
    if isinstance(head, str):
        node = Node.parse(head)
        if node.is_head and not node.port:
            return node.layer_and_head
    elif isinstance(head, int | np.integer):
        if layer is not None:
            return layer, int(head)
    elif isinstance(head, Sequence) and len(head) == 2:
        return int(head[0]), int(head[1])
    raise SiteError(f"{head!r} is not a head. Heads: 'a3.4', (3, 4), or with layer=3 the number 4.")


def _activations(
    strings: Sequence[str] | Sequence[Sequence[str]],
    activations: Any,
    layers: Sequence[object] | None,
    names: Sequence[object] | None,
) -> tuple[list[list[str]], list[np.ndarray], tuple[list[str], list[str]]]:
    """Prompts, [pos, layer, neuron] of each, and the labels of layers and neurons."""
    one = len(strings) > 0 and isinstance(strings[0], str)
    rows: Sequence[Any] = [strings] if one else strings
    prompts = [_strings(row) for row in rows]
    tables = [_finite(table, "The activations") for table in ([activations] if one else activations)]
    if not prompts or len(prompts) != len(tables):
        raise WorkbenchError(
            f"{len(prompts)} prompts and {len(tables)} arrays of activations: one for each prompt is needed."
        )
    units = tables[0].shape[1:]
    for row, table in zip(prompts, tables, strict=True):
        if table.ndim != 3 or len(table) != len(row) or table.shape[1:] != units or not table.size:
            raise WorkbenchError(
                f"Activations of shape {table.shape} do not fit {len(row)} tokens: [pos, layer, neuron] = ({len(row)}, ...) is "
                "needed, with as many layers and neurons for every prompt."
            )
    labels = []
    for what, given, size in (("layers", layers, units[0]), ("names", names, units[1])):
        labels.append(list(map(str, range(size) if given is None else given)))
        if len(labels[-1]) != size:
            raise WorkbenchError(
                f"{what} has {len(labels[-1])} labels for {size} of them: one for each is needed."
            )
    return prompts, tables, (labels[0], labels[1])


def _still(lines: Sequence[tuple[str, Sequence[str], Any]], known: int, title: str) -> str:
    note = f"the first {len(lines)} of {known} are drawn" if known > len(lines) else ""
    return tokens_svg(
        [(label, strings, values.tolist()) for label, strings, values in lines], title=title, note=note
    )
