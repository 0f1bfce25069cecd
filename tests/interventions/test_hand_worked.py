"""A model small enough for paper: one layer, two heads, two neurons, no norm, no biases, attention that averages.

Tokens a b c d embed as 2 in dimension 0 1 2 3. Both heads attend to both of two tokens equally. Head 0 reads dimensions 0, 1
and writes them to 3, 2; head 1 reads 2, 3 and writes them to 0, 1. Neuron 0 is relu(x1 + x3) and writes 2 into dimension 0;
neuron 1 is relu(x0 - x3) and writes 5 into dimension 1. The logits are the stream; the metric is logit 0 - logit 1 at the end.

    clean   "a b":  z0 (1,1)  z1 (0,0)  attention (0,0,1,1)  middle (0,2,1,1)  neurons 3, 0  end (6,2,1,1)   metric  4
    corrupt "c b":  z0 (0,1)  z1 (1,0)  attention (1,0,1,0)  middle (1,2,1,0)  neurons 2, 1  end (5,7,1,0)   metric -2
"""

import pytest
import torch
from closeness import close
from families import native

from workbench.circuit.circuit import Circuit
from workbench.discovery.scores import score_edges
from workbench.engine.capture import capture_pairs
from workbench.engine.run import run
from workbench.engine.values import constant, from_store, zero
from workbench.evaluation.evaluate import evaluate
from workbench.interventions.effects import effects
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts

CLEAN, CORRUPT = [0, 1], [2, 1]


