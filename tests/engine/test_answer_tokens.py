"""Which tokens an edit covers where answers have several: against plain transformers, whose output maps are given
an edited input, and on both engines.
"""

import copy
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from closeness import close
from families import model_of
from torch import Tensor

import workbench as wb
from workbench.circuit.graph import Graph
from workbench.engine.continuations import bind
from workbench.metrics.continuations import expand
from workbench.prompts.answers import padded_answers
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sweeps.inputs import JobSetting
from workbench.sweeps.jobs import _meaning

DIFF = "sequence_logprob_diff"
ROWS = [[0, 5, 9, 3, 17, 22], [0, 7, 8, 30, 22, 17, 4]]
OTHER = [[0, 5, 4, 3, 17, 22], [0, 7, 21, 30, 22, 17, 4]]
ANSWERS = [[[7, 8, 2]], [[9, 4], [9, 5, 11]]]
WRONG = [[[8]], [[11, 12, 1]]]
FAMILIES = ("gpt2", "llama", "neox")
HEAD = slice(16, 24)  # head 2 of four, eight numbers each
# Each engine with one family and the third in the slow suite, with the rest of the grid.
QUICK = {("gpt2", "fast"), ("llama", "hooks")}
GRID = [
    pytest.param(family, engine, marks=[] if (family, engine) in QUICK else [pytest.mark.slow])
    for family, engine in product(FAMILIES, ("fast", "hooks"))
]


@cache
def plain_and_bridge(family: str) -> tuple[Any, Any]:
    """A model of transformers, and the same weights in a bridge."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48,
             "vocab_size": 40, "max_position_embeddings": 24}  # fmt: skip
    gpt2 = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 40, "n_positions": 24}
    made = {
        "gpt2": (transformers.GPT2Config(**gpt2), transformers.GPT2LMHeadModel),
        "llama": (transformers.LlamaConfig(**sizes, num_key_value_heads=2), transformers.LlamaForCausalLM),
        "neox": (transformers.GPTNeoXConfig(**sizes), transformers.GPTNeoXForCausalLM),
    }
    config, kind = made[family]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = kind(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    plain = copy.deepcopy(model)
    return plain, build_bridge_from_module(model, kind.__name__, hf_config=config).eval()


def output_map(plain: Any, family: str, layer: int) -> torch.nn.Module:
    """The module that reads all heads' z and writes into the stream."""
    if family == "gpt2":
        return plain.transformer.h[layer].attn.c_proj
    if family == "llama":
        return plain.model.layers[layer].self_attn.o_proj
    return plain.gpt_neox.layers[layer].attention.dense


def z_of(family: str, tokens: list[int]) -> Tensor:
    """[pos, d_head] of head 2 of layer 1 in plain transformers."""
    plain, seen = plain_and_bridge(family)[0], []
    module = output_map(plain, family, 1)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, :, HEAD].clone()))
    with torch.no_grad():
        plain(torch.tensor([tokens]))
    handle.remove()
    return seen[0]


def by_hand(family: str, change: Callable[[Tensor, int, int], Tensor] | None) -> Tensor:
    """[example]: log-probability of right minus wrong answers; `change(z [pos, d_head], example, prompt length)`."""
    plain = plain_and_bridge(family)[0]
    measured = []
    for i, row in enumerate(ROWS):

        def edit(_, args, i=i, row=row):
            z = args[0].clone()
            z[0, :, HEAD] = change(z[0, :, HEAD], i, len(row))
            return (z, *args[1:])

        def logprob(answer, row=row, edit=edit):
            handle = None
            if change is not None:
                handle = output_map(plain, family, 1).register_forward_pre_hook(edit)
            with torch.no_grad():
                logits = plain(torch.tensor([[*row, *answer]])).logits[0].log_softmax(-1)
            if handle is not None:
                handle.remove()
            return sum(logits[len(row) - 1 + k, token] for k, token in enumerate(answer))

        right, wrong = (torch.stack([logprob(one) for one in table[i]]).mean() for table in (ANSWERS, WRONG))
        measured.append(right - wrong)
    return torch.stack(measured)


