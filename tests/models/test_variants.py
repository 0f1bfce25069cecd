"""Directories of unusual kinds: without a tokenizer, quantised, or of a shape that TransformerLens gets wrong."""

import re

import pytest
import torch
import transformers
from closeness import close
from directories import D_VOCAB, copy_of, loaded, plain, save, with_config

import workbench as wb
from workbench.errors import ModelError, PromptError
from workbench.models.fingerprint import tokenizer_fingerprint

ROWS = [[0, 5, 9, 270], [0, 8, 3, 4]]
SMALL = {"vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(family, marks=pytest.mark.slow) for family in ("gpt2", "opt"))]
)
def test_a_directory_without_a_tokenizer_is_the_same_model(family):
    model = loaded(family, with_tokenizer=False)
    assert model.tokenizer is None
    assert tokenizer_fingerprint(model) == "none"
    assert wb.model_fingerprint(model) == wb.model_fingerprint(loaded(family))
    result = wb.run(model, ROWS, edits={"z[1.2]": wb.scale(1.0)})
    with torch.no_grad():
        assert close(result.logits, plain(family)(torch.tensor(ROWS)).logits)


@pytest.mark.parametrize("family", ["llama", "native"])
def test_token_ids_are_all_that_a_model_without_a_tokenizer_needs(family, tmp_path):
    model = loaded(family, with_tokenizer=False)
    assert model.tokenizer is None
    store = wb.capture(model, ROWS, progress=False)
    assert store.prompts.strings[0] == ("0", "5", "9", "270")
    assert store.tokenizer == "none"
    assert not store.prompts.bos
    lens = wb.top_tokens(store, model, k=2)
    last = wb.run(model, ROWS).logits[0, -1].argmax()
    assert str(int(last)) == str(lens["token"].isel(example=0, layer=-1, pos=3, rank=0).values)
    with pytest.raises(PromptError, match="This model has no tokenizer"):
        wb.run(model, ["the red cat"])


def test_a_tokenizer_that_is_broken_is_not_taken_for_none(tmp_path):
    folder = copy_of("llama", tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="fit, but its tokenizer cannot be loaded"):
        wb.load_model(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_a_directory_that_asks_for_quantised_weights_is_refused_by_name(method, tmp_path):
    asked = {"quant_method": method, "load_in_4bit": True, "bits": 4, "group_size": 16}
    folder = with_config(copy_of("llama", tmp_path / "model"), quantization_config=asked)
    with pytest.raises(ModelError, match=f"asks for quantised weights .*: {method}.*dequantize"):
        wb.load_model(folder)


FALCON = {"new_decoder_architecture": True, "bias": False}
SHAPES = {
    "falcon-40b": (transformers.FalconConfig, {**FALCON, "num_kv_heads": 2}, "new_decoder_architecture=True"),
    # As many kv heads as heads: TransformerLens loads it and takes rows of queries for keys.
    "falcon-all-heads": (
        transformers.FalconConfig, {**FALCON, "multi_query": False}, "new_decoder_architecture=True"
    ),
    "neox-without-bias": (transformers.GPTNeoXConfig, {"attention_bias": False}, "attention_bias=False"),
}  # fmt: skip


@pytest.mark.parametrize(
    "shape",
    [
        "falcon-all-heads",
        *(pytest.param(shape, marks=pytest.mark.slow) for shape in ("falcon-40b", "neox-without-bias")),
    ],
)
def test_what_transformer_lens_gets_wrong_is_refused_with_the_option(shape, tmp_path):
    config, options, words = SHAPES[shape]
    save(config(**SMALL, **options), tmp_path)
    with pytest.raises(ModelError, match=re.escape(words)):
        wb.load_model(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="7b", marks=pytest.mark.slow),
        pytest.param({"multi_query": False, "alibi": True}, id="rw-1b"),
    ],
)
def test_the_other_shapes_of_falcon_load(options, tmp_path):
    model = save(transformers.FalconConfig(**SMALL, **options), tmp_path)
    with torch.no_grad():
        assert close(wb.load_model(tmp_path)(torch.tensor(ROWS)), model(torch.tensor(ROWS)).logits)


def test_models_with_an_encoder_are_refused_by_name(tmp_path):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": D_VOCAB}
    save(transformers.T5Config(**sizes, decoder_start_token_id=0), tmp_path)
    with pytest.raises(ModelError, match=r"is an encoder-decoder \(T5ForConditionalGeneration\)"):
        wb.load_model(tmp_path)
