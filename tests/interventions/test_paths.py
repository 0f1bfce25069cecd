"""Path effects: against three plain runs, TransformerLens, paper, and what must hold of any model."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import transformer_lens.patching as patching
from closeness import close, distance
from families import (
    FAMILIES,
    logit_difference,
    logit_size,
    make_pairs,
    model_of,
    native,
    pairs_and_stores,
    untyped,
)
from three_runs import ThreeRuns, asked
from torch.utils.flop_counter import FlopCounterMode

import workbench as wb
from workbench.circuit.graph import Graph
from workbench.engine.capture import capture_pairs
from workbench.engine.values import constant, from_store, mean, resample, scale, zero
from workbench.errors import EditError, MetricError, PromptError, SiteError, StoreError, UnknownName
from workbench.interventions.paths import path_effects
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts

ALL = (*FAMILIES, "native-attn-only", "native-no-norm", "qwen2", "gptj", "granite")
SETTINGS = ("frozen", "recomputed")
MIXED = (4, 6, 5)


def value_named(name, own, other):
    makers = {
        "mean": lambda: mean(own),
        "mean(pos)": lambda: mean(other, per="pos"),
        "zero": zero,
        "scale": lambda: scale(0.5),
    }
    return (makers | {"resample": lambda: resample(own, seed=1), "from_store": lambda: from_store(other)})[
        name
    ]()


def worst_at_end(logits):
    """[example]: a metric of one's own, which reads two positions of the logits [example, pos, vocab]."""
    return logits[:, -1].min(-1).values + logits[:, 2, 5]


def gap(family, *, mlps, thin=1, dtype=torch.float32, lengths=(6, 6, 6), value="from_store", **given):
    """How far the effects of every `thin`-th sender, and of as many or half as many paths, are from the reference, as a share of the largest logit.

    So many cells are compared that every sender and every receiver is met.
    """
    model, (pairs, clean, corrupt) = model_of(family, dtype), pairs_and_stores(family, lengths, dtype)
    senders, receivers, paths = asked(model)
    # A path takes the reference as many runs as it has nodes: of few, other ones for each family.
    step = thin if thin == 1 else 2 * thin
    senders, paths = senders[::thin], paths[len(family) % step :: step]
    stores = (corrupt, clean) if given.get("base") == "corrupt" else (clean, corrupt)
    given |= {"value": value_named(value, *stores), "mlps": mlps}
    apart = min(len(senders), 6)
    cells = [(j, k) for j in range(len(senders)) for k in range(len(receivers)) if (j + k) % apart == 0]
    plain = ThreeRuns(model, pairs, **given)
    expected = [plain.effect(senders[j], receivers[k]) for j, k in cells] + [
        plain.path(path) for path in paths
    ]
    swept = path_effects(model, pairs, senders=senders, receivers=receivers, **given)
    along = path_effects(model, pairs, paths=paths, **given)
    assert swept.dtype == along.dtype == ("float64" if dtype == torch.float64 else "float32")
    got = np.concatenate([swept.values[:, *np.array(cells).T], along.values], 1)
    assert np.nanmax(np.abs(got)) > 1e-3, "there must be something to compare"
    return distance(got, torch.stack(expected, 1), scale=logit_size(model, pairs))


WHOLE = {("gpt2", "frozen"), ("llama", "recomputed"), ("neox", "recomputed"), ("native", "frozen")}
"""Where every sender and path is compared: each family once, each treatment of MLPs twice."""


@pytest.mark.parametrize(("family", "mlps"), [*product(ALL, SETTINGS)])
def test_equal_to_three_plain_runs(family, mlps):
    assert gap(family, mlps=mlps, thin=1 if (family, mlps) in WHOLE else 3) < 1e-5


