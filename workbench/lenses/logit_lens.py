"""The logit lens: the prediction in the residual stream at a layer (nostalgebraist 2020). It reads stores.

`logit_lens` gives one number at every layer and position, `top_tokens` the likeliest tokens. With `lens=` a
tuned lens (arXiv 2303.08112) first translates each layer's stream into the last layer's basis.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from workbench.arguments import called, checked, shown
from workbench.engine.store_values import check_same_model
from workbench.errors import ArgumentError, PromptError, StoreError, UnknownName
from workbench.finite import check_finite
from workbench.lenses.store_reading import last_stream, needed, one_token, pieces, token_rows
from workbench.lenses.unembedding import ReadOut
from workbench.metrics.metric import alternatives_mass, alternatives_mean, rank_of_best
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.encoder import token_labels
from workbench.results import as_labels, effect_array, strings_by_position, versions, with_tokens
from workbench.sites import Shape
from workbench.stores.store import ActivationStore

TARGET_MEASURES = ("logit", "logprob", "prob", "rank")
"""Measures of target tokens; the others are of the whole distribution."""
MEASURES = (*TARGET_MEASURES, "entropy", "kl")

Translate = Callable[[Tensor, int], Tensor]
"""A lens: (rows [row, d_model] of a layer, that layer) → [row, d_model]."""


@checked
@model_call()
def logit_lens(
    store: ActivationStore,
    model: Model,
    *,
    targets: Int[Tensor, "example alternative token"] | Int[Tensor, "example"] | None = None,
    minus: Int[Tensor, "example wrong_alternative wrong_token"] | None = None,
    measure: Literal["logit", "logprob", "prob", "rank", "entropy", "kl"] | str = "logit",
    kind: Literal["resid_pre", "resid_post", "resid_mid"] | str = "resid_post",
    lens: Translate | None = None,
    vocabulary: Sequence[int] | Tensor | None = None,
    budget: int | None = None,
) -> xr.DataArray:
    """A measure of the logits that the residual stream gives at every layer and position.

    The stream is read by the model's final norm and unembedding. At the last layer's `resid_post` this is
    the model's own output, exactly.

    Args:
        targets: tokens per example (`pairs.answers`); the mean over alternatives is taken (`rank`: the best
            one). Needed for "logit", "logprob", "prob" and "rank".
        minus: tokens to subtract the same measure of (`pairs.wrong`): a logit difference.
        measure: "logit", "logprob" (nats), "prob" (summed over alternatives), "rank" (0 is the top); or of
            the whole distribution "entropy" (nats) and "kl" (nats): KL(last layer || this one), for which the
            store must hold the last layer's `resid_post`.
        lens: a `TunedLens`, or any function of (rows, layer); the last layer's `resid_post` is never
            translated.
        vocabulary: token ids: the distribution over these alone; fewer tokens cost less.
        budget: bytes for logits; rows are read in chunks that fit.

    Returns:
        DataArray (example, layer, pos); NaN beyond an example's length, and where a store does not keep the
        token. When all prompts have the same token strings, the coordinate `token` names the positions;
        otherwise `pos_token` does, prompt by prompt.

    Raises:
        StoreError: the store is of another model, or lacks the residual stream.
        PromptError: a target of several tokens, not one target per example, or one outside the vocabulary;
            targets that the measure needs or does not take.
        UnknownName: no such measure.
        NotFinite: the store's rows, or the logits of them, are NaN or infinite; the message names the layer.
    """
    if measure not in MEASURES:
        raise UnknownName("measure", measure, MEASURES)
    if (targets is None) == (measure in TARGET_MEASURES):
        raise PromptError(
            f"logit_lens: measure={measure!r} "
            + ("needs targets=, tokens per example." if targets is None else "takes no targets=.")
        )
    if minus is not None and targets is None:
        raise PromptError(
            f"logit_lens: measure={measure!r} is of the whole distribution, so it takes no minus=."
        )
    check_same_model(store, model, "logit_lens")
    _check_lens(lens, store, kind)
    layers = needed(store, kind, "logit_lens")
    token_tables: list[Tensor] = []
    for name, tokens in (("targets", targets), ("minus", minus)):
        if tokens is not None:
            token_tables.append(one_token(tokens, store, model, f"logit_lens: {name}"))
    if vocabulary is None and measure == "logit":
        # A logit does not depend on the other tokens, so that theirs need not be computed.
        vocabulary = torch.unique(torch.cat([tokens[tokens >= 0].flatten().cpu() for tokens in token_tables]))
    read_out = ReadOut.of(model, vocabulary)
    token_tables = [read_out.index(tokens) for tokens in token_tables]
    of_rows = token_rows(store[kind, layers[0]])
    last = Shape.of(model).n_layers - 1
    final = None
    if measure == "kl":
        final = last_stream(store, last, "measure='kl'")
    table = torch.full((len(store), len(layers), of_rows.n_positions), float("nan"), dtype=torch.float64)
    for column, layer in enumerate(layers):
        for rows, stream in pieces(store[kind, layer], read_out.rows_at_once(budget)):
            logits = _read(read_out, _translated(stream, kind, layer, last, lens), f"{kind}[{layer}]")
            prompts = of_rows.prompts[rows]
            if token_tables:
                values = _measured(logits, token_tables[0][prompts], measure)
                if minus is not None:
                    values = values - _measured(logits, token_tables[1][prompts], measure)
            elif final is None:
                values = _entropy(logits)
            else:
                reference = _read(read_out, final.data.part(rows.start, rows.stop), repr(final))
                values = _divergence(reference, logits)
            table[prompts, column, of_rows.positions[rows]] = values.double().cpu()
    if store[kind, layers[0]].dtype != torch.float64:
        table = table.float()
    facts = {"kind": "logit_lens", "measure": measure, "minus": minus is not None, "site": kind}
    coords = {"example": np.arange(len(store)), "layer": layers, "pos": np.arange(table.shape[2])}
    result = effect_array(table, list(coords), coords, name=measure, attrs=facts | _provenance(store, lens))
    return with_tokens(result, store.prompts.strings)


@checked
@model_call()
def top_tokens(
    store: ActivationStore,
    model: Model,
    *,
    k: int = 5,
    kind: Literal["resid_pre", "resid_post", "resid_mid"] | str = "resid_post",
    lens: Translate | None = None,
    vocabulary: Sequence[int] | Tensor | None = None,
    budget: int | None = None,
) -> xr.Dataset:
    """The `k` likeliest tokens at every layer and position, by the logit lens or a lens of your own.

    Args:
        k: how many tokens; the other arguments are those of `logit_lens`.

    Returns:
        Dataset (example, layer, pos, rank): `token` (its id, -1 where there is nothing) and `prob`. Where the
        model has a tokenizer the coordinate `text` spells the tokens; `pos_token` (example, pos) are those of
        the prompts.

    Raises:
        StoreError: the store is of another model, or lacks the residual stream.
        PromptError: `k` is not between 1 and the number of tokens that are read.
        NotFinite: as in `logit_lens`.
    """
    check_same_model(store, model, "top_tokens")
    _check_lens(lens, store, kind)
    layers = needed(store, kind, "top_tokens")
    read_out = ReadOut.of(model, vocabulary)
    size = read_out.n_tokens
    if not 1 <= k <= size:
        raise PromptError(f"top_tokens: k={k!r}; ask for 1 to {size}, as many tokens as are read.")
    of_rows = token_rows(store[kind, layers[0]])
    last = Shape.of(model).n_layers - 1
    axes = (len(store), len(layers), of_rows.n_positions, k)
    tokens, probs = torch.full(axes, -1), torch.full(axes, float("nan"))
    for column, layer in enumerate(layers):
        for rows, stream in pieces(store[kind, layer], read_out.rows_at_once(budget)):
            logits = _read(read_out, _translated(stream, kind, layer, last, lens), f"{kind}[{layer}]")
            best = logits.softmax(-1).topk(k, -1)
            names = best.indices if read_out.tokens is None else read_out.tokens[best.indices]
            cells = (of_rows.prompts[rows], column, of_rows.positions[rows])
            tokens[cells] = names.cpu()
            probs[cells] = best.values.float().cpu()
    dims = ("example", "layer", "pos", "rank")
    labels = (np.arange(axes[0]), layers, np.arange(axes[2]), np.arange(k))
    result = effect_array(probs, dims, dict(zip(dims, labels, strict=True)), name="prob").to_dataset()
    result = result.assign(token=(dims, tokens.numpy()))
    if getattr(model, "tokenizer", None) is not None:
        result = result.assign_coords(text=(dims, _spelled(tokens, model)))
    result = result.assign_coords(
        pos_token=(("example", "pos"), strings_by_position(store.prompts.strings, axes[2]))
    )
    return result.assign_attrs({"kind": "top_tokens", "site": kind} | _provenance(store, lens))


def _check_lens(lens: Translate | None, store: ActivationStore, kind: str) -> None:
    """Raise `StoreError` when a fitted lens is of another model or stream."""
    if getattr(lens, "model", store.model) != store.model:
        raise StoreError(
            f"The lens is of another model ({getattr(lens, 'model_name', '')}) than the store "
            f"({store.model_name})."
        )
    if getattr(lens, "kind", kind) != kind:
        raise StoreError(
            f"The lens translates {getattr(lens, 'kind', '')}, not {kind}: fit one with kind={kind!r}."
        )


def _translated(stream: Tensor, kind: str, layer: int, last: int, lens: Translate | None) -> Tensor:
    """The stream as it is read out; the last one is the model's own, and no lens may change it."""
    if lens is None or (kind, layer) == ("resid_post", last):
        return stream
    translated = called("lens=", lens, stream, layer)
    if not isinstance(translated, Tensor) or translated.shape != stream.shape:
        raise ArgumentError(
            f"lens= returned {shown(translated)}; it must return a tensor of shape {tuple(stream.shape)}."
        )
    return translated


