"""GGUF files: the model and the tokenizer that went in come out, and what would be left out is refused."""

import re

import numpy as np
import pytest
import torch
from closeness import close
from directories import CONFIGS, save, tokenizer

import workbench as wb
from workbench.errors import ModelError
from workbench.models import gguf
from workbench.models.load import model_name, model_source


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(CONFIGS["llama"](), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def write():
    pytest.importorskip("gguf")
    from gguf_files import write

    return write


def test_a_file_gives_the_model_and_the_tokens_that_went_in(write, llama, tmp_path):
    file = write(tmp_path / "small.gguf", llama)
    # What lies beside the file is of another model.
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    model = wb.load_model(file)
    tokens = torch.tensor([[0, 5, 9, 200, 7]])
    with torch.no_grad():
        assert close(model(tokens), llama(tokens).logits)
    assert model_name(model) == "small"
    text = "the red cat sat"
    assert wb.read_corpus(model, [text]).tokens.tolist() == [tokenizer()(text).input_ids]
    again = wb.load_model(**model_source(model))
    assert wb.model_fingerprint(again) == wb.model_fingerprint(model)
    assert next(wb.load_model(file, dtype="bfloat16").parameters()).dtype == torch.bfloat16


def test_tensors_that_are_missing_or_left_over_are_refused(write, llama, tmp_path):
    numbers = sum(weight.numel() for weight in llama.parameters())
    file = write(tmp_path / "over.gguf", llama, extra={"rope_freqs.weight": np.ones(4, dtype=np.float32)})
    message = (
        f"transformers reads only a part of {str(file)!r} as a LlamaForCausalLM: the file holds {numbers + 4:,} "
        f"numbers and the model has {numbers:,}. A model of which a part was left out would give numbers all the "
        "same: load it as a Hugging Face directory (config.json, *.safetensors, tokenizer.json)."
    )
    with pytest.raises(ModelError, match="^" + re.escape(message) + "$"):
        wb.load_model(file)
    file = write(tmp_path / "less.gguf", llama, without=["blk.1.ffn_up.weight"])
    with pytest.raises(ModelError, match=re.escape("1 missing (model.layers.1.mlp.up_proj.weight)")):
        wb.load_model(file)


def test_a_split_that_transformers_does_not_know_is_said(write, llama, tmp_path):
    file = write(tmp_path / "own.gguf", llama, split="of-its-own")
    with pytest.warns(
        UserWarning, match=re.escape(f"{str(file)!r} splits texts before merging as 'of-its-own'")
    ):
        gguf.convert(file, tmp_path)


def test_what_is_no_such_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "_PACKAGES", ())
    with pytest.raises(ModelError, match="cannot be read: No such file or directory"):
        wb.load_model(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ModelError, match=r"cannot be read as a GGUF model: .*A Hugging Face directory"):
        wb.load_model(tmp_path / "text.gguf")


def test_without_the_extra_its_name_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "gguf" else object())
    message = (
        "GGUF files are read with the packages gguf and accelerate; not installed: gguf. Install the extra: "
        "pip install 'interp-workbench[gguf]'."
    )
    with pytest.raises(ModelError, match="^" + re.escape(message) + "$"):
        wb.load_model(tmp_path / "any.gguf")