def pairs() -> PromptPairs:
    return PromptPairs(Prompts.of(ROWS), Prompts.of(OTHER), padded_answers(ANSWERS), padded_answers(WRONG))


def on_hooks(monkeypatch) -> None:
    for module in ("interventions.effects", "interventions.paths", "engine.circuits"):
        monkeypatch.setattr(f"workbench.{module}.fast_decoder", lambda *_: (None, "asked for"))


def at_prompt(new: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int, int], Tensor]:
    """A change of the prompt's positions alone; `new(z of the prompt, example)`."""

    def change(z, i, n):
        z = z.clone()
        z[:n] = new(z[:n], i)
        return z

    return change


def at_position(position: int) -> Callable[[Tensor, int, int], Tensor]:
    def change(z, i, n):
        z = z.clone()
        z[position] = 0
        return z

    return change


@pytest.mark.parametrize(("family", "engine"), GRID)
def test_an_ablation_lasts_while_the_answer_is_read_and_patching_ends_with_the_prompt(
    family, engine, monkeypatch
):
    if engine == "hooks":
        on_hooks(monkeypatch)
    model, vector = plain_and_bridge(family)[1], torch.linspace(-1, 1, 8)
    stores = wb.capture_pairs(model, pairs(), sites=["z"], progress=False)
    mean = torch.cat([z_of(family, row) for row in OTHER]).mean(0)
    patched = [z_of(family, row) for row in OTHER]
    direction = vector / vector.norm()
    covering = {
        wb.zero(): lambda z, i, n: torch.zeros_like(z),
        wb.constant(vector): lambda z, i, n: vector.expand_as(z),
        wb.scale(-0.5): lambda z, i, n: z * -0.5,
        wb.add(vector): lambda z, i, n: z + vector,
        wb.mean(stores[1]): lambda z, i, n: mean.expand_as(z),
        wb.project(vector, wb.zero()): lambda z, i, n: z - (z @ direction)[:, None] * direction,
    }
    in_prompt = {
        wb.from_store(stores[1]): at_prompt(lambda z, i: patched[i]),
        wb.project(vector, wb.from_store(stores[1])): at_prompt(
            lambda z, i: z + ((patched[i] - z) @ direction)[:, None] * direction
        ),
    }
    base = by_hand(family, None)
    for values, says in ((covering, "edited"), (in_prompt, "unchanged")):
        for value, change in values.items():
            got = wb.effects(model, pairs(), sites="z[1.2]", value=value, metric=DIFF, progress=False)
            expected = by_hand(family, change) - base
            assert close(got[:, 0], expected, scale=float(base.abs().max())), value.describe()
            assert got.attrs["answer_tokens"] == says, value.describe()
    named = wb.effects(model, pairs(), sites=["z[1.2]@2"], value=wb.zero(), metric=DIFF, progress=False)
    assert close(named[:, 0], by_hand(family, at_position(2)) - base, scale=float(base.abs().max()))
    assert named.attrs["answer_tokens"] == "unchanged"


@pytest.mark.parametrize(("family", "engine"), GRID)
def test_circuits_and_paths_without_a_head_are_the_model_without_it(family, engine, monkeypatch):
    if engine == "hooks":
        on_hooks(monkeypatch)
    model = plain_and_bridge(family)[1]
    graph = Graph.of(model)
    edges = graph.exists.copy()
    edges[graph.writers.index("a1.2")] = False
    base, without = by_hand(family, None), by_hand(family, lambda z, i, n: torch.zeros_like(z))
    asked = {"value": wb.zero(), "metric": DIFF, "progress": False}
    result = wb.evaluate(wb.Circuit.of(graph, edges), model, pairs(), checks=(), **asked)
    size = float(base.abs().max())
    assert close(result["m_full"], base, scale=size)
    assert close(result["m_circuit"][0], without, scale=size)
    assert result.attrs["answer_tokens"] == "edited"
    # Nothing that a head of the last layer writes is read but by its MLP and the logits.
    paths = wb.path_effects(model, pairs(), senders="a1.2", mlps="recomputed", **asked)
    assert close(paths[:, 0, 0], without - base, scale=size)
    assert paths.attrs["answer_tokens"] == "edited"
    if family == "llama":
        # Without biases every logit of the empty circuit is 0, so a token has log-probability -log V.
        lengths = [np.mean([len(one) for one in right]) for right in ANSWERS]
        wrong_lengths = [np.mean([len(one) for one in wrong]) for wrong in WRONG]
        expected = -np.log(40) * (np.array(lengths) - np.array(wrong_lengths))
        assert close(result["m_empty"], expected, tolerance=1e-5)


