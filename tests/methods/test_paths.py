"""Path effects: against three plain runs, TransformerLens, paper, and what must hold of any model."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformer_lens.patching as patching
from families import logit_difference, make_pairs, max_difference, model_of, native, pairs_and_stores, untyped
from three_runs import ThreeRuns
from torch.utils.flop_counter import FlopCounterMode

import workbench as wb
from workbench.engine.capture import capture_pairs
from workbench.engine.edits import from_store, mean, resample, scale, zero
from workbench.errors import EditError, MetricError, PromptError, SiteError, StoreError, UnknownName, WorkbenchError
from workbench.graph import Graph
from workbench.methods.paths import path_effects
from workbench.sites import Shape
from workbench.tasks.pairs import PromptPairs, Prompts

ALL = ("gpt2", "llama", "neox", "native", "native-attn-only", "native-no-norm", "qwen2", "gptj", "granite")
ON_HOOKS = ("gptj", "granite")
SETTINGS = ("frozen", "recomputed")
MIXED = (4, 6, 5)

SENDERS = ["input", "a0.1", "a1.2", ("a0.0", "a0.3"), ("input", "a1.0")]
MLP_SENDERS = ["m0", "m1", "m0:7", "m1:3", ("m0", "a1.3"), ("a0.2", "m0:3", "m1:11")]
RECEIVERS = ["logits", "a0.1<v>", "a1.1<q>", "a1.0<k>", "a1.1<v>", "a1.3", "a1.2<q>@END", "a1.1<k>@3", "logits@END"]
RECEIVERS += [("a1.0<q>", "a1.1<k>", "logits"), ("a1.0@2", "a0.1<q>@END"), ("a0.3", "a1.0<v>@3")]
MLP_RECEIVERS = ["m0", "m1", "m1:5", "m1@END", "m0:4@2", ("m0:2", "m1:3@3", "a1.0<q>")]
PATHS = ["a0.2->a1.1<q>@END->logits", "input->a0.1<k>->a1.0<v>->logits", "input->a0.0<v>->a1.1<k>->logits@END", "a1.2->logits"]
PATHS += ["input->a0.0<k>@2->a1.1", "a0.1->a1.0<k>@3", "input->logits", "input->a0.0<v>@2->a1.1<v>@3->logits"]
PATHS += [
    "input->a0.2->a1.3->logits",
    "input->a0.3->a1.1<v>",
]  # of grouped heads too: a0.3 reads kv head 1, and only a0.3 sends on
MLP_PATHS = ["input->m0->a1.0<q>->logits", "m0:3->a1.1<v>->logits", "input->m0:7@2->m1", "input->m0:7->m1:5->logits"]
SEQUENTIAL_PATHS = ["a0.1->m0->logits", "input->a1.2<q>->m1", "input->a0.2->m0:3->a1.1<v>->m1@END->logits"]


def asked(family):
    """Senders, receivers and paths of a model of two layers."""
    shape = Shape.of(model_of(family))
    if shape.attn_only:
        return SENDERS, RECEIVERS, PATHS
    return SENDERS + MLP_SENDERS, RECEIVERS + MLP_RECEIVERS, PATHS + MLP_PATHS + ([] if shape.parallel else SEQUENTIAL_PATHS)


def value_named(name, own, other):
    makers = {"mean": lambda: mean(own), "mean(pos)": lambda: mean(other, per="pos"), "zero": zero, "scale": lambda: scale(0.5)}
    return (makers | {"resample": lambda: resample(own, seed=1), "from_store": lambda: from_store(other)})[name]()


def worst_at_end(logits):
    """[example]: a metric of one's own, which reads two positions of the logits [example, pos, vocab]."""
    return logits[:, -1].min(-1).values + logits[:, 2, 5]


