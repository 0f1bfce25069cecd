"""Weights that were never loaded: whatever does not fit is refused by name, in every family; what fits is exact."""

import pickle
import re
from itertools import product

import pytest
import torch
from closeness import close
from directories import copy_of, directory, loaded, plain, with_config, with_weights
from safetensors.torch import load_file

import workbench as wb
from workbench.errors import ModelError
from workbench.models.load import model_source
from workbench.models.weights import check_numbers

FAMILIES = ("llama", "gpt2", "neox", "native")
TOKENS = torch.tensor([[0, 5, 9, 270, 31], [0, 8, 3, 4, 299]])


def a_weight(weights, rank=2):
    """The name of a weight of the last block."""
    return next(
        name for name in sorted(weights, reverse=True) if ".1." in name and len(weights[name].shape) == rank
    )


def absent(weights):
    name = a_weight(weights)
    return {key: weight for key, weight in weights.items() if key != name}, name


def left_over(weights):
    return weights | {"v_head.summary.weight": torch.ones(2, 2)}, "v_head.summary.weight"


def prefixed(weights):
    return {f"module.{key}": weight for key, weight in weights.items()}, a_weight(weights)


def renamed(weights):
    name = a_weight(weights)
    return {key.replace(name, f"{name}_orig"): weight for key, weight in weights.items()}, f"{name}_orig"


def reshaped(weights):
    name = a_weight(weights)
    return weights | {name: weights[name][:1].clone()}, name


def rounded(weights):
    name = a_weight(weights)
    return weights | {name: (weights[name] * 100).to(torch.int8)}, name


def not_a_number(weights):
    name = a_weight(weights, rank=1)
    weights[name][1] = float("nan")
    return weights, name


def infinite(weights):
    name = a_weight(weights)
    weights[name][0, 1] = float("-inf")
    return weights, name


DAMAGES = (absent, left_over, prefixed, renamed, reshaped, rounded, not_a_number, infinite)


# Every damage in one family and every family with one damage; the rest in the slow suite.
CASES = []
for family, damage in product(FAMILIES, DAMAGES):
    marks = [] if family == "llama" or damage is absent else [pytest.mark.slow]
    CASES.append(pytest.param(family, damage, marks=marks, id=f"{family}-{damage.__name__}"))


@pytest.mark.parametrize(("family", "damage"), CASES)
def test_weights_that_do_not_fit_are_refused_by_name(family, damage, tmp_path):
    folder = copy_of(family, tmp_path / "model")
    weights, name = damage(
        {key: weight.clone() for key, weight in load_file(folder / "model.safetensors").items()}
    )
    with_weights(folder, lambda _: weights)
    with pytest.raises(ModelError) as refusal:
        wb.load_model(folder)
    assert str(refusal.value).startswith(repr(str(folder))) or "do not fit its config.json" in str(
        refusal.value
    )
    if damage is not prefixed:  # every name is wrong there, and three are shown
        assert name in str(refusal.value)


def test_the_refusal_counts_what_is_missing_and_what_is_left_over(tmp_path):
    folder = copy_of("llama", tmp_path / "model")
    with_weights(folder, lambda weights: prefixed(weights)[0])
    n = len(load_file(directory("llama") / "model.safetensors"))
    message = (
        f"The weights of {str(folder)!r} do not fit its config.json: {n} missing (lm_head.weight, "
        f"model.embed_tokens.weight, model.layers.0.input_layernorm.weight and {n - 3} more); {n} not of this model "
        f"(module.lm_head.weight, module.model.embed_tokens.weight, module.model.layers.0.input_layernorm.weight and "
        f"{n - 3} more). Rename or convert the tensors, or correct the config: a model of which a part was never loaded "
        "would give numbers all the same."
    )
    with pytest.raises(ModelError, match="^" + re.escape(message) + "$"):
        wb.load_model(folder)


@pytest.mark.parametrize(
    "family",
    ["llama", "gpt2", "neox", *(pytest.param(family, marks=pytest.mark.slow) for family in ("qwen2", "opt"))],
)
def test_a_whole_directory_gives_the_logits_of_plain_transformers(family):
    # GPT-2, Qwen and OPT have no lm_head in their files: a tied one is not missing.
    with torch.no_grad():
        assert close(loaded(family)(TOKENS), plain(family)(TOKENS).logits)


