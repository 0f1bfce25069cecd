"""Load a model: an embedded name, a local Hugging Face directory, a Hub name, or a bridge you already have.

The only importer of TransformerLens. Every model comes back as a `TransformerBridge` in eval mode with
Hugging Face's own numerics (no weight folding), so that everything TransformerLens can do with it still
works. Read `load_model`. What tells models apart is in `fingerprint.py`. This module knows nothing of prompts
or of what is done with a model.
"""

import os
import socket
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import torch
from safetensors.torch import load_file
from torch import Tensor

from workbench.arguments import checked
from workbench.errors import ModelError, UnknownName, WorkbenchError
from workbench.models import embedded, gguf, pinned
from workbench.models.bos import choose_bos, chosen_bos, tokenizer_adds_bos
from workbench.models.calls import model_call
from workbench.models.folder import check_folder, has_tokenizer
from workbench.models.loader import CheckedLoader, check_one_stack
from workbench.models.model import Model
from workbench.models.weights import check_numbers, check_room, check_tensors, headers

# By weak reference: a model that nobody uses any more is freed.
_names: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()
_sources: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()


@checked
@model_call()
def load_model(
    source: Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    bos: bool | None = None,
) -> Any:
    """A `TransformerBridge` in eval mode.

    Every weight is read from safetensors, and the logits of a few tokens are compared with those that
    transformers computes. A directory without a tokenizer (board games, toy tasks) loads too, a native one of
    TransformerLens as well: its prompts are token ids.

    Args:
        source: an embedded name ("tiny", "induction", "shortcut"; "tiny@1500" for a training step), a local
            Hugging Face directory, a GGUF file (the extra `gguf`), a pinned name
            ("smollm2-135m-instruct-q4", brought by `workbench models get`), a Hub name ("gpt2"), or a bridge,
            which is put into eval mode and, where asked, moved.
        device: where it runs; None picks a GPU if there is one (a bridge stays where it is).
        dtype: "float32" (default), "bfloat16", "float16", "float64", or a torch dtype.
        bos: whether prompts of text begin with the BOS token; None: as the model's tokenizer adds it. Readers
            of prompts can be told otherwise. Token ids are taken as they are.

    Raises:
        ModelError: nothing can be loaded from that source (the message says what to do offline); its weights
            are missing, left over, of another shape, integers or not finite; TransformerLens does not compute
            what transformers does; `bos=True` without a BOS token.
        UnknownName: an unknown dtype or checkpoint.

    >>> model = load_model("tiny", device="cpu")
    >>> model.cfg.n_layers, model.cfg.n_heads
    (4, 8)
    """
    from transformer_lens.model_bridge import TransformerBridge

    torch_dtype = dtype_named(dtype)
    if isinstance(source, TransformerBridge):
        hf_model, name = source.original_model, model_name(cast(Model, source))
        check_one_stack(getattr(hf_model, "config", None), type(hf_model).__name__, name)
        if device is not None:
            device = _device(device)
        targets = [target for target in (device, torch_dtype) if target is not None]
        if targets:
            source.to(*targets)
        check_numbers(hf_model.named_parameters(), name)
        choose_bos(cast(Model, source), bos)
        return source.eval()
    if not isinstance(source, str | Path):
        raise ModelError(
            f"A model is a name, a directory or a TransformerBridge, not {type(source).__name__}. "
            "Wrap a Hugging Face model with TransformerBridge.boot_transformers(name, hf_model=model)."
        )
    torch_device = _device(device)
    name = reload_name = str(source)
    known = embedded.find(name)
    if known is not None:
        model = _boot(str(known.folder), torch_device, torch_dtype, checkpoint=known.checkpoint, trusted=True)
    elif name in pinned.PINNED:
        model = _boot(str(pinned.cached_folder(pinned.PINNED[name])), torch_device, torch_dtype)
    elif os.path.isdir(name):  # unlike `Path.is_dir` it is False for names that no file can have
        model = _boot(name, torch_device, torch_dtype)
        # Another process may have another working directory.
        reload_name = str(Path(name).resolve())
        name = Path(name).resolve().name
    elif name.endswith(gguf.SUFFIX):
        model = _gguf_model(Path(name), torch_device, torch_dtype)
        reload_name = str(Path(name).resolve())
        name = Path(name).stem
    elif _looks_like_a_path(name):
        raise ModelError(
            f"There is no model directory {name!r}. Embedded models: {', '.join(embedded.names())}."
        )
    else:
        _check_reachable(name)
        model = _boot(name, torch_device, torch_dtype)
    precision = str(torch_dtype or torch.float32).removeprefix("torch.")
    _sources[model] = {"source": reload_name, "device": str(torch_device), "dtype": precision}
    choose_bos(model, bos)
    _names[model] = name
    return model.eval()


