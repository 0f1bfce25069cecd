"""Summaries of a store: `norms` of the stream, `attention_to` positions, and what kind of head each is.

`head_scores` reads attention patterns, `copying_scores` reads value vectors with the model's weights.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.arguments import checked
from workbench.engine.bridge import final_norm, output_vocabulary
from workbench.engine.hooked.block import HeadOutputs
from workbench.engine.store_values import check_same_model
from workbench.errors import PromptError, UnknownName
from workbench.lenses.frozen_norm import FrozenNorm
from workbench.lenses.store_reading import finite_rows, needed, pieces, token_rows
from workbench.lenses.unembedding import unembedding_weight
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.results import effect_array, versions, with_tokens
from workbench.sites import Position, Shape
from workbench.stores.store import ActivationStore

CHUNK, PROMPTS = 4096, 64
"""Rows of a site, and prompts with their patterns, that are worked on at a time."""


@checked
@model_call()
def norms(store: ActivationStore, *, kind: str = "resid_post") -> xr.DataArray:
    """The Euclidean length of an activation at every layer and position; heads are taken together.

    Returns:
        DataArray (example, layer, pos), NaN beyond an example's length.
    Raises:
        StoreError: the store lacks that kind, or holds means over prompts.
    """
    layers = needed(store, kind, "norms")
    of_rows = token_rows(store[kind, layers[0]])
    table = torch.full((len(store), len(layers), of_rows.n_positions), float("nan"), dtype=torch.float64)
    for column, layer in enumerate(layers):
        for rows, block in pieces(store[kind, layer], CHUNK):
            lengths = block.flatten(1).double().norm(dim=1).cpu()
            table[of_rows.prompts[rows], column, of_rows.positions[rows]] = lengths
    coords = {"example": np.arange(len(store)), "layer": layers, "pos": np.arange(table.shape[2])}
    result = effect_array(table, list(coords), coords, name="norm", attrs=_facts(store, "norms", site=kind))
    return with_tokens(result, store.prompts.strings)


@checked
@model_call()
def attention_to(
    store: ActivationStore, keys: Sequence[Position], *, query: Position = "END"
) -> xr.DataArray:
    """How much every head attends from one position to others, by index or name.

    Returns:
        DataArray (example, layer, head, key_pos); NaN where a prompt has no such position, or the key comes
        after the query.
    Raises:
        StoreError: the store holds no attention patterns.
        UnknownName: a position that no prompt names.
        PromptError: `keys` is empty.
    """
    if len(keys) == 0:
        raise PromptError("attention_to: keys is empty. Name at least one position, as in ['IO', 'S1'].")
    start = store.prompts.at(query)

    def weights(prompts: Prompts, examples: Tensor, length: int) -> Tensor:
        """[label, example, query_pos, key_pos]: the attention that counts, and how much."""
        table = torch.zeros(len(keys), len(examples), length, length)
        q = start[examples]
        for index, key in enumerate(keys):
            k = store.prompts.at(key)[examples]
            # A query does not see later keys.
            has_both = ((q >= 0) & (k >= 0) & (k <= q)).nonzero()[:, 0]
            table[index, has_both, q[has_both], k[has_both]] = 1
        return table

    names = [str(key) for key in keys]
    return _attended(store, {"key_pos": names}, weights, _facts(store, "attention_to", query=str(query)))


@checked
@model_call()
def head_scores(
    store: ActivationStore, *, scores: Sequence[str] = ("previous", "duplicate", "induction")
) -> xr.DataArray:
    """How much each head attends as heads of known kinds do (Olsson et al. 2022; Wang et al., 2211.00593).

    Each score is the mean, over the queries of a prompt, of the attention to certain keys:
    "previous": the token before; "duplicate": earlier copies of the query's token; "induction": the tokens
    that followed earlier copies of it. Only queries that have such keys count. BOS counts neither as a query
    nor as a key, because heads with nothing to do attend to it.

    Returns:
        DataArray (example, layer, head, score), NaN where a prompt has no such query.
    Raises:
        StoreError: the store holds no attention patterns.
        UnknownName: no such score.
    """
    if len(scores) == 0:
        raise UnknownName("scores", scores, HEAD_SCORES)
    for name in scores:
        if name not in HEAD_SCORES:
            raise UnknownName("scores", name, HEAD_SCORES)

    def weights(prompts: Prompts, examples: Tensor, length: int) -> Tensor:
        """[label, example, query_pos, key_pos]: the attention that counts, and how much."""
        tokens = prompts.tokens[examples, :length].cpu()
        real = torch.arange(length) < prompts.lengths[examples].cpu()[:, None]
        real[:, 0] &= not prompts.bos
        seen = torch.ones(length, length).tril().bool() & real[:, :, None] & real[:, None]
        keys = torch.stack([HEAD_SCORES[name](tokens) & seen for name in scores]).float()
        n_queries = (keys.sum(-1) > 0).sum(-1)
        return keys / n_queries.clamp(min=1)[..., None, None]

    return _attended(store, {"score": list(scores)}, weights, _facts(store, "head_scores"))


@checked
@model_call()
def copying_scores(
    store: ActivationStore, model: Model, *, top: int = 5, budget: int = 2**28
) -> xr.DataArray:
    """How often every head would write the token that it attends to: the copying score of arXiv 2211.00593.

    A token's value at each layer passes through the head's output weights, the final norm (its scale does not
    matter) and the unembedding. The score is how often the token is then among the `top` highest of all
    tokens, minus how often it is among the `top` lowest: 1 for a head that copies, -1 for one that
    suppresses what it sees. BOS is left out.

    Args:
        store: holds `v` (with grouped queries, heads of a group share it).
        top: how many of the highest, and of the lowest, tokens count.
        budget: bytes of logits at a time.

    Returns:
        DataArray (example, layer, head).
    Raises:
        StoreError: the store is of another model, or lacks `v`.
        PromptError: `top` is not between 1 and half of the vocabulary, or the model has no logit of a token.
    """
    check_same_model(store, model, "copying_scores")
    shape, layers = Shape.of(model), needed(store, "v", "copying_scores")
    size = output_vocabulary(model)
    if not 1 <= top <= size // 2:
        raise PromptError(f"copying_scores: top={top!r} of {size} tokens; give 1 to {size // 2}.")
    _check_written(store.prompts, size)
    norm = FrozenNorm.of(final_norm(model), shape.d_model, unembedding_weight(model))
    unembed = unembedding_weight(model).double().cpu()
    of_rows = token_rows(store["v", layers[0]])
    counted = (of_rows.positions > 0) | (not store.prompts.bos)
    tokens = store.prompts.tokens.cpu()[of_rows.prompts, of_rows.positions]
    sums = torch.zeros(len(store), len(layers), shape.n_heads, dtype=torch.float64)
    for column, layer in enumerate(layers):
        # [head, d_head, vocab]: a positive scale of the norm does not change which tokens are highest.
        writes = norm.bare(_written(HeadOutputs.of(model, layer), shape.d_model, model)) @ unembed
        for rows, values in pieces(store["v", layer], max(1, budget // (8 * size * shape.n_heads))):
            # Query heads of a group share values but not output weights, so each gets a copy.
            by_head = values.double().cpu().repeat_interleave(shape.group, 1)
            logits = torch.einsum("rhe,hev->rhv", by_head, writes)
            own = logits.gather(2, tokens[rows, None, None].expand(-1, shape.n_heads, 1))
            score = ((logits > own).sum(2) < top).double() - ((logits < own).sum(2) < top).double()
            sums[:, column].index_add_(0, of_rows.prompts[rows], score * counted[rows, None])
    n = torch.zeros(len(store), dtype=torch.float64).index_add_(0, of_rows.prompts, counted.double())
    coords = {"example": np.arange(len(store)), "layer": layers, "head": np.arange(shape.n_heads)}
    facts = _facts(store, "copying_scores", top=top)
    return effect_array((sums / n[:, None, None]).float(), list(coords), coords, name="copying", attrs=facts)


def _check_written(prompts: Prompts, size: int) -> None:
    """Raise `PromptError` for prompts with a token that no head can copy: the model has no logit of it."""
    largest = int(prompts.tokens.max())
    if largest >= size:
        raise PromptError(
            f"copying_scores: the prompts hold token {largest}, and the model has logits of {size}: it "
            "cannot be copied. Leave such prompts out."
        )


def _written(heads: HeadOutputs, size: int, model: Model) -> Float[Tensor, "head d_head d_model"]:
    """What heads write, after a norm that follows attention, if any (its scale does not matter)."""
    out = heads.w_out.double().cpu()
    if heads.attn_post is None:
        return out
    return FrozenNorm.of(heads.attn_post, size, unembedding_weight(model)).bare(out)


def _earlier(length: int) -> Bool[Tensor, "query_pos key_pos"]:
    return torch.ones(length, length).tril(-1).bool()


def _same(tokens: Tensor) -> Tensor:
    """Earlier copies of the query's token."""
    return (tokens[:, :, None] == tokens[:, None]) & _earlier(tokens.shape[1])


