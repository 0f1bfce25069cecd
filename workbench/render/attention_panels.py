"""Panels of attention patterns: `attention`, from a store, and `attention_panel`, from numbers.

What they are given is checked in `panel_inputs`; how it looks without a script is said in `attention_svg`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.errors import SiteError, WorkbenchError
from workbench.render.attention_svg import attention_svg
from workbench.render.panel import Panel
from workbench.render.panel_inputs import (
    as_array,
    as_head,
    example_of,
)
from workbench.render.writing import BLUE, ORANGE, shortened
from workbench.stores.store import ActivationStore
from workbench.text import listed

MOST_NAMED = 6
"""Heads that a title names."""


def attention(
    store: ActivationStore,
    *,
    heads: Sequence[str | tuple[int, int] | int] | None = None,
    layer: int | None = None,
    prompt: int | str = 0,
    title: str | None = None,
) -> Panel:
    """Attention patterns of some heads on one prompt of a store.

    Args:
        store: holds `pattern` of the heads' layers.
        heads: names as in "a3.4", (layer, head) pairs, or with `layer` plain numbers; None for every head of
            `layer`.
        layer: of heads that are plain numbers.
        prompt: its index, or its id.
        title: of the figure; None names the heads and the prompt.
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
    # heads of one layer share a read: a store on disk would unpack the layer again for each
    patterns: dict[int, np.ndarray] = {}
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
    names = [f"a{at}.{head}" for at, head in pairs]
    title = title or f"{_title(names)} on prompt {prompt}"
    named = {name: int(index[example]) for name, index in store.prompts.positions.items()}
    return attention_panel(strings, values, names, positions=named, title=title)


def attention_panel(
    strings: Sequence[str],
    pattern: Any,
    names: Sequence[object],
    *,
    positions: Mapping[str, int] | None = None,
    title: str | None = None,
) -> Panel:
    """Attention patterns on one prompt, given as numbers; see `attention`.

    Args:
        strings: token strings of one prompt.
        pattern: [head, query_pos, key_pos] attention weights, each row a share of 1.
        names: one per head, as in `a3.4`.
        positions: name → position, written beside the tokens; -1 for one that the prompt does not have.
        title: of the figure; None names the heads.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.

    >>> attention_panel(["a", " b"], [[[1.0, 0.0], [0.2, 0.8]]], ["a0.1"]).title
    'Attention of a0.1'
    """
    values, names = as_array(pattern, "the attention pattern"), list(map(str, names))
    if values.shape != (len(names), len(strings), len(strings)):
        raise WorkbenchError(
            f"A pattern of shape {values.shape} does not fit {len(names)} heads and {len(strings)} tokens: "
            f"[head, query_pos, key_pos] = {(len(names), len(strings), len(strings))} is needed."
        )
    if not len(names) or not len(strings):
        raise WorkbenchError("An attention panel needs at least one head and one token.")
    if not np.isfinite(values).all():
        raise WorkbenchError(
            "The attention pattern has cells that are not finite: cut the prompt to its own length first."
        )
    title = title or _title(names)
    labels = _with_positions(strings, positions or {})
    # attention is a share, so 1 is the darkest, also where no head attends that much
    scale = max(1.0, float(np.abs(values).max()))
    props = {
        "attention": np.round(values, 4),
        "attentionHeadNames": names,
        "maskUpperTri": not np.triu(values, 1).any(),
        "maxValue": scale,
        "minValue": -scale,
        "negativeColor": ORANGE,
        "positiveColor": BLUE,
        "tokens": shortened(labels, 40),
    }
    return Panel("AttentionHeads", props, attention_svg(labels, values, names, title=title), title)


def _title(names: Sequence[str]) -> str:
    """What the panel shows; of many heads the first ones are named."""
    shown = list(names[:MOST_NAMED])
    if len(names) > len(shown):
        shown[-1] = f"{len(names) - len(shown) + 1} more"
    return f"Attention of {listed(shown)}"


def _with_positions(strings: Sequence[str], positions: Mapping[str, int]) -> list[str]:
    """Token strings with the names of their positions, as in "Mary · IO"."""
    labels = list(map(str, strings))
    for name, pos in positions.items():
        if 0 <= pos < len(labels):
            labels[pos] += f" · {name}"
    return labels