@model_call()
def native_model(name: str, *, weights: Mapping[str, Tensor], tokenizer: Any = None, **settings: Any) -> Any:
    """TransformerLens' own model with these settings and weights, in eval mode, called `name`.

    Args:
        weights: by parameter name, as in `layers.0.attn.q.weight`; norms without weights keep their ones and
            zeros.
        settings: of `TransformerBridgeConfig`.

    Raises:
        ModelError: weights are missing, too many or of another shape.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    boot: Any = TransformerBridge.boot_native  # pyright: ignore[reportAttributeAccessIssue]
    # The weights that are drawn at first are replaced: the caller's random numbers must not depend on them.
    with torch.random.fork_rng(devices=[]):
        model = boot(TransformerBridgeConfig(seed=0, **settings), tokenizer=tokenizer).eval()
    # The bridge of 4.3 wraps each module and so puts `_original_component` into the names.
    parameters = {
        key.replace("._original_component", ""): parameter
        for key, parameter in model.original_model.named_parameters()
    }
    norms = {key for key in parameters if key.split(".")[-2].startswith("ln")}
    wrong = sorted((set(weights) - norms) ^ (set(parameters) - norms))
    if wrong:
        raise ModelError(
            f"The weights do not fit the settings: {', '.join(wrong[:3])} are missing or too many."
        )
    for key, weight in weights.items():
        # `copy_` would stretch a smaller tensor over the parameter.
        if weight.shape != parameters[key].shape:
            raise ModelError(
                f"The weights do not fit the settings: {key} has shape {list(weight.shape)}, and "
                f"{list(parameters[key].shape)} is needed."
            )
        parameters[key].data.copy_(weight)
    _names[model] = name
    return model


def model_name(model: Model) -> str:
    """What a result should call the model: its embedded or Hub name, or the last part of its directory."""
    return _names.get(model) or Path(str(getattr(model.cfg, "model_name", "unnamed"))).name


def model_source(model: Model) -> dict[str, Any]:
    """The arguments of `load_model` that load the model again in another process.

    A bridge itself cannot be pickled.

    Raises:
        ModelError: it was not loaded from a name or a directory.
    """
    if model not in _sources:
        raise ModelError(
            "Worker processes load the model anew, "
            "and this one was not loaded by wb.load_model from a name or a directory. "
            "Save it as a Hugging Face directory and load that, or use workers=1."
        )
    return _sources[model] | {"bos": chosen_bos(model)}


def model_device(model: Model) -> torch.device:
    """The device of the weights."""
    return next(model.parameters()).device


def check_eval(model: Model) -> None:
    """Raise `ModelError` in train mode, where dropout would make every number random."""
    # In TransformerLens 4.3 `modules()` of a bridge leaves out some modules of the wrapped model.
    if any(module.training for module in (*model.modules(), *model.original_model.modules())):
        raise ModelError("The model is in train mode, so its numbers are random. Call model.eval() first.")


def _boot(
    source: str,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    checkpoint: Path | None = None,
    trusted: bool = False,
) -> Any:
    """The bridge of a directory or a Hub name. Raises `ModelError` for whatever goes wrong on the way.

    Args:
        checkpoint: weights to take in place of the directory's.
        trusted: leaves weights and logits unchecked; the tests look through those of the embedded models.
    """
    from transformers.utils import logging

    if Path(source).is_dir() and not any(Path(source).glob("*.safetensors")):
        raise ModelError(
            f"The directory {source!r} has no *.safetensors. "
            "Other weight files can run code when they are read: "
            "convert them first (save_pretrained writes safetensors)."
        )

    precision = dtype or torch.float32
    loader = CheckedLoader(_class_of, device)
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        folder = Path(source)
        config = check_folder(folder) if folder.is_dir() else {}
        if config.get("model_type") == "native":
            model = _native_from(folder, config).to(device, precision, print_details=False)
            check_numbers(model.original_model.named_parameters(), source)
            return model
        hf_model = None
        if checkpoint is not None:
            hf_model = _hf_model(source, checkpoint, precision).to(device)
        model = _bridge(
            source, device=device, dtype=precision, hf_model=hf_model, model_class=None if trusted else loader
        )
        if not trusted:
            loader.check_logits(model, source)
        return model
    except WorkbenchError:
        raise
    except Exception as error:  # transformers and TransformerLens raise errors of every kind for unfit files
        reason = " ".join(str(error).split())[:400].rstrip(".:") or type(error).__name__
        raise ModelError(f"{loader.stage(source)}: {reason}. {loader.advice()}") from error
    finally:
        if shows_bars:
            logging.enable_progress_bar()


def _gguf_model(file: Path, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The bridge of a GGUF file, by way of a Hugging Face directory that is gone afterwards.

    Not in memory: a directory goes through every check that other models go through (what its weights lack,
    hold too much or say of their sizes; the logits of plain transformers), by the same lines of code.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        gguf.convert(file, folder, dtype=dtype or torch.float32)
        try:
            model = _boot(str(folder), device, dtype)
            if model.tokenizer is not None:
                tokenizer_adds_bos(model)  # asked now and kept, since the files are gone afterwards
            return model
        except ModelError as error:
            # The file is what the caller knows.
            raise ModelError(str(error).replace(str(folder), str(file))) from error


def _bridge(source: str, **options: Any) -> Any:
    """What TransformerLens makes of a directory or a Hub name; `tokenizer` is None where it has none."""
    from transformer_lens.model_bridge import TransformerBridge

    boot: Any = TransformerBridge.boot_transformers  # pyright: ignore[reportAttributeAccessIssue]
    if has_tokenizer(Path(source)) or not Path(source).is_dir():
        return boot(source, **options)
    model = boot(source, **options, tokenizer=_empty_tokenizer())
    model.tokenizer = None
    return model


def _class_of(config: Any) -> tuple[str, Any]:
    """The architecture of a config, and the class of transformers that loads it."""
    from transformer_lens.model_bridge.sources import transformers as hugging_face

    architecture = hugging_face.determine_architecture_from_hf_config(config)
    return architecture, hugging_face.get_hf_model_class_for_architecture(architecture)


def _empty_tokenizer() -> Any:
    """A tokenizer of no tokens, for the loading alone: without one TransformerLens (4.3) loads no model."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))