def _previous(tokens: Tensor) -> Tensor:
    """The token before."""
    return _earlier(tokens.shape[1]).triu(-1).expand(len(tokens), -1, -1)


def _after_same(tokens: Tensor) -> Tensor:
    """Tokens that followed earlier copies of the query's token."""
    same = _same(tokens)
    followed = torch.zeros_like(same)
    followed[:, :, 1:] = same[:, :, :-1]
    # The query itself may follow an equal token, and is no earlier key.
    return followed & _earlier(tokens.shape[1])


HEAD_SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "previous": _previous,
    "duplicate": _same,
    "induction": _after_same,
}
"""Of tokens [example, pos], the keys whose attention counts for each query: [example, query_pos, key_pos]."""


def _attended(
    store: ActivationStore,
    axis: Mapping[str, list[str]],
    weights: Callable[[Prompts, Tensor, int], Float[Tensor, "label example query_pos key_pos"]],
    facts: Mapping[str, Any],
) -> xr.DataArray:
    """Weighted sums of attention (example, layer, head, label); NaN where an example's weights are all 0.

    Args:
        axis: the name of the last axis, with its labels.
        weights: of (prompts, indices of examples, positions of the longest of them).
    """
    layers = needed(store, "pattern", str(facts["kind"]))
    ((name, labels),) = axis.items()
    blocks: list[Tensor] = []
    lengths = store.index.counts
    for examples in torch.arange(len(store)).split(PROMPTS):
        length = int(lengths[examples].max())
        weight = weights(store.prompts, examples, length)
        sums: list[Tensor] = []
        for layer in layers:
            view = store["pattern", layer]
            pattern = finite_rows(view.padded(examples.tolist(), length), view).cpu()
            sums.append(torch.einsum("ehqk,weqk->ehw", pattern.double(), weight.double()))
        values = torch.stack(sums, 1)
        nothing = (weight.flatten(2).sum(2) == 0).T[:, None, None]
        blocks.append(values.masked_fill(nothing, float("nan")))
    table = torch.cat(blocks)
    coords = {"example": np.arange(len(store)), "layer": layers, "head": np.arange(table.shape[2])}
    coords[name] = labels
    return effect_array(table, list(coords), coords, name="attention", attrs=facts)


def _facts(store: ActivationStore, kind: str, **settings: Any) -> dict[str, Any]:
    return {"kind": kind} | store.attrs | settings | versions()
