"""The fast run of circuits: the run on hooks is its reference; neurons, weights, metrics and batches by their identities."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from closeness import close, distance
from families import (
    D_VOCAB,
    asked,
    build,
    logit_difference,
    logit_size,
    make_pairs,
    max_difference,
    model_of,
    pairs_and_stores,
    run_circuits,
    untyped,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench.engine.circuits as circuits_module
from workbench.circuit.graph import Graph
from workbench.engine.capture import capture_pairs
from workbench.engine.circuits import Circuits
from workbench.engine.fast.circuits import CircuitWalk
from workbench.engine.hooked.block import Block
from workbench.engine.hooked.circuits import circuit_logits
from workbench.engine.select import fast_decoder
from workbench.engine.values import add, from_store, mean, resample, zero
from workbench.errors import ModelError, UnknownName
from workbench.interventions.paths import path_effects
from workbench.metrics.metric import metric
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts

ON_WALK = ("gpt2", "llama", "neox", "native", "native-no-norm", "native-attn-only", "qwen2")
LENGTHS = (5, 6, 5, 6)
DENSITIES = (0.0, 0.1, 0.4, 0.6, 0.9, 1.0)
POSITIONS = (2, "S", "END")
VALUE_NAMES = ("from_store", "zero", "mean", "resample")


@cache
def named_pairs(lengths=LENGTHS):
    """Pairs whose prompts have a position "S", except the last."""
    pairs = make_pairs(lengths)
    sides = []
    for side in (pairs.clean, pairs.corrupt):
        rows = [row[:length].tolist() for row, length in zip(side.tokens, side.lengths, strict=True)]
        where = [{"S": 1 + i % 3} for i in range(len(rows) - 1)] + [{}]
        sides.append(Prompts.of(rows, positions=where))
    return replace(pairs, clean=sides[0], corrupt=sides[1])


@cache
def stores_of(model, ids, pairs):
    return capture_pairs(model, pairs)


def value_of(name, model, pairs):
    clean, corrupt = stores_of(model, pairs.clean.ids, pairs)
    return {
        "from_store": from_store(corrupt),
        "zero": zero(),
        "mean": mean(clean),
        "resample": resample(clean, seed=2),
    }[name]


def masks_of(graph, densities=DENSITIES, *, seed=0, pruned=False):
    random = np.random.default_rng(seed).random((len(densities), *graph.exists.shape))
    masks = graph.exists & (random < np.array(densities).reshape(-1, *[1] * graph.exists.ndim))
    return graph.prune(masks) if pruned else masks


def walk_of(model, graph, bound, places=None):
    decoder, why = fast_decoder(model, bound.prompts.tokens.shape[1])
    assert decoder is not None, why
    return CircuitWalk(decoder, graph, bound, places=places)


def walked_logits(model, graph, keep, bound):
    """[circuit, example, pos, vocab] of the walk from its first token on, and that token."""
    walk = walk_of(model, graph, bound)
    with torch.no_grad():
        stream = walk.streams(torch.as_tensor(keep).float())
        return walk.decoder.unembed(walk.decoder.final_norm(stream)), walk.start


def far(got, expected, prompts, start=0):
    """The largest difference of two tables of logits at real tokens, as a share of the largest logit or of 1."""
    real = (torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None])[:, start:]
    size = max(1.0, float(expected.abs().max()))
    return distance(got[:, real], expected[:, :, start:][:, real], scale=size)


TYPED = ("gpt2", "llama")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.types) if name in TYPED else name for name in ON_WALK]
)
@pytest.mark.parametrize("value", VALUE_NAMES)
def test_the_walk_equals_the_run_on_hooks(family, value):
    """Every family with every value; graphs with and without positions take turns, so that each meets both.

    RMSNorm of a stream that is exactly zero amplifies the rounding of the reference itself: float64 there.
    """
    turn = ON_WALK.index(family) + VALUE_NAMES.index(value)
    positions = (None, POSITIONS)[turn % 2]
    amplified = value == "zero" and family in ("llama", "qwen2")
    dtypes = ((torch.float32, 1e-5), (torch.float64, 1e-9 if amplified else 1e-10))
    for dtype, tolerance in dtypes[1 if amplified or value in ("mean", "resample") else 0 :]:
        model, pairs = model_of(family, dtype), named_pairs()
        graph = Graph.of(model, positions=positions)
        bound = value_of(value, model, pairs).bind(model, pairs.clean, pairs.corrupt)
        for pruned in (False, True)[: 2 if dtype == torch.float64 else 1]:
            masks = masks_of(graph, seed=len(family), pruned=pruned)
            expected = run_circuits(model, masks, bound, graph)
            got, start = walked_logits(model, graph, masks, bound)
            assert far(got, expected, pairs.clean, start) < tolerance, (dtype, pruned)
            assert start == (2 if value == "from_store" else 0)


@st.composite
def drawn_circuits(draw):
    graph = Graph.of(model_of("llama"), positions=draw(st.sampled_from([None, (2,), POSITIONS])))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    masks = [
        graph.exists & (random.random(graph.exists.shape) < share)
        for share in draw(st.lists(st.floats(0, 1), min_size=1, max_size=3))
    ]
    return graph, np.stack(masks)


@given(drawn_circuits())
@settings(max_examples=15)
def test_any_circuits_together_are_what_each_is_on_hooks(drawn):
    """Which writers are kept once for all circuits depends on the whole set; the numbers do not."""
    graph, masks = drawn
    model, pairs = model_of("llama", torch.float64), named_pairs()
    bound = value_of("from_store", model, pairs).bind(model, pairs.clean, pairs.corrupt)
    got, start = walked_logits(model, graph, masks, bound)
    assert far(got, run_circuits(model, masks, bound, graph), pairs.clean, start) < 1e-9


@pytest.mark.parametrize("positions", [None, POSITIONS], ids=["everywhere", "positions"])
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.types) if name in ("gpt2", "llama") else name for name in ON_WALK],
)
def test_the_full_circuit_is_the_clean_run_and_the_empty_one_the_corrupt_run(family, positions):
    model, pairs = model_of(family), named_pairs((4, 6, 5))
    graph, value = Graph.of(model, positions=positions), value_of("from_store", model, pairs)
    bound = value.bind(model, pairs.clean, pairs.corrupt)
    got, start = walked_logits(model, graph, masks_of(graph, [1.0, 0.0]), bound)
    with torch.no_grad():
        ends = torch.stack([model(side.tokens) for side in (pairs.clean, pairs.corrupt)])
    assert far(got, ends, pairs.clean, start) < 1e-5
    assert max_difference(ends[0], ends[1]) > 1e-2
    runs = Circuits(model, graph, pairs, value=value, metric=metric("logit_diff"))
    assert runs.engine == "circuit walk"
    full, empty = runs.measure(masks_of(graph, [1.0, 0.0]))
    for got_metric, side in ((full, pairs.clean), (empty, pairs.corrupt)):
        rows, last = torch.arange(3), side.lengths - 1
        logits = ends[0 if side is pairs.clean else 1][rows, last]
        expected = logits[rows, pairs.answers[:, 0, 0]] - logits[rows, pairs.wrong[:, 0, 0]]
        assert close(torch.from_numpy(got_metric), expected, tolerance=1e-5, scale=logit_size(model, pairs))
    assert close(runs.full, torch.from_numpy(full), tolerance=1e-5, scale=logit_size(model, pairs))


# ---- weights between 0 and 1


@pytest.mark.parametrize(
    ("family", "positions"),
    [
        pytest.param("gpt2", POSITIONS, marks=pytest.mark.types),
        ("neox", POSITIONS),
        ("llama", None),
        ("native", None),
        ("gpt2", None),
        ("llama", POSITIONS),
    ],
)
def test_weights_of_edges_have_the_gradient_of_hooks_and_of_finite_differences(family, positions):
    model, pairs = model_of(family, torch.float64), named_pairs()
    graph, value = Graph.of(model, positions=positions), value_of("from_store", model, pairs)
    runs = Circuits(model, graph, pairs, value=value, metric=metric("logit_diff"))
    (batch,) = runs.batches()
    random = np.random.default_rng(1)
    keep = torch.from_numpy(
        graph.exists * random.uniform(0.1, 0.9, (2, *graph.exists.shape))
    ).requires_grad_()
    weight = torch.tensor(random.standard_normal((2, len(pairs))))

    fast = runs.soft(keep, batch)
    (slope,) = torch.autograd.grad((fast * weight).sum(), keep)
    on_hooks = torch.stack(
        [batch.hooked(runs.metric, each) for each in circuit_logits(model, graph, keep, batch.bound)]
    )
    (expected,) = torch.autograd.grad((on_hooks * weight).sum(), keep)
    assert close(fast, on_hooks, scale=logit_size(model, pairs))
    exists = torch.from_numpy(graph.exists).expand_as(slope)
    size = float(expected[exists].abs().max())
    # the norms of Llama are float32 in transformers, whatever the model is
    assert close(slope[exists], expected[exists], tolerance=1e-5 if family == "llama" else 1e-9, scale=size)

    step, tolerance = (3e-3, 2e-3) if family == "llama" else (1e-5, 1e-6)
    at = np.argwhere(graph.exists)
    for index in at[random.permutation(len(at))[:6]]:
        ends = []
        for sign in (1, -1):
            moved = keep.detach().clone()
            moved[(0, *index)] += sign * step
            with torch.no_grad():
                ends.append((runs.of_batch(batch, moved) * weight).sum())
        assert abs(float(ends[0] - ends[1]) / (2 * step) - float(slope[(0, *index)])) < tolerance * size


# ---- neurons


def split(graph, fine, mask):
    """A circuit of whole MLPs as one of all their neurons."""
    rows = [graph.writer_index[name.split(":")[0]] for name in fine.writers]
    columns = [graph.reader_index[name.split(":")[0]] for name in fine.readers]
    return mask[..., rows, :][..., columns]


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("layers", [True, 1], ids=["all layers", "the last"])
def test_circuits_of_all_neurons_of_mlps_are_circuits_of_those_mlps(family, layers):
    """A neuron writes without the MLP's output bias, so that "zero" means the same where there is no bias alone."""
    model, pairs = model_of(family, torch.float64), named_pairs()
    values = ["from_store", "mean", *(["zero"] if family in ("llama", "qwen2") else [])]
    for positions in (None, (2, "S")):
        graph, fine = (
            Graph.of(model, positions=positions),
            Graph.of(model, positions=positions, neurons=layers),
        )
        masks = masks_of(graph, [0.0, 0.5, 0.8, 1.0], seed=3)
        for name in values:
            bound = value_of(name, model, pairs).bind(model, pairs.clean, pairs.corrupt)
            got, start = walked_logits(model, fine, split(graph, fine, masks), bound)
            expected = run_circuits(model, masks, bound, graph)
            assert far(got, expected, pairs.clean, start) < 1e-9, (positions, name)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "native-no-norm"])
