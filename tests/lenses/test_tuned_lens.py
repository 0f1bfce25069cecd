"""The tuned lens: it comes from the store alone, beats the logit lens on held-out prompts, and survives a file."""

import json

import pytest
import torch
from closeness import distance
from families import make_pairs, model_of, native, ragged, untyped
from safetensors.torch import save_file

import workbench as wb
from workbench.errors import NotFinite, OutputExists, ProbeError, StoreError

TASKS = ("ioi", "induction", "greater_than", "agreement", "pronoun", "capitals", "binding")


def prompts_of(model, n, split="train"):
    """Prompts of every behaviour together."""
    parts = [wb.load_task(name, model, n=n, split=split).clean for name in TASKS]
    rows = [part.tokens[i, : int(part.lengths[i])].tolist() for part in parts for i in range(len(part))]
    return wb.Prompts.of(rows, bos=parts[0].bos)


def test_it_beats_the_logit_lens_at_every_middle_layer_of_tiny(tmp_path):
    model = wb.load_model("tiny")
    store = wb.capture(
        model, prompts_of(model, 60), sites=["resid_post"], path=tmp_path / "s", progress=False
    )
    lens = wb.fit_tuned_lens(store, model, epochs=10)
    assert lens.layers == (0, 1, 2)
    table = lens.heldout
    assert (table["gain_low"] > 0.3).all()
    assert (table["tuned_high"] < table["logit_low"]).all()
    assert table.attrs["n_prompts"] == round(0.2 * len(set(store.prompts.ids)))
    other = wb.capture(model, prompts_of(model, 20, "heldout"), sites=["resid_post"])
    plain, tuned = (wb.logit_lens(other, model, measure="kl", lens=lens_) for lens_ in (None, lens))
    gain = (plain - tuned).isel(pos=slice(1, None)).mean(("example", "pos"))
    assert (gain.isel(layer=slice(0, 3)) > 0.3).all()
    assert float(abs(tuned.isel(layer=3)).max()) == 0
    assert tuned.attrs["lens"] == "tuned"
    assert plain.attrs["lens"] == "logit"
    wb.top_tokens(other, model, lens=lens, k=2)


