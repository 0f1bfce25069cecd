"""Stores: every reader against a plain run of the model, one prompt at a time."""

import pytest
import torch
from closeness import close
from families import D_MODEL, FAMILIES, NATIVES, make_pairs, model_of

from workbench.engine.capture import PAIR_KINDS, capture, capture_pairs
from workbench.errors import PromptError, SiteError, StoreError, UnknownName
from workbench.models.fingerprint import model_fingerprint
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Shape

MIXED = (4, 6, 1, 5)
ROWS = sum(MIXED)


def prompts_of_mixed_length(bos=False):
    pairs = make_pairs((4, 6, 3, 5), bos=bos)
    rows = [row[:length].tolist() for row, length in zip(pairs.clean.tokens, MIXED, strict=True)]
    return Prompts.of(rows, positions=[{"X": 1}, {"X": 4}, {}, {"X": 0}], bos=bos)


@pytest.fixture(scope="module", params=FAMILIES)
def held(request):
    """(the store of prompts of mixed length, what a run of each prompt alone gives: key → [pos, ...] per prompt)."""
    model, prompts = model_of(request.param), prompts_of_mixed_length()
    shape = Shape.of(model)
    kinds = [kind for kind in KINDS if not shape.lacks(KINDS[kind]) and kind != "resid_mid"]
    store = capture(model, prompts, sites=kinds)
    plain = {}
    for i, length in enumerate(MIXED):
        with torch.no_grad():
            logits, cache = model.run_with_cache(prompts.tokens[i : i + 1, :length])
        for kind, layer in store.keys:
            value = logits if kind == "logits" else cache[KINDS[kind].hook.format(layer=layer)]
            plain.setdefault((kind, layer), []).append(value[0])
    return store, plain


def test_each_prompt_reads_as_a_run_of_it_alone(held):
    store, plain = held
    for key in store.keys:
        for i in range(4):
            assert close(store[key].prompt(i), plain[key][i]), key
        assert len(store[key]) == (len(store[key].packed))
        if key[0] != "pattern":
            assert len(store[key]) == ROWS


def test_rows_are_found_by_prompt_and_position(held):
    store, plain = held
    for key in (("resid_post", 1), ("z", 0), ("k", 1), ("mlp_post", 0), ("embed", None)):
        got = store[key].rows(prompt=[3, 0, 0, 2], pos=[4, 0, 3, 0])
        expected = torch.stack([plain[key][3][4], plain[key][0][0], plain[key][0][3], plain[key][2][0]])
        assert close(got, expected)
    for prompt, pos in (([2], [1]), ([0], [-1]), ([0, 1], [3, 6])):
        with pytest.raises(StoreError) as error:
            store["z", 0].rows(prompt=prompt, pos=pos)
        assert str(error.value) == (
            f"{store['z', 0]!r}: position {pos[-1]} of prompt {prompt[-1]} is not there: it lies outside its prompt."
        )


def test_one_position_of_every_prompt_is_nan_where_it_is_lacking(held):
    store, plain = held
    view = store["resid_pre", 1]
    for where, places in (
        (3, (3, 3, None, 3)),
        ("END", (3, 5, 0, 4)),
        ("X", (1, 4, None, 0)),
        (7, (None,) * 4),
    ):
        got = view.at(where)
        for i, place in enumerate(places):
            if place is None:
                assert got[i].isnan().all()
            else:
                assert close(got[i], plain["resid_pre", 1][i][place])
    assert not view.packed.isnan().any(), "the store itself is untouched"
    with pytest.raises(UnknownName) as error:
        view.at("S2")
    assert str(error.value) == "position='S2' is not known. Choices: END, X."
    with pytest.raises(PromptError, match="Position -1: positions count from 0"):
        view.at(-1)


@pytest.mark.types
@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_blocks_cover_every_row_once(held, size):
    store, plain = held
    view = store["resid_post", 0]
    expected = torch.cat(plain["resid_post", 0])
    blocks = list(view.blocks(size=size))
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert close(torch.cat(blocks), expected)
    shuffled = list(view.blocks(shuffle=True, seed=1, size=size))
    assert sorted(map(tuple, torch.cat(shuffled).tolist())) == sorted(map(tuple, torch.cat(blocks).tolist()))
    again = list(view.blocks(shuffle=True, seed=1, size=size))
    assert all(torch.equal(a, b) for a, b in zip(shuffled, again, strict=True))
    if size < 100:
        assert not torch.equal(torch.cat(shuffled), torch.cat(blocks))


