"""GGUF files: one file with a model's weights, mostly quantised, its config and its tokenizer.

Read `convert`, which writes what transformers reads from such a file as a Hugging Face directory. What it
leaves out is refused: a tensor of the file that goes nowhere, or a weight that the file lacks, would give
numbers all the same. The packages that read GGUF are an extra, and are needed for the conversion alone.
"""

import copy
import math
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from workbench.errors import ModelError, warn
from workbench.files import check_ordinary
from workbench.models.folder import WEIGHTS
from workbench.models.weights import Header, check_numbers, check_room

SUFFIX = ".gguf"
_PACKAGES = ("gguf", "accelerate")
# How byte-level vocabularies split a text before they merge, as files name it: those that transformers
# (5.23) splits as GPT-2 does, for want of a rule of their own, and rightly so. Where digits were learned one
# by one there is no merge of two digits, and so the rule for digits changes no token.
_AS_GPT2 = frozenset(
    "gpt-2 mpt olmo jais phi-2 smollm starcoder refact command-r codeshell exaone minerva-7b".split()
)
# What the file of a tied model may hold a second time: its unembedding.
_UNEMBEDDING = "output.weight"


def convert(file: Path, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a GGUF file as a Hugging Face directory: config, weights that are no longer quantised, tokenizer.

    Args:
        folder: an empty folder that is there.
        dtype: of the weights that are written.

    Raises:
        ModelError: the packages that read GGUF are not installed; it is no such file, or of an architecture
            that transformers does not read; weights are missing or left over.
    """
    check_packages()
    try:
        check_ordinary(file)
    except OSError as error:
        raise ModelError(f"{str(file)!r} cannot be read: {error.strerror}.") from error
    # In a folder by itself: transformers would also read a config or a tokenizer that lies beside the file.
    with tempfile.TemporaryDirectory() as alone:
        link = Path(alone) / f"model{SUFFIX}"
        link.symlink_to(file.resolve())
        try:
            _convert(link, folder, dtype, str(file))
        except ModelError:
            raise
        except Exception as error:  # transformers and gguf raise errors of every kind for unfit files
            reason = " ".join(str(error).split())[:400].rstrip(".:") or type(error).__name__
            raise ModelError(
                f"{str(file)!r} cannot be read as a GGUF model: {reason}. A Hugging Face directory of the "
                "same model (config.json, *.safetensors, tokenizer.json) can be loaded in its place."
            ) from error


def check_packages() -> None:
    """Raise `ModelError` where a package that reads GGUF is not installed."""
    absent = [name for name in _PACKAGES if find_spec(name) is None]
    if absent:
        raise ModelError(
            f"GGUF files are read with the packages {' and '.join(_PACKAGES)}; not installed: "
            f"{', '.join(absent)}. Install the extra: pip install 'interp-workbench[gguf]'."
        )


def _convert(link: Path, folder: Path, dtype: torch.dtype, source: str) -> None:
    # Without the extra a type checker takes this module for that package.
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    reader = GGUFReader(link)
    shapes = _shapes(reader.tensors)
    where: Any = {"pretrained_model_name_or_path": str(link.parent), "gguf_file": link.name}
    config = AutoConfig.from_pretrained(**where)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    # Before anything is allocated: a file may ask for more than it holds.
    check_room(empty, {name: Header("F32", shape) for name, shape in shapes.items()}, source)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **where, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False
    )
    model, report = loaded
    _check_whole(model, report, shapes, source)
    tied = set(model.all_tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name not in tied}
    check_numbers(weights.items(), source)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    # transformers calls such a model quantised, which what is written here no longer is.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    _warn_of_splits(reader, source)


def _shapes(tensors: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a file by its name there."""
    return {tensor.name: tuple(map(int, tensor.shape)) for tensor in tensors}


def _warn_of_splits(reader: Any, source: str) -> None:
    """Warn where transformers may split texts otherwise than the vocabulary of the file was learned."""
    kind, split = (reader.get_field(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind is None or kind.contents() != "gpt2":
        return
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as known
    except ImportError:  # before 5.23 it knew none
        known = {}
    name = "default" if split is None else split.contents()
    if name not in _AS_GPT2 and name not in known:
        warn(
            f"{source!r} splits texts before merging as {name!r}, which transformers does not know: it splits "
            "as GPT-2 does, and may make other tokens of a text than the model was trained on. Compare with "
            "the model's own tokenizer, or give token ids."
        )


def _check_whole(model: Any, report: dict[str, Any], shapes: dict[str, tuple[int, ...]], source: str) -> None:
    """Raise `ModelError` unless every weight is from the file and every tensor of the file goes into one."""
    faults = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind) or ())
        if names:
            faults.append(f"{len(names)} {kind.removesuffix('_keys')} ({', '.join(names[:3])})")
    # transformers (5.23) drops tensors that it has no place for without a word: that numbers are left over
    # is seen by counting them. Tensors may be renamed, split, joined and turned, which keeps their number.
    n_in_file = sum(math.prod(shape) for name, shape in shapes.items() if name != _UNEMBEDDING)
    distinct = {weight.data_ptr(): weight.numel() for weight in model.parameters()}
    n_in_model = sum(distinct.values())
    if not model.config.tie_word_embeddings:
        n_in_file += math.prod(shapes.get(_UNEMBEDDING, (0,)))
    if n_in_file != n_in_model:
        faults.append(f"the file holds {n_in_file:,} numbers and the model has {n_in_model:,}")
    if faults:
        raise ModelError(
            f"transformers reads only a part of {source!r} as a {type(model).__name__}: {'; '.join(faults)}. "
            "A model of which a part was left out would give numbers all the same: load it as a Hugging Face "
            "directory (config.json, *.safetensors, tokenizer.json)."
        )
