"""What tells models apart: a hash of settings and weights, and one of the vocabulary.

Read `model_fingerprint`. Every result, store and circuit carries these hashes, so that what was computed with
one model is never taken for another's. Nothing here loads a model.
"""

import hashlib
import struct
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import xxhash
from torch import Tensor

from workbench.arguments import checked
from workbench.models.model import Model

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

_hashed: "ContextVar[weakref.WeakKeyDictionary[Any, str] | None]" = ContextVar("hashed", default=None)


@contextmanager
def one_fingerprint() -> Iterator[None]:
    """Within it, or within a function that it decorates, each model is hashed once.

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
def model_fingerprint(model: Model) -> str:
    """A hash of configuration and weights: two models with equal fingerprints compute the same function.

    >>> import workbench as wb
    >>> model_fingerprint(wb.load_model("tiny")) == model_fingerprint(wb.load_model("tiny@1500"))
    False
    """
    known = _hashed.get()
    if known is None:
        return _fingerprint(model)
    if model not in known:
        known[model] = _fingerprint(model)
    return known[model]


def _fingerprint(model: Model) -> str:
    digest = xxhash.xxh3_128()
    config: Any = getattr(model.original_model, "config", None)
    # A native model of TransformerLens (4.3) has no config of Hugging Face.
    settings = config.to_dict() if hasattr(config, "to_dict") else vars(model.cfg)
    of_function = sorted((key, str(value)) for key, value in settings.items() if key not in _NOT_THE_FUNCTION)
    digest.update(repr(of_function).encode())
    weights = {}
    for name, weight in model.original_model.state_dict().items():
        # Modules may keep other things in their state than tensors.
        if torch.is_tensor(weight):
            weights[name] = weight.detach()
    # Tied weights lie at one address: they are hashed once.
    distinct = {_memory(weight): weight for weight in weights.values()}
    hashes = dict(zip(distinct, _hashes(list(distinct.values())), strict=True))
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + hashes[_memory(weight)])
    return digest.hexdigest()


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
    is_transposed = not weight.is_contiguous() and weight.ndim == 2 and weight.T.is_contiguous()
    in_order = weight.T if is_transposed else weight
    flat = in_order.cpu().contiguous().flatten().view(torch.uint8).numpy()
    return xxhash.xxh3_128_digest(flat.data) + (b"transposed" if is_transposed else b"")


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
