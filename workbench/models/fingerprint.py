"""What tells models apart: a hash of settings and weights, and one of the vocabulary.

Read `model_fingerprint`. Every result, store and circuit carries these hashes, so that what was computed with
one model is never taken for another's. Weights are hashed in full once; `_Seen` decides later whether that
still holds. Nothing here loads a model.
"""

import hashlib
import struct
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
import torch
import xxhash
from jaxtyping import Int
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from workbench.arguments import checked
from workbench.models.model import Model, every_module

# Below so many bytes of weights, starting threads takes longer than hashing.
_HASH_IN_THREADS = 2**26

# Settings that may differ between two loads of the same function: they must not change its fingerprint.
_NOT_THE_FUNCTION = (
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "device",
    "model_name",
    "tokenizer_name",
    "seed",
    "use_cache",
)

NO_TOKENIZER = "none"

# Tokenizer → its number of tokens and their hash. Adding a token changes the number, and so the hash.
_vocabularies: "weakref.WeakKeyDictionary[Any, tuple[int, str]]" = weakref.WeakKeyDictionary()

# Model → what its weights were when they were last hashed in full. Weak keys: this keeps no model alive.
_seen: "weakref.WeakKeyDictionary[Any, _Seen]" = weakref.WeakKeyDictionary()
# How many elements of each tensor are looked at again in every call.
_N_SAMPLED = 64

# Model → its fingerprint, and whether its weights were hashed in full for it.
_Hashed = weakref.WeakKeyDictionary[Any, tuple[str, bool]]
_hashed: ContextVar[_Hashed | None] = ContextVar("hashed", default=None)


@contextmanager
def one_fingerprint() -> Iterator[None]:
    """Within it, or within a function that it decorates, each model's fingerprint is worked out once.

    For code that never changes weights: a change within it would go unnoticed.
    """
    known = _hashed.get()
    # Not `_hashed.get() or ...`: an outer call's dictionary may still be empty, and is shared all the same.
    if known is None:
        known = weakref.WeakKeyDictionary()
    token = _hashed.set(known)
    try:
        yield
    finally:
        _hashed.reset(token)


@checked
def model_fingerprint(model: Model, *, full: bool = False) -> str:
    """A hash of configuration and weights: two models with equal fingerprints compute the same function.

    Every weight is hashed the first time. Later the same hash is taken to hold while each tensor lies where
    it lay, torch has counted no write to it, and 64 of its elements are what they were. So every change that
    goes through torch is seen: optimizers, `load_state_dict`, `copy_`, new parameters, another precision or
    device. **Not seen** is a write that torch does not count (through `.data`, through the array of
    `tensor.numpy()`, by an optimizer with `fused=True`) if it happens to leave all 64 elements of each tensor
    as they are; one that changes a whole tensor is seen. After such a write call this with `full=True`.

    Args:
        full: hash every weight again; done whenever a store is written to disk.

    >>> import workbench as wb
    >>> model_fingerprint(wb.load_model("tiny")) == model_fingerprint(wb.load_model("tiny@1500"))
    False
    """
    known = _hashed.get()
    if known is None:
        return _fingerprint(model, full=full)
    fingerprint, was_full = known.get(model, ("", False))
    if not fingerprint or (full and not was_full):
        fingerprint = _fingerprint(model, full=full)
        known[model] = fingerprint, full
    return fingerprint


@dataclass(frozen=True, eq=False)
class _Seen:
    """Weights as they were when they were hashed in full.

    Attributes:
        places: of each tensor of each module: where it lies, what it is, how many writes torch has counted.
        storages: by weak reference, so that the address of memory that was freed is not given to other
            weights while this is known, and no weights are kept alive.
        sample: a hash of some elements of each tensor.
        weights_hash: of all elements.
    """

    places: list[tuple[Any, ...]]
    storages: list[StorageWeakRef]
    sample: bytes
    weights_hash: bytes


def _fingerprint(model: Model, *, full: bool) -> str:
    digest = xxhash.xxh3_128()
    config: Any = getattr(model.original_model, "config", None)
    # A native model of TransformerLens (4.3) has no config of Hugging Face.
    settings = config.to_dict() if hasattr(config, "to_dict") else vars(model.cfg)
    of_function = sorted((key, str(value)) for key, value in settings.items() if key not in _NOT_THE_FUNCTION)
    digest.update(repr(of_function).encode())
    digest.update(_weights_hash(model, full=full))
    return digest.hexdigest()