def test_an_edge_of_a_neuron_taken_out_alone_is_its_path_effect(family):
    model, pairs = model_of(family, torch.float64), make_pairs()
    _, corrupt = capture_pairs(model, pairs)
    graph, value = Graph.of(model, neurons=True), from_store(corrupt)
    runs = Circuits(model, graph, pairs, value=value, metric=metric("logit_diff"))
    found = []
    for edge in ("m0:5->m1:7", "m0:5->a1.1<k>", "m1:3->logits", "a0.2->m1:9", "input->m0:4", "m0:0->logits"):
        mask = graph.exists.copy()
        mask[graph.index(edge)] = False
        sender, receiver = edge.split("->")
        path = path_effects(model, pairs, senders=[sender], receivers=[receiver], value=value, mlps="frozen")[
            :, 0, 0
        ]
        assert close(runs.measure(mask[None])[0] - runs.full, path, scale=logit_size(model, pairs)), edge
        found.append(float(abs(path).max()))
    assert sum(size > 1e-7 for size in found) >= 3, "neurons that are off change nothing"


# ---- many circuits, many prompts


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_equal_circuits_are_run_once(family, monkeypatch):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    graph = Graph.of(model)
    runs = Circuits(model, graph, pairs, value=from_store(corrupt), metric=metric("logit_diff"))
    a, b, c = masks_of(graph, [0.3, 0.6, 0.9])
    alone = np.concatenate([runs.measure(each[None]) for each in (a, b, c)])
    run = []
    plain = Circuits.of_batch

    def counted(self, batch, keep, further=()):
        run.append(len(keep))
        return plain(self, batch, keep, further)

    monkeypatch.setattr(Circuits, "of_batch", counted)
    got = runs.measure(np.stack([b, a, b, c, a, a]))
    assert sum(run) == 3
    assert close(got, alone[[1, 0, 1, 2, 0, 0]], tolerance=1e-5, scale=logit_size(model, pairs))


