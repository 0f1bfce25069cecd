"""The studied circuits: complete, true to their evidence, and found again by their scripts, edge by edge."""

import functools
import importlib.util
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import workbench as wb
from tests.closeness import close
from workbench import resources
from workbench.circuit.circuit import Circuit
from workbench.errors import OutputExists, PromptError, WorkbenchError
from workbench.models.pinned import PINNED
from workbench.studies.check import differences
from workbench.studies.circuit_experiment import CircuitExperiment
from workbench.studies.command import FILES, main, write
from workbench.studies.evidence import FILE, SHOWN_EDGES, Evidence
from workbench.studies.prediction import Estimate, Prediction, Role
from workbench.studies.readme import page
from workbench.studies.table import table
from workbench.tasks import grammar
from workbench.tasks.task import TASKS

CIRCUITS = resources.circuits()
IOI = CIRCUITS / "ioi"
NAMES = ("agreement", "binding", "facts", "greater_than", "induction", "ioi", "pronoun")
OF_PINNED = ("smollm2-ioi",)
"""Studies of weights that are not committed: computed again only where the weights are."""
AT_LEAST_TESTS = {"ioi": 3, "induction": 3, "binding": 3}
"""How many predictions must test a study's account; 2 for the others."""


@functools.cache
def study_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"study_of_{name}", CIRCUITS / name / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def tiny():
    return wb.load_model("tiny", device="cpu")


@functools.cache
def small_experiment(name: str) -> CircuitExperiment:
    """A study's circuit found and tested on six prompts, which is enough for identities."""
    return study_of(name).STUDY.experiment(tiny(), n=6)


@functools.cache
def committed(name: str) -> Evidence:
    return Evidence.load(CIRCUITS / name / FILE)


def test_every_task_has_a_study_and_every_study_is_listed():
    assert {path.parent.name for path in CIRCUITS.glob("*/circuit.json")} == {*NAMES, *OF_PINNED}
    assert {study_of(name).STUDY.task for name in NAMES} == set(TASKS)
    for name in (*NAMES, *OF_PINNED):
        assert study_of(name).STUDY.model == committed(name).model, name
        assert (study_of(name).STUDY.model in PINNED) == (name in OF_PINNED), name
    assert table(CIRCUITS) in (CIRCUITS / "README.md").read_text(encoding="utf-8"), (
        "run: python circuits/table.py"
    )


def test_the_pages_are_made_from_the_evidence_and_say_what_the_studies_say():
    for name in (*NAMES, *OF_PINNED):
        folder, evidence, study = CIRCUITS / name, committed(name), study_of(name).STUDY
        assert all((folder / file).is_file() for file in (*FILES, "study.py")), name
        assert (folder / "README.md").read_text(encoding="utf-8") == page(evidence), (
            "run: python circuits/table.py"
        )
        assert (evidence.account, evidence.limits) == (study.account, tuple(study.limits)), name
        assert len(evidence.tests) >= AT_LEAST_TESTS.get(name, 2), name
        estimates = [*evidence.behaviour, *evidence.controls, *evidence.senders]
        estimates += [test.measured for test in evidence.tests]
        assert all(row.low <= row.mean <= row.high for row in estimates), name
        circuit = Circuit.load(folder / "circuit.json")
        assert evidence.n_edges == circuit.n_edges, name
        assert evidence.edges == tuple(map(str, circuit.edge_list))[: len(evidence.edges)], name
        assert len(evidence.edges) == (SHOWN_EDGES if evidence.search else circuit.n_edges), name
        assert circuit.labels == {one.name: one.role for one in evidence.components if one.role}, name


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_circuit_keeps_as_much_as_its_evidence_says(name: str):
    study, evidence = study_of(name).STUDY, committed(name)
    heldout = wb.load_task(study.task, tiny(), n=study.n, split="heldout")
    value = wb.from_store(wb.capture_pairs(tiny(), heldout, progress=False)[1])
    circuit = Circuit.load(CIRCUITS / name / "circuit.json")
    kept = wb.evaluate(
        circuit, tiny(), heldout, value=value, metric=heldout.metric, checks=(), progress=False
    )
    assert close(float(kept["faithfulness"][0]), evidence.estimate("faithfulness").mean, tolerance=1e-4)
    assert float(kept["in_sample"][0]) == 0


# Of a real model that takes 25 minutes: `study.py --check` does it, and tests/real evaluates its circuit.
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_study_computed_again_has_the_same_edges_and_numbers(name: str, tmp_path):
    write(study_of(name).STUDY, tiny(), tmp_path / name, command=f"python circuits/{name}/study.py")
    assert differences(CIRCUITS / name, tmp_path / name) == []