def test_prompts_held_out_are_those_reported_and_numbers_repeat():
    model = model_of("gpt2")
    store = wb.capture(model, ragged([4, 6, 5, 7, 3, 6, 6, 5, 4, 7] * 3, bos=True), sites=["resid_post"])
    first, again = (wb.fit_tuned_lens(store, model, epochs=2, seed=3) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert first.heldout.equals(again.heldout)
    doubled = wb.Prompts.of(
        [row for row in [[0, 5, 6], [0, 7, 8], [0, 9, 4], [0, 3, 2], [0, 1, 1]] for _ in range(6)], bos=True
    )
    lens = wb.fit_tuned_lens(
        wb.capture(model, doubled, sites=["resid_post"]), model, epochs=1, test_share=0.4
    )
    assert lens.heldout.attrs["n_prompts"] == 12, "equal prompts are held out together"
    assert lens.heldout.attrs["n_rows"] == 24, "BOS rows are left out"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_model_is_translated_exactly(dtype):
    model = native(normalization_type=None, attn_only=True).to(dtype)
    for block in model.blocks:
        block.attn.W_O.data *= 0
        block.attn.b_O.data += 0.3 * torch.arange(32) / 32
    store = wb.capture(model, ragged([6] * 30), sites=["resid_post"])
    lens = wb.fit_tuned_lens(store, model, epochs=1, rate=1e-6)
    assert float(lens.heldout["tuned"].max()) < 1e-6
    rows = store["resid_post", 0].packed[:5]
    assert distance(lens(rows, 0), store["resid_post", 1].packed[:5]) < 1e-2


def test_a_file_gives_it_back(tmp_path):
    model = model_of("gpt2")
    store = wb.capture(model, ragged([4, 6, 5, 7] * 3), sites=["resid_pre", "resid_post"])
    lens = wb.fit_tuned_lens(store, model, kind="resid_pre", layers=[1], epochs=1)
    path = lens.save(tmp_path / "lens.safetensors")
    back = wb.TunedLens.load(path)
    assert back.layers == (1,)
    assert back.kind == "resid_pre"
    assert torch.equal(back.weight, lens.weight)
    assert back.heldout.equals(lens.heldout)
    assert back.heldout.attrs == lens.heldout.attrs
    with pytest.raises(OutputExists):
        lens.save(path)
    with pytest.raises(StoreError, match=r"no translator for layer 0; it has layers \[1\]"):
        back(torch.zeros(1, 32), 0)


def test_files_that_are_no_tuned_lens(tmp_path):
    with pytest.raises(StoreError, match="There is no tuned lens"):
        wb.TunedLens.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StoreError, match="cannot be read as a tuned lens"):
        wb.TunedLens.load(tmp_path / "text")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(StoreError, match="its format is None"):
        wb.TunedLens.load(tmp_path / "other")
    facts = {
        "layers": [0, 1],
        "heldout": {},
        "attrs": {},
        "kind": "resid_post",
        "model": "",
        "model_name": "",
    }
    meta = {"format": "interp-workbench tuned lens 1", "facts": json.dumps(facts)}
    save_file({"weight": torch.zeros(1, 4, 4), "bias": torch.zeros(1, 4)}, tmp_path / "short", metadata=meta)
    with pytest.raises(StoreError, match="do not fit"):
        wb.TunedLens.load(tmp_path / "short")
    tensors = {"weight": torch.zeros(2, 4, 4), "bias": torch.zeros(2, 4)}
    measures = {name: [0.5, 0.25] for name in ("tuned", "logit", "gain")}
    for heldout in (
        None,
        "x",
        [],
        [[1]],
        {},
        {**measures, "gain": 3},
        {**measures, "gain": [1]},
    ):
        meta["facts"] = json.dumps({**facts, "heldout": heldout})
        save_file(tensors, tmp_path / "facts", metadata=meta)
        with pytest.raises(StoreError, match="cannot be read as a tuned lens"):
            wb.TunedLens.load(tmp_path / "facts")
    meta["facts"] = json.dumps({**facts, "heldout": measures})
    save_file(tensors, tmp_path / "facts", metadata=meta)
    assert wb.TunedLens.load(tmp_path / "facts").layers == (0, 1)
    tensors["bias"][1, 2] = float("nan")
    save_file(tensors, tmp_path / "facts", metadata=meta)
    with pytest.raises(
        NotFinite, match=r"'bias' of '.*facts' holds numbers that are not finite \(1 are NaN\)"
    ):
        wb.TunedLens.load(tmp_path / "facts")


def test_what_cannot_be_fitted_is_refused():
    model, pairs = model_of("gpt2"), make_pairs()
    store = wb.capture(model, pairs.clean, sites=["resid_post"])
    wrong = [
        ({"test_share": 0.01}, ProbeError, "leaves none to train on or none held out"),
        ({"epochs": 0}, ProbeError, "must be positive"),
        ({"rate": -1.0}, ProbeError, "must be positive"),
        ({"kind": "resid_pre"}, StoreError, "fit_tuned_lens needs resid_pre"),
        ({"layers": [1]}, StoreError, "below the last layer"),
        ({"layers": [5]}, StoreError, r"fit_tuned_lens needs resid_post\[5\]"),
    ]
    for given, kind, message in wrong:
        with pytest.raises(kind, match=message):
            untyped(wb.fit_tuned_lens)(store, model, **({"test_share": 0.4} | given))
    first = wb.capture(model, pairs.clean, sites=["resid_post[0]"])
    with pytest.raises(StoreError, match=r"fit_tuned_lens needs resid_post\[1\]"):
        wb.fit_tuned_lens(first, model)