VALUES, LENGTHS = (
    ("zero", "mean", "mean(pos)", "resample", "scale"),
    (3, 6, 5),
)  # the first example has no position 3
VARIED = [(family, {"value": value, "thin": 5}) for family in ("gpt2", "llama") for value in VALUES]
VARIED += [("qwen2", {"metric": "kl", "thin": 4}), ("neox", {"metric": "kl", "base": "corrupt", "thin": 4})]
VARIED += [(family, {"metric": worst_at_end, "base": "corrupt", "thin": 4}) for family in ("gpt2", "llama")]
VARIED += [
    ("neox", {"metric": worst_at_end, "thin": 4}),
    ("qwen2", {"metric": "prob_diff", "base": "corrupt", "thin": 4}),
]
VARIED += [(family, {"lengths": LENGTHS, "thin": 4}) for family in ("gpt2", "llama", "native")]
VARIED += [
    (family, {"dtype": torch.float64, "thin": 4}) for family in ("gpt2", "neox", "native", "native-attn-only")
]
VARIED += [("gptj", {"lengths": LENGTHS, "thin": 5}), ("native-no-norm", {"dtype": torch.float64, "thin": 4})]


# The ten cases of values come first, five for each family: alternating, each value meets both ways to treat MLPs.
ALTERNATED = [(family, options, SETTINGS[i % 2]) for i, (family, options) in enumerate(VARIED)]


@pytest.mark.parametrize(
    ("family", "options", "mlps"), ALTERNATED, ids=lambda part: str(part).partition(" at 0x")[0]
)
def test_equal_for_any_value_metric_length_and_precision(family, options, mlps):
    assert gap(family, mlps=mlps, **options) < (1e-10 if "dtype" in options else 1e-5)


@pytest.mark.parametrize("mlps", SETTINGS)
def test_on_hooks_it_is_the_same(mlps, monkeypatch):
    """As models do that the fast engine does not know; grouped heads are not among those above."""
    monkeypatch.setattr("workbench.interventions.paths.fast_decoder", lambda *_: (None, "asked for"))
    assert gap("llama", mlps=mlps, lengths=MIXED, thin=3) < 1e-5


HERE = {
    "receivers": [("a1.0@2", "logits@END"), ("a1.0", "logits@2"), ("m1", "logits@3")],
    "senders": ["input", ("a0.1", "a1.2")],
}
TWICE = {"senders": [("a0.1", "a0.1"), ("m0", "m0:3"), ("m0:3", "m0:3")], "receivers": ["logits", "a1.0<k>"]}
INTO = [("a1.0<q>", "a1.0<q>@3"), ("a1.0", "a1.1"), ("m1@2", "m1:5"), ("logits", "logits@END")]
SHAPED = {"value": constant(torch.eye(8)[:6]), "senders": ["a0.1"], "receivers": ["logits", "a1.0<k>"]}
ODD = {
    "logits elsewhere": HERE,
    "logits somewhere": HERE | {"metric": worst_at_end},
    "of [pos, d_head]": SHAPED,
}
ODD |= {"sent twice": TWICE, "read twice": {"senders": ["a0.1"], "receivers": INTO}}


# Alternating: each odd kind meets both families and both treatments of MLPs.
ODDLY = [
    (family, odd, SETTINGS[(i + j) % 2])
    for i, odd in enumerate(ODD)
    for j, family in enumerate(["gpt2", "gptj"])
]


@pytest.mark.parametrize(("family", "odd", "mlps"), ODDLY)
def test_sets_and_values_of_odd_kinds(family, odd, mlps):
    """What acts where the logits are not set; a node that is named twice; a value that fits one head, of all positions."""
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    given = {"value": from_store(corrupt), "mlps": mlps} | ODD[odd]
    senders, receivers = given.pop("senders"), given.pop("receivers")
    got = path_effects(model, pairs, senders=senders, receivers=receivers, **given)
    assert close(
        got, ThreeRuns(model, pairs, **given).table(senders, receivers), scale=logit_size(model, pairs)
    )


