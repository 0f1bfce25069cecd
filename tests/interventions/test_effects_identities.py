"""What must hold of any model: patching all is the other run, patching nothing is zero, batches do not matter."""

import re
from typing import Any, cast

import pytest
import torch
from closeness import close
from families import (
    D_VOCAB,
    FAMILIES,
    NATIVES,
    SEQUENTIAL,
    build,
    logit_difference,
    logit_size,
    make_pairs,
    max_difference,
    model_of,
    pairs_and_stores,
    untyped,
)

from workbench.engine.capture import capture, capture_pairs
from workbench.engine.values import from_store, zero
from workbench.errors import EditError, ModelError, PromptError, SiteError, UnknownName, WorkbenchError
from workbench.interventions.effects import effects
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Grid, Shape, Site, grid

ALL = FAMILIES + NATIVES
MIXED = (4, 6, 5)


def distance(model, pairs):
    """[example]: m(corrupt run) - m(clean run)."""
    with torch.no_grad():
        return logit_difference(model(pairs.corrupt.tokens), pairs) - logit_difference(
            model(pairs.clean.tokens), pairs
        )


def kinds_of(model):
    shape = Shape.of(model)
    return [kind for kind in KINDS if not shape.lacks(KINDS[kind])]


def every_head(kind, shape):
    units = shape.n_kv_heads if kind in "kv" else shape.n_heads
    return tuple(Site(kind, layer, head) for layer in range(shape.n_layers) for head in range(units))


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("site", ["embed", "resid_pre[0]", "resid_post[1]"])
def test_patching_everything_gives_the_other_run(family, site):
    model = model_of(family)
    pairs, _, corrupt = pairs_and_stores(family)
    effect = effects(model, pairs, sites=site, value=from_store(corrupt))
    assert effect.dims == ("example", "site")
    assert close(effect[:, 0], distance(model, pairs), scale=logit_size(model, pairs))
    assert float(abs(effect).min()) > 1e-3


@pytest.mark.parametrize("family", ALL)
def test_patching_the_input_and_every_writer_together_gives_the_other_run(family):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    shape = Shape.of(model)
    mlps = () if shape.attn_only else tuple(Site("mlp_out", layer) for layer in range(shape.n_layers))
    everything = ("embed", *every_head("z", shape), *mlps)
    effect = effects(model, pairs, sites=[everything], value=from_store(corrupt))
    assert close(effect[:, 0], distance(model, pairs), scale=logit_size(model, pairs))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_a_site_that_carries_the_whole_outcome(family):
    model, pairs = model_of(family), make_pairs()
    _, corrupt = capture_pairs(model, pairs, sites=["logits"])
    effect = effects(model, pairs, sites=["logits", "logits@2"], value=from_store(corrupt))
    assert close(effect[:, 0], distance(model, pairs), scale=logit_size(model, pairs))
    assert (effect[:, 1] == 0).all(), "logits at another position are not read"


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_the_inputs_of_attention_all_at_once_equals_patching_its_output(family):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    shape = Shape.of(model)
    qkv = tuple(site for kind in "qkv" for site in every_head(kind, shape) if site.layer == 1)
    pattern_and_v = tuple(
        site for kind in ("pattern", "v") for site in every_head(kind, shape) if site.layer == 1
    )
    z = tuple(site for site in every_head("z", shape) if site.layer == 1)
    effect = effects(model, pairs, sites=[qkv, pattern_and_v, z, "attn_out[1]"], value=from_store(corrupt))
    for column in range(3):
        assert close(effect[:, column], effect[:, 3], scale=logit_size(model, pairs))


@pytest.mark.parametrize("family", FAMILIES)
def test_self_patching_every_kind_is_exactly_zero(family):
    model, pairs = model_of(family), make_pairs()
    kinds = kinds_of(model)
    clean, _ = capture_pairs(model, pairs, sites=kinds)
    for kind in kinds:
        neurons = {"neuron": [0, 3]} if KINDS[kind].unit == "neuron" else {}
        for pos in ("all", "each"):
            effect = effects(
                model,
                pairs,
                sites=grid(kind, model, pos=pos, **neurons),
                value=from_store(clean, allow_self=True),
            )
            assert (effect == 0).all(), (kind, pos)


