"""Edges and circuits of families whose blocks differ: what a reader reads, with right values from plain transformers.

Families without a norm in front of attention and MLP, with norms behind them, with parallel blocks, with queries and
keys normed over all heads, with mixtures of experts; and the refusal of what is not known.
"""

import copy

import family_configs
import numpy as np
import plain_transformers as plain
import pytest
import torch
from closeness import close
from families import build, native

import workbench as wb
from workbench.engine import circuit_check
from workbench.engine.circuits import Circuits
from workbench.engine.hooked import circuits as hooked_circuits
from workbench.engine.hooked.block import Block
from workbench.engine.run import run
from workbench.errors import ModelError, SiteError
from workbench.metrics.metric import metric

FAST = ["flex_olmo"]
REST = ["cohere", "gemma2", "minimax_m2", "olmo2", "olmo3", "exaone4", "olmoe", "starcoder2", "olmo", "phi", "qwen3", "gptj", "bloom", "mpt", "stablelm",
        "mixtral", "qwen2_moe", "qwen3_moe"]  # fmt: skip
FAMILIES = [*FAST, *(pytest.param(family, marks=pytest.mark.slow) for family in REST)]


def circuits_of(model):
    return Circuits(model, wb.Graph.of(model), plain.pairs(), value=wb.zero(), metric=metric("logit_diff"))


@pytest.mark.parametrize("family", FAMILIES)
def test_circuits_edges_and_their_gradients_are_those_of_hooks_in_plain_transformers(family):
    model, pairs = plain.bridge(family), plain.pairs()
    runs = circuits_of(model)
    graph, scale = runs.graph, float(np.abs(runs.full).max())
    assert close(
        runs.full, plain.differences(plain.plain_model(family)).detach(), tolerance=1e-4, scale=scale
    )
    without = graph.exists.copy()
    without[graph.writer_index["a0.0"]] = False
    full, silent = runs.measure(graph.prune(np.stack([graph.exists, without])))
    assert close(full, runs.full, tolerance=1e-4, scale=scale)
    # Dead ends are removed from this circuit: the run must not depend on it.
    assert close(silent, plain.without_head(family), tolerance=1e-4, scale=scale)
    exact, slope = plain.edge(family)
    cell = graph.index("a0.0->m1")
    for method, right in (("exact", exact), ("eap", slope)):
        scores = wb.score_edges(
            model, pairs, value=wb.zero(), method=method, keep=("example",), progress=False
        ).values[:, *cell]
        size = max(scale, float(right.abs().max()))
        assert close(scores, right, tolerance=1e-4, scale=size), method


@pytest.mark.parametrize("family", ["glm4", "gemma2", "gemma3"])
def test_streams_whose_parts_are_nearly_all_cut_keep_their_digits(family):
    """A norm of what rounding leaves of such a stream, behind attention or in front of a reader, would blow it up."""
    single = family_configs.plain_model(family)
    pairs, measured = plain.pairs(), []
    for one in (single, copy.deepcopy(single).double()):
        model = plain.bridge_of(one)
        runs = Circuits(model, wb.Graph.of(model), pairs, value=wb.zero(), metric=metric("nll"))
        kept = np.random.default_rng(0).random((3, *runs.graph.exists.shape)) < 0.7
        circuits = np.concatenate([np.zeros_like(kept[:1]), runs.graph.prune(kept & runs.graph.exists)])
        measured.append(runs.measure(circuits))
    ours, right = measured
    # Nothing is left of the last stream, so that all tokens are alike; no part of these models has a bias.
    assert close(ours[0], np.full(2, np.log(single.config.vocab_size)), tolerance=1e-6)
    assert close(ours.astype(np.float64), right, tolerance=1e-5)


def test_pruning_keeps_what_decides_a_norm_over_all_heads():
    """Where one norm takes in all queries, a head that nobody reads still decides those of the others."""
    alone, joint = plain.bridge("qwen3_moe"), plain.bridge("olmo2")
    for model, kept in ((alone, False), (joint, True)):
        graph = wb.Graph.of(model)
        edges = graph.exists.copy()
        edges[graph.writer_index["a0.0"]] = False
        edges = graph.prune(edges)
        assert bool(edges[:, graph.reader_index["a0.0<q>"]].any()) is kept
        assert wb.Graph.from_dict(graph.to_dict()) == graph
        assert ("joint_heads" in graph.to_dict()) is kept


def test_a_model_whose_readers_are_misread_is_refused_by_name(monkeypatch):
    """A block read wrongly leaves the full circuit right, and only random circuits show it."""
    monkeypatch.setattr(circuit_check, "_found_right", set())
    model, read = plain.bridge_of(plain.plain_model("olmo2")), Block.of
    with monkeypatch.context() as patch:
        patch.setattr(Block, "of", lambda model, layer: read(plain.bridge("flex_olmo"), layer))
        with pytest.raises(ModelError, match=r"not supported|does not add"):
            circuits_of(model)
    with monkeypatch.context() as patch:
        unnormed = staticmethod(lambda model, layer: _without_norms(read(model, layer)))
        patch.setattr(Block, "of", unnormed)
        with pytest.raises(ModelError, match=r"GPT2LMHeadModel\) are not supported: what its blocks read"):
            circuit_check.check_circuits(build("gpt2"), fast=False)
    circuits_of(model)  # a refusal is not remembered as a pass, nor a pass as a refusal


def _without_norms(block):
    return Block(lambda x: x, block.mlp_norm, block.weights, block.biases, block.heads, block.mlp_stream)