@pytest.mark.parametrize("mlps", SETTINGS)
def test_positions_are_found_by_name_where_an_example_has_them(mlps):
    model, (pairs, _, corrupt) = model_of("llama"), pairs_and_stores("llama", (4, 6, 6))
    sides = [
        replace(side, positions={**side.positions, "S": torch.tensor([-1, 2, 3])})
        for side in (pairs.clean, pairs.corrupt)
    ]
    named = replace(pairs, clean=sides[0], corrupt=sides[1])
    receivers, paths = (
        ["a1.1<k>@S", ("a1.0<q>", "a1.1<v>@S"), "a1.0<v>"],
        ["input->a0.1<k>@S->a1.2<q>->logits"],
    )
    given = {"value": from_store(corrupt), "mlps": mlps}
    plain = ThreeRuns(model, named, **given)
    got = path_effects(model, named, senders=["input", "a0.1"], receivers=receivers, **given)
    assert close(got, plain.table(["input", "a0.1"], receivers), scale=logit_size(model, pairs))
    assert got.isnull().any("writer").values.tolist() == [[True, True, False]] + 2 * [[False] * 3]
    along = path_effects(model, named, paths=paths, **given)
    assert close(along[:, 0], plain.path(paths[0]), scale=logit_size(model, pairs))
    assert along.isnull().values.tolist() == [[True], [False], [False]]


@pytest.mark.parametrize(
    ("family", "component"), [("gpt2", "q"), ("gpt2", "k"), ("gpt2", "v"), ("neox", "v"), ("llama", "q")]
)
def test_direct_paths_between_heads_equal_transformer_lens(family, component):
    """It patches the corrupt run towards the clean one, returns the metric itself, and 0 where nothing was measured."""
    model, (pairs, clean, _) = model_of(family), pairs_and_stores(family)
    readers = [f"a{layer}.{head}<{component}>" for layer in range(2) for head in range(4)]
    given = {"value": from_store(clean), "base": "corrupt", "mlps": "frozen"}
    got = path_effects(model, pairs, senders="heads", receivers=readers, **given).values
    measured = ~np.isnan(got)
    assert measured.sum() == 3 * 4 * 4
    sweep, settings = (
        patching.get_act_patch_direct_path_all_sources,
        {"component": component, "verbose": False},
    )
    with torch.no_grad():
        base, sides = ThreeRuns(model, pairs, **given).measured, (pairs.clean, pairs.corrupt)
        caches = [model.run_with_cache(side.tokens)[1] for side in sides]
        for i in range(3):
            read = lambda logits, i=i: logit_difference(logits, pairs)[i]  # noqa: E731
            expected = sweep(model, pairs.corrupt.tokens, *caches, read, **settings).reshape(8, 8) - base[i]
            expected = expected[torch.from_numpy(measured[i])]
            assert close(got[i][measured[i]], expected, scale=logit_size(model, pairs))
            assert float(expected.abs().max()) > 1e-3, "the oracle must have something to say"


@pytest.mark.parametrize("family", ["gpt2", "llama", "native"])
def test_a_head_reaches_the_logits_as_written_out(family):
    """final norm(stream + (z' - z) . W_O) . W_U: of our function, and of the reference that it is compared with."""
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    given = {"value": from_store(corrupt), "mlps": "frozen"}
    got, plain = path_effects(model, pairs, senders="heads", **given), ThreeRuns(model, pairs, **given)
    for j, head in enumerate(str(name) for name in got.writer.values):
        layer, h = int(head[1]), int(head[3])
        change = (corrupt["z", layer].padded() - clean["z", layer].padded())[:, :, h] @ model.blocks[
            layer
        ].attn.W_O[h].detach()
        with torch.no_grad():
            logits = model.unembed(model.ln_final(clean["resid_post", 1].padded() + change))
        expected = logit_difference(logits, pairs) - plain.measured
        assert close(got[:, j, 0], expected, scale=logit_size(model, pairs))
        assert close(plain.effect(head, "logits"), expected, scale=logit_size(model, pairs))