@pytest.mark.parametrize(
    ("family", "value"), [("gpt2", "from_store"), ("llama", "mean"), ("gptj", "from_store"), ("gpt2", "add")]
)
def test_a_small_budget_makes_more_batches_of_the_same_numbers(family, value):
    model, pairs = model_of(family), make_pairs((6, 4, 6, 5, 6), seed=2)
    graph = Graph.of(model)
    made = add(0.1) if value == "add" else value_of(value, model, pairs)
    usual = Circuits(model, graph, pairs, value=made, metric=metric("logit_diff"))
    masks = masks_of(graph, [0.2, 0.5, 0.8])
    expected, rows = usual.measure(masks), set()
    assert usual.engine == ("circuit walk" if value != "add" and family != "gptj" else "reference")
    for budget in (1, 200_000, 1_000_000):
        small = Circuits(model, graph, pairs, value=made, metric=metric("logit_diff"), budget=budget)
        rows.add(min(len(pairs), small.rows))
        assert close(small.measure(masks), expected, tolerance=1e-5, scale=logit_size(model, pairs))
        assert close(small.full, usual.full, tolerance=1e-5, scale=logit_size(model, pairs))
    assert 1 in rows
    assert len(rows) > 1


# ---- metrics


def several_tokens(pairs):
    """The same pairs with answers of two and three tokens, and two alternatives for some."""
    generator = torch.Generator().manual_seed(5)
    answers, wrong = (torch.randint(1, D_VOCAB, (len(pairs), 2, 3), generator=generator) for _ in range(2))
    answers[0, 1] = -1
    answers[:, :, 2][1:] = -1
    wrong[2:, :, 2] = -1
    return PromptPairs(pairs.clean, pairs.corrupt, answers, wrong)


