"""Padding is never attended to: whatever is asked of prompts of several lengths is what each gives alone.

Right values are those of the plain model on single prompts.
"""

import pytest
import torch
import transformers
from closeness import close
from families import make_pairs, model_of, native
from plain_transformers import bridge_of, randomised

import workbench as wb
from workbench.engine.run import run
from workbench.errors import EditError, ModelError
from workbench.models import padding

LENGTHS = (4, 6)
ENCODERS = ("bert", "roberta", "native")


def encoder(name):
    """A plain model that sees the future, and its bridge."""
    if name == "native":
        torch.manual_seed(0)
        model = native(attention_dir="bidirectional")
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        return model, model
    settings = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                "intermediate_size": 48, "max_position_embeddings": 40}  # fmt: skip
    configs = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}
    config = configs[name](**settings)
    config._attn_implementation = "eager"
    plain = randomised(transformers.AutoModelForMaskedLM.from_config(config))
    return plain, bridge_of(plain)


def alone(plain, tokens):
    """The logits of one prompt."""
    with torch.no_grad():
        logits = plain(tokens[None])
    return (logits if isinstance(logits, torch.Tensor) else logits.logits)[0]


@pytest.mark.parametrize(
    "name", [*ENCODERS[:1], *(pytest.param(one, marks=pytest.mark.slow) for one in ENCODERS[1:])]
)
@pytest.mark.filterwarnings("ignore:effects. the integrated effects")  # of two steps, compared with two steps
def test_prompts_of_several_lengths_are_what_each_is_alone(name):
    plain, model = encoder(name)
    pairs = make_pairs(LENGTHS)
    # Token 1 is RoBERTa's padding, which moves its positions: another rule than the one under test.
    pairs.clean.tokens[pairs.clean.tokens == 1] = 2
    pairs.corrupt.tokens[pairs.corrupt.tokens == 1] = 2
    logits = run(model, pairs.clean).logits
    store = wb.capture(model, pairs.clean, sites=["z", "pattern", "resid_post"], progress=False)
    sites = ["z[0.1]", "resid_pre[1]", "v[1.2]"]
    if name == "native":
        sites.append("pattern[1.2]")
    else:
        for method in ("exact", "gradient"):
            with pytest.raises(EditError, match=r"pattern\[0\] of this model cannot be edited"):
                wb.effects(
                    model, pairs, sites=["pattern[1.2]"], value=wb.zero(), method=method, progress=False
                )
    for i, length in enumerate(LENGTHS):
        tokens = pairs.clean.tokens[i, :length]
        assert close(logits[i, :length], alone(plain, tokens))
        single = wb.capture(model, [tokens.tolist()], sites=["z", "pattern", "resid_post"], progress=False)
        for key in (("z", 1), ("pattern", 1), ("resid_post", 1)):
            assert close(store[key].prompt(i), single[key].prompt(0))
    for method in ("exact", "gradient", "integrated", "atp-star"):
        asked = {"sites": sites, "value": wb.scale(0.5), "method": method, "steps": 2, "progress": False}
        together = wb.effects(model, pairs, **asked)
        for i in range(len(LENGTHS)):
            # Of float32 runs, though atp-star's sums are float64.
            single = wb.effects(model, pairs.select([i]), **asked)[0]
            assert close(together[i], single, tolerance=1e-5, scale=5.0), method


def test_circuits_edges_and_paths_of_a_model_that_sees_the_future_are_those_of_each_prompt_alone():
    _, model = encoder("native")
    pairs = make_pairs(LENGTHS)
    asked = {"value": wb.zero(), "progress": False}
    for method in ("exact", "eap-ig-inputs"):
        scores = wb.score_edges(model, pairs, method=method, keep=("example",), **asked)
        for i in range(len(LENGTHS)):
            single = wb.score_edges(model, pairs.select([i]), method=method, keep=("example",), **asked)
            assert close(scores[i], single[0], scale=5.0), method
    full = wb.evaluate(wb.Circuit.full(model), model, pairs, checks=(), **asked)
    assert close(full.faithfulness.values, [1.0], tolerance=1e-5)
    paths = {"senders": ["a0.1"], "receivers": ["a1.2<v>"], "mlps": "frozen", **asked}
    together = wb.path_effects(model, pairs, **paths)
    for i in range(len(LENGTHS)):
        assert close(together[i], wb.path_effects(model, pairs.select([i]), **paths)[0], scale=5.0)


def test_a_store_on_disk_masks_its_padding(tmp_path):
    _, model = encoder("native")
    pairs = make_pairs(LENGTHS)
    disk = wb.capture(model, pairs.clean, sites=["resid_post"], path=tmp_path / "store", progress=False)
    memory = wb.capture(model, pairs.clean, sites=["resid_post"], progress=False)
    for i in range(len(LENGTHS)):
        assert close(disk["resid_post", 1].prompt(i), memory["resid_post", 1].prompt(i))


def test_causal_models_get_no_mask_and_keep_their_bits():
    model, pairs = model_of("llama"), make_pairs(LENGTHS)
    with torch.no_grad():
        plain = model(pairs.clean.tokens)
    assert torch.equal(run(model, pairs.clean).logits, plain)
    assert padding.padding_options(model, pairs.clean.lengths, 6) == {}
    # A model that does not say that it sees the future is found out.
    _, encoder_model = encoder("native")
    encoder_model.cfg.attention_dir = "causal"
    assert "attention_mask" in padding.padding_options(encoder_model, pairs.clean.lengths, 6)


def test_a_model_that_ignores_its_mask_is_refused(monkeypatch):
    _, model = encoder("native")
    monkeypatch.setattr(padding, "_mask", lambda *_: {})
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(
            ModelError, match=r"see those after them, padding included.*prompts of one length"
        ):
            run(model, make_pairs(LENGTHS).clean)
    run(model, make_pairs((5, 5)).clean)


def seq2seq(name):
    small = {"vocab_size": 50, "d_model": 32}
    if name == "t5":
        config = transformers.T5Config(
            **small, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        return transformers.T5ForConditionalGeneration(config)
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder")
             for key, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
    kinds = {
        "bart": ("BartConfig", "BartForConditionalGeneration"),
        "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration"),
    }
    config, kind = (getattr(transformers, each) for each in kinds[name])
    return kind(config(**small, **sides))


@pytest.mark.parametrize(
    "name", ["t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "pegasus"))]
)
def test_encoder_decoders_are_refused_by_name(name):
    with pytest.raises(ModelError, match=r"is an encoder-decoder \(.*ForConditionalGeneration\)"):
        wb.load_model(bridge_of(seq2seq(name).eval()))