ADDING_UP = [("native-no-norm", "frozen", True), ("native-attn-only-no-norm", "recomputed", True)]
ADDING_UP += [("native-no-norm", "recomputed", False), ("native", "frozen", False), ("gpt2", "frozen", False)]


@pytest.mark.parametrize(("family", "mlps", "adds_up"), ADDING_UP)
def test_without_a_final_norm_the_direct_effects_of_all_writers_add_up(family, mlps, adds_up):
    """Not with a norm, nor where the MLPs answer, so that what reaches them is counted once more."""
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    got = path_effects(model, pairs, value=from_store(corrupt), mlps=mlps)
    with torch.no_grad():
        total = logit_difference(model(pairs.corrupt.tokens), pairs) - logit_difference(
            model(pairs.clean.tokens), pairs
        )
    assert got.writer.values.tolist() == list(Graph.of(model).writers)
    away = distance(got.sum(("writer", "reader")), total, scale=logit_size(model, pairs))
    assert away < 1e-5 if adds_up else away > 1e-3


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
    model = native(
        n_heads=2, d_model=12, d_head=4, n_ctx=4, d_vocab=4, normalization_type=None, attn_only=True
    )
    token, place, previous = torch.eye(12).split(4)
    nothing = torch.zeros(4, 12)
    weights = {
        "tok_embed": token,
        "pos": place,
        "layers.0.attn.q": torch.cat(
            [1000 * place.roll(-1, 0) * torch.tensor([[1], [1], [1], [0]]), nothing]
        ),
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
            parameter += weights.get(
                name.replace("._original_component", "").removesuffix(".weight"), torch.zeros(())
            )
    pairs = PromptPairs(
        Prompts.of([[3, 0, 1, 0]]), Prompts.of([[3, 2, 1, 0]]), torch.tensor([[[1]]]), torch.tensor([[[0]]])
    )
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
        (
            both,
            ("a1.0", "a1.1", "logits"),
        ): 0,  # the logits' input too, as it is while the heads of layer 1 are frozen
        ((*both, "a1.0", "a1.1"), "logits"): -3,
        ("input", "a0.0<v>"): -4,  # a1.0<k> and a1.1<v>, as all beyond it is free
        ("input", "a0.0<q>"): 0,  # positions are the same
        ("a1.0", "logits"): -4,  # what it writes in the corrupt run
    }
    denoising = {
        ("a0.0", "a1.0<k>"): 4,  # the key at 2 fits again: 4b for a + b + c + d
        ("a0.0", "a1.1<v>"): -1,
        ("input", "a1.0<v>"): -1,  # a for c at position 1
        (both, "a1.0"): 4,
    }
    for base, value, paper in (("clean", corrupt, noising), ("corrupt", clean, denoising)):
        for (senders, receivers), expected in paper.items():
            given = {"value": from_store(value), "base": base, "mlps": "recomputed"}  # there are none
            got = path_effects(model, pairs, senders=[senders], receivers=[receivers], **given)
            assert got.values.item() == expected, (senders, receivers)


def test_paths_of_several_steps_are_as_on_paper(worked):
    model, pairs, _, corrupt = worked
    corrupted = {
        "input->a0.0<v>->a1.0<k>->logits": -5,
        "input->a0.0<v>@1->a1.0<k>@2->logits@END": -5,  # what position 1 holds, position 2 has as previous
        "input->a0.0<v>@2->a1.0<k>->logits": 0,
        "input->a0.0->a1.0<k>@1->logits": 0,
        "input->a0.0<v>->a1.1<v>->logits": 1,
        "input->a0.0<q>->a1.0<k>->logits": 0,
        "input->a0.0->a1.0->logits": -5,
        "a0.0->a1.0<k>->logits@2": 0,  # nothing is read there
    }
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
    for paper, value in ((corrupted, from_store(corrupt)), (ablated, zero())):
        got = path_effects(model, pairs, paths=list(paper), value=value, mlps="frozen")
        assert close(got[0], list(paper.values()), tolerance=1e-5)


