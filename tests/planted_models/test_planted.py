"""Planted models: their outputs are right, and the edges said to be true are those that matter, alone or in their sets."""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from closeness import close

import workbench as wb
from workbench.errors import ModelError, UnknownName
from workbench.models.load import model_name
from workbench.planted_models.blueprint import Blueprint
from workbench.planted_models.drawing import Embedding, one_hot
from workbench.planted_models.planted import VARIANTS

KINDS = ("corrupt", "zero")
NOISY = [name for name, variant in VARIANTS.items() if variant.setting.noise]
EXACT = [name for name, variant in VARIANTS.items() if not variant.setting.noise]
COVERED = [name for name, variant in VARIANTS.items() if "backup" in name]


@dataclass(frozen=True)
class Measured:
    """A planted model with the exact effect of each edge, by kind of value, in units of m(full) - m(empty)."""

    planted: wb.Planted
    pairs: wb.PromptPairs
    values: dict[str, Any]
    effects: dict[str, np.ndarray]
    gaps: dict[str, float]

    @property
    def graph(self) -> wb.Graph:
        return wb.Graph.of(self.planted.model)

    def matrix(self, edges: Any) -> np.ndarray:
        """bool [writer, reader]: these edges, unpruned."""
        chosen = np.zeros_like(self.graph.exists)
        for edge in edges:
            chosen[self.graph.index(edge)] = True
        return chosen

    def true(self, kind: str) -> np.ndarray:
        return self.matrix(self.planted.edges[kind])

    def false(self, kind: str) -> np.ndarray:
        return self.graph.exists & ~self.true(kind)

    def faithfulness(self, kind: str, *edges: np.ndarray) -> np.ndarray:
        """Of the circuits of these edges."""
        circuits = [wb.Circuit.of(self.graph, chosen) for chosen in edges]
        table = wb.evaluate(
            circuits, self.planted.model, self.pairs, value=self.values[kind], checks=(), progress=False
        )
        return table["faithfulness"].values


