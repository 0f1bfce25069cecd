"""Load a model: an embedded name, a local Hugging Face directory, a Hub name, or a bridge you already have.

The only importer of TransformerLens. Every model comes back as a `TransformerBridge` in eval mode with Hugging Face's
own numerics (no weight folding), so that everything TransformerLens can do with it still works.
"""

import hashlib
import json
import socket
import struct
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file

from workbench.errors import ModelError, UnknownName
from workbench.models import zoo

_names: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()
_sources: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()


# Settings that may differ between two loads of the same function.
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


def load_model(
    source: Any, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Any:
    """A `TransformerBridge` in eval mode.

    Args:
        source: an embedded name ("tiny", "induction", "shortcut"; "tiny@1500" for a training step), a local Hugging Face
            directory, a Hub name ("gpt2"), or a bridge, which is put into eval mode and, where asked, moved.
        device: where it runs; None picks a GPU if there is one (a bridge stays where it is).
        dtype: "float32" (default), "bfloat16", "float16", "float64", or a torch dtype.

    Raises:
        ModelError: nothing can be loaded from there; the message says what to do offline.
        UnknownName: an unknown dtype or checkpoint.
    """
    from transformer_lens.model_bridge import TransformerBridge

    wanted = dtype_named(dtype)
    if isinstance(source, TransformerBridge):
        if device is not None or wanted is not None:
            source.to(*(given for given in (device, wanted) if given is not None))
        return source.eval()
    if not isinstance(source, str | Path):
        raise ModelError(
            f"A model is a name, a directory or a TransformerBridge, not {type(source).__name__}. "
            "Wrap a Hugging Face model with TransformerBridge.boot_transformers(name, hf_model=model)."
        )
    place = _device(device)
    embedded = zoo.find(str(source))
    if embedded is not None:
        model = _boot(str(embedded.folder), place, wanted, embedded.checkpoint)
    elif str(source) and Path(source).is_dir():
        model = _boot(str(source), place, wanted, None)
    elif _looks_like_a_path(str(source)):
        raise ModelError(
            f"There is no model directory {str(source)!r}. Embedded models: {', '.join(zoo.names())}."
        )
    else:
        _check_reachable(str(source))
        model = _boot(str(source), place, wanted, None)
    again = str(Path(source).resolve()) if embedded is None and Path(source).is_dir() else str(source)
    _sources[model] = {
        "source": again,
        "device": str(place),
        "dtype": str(wanted or torch.float32).removeprefix("torch."),
    }
    _names[model] = (
        str(source)
        if embedded is not None
        else Path(source).resolve().name
        if Path(source).is_dir()
        else str(source)
    )
    return model.eval()


def native_model(
    name: str, *, weights: Mapping[str, torch.Tensor], tokenizer: Any = None, **settings: Any
) -> Any:
    """TransformerLens' own model with these settings and weights, in eval mode, called `name`.

    Args:
        weights: by parameter name, as in `layers.0.attn.q.weight`; norms that are not among them keep their ones and zeros.
        settings: of `TransformerBridgeConfig`.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    boot: Any = TransformerBridge.boot_native  # pyright: ignore[reportAttributeAccessIssue]
    with torch.random.fork_rng(devices=[]):
        model = boot(TransformerBridgeConfig(seed=0, **settings), tokenizer=tokenizer).eval()
    own = {
        key.replace("._original_component", ""): value
        for key, value in model.original_model.named_parameters()
    }
    norms = {key for key in own if key.split(".")[-2].startswith("ln")}
    wrong = sorted((set(weights) - norms) ^ (set(own) - norms))
    if wrong:
        raise ModelError(
            f"The weights do not fit the settings: {', '.join(wrong[:3])} are missing or too many."
        )
    for key, value in weights.items():
        own[key].data.copy_(value)
    _names[model] = name
    return model


def model_name(model: Any) -> str:
    """What a result should call the model: its embedded or Hub name, or the last part of its directory."""
    return _names.get(model) or Path(str(getattr(model.cfg, "model_name", "unnamed"))).name


def model_source(model: Any) -> dict[str, Any]:
    """The arguments of `load_model` that load it again in another process, which a bridge itself cannot be sent to.

    Raises:
        ModelError: it was not loaded from a name or a directory.
    """
    if model not in _sources:
        raise ModelError(
            "Worker processes load the model anew, and this one was not loaded by wb.load_model from a name or a directory. "
            "Save it as a Hugging Face directory and load that, or use workers=1."
        )
    return dict(_sources[model])


_hashed: "ContextVar[weakref.WeakKeyDictionary[Any, str] | None]" = ContextVar("hashed", default=None)


@contextmanager
def one_fingerprint() -> Iterator[None]:
    """Within it, or within a function that it decorates, each model is hashed once: nothing there changes weights."""
    token = _hashed.set(_hashed.get() or weakref.WeakKeyDictionary())
    try:
        yield
    finally:
        _hashed.reset(token)


def model_fingerprint(model: Any) -> str:
    """A hash of configuration and weights: two models with equal fingerprints compute the same function."""
    known = _hashed.get()
    if known is None:
        return _fingerprint(model)
    if model not in known:
        known[model] = _fingerprint(model)
    return known[model]


def _fingerprint(model: Any) -> str:
    digest = xxhash.xxh3_128()
    own: Any = getattr(model.original_model, "config", None)
    settings = own.to_dict() if hasattr(own, "to_dict") else vars(model.cfg)
    digest.update(
        repr(
            sorted((key, str(value)) for key, value in settings.items() if key not in _NOT_THE_FUNCTION)
        ).encode()
    )
    state = {
        name: value.detach()
        for name, value in model.original_model.state_dict().items()
        if torch.is_tensor(value)
    }
    # Tied weights are hashed once; several threads share the work.
    distinct = {_place(value): value for value in state.values()}
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        hashes = dict(zip(distinct, pool.map(_hash, distinct.values()), strict=True))
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + hashes[_place(value)])
    return digest.hexdigest()


def _place(value: torch.Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), value.dtype, value.shape, value.stride()


def _hash(value: torch.Tensor) -> bytes:
    """Of a tensor's bytes; of a transposed one as they lie in memory."""
    turned = not value.is_contiguous() and value.ndim == 2 and value.T.is_contiguous()
    flat = (value.T if turned else value).cpu().contiguous().flatten().view(torch.uint8).numpy()
    return xxhash.xxh3_128_digest(flat.data) + (b"transposed" if turned else b"")


def tokenizer_fingerprint(model: Any) -> str:
    """A hash of the vocabulary; "none" for a model without a tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return "none"
    digest = hashlib.blake2b(digest_size=16)
    for token, index in sorted(tokenizer.get_vocab().items()):
        digest.update(token.encode("utf-8", "surrogatepass") + struct.pack("<q", index))
    return digest.hexdigest()


def model_device(model: Any) -> torch.device:
    """Where the weights are."""
    return next(model.parameters()).device


def check_eval(model: Any) -> None:
    """Raise `ModelError` in train mode, where dropout would make every number random."""
    if any(part.training for part in (*model.modules(), *model.original_model.modules())):
        raise ModelError("The model is in train mode, so its numbers are random. Call model.eval() first.")


def _boot(source: str, device: str | torch.device, dtype: torch.dtype | None, checkpoint: Path | None) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging

    if Path(source).is_dir() and not any(Path(source).glob("*.safetensors")):
        raise ModelError(
            f"The directory {source!r} has no *.safetensors. Other weight files can run code when they are read: convert them "
            "first (save_pretrained writes safetensors)."
        )

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        if _is_native(source):
            return _native_from(Path(source)).to(device, dtype or torch.float32, print_details=False)
        weights = (
            None if checkpoint is None else _hf_model(source, checkpoint, dtype or torch.float32).to(device)
        )
        model = TransformerBridge.boot_transformers(
            source, device=device, dtype=dtype or torch.float32, hf_model=weights
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        AssertionError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"The model {source!r} cannot be loaded: {reason} "
            "A local model is a Hugging Face directory with config.json, *.safetensors and tokenizer.json."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return model


def _is_native(source: str) -> bool:
    """Whether it is the directory of a model of TransformerLens' own kind (`data/models/train_induction.py` writes such)."""
    config = Path(source) / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "native"


def _native_from(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del settings["model_type"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return native_model(
        folder.name, weights=load_file(folder / "model.safetensors"), tokenizer=tokenizer, **settings
    )


def _hf_model(folder: str, checkpoint: Path, dtype: torch.dtype) -> Any:
    """A Hugging Face model of the folder's config with the weights of one checkpoint."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    missing, unexpected = model.load_state_dict(load_file(checkpoint), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ModelError(
            f"The checkpoint {checkpoint.name} does not fit its model: {[*unexpected, *missing][:3]} differ."
        )
    model.tie_weights()
    return model.to(dtype)


def dtype_named(given: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its name. Raises `UnknownName` for others than the usual four."""
    known = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float64": torch.float64,
    }
    if given is None or isinstance(given, torch.dtype):
        return given
    if given not in known:
        raise UnknownName("dtype", given, known)
    return known[given]


def _device(given: str | torch.device | None) -> torch.device:
    """The device asked for, if this machine has it; a GPU if there is one when none is asked for."""
    try:
        device = torch.device(given or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ModelError(f"There is no device {given!r}. Use cpu, cuda, cuda:0, mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"The device {str(given)!r} was asked for, and this machine (or this build of torch) has no CUDA. Use cpu."
        )
    return device


def _looks_like_a_path(source: str) -> bool:
    return (
        source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source or source.strip() == ""
    )


def _check_reachable(source: str) -> None:
    """Fail at once, and helpfully, where a Hub name can neither be found on disk nor downloaded."""
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return
    except ValueError as error:
        raise UnknownName("model", source, zoo.names()) from error
    host = urlsplit(constants.ENDPOINT)
    try:
        if not constants.HF_HUB_OFFLINE:
            socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
            return
    except OSError:
        pass
    raise ModelError(
        f"{source!r} is not an embedded model ({', '.join(zoo.names())}) nor a local directory, and the Hugging Face Hub "
        "cannot be reached. Offline, copy the model's directory to this machine (config.json, *.safetensors, "
        "tokenizer.json) and pass its path, or use load_model('tiny')."
    )