@pytest.mark.parametrize(
    ("family", "own", "mlps"), [*product(["gpt2", "llama", "neox"], ["store", "scale"], SETTINGS)]
)
def test_sending_the_base_value_is_exactly_zero(family, own, mlps):
    model, (pairs, clean, _) = model_of(family), pairs_and_stores(family)
    senders, receivers, paths = asked(model)
    given = {"value": from_store(clean, allow_self=True) if own == "store" else scale(1.0), "mlps": mlps}
    swept = path_effects(model, pairs, senders=senders, receivers=receivers, **given).values
    along = path_effects(model, pairs, paths=paths, **given).values
    assert int((abs(swept) > 0).sum() + (along != 0).sum()) == 0
    assert int((swept == 0).sum()) > 250


@pytest.mark.parametrize(("family", "mlps"), [*product(ALL[:-1], SETTINGS)])
def test_everything_into_everything_is_the_other_run(family, mlps):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family, MIXED)
    graph = Graph.of(model)
    bare = (*graph.writers[1:], "logits")
    receivers = [graph.readers, bare, "logits", tuple(name for name in bare if name != "logits")]
    got = path_effects(
        model, pairs, senders=[graph.writers], receivers=receivers, value=from_store(corrupt), mlps=mlps
    )
    rows, ends = torch.arange(3), pairs.clean.lengths - 1
    with torch.no_grad():
        runs = [model(side.tokens)[rows, ends] for side in (pairs.clean, pairs.corrupt)]
    clean, other = (run[rows, pairs.answers[:, 0, 0]] - run[rows, pairs.wrong[:, 0, 0]] for run in runs)
    assert float((other - clean).abs().min()) > 1e-3
    for column in range(4):  # all but the logits will do: the last token is the same on both sides
        assert close(got[:, 0, column], other - clean, scale=logit_size(model, pairs))


@pytest.mark.parametrize(("family", "mlps"), [("gpt2", "recomputed"), ("llama", "frozen")])
def test_sweeps_order_and_batches_change_nothing(family, mlps):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family, MIXED)
    senders, receivers, paths = asked(model)
    senders, paths = senders[::3], paths[::2]
    given = {"value": from_store(corrupt), "mlps": mlps}
    grid = {"senders": senders, "receivers": receivers} | given
    swept, along = path_effects(model, pairs, **grid), path_effects(model, pairs, paths=paths, **given)
    for j, k in ((0, 0), (1, 4), (2, 11), (3, 2)):
        single = path_effects(model, pairs, senders=[senders[j]], receivers=[receivers[k]], **given)
        assert close(single[:, 0, 0], swept[:, j, k], scale=logit_size(model, pairs))
    for k in (0, 3):
        assert close(
            path_effects(model, pairs, paths=paths[k], **given)[:, 0],
            along[:, k],
            scale=logit_size(model, pairs),
        )
    for order in ([2, 0, 1], [1], [0]):  # in other company, and padded to another length
        assert close(
            path_effects(model, pairs.select(order), **grid), swept[order], scale=logit_size(model, pairs)
        )
        assert close(
            path_effects(model, pairs.select(order), paths=paths, **given),
            along[order],
            scale=logit_size(model, pairs),
        )
    for budget in (1, 200_000):
        assert close(path_effects(model, pairs, budget=budget, **grid), swept, scale=logit_size(model, pairs))
        assert close(
            path_effects(model, pairs, paths=paths, budget=budget, **given),
            along,
            scale=logit_size(model, pairs),
        )
    assert close(
        path_effects(model, pairs, readout=torch.float64, **grid), swept, scale=logit_size(model, pairs)
    )


