"""The main job and the command line: what is written, what is refused, and what is found in `tiny`."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.cli import app as cli
from workbench.errors import OutputExists
from workbench.files import fresh_folder
from workbench.workflows.discover import FILES

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K" / "hf"


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TQDM_DISABLE": "1"}
    call = [sys.executable, "-m", "workbench.cli.app", *arguments]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def main(tmp_path, monkeypatch, capsys):
    """The command within this process: a new one spends seconds on imports."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["workbench", *arguments])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def tiny():
    return wb.load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "ioi"
    return wb.discover(tiny, "ioi", out=out, n=32, command="workbench discover ioi", progress=False)


def test_a_run_writes_everything_and_nothing_else(found):
    assert sorted(path.name for path in found.folder.iterdir()) == sorted(FILES)
    assert [path for path in found.folder.parent.iterdir() if path.name.startswith(".")] == []
    assert Circuit.load(found.folder / "circuit.json") == found.circuit
    effects = wb.load(found.folder / "effects.nc")
    assert effects["heads_zeroed"].dims == ("example", "layer", "head")
    table = pd.read_parquet(found.folder / "edges.parquet")
    assert len(table) == 1519
    assert table["in_circuit"].sum() == found.circuit.n_edges
    page = found.report.read_text(encoding="utf-8")
    for words in ("workbench discover ioi", "faithfulness", "torch", "held-out", "Content-Security-Policy"):
        assert words in page, words
    assert not re.search(r"""(src|href)\s*=\s*["']https?://""", page)


def test_the_circuit_was_tested_on_prompts_it_was_not_found_on(found):
    evaluation = found.evaluation
    assert float(evaluation["in_sample"].sel(circuit="held-out")) == 0
    assert float(evaluation["in_sample"].sel(circuit="in-sample")) == 1
    assert float(evaluation["faithfulness"].sel(circuit="20 random circuits")) < 0.2


def test_an_existing_run_is_not_overwritten(found, tiny):
    before = {path.name: path.read_bytes() for path in found.folder.iterdir()}
    message = (
        f"{str(found.folder)!r} holds another run; this would overwrite {', '.join(FILES)}. "
        "Choose another folder with --out, or pass --overwrite (overwrite=True)."
    )
    with pytest.raises(OutputExists, match="^" + re.escape(message) + "$"):
        wb.discover(tiny, "ioi", out=found.folder, n=4)
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == before


