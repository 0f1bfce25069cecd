"""`Experiment`: held-out pairs are apart from training pairs, and each has its own activations and values."""

import functools

import pytest
import torch

import workbench as wb
from workbench.errors import PromptError, UnknownName
from workbench.experiment import PairsInModel, writer_kinds


@functools.cache
def tiny():
    return wb.load_model("tiny", device="cpu")


@functools.cache
def experiment() -> wb.Experiment:
    return wb.Experiment.of(tiny(), "ioi", n=6, seed=3)


def test_train_and_heldout_pairs_are_those_of_the_task_and_share_no_prompt():
    train, heldout = experiment().train.pairs, experiment().heldout.pairs
    assert train.fingerprint == wb.load_task("ioi", tiny(), n=6, seed=3).fingerprint
    assert heldout.fingerprint == wb.load_task("ioi", tiny(), n=6, seed=3, split="heldout").fingerprint
    assert not {*train.clean.ids, *train.corrupt.ids} & {*heldout.clean.ids, *heldout.corrupt.ids}
    assert experiment().metric.name == "logit_diff"
    assert len(experiment().heldout) == 6


def test_each_set_of_pairs_has_the_activations_of_its_own_runs_and_captures_them_once():
    for pairs in (experiment().train, experiment().heldout):
        clean, corrupt = wb.capture_pairs(tiny(), pairs.pairs, progress=False)
        assert torch.equal(pairs.clean["z", 1].padded(), clean["z", 1].padded())
        assert torch.equal(pairs.corrupt["z", 1].padded(), corrupt["z", 1].padded())
        assert pairs.clean is pairs.clean


def test_values_by_name_are_of_the_run_that_is_edited():
    sites = ["z[3.7]", "mlp_out[1]"]
    own = wb.load_task("binding", tiny(), n=6)  # of one length, which resample needs
    for base in ("clean", "corrupt"):
        pairs = PairsInModel.of(tiny(), own, base=base, seed=1)
        clean, corrupt = wb.capture_pairs(tiny(), pairs.pairs, progress=False)
        edited, other = (clean, corrupt) if base == "clean" else (corrupt, clean)
        expected = {
            "zero": wb.zero(),
            None: wb.from_store(other),
            "other": wb.from_store(other),
            "mean": wb.mean(edited),
            "resample": wb.resample(edited, seed=1),
        }
        for name, value in expected.items():
            ours, theirs = (
                wb.effects(tiny(), pairs.pairs, sites=sites, value=chosen, base=base, progress=False)
                for chosen in (pairs.value(name), value)
            )
            assert ours.equals(theirs), (base, name)


def test_an_experiment_is_one_line_and_has_the_values_of_its_training_pairs():
    assert repr(experiment()) == "Experiment(ioi in tiny, logit_diff: 6 pairs to find things on, 6 held out)"
    assert repr(experiment().train) == "PairsInModel(6 pairs in tiny, logit_diff)"
    assert experiment().value("corrupt").store is experiment().train.corrupt
    with pytest.raises(
        PromptError,
        match=r"train=a TransformerBridge does not fit; PairsInModel, of which wb\.Experiment\.of",
    ):
        wb.Experiment(tiny(), "ioi")
    for name in ("optimal", "zeros", 0, wb.zero()):
        with pytest.raises(
            UnknownName, match=r"Choices: constant:X, corrupt, mean, resample, scale:X, zero\.$"
        ):
            experiment().value(name)


def test_a_value_that_needs_no_activations_captures_none(monkeypatch):
    pairs = PairsInModel.of(tiny(), experiment().train.pairs)
    monkeypatch.setattr("workbench.experiment.capture", lambda *_, **__: pytest.fail("captured"))
    assert pairs.value("zero").describe() == "zero"


def test_pairs_of_your_own_are_split_into_two_halves_with_one_metric():
    own = wb.load_task("agreement", tiny(), n=12)
    halves = wb.Experiment.of(tiny(), own, metric="prob_diff", sites=["z"])
    assert len(halves.train) + len(halves.heldout) == 12
    assert halves.train.metric == halves.heldout.metric == wb.metric("prob_diff")
    assert halves.train.clean.kinds == ["z"]
    with pytest.raises(PromptError) as refused:
        wb.Experiment.of(tiny(), own, n=4)
    assert str(refused.value) == (
        "n= and variant= belong to a task's name; pairs of your own are split into two halves."
    )
    with pytest.raises(UnknownName) as unknown:
        wb.Experiment.of(tiny(), own, base="korrupt")
    assert (
        str(unknown.value) == "base='korrupt' is not known. Did you mean 'corrupt'? Choices: clean, corrupt."
    )


def test_the_kinds_of_writers_are_those_that_a_model_has():
    assert writer_kinds(tiny()) == ["resid_pre[0]", "z", "mlp_out", "mlp_post"]
    assert "mlp_out" not in writer_kinds(wb.planted("backup", n=4).model)