def _native_from(folder: Path, config: Mapping[str, Any]) -> Any:
    """The native model of TransformerLens in a directory, as `data/models/train_induction.py` writes one."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import NativeModel
    from transformers import PreTrainedTokenizerFast

    settings = {name: setting for name, setting in config.items() if name != "model_type"}
    file = folder / "model.safetensors"
    # Without memory, so that sizes which the file does not hold are refused before they are allocated.
    with torch.device("meta"):
        empty = NativeModel(TransformerBridgeConfig(seed=0, **settings))
    tensors = headers([file])
    check_room(empty, tensors, str(folder))
    check_tensors({name: weight.shape for name, weight in empty.named_parameters()}, tensors, str(folder))
    tokenizer = None
    if has_tokenizer(folder):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return native_model(folder.name, weights=load_file(file), tokenizer=tokenizer, **settings)


def _hf_model(folder: str, checkpoint: Path, dtype: torch.dtype) -> Any:
    """A Hugging Face model of the folder's config with the weights of one checkpoint."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    missing, unexpected = model.load_state_dict(load_file(checkpoint), strict=False)
    # The unembedding is tied to the embedding, and so not in the file.
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ModelError(
            f"The checkpoint {checkpoint.name} does not fit its model: {[*unexpected, *missing][:3]} differ."
        )
    model.tie_weights()
    return model.to(dtype)


def dtype_named(name: str | torch.dtype | None) -> torch.dtype | None:
    """The torch dtype of that name; a dtype or None passes through.

    Raises:
        UnknownName: none of the four floating-point dtypes.
    """
    known = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float64": torch.float64,
    }
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in known:
        raise UnknownName("dtype", name, known)
    return known[name]


def _device(name: str | torch.device | None) -> torch.device:
    """The device of that name, if this machine has it; None: a GPU if there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"There is no device {name!r}. Use cpu, cuda, cuda:0, mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"The device {str(name)!r} was asked for, "
            "and this machine (or this build of torch) has no CUDA. Use cpu."
        )
    return device


def _looks_like_a_path(source: str) -> bool:
    return (
        len(source) > 255
        or source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or "\\" in source
        or source.strip() == ""
    )


def _check_reachable(source: str) -> None:
    """Fail at once, and helpfully, where a Hub name can neither be found on disk nor downloaded."""
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return
    except ValueError as error:
        raise UnknownName("model", source, embedded.names()) from error
    host = urlsplit(constants.ENDPOINT)
    # A connection is tried first: the error comes at once, and not after the retries of the Hub's own client.
    try:
        if not constants.HF_HUB_OFFLINE:
            socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
            return
    except OSError:
        pass
    raise ModelError(
        f"{source!r} is not an embedded model ({', '.join(embedded.names())}) nor a local directory, and the "
        "Hugging Face Hub cannot be reached. "
        "Offline, copy the model's directory to this machine (config.json, *.safetensors, tokenizer.json) "
        "and pass its path, or use load_model('tiny')."
    )
