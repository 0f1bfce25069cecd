"""`capture` and `capture_pairs`: model x prompts → a store, every prompt run once and its activations kept.

In memory the store is made in this module; with `path=` it is planned and written by `capture_to_disk.py`.
This module installs no hook and knows no file format.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from workbench.arguments import checked, shown
from workbench.engine.capture_to_disk import Keep, Request, StoreCost, build_store, check_captured
from workbench.engine.inputs import as_prompts
from workbench.engine.memory import rows_per_forward
from workbench.engine.plain_run import PlainRun
from workbench.errors import SiteError, StoreError
from workbench.models.calls import model_call
from workbench.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.progress import progress_bar
from workbench.prompts.corpus import read_corpus
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Key, Shape, Site, kind_named
from workbench.stores.plan import SHARD_BYTES
from workbench.stores.store import ActivationStore

log = logging.getLogger(__name__)

# What is stored where no sites are named. Left out: logits, which are as wide as the vocabulary, and
# `resid_mid` and `mlp_pre`, which follow from what is stored.
PAIR_KINDS = (
    *("embed", "pos_embed", "resid_pre", "resid_post", "attn_out", "mlp_out"),
    *("q", "k", "v", "z", "pattern", "mlp_post"),
)


@checked
@model_call()
def capture(
    model: Model,
    tokens: Prompts | Tensor | Sequence[Any] | Mapping[str, Any] | Path | Iterable[Any],
    *,
    sites: str | Site | Iterable[str | Site] | None = None,
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
    call resumes where it stopped, and the bytes are those of a run that was not interrupted.

    Args:
        tokens: prompts, texts, token ids as in `run`, or a corpus: a path to a text or .jsonl file, a Hugging
            Face `Dataset`, a data frame, any iterable (see `read_corpus`).
        sites: kinds (every layer; "heads" is `z`, "mlps" `mlp_out`, "neurons" `mlp_post`) or single sites such as
            `resid_post[3]`; whole activations are kept. None takes every kind that the model has except logits,
            `resid_mid` and `mlp_pre`.
        path: a folder for a store on disk.
        budget: bytes that one forward pass and its activations may use; None takes the default.
        progress: whether to show a bar.

    The rest is for stores on disk:
        keep: which rows of a prompt: "all", "mean" over its tokens, positions such as ["END", 3], or a list
            of positions for each prompt.
        dtype: of the rows; None takes the model's.
        workers, backend: processes of this machine, or Ray tasks ("ray"); each writes shards of its own.
        threads: of the processor per forward pass; by default one each where there are several workers.
        shard_bytes: how large the files may become; a kill loses at most the shard that is being written.

    Returns:
        A store whose prompts are in the order given. `resid_post[l]` and `resid_pre[l + 1]` share their rows.

    Raises:
        SiteError: the model lacks a site.
        PromptError: prompts that are empty, too long or unknown.
        NotFinite: activations are NaN or infinite, in the model or in the precision of the store.
        StoreError: the folder holds another store, or the disk is full; finished shards are kept.
        OutputExists: the folder holds something that is not a store.

    >>> import workbench as wb
    >>> store = wb.capture(wb.load_model("tiny"), ["The dog near the cats is"], sites=["z"])
    >>> tuple(store["z", 3].prompt(0).shape)
    (7, 8, 16)
    """
    prompts, keep = _prompts(model, tokens), _listed_positions(keep)
    if path is not None:
        if threads is None and workers > 1:
            threads = 1  # workers with two threads each would fight over the same cores
        request = _request(model, prompts, sites, keep, dtype, shard_bytes, budget, threads)
        return build_store(model, request, Path(path), workers=workers, backend=backend, progress=progress)
    if keep != "all" or dtype is not None or workers != 1 or backend != "local":
        raise StoreError(
            "capture: keep=, dtype=, workers= and backend= are for stores on disk: give path= too."
        )
    # Streams that two names share are recorded and kept once; the store lists both names.
    canonical = _keys_of(model, sites)
    log.info("capture of %d prompts in memory: %d sites", len(prompts), len(canonical))
    rows = _rows_in_memory(model, prompts, list(dict.fromkeys(canonical.values())), budget, progress)
    return ActivationStore.of(
        prompts,
        {key: rows[own] for key, own in canonical.items()},
        model=model_fingerprint(model),
        model_name=model_name(model),
        tokenizer=tokenizer_fingerprint(model),
    )


def _rows_in_memory(
    model: Any, prompts: Prompts, record: Sequence[Key], budget: int | None, progress: bool
) -> dict[Key, Tensor]:
    """(kind, layer) → the rows [row, ...] of all prompts, one prompt after the other in their own order."""
    rows: dict[Key, list[Tensor]] = {key: [] for key in record}
    # Prompts of similar length share a batch, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda i: int(prompts.lengths[i]))
    longest = int(prompts.lengths.max())
    per_batch, plain_run = (
        rows_per_forward(model, longest, budget=budget),
        PlainRun.of(model, record, longest),
    )
    with progress_bar(len(prompts), "capture", "prompt", shown=progress) as bar:
        for start in range(0, len(order), per_batch):
            batch = prompts.select(order[start : start + per_batch])
            recorded = plain_run(batch)
            for key in record:
                by_prompt = []
                for i, length in enumerate(batch.lengths.tolist()):
                    by_prompt.append(_without_padding(key, recorded[key][i], length))
                check_captured(recorded[key], by_prompt, key)
                rows[key] += by_prompt
            bar.update(len(batch))
    # Callers match rows to prompts by their index, so the order of lengths is undone.
    in_order = sorted(range(len(order)), key=order.__getitem__)
    return {key: torch.cat([of_key[i] for i in in_order]) for key, of_key in rows.items()}


