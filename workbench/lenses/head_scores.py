"""What a store says of a model at a glance: norms of the stream, where heads attend, and what kind of head each one is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from workbench.engine.bridge import final_norm
from workbench.engine.hooked.block import Block
from workbench.errors import PromptError, UnknownName
from workbench.lenses.direct_attribution import FrozenNorm
from workbench.lenses.unembedding import check_store, needed, pieces, token_rows
from workbench.prompts.prompts import Prompts
from workbench.results import effect_array, versions
from workbench.sites import Position, Shape
from workbench.stores.store import ActivationStore

CHUNK = 4096


def norms(store: ActivationStore, *, kind: str = "resid_post") -> xr.DataArray:
    """The Euclidean length of an activation at every layer and position; heads are taken together.

    Returns:
        DataArray (example, layer, pos), NaN beyond an example's length.
    Raises:
        StoreError: the store lacks that kind, or holds means over prompts.
    """
    layers = needed(store, kind, "norms")
    owner, place = token_rows(store[kind, layers[0]])
    table = torch.full((len(store), len(layers), int(place.max()) + 1), float("nan"), dtype=torch.float64)
    for column, layer in enumerate(layers):
        for rows, block in pieces(store[kind, layer], CHUNK):
            table[owner[rows], column, place[rows]] = block.flatten(1).double().norm(dim=1).cpu()
    coords = {"example": np.arange(len(store)), "layer": layers, "pos": np.arange(table.shape[2])}
    return effect_array(table, list(coords), coords, name="norm", attrs=_facts(store, "norms", site=kind))


def attention_to(
    store: ActivationStore, keys: Sequence[Position], *, query: Position = "END"
) -> xr.DataArray:
    """How much every head attends from one position to others, by index or name.

    Returns:
        DataArray (example, layer, head, key_pos); NaN where a prompt has no such position, or the key comes after the query.
    Raises:
        StoreError: the store holds no attention patterns.
        UnknownName: a position that no prompt names.
    """
    if isinstance(keys, str | int) or not keys:
        raise PromptError("attention_to: keys is a list of at least one position, as in ['IO', 'S1'].")
    start = store.prompts.at(query)

    def weights(prompts: Prompts, examples: Tensor, length: int) -> Tensor:
        table = torch.full((len(keys), len(examples), length, length), 0.0)
        q = start[examples]
        for at, key in enumerate(keys):
            k = store.prompts.at(key)[examples]
            has = ((q >= 0) & (k >= 0) & (k <= q)).nonzero()[:, 0]
            table[at, has, q[has], k[has]] = 1
        return table

    names = [str(key) for key in keys]
    return _attended(store, {"key_pos": names}, weights, _facts(store, "attention_to", query=str(query)))


def head_scores(
    store: ActivationStore, *, scores: Sequence[str] = ("previous", "duplicate", "induction")
) -> xr.DataArray:
    """What kind of head each one is, from where it attends (Olsson et al. 2022; Wang et al., arXiv 2211.00593).

    The mean over queries of a prompt of the attention paid to: "previous" the token before; "duplicate" earlier copies of
    the query's token; "induction" the tokens that followed earlier copies of it. Only queries that have such keys count;
    BOS counts neither as a query nor as a key, because heads rest there.

    Returns:
        DataArray (example, layer, head, score), NaN where a prompt has no such query.
    Raises:
        StoreError: the store holds no attention patterns.
    """
    for name in scores:
        if name not in HEAD_SCORES:
            raise UnknownName("scores", name, HEAD_SCORES)

    def weights(prompts: Prompts, examples: Tensor, length: int) -> Tensor:
        tokens = prompts.tokens[examples, :length].cpu()
        real = torch.arange(length) < prompts.lengths[examples].cpu()[:, None]
        real[:, 0] &= not prompts.bos
        seen = torch.ones(length, length).tril().bool() & real[:, :, None] & real[:, None]
        found = torch.stack([HEAD_SCORES[name](tokens) & seen for name in scores]).float()
        queries = (found.sum(-1) > 0).sum(-1)
        return found / queries.clamp(min=1)[..., None, None]

    return _attended(store, {"score": list(scores)}, weights, _facts(store, "head_scores"))


def copying_scores(store: ActivationStore, model: Any, *, top: int = 5, budget: int = 2**28) -> xr.DataArray:
    """How often every head, attending to a token, would write that token: the copying score of arXiv 2211.00593.

    A token's value at each layer passes through the head's output weights, the final norm (its scale does not matter) and the
    unembedding; counted is how often the token is then among the `top` highest of all tokens, minus how often it is among
    the `top` lowest: 1 for a head that copies, -1 for one that writes against what it sees. BOS is left out.

    Args:
        store: holds `v` (with grouped queries, heads of a group share it).
        budget: bytes of logits at a time.

    Returns:
        DataArray (example, layer, head).
    Raises:
        StoreError: the store is of another model, or lacks `v`.
        PromptError: `top` is not between 1 and half of the vocabulary.
    """
    check_store(store, model, "copying_scores")
    shape, layers = Shape.of(model), needed(store, "v", "copying_scores")
    if type(top) is not int or not 1 <= top <= shape.d_vocab // 2:
        raise PromptError(
            f"copying_scores: top={top!r} of {shape.d_vocab} tokens; give 1 to {shape.d_vocab // 2}."
        )
    norm = FrozenNorm.of(final_norm(model), shape.d_model, model.W_U)
    unembed = model.W_U.detach().double().cpu()
    owner, place = token_rows(store["v", layers[0]])
    counted = (place > 0) | (not store.prompts.bos)
    tokens = store.prompts.tokens.cpu()[owner, place]
    sums = torch.zeros(len(store), len(layers), shape.n_heads, dtype=torch.float64)
    for column, layer in enumerate(layers):
        block = Block.of(model, layer)
        writes = norm.bare(_written(block, shape.d_model, model)) @ unembed
        for rows, values in pieces(store["v", layer], max(1, budget // (8 * shape.d_vocab * shape.n_heads))):
            each = values.double().cpu().repeat_interleave(shape.group, 1)
            logits = torch.einsum("rhe,hev->rhv", each, writes)
            own = logits.gather(2, tokens[rows, None, None].expand(-1, shape.n_heads, 1))
            kept = counted[rows, None]
            score = ((logits > own).sum(2) < top).double() - ((logits < own).sum(2) < top).double()
            sums[:, column].index_add_(0, owner[rows], score * kept)
    n = torch.zeros(len(store), dtype=torch.float64).index_add_(0, owner, counted.double())
    coords = {"example": np.arange(len(store)), "layer": layers, "head": np.arange(shape.n_heads)}
    facts = _facts(store, "copying_scores", top=top)
    return effect_array((sums / n[:, None, None]).float(), list(coords), coords, name="copying", attrs=facts)


def _written(block: Block, size: int, model: Any) -> Float[Tensor, "head d_head d_model"]:
    """What heads write, past a norm behind attention where there is one (its scale does not matter)."""
    out = block.w_out.double().cpu()
    return out if block.attn_post is None else FrozenNorm.of(block.attn_post, size, model.W_U).bare(out)


def _same(tokens: Tensor) -> Tensor:
    return (tokens[:, :, None] == tokens[:, None]) & torch.ones(tokens.shape[1], tokens.shape[1]).tril(
        -1
    ).bool()


def _previous(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[1], tokens.shape[1]).tril(-1).triu(-1).bool().expand(len(tokens), -1, -1)


def _after_same(tokens: Tensor) -> Tensor:
    same = _same(tokens)
    followed = torch.zeros_like(same)
    followed[:, :, 1:] = same[:, :, :-1]
    return followed & torch.ones(same.shape[1:]).tril(-1).bool()


HEAD_SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "previous": _previous,
    "duplicate": _same,
    "induction": _after_same,
}
"""Of tokens [example, pos], which keys each query is asked about: [example, query_pos, key_pos]."""


def _attended(
    store: ActivationStore,
    axis: Mapping[str, list[str]],
    weights: Callable[[Prompts, Tensor, int], Float[Tensor, "what example query_pos key_pos"]],
    facts: Mapping[str, Any],
) -> xr.DataArray:
    """Attention summed under weights, as (example, layer, head, what); NaN where an example's weights are all 0."""
    layers = needed(store, "pattern", str(facts["kind"]))
    ((name, labels),) = axis.items()
    made: list[Tensor] = []
    lengths = store.index.counts
    for examples in torch.arange(len(store)).split(64):
        length = int(lengths[examples].max())
        weight = weights(store.prompts, examples, length)
        patterns = (store["pattern", layer].padded(examples.tolist(), length).cpu() for layer in layers)
        values = torch.stack(
            [torch.einsum("ehqk,weqk->ehw", p.double(), weight.double()) for p in patterns], 1
        )
        values[(weight.flatten(2).sum(2) == 0).T[:, None, None].expand_as(values)] = float("nan")
        made.append(values)
    table = torch.cat(made)
    coords = {
        "example": np.arange(len(store)),
        "layer": layers,
        "head": np.arange(table.shape[2]),
        name: labels,
    }
    return effect_array(table, list(coords), coords, name="attention", attrs=facts)


def _facts(store: ActivationStore, kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind} | store.attrs | more | versions()