@pytest.mark.parametrize(
    "family", ["neox", *(pytest.param(family, marks=pytest.mark.slow) for family in ("gpt2", "llama"))]
)
def test_scores_and_gradients_cover_the_answer_on_both_engines(family, monkeypatch):
    model, methods = plain_and_bridge(family)[1], ("exact", "eap", "eap-ig-inputs", "ig-activations")
    asked = {"value": wb.zero(), "metric": DIFF, "progress": False}
    fast = {method: wb.score_edges(model, pairs(), method=method, **asked) for method in methods}
    by_pos = wb.score_edges(model, pairs(), method="eap", keep=("example", "pos"), **asked)
    assert close(by_pos.sum("pos").mean("example"), fast["eap"].fillna(0), tolerance=1e-5)
    assert by_pos.sizes["pos"] == 9, "the answers' tokens have scores too"
    assert bool(by_pos[0, 8].isnull().all()), "the first example's answers are shorter"
    site = "z[1.2]"
    gradient = wb.effects(model, pairs(), sites=site, method="integrated", steps=24, **asked)
    exact = by_hand(family, lambda z, i, n: torch.zeros_like(z)) - by_hand(family, None)
    assert close(gradient[:, 0], exact, tolerance=1e-2, scale=float(exact.abs().max()))
    on_hooks(monkeypatch)
    for method, scores in fast.items():
        hooked = wb.score_edges(model, pairs(), method=method, **asked)
        assert close(scores, hooked, tolerance=1e-4), method
        assert scores.attrs["answer_tokens"] == "edited"
    learned = wb.learn_circuit(model, pairs(), n_edges=20, steps=2, **asked)
    assert learned.attrs["answer_tokens"] == "edited"
    one_token = wb.score_edges(model, pairs(), value=wb.zero(), metric="kl", method="exact", progress=False)
    assert "answer_tokens" not in one_token.attrs


def test_averages_of_positions_and_other_prompts_end_with_the_prompt():
    model, both = model_of("gpt2"), pairs()
    rows = expand(model, both, DIFF)
    clean, corrupt = wb.capture_pairs(model, both, sites=["z"], progress=False)
    asked = {"sites": "z[1.2]", "metric": DIFF, "progress": False}
    for value in (
        wb.mean(corrupt, per="pos"),
        wb.resample(wb.capture(model, ROWS + OTHER, sites=["z"]), seed=1),
    ):
        assert wb.effects(model, both, value=value, **asked).attrs["answer_tokens"] == "unchanged"
        bound = bind(model, rows, value)
        current = torch.randn(len(rows.pairs), rows.pairs.clean.tokens.shape[1], 8)
        new = bound.edited(wb.Site.parse("z[1.2]"), current)
        behind = torch.arange(current.shape[1]) >= bound.reach[:, None]
        assert torch.equal(new[behind], current[behind])
        assert not torch.equal(new[~behind], current[~behind])
    assert bool((bind(model, rows, wb.mean(clean)).reach == rows.pairs.clean.lengths).all())


def test_a_job_of_a_sweep_that_covers_answers_is_not_taken_for_an_older_one():
    def setting(study: str, metric: str, value: str) -> JobSetting:
        return JobSetting(study, "tiny", None, "ioi", "train", None, 4, 0, "clean", metric, value)

    older = [("effects", "logit_diff", "zero"), ("effects", DIFF, "corrupt"), ("circuits", DIFF, "resample"),
             ("effects", "mine:own", "mean")]  # fmt: skip
    newer = [("effects", DIFF, "zero"), ("circuits", DIFF, "mean"), ("paths", DIFF, "constant:2"),
             ("steering", DIFF, "corrupt")]  # fmt: skip
    assert {_meaning(setting(*each)) for each in older} == {1}
    assert {_meaning(setting(*each)) for each in newer} == {2}