def disagreement(
    family, *, mlps, dtype=torch.float32, lengths=(6, 6, 6), value="from_store", base="clean", metric="logit_diff", thin=3
):
    """How far the effects are from the reference: over all paths, and one in `thin` cells of senders and receivers."""
    model, (pairs, clean, corrupt) = model_of(family, dtype), pairs_and_stores(family, lengths, dtype)
    senders, receivers, paths = asked(family)
    if family in ON_HOOKS:
        senders = senders[::3]
    stores = (clean, corrupt) if base == "clean" else (corrupt, clean)
    given = {"value": value_named(value, *stores), "mlps": mlps, "base": base, "metric": metric}
    cells = [(j, k) for j in range(len(senders)) for k in range(len(receivers)) if (j + k) % thin == 0]
    plain = ThreeRuns(model, pairs, **given)
    expected = [plain.effect(senders[j], receivers[k]) for j, k in cells] + [plain.path(path) for path in paths]
    swept = path_effects(model, pairs, senders=senders, receivers=receivers, **given)
    along = path_effects(model, pairs, paths=paths, **given)
    assert swept.attrs["engine"] == ("reference" if family in ON_HOOKS else "staircase")
    assert swept.dtype == along.dtype == ("float64" if dtype == torch.float64 else "float32")
    got = np.concatenate([swept.values[:, *np.array(cells).T], along.values], 1)
    assert np.nanmax(np.abs(got)) > 1e-3, "there must be something to compare"
    return max_difference(got, torch.stack(expected, 1))


@pytest.mark.parametrize("mlps", SETTINGS)
@pytest.mark.parametrize("family", ALL)
def test_equal_to_three_plain_runs(family, mlps):
    assert disagreement(family, mlps=mlps, thin=2) < 1e-5


@pytest.mark.parametrize("mlps", SETTINGS)
@pytest.mark.parametrize("family", ["gpt2", "neox", "native", "native-attn-only"])
def test_equal_to_three_plain_runs_in_double_precision(family, mlps):
    assert disagreement(family, mlps=mlps, dtype=torch.float64, thin=4) < 1e-10


@pytest.mark.parametrize("mlps", SETTINGS)
@pytest.mark.parametrize("value", ["zero", "mean", "mean(pos)", "resample", "scale"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_any_value_can_be_sent(family, value, mlps):
    assert disagreement(family, mlps=mlps, value=value, thin=7) < 1e-5


READ = [("kl", "clean", "recomputed"), ("kl", "corrupt", "frozen"), ("prob_diff", "corrupt", "recomputed")]
READ += [("logit_diff", "corrupt", "frozen"), (worst_at_end, "clean", "frozen"), (worst_at_end, "corrupt", "recomputed")]


@pytest.mark.parametrize(("metric", "base", "mlps"), READ)
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "neox"])
def test_any_metric_can_be_read_and_either_run_be_the_base(family, metric, base, mlps):
    assert disagreement(family, mlps=mlps, metric=metric, base=base, thin=4) < 1e-5


@pytest.mark.parametrize("mlps", SETTINGS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "native"])
def test_prompts_of_different_length_lack_some_positions(family, mlps):
    """The first example has no position 3; where the reference says NaN, and only there, there is NaN."""
    assert disagreement(family, mlps=mlps, lengths=(3, 6, 5), thin=4) < 1e-5


@pytest.mark.parametrize("mlps", SETTINGS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_engine_of_hooks_gives_the_same(family, mlps, monkeypatch):
    """What models take that the fast engine does not know; grouped heads are not among those tested above."""
    monkeypatch.setattr("workbench.methods.paths.fast_decoder", lambda *_: (None, "asked for"))
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family, MIXED)
    senders, receivers, paths = asked(family)
    given = {"value": from_store(corrupt), "mlps": mlps}
    plain = ThreeRuns(model, pairs, **given)
    got = path_effects(model, pairs, senders=senders[1::4], receivers=receivers[::2], **given)
    assert got.attrs["engine"] == "reference"
    assert max_difference(got, plain.table(senders[1::4], receivers[::2])) < 1e-5
    along = path_effects(model, pairs, paths=paths[::2], store=clean, **given)
    assert max_difference(along, torch.stack([plain.path(path) for path in paths[::2]], -1)) < 1e-5


@pytest.mark.parametrize("mlps", SETTINGS)
@pytest.mark.parametrize("metric", ["logit_diff", worst_at_end])
@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_receivers_beside_the_logits_at_one_position_are_free_to_act_at_others(family, metric, mlps):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    senders, receivers = ["input", ("a0.1", "a1.2")], [("a1.0@2", "logits@END"), ("a1.0", "logits@2"), ("m1", "logits@3")]
    given = {"value": from_store(corrupt), "mlps": mlps, "metric": metric}
    got = path_effects(model, pairs, senders=senders, receivers=receivers, **given)
    assert max_difference(got, ThreeRuns(model, pairs, **given).table(senders, receivers)) < 1e-5


