"""A stranger's directory: pipes, paths out of it, absurd sizes and endless nesting are refused before anything is loaded."""

import json
import os
import re
import shutil

import pytest
import torch
from closeness import close
from directories import copy_of, directory, plain, with_config
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench.errors import ModelError
from workbench.models.folder import check_folder, has_tokenizer

TOKENS = torch.tensor([[0, 5, 9, 270, 31]])


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "other"]
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_opened(name, kind, tmp_path):
    folder = copy_of("gpt2", tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(
        ModelError, match=re.escape(f"{str(folder / name)!r} cannot be read: it is a device or a pipe")
    ):
        wb.load_model(folder)


@pytest.mark.parametrize(
    ("family", "entries"),
    [
        ("llama", {"num_attention_heads": -4}),
        ("llama", {"num_hidden_layers": 10**12}),
        ("llama", {"hidden_size": 0}),
        ("llama", {"vocab_size": "300"}),
        ("llama", {"intermediate_size": 48.5}),
        ("llama", {"num_key_value_heads": True}),
        ("gpt2", {"n_layer": -1}),
        ("gpt2", {"n_positions": 10**30}),
        ("neox", {"text_config": {"hidden_size": [32, -1]}}),
        ("native", {"d_model": -32}),
        ("native", {"n_heads": 2**40}),
    ],
)
def test_sizes_that_no_model_has_are_refused_by_name(family, entries, tmp_path):
    folder = with_config(copy_of(family, tmp_path / "model"), **entries)
    name = "hidden_size" if "text_config" in entries else next(iter(entries))
    with pytest.raises(ModelError, match=f"config.json': {name}=.* is not a size: a whole number from 1 to"):
        wb.load_model(folder)


def test_layers_by_kind_are_bounded_where_a_config_lists_them(tmp_path):
    config = {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 6]]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert check_folder(tmp_path) == config
    (tmp_path / "config.json").write_text(json.dumps(config | {"attention_types": [[["global"], 10**9]]}))
    with pytest.raises(ModelError, match="attention_types=1000000000 is not a size"):
        check_folder(tmp_path)


@pytest.mark.parametrize("depth", [70, 100_000])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_json_is_limited_in_depth(name, depth, tmp_path):
    folder = copy_of("llama", tmp_path / "model")
    (folder / name).write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(ModelError, match="it is nested more than 64 deep"):
        wb.load_model(folder)


def test_json_is_limited_in_size_and_has_to_be_an_object(tmp_path):
    folder = copy_of("llama", tmp_path / "model")
    for text, words in {
        '{"a": "' + "x" * 2**22 + '"}': "it has more than 4194304 bytes",
        "[1, 2]": "is not a JSON object",
        "{": "is not JSON",
    }.items():
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match=words):
            wb.load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        wb.load_model(folder)


def sharded(folder, rename=None):
    """The directory with its weights in two shards; `rename` changes the file name that the index has for the second."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    index = {}
    for file, half in halves.items():
        save_file({name: weights[name] for name in half}, folder / file, metadata={"format": "pt"})
        named = rename if rename is not None and file == "model-2.safetensors" else file
        index |= dict.fromkeys(half, named)
    (folder / "model.safetensors").unlink()
    content = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


def test_shards_of_a_folder_load(tmp_path):
    folder = sharded(copy_of("llama", tmp_path / "model"))
    with torch.no_grad():
        assert close(wb.load_model(folder)(TOKENS), plain("llama")(TOKENS).logits)


@pytest.mark.parametrize("place", ["../model-2.safetensors", "/etc/passwd", "a/b.safetensors", "..", 5, ""])
def test_an_index_names_files_of_its_own_folder_only(place, tmp_path):
    folder = sharded(copy_of("llama", tmp_path / "model"), rename=place)
    shutil.copy(folder / "model-2.safetensors", tmp_path)
    words = re.escape(f"names the weight file {place!r}, which is not the name of a file in its own folder")
    with pytest.raises(ModelError, match=words):
        wb.load_model(folder)


def test_a_config_names_weights_of_its_own_folder_only(tmp_path):
    shutil.copy(directory("llama") / "model.safetensors", tmp_path / "outside.safetensors")
    folder = with_config(copy_of("llama", tmp_path / "model"), transformers_weights="../outside.safetensors")
    with pytest.raises(ModelError, match="not the name of a file in its own folder"):
        wb.load_model(folder)


def test_an_adapter_is_not_left_out_in_silence(tmp_path):
    folder = copy_of("llama", tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        wb.load_model(folder)


def test_a_tokenizer_is_any_file_of_one(tmp_path):
    assert not has_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("a")
    assert has_tokenizer(tmp_path)