def _without_padding(key: Key, activation: Tensor, length: int) -> Tensor:
    """What one prompt's activation [pos, ...] holds for its own tokens."""
    if key[0] == "pattern":
        # [head, query, key] laid flat: stores hold patterns of different size one after the other.
        return activation[:, :length, :length].reshape(-1).clone()
    return activation[:length].clone()  # cloned, or the whole padded batch would stay in memory


@checked
@model_call()
def capture_cost(
    model: Model,
    tokens: Prompts | Tensor | Sequence[Any] | Mapping[str, Any] | Path | Iterable[Any],
    *,
    sites: str | Site | Iterable[str | Site] | None = None,
    keep: Keep = "all",
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    budget: int | None = None,
) -> StoreCost:
    """The rows, bytes, shards and seconds of a store on disk. Runs one forward pass; see `capture`."""
    request = _request(
        model, _prompts(model, tokens), sites, _listed_positions(keep), dtype, shard_bytes, budget, None
    )
    return request.cost(model, request.plan(model))


@checked
@model_call()
def capture_pairs(
    model: Model,
    pairs: PromptPairs,
    *,
    sites: str | Site | Iterable[str | Site] | None = None,
    path: str | Path | None = None,
    keep: Keep = "all",
    dtype: torch.dtype | None = None,
    workers: int = 1,
    backend: Literal["local", "ray"] | str = "local",
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    budget: int | None = None,
    progress: bool = True,
) -> tuple[ActivationStore, ActivationStore]:
    """The stores of the clean and of the corrupt run, in this order.

    Args:
        path: a folder, in which they are the folders `clean` and `corrupt`.
        sites, keep, dtype, workers, backend, threads, shard_bytes, budget, progress: as in `capture`, for
            both.

    Raises:
        WorkbenchError: what `capture` raises.
    """
    chosen = sites
    if not isinstance(sites, str | Site | None):
        chosen = list(sites)  # an iterator would be used up by the clean run

    def of_side(side: str) -> ActivationStore:
        """The store of one run."""
        folder = None if path is None else Path(path) / side
        return capture(
            model, pairs.side(side), sites=chosen, path=folder, keep=keep, dtype=dtype, workers=workers,
            backend=backend, threads=threads, shard_bytes=shard_bytes, budget=budget, progress=progress,
        )  # fmt: skip

    return of_side("clean"), of_side("corrupt")


def _listed_positions(keep: Any) -> Keep:
    """`keep`, as a list where it is an array or a tensor."""
    return keep.tolist() if hasattr(keep, "tolist") else keep


def _prompts(model: Any, tokens: Any) -> Prompts:
    """The prompts that a caller gives: as they are, or read from a corpus."""
    if isinstance(tokens, Prompts | Tensor | np.ndarray | str | Mapping):
        return as_prompts(model, tokens)
    # A list can mean two things: of paths, or of rows with a text each, it is a corpus; of texts or token
    # ids it is the prompts themselves.
    if isinstance(tokens, list | tuple) and not (tokens and isinstance(tokens[0], Path | Mapping)):
        return as_prompts(model, tokens)
    return read_corpus(model, tokens)


def _request(
    model: Any,
    prompts: Prompts,
    sites: str | Site | Iterable[str | Site] | None,
    keep: Keep,
    dtype: torch.dtype | None,
    shard_bytes: int,
    budget: int | None,
    threads: int | None,
) -> Request:
    """The request of a store on disk, its arguments checked."""
    keys = _keys_of(model, sites)
    if sites is None and keep != "all":
        # Patterns are stored whole or not at all: where only some rows are kept, the default leaves them out.
        keys = {key: own for key, own in keys.items() if key[0] != "pattern"}
    if dtype is not None and dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise StoreError(f"capture: dtype={dtype!r}; rows are torch.float32, float64, bfloat16 or float16.")
    return Request(prompts, keys, keep, dtype, shard_bytes, budget, threads)


def _keys_of(model: Any, sites: str | Site | Iterable[str | Site] | None) -> dict[Key, Key]:
    """Site → the site whose activation it shares. Raises `SiteError` when no site is named."""
    shape = Shape.of(model)
    if isinstance(sites, str | Site):
        sites = [sites]
    chosen = _present(shape) if sites is None else sites
    keys: dict[Key, None] = {}  # a dict in place of a set, to keep the order
    for site in chosen:
        keys |= dict.fromkeys(_keys(site, shape))
    if not keys:
        raise SiteError("capture: name at least one kind or site in sites=[...].")
    return {key: _canonical(key, shape) for key in keys}


def _present(shape: Shape) -> list[str]:
    """The usual kinds, without those that the model lacks."""
    return [kind for kind in PAIR_KINDS if not shape.lacks(KINDS[kind])]


def _keys(site: str | Site, shape: Shape) -> list[Key]:
    """The (kind, layer) pairs of a site, or of a bare kind, which means every layer that has it."""
    if isinstance(site, Site):
        return [site.check(shape).key]
    if not isinstance(site, str):
        raise SiteError(f"{shown(site)} is neither a kind nor a site: write 'z' or 'z[3]'.")
    if "[" in site:
        return [Site.parse(site).check(shape).key]
    kind = kind_named(site, words=True)
    if not kind.per_layer:
        return [Site(kind.name, None).check(shape).key]
    return [Site(kind.name, layer).check(shape).key for layer in shape.layers(kind)]


def _canonical(key: Key, shape: Shape) -> Key:
    """The stream after a block is the stream before the next: one of the two names is recorded."""
    kind, layer = key
    if kind == "resid_post" and layer is not None and layer + 1 < shape.n_layers:
        return "resid_pre", layer + 1
    return key