@pytest.mark.parametrize("mlps", SETTINGS)
def test_positions_are_found_by_name_where_an_example_has_them(mlps):
    model, (pairs, _, corrupt) = model_of("llama"), pairs_and_stores("llama", (4, 6, 6))
    sides = [replace(side, positions={**side.positions, "S": torch.tensor([-1, 2, 3])}) for side in (pairs.clean, pairs.corrupt)]
    named = replace(pairs, clean=sides[0], corrupt=sides[1])
    receivers, paths = ["a1.1<k>@S", ("a1.0<q>", "a0.1<v>@S"), "a1.0<v>"], ["input->a0.1<k>@S->a1.2<q>->logits"]
    given = {"value": from_store(corrupt), "mlps": mlps}
    plain = ThreeRuns(model, named, **given)
    got = path_effects(model, named, senders=["input", "a0.1"], receivers=receivers, **given)
    assert max_difference(got, plain.table(["input", "a0.1"], receivers)) < 1e-5
    assert got.isnull().any("writer").values.tolist() == [[True, True, False]] + 2 * [[False] * 3]
    along = path_effects(model, named, paths=paths, **given)
    assert max_difference(along[:, 0], plain.path(paths[0])) < 1e-5
    assert along.isnull().values.tolist() == [[True], [False], [False]]


@pytest.mark.parametrize(("family", "component"), [("gpt2", "q"), ("gpt2", "k"), ("gpt2", "v"), ("neox", "v"), ("llama", "q")])
def test_direct_paths_between_heads_equal_transformer_lens(family, component):
    """It patches the corrupt run towards the clean one, returns the metric itself, and 0 where nothing was measured."""
    model, (pairs, clean, _) = model_of(family), pairs_and_stores(family)
    readers = [f"a{layer}.{head}<{component}>" for layer in range(2) for head in range(4)]
    given = {"value": from_store(clean), "base": "corrupt", "mlps": "frozen"}
    got = path_effects(model, pairs, senders="heads", receivers=readers, **given).values
    measured = ~np.isnan(got)
    assert measured.sum() == 3 * 4 * 4
    with torch.no_grad():
        base = logit_difference(model(pairs.corrupt.tokens), pairs)
        _, clean_cache = model.run_with_cache(pairs.clean.tokens)
        _, corrupt_cache = model.run_with_cache(pairs.corrupt.tokens)
        for i in range(3):
            table = patching.get_act_patch_direct_path_all_sources(
                model,
                pairs.corrupt.tokens,
                clean_cache,
                corrupt_cache,
                lambda logits, i=i: logit_difference(logits, pairs)[i],
                component=component,
                verbose=False,
            )
            expected = (table.reshape(8, 8) - base[i])[torch.from_numpy(measured[i])]
            assert max_difference(got[i][measured[i]], expected) < 2e-6
            assert float(expected.abs().max()) > 1e-3, "the oracle must have something to say"


@pytest.mark.parametrize("family", ["gpt2", "llama", "native"])
def test_a_head_reaches_the_logits_as_written_out(family):
    """final norm(stream + (z' - z) . W_O) . W_U: of our function, and of the reference that it is compared with."""
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    given = {"value": from_store(corrupt), "mlps": "frozen"}
    got, plain = path_effects(model, pairs, senders="heads", **given), ThreeRuns(model, pairs, **given)
    for j, head in enumerate(str(name) for name in got.writer.values):
        layer, h = int(head[1]), int(head[3])
        change = (corrupt["z", layer].padded() - clean["z", layer].padded())[:, :, h] @ model.blocks[layer].attn.W_O[h].detach()
        with torch.no_grad():
            logits = model.unembed(model.ln_final(clean["resid_post", 1].padded() + change))
        expected = logit_difference(logits, pairs) - plain.measured
        assert max_difference(got[:, j, 0], expected) < 1e-5
        assert max_difference(plain.effect(head, "logits"), expected) < 1e-5


