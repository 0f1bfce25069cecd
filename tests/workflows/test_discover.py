"""`discover`: what is written, what is refused, and what is found in `tiny`."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.errors import OutputExists, PromptError
from workbench.files import fresh_folder
from workbench.render.page import Lead
from workbench.text import xml
from workbench.workflows import discover as discover_module
from workbench.workflows import discovery_job
from workbench.workflows.discover import FILES
from workbench.workflows.discovery_run import DiscoveryRun
from workbench.workflows.runs import heading_of, report_difference, report_run
from workbench.workflows.verdict import ALIKE, competence_text, headline, title_of

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K" / "hf"


@functools.cache
def tiny():
    return wb.load_model("tiny", device="cpu")


N = 8
LEAD = Lead(asked="?", found="!")
MADE = set(FILES) - {"multiverse.nc"}
"""What a run writes that is not asked for other choices."""


@functools.cache
def small():
    """Of two layers and 81 edges, for what does not depend on the model."""
    return wb.load_model("induction", device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> DiscoveryRun:
    """One run with few draws, which the tests below look at from several sides."""
    out = tmp_path_factory.mktemp("study") / "ioi"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery_job, "CONTROL_DRAWS", 8)
        patch.setattr(discovery_job, "DRAWS", 3)
        return wb.discover(tiny(), "ioi", out=out, n=N, command="workbench discover ioi", progress=False)


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    environment = os.environ | {"TQDM_DISABLE": "1"}
    call = [sys.executable, "-m", "workbench.cli.app", *arguments]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def test_a_run_writes_everything_and_nothing_else(run):
    assert {path.name for path in run.folder.iterdir()} == MADE
    assert [path for path in run.folder.parent.iterdir() if path.name.startswith(".")] == []
    assert Circuit.load(run.folder / "circuit.json") == run.circuit
    effects = wb.load(run.folder / "effects.nc")
    assert effects["heads_zeroed"].dims == ("example", "layer", "head")
    table = pd.read_parquet(run.folder / "edges.parquet")
    assert len(table) == 1519
    assert table["in_circuit"].sum() == run.circuit.n_edges
    page = run.report.read_text(encoding="utf-8")
    for words in ("workbench discover ioi", "torch", "Content-Security-Policy"):
        assert words in page, words
    assert not re.search(r"""(src|href)\s*=\s*["']https?://""", page)


def test_every_number_of_the_first_block_stands_beside_its_control(run):
    """A number alone cannot be judged: the circuit of another task, or other heads, may do as well."""
    page = run.report.read_text(encoding="utf-8")
    block = page[page.index('class="lead"') : page.index("</section>")]
    beside = re.findall(r'class="beside">([^<]*)<', block)
    assert len(beside) == 4 * len(run.counterfactuals) + 1
    assert all(beside)
    other = float(run.controls["error"].sel(control="other heads", ablation="swap"))
    assert f"through other heads {other:.2f}" in beside
    model = float(run.evaluation["m_full"].sel(ablation="abc").mean())
    assert f"of the model&#39;s {model:.2f}" in block


def test_the_report_begins_with_what_the_model_can_do_and_what_was_found(run):
    page = run.report.read_text(encoding="utf-8")
    shown = [competence_text(run.competence), *headline(run).split(". ")[:1], *run.counterfactuals]
    places = [page.index(xml(text), page.index("<section")) for text in shown]
    assert places[:2] == sorted(places[:2])
    told = repr(run).splitlines()
    assert told[-1] == f"report: {run.report}"
    assert len(told) <= 12
    assert max(map(len, told)) <= 120
    assert xml(title_of(run)) in run._repr_html_()
    assert f"<h1>{xml(title_of(run))}</h1>" in page
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", page)
    assert headings[:5] == [
        "What speaks against it", "The circuit", "The criteria on the test prompts", "Criteria against circuit size",
        "Controls: would other circuits do as well?",
    ]  # fmt: skip


def test_no_prompt_that_a_circuit_was_found_with_tests_it(run):
    # NaN: other circuits than the first are not tested with values that chose none.
    measured = run.evaluation["in_sample"].values[run.evaluation["faithfulness"].notnull().values]
    assert len(measured) > len(run.circuits)
    assert (measured == 0).all()
    assert run.evaluation.attrs["n"] == 2 * N
    assert run.competence.n == run.frontier.attrs["n"] == N


def test_it_is_tested_against_every_counterfactual_and_with_values_beside(run):
    assert run.counterfactuals == ("swap", "abc")
    assert run.evaluation["ablation"].values.tolist() == ["swap", "abc", "zero", "mean"]
    assert {"circuit", "difference swap"} <= set(run.circuits)
    assert run.evaluation.attrs["most_alike"] == "swap and abc"
    assert 0.5 < run.evaluation.attrs["likeness"] < ALIKE
    # The five edges of the one difference are a small part of what reproduces both.
    assert run.circuits["difference swap"].n_edges < run.circuit.n_edges