@pytest.fixture(scope="module")
def worked():
    model = native(
        n_layers=1, n_heads=2, d_model=4, d_head=2, d_mlp=2, n_ctx=4, d_vocab=4, normalization_type=None
    )
    weights = {
        "tok_embed": 2 * torch.eye(4),
        "attn._original_component.v": torch.eye(4),
        "attn._original_component.o": torch.tensor(
            [[0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
        ).T,
        "fc_in": torch.tensor([[0, 1, 0, 1], [1, 0, 0, -1]]),
        "fc_out": torch.tensor([[2, 0], [0, 5], [0, 0], [0, 0]]),
        "head": torch.eye(4),
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_()
            for part, weight in weights.items():
                if f"{part}._original_component.weight" in name:
                    parameter.copy_(weight)
    pairs = PromptPairs(
        Prompts.of([CLEAN]), Prompts.of([CORRUPT]), torch.tensor([[[0]]]), torch.tensor([[[1]]])
    )
    kinds = ["resid_pre", "resid_mid", "attn_out", "mlp_out", "v", "z", "pattern", "mlp_post"]
    return model, pairs, *capture_pairs(model, pairs, sites=kinds)


def test_the_runs_are_as_on_paper(worked):
    model = worked[0]
    sites = ["z[0]", "attn_out[0]", "resid_mid[0]", "mlp_post[0]", "resid_post[0]"]
    paper = {
        0: ([[1, 1], [0, 0]], [0, 0, 1, 1], [0, 2, 1, 1], [3, 0], [6, 2, 1, 1]),
        2: ([[0, 1], [1, 0]], [1, 0, 1, 0], [1, 2, 1, 0], [2, 1], [5, 7, 1, 0]),
    }
    for first, rows in paper.items():
        result = run(model, [[first, 1]], record=sites)
        for site, expected in zip(sites, rows, strict=True):
            assert result.recorded[site.removesuffix("[0]"), 0][0, -1].tolist() == expected
        assert result.logits[0, -1].tolist() == rows[-1]


def test_noising_effects_are_as_on_paper(worked):
    model, pairs, _, corrupt = worked
    paper = {
        "z[0.0]": -2,  # attention (0,0,1,0), middle (0,2,1,0), neurons 2 0, end (4,2): 2
        "z[0.1]": 1,  # attention (1,0,1,1), middle (1,2,1,1), neurons 3 0, end (7,2): 5
        ("z[0.0]", "z[0.1]"): -6,  # both make it the corrupt run, though one alone made it better
        "attn_out[0]": -6,
        "mlp_out[0]": -7,  # (4,5) for (6,0)
        "resid_pre[0]@0": -6,
        "resid_pre[0]@1": 0,
        "resid_mid[0]": -6,
        "mlp_post[0:0]": -2,  # 2 for 3
        "mlp_post[0:1]": -5,  # 1 for 0
        "v[0.0]@0": -2,
        "v[0.1]@0": 1,
        "pattern[0.0]": 0,
        "z[0.0]@0": 0,
    }
    got = effects(model, pairs, sites=list(paper), value=from_store(corrupt))
    assert got[0].values.tolist() == list(paper.values())


def test_denoising_effects_are_as_on_paper(worked):
    model, pairs, clean, _ = worked
    paper = {
        "z[0.0]": 7,  # attention (1,0,1,1), middle (1,2,1,1), neurons 3 0, end (7,2): 5
        "z[0.1]": 4,  # attention (0,0,1,0), middle (0,2,1,0), neurons 2 0, end (4,2): 2
        "mlp_out[0]": 7,  # (1,2) + (6,0): 5
        "resid_pre[0]@0": 6,
    }
    got = effects(model, pairs, sites=list(paper), value=from_store(clean), base="corrupt")
    assert got[0].values.tolist() == list(paper.values())


def test_ablations_are_as_on_paper(worked):
    model, pairs, _, _ = worked
    got = effects(model, pairs, sites=["z[0.0]", "mlp_post[0:0]", "mlp_out[0]", "pattern[0.0]"], value=zero())
    assert got[0].values.tolist() == [-2, -6, -6, -2]
    got = effects(model, pairs, sites=["mlp_post[0:1]", "z[0.1]"], value=constant(2.0))
    assert got[0].values.tolist() == [-10, -1]  # end (6,12); middle (2,4,1,1), neurons 5 1, end (12,9)


def test_gradients_are_as_on_paper(worked):
    model, pairs, _, corrupt = worked
    paper = {
        "z[0.0]": -2,  # loses 1 in dimension 3, which neuron 0 doubles
        "z[0.1]": 1,  # gains 1 in dimension 0; neuron 1 is off
        ("z[0.0]", "z[0.1]"): -1,  # the exact effect is -6: neuron 1 switches on
        "mlp_out[0]": -7,
        "mlp_post[0:1]": -5,
    }
    got = effects(model, pairs, sites=list(paper), value=from_store(corrupt), method="gradient")
    assert got[0].values.tolist() == list(paper.values())


def test_edge_scores_are_as_on_paper(worked):
    model, pairs, _, corrupt = worked
    scores = score_edges(model, pairs, value=from_store(corrupt))
    paper = {
        (
            "input",
            "a0.0<v>",
        ): 2,  # (2,0,-2,0) at the first token; half of dimension 0 reaches dimension 3, doubled
        ("input", "a0.1<v>"): -1,
        ("a0.0", "m0"): 2,
        ("a0.1", "logits"): -1,
        ("m0", "logits"): 7,  # (2,-5)
    }
    zeros = [
        ("input", "a0.0<q>"),
        ("input", "a0.1<k>"),
        ("input", "m0"),
        ("input", "logits"),
        ("a0.1", "m0"),
        ("a0.0", "logits"),
    ]
    for writer, reader in paper:
        assert float(scores.sel(writer=writer, reader=reader)) == paper[writer, reader]
    for writer, reader in zeros:
        assert float(scores.sel(writer=writer, reader=reader)) == 0
    by_pos = score_edges(model, pairs, value=from_store(corrupt), keep=("pos",))
    assert by_pos.sel(writer="input", reader="a0.0<v>").values.tolist() == [2, 0]
    assert by_pos.sel(writer="m0", reader="logits").values.tolist() == [0, 7]


def test_a_circuit_is_as_on_paper(worked):
    """Without a0.1 the metric is 5: middle (1,2,1,1), neurons 3 0, end (0,2,0,0) + (0,0,1,0) + (1,0,0,0) + (6,0,0,0)."""
    model, pairs, _, corrupt = worked
    circuit = Circuit.of(Circuit.full(model).graph, ["input->a0.0<v>", "a0.0->m0", "m0->logits"])
    result = evaluate(
        [circuit, Circuit.full(model), Circuit.empty(model)],
        model,
        pairs,
        value=from_store(corrupt),
        checks=(),
    )
    assert result.m_circuit[:, 0].values.tolist() == [5, 4, -2]
    assert (float(result.m_full[0]), float(result.m_empty[0])) == (4, -2)
    assert close(result.faithfulness, [7 / 6, 1, 0], tolerance=1e-5)
    zeroed = evaluate([circuit, Circuit.empty(model)], model, pairs, value=zero(), checks=())
    # neuron 0 reads (0,0,1,1), what a0.0 writes, and the logits read what it writes, (2,0,0,0)
    assert zeroed.m_circuit[:, 0].values.tolist() == [2, 0]