@pytest.mark.parametrize(("family", "adds_up"), [("native-no-norm", True), ("native", False), ("gpt2", False)])
def test_without_a_final_norm_the_direct_effects_of_all_writers_add_up(family, adds_up):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    got = path_effects(model, pairs, value=from_store(corrupt), mlps="frozen")
    with torch.no_grad():
        total = logit_difference(model(pairs.corrupt.tokens), pairs) - logit_difference(model(pairs.clean.tokens), pairs)
    assert got.writer.values.tolist() == list(Graph.of(model).writers)
    gap = max_difference(got.sum(("writer", "reader")), total)
    assert gap < 1e-5 if adds_up else gap > 1e-2


@pytest.fixture(scope="module")
def worked():
    """Two layers of two heads, attention only, no norm. Dimensions: token a b c d | position 0 1 2 3 | previous token a b c d.

    a0.0 attends to the position before (the first one to itself) and writes its token as "previous"; a0.1 is nothing. a1.0
    attends to where the previous token is the own one (everywhere alike if it is nowhere) and writes 4 times the token it finds;
    a1.1 attends everywhere alike and writes 4 times what it finds as previous. The logits are token + 2 previous; the metric
    is b - a at the end, where the token is a and the previous one is b.

        clean   "d a b a", previous "d d a b": input a, a0.0 2b, a1.0 attends to position 2: 4b, a1.1 2d + a + b:  2a 7b   5
        corrupt "d c b a", previous "d d c b": input a, a0.0 2b, a1.0 d + c + b + a,          a1.1 2d + c + b:  2a 4b   2
    """
    model = native(n_heads=2, d_model=12, d_head=4, n_ctx=4, d_vocab=4, normalization_type=None, attn_only=True)
    token, place, previous = torch.eye(12).split(4)
    nothing = torch.zeros(4, 12)
    weights = {
        "tok_embed": token,
        "pos": place,
        "layers.0.attn.q": torch.cat([1000 * place.roll(-1, 0) * torch.tensor([[1], [1], [1], [0]]), nothing]),
        "layers.0.attn.k": torch.cat([place, nothing]),
        "layers.0.attn.v": torch.cat([token, nothing]),
        "layers.0.attn.o": torch.cat([previous, nothing]).T,
        "layers.1.attn.q": torch.cat([1000 * token, nothing]),
        "layers.1.attn.k": torch.cat([previous, nothing]),
        "layers.1.attn.v": torch.cat([4 * token, 4 * previous]),
        "layers.1.attn.o": torch.cat([token, token]).T,
        "head": token + 2 * previous,
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_()
            parameter += weights.get(name.replace("._original_component", "").removesuffix(".weight"), torch.zeros(()))
    pairs = PromptPairs(Prompts.of([[3, 0, 1, 0]]), Prompts.of([[3, 2, 1, 0]]), torch.tensor([[[1]]]), torch.tensor([[[0]]]))
    return model, pairs, *capture_pairs(model, pairs)


def test_the_runs_are_as_on_paper(worked):
    model, pairs, clean, _ = worked
    assert clean["resid_pre", 1].prompt(0)[:, 8:].argmax(-1).tolist() == [3, 3, 0, 1]
    assert model(pairs.clean.tokens)[0, -1].tolist() == [2, 7, 0, 2]
    assert model(pairs.corrupt.tokens)[0, -1].tolist() == [2, 4, 2, 3]


def test_senders_and_receivers_are_as_on_paper(worked):
    model, pairs, clean, corrupt = worked
    both = ("input", "a0.0")
    noising = {
        ("a0.0", "a1.0<k>"): -5,  # the previous token at 2 is c: no key fits, d + 2a + b for 4b
        ("a0.0", "a1.0<k>@2"): -5,
        ("a0.0", "a1.0<k>@1"): 0,
        ("a0.0", "a1.1<v>"): 1,  # c for a
        ("a0.0", ("a1.0<k>", "a1.1<v>")): -4,
        ("a0.0", "a1.0<q>"): 0,  # queries and values of a1.0 read the token
        ("a0.0", "logits"): 0,  # previous at the end is b in both
        ("input", "a1.0<v>"): 0,  # position 1 is not attended to
        (both, "a1.0"): -4,  # a + b + c + d for 4b
        (both, ("a1.0", "a1.1")): -3,  # all that differs: the corrupt run
        (both, ("a1.0", "a1.1", "logits")): 0,  # the logits' input too, as it is while the heads of layer 1 are frozen
        ((*both, "a1.0", "a1.1"), "logits"): -3,
        ("input", "a0.0<v>"): -4,  # a1.0<k> and a1.1<v>, as all beyond it is free
        ("input", "a0.0<q>"): 0,  # positions are the same
        ("a1.0", "logits"): -3,  # what it writes in the corrupt run
    }
    for (senders, receivers), expected in noising.items():
        got = path_effects(model, pairs, senders=[senders], receivers=[receivers], value=from_store(corrupt), mlps="frozen")
        assert got.values.item() == expected, (senders, receivers)
    denoising = {
        ("a0.0", "a1.0<k>"): 4,  # the key at 2 fits again: 4b for a + b + c + d
        ("a0.0", "a1.1<v>"): -1,
        ("input", "a1.0<v>"): -1,  # a for c at position 1
        (both, "a1.0"): 4,
    }
    for (senders, receivers), expected in denoising.items():
        given = {"value": from_store(clean), "base": "corrupt", "mlps": "recomputed"}
        got = path_effects(model, pairs, senders=[senders], receivers=[receivers], **given)
        assert got.values.item() == expected, (senders, receivers)


def test_paths_of_several_steps_are_as_on_paper(worked):
    model, pairs, _, corrupt = worked
    paper = {
        "input->a0.0<v>->a1.0<k>->logits": -5,
        "input->a0.0<v>@1->a1.0<k>@2->logits@END": -5,  # what position 1 holds, position 2 has as previous
        "input->a0.0<v>@2->a1.0<k>->logits": 0,
        "input->a0.0->a1.0<k>@1->logits": 0,
        "input->a0.0<v>->a1.1<v>->logits": 1,
        "input->a0.0<q>->a1.0<k>->logits": 0,
        "input->a0.0->a1.0->logits": -5,
        "a0.0->a1.0<k>->logits@2": 0,  # nothing is read there
    }
    got = path_effects(model, pairs, paths=list(paper), value=from_store(corrupt), mlps="frozen")
    assert got[0].values.tolist() == list(paper.values())
    ablated = {
        # Without positions in its keys a0.0 averages: previous "d, (d+a)/2, (d+a+b)/3, (d+2a+b)/4". The keys that fit a best are
        # then 1 and 3, both of token a: 4a for 4b.
        "input->a0.0<k>->a1.0<k>->logits": -8,
        "input->a0.0<k>->a1.1<v>->logits": -0.75,  # 4/3 a + 7/12 b for a + b
        "input->a0.0<k>->logits": -2.5,  # twice a half of a and a quarter of b for b
        "input->a0.0<k>": -11.25,  # the three together
        "input->a1.0<q>@END->logits": -5,  # asks for nothing: d + 2a + b for 4b
        "input->a1.0<q>@2->logits": 0,
        "a0.0->a1.1<v>->logits": 0,  # loses 2d + a + b
        "a0.0->logits": -2,
        "a1.0->logits": -4,
        "input->logits": 1,
    }
    got = path_effects(model, pairs, paths=list(ablated), value=zero(), mlps="frozen")
    assert np.abs(got[0].values - list(ablated.values())).max() < 1e-5


@pytest.mark.parametrize("mlps", SETTINGS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("own", ["store", "scale"])
def test_sending_the_base_value_is_exactly_zero(family, mlps, own):
    model, (pairs, clean, _) = model_of(family), pairs_and_stores(family)
    senders, receivers, paths = asked(family)
    given = {"value": from_store(clean, allow_self=True) if own == "store" else scale(1.0), "mlps": mlps}
    swept = path_effects(model, pairs, senders=senders, receivers=receivers, **given)
    along = path_effects(model, pairs, paths=paths, **given)
    assert int((abs(swept) > 0).sum()) + int((abs(along) > 0).sum()) == 0
    assert int((swept == 0).sum()) > 300


@pytest.mark.parametrize("mlps", SETTINGS)
@pytest.mark.parametrize("family", ALL)
def test_everything_into_everything_is_the_other_run(family, mlps):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family, MIXED)
    graph = Graph.of(model)
    bare = (*graph.writers[1:], "logits")
    receivers = [graph.readers, bare, "logits", tuple(name for name in bare if name != "logits")]
    got = path_effects(model, pairs, senders=[graph.writers], receivers=receivers, value=from_store(corrupt), mlps=mlps)
    rows, ends = torch.arange(3), pairs.clean.lengths - 1
    with torch.no_grad():
        runs = [model(side.tokens)[rows, ends] for side in (pairs.clean, pairs.corrupt)]
    clean, other = (run[rows, pairs.answers[:, 0, 0]] - run[rows, pairs.wrong[:, 0, 0]] for run in runs)
    assert float((other - clean).abs().min()) > 1e-3
    for column in range(4):  # all but the logits will do: the last token is the same on both sides
        assert max_difference(got[:, 0, column], other - clean) < 1e-5


@pytest.mark.parametrize(("family", "mlps"), [("gpt2", "recomputed"), ("llama", "frozen")])
def test_sweeps_order_and_batches_change_nothing(family, mlps):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family, MIXED)
    senders, receivers, paths = asked(family)
    senders, paths = senders[::3], paths[::2]
    given = {"value": from_store(corrupt), "mlps": mlps}
    grid = {"senders": senders, "receivers": receivers} | given
    swept, along = path_effects(model, pairs, **grid), path_effects(model, pairs, paths=paths, **given)
    for j, k in ((0, 0), (1, 4), (2, 11), (3, 2)):
        single = path_effects(model, pairs, senders=[senders[j]], receivers=[receivers[k]], **given)
        assert max_difference(single[:, 0, 0], swept[:, j, k]) < 2e-6
    for k in (0, 3):
        assert max_difference(path_effects(model, pairs, paths=paths[k], **given)[:, 0], along[:, k]) < 2e-6
    for order in ([2, 0, 1], [1], [0]):  # in other company, and padded to another length
        assert max_difference(path_effects(model, pairs.select(order), **grid), swept[order]) < 2e-6
        assert max_difference(path_effects(model, pairs.select(order), paths=paths, **given), along[order]) < 2e-6
    for budget in (1, 200_000):
        assert max_difference(path_effects(model, pairs, budget=budget, **grid), swept) < 2e-6
        assert max_difference(path_effects(model, pairs, paths=paths, budget=budget, **given), along) < 2e-6
    assert max_difference(path_effects(model, pairs, readout=torch.float64, **grid), swept) < 1e-5


