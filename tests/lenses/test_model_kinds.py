"""Lenses and attribution on mixtures of experts, projections before the unembedding and scaled logits.

The right logits are those of plain transformers.
"""

import plain_transformers as plain
import pytest
import torch
import transformers
from closeness import close, distance
from families import make_pairs, model_of, native

import workbench as wb
from workbench.errors import ModelError, PromptError

TARGETS, MINUS = (torch.tensor(tokens) for tokens in (plain.ANSWERS, plain.WRONG))


def attributed(model, by):
    store = wb.capture(model, plain.ROWS, progress=False)
    return wb.direct_attribution(store, model, targets=TARGETS, minus=MINUS[:, None, None], by=by)


@pytest.mark.parametrize(
    "family",
    [
        "flex_olmo",
        *(pytest.param(family, marks=pytest.mark.slow) for family in ("mixtral", "qwen2_moe", "olmoe")),
    ],
)
def test_parts_of_a_mixture_of_experts_sum_to_the_logit_difference(family):
    model = plain.bridge(family)
    right = plain.differences(plain.plain_model(family)).detach()
    for by in ("component", "head"):
        assert distance(attributed(model, by).sum("component"), right, scale=20.0) < 1e-5
    with pytest.raises(ModelError, match=r"by='neuron'\): the MLP of layer 0 has no neurons of its own"):
        attributed(model, "neuron")


def test_a_mixture_that_scales_what_it_adds_has_components_and_no_heads():
    """TransformerLens shows attention's output as it is added, but z before it is scaled."""
    right = plain.differences(plain.plain_model("granitemoe")).detach()
    assert (
        distance(attributed(plain.bridge("granitemoe"), "component").sum("component"), right, scale=20.0)
        < 1e-5
    )
    with pytest.raises(ModelError, match="do not sum to its logits"):
        attributed(plain.bridge("granitemoe"), "head")


def opt(**settings):
    config = transformers.OPTConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48,
        max_position_embeddings=64, pad_token_id=1, **settings,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return plain.randomised(transformers.AutoModelForCausalLM.from_config(config))


def test_the_lens_passes_the_projection_before_the_unembedding():
    """OPT-350m's shape: embeddings narrower than the stream."""
    hf = opt(word_embed_proj_dim=16, do_layer_norm_before=False)
    model = plain.bridge_of(hf)
    store = wb.capture(model, plain.ROWS, sites=["resid_post"], progress=False)
    with torch.no_grad():
        logits = hf(torch.tensor(plain.ROWS)).logits
    right = logits[torch.arange(2), :, TARGETS] - logits[torch.arange(2), :, MINUS]
    lens = wb.logit_lens(store, model, targets=TARGETS, minus=MINUS[:, None, None])
    assert close(lens[:, -1], right)
    entropy = wb.logit_lens(store, model, measure="entropy")[:, -1]
    assert close(entropy, torch.distributions.Categorical(logits=logits).entropy())
    # Its norms come after the sums, so that no part adds itself to the stream.
    with pytest.raises(ModelError, match="do not sum to its logits"):
        attributed(model, "component")


def test_a_projection_after_a_norm_that_the_bridge_leaves_out_is_refused():
    """TransformerLens 4.3 shows no final norm where there is a projection, and OPT with norms in front has both."""
    model = plain.bridge_of(opt(word_embed_proj_dim=16, do_layer_norm_before=True))
    store = wb.capture(model, plain.ROWS, sites=["resid_post"], progress=False)
    with pytest.raises(ModelError, match="not its final norm and unembedding"):
        wb.logit_lens(store, model, targets=TARGETS, minus=MINUS[:, None, None])


@pytest.mark.parametrize(("build", "family"), [(plain.bridge, "cohere"), (model_of, "granite")])
def test_a_precision_for_reading_out_is_refused_where_logits_are_scaled(build, family):
    """Both multiply their logits after the unembedding, which reading out by hand would leave out."""
    with pytest.raises(ModelError, match="cannot be read out in another precision"):
        wb.effects(
            build(family), make_pairs(), sites=["z[0.0]"], value=wb.zero(), readout=torch.float64,
            progress=False,
        )  # fmt: skip


def test_a_precision_for_reading_out_keeps_the_soft_cap():
    model = plain.bridge("gemma2")
    asked = {"sites": ["z[0.0]", "mlp_out[2]"], "value": wb.zero(), "progress": False}
    wide = wb.effects(model, plain.pairs(), readout=torch.float64, **asked)
    assert close(wide, wb.effects(model, plain.pairs(), **asked), tolerance=1e-5, scale=20.0)
    right = plain.without_head("gemma2") - plain.differences(plain.plain_model("gemma2")).detach()
    assert close(wide[:, 0], right, tolerance=1e-5, scale=20.0)


def test_lenses_read_the_tokens_that_a_model_has_logits_of():
    model = native(d_vocab_out=40)
    store = wb.capture(model, [[1, 5, 9], [1, 30, 7]], progress=False)
    logits = wb.run(model, store.prompts).logits[:, -1]
    top = wb.top_tokens(store, model, k=40)
    assert top["token"].values[0, -1, -1].tolist() == logits[0].argsort(descending=True).tolist()
    for refused in (
        lambda: wb.logit_lens(store, model, targets=torch.tensor([3, 45])),
        lambda: wb.logit_lens(store, model, measure="entropy", vocabulary=[1, 45]),
        lambda: wb.top_tokens(store, model, k=41),
        lambda: wb.direct_attribution(store, model, targets=torch.tensor([3, 45])),
        lambda: wb.copying_scores(store, model, top=21),
        lambda: wb.copying_scores(wb.capture(model, [[1, 45]], progress=False), model),
    ):
        with pytest.raises(PromptError, match=r"40|39|20"):
            refused()