@pytest.mark.types
@pytest.mark.parametrize(("family", "mlps"), [*product(["gpt2", "llama", "neox"], SETTINGS)])
def test_a_path_of_one_arrow_is_a_sender_and_a_receiver(family, mlps):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    given = {"value": from_store(corrupt), "mlps": mlps}
    swept = path_effects(
        model, pairs, senders=["input", "a0.1", "m0"], receivers=["a1.2<q>", "a1.3", "m1@END"], **given
    )
    paths = [f"{writer}->{reader}" for writer in swept.writer.values for reader in swept.reader.values]
    along = path_effects(model, pairs, paths=paths, **given)
    assert (along.dims, along.path.values.tolist()) == (("example", "path"), paths)
    assert close(along, swept.values.reshape(3, -1), scale=logit_size(model, pairs))


def test_names_of_groups_and_what_results_say():
    assert wb.path_effects is path_effects
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    given = {"value": from_store(corrupt), "mlps": "recomputed", "metric": "kl"}
    heads = [f"a{layer}.{head}" for layer in range(2) for head in range(4)]
    writers = list(Graph.of(model).writers)
    every = path_effects(model, pairs, senders=writers, **given)
    assert dict(every.sizes) == {"example": 3, "writer": 11, "reader": 1}
    for group, names in ((None, writers), ("heads", heads), ("mlps", ["m0", "m1"]), ("a1.2", ["a1.2"])):
        got = path_effects(model, pairs, senders=group, **given)
        assert got.writer.values.tolist() == names
        assert got.reader.values.tolist() == ["logits"]
        assert close(got, every.sel(writer=names), scale=logit_size(model, pairs))
    joined = path_effects(
        model, pairs, senders=[("a0.1", "m0:3"), "input"], receivers=[("a1.1", "logits@END"), "m1"], **given
    )
    assert joined.writer.values.tolist() == ["a0.1 + m0:3", "input"]
    assert joined.reader.values.tolist() == ["a1.1 + logits@END", "m1"]
    expected = {
        "kind": "paths",
        "mlps": "recomputed",
        "metric": "kl",
        "value": "from_store",
        "base": "clean",
        "unit": "nats",
    }
    expected |= {
        "n": 3,
        "data_fingerprint": pairs.fingerprint,
        "model_fingerprint": wb.model_fingerprint(model),
    }
    for result in (every, joined, path_effects(model, pairs, paths="input->a0.1->logits", **given)):
        assert {key: result.attrs[key] for key in expected} == expected


@pytest.mark.parametrize(("family", "mlps"), [*product(["gpt2", "neox", "llama"], SETTINGS)])
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


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "native-attn-only", "gptj"])
def test_a_store_of_the_base_run_gives_the_same_numbers(family):
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family, MIXED)
    senders, receivers, paths = (part[::2] for part in asked(model))
    shuffled, _ = capture_pairs(model, pairs.select([2, 0, 1]))
    for mlps, base, value, store in (
        ("frozen", "clean", corrupt, shuffled),
        ("recomputed", "corrupt", clean, corrupt),
    ):
        given = {"value": from_store(value), "mlps": mlps, "base": base}
        both = ({"senders": senders[::2], "receivers": receivers}, {"paths": paths})
        # One family meets both in both runs, the others one in each.
        for what in both if family == "gpt2" else both[:1] if mlps == "frozen" else both[1:]:
            fresh = path_effects(model, pairs, **what, **given)
            assert close(
                path_effects(model, pairs, **what, store=store, **given),
                fresh,
                scale=logit_size(model, pairs),
            )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_a_store_nothing_is_run_to_reach_the_logits(family):
    """Less than a tenth of the arithmetic of the base run; without the store it is run, and that shows."""
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    given = {"senders": ["a1.0", "input"], "value": from_store(corrupt), "mlps": "frozen"}
    path_effects(model, pairs, **given)  # the first call of a model compares the engines

    def work(call):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return counter.get_total_flops()

    one_run = work(lambda: model(pairs.clean.tokens))
    assert work(lambda: path_effects(model, pairs, **given)) > 0.5 * one_run
    assert work(lambda: path_effects(model, pairs, store=clean, **given)) < 0.1 * one_run