def test_an_interrupted_run_leaves_nothing(tiny, tmp_path, monkeypatch):
    def stop(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.workflows.discover.report", stop)
    with pytest.raises(KeyboardInterrupt):
        wb.discover(tiny, "agreement", out=tmp_path / "runs" / "x", n=4, progress=False)
    assert list((tmp_path / "runs").iterdir()) == []


def test_fresh_folders_are_numbered(tmp_path):
    (tmp_path / "ioi-001").mkdir()
    with fresh_folder("ioi", tmp_path) as second, fresh_folder("ioi", tmp_path) as third:
        assert (second, third) == (tmp_path / "ioi-002", tmp_path / "ioi-003")
        (third / "kept").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ioi-001", "ioi-003"]


@pytest.mark.parametrize("task", ["ioi", "induction", "agreement"])
def test_two_per_cent_of_the_edges_keep_ninety_per_cent_of_the_behaviour(tiny, task: str):
    train, heldout = (wb.load_task(task, tiny, n=64, split=split) for split in ("train", "heldout"))
    (_, corrupt), (_, other) = (wb.capture_pairs(tiny, pairs, progress=False) for pairs in (train, heldout))
    scores = wb.score_edges(tiny, train, value=wb.from_store(corrupt), progress=False)
    circuit = wb.find_circuit(scores, n_edges=int(0.02 * 1519))
    result = wb.evaluate(circuit, tiny, heldout, value=wb.from_store(other), progress=False)
    assert circuit.n_edges <= 30
    assert float(result["low"][0]) >= 0.9


@pytest.mark.parametrize("value", ["zero", "mean"])
def test_other_ablations_go_the_same_way(tiny, tmp_path, value: str):
    made = wb.discover(tiny, "induction", out=tmp_path / value, n=16, value=value, progress=False)
    assert np.isfinite(made.evaluation["faithfulness"].values).all()
    assert made.circuit.attrs["value"].startswith(value)


def test_own_prompts_from_a_csv(tmp_path):
    nouns, others = ("dog", "cat", "boy", "girl", "king", "lion"), ("doors", "cars", "ships")
    rows = [f"The {n} near the {m},The {n}s near the {m},is,are" for n in nouns for m in others]
    (tmp_path / "mine.csv").write_text("clean,corrupt,answer,wrong\n" + "\n".join(rows) + "\n")
    done = command("discover", "mine.csv", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("out/report.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["discover", "ioi", "--model", "tinny/x/y"],
            "There is no model directory 'tinny/x/y'. Embedded models: induction, shortcut, tiny.",
        ),
        (
            ["discover", "io"],
            "task='io' is not known. Did you mean 'ioi'? Choices: agreement, binding, capitals, greater_than, induction, ioi, pronoun.",
        ),
        (
            ["discover", "ioi", "--metric", "logits"],
            "metric='logits' is not known. Did you mean 'logit_diff'? Choices: accuracy, kl, logit_diff, nll, prob_diff, rank, sequence_logprob, sequence_logprob_diff.",
        ),
        (
            ["discover", "ioi", "--method", "eapp"],
            "method='eapp' is not known. Did you mean 'eap'? Choices: acdc, atp-star, clean-corrupt, conditional, eap, "
            "eap-ig-activations, eap-ig-inputs, exact, ig-activations, learn-edges, learn-nodes, random.",
        ),
        (
            ["discover", "ioi", "--value", "zeros"],
            "value='zeros' is not known. Did you mean 'zero'? Choices: from_store, mean, zero.",
        ),
        (
            ["discover", "ioi", "--edges", "9999"],
            "discover: n_edges=9999; a circuit of this model has 1 to 1519 edges.",
        ),
        (["discover", "ioi", "--n", "0"], "n=0: at least one pair is needed, and a whole number of them."),
        (["discover", "none.csv"], "There is no file 'none.csv'."),
        (
            ["discover", "ioi", "--metric", "kl"],
            "The metric 'kl' compares with the clean run, so its gradient there is zero",
        ),
        (["discover", "ioi", "--device", "cuda:7"], "The device 'cuda:7' was asked for, and this machine"),
        (["measure", "tiny", "--n", "0"], "n=0: at least one prompt is needed."),
        (["measure", "tiny@3"], "checkpoint='tiny@3' is not known."),
        (["ls", "things"], "what='things' is not known. Choices: circuits, methods, models, tasks."),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(tmp_path, main, arguments: list[str], message: str):
    code, said = main(*arguments)
    assert code == 2
    assert said.splitlines()[-1].startswith("error: " + message)
    assert list(tmp_path.rglob("*")) == []


def test_an_output_that_cannot_be_a_folder_is_refused_before_any_work(tmp_path, main):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "nowhere")
    for out in ("file", "file/sub", "loop", "x" * 300):
        assert main("discover", "ioi", "--out", out)[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_partial_output(tmp_path, signal_: signal.Signals):
    """It is killed while it writes; the next run into the folder clears what SIGKILL could not."""
    code = (
        "import os, signal, workbench.workflows.discover as s, workbench.cli.app as c\n"
        f"s.report = lambda *a, **k: (os.kill(os.getpid(), {int(signal_)}), __import__('time').sleep(9))\n"
        "c.main()"
    )
    call = [sys.executable, "-c", code, "discover", "agreement", "--n", "4", "--out", "run"]
    environment = os.environ | {"TQDM_DISABLE": "1"}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert not (tmp_path / "run").exists()
    assert command("discover", "agreement", "--n", "4", "--out", "run", cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_help_and_lists(tmp_path):
    assert "discover" in command("--help", cwd=tmp_path).stdout
    assert "ioi" in command("ls", "tasks", cwd=tmp_path).stdout
    assert "tiny@1500" in command("ls", "models", cwd=tmp_path).stdout
    assert "eap" in command("ls", "methods", cwd=tmp_path).stdout


def test_help_does_not_import_torch(tmp_path):
    code = "import sys; import workbench.cli.app; assert 'torch' not in sys.modules and 'transformer_lens' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_tiny_meets_every_bar(tmp_path):
    done = command("measure", "tiny", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["behaviour"] for line in lines} == {
        "ioi",
        "induction",
        "greater_than",
        "agreement",
        "pronoun",
        "capitals",
        "binding",
    }
    for line in lines:
        assert line["n"] >= 500
        assert line["score"] >= line["bar"] >= 0.9, line


@pytest.mark.skipif(not STORIES.is_dir(), reason="the optional model stories260K is not there")
@pytest.mark.slow
def test_a_real_llama_model_and_its_known_head(tmp_path):
    done = command("discover", "pronoun", "--model", str(STORIES), "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    effects = wb.load(tmp_path / "out" / "effects.nc")["heads_zeroed"].mean("example")
    layer, head = np.unravel_index(int(np.abs(effects.values).argmax()), effects.shape)
    assert (layer, head) == (4, 2)
    others = np.delete(np.abs(effects.values).ravel(), layer * effects.shape[1] + head)
    assert abs(float(effects[layer, head])) > 2 * others.max()