ALTERED = {
    "README.md": {
        r"\| faithfulness \| -?[\d.]+": "| faithfulness | 0.100",
        r"\d+ of the 1519": "1 of the 1519",
        r"suppresses": "copies",
        r"\n\| complement.*": "",
    },
    "study.json": {
        r'("name": "faithfulness",\s+"mean": )[\d.]+': r"\g<1>0.1",
        r'("name": "faithfulness",\s+"mean": [\d.]+,\s+"low": )[\d.]+': r"\g<1>-9.0",
        r'"graph_edges": 1519': '"graph_edges": 1518',
        r"suppresses": "copies",
        r'"m0->a3.7<v>",\s+': "",
        r"within 25%": "within 90%",
        r'"holds": true': '"holds": false',
        r'"predicted": -?[\d.]+': '"predicted": -1.0',
        r'"S2": 0\.\d+': '"S2": 0.01',
        r'"copying": -0\.\d+': '"copying": 0.36',
        r'"role": "suppressor"': '"role": "mover"',
        r'"unneeded": ""': '"unneeded": "m3"',
        r'"n_heldout": 48': '"n_heldout": 600',
        r"at least 0\.4": "at least 0.1",
        r"m0 -> q": "m1 -> q",
    },
    "circuit.json": {
        r'"a3.7->m3"': '"a3.6->m3"',
        r'"m0->a3.7<v>": [\d.]+': '"m0->a3.7<v>": 99.0',
        r"suppressor": "mover",
        r'"method": ".*?"': '"method": "exact"',
    },
    "circuit.svg": {r">a3\.7<": ">a3.6<"},
}


def test_whatever_is_altered_in_a_study_is_reported(tmp_path):
    altered = tmp_path / "ioi"
    shutil.copytree(IOI, altered)
    assert differences(altered, IOI) == []
    for file, patterns in ALTERED.items():
        original = (altered / file).read_text(encoding="utf-8")
        for pattern, replacement in patterns.items():
            text = re.sub(pattern, replacement, original, count=1)
            assert text != original, f"{file} does not hold {pattern}"
            # Unsigned, as files of earlier versions are: a checksum would report any change by itself.
            text = re.sub(r',\s*"checksum": "[0-9a-f]+"', "", text)
            (altered / file).write_text(text, encoding="utf-8")
            if file == FILE:  # a page that agrees with altered evidence hides nothing
                (altered / "README.md").write_text(page(Evidence.load(altered / FILE)), encoding="utf-8")
            assert differences(altered, IOI) != [], pattern
            assert differences(IOI, altered) != [], pattern
        shutil.rmtree(altered)
        shutil.copytree(IOI, altered)


def test_differences_are_named(tmp_path):
    again = tmp_path / "ioi"
    shutil.copytree(IOI, again)
    circuit, evidence = Circuit.load(IOI / "circuit.json"), committed("ioi")
    (circuit - circuit.restricted(writers="m3")).save(again / "circuit.json", overwrite=True)
    faithfulness = evidence.estimate("faithfulness")
    behaviour = [replace(row, mean=0.1) if row == faithfulness else row for row in evidence.behaviour]
    tests = (replace(evidence.tests[0], holds=False), *evidence.tests[1:])
    replace(evidence, behaviour=tuple(behaviour), tests=tests).save(again / FILE)
    assert differences(IOI, again) == [
        "edges differ: m3->logits",
        f"behaviour.faithfulness: {replace(faithfulness, mean=0.1)}, and study.json says {faithfulness}",
        f"tests.{tests[0].name}.holds: False, and study.json says True",
        "ioi/README.md is not the page that its study.json makes",
    ]


def test_numbers_of_another_machine_are_the_same_study():
    """Means and ends that moved a little are equal; a mean that moved within its interval alone is not."""
    from workbench.studies.check import _differ

    ours = Estimate("x", 1.0, 0.9, 1.1, "note")
    assert _differ("x", ours, Estimate("x", 1.004, 0.905, 1.102, "note")) == []
    assert _differ("x", ours, Estimate("x", 1.0, 0.9, 1.2, "note")) != []
    assert _differ("x", ours, Estimate("x", 1.2, 0.9, 1.3, "note")) != []
    assert _differ("x", ours, Estimate("x", 1.09, 0.9, 1.1, "note")) != []
    assert _differ("x", ours, Estimate("x", 1.0, 0.9, 1.1, "another note")) != []
    assert _differ("x", 100.0, 100.5) == []
    assert _differ("x", 100.0, 102.0) != []
    assert _differ("x", 3, 3.0) != []