def _read(read_out: ReadOut, stream: Tensor, place: str) -> Tensor:
    """The logits [row, token] of a stream, at least in float32: sums in half precision have few digits.

    Raises:
        NotFinite: they are not finite, as where half precision overflows.
    """
    logits = read_out(stream).detach()
    dtype = str(logits.dtype).removeprefix("torch.")
    cure = "Check the model's final norm and unembedding, and load it in another precision."
    check_finite(logits, f"What the lens reads at {place} in {dtype}", cure)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _entropy(logits: Float[Tensor, "row token"]) -> Float[Tensor, "row"]:
    """In nats."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def _divergence(
    reference: Float[Tensor, "row token"], logits: Float[Tensor, "row token"]
) -> Float[Tensor, "row"]:
    """KL(reference || logits), in nats."""
    ours, theirs = logits.log_softmax(-1), reference.log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def _provenance(store: ActivationStore, lens: Translate | None) -> dict[str, Any]:
    return store.attrs | {"lens": "logit" if lens is None else str(getattr(lens, "name", "own"))} | versions()


def _spelled(tokens: Int[Tensor, "example layer pos rank"], model: Model) -> np.ndarray:
    """[example, layer, pos, rank]: the strings of token ids, "" for -1."""
    # Each token is decoded once; -1 sorts before all of them.
    ids, index = np.unique(tokens.numpy(), return_inverse=True)
    texts = token_labels(model, [int(token) for token in ids if token >= 0])
    of_ids = np.concatenate([[""] * int((ids < 0).sum()), as_labels(texts)]).astype(object)
    return of_ids[index].reshape(tokens.shape)


def _measured(logits: Tensor, table: Tensor, measure: str) -> Tensor:
    """[row]: the measure of target tokens [row, alternative, 1] under logits [row, token]."""
    table = table.to(logits.device)
    if measure == "rank":
        return rank_of_best(logits, table)
    if measure == "prob":
        return alternatives_mass(logits, table)
    if measure == "logprob":
        logits = logits.log_softmax(-1)
    return alternatives_mean(logits, table)