@cache
def measured(name: str) -> Measured:
    planted = wb.planted(name, n=12)
    pairs = wb.planted_pairs(planted)
    values = {"corrupt": wb.from_store(wb.capture_pairs(planted.model, pairs)[1]), "zero": wb.zero()}
    graph, effects, gaps = wb.Graph.of(planted.model), {}, {}
    for kind, value in values.items():
        whole = wb.evaluate(
            wb.Circuit.empty(planted.model), planted.model, pairs, value=value, checks=(), progress=False
        )
        gaps[kind] = float((whole["m_full"] - whole["m_empty"]).mean())
        table = wb.path_effects(
            planted.model, pairs, senders=list(graph.writers), receivers=list(graph.readers), value=value, mlps="frozen", progress=False
        )  # fmt: skip
        effects[kind] = table.mean("example").values / gaps[kind]
    return Measured(planted, pairs, values, effects, gaps)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_gives_the_answer_to_every_clean_prompt_and_the_wrong_one_to_every_corrupt_one(name: str):
    planted = wb.planted(name, n=48)
    with torch.no_grad():
        clean, corrupt = planted.model(planted.clean)[:, -1], planted.model(planted.corrupt)[:, -1]
    assert (clean.argmax(-1) == planted.answers[:, 0, 0]).all()
    assert (corrupt.argmax(-1) == planted.wrong[:, 0, 0]).all()
    assert model_name(planted.model) == f"planted-{name}"
    shape = wb.Shape.of(planted.model)
    sizes = (planted.clean.shape[1], len(planted.words), shape.n_layers, shape.n_heads, shape.d_model)
    assert all(size <= most for size, most in zip(sizes, (14, 40, 4, 8, 96), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_true_edge_matters_alone_or_is_in_a_set_that_does(name: str, kind: str):
    variant = measured(name)
    effects, sets = np.abs(variant.effects[kind]), variant.planted.redundant
    covered = variant.matrix({edge for edges in sets for edge in edges})
    assert effects[variant.true(kind) & ~covered].min() > 0.1
    assert effects[variant.true(kind) & ~covered].min() > 3 * np.nanmax(effects[variant.false(kind)])
    for edges in sets:
        assert edges <= variant.planted.edges[kind]
        (without,) = variant.faithfulness(kind, variant.graph.exists & ~variant.matrix(edges))
        alone = min(effects[variant.graph.index(edge)] for edge in edges)
        assert abs(without - 1) > 0.3
        assert alone < 0.3 * abs(without - 1), "an edge that matters alone as much as in its set"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_ablating_all_but_the_true_edges_leaves_the_metric(name: str, kind: str):
    variant = measured(name)
    (share,) = variant.faithfulness(kind, variant.true(kind))
    assert abs(share - 1) < (0.05 if VARIANTS[name].setting.noise else 1e-4)
    assert wb.Circuit.of(variant.graph, variant.true(kind)).n_edges == len(variant.planted.edges[kind]), (
        "a true edge is a dead end"
    )


@pytest.mark.parametrize("name", NOISY)
def test_the_truth_holds_for_other_seeds(name: str):
    for seed in (1, 2):
        planted = wb.planted(name, seed=seed, n=4)
        pairs, graph = wb.planted_pairs(planted), wb.Graph.of(planted.model)
        corrupt = wb.from_store(wb.capture_pairs(planted.model, pairs)[1])
        for kind, value in (("corrupt", corrupt), ("zero", wb.zero())):
            circuit = wb.Circuit.of(graph, planted.edges[kind])
            table = wb.evaluate(circuit, planted.model, pairs, value=value, checks=(), progress=False)
            assert abs(float(table["faithfulness"][0]) - 1) < 0.05, (seed, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NOISY)
def test_with_noise_many_false_edges_have_an_effect(name: str, kind: str):
    variant = measured(name)
    effects = np.abs(variant.effects[kind][variant.false(kind)]) * variant.gaps[kind]
    assert (effects > 1e-6).mean() >= 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EXACT)
def test_without_noise_no_false_edge_has_one(name: str, kind: str):
    variant = measured(name)
    assert np.abs(variant.effects[kind][variant.false(kind)]).max() < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_corrupt_patching_cannot_see_what_the_runs_share(name: str):
    variant = measured(name)
    shared = variant.true("zero") & ~variant.true("corrupt")
    assert variant.planted.edges["corrupt"] <= variant.planted.edges["zero"]
    assert not shared.any() or np.abs(variant.effects["corrupt"][shared]).max() < 0.03


def test_the_backup_speaks_only_when_the_main_head_is_silent():
    planted = wb.planted("backup")
    main, backup, graph = planted.heads["main"], planted.heads["backup"], wb.Graph.of(planted.model)
    pairs = wb.planted_pairs(planted)
    silent = graph.exists.copy()
    silent[graph.index(f"input->{main}<v>")] = False
    mute = silent.copy()
    mute[graph.index(f"{backup}->logits")] = False
    alone = graph.exists.copy()
    alone[graph.index(f"{backup}->logits")] = False
    circuits = [wb.Circuit.of(graph, edges) for edges in (silent, mute, alone)]
    shares = wb.evaluate(circuits, planted.model, pairs, value=wb.zero(), checks=(), progress=False)[
        "faithfulness"
    ].values
    assert np.abs(shares - [1, 0, 1]).max() < 0.01


def test_the_negative_head_lowers_the_metric():
    variant = measured("negative")
    head = variant.planted.heads["negative"]
    for kind in KINDS:
        own = [edge for edge in variant.planted.edges[kind] if head in edge]
        assert len(own) == 4
        assert all(variant.effects[kind][variant.graph.index(edge)] > 0.2 for edge in own)


def test_each_feeder_reaches_the_target_through_its_own_port_alone():
    variant = measured("compositions")
    heads = variant.planted.heads
    for kind, feeder, port in product(KINDS, "qkv", "qkv"):
        effect = variant.effects[kind][
            variant.graph.index(f"{heads[f'feed-{feeder}']}->{heads['target']}<{port}>")
        ]
        assert (effect < -0.2) if feeder == port else (abs(effect) < 1e-6)


def test_decoys_write_more_than_the_true_heads():
    planted = wb.planted("induction-noisy", n=8)
    clean, _ = wb.capture_pairs(planted.model, wb.planted_pairs(planted))
    shape, true, decoys = wb.Shape.of(planted.model), [], []
    for layer in range(shape.n_layers):
        written = torch.einsum(
            "phe,hed->phd",
            clean["z", layer].rows(prompt=range(8), pos=[7] * 8),
            planted.model.blocks[layer].attn.W_O,
        )
        for head, size in enumerate(written.norm(dim=-1).mean(0).tolist()):
            (true if f"a{layer}.{head}" in planted.heads.values() else decoys).append(size)
    assert max(decoys) > 3 * max(true)


def test_seeds_hide_the_same_circuit_differently():
    twins = [wb.planted("ioi", seed=seed, n=4) for seed in (0, 0, *range(1, 6))]
    prints = [wb.model_fingerprint(twin.model) for twin in twins]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 6
    assert len({tuple(twin.heads.items()) for twin in twins}) >= 4
    assert all(torch.equal(twin.clean, twins[0].clean) for twin in twins)
    assert len({wb.Shape.of(twin.model) for twin in twins}) == 1


def test_extra_layers_move_the_circuit_and_decoys_fill_the_layers():
    layers = {wb.planted("backup", seed=seed, n=4).heads["main"][:2] for seed in range(8)}
    assert layers == {"a0", "a1"}
    few, many = (wb.planted("induction", decoys=decoys, extra=1, n=4) for decoys in (0, 12))
    assert (wb.Shape.of(few.model).n_heads, wb.Shape.of(many.model).n_heads) == (1, 5)
    assert len(few.edges["zero"]) == len(many.edges["zero"]) == 7


@pytest.mark.parametrize("name", VARIANTS)
def test_the_least_and_the_largest_size_give_right_answers(name: str):
    for size in (6, 12):
        planted = wb.planted(name, size=size, n=12)
        with torch.no_grad():
            logits = planted.model(planted.clean)[:, -1]
        assert (logits.argmax(-1) == planted.answers[:, 0, 0]).all(), size


@pytest.mark.parametrize("name", VARIANTS)
def test_held_out_prompts_are_others(name: str):
    planted = wb.planted(name, n=6)
    train, heldout = (
        wb.planted_pairs(planted, n=60, seed=3),
        wb.planted_pairs(planted, n=40, seed=3, split="heldout"),
    )
    assert not set(train.clean.ids) & set(heldout.clean.ids)
    assert len(set(train.clean.ids)) == 60
    assert wb.planted_pairs(planted).clean.ids == wb.planted_pairs(planted, n=6).clean.ids


def test_pairs_say_where_they_come_from():
    planted = wb.planted("lookup", n=8, seed=5, prompt_seed=2)
    pairs = wb.planted_pairs(planted)
    assert dict(pairs.provenance) == {
        "task": "planted-lookup", "variant": "lookup", "seed": 2, "split": "train", "model_seed": 5,
    }  # fmt: skip
    assert pairs.bos
    assert pairs.clean.strings[0] == tuple(planted.words[token] for token in planted.clean[0])
    assert torch.equal(pairs.clean.tokens, planted.clean)


def test_what_cannot_be_planted_is_said():
    with pytest.raises(UnknownName, match=r"^name='inductoin' is not known\. Did you mean 'induction'"):
        wb.planted("inductoin")
    with pytest.raises(
        ModelError,
        match=r"^A planted model of size 40 is not possible: its circuit works on 6 to 12 words\.$",
    ):
        wb.planted("induction", size=40)
    with pytest.raises(UnknownName, match=r"^split='test' is not known\. Choices: heldout, train"):
        wb.planted("induction", split="test")
    with pytest.raises(
        ModelError,
        match=r"^There are no 0 different prompts of 'induction' in the split 'train': found 0\.$",
    ):
        wb.planted("induction", n=0)


def test_a_drawing_of_ones_own_on_paper():
    """`BOS x y` → the word before the last, times four: one head that looks one step back."""
    plan = Blueprint(length=3, gain=40)
    plan.space(token=2, out=2)
    words = plan.alphabet("w", 2, "token")
    plan.head("back", 0, [plan.same("position", "position", shift=-1)], [plan.move("token", "out")])
    plan.read_out("out", words)
    built = plan.build("own", Embedding(decoys=0), seed=0)
    assert built.heads == {"back": "a0.0"}
    assert built.wired == {"input->a0.0<q>", "input->a0.0<k>", "input->a0.0<v>", "a0.0->logits"}
    with torch.no_grad():
        logits = built.model(torch.tensor([[0, 1, 2], [0, 2, 1]]))[:, -1]
    assert close(logits, torch.tensor([[0.0, 4, 0], [0, 0, 4]]))
    assert one_hot(1, 3).tolist() == [0, 1, 0]