def test_numbers_in_a_drawing_are_compared_and_its_coordinates_are_not(tmp_path):
    drawing = IOI / "circuit.svg"
    for old, new, same in (
        ("[0.92, 0.99]", "[0.92, 0.98]", True),  # the last digit, rounded
        ("[0.92, 0.99]", "[0.12, 0.13]", False),
        ("+17.5", "+99.9", False),
        (' y="138.1"', ' y="138.2"', True),
    ):
        again = tmp_path / f"{new} {same}".replace(" ", "_") / "ioi"
        shutil.copytree(IOI, again)
        text = drawing.read_text(encoding="utf-8")
        assert old in text
        (again / "circuit.svg").write_text(text.replace(old, new), encoding="utf-8")
        assert (differences(IOI, again) == []) == same, new


def test_evidence_is_read_as_it_was_saved_and_what_is_none_is_refused(tmp_path):
    evidence = replace(committed("ioi"), behaviour=(Estimate("nothing", *[float("nan")] * 3),))
    evidence.save(tmp_path / FILE)
    read = Evidence.load(tmp_path / FILE)
    assert str(read.behaviour[0]) == "nan [nan, nan]"
    assert replace(read, behaviour=()) == replace(evidence, behaviour=())
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8"))["behaviour"][0]["mean"] is None
    path = tmp_path / "other.json"
    for text, message in (
        (None, f"There is no evidence {str(path)!r}. Run the study's study.py first."),
        (
            (IOI / "circuit.json").read_text(encoding="utf-8"),
            f"{str(path)!r} is not the evidence of a study: task: Field required. Run the study's study.py "
            "again.",
        ),
        (
            (IOI / FILE).read_text(encoding="utf-8").replace('"format": 2', '"format": 3'),
            f"{str(path)!r} has format 3; this version reads 2. Run the study's study.py again.",
        ),
    ):
        if text is not None:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(WorkbenchError) as refused:
            Evidence.load(path)
        assert str(refused.value) == message