def spread(logits):
    """[example]: reads every position."""
    return logits.softmax(-1).square().sum((1, 2)) + logits[:, 0, 3] - logits[:, 3, 1]


# Every metric with one family; with the others one of each kind: read at the end, over all logits, over an answer.
METRICS = ["logit_diff", "prob_diff", "kl", "nll", "rank", "all", "sequence_logprob", "sequence_logprob_diff"]
ALONG = [("llama", "logit_diff"), ("llama", "kl"), ("llama", "sequence_logprob")]
ALONG += [
    ("native-attn-only", "prob_diff"),
    ("native-attn-only", "all"),
    ("native-attn-only", "sequence_logprob_diff"),
]


@pytest.mark.parametrize(("family", "name"), [*(("gpt2", name) for name in METRICS), *ALONG])
def test_metrics_of_the_walk_equal_those_of_hooks(family, name, monkeypatch):
    model, pairs = model_of(family, torch.float64), named_pairs((6, 6, 6, 6) if name == "all" else LENGTHS)
    pairs = several_tokens(pairs) if name.startswith("sequence") else pairs
    measure = metric(spread) if name == "all" else metric(name)
    graph, value = Graph.of(model, positions=(2, "S")), value_of("from_store", model, pairs)
    masks = masks_of(graph)
    fast = Circuits(model, graph, pairs, value=value, metric=measure)
    with monkeypatch.context() as patch:
        patch.setattr(circuits_module, "fast_decoder", lambda *given: (None, "the test says so"))
        slow = Circuits(model, graph, pairs, value=value, metric=measure)
    assert (fast.engine, slow.engine) == ("circuit walk", "reference")
    expected = slow.measure(masks)
    tolerance = 3e-6 if family == "llama" else 1e-8  # its norms are float32 in transformers
    assert close(fast.measure(masks), expected, tolerance=tolerance, scale=logit_size(model, pairs))
    assert close(fast.full, slow.full, tolerance=tolerance, scale=logit_size(model, pairs))
    assert close(expected[-1], fast.full, tolerance=tolerance, scale=logit_size(model, pairs)), (
        "the full circuit is the clean run"
    )
    if name == "kl":
        assert close(fast.full, 0 * fast.full, scale=logit_size(model, pairs))
        assert (expected[:-1].max(1) > 1e-4).all()
    tiny = Circuits(model, graph, pairs, value=value, metric=measure, budget=1)
    if name != "all":
        assert close(tiny.measure(masks), expected, tolerance=tolerance, scale=logit_size(model, pairs))