def test_padded_has_zeros_beyond_each_prompt(held):
    store, plain = held
    for key in (("resid_pre", 0), ("v", 1), ("mlp_pre", 1), ("logits", None)):
        got = store[key].padded()
        assert got.shape[:2] == (4, 6)
        for i, length in enumerate(MIXED):
            assert close(got[i, :length], plain[key][i])
            assert (got[i, length:] == 0).all()
        some = store[key].padded([3, 2])
        assert torch.equal(some, got[[3, 2], :5])
        assert torch.equal(store[key].padded([2], length=3)[0], got[2, :3])


def test_patterns_are_squares_per_prompt(held):
    store, plain = held
    view = store["pattern", 1]
    padded = view.padded()
    assert padded.shape == (4, 4, 6, 6)
    for i, length in enumerate(MIXED):
        got = view.prompt(i)
        assert got.shape == (4, length, length)
        assert close(got, plain["pattern", 1][i])
        assert close(got.sum(-1), torch.ones(4, length))
        assert torch.equal(padded[i, :, :length, :length], got)
        assert (padded[i, :, length:] == 0).all()
        assert (padded[i, :, :, length:] == 0).all()
    for reader, call in {
        "rows": lambda: view.rows(prompt=[0], pos=[0]),
        "at": lambda: view.at(0),
        "mean": view.mean,
        "blocks": lambda: list(view.blocks()),
    }.items():
        with pytest.raises(StoreError) as error:
            call()
        assert (
            str(error.value)
            == f"Attention patterns have no token rows for .{reader}(...): use .prompt(i) or .padded()."
        )


@pytest.mark.parametrize("bos", [False, True])
def test_the_mean_leaves_bos_rows_out(bos):
    model, prompts = model_of("gpt2"), prompts_of_mixed_length(bos)
    view = capture(model, prompts, sites=["z"])["z", 1]
    rows = torch.cat([view.prompt(i)[int(bos) :] for i in range(4)])
    assert len(rows) == (ROWS - 4 if bos else ROWS)
    assert close(view.mean(), rows.mean(0))
    assert view.mean().shape == (4, 8)