def test_an_altered_study_fails_its_check(monkeypatch, capsys):
    def altered(study, model, out, **_):
        shutil.copytree(IOI, out)
        evidence = replace(committed("ioi"), account="The head copies the indirect object.")
        evidence.save(out / FILE)
        (out / "README.md").write_text(page(evidence), encoding="utf-8")

    monkeypatch.setattr("workbench.studies.command.write", altered)
    monkeypatch.setattr("workbench.studies.command.load_model", lambda name, bos: None)
    monkeypatch.setattr(sys, "argv", ["study.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        main(study_of("ioi").STUDY, IOI)
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith(
        "account: 'The head copies the indirect object.', and study.json says"
    )


def test_an_unaltered_study_passes_its_check(monkeypatch, capsys):
    monkeypatch.setattr(
        "workbench.studies.command.write", lambda study, model, out, **_: shutil.copytree(IOI, out)
    )
    monkeypatch.setattr("workbench.studies.command.load_model", lambda name, bos: None)
    monkeypatch.setattr(sys, "argv", ["study.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        main(study_of("ioi").STUDY, IOI)
    assert ended.value.code == 0
    assert capsys.readouterr().out == "ioi: the edges are the same, and every number is within its interval\n"


def test_a_single_prompt_is_refused():
    with pytest.raises(PromptError) as refused:
        study_of("ioi").STUDY.experiment(tiny(), n=1)
    assert str(refused.value) == "n=1: a study needs at least two prompts, because one has no interval."


def scale_of(experiment: CircuitExperiment) -> float:
    """The magnitude of the metric, of which changes are differences."""
    return float(experiment.base.abs().max())


def test_what_is_passed_on_by_an_exchange_is_what_the_exchange_does():
    experiment = small_experiment("binding")
    heads, positions = experiment.of_role("mover"), ("COLOUR", "OTHER")
    scale = scale_of(experiment)
    unchanged = experiment.passed_on("k", heads, {}, positions)
    assert close(experiment.change(unchanged), np.zeros(6), tolerance=1e-5, scale=scale)
    keys = experiment.exchanged("k", heads, *positions)
    passed_keys = experiment.change(experiment.passed_on("k", heads, keys, positions))
    assert close(passed_keys, experiment.change(keys), tolerance=1e-5, scale=scale)
    # Keys do not change values, so their values pass nothing on.
    passed_values = experiment.change(experiment.passed_on("v", heads, keys, positions))
    assert close(passed_values, np.zeros(6), tolerance=1e-5, scale=scale)
    assert experiment.change(keys).mean() < -1


def test_the_reading_of_the_previous_token_and_the_rest_are_the_whole_output():
    study, experiment = study_of("induction"), small_experiment("induction")
    back, rest = (study.previous_token_exchanged(experiment, below=1, rest=rest) for rest in (False, True))
    whole = experiment.exchanged("z", [f"a0.{head}" for head in range(8)], study.FIRST, "ITEM")
    assert back.keys() == rest.keys() == whole.keys()
    for site, value in whole.items():
        position = "ITEM" if site.endswith("ITEM") else study.FIRST
        own = experiment.clean["z", 0].at(position)[:, int(site[4])]
        assert close(back[site].content + rest[site].content, own + value.content), site


def test_exchanging_the_keys_of_last_layer_heads_is_exchanging_their_attention():
    study, experiment = study_of("induction"), small_experiment("induction")
    heads, scale = experiment.of_role("copier"), scale_of(experiment)
    assert np.array_equal(experiment.change({}), np.zeros(6))
    by_hand = experiment.change(experiment.attending(heads, to=study.FIRST, instead_of="ITEM"))
    keys = experiment.change(experiment.exchanged("k", heads, study.FIRST, "ITEM"))
    assert close(by_hand, keys, tolerance=1e-5, scale=scale)
    assert by_hand.mean() < -1
    patched_input = experiment.change({"resid_pre[0]": wb.from_store(experiment.corrupt)})
    assert close(experiment.on(experiment.pairs.corrupt), patched_input, tolerance=1e-5, scale=scale)


def test_a_prediction_holds_near_its_number_or_above_its_bound():
    near = Prediction("near", "", -4.0, lambda: np.zeros(1), within=0.25)
    assert [near.holds(x) for x in (-3.0, -5.0, -2.9, 4.0)] == [True, True, False, False]
    above = Prediction("above", "", 1.0, lambda: np.zeros(1), at_least=0.9)
    assert [above.holds(x) for x in (0.9, 0.89)] == [True, False]
    assert (near.criterion, above.criterion) == ("within 25%", "at least 0.9")


def test_a_role_is_given_by_its_bounds():
    role = Role("mover", at_least={"IO": 0.4}, at_most={"copying": -0.2})
    assert str(role) == "IO at least 0.4, copying at most -0.2"
    for io, copying, fits in (
        (0.4, -0.2, True),
        (0.39, -0.2, False),
        (0.4, -0.1, False),
        (np.nan, -1, False),
    ):
        assert role.fits(pd.Series({"IO": io, "copying": copying})) == fits, (io, copying)
    assert not role.fits(pd.Series({"IO": 1.0}))


def test_what_is_committed_is_not_written_over(monkeypatch, capsys):
    study = study_of("ioi").STUDY
    for options, message in (
        (
            ["--model", "other"],
            "Only a study of tiny with its own number of prompts is written to its own folder: "
            "give --out DIR.",
        ),
        (
            ["--model", "other", "--out", str(IOI)],
            "The committed files are about tiny with the study's own number of prompts: "
            "give another --out, and no --check.",
        ),
        (["--check", "--out", "elsewhere"], "--check writes nothing: leave out --out and --overwrite."),
    ):
        monkeypatch.setattr(sys, "argv", ["study.py", *options])
        with pytest.raises(SystemExit):
            main(study, IOI)
        assert capsys.readouterr().err.strip() == message
    with pytest.raises(OutputExists):
        write(study, tiny(), IOI, command="test")


def gpt2_like(folder: Path) -> Path:
    """A directory with a GPT-2 of the layers and heads of the small one, random and of few dimensions."""
    words = [" " + word for word in grammar.vocabulary()[2:] if word.isalpha()]
    words += [*grammar.YEARS] * 2 + [" " + century for century in grammar.CENTURIES] * 10
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        words * 20, trainers.BpeTrainer(vocab_size=1500, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[0])
    fast.save_pretrained(folder)
    config = GPT2Config(
        n_layer=12, n_head=12, n_embd=24, vocab_size=len(fast), n_positions=64, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ioi", "greater_than", "induction"])
def test_a_study_runs_on_another_model_and_compares_with_the_published_circuit(
    name: str, monkeypatch, tmp_path, capsys
):
    folder, before = gpt2_like(tmp_path / "a `model`"), (CIRCUITS / name / "README.md").read_bytes()
    options = ["--model", ".", "--out", str(tmp_path / "out"), "--n", "4"]
    monkeypatch.setattr(sys, "argv", ["study.py", *options])
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(study_of(name).STUDY, CIRCUITS / name)
    assert ended.value.code in (0, None), capsys.readouterr().err
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ("## Beside the published circuit" in readme) == (name != "induction")
    evidence = Evidence.load(tmp_path / "out" / FILE)
    if evidence.agreement is not None:
        agreement, n_edges = evidence.agreement, len(evidence.edges)
        assert close(agreement.precision, agreement.shared_edges / n_edges)
        assert close(agreement.recall, agreement.shared_edges / agreement.published_edges)
    assert "in `a 'model'`" in readme
    assert f"`python circuits/{name}/study.py --model 'a 'model'' --n 4`" in readme
    assert evidence.estimate("faithfulness").name == "faithfulness"
    assert Circuit.load(tmp_path / "out" / "circuit.json").n_edges > 0
    assert (CIRCUITS / name / "README.md").read_bytes() == before