@pytest.mark.parametrize("mlps", SETTINGS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_a_path_of_one_arrow_is_a_sender_and_a_receiver(family, mlps):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    given = {"value": from_store(corrupt), "mlps": mlps}
    swept = path_effects(
        model, pairs, senders=["input", "a0.1", "m0"], receivers=["a1.2<q>", "a1.3", "m1@END", "logits"], **given
    )
    paths = [f"{writer}->{reader}" for writer in swept.writer.values for reader in swept.reader.values]
    along = path_effects(model, pairs, paths=paths, **given)
    assert along.dims == ("example", "path")
    assert along.path.values.tolist() == paths
    assert max_difference(along, swept.values.reshape(3, -1)) < 2e-6


def test_mlps_make_a_difference_where_there_are_any():
    for family, differs in (("gpt2", True), ("neox", True), ("native-attn-only", False)):
        model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
        given = {"senders": ["input", "a0.1"], "receivers": ["logits", "a1.0<k>"], "value": from_store(corrupt)}
        frozen, recomputed = (path_effects(model, pairs, mlps=mlps, **given) for mlps in SETTINGS)
        assert (max_difference(frozen, recomputed) > 1e-2) == differs


def test_names_of_groups_and_what_results_say():
    assert wb.path_effects is path_effects
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    given = {"value": from_store(corrupt), "mlps": "recomputed", "metric": "kl"}
    heads = [f"a{layer}.{head}" for layer in range(2) for head in range(4)]
    writers = list(Graph.of(model).writers)
    every = path_effects(model, pairs, senders=writers, **given)
    assert every.dims == ("example", "writer", "reader")
    assert every.shape == (3, 11, 1)
    for group, names in ((None, writers), ("heads", heads), ("mlps", ["m0", "m1"]), ("a1.2", ["a1.2"])):
        got = path_effects(model, pairs, senders=group, **given)
        assert got.writer.values.tolist() == names
        assert got.reader.values.tolist() == ["logits"]
        assert max_difference(got, every.sel(writer=names)) < 2e-6
    joined = path_effects(model, pairs, senders=[("a0.1", "m0:3"), "input"], receivers=[("a1.1", "logits@END"), "m1"], **given)
    assert joined.writer.values.tolist() == ["a0.1 + m0:3", "input"]
    assert joined.reader.values.tolist() == ["a1.1 + logits@END", "m1"]
    expected = {"kind": "paths", "mlps": "recomputed", "metric": "kl", "value": "from_store", "base": "clean", "unit": "nats"}
    expected |= {"n": 3, "data_fingerprint": pairs.fingerprint, "model_fingerprint": wb.model_fingerprint(model)}
    for result in (every, joined, path_effects(model, pairs, paths="input->a0.1->logits", **given)):
        assert {key: result.attrs[key] for key in expected} == expected


@pytest.mark.parametrize("mlps", SETTINGS)
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_cells_without_a_path_are_nan_and_no_others(family, mlps):
    """In a parallel block (neox) the attention of a layer does not feed the same layer's MLP."""
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    graph, given = Graph.of(model), {"value": from_store(corrupt), "mlps": mlps}
    got = path_effects(model, pairs, senders=list(graph.writers), receivers=list(graph.readers), **given)
    assert np.array_equal(got.isnull().values, np.broadcast_to(~graph.exists, got.shape))
    assert bool(got.sel(writer="a0.1", reader="m0").isnull().all()) == graph.shape.parallel
    senders, receivers = [("a1.0", "m1"), ("a0.0", "m1")], [("a0.1", "m0:2"), ("a0.1", "a1.0<v>"), "m1:4"]
    sets = path_effects(model, pairs, senders=senders, receivers=receivers, **given).isnull()
    expected = [[True, True, graph.shape.parallel], [graph.shape.parallel, False, False]]
    assert sets.all("example").values.tolist() == sets.any("example").values.tolist() == expected


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "native-attn-only"])
def test_a_store_of_the_base_run_gives_the_same_numbers(family):
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family, MIXED)
    senders, receivers, paths = asked(family)
    shuffled, _ = capture_pairs(model, pairs.select([2, 0, 1]))
    for mlps, base, value, store in (("frozen", "clean", corrupt, shuffled), ("recomputed", "corrupt", clean, corrupt)):
        given = {"value": from_store(value), "mlps": mlps, "base": base}
        for what in ({"senders": senders[::2], "receivers": receivers}, {"paths": paths}):
            fresh = path_effects(model, pairs, **what, **given)
            assert max_difference(path_effects(model, pairs, **what, store=store, **given), fresh) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_a_store_nothing_is_run_to_reach_the_logits(family, monkeypatch):
    """Less than a tenth of the arithmetic of the base run; without the store it is run, and that shows."""
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    given = {"senders": ["a1.0", "input"], "value": from_store(corrupt), "mlps": "frozen"}
    fresh = path_effects(model, pairs, **given)  # the first call of a model compares the engines

    def work(call):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return counter.get_total_flops()

    one_run = work(lambda: model(pairs.clean.tokens))
    assert work(lambda: path_effects(model, pairs, **given)) > 0.5 * one_run
    monkeypatch.setattr(model, "forward", None)
    assert work(lambda: path_effects(model, pairs, store=clean, **given)) < 0.1 * one_run
    assert max_difference(path_effects(model, pairs, store=clean, **given), fresh) < 1e-5