def test_the_summary_has_the_numbers_of_the_run(run):
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    cell = run.evaluation.sel(circuit="circuit", ablation="abc")
    told = summary["test"]["abc"]["circuit"]
    assert told["faithfulness"] == pytest.approx(
        [float(cell[key]) for key in ("faithfulness", "low", "high")], rel=1e-4
    )
    assert told["m_full"] == pytest.approx(float(cell["m_full"].mean()), rel=1e-4)
    assert summary["n_edges"] == run.circuit.n_edges
    assert {row["control"] for row in summary["controls"]["rows"]} == set(run.controls["control"].values)
    assert summary["stability"]["core_size"] == run.circuits["core"].n_edges
    assert len((run.folder / "summary.json").read_bytes()) < 40_000


def test_every_part_of_a_run_has_a_figure_from_its_file(run):
    for name in ("frontier", "controls", "stability", "agreement"):
        assert isinstance(wb.plot(wb.load(run.folder / f"{name}.nc")), Figure)


def test_a_run_is_shown_again_and_compared_with_itself(run, tmp_path):
    page = report_run(run.folder, tmp_path / "again.html").read_text(encoding="utf-8")
    sections = {heading_of(name) for name in MADE - {"summary.json", "report.html"}}
    assert set(re.findall(r'<h2 id="h\d+">([^<]*)</h2>', page)) == sections
    # Frontier, controls, stability and agreement are drawn, and not put in words.
    assert page.count('class="plot"') >= 4
    page = report_difference(run.folder, run.folder, tmp_path / "same.html").read_text(encoding="utf-8")
    assert "The same in every cell" in page
    assert "Only in one" not in page


def test_an_existing_run_is_not_overwritten(run):
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(OutputExists) as refused:
        wb.discover(tiny(), "ioi", out=run.folder, n=4)
    written = ", ".join(name for name in FILES if name in MADE)
    assert str(refused.value) == (
        f"{str(run.folder)!r} holds another run; this would overwrite {written}. "
        "Choose another folder with --out, or pass --overwrite (overwrite=True)."
    )
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


def test_an_interrupted_run_leaves_nothing(run, tmp_path, monkeypatch):
    def stop(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.workflows.discover.report", stop)
    with pytest.raises(KeyboardInterrupt):
        discover_module._write(replace(run, folder=tmp_path / "runs" / "x"), None, [], LEAD, None, False)
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_an_earlier_run_made_does_not_stay_beside_a_new_one(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run.folder, out)
    fewer = replace(run, folder=out, frontier=None, stability=None)
    discover_module._write(fewer, None, [("text", "a page", "")], LEAD, None, True)
    assert {path.name for path in out.iterdir()} == MADE - {"frontier.nc", "stability.nc", "lens.nc"}


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
    circuit = wb.find_circuit(scores, n_edges=int(0.02 * 1519), by="signed")
    value = heldout.value("corrupt")
    kept = wb.evaluate(circuit, tiny(), heldout.pairs, value=value, checks=(), progress=False)
    assert circuit.n_edges <= 30
    assert float(kept["low"][0]) >= 0.9


def test_zero_and_mean_values_are_found_and_written_as_the_corrupt_run_is(tmp_path):
    for value in ("zero", "mean"):
        run = wb.discover(
            small(), "induction", out=tmp_path / value, n=4, value=value, quick=True, progress=False,
            criteria=wb.Criteria(at_most=0.9),  # of 81 edges more are needed than of thousands
        )  # fmt: skip
        assert np.isfinite(run.evaluation["faithfulness"].values).all(), value
        assert run.counterfactuals == (value,)
        assert f"with {value} values only" in headline(run)


@pytest.mark.parametrize(("options", "by"), [({"n_edges": 12}, "size"), ({"method": "acdc"}, "method")])
def test_a_size_that_the_criteria_did_not_choose_is_judged_on_the_test_prompts(tmp_path, options, by):
    run = wb.discover(
        small(), "induction", out=tmp_path / "run", n=4, quick=True, progress=False,
        criteria=wb.Criteria(at_most=0.9), **options,
    )  # fmt: skip
    assert (run.chosen_by, run.recommended) == (by, False)
    assert title_of(run).startswith(f"Circuit of the difference item ({run.circuit.n_edges} edges)")
    assert (run.folder / "frontier.nc").exists() == (by == "size")


def test_pairs_of_unequal_lengths_are_refused_before_any_work(tmp_path):
    (tmp_path / "odd.csv").write_text("clean,corrupt,answer,wrong\nThe dog,The old dogs,is,are\n")
    odd = wb.PromptPairs.from_csv(tiny(), tmp_path / "odd.csv")
    with pytest.raises(PromptError) as refused:
        wb.discover(tiny(), odd, out=tmp_path / "odd", progress=False)
    assert str(refused.value).startswith(
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
