"""Model x prompts → store: run every prompt once and keep its activations."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.engine.capture_to_disk import Keep, Request, StoreCost, build_store
from workbench.engine.hooked.forward import forward
from workbench.engine.inputs import as_prompts
from workbench.engine.memory import rows_per_forward
from workbench.errors import SiteError, StoreError
from workbench.models.load import model_fingerprint, model_name, tokenizer_fingerprint
from workbench.prompts.corpus import read_corpus
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Key, Shape, Site, kind_named
from workbench.stores.plan import SHARD_BYTES
from workbench.stores.store import ActivationStore

PAIR_KINDS = (
    "embed",
    "pos_embed",
    "resid_pre",
    "resid_post",
    "attn_out",
    "mlp_out",
    "q",
    "k",
    "v",
    "z",
    "pattern",
    "mlp_post",
)


def capture(
    model: Any,
    tokens: Prompts | Tensor | Sequence[Any] | Path | Iterable[Any],
    *,
    sites: Iterable[str | Site] | None = None,
    path: str | Path | None = None,
    keep: Keep = "all",
    dtype: torch.dtype | None = None,
    workers: int = 1,
    backend: Literal["local", "ray"] | str = "local",
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    budget: int | None = None,
    progress: bool = True,
) -> ActivationStore:
    """The activations of prompts, in memory or, with `path=`, on disk.

    A store on disk may be larger than memory. It is written shard by shard: after a crash or a kill, the same
    call goes on where it stopped, and the bytes are those of a run that was not interrupted.

    Args:
        tokens: prompts, texts, a token tensor [example, pos] without padding, lists of token ids, or a
            corpus: a path to a text or .jsonl file, a Hugging Face `Dataset`, any iterable (see
            `read_corpus`).
        sites: kinds (every layer) or single sites such as `resid_post[3]`; whole activations are kept. None
            takes every kind that the model has but logits, `resid_mid` and `mlp_pre`.
        path: a folder for a store on disk.

    The rest is for stores on disk:
        keep: which rows of a prompt: "all", "mean" over its tokens, positions such as ["END", 3], or a list
            of positions for each prompt.
        dtype: of the rows; None takes the model's.
        workers, backend: processes of this machine, or Ray tasks ("ray"); each writes shards of its own.
        threads: of the processor per forward pass; several workers take one each unless told.
        shard_bytes: how large the files may become; a kill loses at most the shard that is being written.
        budget: bytes that one forward pass and its activations may use.

    Returns:
        A store whose prompts are in the order given. `resid_post[l]` and `resid_pre[l + 1]` share their rows.

    Raises:
        SiteError: the model lacks a site.  PromptError: prompts that are empty, too long or unknown.
        StoreError, OutputExists: the folder holds something else, the disk is full; what is finished is kept.

    >>> import workbench as wb
    >>> store = wb.capture(wb.load_model("tiny"), ["The dog near the cats is"], sites=["z"])
    >>> tuple(store["z", 3].prompt(0).shape)
    (7, 8, 16)
    """
    prompts = _prompts(model, tokens)
    if path is not None:
        request = _request(
            model, prompts, sites, keep, dtype, shard_bytes, budget, threads or (1 if workers > 1 else None)
        )
        return build_store(model, request, Path(path), workers=workers, backend=backend, progress=progress)
    if keep != "all" or dtype is not None or workers != 1 or backend != "local":
        raise StoreError(
            "capture: keep=, dtype=, workers= and backend= are for stores on disk: give path= too."
        )
    canonical = _keys_of(model, sites)
    record = list(dict.fromkeys(canonical.values()))
    parts: dict[Key, list[Tensor]] = {key: [] for key in record}
    order = sorted(range(len(prompts)), key=lambda i: int(prompts.lengths[i]))
    per_batch = rows_per_forward(model, int(prompts.lengths.max()), budget=budget)
    with tqdm(
        total=len(prompts), desc="capture", unit="prompt", disable=None if progress else True, leave=False
    ) as bar:
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
    return ActivationStore.of(
        prompts,
        {key: packed[own] for key, own in canonical.items()},
        model=model_fingerprint(model),
        model_name=model_name(model),
        tokenizer=tokenizer_fingerprint(model),
    )


def capture_cost(
    model: Any,
    tokens: Prompts | Tensor | Sequence[Any] | Path | Iterable[Any],
    *,
    sites: Iterable[str | Site] | None = None,
    keep: Keep = "all",
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    budget: int | None = None,
) -> StoreCost:
    """What a store on disk would take: rows, bytes, shards and seconds; one forward pass is run. Arguments of
    `capture`.
    """
    request = _request(model, _prompts(model, tokens), sites, keep, dtype, shard_bytes, budget, None)
    return request.cost(model, request.plan(model))


def capture_pairs(
    model: Any,
    pairs: PromptPairs,
    *,
    sites: Iterable[str | Site] | None = None,
    path: str | Path | None = None,
    budget: int | None = None,
    progress: bool = True,
    **more: Any,
) -> tuple[ActivationStore, ActivationStore]:
    """The stores of the clean and of the corrupt run, with `path=` in its folders `clean` and `corrupt`; see
    `capture`.
    """
    chosen = None if sites is None else list(sites)
    places = {name: None if path is None else Path(path) / name for name in ("clean", "corrupt")}
    clean, corrupt = (
        capture(model, pairs.side(name), sites=chosen, path=place, budget=budget, progress=progress, **more)
        for name, place in places.items()
    )
    return clean, corrupt


def _prompts(model: Any, tokens: Any) -> Prompts:
    """Prompts as they are given, or of a corpus."""
    plain = isinstance(tokens, Prompts | Tensor | str) or (
        isinstance(tokens, list | tuple) and not any(isinstance(each, Path | dict) for each in tokens[:1])
    )
    return as_prompts(model, tokens) if plain else read_corpus(model, tokens)


def _request(
    model: Any,
    prompts: Prompts,
    sites: Iterable[str | Site] | None,
    keep: Keep,
    dtype: torch.dtype | None,
    shard_bytes: int,
    budget: int | None,
    threads: int | None,
) -> Request:
    keys = _keys_of(model, sites)
    if sites is None and keep != "all":
        keys = {key: own for key, own in keys.items() if key[0] != "pattern"}
    if dtype is not None and dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise StoreError(f"capture: dtype={dtype!r}; rows are torch.float32, float64, bfloat16 or float16.")
    return Request(prompts, keys, keep, dtype, shard_bytes, budget, threads)


def _keys_of(model: Any, sites: Iterable[str | Site] | None) -> dict[Key, Key]:
    """Site → the site whose activation it shares. Raises `SiteError` when there is none."""
    shape = Shape.of(model)
    chosen = _present(shape) if sites is None else sites
    keys = list(dict.fromkeys(key for site in chosen for key in _keys(site, shape)))
    if not keys:
        raise SiteError("capture: name at least one kind or site in sites=[...].")
    return {key: _canonical(key, shape) for key in keys}


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
    return (
        ("resid_pre", layer + 1)
        if kind == "resid_post" and layer is not None and layer + 1 < shape.n_layers
        else key
    )
