"""`discover`: what is written, what is refused, and what is found in `tiny`."""

import functools
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
from workbench.errors import OutputExists, PromptError
from workbench.files import fresh_folder
from workbench.workflows.discover import FILES
from workbench.workflows.discovery_run import DiscoveryRun

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K" / "hf"


@functools.cache
def tiny():
    return wb.load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> DiscoveryRun:
    """One run, which the tests below look at from several sides."""
    out = tmp_path_factory.mktemp("study") / "ioi"
    return wb.discover(tiny(), "ioi", out=out, n=32, command="workbench discover ioi", progress=False)


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    environment = os.environ | {"TQDM_DISABLE": "1"}
    call = [sys.executable, "-m", "workbench.cli.app", *arguments]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def test_a_run_writes_everything_and_nothing_else(run):
    assert sorted(path.name for path in run.folder.iterdir()) == sorted(FILES)
    assert [path for path in run.folder.parent.iterdir() if path.name.startswith(".")] == []
    assert Circuit.load(run.folder / "circuit.json") == run.circuit
    effects = wb.load(run.folder / "effects.nc")
    assert effects["heads_zeroed"].dims == ("example", "layer", "head")
    table = pd.read_parquet(run.folder / "edges.parquet")
    assert len(table) == 1519
    assert table["in_circuit"].sum() == run.circuit.n_edges
    page = run.report.read_text(encoding="utf-8")
    for words in ("workbench discover ioi", "faithfulness", "torch", "held-out", "Content-Security-Policy"):
        assert words in page, words
    assert not re.search(r"""(src|href)\s*=\s*["']https?://""", page)


def test_the_circuit_was_tested_on_prompts_it_was_not_found_on(run):
    evaluation = run.evaluation
    assert float(evaluation["in_sample"].sel(circuit="held-out")) == 0
    assert float(evaluation["in_sample"].sel(circuit="in-sample")) == 1
    assert float(evaluation["faithfulness"].sel(circuit="20 random circuits")) < 0.2


def test_an_existing_run_is_not_overwritten(run):
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(OutputExists) as refused:
        wb.discover(tiny(), "ioi", out=run.folder, n=4)
    assert str(refused.value) == (
        f"{str(run.folder)!r} holds another run; this would overwrite {', '.join(FILES)}. "
        "Choose another folder with --out, or pass --overwrite (overwrite=True)."
    )
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.workflows.discover.report", stop)
    with pytest.raises(KeyboardInterrupt):
        wb.discover(tiny(), "agreement", out=tmp_path / "runs" / "x", n=4, progress=False)
    assert list((tmp_path / "runs").iterdir()) == []


def test_fresh_folders_are_numbered(tmp_path):
    (tmp_path / "ioi-001").mkdir()
    with fresh_folder("ioi", tmp_path) as second, fresh_folder("ioi", tmp_path) as third:
        assert (second, third) == (tmp_path / "ioi-002", tmp_path / "ioi-003")
        (third / "kept").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ioi-001", "ioi-003"]


@pytest.mark.parametrize("task", ["ioi", "induction", "agreement"])
def test_two_per_cent_of_the_edges_keep_ninety_per_cent_of_the_behaviour(task: str):
    experiment = wb.Experiment.of(tiny(), task, n=64)
    train, heldout = experiment.train, experiment.heldout
    scores = wb.score_edges(tiny(), train.pairs, value=train.value("corrupt"), progress=False)
    circuit = wb.find_circuit(scores, n_edges=int(0.02 * 1519))
    value = heldout.value("corrupt")
    kept = wb.evaluate(circuit, tiny(), heldout.pairs, value=value, checks=(), progress=False)
    assert circuit.n_edges <= 30
    assert float(kept["low"][0]) >= 0.9


def test_zero_and_mean_values_are_found_and_written_as_the_corrupt_run_is(tmp_path):
    for value in ("zero", "mean"):
        run = wb.discover(tiny(), "induction", out=tmp_path / value, n=8, value=value, progress=False)
        assert np.isfinite(run.evaluation["faithfulness"].values).all(), value
        assert run.circuit.attrs["value"].startswith(value)


def test_pairs_of_your_own_are_split_and_need_equal_lengths(tmp_path):
    """Pairs from a file make the same report as a task; unequal lengths are refused before any work."""
    nouns, others = ("dog", "cat", "boy", "girl"), ("doors", "cars")
    rows = [f"The {n} near the {m},The {n}s near the {m},is,are" for n in nouns for m in others]
    (tmp_path / "mine.csv").write_text("clean,corrupt,answer,wrong\n" + "\n".join(rows) + "\n")
    pairs = wb.PromptPairs.from_csv(tiny(), tmp_path / "mine.csv")
    run = wb.discover(tiny(), pairs, out=tmp_path / "out", progress=False)
    assert run.report.is_file()
    assert run.evaluation.attrs["n"] < len(pairs)
    (tmp_path / "odd.csv").write_text("clean,corrupt,answer,wrong\nThe dog,The old dogs,is,are\n")
    odd = wb.PromptPairs.from_csv(tiny(), tmp_path / "odd.csv")
    with pytest.raises(PromptError) as refused:
        wb.discover(tiny(), odd, out=tmp_path / "odd", progress=False)
    assert str(refused.value) == (
        "Pair 0 has clean and corrupt prompts of 3 and 4 tokens. Edges and circuits need equal lengths "
        "within a pair; row 1 of a file is pair 0."
    )
    assert not (tmp_path / "odd").exists()


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
    process = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode != 0
    assert not (tmp_path / "run").exists()
    assert command("discover", "agreement", "--n", "4", "--out", "run", cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.skipif(not STORIES.is_dir(), reason="the optional model stories260K is not there")
@pytest.mark.slow
def test_a_real_llama_model_and_its_known_head(tmp_path):
    process = command("discover", "pronoun", "--model", str(STORIES), "--out", "out", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    effects = wb.load(tmp_path / "out" / "effects.nc")["heads_zeroed"].mean("example")
    layer, head = np.unravel_index(int(np.abs(effects.values).argmax()), effects.shape)
    assert (layer, head) == (4, 2)
    others = np.delete(np.abs(effects.values).ravel(), layer * effects.shape[1] + head)
    assert abs(float(effects[layer, head])) > 2 * others.max()
