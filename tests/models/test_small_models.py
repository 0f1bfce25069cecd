"""`induction` copies by content, its twin `shortcut` by position: both load like any model, and everything works on them."""

import json
import shutil

import numpy as np
import pytest
import torch
from closeness import close

import workbench as wb
from workbench import resources
from workbench.errors import ModelError
from workbench.interventions import effects as effects_module
from workbench.models.load import model_name, model_source

FOLDER = resources.data() / "models"
OWN = 12
NAMES = ("induction", "shortcut")


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return wb.load_model(request.param, device="cpu")


def by_distance(model, split="heldout"):
    """Whether each prompt is right, by the distance from a word to its repetition."""
    pairs = wb.load_task("induction", model, n=600, split=split)
    with torch.no_grad():
        logits = model(pairs.clean.tokens)[torch.arange(600), pairs.clean.lengths - 1]
    right = (logits.argmax(-1) == pairs.answers[:, 0, 0]).numpy()
    distance = (pairs.clean.at("END") - pairs.clean.at("PREVIOUS")).numpy()
    return {int(at): right[distance == at] for at in np.unique(distance)}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_small_and_has_a_card_and_a_tokenizer(name):
    folder = FOLDER / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2**20
    card = (folder / "README.md").read_text(encoding="utf-8")
    for said in ("MIT", "no text downloaded", f"train_induction.py {name}", "--seed 0"):
        assert said in card


def test_loading_says_nothing_and_gives_an_eval_model_with_the_words_of_tiny(model, capsys):
    again = wb.load_model(model_name(model), device="cpu")
    assert capsys.readouterr().out == ""
    assert not again.training
    assert wb.model_fingerprint(again) == wb.model_fingerprint(model)
    assert model_source(again)["source"] == model_name(model)
    assert again.tokenizer.get_vocab() == wb.load_model("tiny").tokenizer.get_vocab()
    assert next(wb.load_model(model_name(model), dtype="float64").parameters()).dtype == torch.float64


def test_the_norms_are_those_of_training(model):
    gains = [
        value
        for name, value in model.original_model.named_parameters()
        if "ln" in name and name.endswith("weight")
    ]
    assert len(gains) == 3
    assert all((gain - 1).abs().max() > 1e-3 for gain in gains)


def test_induction_copies_at_any_distance():
    right_by_distance = by_distance(wb.load_model("induction"))
    assert set(right_by_distance) >= set(range(2, 15))
    assert np.mean(np.concatenate([*right_by_distance.values()])) >= 0.95
    assert min(right.mean() for right in right_by_distance.values() if len(right) > 5) >= 0.95


def test_the_shortcut_copies_at_its_own_distance_only():
    right_by_distance = by_distance(wb.load_model("shortcut"))
    assert right_by_distance.pop(OWN).mean() >= 0.95
    assert np.mean(np.concatenate([*right_by_distance.values()])) < 0.15


def test_the_same_attention_at_the_shortcuts_distance_and_another_elsewhere():
    scores = {}
    for name in NAMES:
        model = wb.load_model(name)
        pairs = wb.load_task("induction", model, n=400)
        distance = pairs.clean.at("END") - pairs.clean.at("PREVIOUS")
        for what, chosen in {"own": distance == OWN, "other": distance != OWN}.items():
            store = wb.capture(
                model, pairs.select(chosen.nonzero()[:, 0].tolist()).clean, sites=["pattern"], progress=False
            )
            scores[name, what] = float(wb.head_scores(store, scores=["induction"]).mean("example").max())
    assert min(scores["induction", "own"], scores["induction", "other"], scores["shortcut", "own"]) > 0.9
    assert scores["shortcut", "other"] < 0.3


@pytest.mark.filterwarnings("error")
def test_the_fast_engine_gives_the_numbers_of_hooks(model):
    pairs = wb.load_task("induction", model, n=8)
    clean, corrupt = wb.capture_pairs(model, pairs, progress=False)
    arguments = {"sites": wb.grid("z", model), "value": wb.from_store(corrupt), "progress": False}
    fast = wb.effects(model, pairs, **arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effects_module, "fast_decoder", lambda *_: (None, "hooks are asked for"))
        hooked = wb.effects(model, pairs, **arguments)
    assert (fast.attrs["engine"], hooked.attrs["engine"]) == ("staircase", "reference")
    # Effects are differences of logit differences: what matters is the size of the logits.
    size = float(wb.run(model, pairs.clean).logits.abs().max())
    assert close(fast, hooked, scale=size)
    assert wb.head_scores(clean).sizes["layer"] == 2


@pytest.mark.filterwarnings("error")
def test_circuits_have_no_mlps(model):
    pairs = wb.load_task("induction", model, n=32).select(range(16))
    _, corrupt = wb.capture_pairs(model, pairs, progress=False)
    scores = wb.score_edges(model, pairs, value=wb.from_store(corrupt), method="exact", progress=False)
    assert not any(writer.startswith("m") for writer in scores["writer"].values)
    full = wb.evaluate(
        wb.Circuit.full(model), model, pairs, value=wb.from_store(corrupt), checks=(), progress=False
    )
    assert float(full["faithfulness"][0]) == pytest.approx(1)


def test_a_copied_folder_is_the_same_model_and_a_wrong_one_is_refused(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(FOLDER / "induction", folder)
    assert wb.model_fingerprint(wb.load_model(folder)) == wb.model_fingerprint(wb.load_model("induction"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layers": 3}))
    with pytest.raises(ModelError, match=r"do not fit its config\.json: 10 missing"):
        wb.load_model(folder)
