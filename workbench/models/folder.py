"""A model's directory, looked through before anything in it is loaded.

Read `check_folder`. A directory may come from a stranger: files that block or never end (pipes, devices),
weight files outside of the folder, and configs that are huge, deeply nested or ask for absurd sizes are
refused here by name. Nothing is loaded in this module, and nothing is allocated.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.documents import parse_json
from workbench.errors import ModelError
from workbench.files import check_ordinary, read_bytes

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

# JSON that transformers reads beside the config. tokenizer.json and vocab.json are long, and left out.
_SETTINGS = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Real configs have a few hundred kilobytes at most, and an index of the largest models ten megabytes.
_CONFIG_BYTES, _INDEX_BYTES = 2**22, 2**26

# A directory with none of these has no tokenizer; one with any of them has to have a whole one.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
    "tekken.json",
)  # fmt: skip

# What sizes are called in configs of Hugging Face and TransformerLens. Their bounds, in `_LARGEST`, are far
# above any model.
_COUNTS = (
    "num_hidden_layers", "num_layers", "num_transformer_layers", "n_layer", "n_layers", "attention_types",
    "num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads",
    "n_key_value_heads",
)  # fmt: skip
_WIDTHS = (
    "hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "n_inner", "d_mlp", "d_ff",
    "head_dim", "d_head",
)  # fmt: skip
_LENGTHS = (
    "vocab_size", "d_vocab", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len",
    "max_sequence_length",
)  # fmt: skip
_LARGEST: dict[str, int] = {
    **dict.fromkeys(_COUNTS, 2**12),
    **dict.fromkeys(_WIDTHS, 2**20),
    **dict.fromkeys(_LENGTHS, 2**31),
}
# Numbers of experts may be 0: such a model has none.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "moe_num_experts")
_LARGEST |= dict.fromkeys(_EXPERTS, 2**12)


def check_folder(folder: Path) -> dict[str, Any]:
    """The config of a model's directory, all of which is fit to be loaded.

    Raises:
        ModelError: the directory holds pipes or devices, files of JSON that are none, an index that names
            files elsewhere, or an adapter; it has no config.json, or one with sizes that no model has.
    """
    for entry in folder.iterdir():
        # A link that leads nowhere is nothing to be opened.
        if entry.exists() and not entry.is_dir():
            _check_ordinary(entry)
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"The directory {str(folder)!r} has no config.json. "
            "A local model is a Hugging Face directory with config.json and *.safetensors."
        )
    config = read_config(folder)
    for name in _SETTINGS:
        if (folder / name).is_file():
            read_json(folder / name, _CONFIG_BYTES)
    for index in folder.glob("*.safetensors.index.json"):
        shards(index)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"The directory {str(folder)!r} holds an adapter (adapter_config.json), which would be left out. "
            "Merge it into its model (merge_and_unload, then save_pretrained) and load that directory."
        )
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a directory's config.json. Raises `ModelError` for sizes that no model has."""
    path = folder / CONFIG
    config = read_json(path, _CONFIG_BYTES)
    for name, number in _sizes(config):
        least = 0 if name in _EXPERTS else 1
        if type(number) is not int or not least <= number <= _LARGEST[name]:
            raise ModelError(
                f"{str(path)!r}: {name}={number!r} is not a size: "
                f"a whole number from {least} to {_LARGEST[name]:,} is needed."
            )
    return config


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files that transformers reads a directory's weights from: one, or the shards of an index."""
    name = config.get("transformers_weights") or WEIGHTS
    path = folder / _name_in_folder(name, folder / CONFIG)
    if name == WEIGHTS and not path.is_file():
        path = folder / INDEX
    if path.name.endswith(".index.json"):
        return shards(path)
    return [path]


def shards(index: Path) -> list[Path]:
    """The files that an index of weights names.

    Raises:
        ModelError: it is not an index, or it names files outside of its folder.
    """
    weight_map = read_json(index, _INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{str(index)!r} is not an index of weights: it has no weight_map.")
    names = dict.fromkeys(_name_in_folder(name, index) for name in weight_map.values())
    return [index.parent / name for name in names]


def has_tokenizer(folder: Path) -> bool:
    """Whether a directory holds any file of a tokenizer."""
    return any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES)


def read_json(path: Path, most: int) -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelError` for anything else, or more than `most` bytes."""
    try:
        content = parse_json(read_bytes(path, most=most))
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{str(path)!r} is not a JSON object.")
    return content


def _sizes(content: Any) -> Iterator[tuple[str, Any]]:
    """The sizes in a config and in the configs within it, by name; None stands for a default."""
    if isinstance(content, dict):
        for name, entry in content.items():
            if name in _LARGEST:
                yield from ((name, number) for number in _numbers(entry))
            else:
                yield from _sizes(entry)


def _numbers(entry: Any) -> Iterator[Any]:
    """A size, or the sizes of every layer where a list gives them."""
    if isinstance(entry, list):
        for inner in entry:
            # GPT-Neo lists kinds of attention by name, each with a number of layers.
            if not isinstance(inner, str):
                yield from _numbers(inner)
    elif entry is not None:
        yield entry


def _name_in_folder(name: Any, source: Path) -> str:
    """A name of a file beside `source`, which names it. Raises `ModelError` for a path to anywhere else."""
    is_plain = isinstance(name, str) and name == Path(name).name and "\\" not in name
    if not is_plain or name in ("", ".."):
        raise ModelError(
            f"{str(source)!r} names the weight file {name!r}, which is not the name of a file in its own "
            "folder. Put the file there, and name it without a path."
        )
    return name


def _check_ordinary(path: Path) -> None:
    """Raise `ModelError` for a pipe or a device, which transformers would open."""
    try:
        check_ordinary(path)
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
