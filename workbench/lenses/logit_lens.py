"""The logit lens: what the model would say if it stopped at a layer (nostalgebraist 2020). It reads stores.

With `lens=` a tuned lens (arXiv 2303.08112) translates each layer's stream into the last one's terms first.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import PromptError, StoreError, UnknownName
from workbench.lenses.unembedding import (
    ReadOut,
    check_store,
    last_stream,
    needed,
    one_token,
    pieces,
    token_rows,
)
from workbench.metrics.metric import alternatives_mass, alternatives_mean, rank_of_best
from workbench.prompts.encoder import TextEncoder
from workbench.results import as_labels, effect_array, versions
from workbench.sites import Shape
from workbench.stores.store import ActivationStore

TARGET_MEASURES = ("logit", "logprob", "prob", "rank")
"""Measures of target tokens."""
MEASURES = (*TARGET_MEASURES, "entropy", "kl")

Translate = Callable[[Tensor, int], Tensor]
"""A lens of its own: (rows [row, d_model] of a layer, that layer) → [row, d_model]."""


def logit_lens(
    store: ActivationStore,
    model: Any,
    *,
    targets: Int[Tensor, "example alternative token"] | Int[Tensor, "example"] | None = None,
    minus: Int[Tensor, "example wrong_alternative wrong_token"] | None = None,
    measure: Literal["logit", "logprob", "prob", "rank", "entropy", "kl"] | str = "logit",
    kind: Literal["resid_pre", "resid_post", "resid_mid"] | str = "resid_post",
    lens: Translate | None = None,
    vocabulary: Sequence[int] | Tensor | None = None,
    budget: int | None = None,
) -> xr.DataArray:
    """Final norm and unembedding applied to the residual stream at every layer and position, and one number read there.

    At the last layer's `resid_post` this is the model's own output, exactly.

    Args:
        targets: tokens per example (`pairs.answers`); the mean over alternatives is taken (`rank`: the best one).
            Needed for "logit", "logprob", "prob" and "rank".
        minus: tokens to subtract the same measure of (`pairs.wrong`): a logit difference.
        measure: "logit", "logprob" (nats), "prob" (summed over alternatives), "rank" (0 is the top); or of the whole
            distribution "entropy" (nats) and "kl" (nats): KL(last layer || this one), for which the store must hold the
            last layer's `resid_post`.
        lens: a `TunedLens`, or any function of (rows, layer); the last layer's `resid_post` is never translated.
        vocabulary: token ids: the distribution among these alone, which costs as much less as they are fewer.
        budget: bytes for logits; rows are read in chunks that fit.

    Returns:
        DataArray (example, layer, pos); NaN beyond an example's length, and where a store does not keep the token. When
        all prompts have the same token strings, the coordinate `token` names the positions; otherwise `pos_token` does, prompt
        by prompt.

    Raises:
        StoreError: the store is of another model, or lacks the residual stream.
        PromptError: a target of several tokens, not one target per example, or one outside the vocabulary.
    """
    if measure not in MEASURES:
        raise UnknownName("measure", measure, MEASURES)
    if (targets is None) == (measure in TARGET_MEASURES):
        raise PromptError(
            f"logit_lens: measure={measure!r} "
            + ("needs targets=, tokens per example." if targets is None else "has no targets.")
        )
    if minus is not None and targets is None:
        raise PromptError(
            f"logit_lens: measure={measure!r} is of the whole distribution: minus= does not go with it."
        )
    check_store(store, model, "logit_lens")
    _check_lens(lens, store, kind)
    layers = needed(store, kind, "logit_lens")
    wanted = [
        one_token(tokens, store, model, f"logit_lens: {name}")
        for name, tokens in (("targets", targets), ("minus", minus))
        if tokens is not None
    ]
    if vocabulary is None and measure == "logit":
        vocabulary = torch.unique(torch.cat([tokens[tokens >= 0].flatten().cpu() for tokens in wanted]))
    read_out = ReadOut.of(model, vocabulary)
    wanted = [read_out.index(tokens) for tokens in wanted]
    owner, place = token_rows(store[kind, layers[0]])
    last = Shape.of(model).n_layers - 1
    final = last_stream(store, last, "measure='kl'") if measure == "kl" else None
    table = torch.full((len(store), len(layers), int(place.max()) + 1), float("nan"), dtype=torch.float64)
    for column, layer in enumerate(layers):
        for rows, stream in pieces(store[kind, layer], read_out.rows_at_once(budget)):
            logits = _precise(read_out(_translated(stream, kind, layer, last, lens)))
            if wanted:
                values = [_measured(logits, tokens[owner[rows]], measure) for tokens in wanted]
                read = values[0] - values[1] if len(values) == 2 else values[0]
            else:
                reference = (
                    None if final is None else _precise(read_out(final.data.part(rows.start, rows.stop)))
                )
                read = _spread(logits, reference)
            table[owner[rows], column, place[rows]] = read.double().cpu()
    table = table if store[kind, layers[0]].dtype == torch.float64 else table.float()
    attrs = {
        "kind": "logit_lens",
        "measure": measure,
        "minus": minus is not None,
        "site": kind,
    } | _provenance(store, lens)
    coords: dict[str, Any] = {
        "example": np.arange(len(store)),
        "layer": layers,
        "pos": np.arange(table.shape[2]),
    }
    made = effect_array(table, ("example", "layer", "pos"), coords, name=measure, attrs=attrs)
    return _with_tokens(made, store)


def top_tokens(
    store: ActivationStore,
    model: Any,
    *,
    k: int = 5,
    kind: Literal["resid_pre", "resid_post", "resid_mid"] | str = "resid_post",
    lens: Translate | None = None,
    vocabulary: Sequence[int] | Tensor | None = None,
    budget: int | None = None,
) -> xr.Dataset:
    """The `k` likeliest tokens at every layer and position, by the logit lens or a lens of your own; see `logit_lens`.

    Returns:
        Dataset (example, layer, pos, rank): `token` (its id, -1 where there is nothing) and `prob`. Where the model has a
        tokenizer the coordinate `text` spells the tokens; `pos_token` (example, pos) are those of the prompts.
    """
    check_store(store, model, "top_tokens")
    _check_lens(lens, store, kind)
    layers = needed(store, kind, "top_tokens")
    read_out = ReadOut.of(model, vocabulary)
    size = Shape.of(model).d_vocab if read_out.tokens is None else len(read_out.tokens)
    if type(k) is not int or not 1 <= k <= size:
        raise PromptError(f"top_tokens: k={k!r}; ask for 1 to {size}, as many tokens as are read.")
    owner, place = token_rows(store[kind, layers[0]])
    axes = (len(store), len(layers), int(place.max()) + 1, k)
    tokens, probs = torch.full(axes, -1), torch.full(axes, float("nan"))
    for column, layer in enumerate(layers):
        for rows, stream in pieces(store[kind, layer], read_out.rows_at_once(budget)):
            stream = _translated(stream, kind, layer, Shape.of(model).n_layers - 1, lens)
            best = _precise(read_out(stream)).softmax(-1).topk(k, -1)
            names = best.indices if read_out.tokens is None else read_out.tokens[best.indices]
            tokens[owner[rows], column, place[rows]] = names.cpu()
            probs[owner[rows], column, place[rows]] = best.values.float().cpu()
    coords: dict[str, Any] = {
        "example": np.arange(axes[0]),
        "layer": layers,
        "pos": np.arange(axes[2]),
        "rank": np.arange(k),
    }
    dims = ("example", "layer", "pos", "rank")
    made = effect_array(probs, dims, coords, name="prob").to_dataset().assign(token=(dims, tokens.numpy()))
    if getattr(model, "tokenizer", None) is not None:
        made = made.assign_coords(text=(dims, _spelled(tokens, model)))
    made = made.assign_coords(pos_token=(("example", "pos"), _strings(store, axes[2])))
    return made.assign_attrs({"kind": "top_tokens", "site": kind} | _provenance(store, lens))


def _check_lens(lens: Translate | None, store: ActivationStore, kind: str) -> None:
    """Raise `StoreError` when a fitted lens is of another model or stream."""
    if getattr(lens, "model", store.model) != store.model:
        raise StoreError(
            f"The lens is of another model ({getattr(lens, 'model_name', '')}) than the store ({store.model_name})."
        )
    if getattr(lens, "kind", kind) != kind:
        raise StoreError(
            f"The lens translates {getattr(lens, 'kind', '')}, not {kind}: fit one with kind={kind!r}."
        )


def _translated(stream: Tensor, kind: str, layer: int, last: int, lens: Translate | None) -> Tensor:
    return stream if lens is None or (kind, layer) == ("resid_post", last) else lens(stream, layer)


def _precise(logits: Tensor) -> Tensor:
    return logits.detach() if logits.dtype == torch.float64 else logits.detach().float()


def _spread(
    logits: Float[Tensor, "row token"], reference: Float[Tensor, "row token"] | None
) -> Float[Tensor, "row"]:
    """[row]: the entropy of a distribution, or KL(reference || it), in nats."""
    ours = logits.log_softmax(-1)
    if reference is None:
        return -(ours.exp() * ours).sum(-1)
    theirs = reference.log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def _provenance(store: ActivationStore, lens: Translate | None) -> dict[str, Any]:
    return store.attrs | {"lens": "logit" if lens is None else str(getattr(lens, "name", "own"))} | versions()


def _with_tokens(made: xr.DataArray, store: ActivationStore) -> xr.DataArray:
    strings = set(store.prompts.strings)
    same = len(strings) == 1 and made.sizes["pos"] == len(store.prompts.strings[0])
    if same:
        return made.assign_coords(token=("pos", as_labels(store.prompts.strings[0])))
    return made.assign_coords(pos_token=(("example", "pos"), _strings(store, made.sizes["pos"])))


def _strings(store: ActivationStore, length: int) -> np.ndarray:
    """[example, pos]: the token strings of the prompts, "" beyond their ends."""
    made = np.full((len(store), length), "", dtype=object)
    for row, strings in zip(made, store.prompts.strings, strict=True):
        row[: len(strings)] = as_labels(strings[:length])
    return made


def _spelled(tokens: Int[Tensor, "example layer pos rank"], model: Any) -> np.ndarray:
    """[example, layer, pos, rank]: the strings of token ids, "" for -1."""
    ids, at = np.unique(tokens.numpy(), return_inverse=True)
    known = TextEncoder(model).labels([[int(token) for token in ids if token >= 0]])[0]
    return (
        np.concatenate([[""] * int((ids < 0).sum()), as_labels(known)])
        .astype(object)[at]
        .reshape(tokens.shape)
    )


def _measured(logits: Tensor, table: Tensor, measure: str) -> Tensor:
    """[row]: the measure of target tokens [row, alternative, 1] under logits [row, token]."""
    table = table.to(logits.device)
    if measure == "rank":
        return rank_of_best(logits, table)
    if measure == "prob":
        return alternatives_mass(logits, table)
    return alternatives_mean(logits.log_softmax(-1) if measure == "logprob" else logits, table)