WRONG = [
    (SiteError, "a9.9", {"senders": "a9.9"}),
    (SiteError, "a0.4", {"senders": ["a0.1", "a0.4"]}),
    (SiteError, "m0:999", {"senders": ["m0:999"]}),
    (SiteError, "head9", {"senders": "head9"}),
    (SiteError, "a0.1<q>", {"senders": "a0.1<q>"}),
    (SiteError, "logits", {"senders": [("input", "logits")]}),
    (SiteError, "a0.1@3", {"senders": "a0.1@3"}),
    (SiteError, "senders", {"senders": []}),
    (SiteError, "senders", {"senders": [()]}),
    (SiteError, "receivers", {"receivers": []}),
    (SiteError, "input", {"receivers": "input"}),
    (SiteError, "a7.0<q>", {"receivers": [("m1", "a7.0<q>")]}),
    (SiteError, "a1.0<z>", {"receivers": "a1.0<z>"}),
    (SiteError, "a1.0<q>@-1", {"receivers": "a1.0<q>@-1"}),
    (UnknownName, "S9", {"receivers": "a1.0<q>@S9"}),
    (WorkbenchError, "17", {"receivers": "a1.0<q>@17"}),
    (SiteError, "a0.1", {"paths": "a0.1"}),
    (SiteError, "a0.1->", {"paths": "a0.1->"}),
    (SiteError, "paths", {"paths": []}),
    (SiteError, "a1.0->a0.1<q>", {"paths": "a1.0->a0.1<q>->logits"}),
    (SiteError, "a0.1->a0.2", {"paths": ["input->logits", "input->a0.1->a0.2->logits"]}),
    (SiteError, "logits", {"paths": "logits->a1.0"}),
    (SiteError, "logits", {"paths": "input->logits->a1.0"}),
    (SiteError, "input", {"paths": "input->input->logits"}),
    (SiteError, "a1.7", {"paths": "input->a1.7->logits"}),
    (UnknownName, "S9", {"paths": "input->a1.0<q>@S9->logits"}),
    (SiteError, "paths", {"paths": "input->logits", "senders": "a0.1"}),
    (SiteError, "paths", {"paths": "input->logits", "receivers": "logits"}),
    (UnknownName, "thawed", {"mlps": "thawed"}),
    (UnknownName, "dirty", {"base": "dirty"}),
    (UnknownName, "logit_dif", {"metric": "logit_dif"}),
    (EditError, "str", {"value": "zero"}),
]


