"""Loading: embedded names, directories, Hub names without a network, bridges; always eval mode."""

import re
import shutil
import socket

import pytest
import torch
from closeness import close
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench import resources
from workbench.errors import ModelError, UnknownName
from workbench.models import embedded, fingerprint
from workbench.models.load import check_eval, model_name

TINY = resources.data() / "models" / "tiny"


def test_the_embedded_model_loads_in_eval_mode_and_equals_hugging_face():
    model = wb.load_model("tiny", device="cpu")
    assert not model.training
    assert model_name(model) == "tiny"
    tokens = torch.randint(2, 378, (3, 20), generator=torch.Generator().manual_seed(0))
    plain = GPT2LMHeadModel.from_pretrained(TINY, attn_implementation="eager").eval()
    with torch.no_grad():
        assert close(model(tokens), plain(tokens).logits)


def test_a_directory_and_its_embedded_twin_have_one_fingerprint(tmp_path):
    shutil.copytree(TINY, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "*.py"))
    assert wb.model_fingerprint(wb.load_model(tmp_path / "copy")) == wb.model_fingerprint(
        wb.load_model("tiny")
    )


def test_checkpoints_are_other_models_and_an_unknown_step_lists_those_there_are():
    steps = embedded.steps("tiny")
    assert len(steps) >= 8
    assert 1500 in steps
    prints = {wb.model_fingerprint(wb.load_model(f"tiny@{step}")) for step in steps[:3]}
    assert len(prints) == 3
    early = wb.load_model("tiny@1500")
    assert next(early.parameters()).dtype == torch.float32
    assert model_name(early) == "tiny@1500"
    with pytest.raises(UnknownName, match=re.escape("checkpoint='tiny@7' is not known.")):
        wb.load_model("tiny@7")


def test_a_bridge_passes_through_and_is_put_into_eval_mode():
    model = wb.load_model("tiny")
    model.train()
    with pytest.raises(
        ModelError,
        match=re.escape("The model is in train mode, so its numbers are random. Call model.eval() first."),
    ):
        check_eval(model)
    assert wb.load_model(model) is model
    assert not model.training


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(dtype: str):
    assert next(wb.load_model("tiny", dtype=dtype).parameters()).dtype == getattr(torch, dtype)


def test_an_unknown_dtype_is_named():
    with pytest.raises(UnknownName) as caught:
        wb.load_model("tiny", dtype="float31")
    assert str(caught.value).startswith("dtype='float31' is not known. Did you mean 'float32'")


def test_large_models_are_hashed_in_threads_to_the_same_fingerprint(monkeypatch):
    model = wb.load_model("tiny")
    alone = wb.model_fingerprint(model)
    monkeypatch.setattr(fingerprint, "_HASH_IN_THREADS", 0)
    assert wb.model_fingerprint(model) == alone


def test_weights_changed_in_place_change_the_fingerprint():
    model = wb.load_model("tiny")
    before = wb.model_fingerprint(model)
    assert wb.model_fingerprint(model) == before
    next(model.parameters()).data.mul_(0.5)
    assert wb.model_fingerprint(model) != before


def test_a_hub_name_without_a_network_says_what_to_do(monkeypatch):
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    message = (
        "'someone/some-model' is not an embedded model (induction, shortcut, tiny) nor a local directory, and the Hugging Face Hub cannot be "
        "reached. Offline, copy the model's directory to this machine (config.json, *.safetensors, tokenizer.json) and "
        "pass its path, or use load_model('tiny')."
    )
    with pytest.raises(ModelError, match="^" + re.escape(message) + "$"):
        wb.load_model("someone/some-model")


def test_a_directory_that_is_not_there_is_named():
    for source in ("./nothing/here", "/no/such/dir", "~/x", ""):
        with pytest.raises(ModelError) as caught:
            wb.load_model(source)
        message = f"There is no model directory {source!r}. Embedded models: induction, shortcut, tiny."
        assert str(caught.value) == message


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"A model is a name, a directory or a TransformerBridge, not int\."):
        wb.load_model(3)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"has no \*\.safetensors\. Other weight files can run code when they are read"
    ):
        wb.load_model(tmp_path)
    with pytest.raises(ModelError, match="There is no device 'gpu'"):
        wb.load_model("tiny", device="gpu")


def test_a_submodule_in_train_mode_is_noticed():
    model = wb.load_model("tiny")
    model.original_model.train()
    with pytest.raises(ModelError, match="train mode"):
        wb.run(model, [[0, 5]])


def test_models_that_differ_in_configuration_only_are_different():
    models = []
    for theta in (1e4, 1e2):
        torch.manual_seed(0)
        config = LlamaConfig(
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, hidden_size=16, intermediate_size=16, vocab_size=20,
            rope_parameters={"rope_theta": theta, "rope_type": "default"},
        )  # fmt: skip
        models.append(
            build_bridge_from_module(LlamaForCausalLM(config), "LlamaForCausalLM", hf_config=config).eval()
        )
    assert wb.model_fingerprint(models[0]) != wb.model_fingerprint(models[1])


def test_a_truncated_weight_file_is_refused(tmp_path):
    shutil.copytree(TINY, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "*.py"))
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        wb.load_model(tmp_path / "copy")


def test_the_embedded_files_stay_small():
    assert sum(path.stat().st_size for path in TINY.glob("*.*")) < 6 * 2**20
    assert sum(path.stat().st_size for path in (TINY / "checkpoints").iterdir()) < 22 * 2**20