def test_what_a_class_ignores_or_computes_itself_is_no_error(tmp_path):
    older = {
        "neox": {
            "attention.masked_bias": torch.tensor(-1e9),
            "attention.bias": torch.ones(1, 1, 64, 64).bool(),
        },
        "gpt2": {"attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8)},
    }
    block = {"neox": "gpt_neox.layers.0", "gpt2": "transformer.h.0"}
    for family, tensors in older.items():
        folder = copy_of(family, tmp_path / family)
        named = {f"{block[family]}.{name}": tensor for name, tensor in tensors.items()}
        with_weights(folder, lambda weights, named=named: weights | named)
        with torch.no_grad():
            assert close(wb.load_model(folder)(TOKENS), plain(family)(TOKENS).logits)


@pytest.mark.parametrize(
    ("family", "entries", "words"),
    [
        ("llama", {"num_hidden_layers": 1}, "9 not of this model"),
        ("llama", {"num_hidden_layers": 3}, "9 missing"),
        ("llama", {"num_key_value_heads": 4}, "4 of another shape"),
        ("llama", {"vocab_size": 200}, "2 of another shape"),
        ("gpt2", {"n_layer": 1}, "not of this model (transformer.h.1.attn.c_attn.weight"),
        ("gpt2", {"n_positions": 32}, "transformer.wpe.weight: [64, 32] in the file, [32, 32] by the config"),
        ("neox", {"intermediate_size": 64}, "of another shape"),
        ("neox", {"num_hidden_layers": 4}, "missing"),
        ("native", {"n_layers": 1}, "not of this model"),
        ("native", {"d_mlp": 47}, "of another shape"),
        ("native", {"d_vocab": 2**30}, "asks for"),
        ("llama", {"vocab_size": 2**31, "hidden_size": 2**12}, "asks for 17,"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_the_weights_is_refused(family, entries, words, tmp_path):
    folder = with_config(copy_of(family, tmp_path / "model"), **entries)
    with pytest.raises(ModelError, match=re.escape(words)):
        wb.load_model(folder)


def test_a_directory_that_was_damaged_since_is_refused_to_a_worker(tmp_path):
    folder = copy_of("llama", tmp_path / "model")
    model = wb.load_model(folder)
    with_weights(folder, lambda weights: absent(weights)[0])
    with pytest.raises(ModelError, match="1 missing"):
        wb.load_model(**model_source(model))


def test_a_bridge_of_ones_own_is_looked_through_for_nan():
    model = wb.load_model(directory("neox"))
    assert wb.load_model(model) is model
    name, weight = next(iter(model.original_model.named_parameters()))
    weight.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match=re.escape(name.replace("._original_component", ""))):
        wb.load_model(model)


def test_numbers_too_large_for_the_precision_asked_for_are_refused(tmp_path):
    folder = copy_of("llama", tmp_path / "model")
    with_weights(folder, lambda weights: weights | {"lm_head.weight": weights["lm_head.weight"] + 1e5})
    wb.load_model(folder)
    with pytest.raises(ModelError, match=r"lm_head\.weight.*load it as float32"):
        wb.load_model(folder, dtype="float16")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_precision_is_looked_through(dtype):
    weight = torch.zeros(3, 4, dtype=dtype)
    check_numbers([("w", weight), ("empty", weight[:0])], "model")
    for worst in ("nan", "inf", "-inf"):
        bad = weight.clone()
        bad[1, 2] = float(worst)
        with pytest.raises(ModelError, match="in 1 of 1 tensors: w"):
            check_numbers([("w", bad)], "model")


class _Opened:
    """A pickle that says when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("decoy", ["other.safetensors", "model.safetensors"])
def test_a_pickle_beside_the_weights_is_never_read(decoy, tmp_path):
    folder = copy_of("gpt2", tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Opened(tmp_path / "read")))
    if decoy == "model.safetensors":
        with torch.no_grad():
            assert close(wb.load_model(folder)(TOKENS), plain("gpt2")(TOKENS).logits)
    else:
        (folder / "model.safetensors").rename(folder / decoy)
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            wb.load_model(folder)
    assert not (tmp_path / "read").exists()
