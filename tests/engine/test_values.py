"""What each value writes: read back from the edited run, or compared with a hook written by hand."""

import re
from typing import Any, cast

import pytest
import torch
from closeness import close
from families import (
    FAMILIES,
    build,
    logit_size,
    make_pairs,
    max_difference,
    model_of,
    native,
    pairs_and_stores,
)

from workbench.engine.capture import capture, capture_pairs
from workbench.engine.run import run
from workbench.engine.values import add, constant, from_store, mean, project, resample, scale, zero
from workbench.errors import EditError, MetricError, StoreError, UnknownName, WorkbenchError
from workbench.interventions.effects import effects
from workbench.models.fingerprint import model_fingerprint
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Site, grid
from workbench.stores.store import ActivationStore

MIXED = (4, 6, 5)


def after(model, prompts, site, value, *, other=None):
    """The whole activation of the site's kind and layer in the edited run."""
    site = Site.parse(site)
    return run(
        model, prompts, edits={site: value}, record=[Site(site.kind, site.layer)], other=other
    ).recorded[site.kind, site.layer]


def before(model, prompts, kind, layer):
    with torch.no_grad():
        return run(model, prompts, record=[Site(kind, layer)]).recorded[kind, layer]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_changes_its_part_and_nothing_else_of_the_activation(family):
    model, prompts = model_of(family), make_pairs(MIXED).clean
    length = torch.arange(6)[None] < prompts.lengths[:, None]
    places = {
        "z[1.2]": lambda a: a[:, :, 2],
        "z[1.2]@1": lambda a: a[:, 1, 2],
        "k[0.1]@2": lambda a: a[:, 2, 1],
        "v[1]": lambda a: a,
        "resid_pre[1]@3": lambda a: a[:, 3],
        "mlp_post[0:7]": lambda a: a[:, :, 7],
        "mlp_post[0:7]@0": lambda a: a[:, 0, 7],
        "pattern[1.3]@2": lambda a: a[:, 3, 2, :3],
        "pattern[1.3]@2<-1": lambda a: a[:, 3, 2, 1],
        "embed": lambda a: a,
    }
    for text, picked in places.items():
        site = Site.parse(text)
        expected = before(model, prompts, site.kind, site.layer).clone()
        picked(expected)[...] = 0.25
        got = after(model, prompts, text, constant(0.25))
        assert max_difference(got, expected) == 0, text
    at_end = before(model, prompts, "z", 1).clone()
    for i, n in enumerate(MIXED):
        at_end[i, n - 1, 0] = 0
    got = after(model, prompts, "z[1.0]@END", zero())
    assert max_difference(got[length], at_end[length]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_constant_add_and_scale_do_arithmetic_on_the_current_activation(family):
    model, prompts = model_of(family), make_pairs().clean
    vector = torch.linspace(-1, 1, 8)
    z = before(model, prompts, "z", 1)[:, :, 2]
    expected = {
        "zero": (zero(), torch.zeros_like(z)),
        "number": (constant(-0.5), torch.full_like(z, -0.5)),
        "vector": (constant(vector), vector.expand_as(z)),
        "list": (constant(vector.tolist()), vector.expand_as(z)),
        "add number": (add(0.5), z + 0.5),
        "add vector": (add(vector), z + vector),
        "scale": (scale(-2.0), z * -2),
    }
    for name, (value, numbers) in expected.items():
        assert close(after(model, prompts, "z[1.2]", value)[:, :, 2], numbers), name
    heads = before(model, prompts, "z", 1)
    assert close(after(model, prompts, "z[1]", add(vector)), heads + vector)


def test_values_that_act_on_the_current_activation_see_the_edits_before_them():
    model, prompts = model_of("gpt2"), make_pairs().clean
    z = before(model, prompts, "z", 0)[:, :, 0]
    edits = {"z[0.0]": scale(2.0), "z[0]": add(1.0)}
    got = run(model, prompts, edits=edits, record=["z[0]"]).recorded["z", 0]
    assert close(got[:, :, 0], 2 * z + 1)
    later = run(
        model, prompts, edits={"resid_pre[0]": zero(), "z[1.0]": scale(3.0)}, record=["z[1]"]
    ).recorded["z", 1]
    plain = run(model, prompts, edits={"resid_pre[0]": zero()}, record=["z[1]"]).recorded["z", 1]
    assert close(later[:, :, 0], 3 * plain[:, :, 0])


@pytest.mark.parametrize(
    "content", [torch.zeros(7), torch.zeros(5, 8), [1.0, 2.0]], ids=["width", "positions", "list"]
)
def test_a_constant_that_does_not_fit_is_an_error_that_names_the_site(content):
    model, prompts = model_of("gpt2"), make_pairs().clean
    with pytest.raises(EditError) as error:
        run(model, prompts, edits={"z[1.2]": constant(content)})
    start = "constant does not fit z[1.2], whose value has shape (3, 6, 8) (the first axis is the example): "
    assert str(error.value).startswith(start)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_the_mean_over_the_dataset_leaves_bos_rows_out(family, bos):
    model, pairs = model_of(family), make_pairs(MIXED, bos=bos)
    store = capture(model, pairs.corrupt)
    rows = [store["z", 1].prompt(i)[int(bos) :, 2] for i in range(3)]
    expected = torch.cat(rows).mean(0)
    got = after(model, pairs.clean, "z[1.2]", mean(store))
    assert close(got[:, :, 2], expected.expand(3, 6, 8))
    whole = torch.cat([store["resid_pre", 1].prompt(i)[int(bos) :] for i in range(3)]).mean(0)
    assert close(after(model, pairs.clean, "resid_pre[1]@1", mean(store))[:, 1], whole.expand(3, 32))
    with_neurons = capture(model, pairs.corrupt, sites=["mlp_post"])
    neuron = torch.cat([with_neurons["mlp_post", 0].prompt(i)[int(bos) :, 5] for i in range(3)]).mean()
    assert close(after(model, pairs.clean, "mlp_post[0:5]", mean(with_neurons))[:, :, 5], neuron.expand(3, 6))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_per_position_is_taken_at_the_same_index_or_name(family):
    model, pairs = model_of(family), make_pairs(MIXED)
    store = capture(model, pairs.corrupt)
    by_index = [
        torch.stack([store["z", 1].prompt(i)[at, 2] for i in range(3) if at < MIXED[i]]).mean(0)
        for at in range(6)
    ]
    got = after(model, pairs.clean, "z[1.2]", mean(store, per="pos"))[:, :, 2]
    inside = torch.arange(6)[None] < pairs.clean.lengths[:, None]
    assert close(got[inside], torch.stack(by_index).expand(3, 6, 8)[inside])
    assert close(
        after(model, pairs.clean, "z[1.2]@3", mean(store, per="pos"))[:, 3, 2], by_index[3].expand(3, 8)
    )
    ends = torch.stack([store["z", 1].prompt(i)[-1, 2] for i in range(3)]).mean(0)
    got = after(model, pairs.clean, "z[1.2]@END", mean(store, per="pos"))
    assert close(got[torch.arange(3), pairs.clean.lengths - 1, 2], ends.expand(3, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_a_half_precision_store_are_means_of_its_rows(dtype):
    model, prompts = model_of("gpt2"), make_pairs((4,) * 12).clean
    store = capture(model, prompts, sites=["resid_post"])
    rows = store["resid_post", 1].data.part(0, 48)
    rows = (rows / rows.abs().max() * 2e4 + 3e4).to(dtype)  # the sum of twelve overflows float16
    rounded = ActivationStore.of(
        prompts, {("resid_post", 1): rows}, model=store.model, model_name="", tokenizer=store.tokenizer
    )
    by_hand = rows.view(12, 4, -1).double()
    for per, right in (("dataset", by_hand[:, 1:] if prompts.bos else by_hand), ("pos", by_hand[:, 2:3])):
        written = after(model, prompts, "resid_post[1]@2", mean(rounded, per=per))[0, 2]
        torch.testing.assert_close(written.double(), right.flatten(0, 1).mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("site", ["resid_post[0]@1", "z[1]", "resid_pre[1]@0"])
def test_rows_that_a_store_has_rounded_are_written_as_they_are(site, tmp_path):
    model, pairs = model_of("gpt2"), make_pairs((5, 5))
    _, corrupt = capture_pairs(model, pairs, path=tmp_path / "store", dtype=torch.bfloat16)
    value = from_store(corrupt)
    measured = effects(model, pairs, sites=[site], value=value)
    edited = run(model, pairs.clean, edits={site: value}, other=pairs.corrupt).logits[:, -1]
    change = edited - run(model, pairs.clean).logits[:, -1]
    right = change.gather(1, pairs.answers[:, 0]) - change.gather(1, pairs.wrong[:, 0])
    assert close(measured, right, scale=logit_size(model, pairs))
    assert bool((measured != 0).all())


def test_the_mean_of_an_attention_pattern_is_refused():
    model, pairs = model_of("gpt2"), make_pairs()
    with pytest.raises(EditError) as error:
        run(
            model, pairs.clean, edits={"pattern[0.0]": mean(capture(model, pairs.corrupt, sites=["pattern"]))}
        )
    assert str(error.value) == (
        "A mean attention pattern is not defined for prompts of different length: use from_store or constant."
    )


def donors_of(value, model, prompts):
    """Which of the store's prompts stands in for each prompt."""
    return value.bind(model, prompts).source.ids


@pytest.mark.types
def test_resampling_takes_another_prompt_of_equal_length_and_the_same_for_every_site():
    model, lengths = model_of("gpt2"), (4, 6, 4, 6, 4, 6)
    pairs = make_pairs(lengths, seed=3)
    store = capture(model, pairs.clean, sites=["z", "resid_pre"])
    value = resample(store, seed=5)
    donors = donors_of(value, model, pairs.clean)
    index = [store.example(donor) for donor in donors]
    assert all(lengths[i] == lengths[j] and i != j for i, j in enumerate(index))
    assert donors == donors_of(resample(store, seed=5), model, pairs.clean), "the seed decides"
    assert len({donors_of(resample(store, seed=seed), model, pairs.clean) for seed in range(8)}) > 1
    edits = {"z[0.1]": value, "z[1.3]": value}
    got = run(model, pairs.clean, edits=edits, record=["z[0]", "z[1]"]).recorded
    for i, j in enumerate(index):
        for layer, head in ((0, 1), (1, 3)):
            assert torch.equal(got["z", layer][i, : lengths[i], head], store["z", layer].prompt(j)[:, head])


def test_a_prompt_that_is_in_the_store_twice_is_no_donor_of_itself():
    model, prompts = model_of("gpt2"), Prompts.of([[1, 2, 3], [1, 2, 3], [4, 5, 6]])
    store = capture(model, prompts)
    for seed in range(5):
        donors = donors_of(resample(store, seed=seed), model, prompts)
        assert donors[:2] == (prompts.ids[2],) * 2
        assert donors[2] == prompts.ids[0]


def test_resampling_without_another_prompt_of_that_length_is_an_error():
    model, pairs = model_of("gpt2"), make_pairs((4, 6, 4))
    with pytest.raises(EditError) as error:
        run(model, pairs.clean, edits={"z[0.0]": resample(capture(model, pairs.clean))})
    assert str(error.value) == (
        "resample: the store has no other prompt of 6 tokens for prompt 1. Capture more prompts, or use mean(store)."
    )


def test_the_donor_of_a_prompt_does_not_depend_on_the_other_prompts_of_the_batch():
    model, pairs = model_of("gpt2"), make_pairs((6,) * 8)
    store = capture(model, pairs.clean, sites=["z"])
    value = resample(store, seed=1)
    together = donors_of(value, model, pairs.clean)
    assert tuple(donors_of(value, model, pairs.clean.select([i]))[0] for i in range(8)) == together
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    assert donors_of(value, model, pairs.clean.select(order)) == tuple(together[i] for i in order)


@pytest.mark.parametrize("method", ["exact", "gradient"])
def test_resampled_effects_do_not_depend_on_the_memory_budget(method):
    model, pairs = model_of("gpt2"), make_pairs((6,) * 6)
    value = resample(capture(model, pairs.clean, sites=["z"]), seed=1)
    options = {"sites": grid("z", model, layer=1), "value": value, "method": method}
    assert close(
        effects(model, pairs, **options, budget=1),
        effects(model, pairs, **options),
        scale=logit_size(model, pairs),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_projection_exchanges_the_part_within_the_subspace_only(family):
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    here, there = clean["z", 1].padded()[:, :, 2], corrupt["z", 1].padded()[:, :, 2]
    torch.manual_seed(0)
    for basis in (torch.randn(8), torch.randn(8, 1), torch.randn(8, 3)):
        onto = torch.linalg.qr(basis.reshape(8, -1))[0]
        expected = here + (there - here) @ onto @ onto.T
        got = after(model, pairs.clean, "z[1.2]", project(basis, from_store(corrupt)), other=pairs.corrupt)[
            :, :, 2
        ]
        assert close(got, expected)
    whole = project(torch.eye(8), from_store(corrupt))
    assert close(after(model, pairs.clean, "z[1.2]", whole, other=pairs.corrupt)[:, :, 2], there)
    exchanged = effects(model, pairs, sites=grid("z", model), value=whole)
    assert close(
        exchanged,
        effects(model, pairs, sites=grid("z", model), value=from_store(corrupt)),
        scale=logit_size(model, pairs),
    )
    removed = after(model, pairs.clean, "z[1.2]", project(torch.eye(8)[:, :2], zero()))[:, :, 2]
    assert close(removed, torch.cat([torch.zeros(3, 6, 2), here[..., 2:]], -1))


def test_projecting_on_a_basis_that_spans_less_uses_what_it_spans():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    direction = torch.randn(8, generator=torch.Generator().manual_seed(0))
    one = after(model, pairs.clean, "z[1.2]", project(direction, from_store(corrupt)), other=pairs.corrupt)
    doubled = project(torch.stack([direction, 2 * direction], 1), from_store(corrupt))
    assert close(after(model, pairs.clean, "z[1.2]", doubled, other=pairs.corrupt), one)


def test_projecting_on_nothing_is_an_error():
    model, prompts = model_of("gpt2"), make_pairs().clean
    with pytest.raises(EditError, match="basis"):
        run(model, prompts, edits={"z[1.2]": project(torch.zeros(8), zero())})


@pytest.mark.parametrize(
    "basis", [torch.ones(7), torch.ones(7, 2), torch.ones(32)], ids=["short", "matrix", "long"]
)
def test_a_basis_of_another_width_is_an_error_that_names_the_site(basis):
    model, prompts = model_of("gpt2"), make_pairs().clean
    with pytest.raises(EditError, match=re.escape("does not fit z[1.2], whose value has shape (3, 6, 8)")):
        run(model, prompts, edits={"z[1.2]": project(basis, zero())})


@pytest.mark.types
def test_projections_nest_and_take_every_value():
    model, (pairs, clean, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    first, second = torch.eye(8)[:, :1], torch.eye(8)[:, :4]
    nested = project(second, project(first, from_store(corrupt)))
    single = project(first, from_store(corrupt))
    got, expected = (effects(model, pairs, sites=grid("z", model), value=value) for value in (nested, single))
    assert close(got, expected, scale=logit_size(model, pairs))
    assert nested.describe() == "project(rank 4, project(rank 1, from_store))"
    for inner in (mean(clean), resample(clean), add(1.0), scale(2.0), constant(0.0)):
        assert effects(model, pairs, sites="z[1.0]", value=project(first, inner)).notnull().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_named_positions_line_up_within_pairs_of_different_length(family):
    model = model_of(family)
    clean_rows, corrupt_rows = [[3, 9, 4, 7], [5, 6, 8, 2, 1]], [[3, 3, 9, 9, 4, 7], [5, 8, 2]]
    clean = Prompts.of(clean_rows, positions=[{"X": 1}, {"X": 2}])
    corrupt = Prompts.of(corrupt_rows, positions=[{"X": 4}, {"X": 0}])
    pairs = PromptPairs(clean, corrupt, torch.tensor([[[1]], [[2]]]), torch.tensor([[[3]], [[4]]]))
    _, store = capture_pairs(model, pairs)
    for kind in ("resid_pre", "z", "k", "mlp_post"):
        got = effects(model, pairs, sites=grid(kind, model, layer=1, head=0, pos=["X", "END"]), value=from_store(store)) if kind in "zk" else \
            effects(model, pairs, sites=[f"{kind}[1]@X", f"{kind}[1]@END"], value=from_store(store))  # fmt: skip
        got = got.values.reshape(2, 2)
        hook = Site(kind, 1).hook
        for i, (row, other, at, there) in enumerate(
            zip(clean_rows, corrupt_rows, (1, 2), (4, 0), strict=True)
        ):
            for column, (here, source) in enumerate(((at, there), (len(row) - 1, len(other) - 1))):
                taken = store[kind, 1].prompt(i)[source]

                def patch(value, hook, here=here, taken=taken, kind=kind):
                    value = value.clone()
                    if kind in "zk":
                        value[0, here, 0] = taken[0]
                    else:
                        value[0, here] = taken
                    return value

                with torch.no_grad():
                    plain = model(torch.tensor([row]))[0, -1]
                    patched = model.run_with_hooks(torch.tensor([row]), fwd_hooks=[(hook, patch)])[0, -1]
                change = patched - plain
                case, size = (kind, i, column), float(plain.abs().max())
                assert close(
                    got[i, column], float(change[i + 1] - change[i + 3]), tolerance=1e-5, scale=size
                ), case


def test_a_position_that_a_prompt_lacks_is_not_edited_elsewhere_instead():
    model = model_of("gpt2")
    prompts = Prompts.of([[3, 9, 4, 7], [5, 6, 8, 2]], positions=[{"X": 1}, {}])
    got = run(model, prompts, edits={"resid_pre[1]@X": zero()})
    plain = run(model, prompts)
    assert max_difference(got.logits[1], plain.logits[1]) == 0
    assert max_difference(got.logits[0], plain.logits[0]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_another_checkpoint_of_the_same_shape_may_be_patched_in(family):
    model, other = model_of(family), model_of(family, seed=1)
    pairs, _, _ = pairs_and_stores(family)
    foreign = capture(other, pairs.clean, sites=["z", "resid_pre"])
    got = effects(
        model, pairs, sites=grid("z", model), value=from_store(foreign, other_model=True, allow_self=True)
    )
    assert float(abs(got).min()) > 0

    def patch(z, hook):
        z = z.clone()
        z[:, :, 3] = foreign["z", 1].padded()[:, :, 3]
        return z

    with torch.no_grad():
        change = model.run_with_hooks(
            pairs.clean.tokens, fwd_hooks=[("blocks.1.attn.hook_z", patch)]
        ) - model(pairs.clean.tokens)
    rows = torch.arange(3)
    expected = change[rows, -1, pairs.answers[:, 0, 0]] - change[rows, -1, pairs.wrong[:, 0, 0]]
    assert close(got.sel(layer=1, head=3), expected, scale=logit_size(model, pairs))


def test_a_store_of_another_model_is_refused_by_name():
    model, other = model_of("gpt2"), model_of("gpt2", seed=1)
    pairs = make_pairs()
    foreign = capture(other, pairs.corrupt)
    names = f"the store is of the model external ({model_fingerprint(other)[:8]}), not of external ({model_fingerprint(model)[:8]})."
    hint = " For another checkpoint of the same shape pass other_model=True."
    for value, what, ending in (
        (from_store(foreign), "from_store", hint),
        (mean(foreign), "mean", ""),
        (resample(foreign), "resample", ""),
    ):
        with pytest.raises(StoreError) as error:
            effects(model, pairs, sites=grid("z", model), value=value)
        assert str(error.value) == f"{what}: {names}{ending}"


def test_a_model_of_another_shape_cannot_be_patched_in():
    model, pairs = model_of("native"), make_pairs()
    foreign = capture(native(n_heads=2, d_head=16), pairs.corrupt, sites=["z"])
    with pytest.raises(WorkbenchError, match=re.escape("z[1]")):
        effects(model, pairs, sites="z[1]", value=from_store(foreign, other_model=True))


def test_a_model_changed_after_the_capture_is_another_model():
    model, pairs = build("gpt2"), make_pairs()
    _, corrupt = capture_pairs(model, pairs)
    with torch.no_grad():
        next(iter(model.parameters())).add_(0.1)
    with pytest.raises(StoreError, match=re.escape("from_store: the store is of the model")):
        effects(model, pairs, sites="z[0.0]", value=from_store(corrupt))


def test_a_store_of_other_prompts_is_refused():
    model, pairs, others = model_of("gpt2"), make_pairs(), make_pairs(seed=9)
    store = capture(model, others.corrupt)
    with pytest.raises(StoreError) as error:
        effects(model, pairs, sites="z[0.0]", value=from_store(store))
    assert str(error.value) == (
        f"Prompt 0 of these pairs ({pairs.clean.ids[0][:8]}) is not in the store: it holds 3 prompts "
        f"({others.corrupt.fingerprint[:8]}) of other pairs. Capture these with wb.capture_pairs(model, pairs)."
    )


def test_a_store_that_lacks_the_kind_says_how_to_capture_it():
    model, pairs = model_of("gpt2"), make_pairs()
    _, corrupt = capture_pairs(model, pairs, sites=["z", "resid_pre[0]"])
    for site, here in (("k[1]", "it has z, resid_pre"), ("resid_pre[1]", "it has layers [0] of it")):
        with pytest.raises(StoreError) as error:
            effects(model, pairs, sites=site, value=from_store(corrupt))
        kind = site.split("[")[0]
        assert (
            str(error.value)
            == f"The store does not hold {site}; {here}. Capture it with sites=[..., {kind!r}]."
        )


def test_an_edit_that_is_no_value_or_that_no_prompt_has_is_refused():
    model, prompts = model_of("gpt2"), make_pairs().clean
    with pytest.raises(EditError) as error:
        run(model, prompts, edits={"z[0.0]": cast(Any, 0)})
    assert "each value is a value such as wb.zero(), wb.mean(store)" in str(error.value)
    with pytest.raises(EditError) as error:
        run(model, prompts, edits={"z[0.0]@9": zero()})
    assert str(error.value) == "No prompt has the position of z[0.0]@9: the longest has 6 tokens."
    with pytest.raises(UnknownName):
        run(model, prompts, edits={"z[0.0]@IO": zero()})


def test_not_a_number_never_comes_back_as_a_result():
    model, pairs = model_of("gpt2"), make_pairs((6, 6))
    short = capture(model, make_pairs((4, 4)).corrupt)
    for value in (mean(short, per="pos"), constant(float("nan"))):
        for method in ("exact", "gradient"):
            with pytest.raises((MetricError, EditError, StoreError)):
                effects(model, pairs, sites="z[0.0]", value=value, method=method)