def test_a_mean_of_bos_rows_only_is_an_error():
    view = capture(model_of("gpt2"), Prompts.of([[0], [0]], bos=True), sites=["z"])["z", 1]
    with pytest.raises(StoreError) as error:
        view.mean()
    assert (
        str(error.value)
        == "<SiteView z[1]: 2 prompts, (2, 4, 8) torch.float32>: there are no rows but BOS ones to take a mean of."
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_between_blocks_is_stored_once(family):
    model, prompts = model_of(family), make_pairs().clean
    both = capture(model, prompts, sites=["resid_pre", "resid_post"])
    assert both["resid_post", 0].packed.data_ptr() == both["resid_pre", 1].packed.data_ptr()
    assert both.nbytes() == 3 * 18 * D_MODEL * 4
    after = capture(model, prompts, sites=["resid_post"])
    assert after.nbytes() == 2 * 18 * D_MODEL * 4
    assert torch.equal(after["resid_post", 0].packed, both["resid_post", 0].packed)
    assert torch.equal(after["resid_post", 1].packed, both["resid_post", 1].packed)


@pytest.mark.parametrize("family", FAMILIES + NATIVES)
def test_pairs_are_captured_with_every_kind_that_the_model_has(family):
    model, pairs = model_of(family), make_pairs()
    clean, corrupt = capture_pairs(model, pairs)
    shape = Shape.of(model)
    assert clean.kinds == corrupt.kinds == [kind for kind in PAIR_KINDS if not shape.lacks(KINDS[kind])]
    assert clean.prompts.ids == pairs.clean.ids
    assert corrupt.prompts.ids == pairs.corrupt.ids
    assert clean.model == corrupt.model == model_fingerprint(model)
    for store, prompts in ((clean, pairs.clean), (corrupt, pairs.corrupt)):
        with torch.no_grad():
            _, cache = model.run_with_cache(prompts.tokens)
        for layer in range(2):
            assert close(store["resid_post", layer].padded(), cache[f"blocks.{layer}.hook_resid_post"])


@pytest.mark.parametrize("family", FAMILIES + NATIVES)
def test_a_capture_without_sites_takes_what_the_model_has(family):
    model = model_of(family)
    store = capture(model, make_pairs().clean)
    assert store.kinds == [kind for kind in PAIR_KINDS if not Shape.of(model).lacks(KINDS[kind])]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_memory_budget_does_not_change_a_store(family):
    model, prompts = model_of(family), prompts_of_mixed_length()
    usual = capture(model, prompts, sites=["resid_pre", "pattern", "z"])
    for budget in (1, 60_000):
        other = capture(model, prompts, sites=["resid_pre", "pattern", "z"], budget=budget)
        assert other.keys == usual.keys
        assert all(close(other[key].packed, usual[key].packed) for key in usual.keys), budget


def test_a_prompt_is_found_by_its_id_wherever_it_stands():
    store = capture(model_of("gpt2"), [[1, 2], [3, 4, 5], [1, 2]], sites=["z"])
    assert store.example(Prompts.of([[3, 4, 5]]).ids[0]) == 1
    assert store.example(Prompts.of([[1, 2]]).ids[0]) == 0
    assert store.example(Prompts.of([[1, 2, 0]]).ids[0]) is None, "padding is no part of a prompt"


def test_what_the_store_does_not_hold_is_named_with_what_to_do():
    store = capture(model_of("gpt2"), make_pairs().clean, sites=["z", "resid_pre[1]"])
    messages = {
        ("k", 0): "The store does not hold k[0]; it has z, resid_pre. Capture it with sites=[..., 'k'].",
        (
            "resid_pre",
            0,
        ): "The store does not hold resid_pre[0]; it has layers [1] of it. Capture it with sites=[..., 'resid_pre'].",
        (
            "z",
            2,
        ): "The store does not hold z[2]; it has layers [0, 1] of it. Capture it with sites=[..., 'z'].",
        "embed": "The store does not hold embed; it has z, resid_pre. Capture it with sites=[..., 'embed'].",
        "z": "Which layer of z? Write store['z', 0]; the store has layers [0, 1].",
    }
    for key, message in messages.items():
        with pytest.raises(StoreError) as error:
            store[key]
        assert str(error.value) == message
    with pytest.raises(UnknownName):
        store["resid", 0]
    assert ("z", 1) in store
    assert ("k", 1) not in store
    assert store.layers("resid_pre") == [1]
    assert repr(store) == "<ActivationStore of external: 3 prompts, z, resid_pre, 0.0 MiB>"
    assert repr(store["z", 0]) == "<SiteView z[0]: 3 prompts, (18, 4, 8) torch.float32>"


def test_captures_that_make_no_sense_are_refused():
    model = model_of("gpt2")
    with pytest.raises(SiteError) as error:
        capture(model, [[1, 2]], sites=[])
    assert str(error.value) == "capture: name at least one kind or site in sites=[...]."
    with pytest.raises(SiteError) as error:
        capture(model_of("neox"), [[1, 2]], sites=["resid_mid"])
    assert str(error.value) == (
        "Site 'resid_mid[0]': this model has no resid_mid, because its attention and MLP run in parallel, so there is no stream between them."
    )
    with pytest.raises(PromptError) as error:
        capture(model, [[1] * 33])
    assert str(error.value) == "Prompt 0 has 33 tokens; the model's context holds 32."
    with pytest.raises(PromptError) as error:
        capture(model, [[1, 2], []])
    assert str(error.value) == "Prompt 1 is empty: every prompt needs at least one token."
    with pytest.raises(PromptError) as error:
        capture(model, ["text"])
    assert str(error.value) == "This model has no tokenizer: build prompts with Prompts.of(token_ids)."
    with pytest.raises(PromptError) as error:
        capture(model, torch.tensor([[1, 50]]))
    assert str(error.value) == "Token id 50 is outside the model's vocabulary of 50."


def test_a_store_does_not_change_when_what_was_read_is_changed():
    store = capture(model_of("gpt2"), make_pairs().clean, sites=["z", "resid_pre", "resid_post"])
    before = store["z", 0].packed.clone()
    store["z", 0].padded().zero_()
    store["z", 0].at(0).zero_()
    store["z", 0].rows(prompt=[0], pos=[0]).zero_()
    assert torch.equal(store["z", 0].packed, before)