def test_the_ends_of_answers_of_several_tokens_are_those_answers_behind_either_prompt():
    """Other values are written at the prompt's tokens alone: the answer's tokens follow a corrupt prompt."""
    model = model_of("gpt2", torch.float64)
    pairs = several_tokens(make_pairs((5, 5, 5)))
    runs = Circuits(
        model,
        Graph.of(model),
        pairs,
        value=value_of("from_store", model, pairs),
        metric=metric("sequence_logprob_diff"),
    )
    empty, full = runs.measure(masks_of(runs.graph, [0.0, 1.0]))

    def by_hand(prompts):
        sums = torch.zeros(3, 2, dtype=torch.float64)
        for column, table in enumerate((pairs.answers, pairs.wrong)):
            for i in range(3):
                listed = [[int(t) for t in tokens if t >= 0] for tokens in table[i].tolist()]
                scores = []
                for tokens in [each for each in listed if each]:
                    whole = torch.tensor([[*prompts.tokens[i].tolist(), *tokens[:-1]]])
                    with torch.no_grad():
                        logs = model(whole)[0].log_softmax(-1)
                    scores.append(sum(float(logs[4 + step, token]) for step, token in enumerate(tokens)))
                sums[i, column] = np.mean(scores)
        return sums[:, 0] - sums[:, 1]

    assert close(full, by_hand(pairs.clean), scale=logit_size(model, pairs))
    assert close(empty, by_hand(pairs.corrupt), scale=logit_size(model, pairs))
    assert max_difference(empty, full) > 1e-3


# ---- norms behind a block's parts, on hooks


def test_gemma_ends_are_the_clean_and_the_corrupt_run():
    model, graph = model_of("gemma2"), Graph.of(model_of("gemma2"))
    pairs, _, corrupt = pairs_and_stores("gemma2", (4, 6, 5))
    logits = run_circuits(
        model, masks_of(graph, [0.0, 1.0]), from_store(corrupt).bind(model, pairs.clean, pairs.corrupt)
    )
    with torch.no_grad():
        ends = torch.stack([model(side.tokens) for side in (pairs.corrupt, pairs.clean)])
    assert far(logits, ends, pairs.clean) < 1e-5
    assert max_difference(ends[0], ends[1]) > 1e-2
    runs = Circuits(model, graph, pairs, value=from_store(corrupt), metric=metric("logit_diff"))
    assert runs.engine == "reference"


