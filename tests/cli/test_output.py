"""What files hold reaches a terminal spelled out: escapes, controls of one byte and of two, and turned text."""

import json
import sys
import warnings

import pytest
from fake_sweeps import record, write_sweep
from random_graphs import FULL
from typer.testing import CliRunner

import workbench as wb
from workbench.circuit.graph import Graph
from workbench.cli import app as cli
from workbench.cli.output import say, spell_warnings
from workbench.errors import WorkbenchWarning
from workbench.stores.plan import content_sum
from workbench.text import spelled

HOSTILE = "x\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\r\x00"
SPELLED = "x\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202egnp.exe\\u2066\\r\\x00"


def is_clean(text: str) -> bool:
    return all(spelled(line) == line for line in text.split("\n"))


def printed(*arguments) -> str:
    """What a command prints, an error included."""
    outcome = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    text = outcome.stdout + outcome.stderr
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        text += repr(outcome.exception)
    return text


def test_say_spells_everything_but_the_ends_of_lines(capsys):
    say(f"  {HOSTILE}\nb")
    say({"a": 1}, err=True)
    out, err = capsys.readouterr()
    assert (out, err) == (f"  {SPELLED}\nb\n", "{'a': 1}\n")


def test_circuits_of_others(tmp_path):
    circuit = wb.Circuit.of(Graph(FULL), ["m0->logits", "input->m0"], labels={"m0": HOSTILE})
    path = circuit.save(tmp_path / "c.json")
    text = printed("compare", path, path)
    assert SPELLED in text
    assert is_clean(text)
    assert is_clean(str(wb.compare(circuit, circuit)))
    assert json.loads(printed("compare", path, path, "--json"))["jaccard"] == 1.0


def test_sweeps_of_others(tmp_path):
    records = [
        record("z[0.0]", [1.0, 2.0], model=HOSTILE, task=HOSTILE),
        record(HOSTILE, [1.0, 3.0], model=HOSTILE, metric=HOSTILE),
        record("z[0.1]", status="failed", error=HOSTILE, model=HOSTILE),
    ]
    folder = write_sweep(
        tmp_path / "s", records, spec={"study": "effects", "models": [HOSTILE], "metrics": [f"{HOSTILE}:f"]}
    )
    for command in ("status", "table", "validate"):
        text = printed("sweep", command, folder)
        assert is_clean(text), command
    assert is_clean(repr(wb.load_sweep(folder)))


def test_stores_of_others(tmp_path):
    model = wb.load_model("tiny")
    store = wb.capture(model, ["The dog near the cats is"], sites=["z"], path=tmp_path / "s", progress=False)
    plan = json.loads((tmp_path / "s" / "store.json").read_text())
    del plan["checksum"]
    plan |= {"model_name": HOSTILE, "versions": {HOSTILE: HOSTILE}, "keep": HOSTILE, "tokenizer": HOSTILE}
    (tmp_path / "s" / "store.json").write_text(json.dumps(plan | {"checksum": content_sum(plan)}))
    assert store.model_name == "tiny"
    text = printed("store", "inspect", tmp_path / "s")
    assert text.count("owned") >= 4
    assert is_clean(text)
    assert is_clean(repr(wb.open_store(tmp_path / "s")))


def test_errors_and_warnings(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.yaml").write_text(f"tasks: ['{HOSTILE[:1]}\x85\u202e']\nstudy: [")
    monkeypatch.setattr(sys, "argv", ["workbench", "sweep", "validate", str(tmp_path / "a.yaml")])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit):
        cli.main()
    assert is_clean(capsys.readouterr().err)
    spell_warnings()
    assert is_clean(warnings.formatwarning(HOSTILE, UserWarning, "a.py", 3))
    assert warnings.formatwarning("Too few.", WorkbenchWarning, "a.py", 3) == "warning: Too few.\n"


def test_arguments_that_nobody_asked_for():
    line = ["bench", "circuits", "\u202egnp.exe"]
    outcome = CliRunner().invoke(cli.app, line)
    assert outcome.exit_code == 2
    assert "Got unexpected extra argument(s) (\\u202egnp.exe)" in outcome.output