CROOKED = {
    "a0.1": "a0.1",
    "a0.1->": "a0.1->",
    "logits->a1.0": "logits",
    "input->logits->m1": "logits",
    "m0->input": "input",
}
CROOKED |= {
    "input->a1.7->logits": "a1.7",
    "a1.0->a0.1<q>->logits": "a1.0->a0.1<q>",
    "input->a0.1->a0.2->m1": "a0.1->a0.2",
}
WRONG = [
    (SiteError, name, {"senders": [("m1", name)]})
    for name in "a9.9 a0.4 m0:999 head9 a0.1<q> logits a0.1@3".split()
]
WRONG += [
    (SiteError, name, {"receivers": [("m1", name)]}) for name in "input a7.0<q> a1.0<z> a1.0<q>@-1 m2".split()
]
WRONG += [(SiteError, named, {"paths": ["input->logits", path]}) for path, named in CROOKED.items()]
WRONG += [(SiteError, what, {what: nothing}) for what in ("senders", "receivers") for nothing in ([], [()])]
WRONG += [(SiteError, "paths", {"paths": []}), (SiteError, "17", {"receivers": "a1.0<q>@17"})]
WRONG += [(SiteError, "paths", {"paths": "input->logits", what: "m1"}) for what in ("senders", "receivers")]
WRONG += [(UnknownName, "S9", {"receivers": "m1@S9"}), (UnknownName, "S9", {"paths": "input->m1@S9->logits"})]
WRONG += [(UnknownName, "thawed", {"mlps": "thawed"}), (UnknownName, "dirty", {"base": "dirty"})]
WRONG += [(UnknownName, "logit_dif", {"metric": "logit_dif"})]


@pytest.mark.parametrize(("error", "named", "given"), WRONG, ids=[str(given) for *_, given in WRONG])
def test_what_cannot_be_asked_is_named(error, named, given):
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    with pytest.raises(error, match=re.escape(named)):
        untyped(path_effects)(model, pairs, **({"value": from_store(corrupt), "mlps": "frozen"} | given))


def test_a_value_by_name_is_that_value():
    model, pairs = model_of("gpt2"), pairs_and_stores("gpt2")[0]
    given = {"senders": ["a0.1", "m0"], "mlps": "frozen", "progress": False}
    named = path_effects(model, pairs, value="zero", **given)
    np.testing.assert_array_equal(named, path_effects(model, pairs, value=zero(), **given))
    with pytest.raises(UnknownName, match=r"value='zer' is not known\. Did you mean 'zero'"):
        path_effects(model, pairs, value="zer", **given)


def test_what_a_model_or_the_pairs_lack_is_named():
    given, pairs = {"value": zero(), "mlps": "frozen"}, make_pairs()
    lacking = [
        ("llama", "a0.2<k>", {"receivers": "a0.2<k>"}),
        ("neox", "a0.1->m0", {"paths": "a0.1->m0->logits"}),
    ]
    lacking += [
        ("native-attn-only", "m0", {"receivers": "m0"}),
        ("native-attn-only", "senders", {"senders": "mlps"}),
    ]
    for family, named, nodes in lacking:
        with pytest.raises(SiteError, match=re.escape(named)):
            path_effects(model_of(family), pairs, **nodes, **given)
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
    others = (
        pairs_and_stores("gpt2", MIXED)[1],
        pairs_and_stores("native")[1],
        capture_pairs(model, pairs, sites=["z"])[0],
    )
    for store, named in zip((corrupt, *others), ("prompt 0", "prompt 0", "model", "resid_post"), strict=True):
        with pytest.raises(StoreError, match=named):
            path_effects(model, pairs, store=store, **given)
    with pytest.raises(EditError, match="very run"):
        path_effects(model, pairs, **given | {"value": from_store(clean)})