def _weights_hash(model: Model, *, full: bool) -> bytes:
    """What a fingerprint is made of beside the settings: names, shapes and hashes of all weights."""
    seen, tensors = _seen.get(model), _tensors(model)
    places = [_place(name, tensor) for name, tensor in tensors]
    if seen is not None and not full and seen.places == places and seen.sample == _sample(tensors):
        return seen.weights_hash
    weights = {}
    for name, weight in model.original_model.state_dict().items():
        # Modules may keep other things in their state than tensors.
        if torch.is_tensor(weight):
            weights[name] = weight.detach()
    # Tied weights lie at one address: they are hashed once.
    distinct = {_memory(weight): weight for weight in weights.values()}
    hashes = dict(zip(distinct, _hashes(list(distinct.values())), strict=True))
    content = b"".join(
        f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + hashes[_memory(weight)]
        for name, weight in sorted(weights.items(), key=itemgetter(0))
    )
    # What torch counts no writes of is hashed in full every time: weights of inference mode, and tensors that
    # a module keeps elsewhere than among its parameters and buffers.
    counted = {_memory(tensor) for _, tensor in tensors if not tensor.is_inference()}
    if counted >= distinct.keys():
        storages = [StorageWeakRef(tensor.untyped_storage()) for _, tensor in tensors]
        _seen[model] = _Seen(places, storages, _sample(tensors), content)
    else:
        _seen.pop(model, None)
    return content


def _tensors(model: Model) -> list[tuple[str, Tensor]]:
    """The parameters and stored buffers of each module, by their names there.

    Ten times as quick as `state_dict`, which works out the full name of each, through every wrapper.
    """
    tensors = []
    for module in every_module(model.original_model):
        tensors += [(name, tensor) for name, tensor in module._parameters.items() if tensor is not None]
        for name, tensor in module._buffers.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                tensors.append((name, tensor))
    return tensors


def _place(name: str, tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is replaced, moved, cast, or written to by torch."""
    version = None if tensor.is_inference() else tensor._version
    return name, *_memory(tensor), tensor.device, tensor.untyped_storage()._cdata, version


@torch.no_grad()
def _sample(tensors: Sequence[tuple[str, Tensor]]) -> bytes:
    """A hash of the sampled elements of all tensors."""
    parts: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in {id(tensor): tensor for _, tensor in tensors}.values():
        if tensor.numel():
            flat = _in_order(tensor).reshape(-1)
            chosen = flat.index_select(0, _sampled(flat.numel()).to(flat.device))
            parts.setdefault((flat.device, flat.dtype), []).append(chosen)
    digest = xxhash.xxh3_128()
    for of_kind in parts.values():
        digest.update(torch.cat(of_kind).cpu().view(torch.uint8).numpy().data)
    return digest.digest()


@lru_cache(maxsize=256)
def _sampled(n: int) -> Int[Tensor, "sampled"]:
    """Which of n elements are looked at again: one in each of equally long stretches, at a random place of it.

    Every k-th element would be the same column of a matrix all along.
    """
    edges = np.linspace(0, n, min(n, _N_SAMPLED) + 1).astype(np.int64)
    shares = np.random.default_rng(n).random(len(edges) - 1)
    # Through numpy: torch's default device may be another one.
    return torch.from_numpy(edges[:-1] + (shares * np.diff(edges)).astype(np.int64))


def _memory(weight: Tensor) -> tuple[Any, ...]:
    """A key that is equal for two tensors that are the same numbers in the same memory."""
    return weight.data_ptr(), weight.dtype, weight.shape, weight.stride()


def _hashes(weights: Sequence[Tensor]) -> list[bytes]:
    """The hash of each tensor; xxhash releases the interpreter's lock, so that threads share large models."""
    if sum(weight.nbytes for weight in weights) < _HASH_IN_THREADS:
        return [_hash(weight) for weight in weights]
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        return list(pool.map(_hash, weights))


def _hash(weight: Tensor) -> bytes:
    """The hash of a tensor's bytes; a transposed one is hashed as it lies in memory, which saves a copy."""
    flat = _in_order(weight).cpu().contiguous().flatten().view(torch.uint8).numpy()
    return xxhash.xxh3_128_digest(flat.data) + (b"transposed" if _is_transposed(weight) else b"")


def _in_order(weight: Tensor) -> Tensor:
    """The weight, or its transpose where that is how it lies in memory."""
    return weight.T if _is_transposed(weight) else weight


def _is_transposed(weight: Tensor) -> bool:
    return not weight.is_contiguous() and weight.ndim == 2 and weight.T.is_contiguous()


def tokenizer_fingerprint(model: Model) -> str:
    """A hash of the vocabulary; "none" for a model without a tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return NO_TOKENIZER
    size, fingerprint = _vocabularies.get(tokenizer, (-1, ""))
    if size != len(tokenizer):
        digest = hashlib.blake2b(digest_size=16)
        for token, index in sorted(tokenizer.get_vocab().items()):
            digest.update(token.encode("utf-8", "surrogatepass") + struct.pack("<q", index))
        fingerprint = digest.hexdigest()
        _vocabularies[tokenizer] = len(tokenizer), fingerprint
    return fingerprint


def other_vocabulary(tokenizer: str, model: Model) -> bool:
    """Whether token ids of that vocabulary mean other words to the model.

    False where either side has no tokenizer: such token ids stand for themselves.

    Args:
        tokenizer: the fingerprint of a vocabulary; "" or "none" without one.
    """
    return tokenizer not in ("", NO_TOKENIZER) and tokenizer_fingerprint(model) not in (
        tokenizer,
        NO_TOKENIZER,
    )
