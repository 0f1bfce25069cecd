"""A panel of the likeliest tokens at every layer and position: `top_tokens`.

It draws what `workbench.top_tokens` returns and runs no model.
"""

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.render.panel import Panel
from workbench.render.panel_inputs import (
    Decode,
    as_decoder,
    as_finite,
    as_strings,
    quoted,
)
from workbench.render.token_svg import Guess, top_k_svg
from workbench.text import visible, with_article


def top_tokens(
    lens: xr.Dataset,
    decode: Decode | None = None,
    *,
    prompt: int = 0,
    strings: Sequence[str] | None = None,
    title: str | None = None,
) -> Panel:
    """The likeliest tokens at every layer and position of one prompt, from `workbench.top_tokens`.

    Args:
        lens: (example, layer, pos, rank) `token` ids and `prob`; `example` may have been selected already.
        decode: a model, or a token's string from its id: a function such as `tokenizer.decode`, or the list
            of all strings. None takes the strings that the Dataset has.
        prompt: index along `example`.
        strings: token strings of the prompt, for the columns; None takes those that the Dataset has.
        title: of the figure; None says from which layer on the last one's likeliest token is read at the end.
    Raises:
        WorkbenchError: another Dataset, a prompt that is not there, or ids that `decode` does not know.
    """
    lens = _one_prompt(lens, prompt)
    if strings is None and "pos_token" in lens.coords:
        strings = [str(text) for text in lens["pos_token"].values if text]
    # [layer, pos, rank]
    ids, probs = (lens[name].transpose(*_LENS_AXES).values for name in ("token", "prob"))
    # a shorter prompt was not measured up to the end: there the ids are -1
    measured = np.flatnonzero((ids >= 0).all((0, 2)))
    if not measured.size or not ids.size:
        raise WorkbenchError(f"Prompt {prompt} has no position with tokens at every layer.")
    positions: list[int] = lens["pos"].values[measured].tolist()
    if strings is not None and len(as_strings(strings)) <= max(positions):
        raise WorkbenchError(
            f"{len(strings)} token strings do not reach position {max(positions)} of the Dataset."
        )
    columns = list(map(str, positions))
    if strings is not None:
        columns = [f"{pos} {visible(strings[pos])}" for pos in positions]
    layers = [f"layer {layer}" for layer in lens["layer"].values]
    ids = ids[:, measured].astype(int)
    probs = as_finite(probs[:, measured], "The probabilities")
    word = as_decoder(_spellings(lens, decode))
    vocabulary, index = _by_layer(ids)
    # the component asks for the least likely tokens too, which a lens does not read
    nothing = [[[]] for _ in layers]
    props = {
        "tokens": [list(map(word, known)) for known in vocabulary],
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
    if title is None:
        title = _settled(ids, probs, word, layers)
    note = f"prompt {prompt}; a cell: the likeliest tokens with their probabilities, white 0, blue 1"
    return Panel("TopkTokens", props, top_k_svg(columns, layers, cells, title=title, note=note), title)


def _spellings(lens: xr.Dataset, decode: Decode | None) -> Decode:
    """How the ids of a Dataset are spelled: as asked for, otherwise as the Dataset itself does."""
    if decode is not None:
        return decode
    if "text" not in lens.coords:
        return str  # a model without a tokenizer: the labels are the ids
    return dict(zip(lens["token"].values.ravel().tolist(), lens["text"].values.ravel().tolist(), strict=True))


def _settled(ids: np.ndarray, probs: np.ndarray, word: Callable[[int], str], layers: Sequence[str]) -> str:
    """From which layer on the likeliest token at the last position is that of the last layer, in words."""
    likeliest = ids[:, -1, 0]
    last = len(likeliest) - 1
    first = last
    while first and likeliest[first - 1] == likeliest[last]:
        first -= 1
    answer = f"{quoted(word(int(likeliest[last])))} ({probs[last, -1, 0]:.2f})"
    text = f"At the last position {layers[last]} reads {answer}"
    if first < last:
        return f"{text}, likeliest from {layers[first]} on"
    if last:
        return f"{text}, {layers[last - 1]} another token"
    return text


_LENS_AXES = ("layer", "pos", "rank")


def _one_prompt(lens: xr.Dataset, prompt: int) -> xr.Dataset:
    """The (layer, pos, rank) tables of one prompt of a `workbench.top_tokens`."""
    is_dataset = isinstance(lens, xr.Dataset)
    if not is_dataset or not {"token", "prob"} <= set(lens) or not set(_LENS_AXES) <= set(lens.dims):
        has = with_article(type(lens).__name__)
        if is_dataset:
            has = f"variables {', '.join(map(str, lens))}"
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
    return list(zip(map(word, ids), probs, strict=True))
