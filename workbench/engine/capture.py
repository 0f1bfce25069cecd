"""Model x prompts → store: run every prompt once and keep its activations."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.engine.reference import forward, rows_per_forward
from workbench.engine.run import as_prompts
from workbench.errors import SiteError
from workbench.models.load import model_fingerprint, model_name, tokenizer_fingerprint
from workbench.sites import KINDS, Key, Shape, Site, kind_named
from workbench.stores.store import ActivationStore
from workbench.tasks.pairs import PromptPairs, Prompts

PAIR_KINDS = ("embed", "pos_embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern", "mlp_post")


def capture(
    model: Any,
    tokens: Prompts | Tensor | Sequence[str] | Sequence[Sequence[int]],
    *,
    sites: Iterable[str | Site] | None = None,
    budget: int | None = None,
    progress: bool = True,
) -> ActivationStore:
    """The activations of prompts, in memory.

    Args:
        tokens: prompts, texts, a token tensor [example, pos] without padding, or lists of token ids.
        sites: kinds (every layer) or single sites such as `resid_post[3]`; whole activations are kept. None takes
            every kind that the model has but logits, `resid_mid` and `mlp_pre`.
        budget: bytes that one forward pass may use.

    Returns:
        A store whose prompts are in the order given. `resid_post[l]` and `resid_pre[l + 1]` share their memory.

    Raises:
        SiteError: the model lacks a site.  PromptError: prompts that are empty, too long or unknown.

    >>> import workbench as wb
    >>> store = wb.capture(wb.load_model("tiny"), ["The dog near the cats is"], sites=["z"])
    >>> tuple(store["z", 3].prompt(0).shape)
    (7, 8, 16)
    """
    prompts = as_prompts(model, tokens)
    shape = Shape.of(model)
    chosen = _present(shape) if sites is None else sites
    keys = list(dict.fromkeys(key for site in chosen for key in _keys(site, shape)))
    if not keys:
        raise SiteError("capture: name at least one kind or site in sites=[...].")
    canonical = {key: _canonical(key, shape) for key in keys}
    record = list(dict.fromkeys(canonical.values()))
    parts: dict[Key, list[Tensor]] = {key: [] for key in record}
    order = sorted(range(len(prompts)), key=lambda i: int(prompts.lengths[i]))
    per_batch = rows_per_forward(model, int(prompts.lengths.max()), budget=budget)
    with tqdm(total=len(prompts), desc="capture", unit="prompt", disable=None if progress else True, leave=False) as bar:
        for start in range(0, len(order), per_batch):
            batch = prompts.select(order[start : start + per_batch])
            recorded = forward(model, batch.tokens, record=record).recorded
            for i, length in enumerate(batch.lengths.tolist()):
                for key in record:
                    value = recorded[key][i]
                    row = value[:, :length, :length].reshape(-1) if key[0] == "pattern" else value[:length]
                    parts[key].append(row.clone())
            bar.update(len(batch))
    back = sorted(range(len(order)), key=order.__getitem__)
    packed = {key: torch.cat([rows[i] for i in back]) for key, rows in parts.items()}
    return ActivationStore(
        prompts,
        {key: packed[canonical[key]] for key in keys},
        model=model_fingerprint(model),
        model_name=model_name(model),
        tokenizer=tokenizer_fingerprint(model),
    )


def capture_pairs(
    model: Any, pairs: PromptPairs, *, sites: Iterable[str | Site] | None = None, budget: int | None = None, progress: bool = True
) -> tuple[ActivationStore, ActivationStore]:
    """The stores of the clean and of the corrupt run; see `capture`."""
    chosen = None if sites is None else list(sites)
    clean, corrupt = (
        capture(model, side, sites=chosen, budget=budget, progress=progress) for side in (pairs.clean, pairs.corrupt)
    )
    return clean, corrupt


def _present(shape: Shape) -> list[str]:
    return [kind for kind in PAIR_KINDS if not shape.lacks(KINDS[kind])]


def _keys(site: str | Site, shape: Shape) -> list[Key]:
    if isinstance(site, str) and "[" not in site:
        kind = kind_named(site)
        layers = range(shape.n_layers) if kind.per_layer else (None,)
        return [key for layer in layers for key in _keys(Site(site, layer), shape)]
    site = (Site.parse(site) if isinstance(site, str) else site).check(shape)
    return [site.key]


def _canonical(key: Key, shape: Shape) -> Key:
    """The stream after a block is the stream before the next: one of the two names is recorded."""
    kind, layer = key
    return ("resid_pre", layer + 1) if kind == "resid_post" and layer is not None and layer + 1 < shape.n_layers else key
