"""Weights that fit: what a model's files hold, compared with what its config asks for.

Read `load_weights`, which loads a Hugging Face model, and `check_tensors`, the same comparison for any model.
Where a tensor is absent, transformers (5.23) draws random numbers for it and says so in a log at most; here
the model is refused and the tensors are named. Knows nothing of TransformerLens.
"""

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from workbench.errors import ModelError
from workbench.models.folder import check_folder, weight_files

# A config may ask for this many times the numbers in the files, and for so many more: a model also holds
# masks and tables that it computes itself, and tied weights under two names.
_FACTOR, _EXTRA = 2, 2**28

# Heads for pretraining that BERT's files hold beside the language model.
_OTHER_HEADS = re.compile(r"^cls\.seq_relationship\.|^\w+\.pooler\.")


@dataclass(frozen=True)
class Header:
    """What a weight file says of a tensor, without its numbers.

    Attributes:
        dtype: as safetensors spells it: "F32", "BF16", "I8", ...
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_floating_point(self) -> bool:
        """Whether its numbers are floating point, of whatever size."""
        return self.dtype.startswith(("F", "BF"))


def headers(files: Iterable[Path]) -> dict[str, Header]:
    """Every tensor of some safetensors files by its name.

    Raises:
        ModelError: two files hold a tensor of the same name.
    """
    by_name: dict[str, Header] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if name in by_name:
                    raise ModelError(f"Two weight files hold the tensor {name}: {file.name!r} and another.")
                tensor = tensors.get_slice(name)
                by_name[name] = Header(tensor.get_dtype(), tuple(tensor.get_shape()))
    return by_name


def load_weights(kind: Any, source: str, options: Mapping[str, Any]) -> nn.Module:
    """The Hugging Face model of a directory or a Hub name, every weight of it read from safetensors.

    Args:
        kind: the class that loads it, such as `AutoModelForCausalLM`.
        options: of its `from_pretrained`, `config` among them.

    Raises:
        ModelError: weights are missing, left over, of another shape, integers, or not finite; or the config
            asks for far more numbers than there are.
    """
    config, is_local = options["config"], Path(source).is_dir()
    folder = Path(source) if is_local else _snapshot(source)
    settings = check_folder(folder)
    quantisation = _quantisation(config)
    # Not for the Hub, whose weight files are not here yet; nor for quantised weights, of which several are
    # packed into a number.
    if is_local and not quantisation:
        with torch.device("meta"):
            empty = kind.from_config(copy.deepcopy(config), trust_remote_code=False)
        check_room(empty, headers(weight_files(folder, settings)), source)
    # Tensors of another shape are reported like the rest, instead of an error that does not name them. A
    # checkpoint beside the safetensors (pytorch_model.bin) is never opened: reading one can run code.
    strict = {
        "trust_remote_code": False,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    try:
        loaded, report = kind.from_pretrained(source, **options, **strict)
    except Exception as error:  # packages for quantised weights raise what they like
        if not quantisation:
            raise
        raise ModelError(
            f"{source!r} asks for quantised weights (quantization_config in its config.json: "
            f"{quantisation}), and they cannot be loaded: {' '.join(str(error).split())} "
            "Load it where that works, call model.dequantize(), save_pretrained it, and load that directory."
        ) from error
    tensors = headers(weight_files(folder, settings))
    buffers = {name for name, _ in loaded.named_buffers()}
    surplus = [name for name in report["unexpected_keys"] if not _is_computed(name, buffers)]
    # Of a tensor with the base model's prefix and one without, the first in the file would be overwritten.
    surplus += [name for name in tensors if f"{loaded.base_model_prefix}.{name}" in tensors]
    reshaped = [_two_shapes(*mismatch) for mismatch in report["mismatched_keys"]]
    _refuse_unfit(source, report["missing_keys"], surplus, reshaped, _integers(loaded, tensors, buffers))
    check_numbers(loaded.named_parameters(), source)
    return loaded


def check_tensors(shapes: Mapping[str, Sequence[int]], tensors: Mapping[str, Header], source: str) -> None:
    """Raise `ModelError` unless the tensors of the files are those of the model.

    Args:
        shapes: name → shape of every weight of the model.
        tensors: name → header of every tensor in its files.
        source: what was loaded, for the message.
    """
    reshaped = []
    for name in sorted(set(shapes) & set(tensors)):
        if tuple(shapes[name]) != tensors[name].shape:
            reshaped.append(_two_shapes(name, tensors[name].shape, shapes[name]))
    integers = [name for name, header in tensors.items() if not header.is_floating_point]
    _refuse_unfit(source, set(shapes) - set(tensors), set(tensors) - set(shapes), reshaped, integers)


def check_numbers(weights: Iterable[tuple[str, Tensor]], source: str) -> None:
    """Raise `ModelError` for weights that are not floating-point numbers, or not finite."""
    infinite, integers, n = [], [], 0
    for name, weight in weights:
        n += 1
        # Bytes are quantised numbers: what they stand for depends on scales that are kept elsewhere.
        if not weight.is_floating_point() or weight.element_size() < 2:
            integers.append(_hugging_face_name(name))
        elif weight.numel() and not weight.is_meta:
            low, high = torch.aminmax(weight.detach())  # one pass; NaN passes through to both
            if not (math.isfinite(low) and math.isfinite(high)):
                infinite.append(_hugging_face_name(name))
    _refuse_unfit(source, (), (), (), integers)
    if infinite:
        raise ModelError(
            f"{source!r} has weights that are not finite numbers (NaN or infinity) in {len(infinite)} of {n} "
            f"tensors: {_first_few(infinite)}. Nothing that is computed with them is a number: use an "
            "earlier checkpoint, or where a number was too large for float16, load it as float32."
        )


def check_room(empty: nn.Module, tensors: Mapping[str, Header], source: str) -> None:
    """Raise `ModelError` where a model asks for far more numbers than its files hold.

    Args:
        empty: the model without memory, on the device "meta".
        tensors: name → header of every tensor in its files.
        source: what is to be loaded, for the message.
    """
    by_identity: dict[int, tuple[str, Tensor]] = {}  # a tensor of two names counts once
    for name, tensor in (*empty.named_parameters(), *empty.named_buffers()):
        by_identity[id(tensor)] = (name, tensor)
    n_in_model = sum(tensor.numel() for _, tensor in by_identity.values())
    n_in_files = sum(math.prod(header.shape) for header in tensors.values())
    if n_in_model > _FACTOR * n_in_files + _EXTRA:
        name, largest = max(by_identity.values(), key=lambda entry: entry[1].numel())
        raise ModelError(
            f"The config of {source!r} asks for {n_in_model:,} numbers, most of them for {name} of shape "
            f"{list(largest.shape)}; its weight files hold {n_in_files:,}. Correct the sizes in config.json."
        )


def _refuse_unfit(
    source: str,
    missing: Iterable[str],
    surplus: Iterable[str],
    reshaped: Iterable[str],
    integers: Iterable[str],
) -> None:
    """Raise `ModelError` with the names of tensors that do not fit, if there are any."""
    kinds = {
        "missing": missing,
        "not of this model": surplus,
        "of another shape": reshaped,
        "not floating-point numbers, as in quantised models": integers,
    }
    faults = []
    for kind, unfit in kinds.items():
        names = sorted(unfit)
        if names:
            faults.append(f"{len(names)} {kind} ({_first_few(names)})")
    if faults:
        raise ModelError(
            f"The weights of {source!r} do not fit its config.json: {'; '.join(faults)}. "
            "Rename or convert the tensors, or correct the config: a model of which a part was never loaded "
            "would give numbers all the same."
        )


def _integers(model: nn.Module, tensors: Mapping[str, Header], buffers: set[str]) -> list[str]:
    """The tensors in the files that are integers and that the model would take for weights."""
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    integers = []
    for name, header in tensors.items():
        if header.is_floating_point:
            continue
        is_ignored = any(re.search(pattern, name) for pattern in ignored)
        if not (is_ignored or _is_computed(name, buffers)):
            integers.append(name)
    return integers


def _is_computed(name: str, buffers: set[str]) -> bool:
    """Whether a tensor of a file is one that the model makes itself (masks, positions), or another head's."""
    # Older files lack the base model's prefix.
    is_buffer = any(name == buffer or buffer.endswith(f".{name}") for buffer in buffers)
    return is_buffer or _OTHER_HEADS.search(name) is not None


def _quantisation(config: Any) -> str:
    """The name of the method that a config's weights are quantised with; "" where they are not."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return ""
    if not isinstance(settings, Mapping):
        settings = vars(settings)
    return str(settings.get("quant_method", "unnamed"))


def _snapshot(source: str) -> Path:
    """The folder of the Hub's cache that holds a model's files."""
    from transformers.utils.hub import cached_file

    return Path(str(cached_file(source, "config.json"))).parent


def _two_shapes(name: str, in_file: Sequence[int], in_config: Sequence[int]) -> str:
    return f"{name}: {list(in_file)} in the file, {list(in_config)} by the config"


def _hugging_face_name(name: str) -> str:
    # A bridge of TransformerLens 4.3 wraps each module and so puts this into the names.
    return name.replace("._original_component", "")


def _first_few(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    if len(names) > most:
        shown += f" and {len(names) - most} more"
    return shown