@pytest.mark.parametrize(("error", "named", "given"), WRONG, ids=[f"{next(iter(g.items()))}" for _, _, g in WRONG])
def test_what_cannot_be_asked_is_named(error, named, given):
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    with pytest.raises(error, match=re.escape(named)):
        untyped(path_effects)(model, pairs, **({"value": from_store(corrupt), "mlps": "frozen"} | given))


def test_what_a_model_or_the_pairs_lack_is_named():
    given = {"value": zero(), "mlps": "frozen"}
    pairs = make_pairs()
    with pytest.raises(SiteError, match=re.escape("a0.2<k>")):
        path_effects(model_of("llama"), pairs, receivers="a0.2<k>", **given)  # kv heads are 0 and 1
    with pytest.raises(SiteError, match="m0"):
        path_effects(model_of("native-attn-only"), pairs, receivers="m0", **given)
    with pytest.raises(SiteError, match="senders"):
        path_effects(model_of("native-attn-only"), pairs, senders="mlps", **given)
    with pytest.raises(SiteError, match=re.escape("a0.1->m0")):
        path_effects(model_of("neox"), pairs, paths="a0.1->m0->logits", **given)
    with pytest.raises(TypeError, match="mlps"):
        path_effects(model_of("gpt2"), pairs, value=zero())
    uneven = replace(pairs, corrupt=make_pairs((6, 5, 6)).corrupt)
    with pytest.raises(PromptError, match="Pair 1 has clean and corrupt prompts of 6 and 5 tokens"):
        path_effects(model_of("gpt2"), uneven, **given)
    with pytest.raises(MetricError, match="differ in length"):
        path_effects(model_of("gpt2"), make_pairs(MIXED), metric=worst_at_end, **given)


def test_a_store_that_is_not_of_the_base_run_is_refused():
    model, (pairs, clean, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    given = {"value": from_store(corrupt), "mlps": "frozen"}
    for store, named in (
        (corrupt, "prompt 0"),
        (pairs_and_stores("native")[1], "model"),
        (pairs_and_stores("gpt2", MIXED)[1], "prompt"),
    ):
        with pytest.raises(StoreError, match=named):
            path_effects(model, pairs, store=store, **given)
    with pytest.raises(EditError, match="very run"):
        path_effects(model, pairs, value=from_store(clean), mlps="frozen")
    little, _ = capture_pairs(model, pairs, sites=["z"])
    with pytest.raises(StoreError, match="resid_post"):
        path_effects(model, pairs, store=little, **given)