@pytest.mark.parametrize(
    "cut", [("a0.1",), ("a0.0", "a0.3"), ("m0",), ("input",), ("a0.0", "a0.1", "a0.2", "a0.3", "m0", "input")]
)
@pytest.mark.parametrize("reader", ["m1", "logits", "a1.2<q>", "a1.1<k>", "a1.0<v>"])
def test_edges_of_gemma_taken_out_are_what_hand_written_hooks_say(cut, reader):
    """What the heads of a layer write is normed as a sum: the change is that of the normed sum."""
    model, (pairs, _, corrupt) = (
        model_of("gemma2", torch.float64),
        pairs_and_stores("gemma2", dtype=torch.float64),
    )
    graph, tokens = Graph.of(model), pairs.clean.tokens
    z_hook = "blocks.0.attn.hook_z"
    z, z_other = (asked(model, side.tokens, {}, z_hook).clone() for side in (pairs.clean, pairs.corrupt))
    heads = [int(name[3:]) for name in cut if name.startswith("a")]
    new_z = z.clone()
    new_z[:, :, heads] = z_other[:, :, heads]

    def added_by_attention(z):
        inside, outside = (
            asked(model, tokens, {z_hook: z}, f"blocks.0.{at}") for at in ("hook_resid_pre", "ln2.hook_in")
        )
        return outside - inside

    change = added_by_attention(new_z) - added_by_attention(z)
    for name, hook in (("m0", "blocks.0.hook_mlp_out"), ("input", "blocks.0.hook_resid_pre")):
        if name in cut:
            change = change + asked(model, pairs.corrupt.tokens, {}, hook) - asked(model, tokens, {}, hook)
    entry = {"m1": "blocks.1.ln2.hook_in", "logits": "ln_final.hook_in"}.get(
        reader, "blocks.1.hook_resid_pre"
    )
    moved = {entry: asked(model, tokens, {}, entry) + change}
    if reader.startswith("a"):
        port, head = f"blocks.1.attn.hook_{reader[-2]}", int(reader[3])
        kept = asked(model, tokens, {}, port)
        kept[:, :, head] = asked(model, tokens, moved, port)[:, :, head]
        moved = {port: kept}
    set_to = [(name, lambda value, hook, new=new: new.clone().view_as(value)) for name, new in moved.items()]
    with torch.no_grad():  # the model's logits are capped behind the unembedding
        expected = model.run_with_hooks(tokens, fwd_hooks=set_to)
    mask = graph.exists.copy()
    for name in cut:
        mask[graph.index(f"{name}->{reader}")] = False
    got = run_circuits(model, mask[None], from_store(corrupt).bind(model, pairs.clean, pairs.corrupt))[0]
    size = float(expected.abs().max())
    assert close(got, expected, tolerance=2e-6, scale=size)  # norms are float32 in transformers
    with torch.no_grad():
        assert max_difference(expected, model(tokens)) > 1e-5 * size


def test_gemma_has_norms_behind_attention():
    assert Block.of(model_of("gemma2"), 0).heads.attn_post is not None
    assert Block.of(model_of("llama"), 0).heads.attn_post is None


# ---- what is refused


def test_neurons_on_hooks_and_unknown_positions_are_refused():
    model, pairs = model_of("gptj"), make_pairs()
    graph = Graph.of(model, neurons=True)
    with pytest.raises(ModelError) as error:
        Circuits(model, graph, pairs, value=zero(), metric=metric("logit_diff"))
    assert str(error.value) == (
        "Circuits of neurons run on the fast engine alone, and this model or value needs the reference: use whole MLPs, "
        "Graph.of(model), and a value that does not depend on what is there."
    )
    graph = Graph.of(model_of("gpt2"), positions=["S2"])
    with pytest.raises(UnknownName) as unknown:
        Circuits(model_of("gpt2"), graph, pairs, value=zero(), metric=metric("logit_diff")).measure(
            graph.exists[None]
        )
    assert str(unknown.value) == "position='S2' is not known. Choices: END."


def test_models_whose_parts_do_not_add_up_are_refused_before_anything_runs():
    with pytest.raises(ModelError, match=r"^Block 0 does not add the plain sum of its heads"):
        Circuits(
            model_of("granite"),
            Graph.of(model_of("granite")),
            make_pairs(),
            value=zero(),
            metric=metric("logit_diff"),
        )


def test_train_mode_is_refused():
    model = build("native").train()
    with pytest.raises(ModelError) as error:
        untyped(Circuits)(model, Graph.of(model), make_pairs(), value=zero(), metric=metric("logit_diff"))
    assert (
        str(error.value) == "The model is in train mode, so its numbers are random. Call model.eval() first."
    )


def test_logit_difference_by_hand_is_the_metric():
    """The helper that other tests compare with."""
    model, pairs = model_of("gpt2"), make_pairs()
    runs = Circuits(model, Graph.of(model), pairs, value=zero(), metric=metric("logit_diff"))
    with torch.no_grad():
        assert close(
            runs.full,
            logit_difference(model(pairs.clean.tokens), pairs),
            tolerance=1e-5,
            scale=logit_size(model, pairs),
        )