@pytest.mark.parametrize("family", FAMILIES)
def test_self_patching_prompts_of_mixed_length_is_zero(family):
    model, pairs = model_of(family), make_pairs(MIXED)
    kinds = kinds_of(model)
    clean, _ = capture_pairs(model, pairs, sites=kinds)
    for kind in kinds:
        sites = grid(kind, model, **({"neuron": [0, 3]} if KINDS[kind].unit == "neuron" else {}))
        effect = effects(model, pairs, sites=sites, value=from_store(clean, allow_self=True))
        assert close(effect, 0 * effect, scale=logit_size(model, pairs)), kind


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_self_patching_without_asking_for_it_is_an_error(family):
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    message = (
        "The store holds the very run that is edited (prompt 0), so patching from it changes nothing. "
        "Pass the store of the other side, or from_store(..., allow_self=True)."
    )
    for base, store in (("clean", clean), ("corrupt", corrupt)):
        with pytest.raises(EditError) as error:
            effects(model, pairs, sites=grid("z", model), value=from_store(store), base=base)
        assert str(error.value) == message


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_resid_mid_is_the_stream_before_the_block_plus_its_attention(family):
    model, pairs = model_of(family), make_pairs()
    clean, corrupt = capture_pairs(
        model, pairs, sites=["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    )
    for layer in range(2):
        before, added = corrupt["resid_pre", layer].packed, corrupt["attn_out", layer].packed
        assert close(corrupt["resid_mid", layer].packed, before + added)
        after = corrupt["resid_mid", layer].packed + corrupt["mlp_out", layer].packed
        assert close(corrupt["resid_post", layer].packed, after)
    for pos in (None, "END"):  # elsewhere, resid_pre also changes what later positions attend to
        sites = [Site("resid_mid", layer, pos=pos) for layer in range(2)]
        sites += [(Site("resid_pre", layer, pos=pos), Site("attn_out", layer, pos=pos)) for layer in range(2)]
        for base, store in (("clean", corrupt), ("corrupt", clean)):
            effect = effects(model, pairs, sites=sites, value=from_store(store), base=base)
            assert close(effect[:, :2], effect[:, 2:], scale=logit_size(model, pairs))
    whole = effects(model, pairs, sites=grid("resid_mid", model), value=from_store(corrupt))
    assert close(whole[:, 1], distance(model, pairs), scale=logit_size(model, pairs)), (
        "the whole stream carries everything"
    )


def test_models_that_lack_a_kind_say_why():
    asked = {
        ("neox", "resid_mid"): "its attention and MLP run in parallel, so there is no stream between them"
    }
    asked |= {("llama", "pos_embed"): "its positions are not learned embeddings"}
    asked |= {("native-attn-only", "mlp_out"): "it has no MLPs"}
    for (family, kind), reason in asked.items():
        model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
        site = Site(kind, 0) if KINDS[kind].per_layer else Site(kind)
        with pytest.raises(SiteError) as error:
            effects(model, pairs, sites=[site], value=from_store(corrupt))
        assert str(error.value) == f"Site {str(site)!r}: this model has no {kind}, because {reason}."


SWEPT = [
    ("z", "all", "from_store"),
    ("resid_pre", "each", "zero"),
    ("pattern", "all", "from_store"),
    ("k", ["END", 1], "zero"),
]


def sweep(model, pairs, stores, kind, pos, value, **options):
    """Effects of the last layer's sites of a kind; stores: of the clean and the corrupt run."""
    made = from_store(stores[1]) if value == "from_store" else zero()
    return effects(model, pairs, sites=grid(kind, model, pos=pos, layer=1), value=made, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_mixed_lengths_equals_each_example_alone(family):
    model, pairs = model_of(family), make_pairs(MIXED)
    stores = capture_pairs(model, pairs)
    for sites in SWEPT:
        for method in ("exact", "gradient"):
            together = sweep(model, pairs, stores, *sites, method=method)
            for i, length in enumerate(MIXED):
                alone = sweep(model, pairs.select([i]), stores, *sites, method=method)
                each = together[i : i + 1]
                if sites[1] == "each":
                    assert each[..., length:].isnull().all()
                    each = each[..., :length]
                assert close(each, alone, scale=logit_size(model, pairs)), (sites, method, i)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_memory_budget_does_not_change_a_number(family):
    model, pairs = model_of(family), make_pairs((4, 6, 4, 6, 6), seed=4)
    stores = capture_pairs(model, pairs)
    for method in ("exact", "gradient"):
        for sites in (
            ("z", "all", "from_store"),
            ("resid_pre", [2, "END"], "zero"),
            ("pattern", ["END"], "from_store"),
        ):
            usual = sweep(model, pairs, stores, *sites, method=method)
            # One prompt per pass; some. One family meets both with either method.
            for budget in (1, 100_000) if family == "gpt2" else (1,) if method == "exact" else (100_000,):
                parts = sweep(model, pairs, stores, *sites, method=method, budget=budget)
                assert close(parts, usual, scale=logit_size(model, pairs)), (method, sites, budget)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_the_examples_does_not_change_a_number(family):
    model, pairs = model_of(family), make_pairs((4, 6, 4, 6, 6), seed=4)
    stores = capture_pairs(model, pairs)
    order = [4, 0, 3, 2, 1]
    for sites in SWEPT:
        usual = sweep(model, pairs, stores, *sites)
        mixed = sweep(model, pairs.select(order), stores, *sites)
        assert close(mixed, usual[order], scale=logit_size(model, pairs)), sites


@pytest.mark.types
@pytest.mark.parametrize("family", FAMILIES)
def test_sites_edited_together_differ_from_the_sum_of_their_effects(family):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    pair = ("z[0.1]", "mlp_out[1]")
    effect = effects(model, pairs, sites=[pair, *pair], value=from_store(corrupt))
    assert list(effect.site.values) == ["z[0.1] + mlp_out[1]", "z[0.1]", "mlp_out[1]"]
    assert max_difference(effect[:, 0], effect[:, 1] + effect[:, 2]) > 1e-3
    first_order = effects(model, pairs, sites=[pair, *pair], value=from_store(corrupt), method="gradient")
    assert close(first_order[:, 0], first_order[:, 1] + first_order[:, 2], scale=logit_size(model, pairs))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_at_a_position_leaves_earlier_positions_alone(family):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    effect = effects(model, pairs, sites=grid("resid_pre", model, pos="each"), value=from_store(corrupt))
    assert (effect.sel(layer=0, pos=[0, 1, 3, 4, 5]) == 0).all(), "the prompts differ at position 2 only"
    assert (effect.sel(layer=1, pos=[0, 1]) == 0).all(), "causality"
    assert (abs(effect.sel(layer=1, pos=[2, 3, 4, 5])) > 0).all()


@pytest.mark.parametrize("family", ["gpt2", "native"])
def test_positions_are_the_same_in_both_runs_so_that_their_embeddings_carry_nothing(family):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    effect = effects(model, pairs, sites=["pos_embed", ("embed", "pos_embed")], value=from_store(corrupt))
    assert (effect[:, 0] == 0).all()
    assert close(effect[:, 1], distance(model, pairs), scale=logit_size(model, pairs))


@pytest.mark.parametrize("base", ["clean", "corrupt"])
def test_one_store_of_both_sides_gives_the_other_side_of_each_pair(base):
    model, (pairs, clean, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    both = capture(model, torch.cat([pairs.corrupt.tokens, pairs.clean.tokens]))
    expected = effects(
        model,
        pairs,
        sites=grid("z", model),
        value=from_store(corrupt if base == "clean" else clean),
        base=base,
    )
    assert close(
        effects(model, pairs, sites=grid("z", model), value=from_store(both), base=base),
        expected,
        scale=logit_size(model, pairs),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_float32_results_near_the_exact_ones(family, dtype):
    model, pairs = model_of(family, dtype), make_pairs()
    _, corrupt = capture_pairs(model, pairs)
    _, _, exact = pairs_and_stores(family)
    expected = effects(model_of(family), pairs, sites=grid("z", model, layer=1), value=from_store(exact))
    for method in ("exact", "gradient"):
        got = effects(model, pairs, sites=grid("z", model, layer=1), value=from_store(corrupt), method=method)
        assert got.dtype == "float32"
        assert got.notnull().all()
        if method == "exact":
            assert close(
                got,
                expected,
                tolerance=0.15 if dtype == torch.bfloat16 else 0.02,
                scale=logit_size(model, pairs),
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_one_example_of_one_token_is_enough(family):
    model, pairs = model_of(family), make_pairs((1,), changed=(0,))
    _, corrupt = capture_pairs(model, pairs)
    for method in ("exact", "gradient"):
        effect = effects(
            model, pairs, sites=grid("resid_pre", model, pos="each"), value=from_store(corrupt), method=method
        )
        assert effect.shape == (1, 2, 1)
        assert effect.notnull().all()
    assert close(
        effects(model, pairs, sites="embed", value=from_store(corrupt))[:, 0],
        distance(model, pairs),
        scale=logit_size(model, pairs),
    )


def test_the_last_token_is_the_end_of_prompts_that_name_no_other():
    model, rows = model_of("gpt2"), make_pairs((6, 6))
    clean, corrupt = (
        Prompts.of(side.tokens.tolist(), positions=[{"END": 3}, {}]) for side in (rows.clean, rows.corrupt)
    )
    pairs = PromptPairs(clean, corrupt, rows.answers, rows.wrong)
    effect = effects(model, pairs, sites="embed", value=from_store(capture_pairs(model, pairs)[1]))
    with torch.no_grad():
        change = model(corrupt.tokens) - model(clean.tokens)
    for i, end in enumerate((3, 5)):
        expected = change[i, end, int(pairs.answers[i])] - change[i, end, int(pairs.wrong[i])]
        assert close(effect[i, 0], expected, scale=logit_size(model, pairs))
    assert clean.at("END").tolist() == [3, 5]


def test_an_edit_that_would_write_what_is_there_is_not_run():
    model, (pairs, clean, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    measured = []

    def counted(logits):
        measured.append(len(logits))
        return logits[:, -1, 0]

    effects(model, pairs, sites=grid("z", model), value=from_store(clean, allow_self=True), metric=counted)
    assert measured == [3], "the base run alone"
    measured.clear()
    effects(
        model,
        pairs,
        sites=grid("resid_pre", model, layer=0, pos="each"),
        value=from_store(corrupt),
        metric=counted,
    )
    assert measured == [3, 3], "the base run, and the one position where the prompts differ"


def test_grids_come_back_with_their_axes_and_labels():
    model, (pairs, _, corrupt) = model_of("llama"), pairs_and_stores("llama")
    expected = {
        grid("z", model): {"layer": [0, 1], "head": [0, 1, 2, 3]},
        grid("k", model, layer=1): {"layer": [1], "kv_head": [0, 1]},
        grid("mlp_post", model, layer=[1], neuron=[5, 2], pos=[3]): {"layer": [1], "neuron": [5, 2], "pos": [3]},
        grid("resid_pre", model, pos=["END"]): {"layer": [0, 1], "pos": ["END"]},
        grid("pattern", model, layer=0, head=2, pos="each", key_pos=[0, 1]): {
            "layer": [0], "head": [2], "query_pos": [0, 1, 2, 3, 4, 5], "key_pos": [0, 1],
        },
        grid("embed", model): {},
    }  # fmt: skip
    for sites, axes in expected.items():
        effect = effects(model, pairs, sites=sites, value=from_store(corrupt))
        assert effect.dims == ("example", *axes)
        assert {axis: effect[axis].values.tolist() for axis in axes} == axes
        assert effect.example.values.tolist() == [0, 1, 2]


def test_a_grid_equals_the_list_of_its_sites():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    for sites in (
        grid("mlp_post", model, neuron=[1, 9], pos="each"),
        grid("z", model, head=[2, 0], pos=[5, 2]),
    ):
        listed = list(sites.at_length(6))
        assert len(listed) == len(sites.at_length(6))
        by_grid = effects(model, pairs, sites=sites, value=from_store(corrupt))
        by_list = effects(model, pairs, sites=listed, value=from_store(corrupt))
        assert by_list.site.values.tolist() == [str(site) for site in listed]
        assert close(by_grid.values.reshape(3, -1), by_list, scale=logit_size(model, pairs))


def test_neurons_at_positions_and_whole_neurons_are_different_sites():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    sites = [
        "mlp_post[0:7]@2",
        "mlp_post[0:7]@4",
        "mlp_post[0:7]",
        ("mlp_post[0:7]@2", "mlp_post[0:7]@3", "mlp_post[0:7]@4", "mlp_post[0:7]@5"),
    ]
    effect = effects(model, pairs, sites=sites, value=from_store(corrupt))
    assert close(effect[:, 2], effect[:, 3], scale=logit_size(model, pairs))
    assert max_difference(effect[:, 0], effect[:, 2]) > 1e-5


def test_cells_beyond_an_example_and_at_positions_it_lacks_are_nan():
    model, plain = model_of("gpt2"), make_pairs(MIXED)
    names = [{"X": 1}, {"X": 3}, {}]
    rows = [
        [side.tokens[i, : int(n)].tolist() for i, n in enumerate(side.lengths)]
        for side in (plain.clean, plain.corrupt)
    ]
    clean, corrupt = (Prompts.of(each, positions=names) for each in rows)
    pairs = PromptPairs(clean, corrupt, plain.answers, plain.wrong)
    _, store = capture_pairs(model, pairs)
    for method in ("exact", "gradient"):
        effect = effects(
            model, pairs, sites=grid("resid_pre", model, pos="each"), value=from_store(store), method=method
        )
        assert effect.shape == (3, 2, 6)
        for i, length in enumerate(MIXED):
            assert effect[i, :, :length].notnull().all()
            assert effect[i, :, length:].isnull().all()
        named = effects(
            model, pairs, sites=["resid_pre[1]@X", "resid_pre[1]@END"], value=from_store(store), method=method
        )
        assert named.isnull().values.tolist() == [[False, False], [False, False], [True, False]]
        for i, at in ((0, 1), (1, 3)):
            assert close(named[i, 0], effect[i, 1, at], scale=logit_size(model, pairs))
            assert close(named[i, 1], effect[i, 1, MIXED[i] - 1], scale=logit_size(model, pairs))
        assert (
            effects(model, pairs, sites=[("z[0.0]", "z[1.1]@X")], value=from_store(store), method=method)
            .isnull()[2]
            .all()
        )


def test_a_named_position_that_only_the_other_side_lacks_gives_nan():
    model, plain = model_of("gpt2"), make_pairs((6, 6))
    rows = [side.tokens.tolist() for side in (plain.clean, plain.corrupt)]
    clean = Prompts.of(rows[0], positions=[{"X": 2}, {"X": 2}])
    corrupt = Prompts.of(rows[1], positions=[{"X": 2}, {}])
    pairs = PromptPairs(clean, corrupt, plain.answers, plain.wrong)
    _, store = capture_pairs(model, pairs)
    effect = effects(model, pairs, sites="resid_pre[1]@X", value=from_store(store))
    assert effect[:, 0].isnull().values.tolist() == [False, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_normalized_effects_are_shares_of_the_way_to_the_other_run(family):
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    size = logit_size(model, pairs) / float(distance(model, pairs).abs().min())  # of shares
    for base, store in (("clean", corrupt), ("corrupt", clean)):
        plain = effects(model, pairs, sites=["resid_pre[0]", "z[1.0]"], value=from_store(store), base=base)
        shares = effects(
            model,
            pairs,
            sites=["resid_pre[0]", "z[1.0]"],
            value=from_store(store),
            base=base,
            normalized=True,
        )
        assert close(shares[:, 0], torch.ones(3), scale=size)
        sign = 1 if base == "clean" else -1
        assert close(
            shares[:, 1],
            plain[:, 1] / (sign * distance(model, pairs).numpy()),
            scale=size,
        )
        assert shares.attrs["unit"] == "share"
        assert plain.attrs["unit"] == "logits"


def test_normalizing_pairs_that_do_not_differ_gives_nan_and_a_warning():
    model, pairs = model_of("gpt2"), make_pairs()
    same = pairs.clean.tokens.tolist()
    pairs = PromptPairs(
        pairs.clean, Prompts.of([same[0], *pairs.corrupt.tokens[1:].tolist()]), pairs.answers, pairs.wrong
    )
    _, store = capture_pairs(model, pairs)
    with pytest.warns(
        UserWarning, match=re.escape("1 of 3 examples do not differ between the runs: their cells are NaN.")
    ):
        effect = effects(
            model, pairs, sites=["resid_pre[0]", "z[1.0]"], value=from_store(store), normalized=True
        )
    assert effect.isnull().values.tolist() == [[True, True], [False, False], [False, False]]


def test_train_mode_is_refused():
    model = build("gpt2")
    pairs, _, corrupt = pairs_and_stores("gpt2")
    model.train()
    with pytest.raises(ModelError) as error:
        effects(model, pairs, sites=grid("z", model), value=from_store(corrupt))
    assert (
        str(error.value) == "The model is in train mode, so its numbers are random. Call model.eval() first."
    )


def test_pairs_of_unequal_length_take_edits_at_named_positions_only():
    model = model_of("gpt2")
    clean, corrupt = Prompts.of([[1, 2, 3], [4, 5, 6]]), Prompts.of([[1, 2, 9], [4, 5, 6, 7]])
    pairs = PromptPairs(clean, corrupt, torch.tensor([[[1]], [[2]]]), torch.tensor([[[3]], [[4]]]))
    with pytest.raises(PromptError) as error:
        effects(model, pairs, sites=grid("z", model), value=zero())
    assert str(error.value).startswith(
        "Pair 1 has clean and corrupt prompts of 3 and 4 tokens. Whole-sequence edits need equal lengths; "
        "edit named positions instead (pos=['END'])."
    )
    _, store = capture_pairs(model, pairs)
    with pytest.raises(PromptError) as error:
        effects(model, pairs, sites="z[0.0]@2", value=from_store(store))
    assert str(error.value) == (
        "Pair 1 has 3 and 4 tokens, so z[0.0]@2 does not line up. Use named positions (pos=['END']), or pairs of equal length."
    )
    assert effects(model, pairs, sites="z[0.0]@END", value=from_store(store)).notnull().all()
    with pytest.raises(WorkbenchError):
        effects(model, pairs, sites="pattern[1.0]@END", value=from_store(store))


def test_what_cannot_be_asked_for_is_refused_with_what_can():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    value = from_store(corrupt)
    with pytest.raises(UnknownName) as unknown:
        untyped(effects)(model, pairs, sites="z[0.0]", value=value, method="gradients")
    assert (
        str(unknown.value)
        == "method='gradients' is not known. Did you mean 'gradient'? Choices: atp-star, exact, gradient, integrated."
    )
    with pytest.raises(SiteError) as error:
        effects(model, pairs, sites=[], value=value)
    assert (
        str(error.value) == "effects: sites is empty. Name at least one site, as in sites=grid('z', model)."
    )
    with pytest.raises(SiteError) as error:
        effects(model, pairs, sites="z[0.4]", value=value)
    assert str(error.value) == "Site 'z[0.4]': this model has heads 0 to 3 in a layer."
    with pytest.raises(SiteError) as error:
        effects(model, pairs, sites="z[2.0]", value=value)
    assert str(error.value) == "Site 'z[2.0]': this model has layers 0 to 1."
    with pytest.raises(EditError) as edit:
        effects(model, pairs, sites="z[0.0]@6", value=value)
    assert str(edit.value) == "No prompt has the position of z[0.0]@6: the longest has 6 tokens."
    with pytest.raises(UnknownName) as unknown:
        effects(model, pairs, sites="z[0.0]@S2", value=value)
    assert str(unknown.value) == "position='S2' is not known. Choices: END."


def test_a_value_that_is_none_is_refused():
    model, pairs = model_of("gpt2"), make_pairs()
    with pytest.raises(EditError) as error:
        effects(model, pairs, sites="z[0.0]", value=cast(Any, 0.0))
    assert str(error.value) == (
        "effects: value=0.0 does not fit; a value such as wb.zero(), wb.mean(store) or "
        "wb.from_store(store), text or None is needed."
    )


def test_prompts_that_the_model_cannot_read_are_refused():
    model, pairs = model_of("gpt2"), make_pairs((40,))
    with pytest.raises(PromptError) as error:
        effects(model, pairs, sites="z[0.0]", value=zero())
    assert str(error.value) == "Prompt 0 has 40 tokens; the model's context holds 32."
    foreign = PromptPairs(
        Prompts.of([[1, D_VOCAB]]), Prompts.of([[1, 2]]), torch.tensor([[[1]]]), torch.tensor([[[2]]])
    )
    with pytest.raises(PromptError) as error:
        effects(model, foreign, sites="z[0.0]", value=zero())
    assert str(error.value) == "Token id 50 is outside the model's vocabulary of 50."


def test_an_empty_grid_is_refused_where_it_is_made():
    with pytest.raises(SiteError) as error:
        grid("z", model_of("gpt2"), layer=[])
    assert (
        str(error.value)
        == "grid('z') is empty: name at least one layer, head, neuron and position, or leave them out."
    )
    assert isinstance(grid("z", model_of("gpt2")), Grid)