def test_a_check_is_made_once_for_the_same_weights(monkeypatch):
    model = build("gpt2")
    circuits_of(model)
    monkeypatch.setattr(circuit_check, "circuit_by_rows", None)
    monkeypatch.setattr(hooked_circuits, "check_parts_add_up", lambda model: None)
    circuits_of(model)
    again = build("gpt2")
    circuits_of(again)
    next(iter(again.parameters())).data += 1
    with pytest.raises(ModelError, match="a first run of them failed"):
        circuits_of(again)


def test_models_without_plain_attention_weights_are_refused_for_edges_and_have_effects():
    model, pairs = latent_attention(), plain.pairs()
    for call in (
        lambda: wb.score_edges(model, pairs, value=wb.zero(), progress=False),
        lambda: wb.evaluate(wb.Circuit.full(model), model, pairs, value=wb.zero(), checks=()),
    ):
        with pytest.raises(ModelError, match=r"Edges and circuits of such models are not supported; effects"):
            call()
    # Of latent attention TransformerLens shows q with heads before positions: head 1 must be head 1.
    got = wb.effects(model, pairs, sites=["q[1.2]", "z[1.2]"], value=wb.zero(), progress=False)
    expected = []
    for name, rows in (("q_proj", slice(2 * 12, 3 * 12)), ("o_proj", slice(2 * 12, 3 * 12))):
        silent = randomised_latent()
        weight = silent.model.layers[1].self_attn.get_submodule(name).weight
        with torch.no_grad():
            if name == "o_proj":
                weight = weight.T
            weight[rows] = 0
            expected.append(plain.differences(silent) - plain.differences(randomised_latent()))
    assert close(got, torch.stack(expected, 1), tolerance=1e-4, scale=10.0)


def randomised_latent():
    import transformers

    config = transformers.DeepseekV2Config(
        **(plain.COMMON | {"num_key_value_heads": 4}), q_lora_rank=None, kv_lora_rank=8, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=12, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        moe_intermediate_size=24, first_k_dense_replace=1, n_group=1, topk_group=1,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return plain.randomised(transformers.AutoModelForCausalLM.from_config(config))


def latent_attention():
    return plain.bridge_of(randomised_latent())


def test_neurons_of_a_mixture_of_experts_are_no_sites():
    """TransformerLens calls the whole output of a mixture its neurons: an edit of one would be of the stream."""
    model = plain.bridge("mixtral")
    with pytest.raises(SiteError, match=r"no mlp_post, because its MLPs are mixtures of experts"):
        wb.effects(model, plain.pairs(), sites=["mlp_post[1:3]"], value=wb.zero())
    assert "mlp_post" not in wb.capture(model, plain.ROWS, progress=False).kinds
    half = latent_attention()  # its first layer is dense
    assert wb.grid("mlp_post", half).layers == (0,)
    with pytest.raises(SiteError, match=r"mlp_post\[1:3\].*mixture of experts.*use mlp_out\[1\]"):
        run(half, plain.ROWS, edits={"mlp_post[1:3]": wb.zero()})


@pytest.mark.parametrize("family", ["olmo2", "gemma2"])
def test_the_stream_between_attention_and_mlp_is_the_sum_where_there_is_one(family):
    model = plain.bridge(family)
    recorded = run(model, plain.ROWS, record=["resid_mid[1]", "resid_pre[1]", "attn_out[1]"]).recorded
    assert torch.equal(recorded["resid_mid", 1], recorded["resid_pre", 1] + recorded["attn_out", 1])


def post_norm(name):
    import transformers

    if name == "opt":
        config = transformers.OPTConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
            max_position_embeddings=64, word_embed_proj_dim=16, do_layer_norm_before=False, pad_token_id=1,
        )  # fmt: skip
    elif name == "bloom":
        config = transformers.BloomConfig(
            vocab_size=60, hidden_size=32, n_layer=2, n_head=4, apply_residual_connection_post_layernorm=True
        )
    else:
        config = transformers.BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
        )
        return plain.randomised(transformers.BertForMaskedLM(config))
    config._attn_implementation = "eager"
    return plain.randomised(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    "name", ["opt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bloom", "bert"))]
)
def test_models_without_such_a_sum_have_no_resid_mid_and_no_circuits(name):
    model = plain.bridge_of(post_norm(name))
    for call in (
        lambda: run(model, plain.ROWS, record=["resid_mid[0]"]),
        lambda: run(model, plain.ROWS, edits={"resid_mid[0]": wb.zero()}),
        lambda: wb.capture(model, plain.ROWS, sites=["resid_mid"], progress=False),
        lambda: wb.effects(model, plain.pairs(), sites=["resid_mid[1]"], value=wb.zero(), progress=False),
    ):
        with pytest.raises(SiteError, match="This model has no resid_mid"):
            call()
    with pytest.raises(ModelError, match="does not add the plain sum"):
        circuits_of(model)


def test_bidirectional_models_keep_edges_at_later_positions():
    """Pruning by position must not take a key after the query for one that nobody sees."""
    for direction, kept in (("causal", False), ("bidirectional", True)):
        graph = wb.Graph.of(native(attention_dir=direction), positions=[1, 3])
        edges = np.zeros_like(graph.exists)
        for name in ("input->a0.0<v>@3", "a0.0->logits@1"):
            edges[graph.index(name)] = True
        assert bool(graph.prune(edges).any()) is kept
