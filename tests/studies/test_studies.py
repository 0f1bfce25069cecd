"""The studied circuits: complete, true to their pages, and made anew by their scripts with the same edges."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import workbench as wb
from workbench import resources
from workbench.circuit.circuit import Circuit
from workbench.errors import OutputExists, PromptError
from workbench.studies.bench import Bench
from workbench.studies.check import differences
from workbench.studies.command import FILES, main, write
from workbench.studies.study import Prediction, Role
from workbench.studies.table import numbers, table
from workbench.tasks import grammar
from workbench.tasks.registry import TASKS

CIRCUITS = resources.circuits()
NAMES = ("agreement", "binding", "facts", "greater_than", "induction", "ioi", "pronoun")
TOLD = ("ioi", "induction", "binding", "agreement")
"""Studies that must try their account by several edits."""


def study_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"study_of_{name}", CIRCUITS / name / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny():
    return wb.load_model("tiny", device="cpu")


def test_every_task_has_a_study_and_every_study_is_listed():
    assert sorted(path.parent.name for path in CIRCUITS.glob("*/circuit.json")) == list(NAMES)
    assert {study_of(name).STUDY.task for name in NAMES} == set(TASKS)
    assert table(CIRCUITS) in (CIRCUITS / "README.md").read_text(encoding="utf-8"), (
        "run: python circuits/table.py"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_complete_and_its_page_keeps_what_it_says(name: str, tiny):
    folder = CIRCUITS / name
    assert all((folder / file).is_file() for file in (*FILES, "study.py"))
    readme, circuit = (
        (folder / "README.md").read_text(encoding="utf-8"),
        Circuit.load(folder / "circuit.json"),
    )
    known, study = numbers(readme), study_of(name).STUDY
    assert {
        "faithfulness",
        "random circuits",
        "other heads",
        "complement",
        "incompleteness",
        "stability",
    } <= known.keys()
    assert all(low <= mean <= high for mean, low, high in known.values())
    assert f"{circuit.n_edges} of the {circuit.graph.n_edges} edges" in readme
    assert readme.count("| holds |") + readme.count("| **fails** |") >= (3 if name in TOLD[:3] else 2)

    heldout = wb.load_task(study.task, tiny, n=study.n, split="heldout")
    value = wb.from_store(wb.capture_pairs(tiny, heldout, progress=False)[1])
    kept = wb.evaluate(circuit, tiny, heldout, value=value, metric=heldout.metric, checks=(), progress=False)
    mean, low, high = known["faithfulness"]
    assert low <= float(kept["faithfulness"][0]) <= high
    assert abs(float(kept["faithfulness"][0]) - mean) < 0.005
    assert float(kept["in_sample"][0]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_study_made_anew_has_the_same_edges_and_numbers(name: str, tiny, tmp_path):
    write(study_of(name).STUDY, tiny, tmp_path / name, command=f"python circuits/{name}/study.py")
    assert differences(CIRCUITS / name, tmp_path / name) == []


ALTERED = {
    "README.md": {
        r"\| faithfulness \| -?[\d.]+": "| faithfulness | 0.100",
        r"keep -?[\d.]+ \[": "keep 0.100 [",
        r"\d+ of the 1519": "1 of the 1519",
        r"writes against": "writes for",
        r"`m0->a3.7<v>` ": "",
        r"within 25%": "within 90%",
        r"\d of \d predictions": "9 of 9 predictions",
        r"\| holds \|": "| **fails** |",
        r"\n\| complement.*": "",
        r"(\| a3.7 \|.*?\|.*?\]) \| S2 0.\d\d": r"\1 | S2 0.01",
        r"(\| faithfulness \| -?[\d.]+) \[.*?\]": r"\1 [-9.000, 9.000]",
        r"\* [\d.]+% of the difference": "* 0.1% of the difference",
    },
    "circuit.json": {
        r'"a3.7->m3"': '"a3.6->m3"',
        r'"m0->a3.7<v>": [\d.]+': '"m0->a3.7<v>": 99.0',
        r"suppressor": "mover",
        r'"method": ".*?"': '"method": "exact"',
    },
    "circuit.svg": {r">a3\.7<": ">a3.6<"},
}


@pytest.mark.parametrize(
    ("file", "pattern", "instead"), [(f, p, i) for f, given in ALTERED.items() for p, i in given.items()]
)
def test_whatever_is_altered_in_a_study_is_found(file: str, pattern: str, instead: str, tmp_path):
    folder = tmp_path / "ioi"
    shutil.copytree(CIRCUITS / "ioi", folder)
    assert differences(folder, CIRCUITS / "ioi") == []
    text = (folder / file).read_text(encoding="utf-8")
    altered = re.sub(pattern, instead, text, count=1)
    assert altered != text
    (folder / file).write_text(altered, encoding="utf-8")
    assert differences(folder, CIRCUITS / "ioi") != []
    assert differences(CIRCUITS / "ioi", folder) != []


def test_differences_are_named(tmp_path):
    folder = CIRCUITS / "ioi"
    circuit, readme = (
        Circuit.load(folder / "circuit.json"),
        (folder / "README.md").read_text(encoding="utf-8"),
    )
    (circuit - circuit.restricted(writers="m3")).save(tmp_path / "circuit.json")
    shutil.copy(folder / "circuit.svg", tmp_path)
    mean, low, high = numbers(readme)["faithfulness"]
    (tmp_path / "README.md").write_text(
        readme.replace(f"| faithfulness | {mean:.3f}", "| faithfulness | 0.100").replace(
            "| holds |", "| x |", 1
        )
    )
    first = re.findall(r"^\| ([^|]+) \|.*\| holds \|", readme, re.MULTILINE)[0]
    assert differences(folder, tmp_path) == [
        "edges differ: m3->logits",
        f"faithfulness: 0.100, and the README says {mean:.3f} [{low:.3f}, {high:.3f}]",
        f"{first}: the README says other words",
    ]


def test_an_altered_study_fails_its_check(monkeypatch, capsys, tmp_path):
    def altered(study, model, out, **_):
        shutil.copytree(CIRCUITS / "ioi", out)
        readme = out / "README.md"
        readme.write_text(
            readme.read_text(encoding="utf-8").replace("writes against", "writes for"), encoding="utf-8"
        )

    monkeypatch.setattr("workbench.studies.readme.write", altered)
    monkeypatch.setattr(sys, "argv", ["study.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        main(study_of("ioi").STUDY, CIRCUITS / "ioi")
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith(
        "**Account, to be tested.** From END a he ...: the README says other words"
    )


def test_a_single_prompt_is_refused(tiny):
    with pytest.raises(
        PromptError, match=r"^n=1: a study needs at least two prompts, because one has no interval\.$"
    ):
        Bench.of(study_of("ioi").STUDY, tiny, n=1)


def test_what_is_passed_on_by_an_exchange_is_what_it_makes(tiny):
    bench = Bench.of(study_of("binding").STUDY, tiny, n=6)
    heads, places = bench.of_role("mover"), ("COLOUR", "OTHER")
    unchanged = bench.passed_on("k", heads, {}, places)
    assert bench.change(unchanged) == pytest.approx(np.zeros(6), abs=1e-3)
    keys = bench.exchanged("k", heads, *places)
    assert bench.change(bench.passed_on("k", heads, keys, places)) == pytest.approx(
        bench.change(keys), abs=1e-3
    )
    assert bench.change(bench.passed_on("v", heads, keys, places)) == pytest.approx(np.zeros(6), abs=1e-3)
    assert bench.change(keys).mean() < -1


def test_what_is_read_one_back_and_the_rest_are_the_whole(tiny):
    study = study_of("induction")
    bench = Bench.of(study.STUDY, tiny, n=6)
    back, rest = (study.read_one_back(bench, below=1, rest=rest) for rest in (False, True))
    whole = bench.exchanged("z", [f"a0.{head}" for head in range(8)], study.FIRST, "ITEM")
    assert back.keys() == rest.keys() == whole.keys()
    for site, value in whole.items():
        here = bench.clean["z", 0].at(site.split("@")[1] if site.endswith("ITEM") else study.FIRST)[
            :, int(site[4])
        ]
        assert torch.allclose(back[site].content + rest[site].content, here + value.content, atol=1e-5)


def test_exchanging_keys_of_last_layer_heads_is_exchanging_attention(tiny):
    bench = Bench.of(study_of("induction").STUDY, tiny, n=6)
    heads, last = bench.of_role("copier"), bench.change({})
    assert abs(last).max() == 0
    by_hand = bench.change(bench.attending(heads, to=1, instead_of="ITEM"))
    assert by_hand == pytest.approx(bench.change(bench.exchanged("k", heads, 1, "ITEM")), abs=1e-3)
    assert by_hand.mean() < -1
    assert bench.on(bench.pairs.corrupt) == pytest.approx(
        bench.change({"resid_pre[0]": wb.from_store(bench.corrupt)}), abs=1e-3
    )


def test_a_prediction_holds_near_its_number_or_above_its_bar():
    near = Prediction("near", "", -4.0, lambda: None, within=0.25)  # pyright: ignore[reportArgumentType]
    assert [near.holds(x) for x in (-3.0, -5.0, -2.9, 4.0)] == [True, True, False, False]
    above = Prediction("above", "", 1.0, lambda: None, at_least=0.9)  # pyright: ignore[reportArgumentType]
    assert [above.holds(x) for x in (0.9, 0.89)] == [True, False]
    assert (
        str(Role("mover", at_least={"IO": 0.4}, at_most={"copying": -0.2}))
        == "IO at least 0.4, copying at most -0.2"
    )


def test_what_is_committed_is_not_written_over(monkeypatch, capsys, tiny):
    study = study_of("ioi").STUDY
    for given, said in (
        (
            ["--model", "other"],
            "Only tiny with the study's own prompts is written to its folder: give --out DIR.",
        ),
        (
            ["--model", "other", "--out", str(CIRCUITS / "ioi")],
            "The committed files are about tiny with the study's own prompts: give another --out, no --check.",
        ),
        (["--check", "--out", "elsewhere"], "--check writes nothing: leave out --out and --overwrite."),
    ):
        monkeypatch.setattr(sys, "argv", ["study.py", *given])
        with pytest.raises(SystemExit):
            main(study, CIRCUITS / "ioi")
        assert capsys.readouterr().err.strip() == said
    with pytest.raises(OutputExists):
        write(study, tiny, CIRCUITS / "ioi", command="test")


def gpt2_like(folder: Path) -> Path:
    """A directory with a GPT-2 of the small one's layers and heads, but of random weights and few dimensions."""
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
    given = ["--model", ".", "--out", str(tmp_path / "out"), "--n", "3"]
    monkeypatch.setattr(sys, "argv", ["study.py", *given])
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(study_of(name).STUDY, CIRCUITS / name)
    assert ended.value.code in (0, None), capsys.readouterr().err
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ("## Beside the published circuit" in readme) == (name != "induction")
    shared = re.search(
        r"Of (\d+) edges published, (\d+) are among the (\d+) found: precision ([\d.]+), recall ([\d.]+)",
        readme,
    )
    if shared:
        published, both, found, precision, recall = map(float, shared.groups())
        assert (precision, recall) == (
            pytest.approx(both / found, abs=1e-3),
            pytest.approx(both / published, abs=1e-3),
        )
    assert "in `a 'model'`" in readme
    assert f"`python circuits/{name}/study.py --model 'a 'model'' --n 3`" in readme
    assert "faithfulness" in numbers(readme)
    assert Circuit.load(tmp_path / "out" / "circuit.json").n_edges > 0
    assert (CIRCUITS / name / "README.md").read_bytes() == before
