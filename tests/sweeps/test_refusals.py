"""What a sweep refuses before it runs, what it leaves as it is, and what it survives."""

import json
import os
import re
import sys

import numpy as np
import pandas as pd
import pytest
from closeness import close
from fake_sweeps import record, write_sweep
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.app import app
from workbench.errors import SweepError, WorkbenchError
from workbench.sweeps import jobs
from workbench.sweeps.folder import SPEC, TABLE
from workbench.sweeps.inputs import JobInputs
from workbench.sweeps.jobs import plan
from workbench.sweeps.lock import LOCK
from workbench.sweeps.log import LOG, read_log
from workbench.sweeps.places import place_of
from workbench.sweeps.runner import run_sweep
from workbench.sweeps.spec import read_spec
from workbench.sweeps.table import load_sweep

HEADS = {"preset": "head-ablation", "tasks": ["ioi"], "n": 3, "sites": ["z[1.1]", "z[3.7]"]}
STEERING = {"preset": "steering", "tasks": ["ioi"], "n": 3}
METRIC = """
import workbench as wb
score = wb.metric(lambda logits: {factor} * logits.max(-1).values, positions="END")
"""


@pytest.fixture(scope="module")
def inputs():
    return JobInputs("cpu")


def run(spec, out, **options):
    return run_sweep(spec, out=out, progress=False, device="cpu", **options)


def test_a_preset_beside_a_file_replaces_what_it_stands_for(tmp_path):
    (tmp_path / "a.yaml").write_text("study: effects\nsites: [z]\ntasks: [ioi]\nn: 5\n")
    read = read_spec(tmp_path / "a.yaml", preset="layer-ablation")
    assert (read.sites, read.n) == (("attn_out", "mlp_out"), 5)
    assert read_spec(tmp_path / "a.yaml", preset="layer-ablation", sites=["z[1.1]"]).sites == ("z[1.1]",)


LACKING = [
    ({"sites": ["z@NOPE"]}, "position='NOPE' is not known"),
    ({"sites": ["z[1.1]@NOPE"]}, "position='NOPE' is not known"),
    ({"sites": ["resid_pre@99"]}, "The site 'resid_pre@99': no prompt has that position; the longest has 15 tokens"),
    ({"sites": ["z@"]}, "z@"),
    ({"sites": ["z[9.9]"]}, "this model has layers 0 to 3"),
    ({"sites": ["zz"]}, "kind='zz' is not known"),
    ({"models": ["planted-ioi"], "sites": ["z"], "tasks": ["planted"], "checkpoints": [500]}, "has no checkpoints"),
    ({"tasks": ["iio"]}, "task='iio' is not known. Did you mean 'ioi'"),
    ({"metrics": [":f"]}, "The metric ':f' cannot be found: Empty module name"),
    ({"metrics": [".a:f"]}, "The metric '.a:f' cannot be found"),
    ({"metrics": ["logit_dif"]}, "metric='logit_dif' is not known"),
    ({"metrics": ["nowhere:metric"]}, "The metric 'nowhere:metric' cannot be found: No module named 'nowhere'"),
    ({"preset": "method-comparison", "methods": ["epa"]}, "method='epa' is not known. Did you mean 'eap'"),
    ({"preset": "path-sweep", "senders": ["a9.9"]}, "this model has layers 0 to 3"),
    ({"preset": "path-sweep", "receivers": ["input"]}, "input"),
    ({"preset": "circuit-evaluation", "circuits": ["none.json"]}, "The circuit 'none.json' cannot be read"),
    ({"models": ["planted-ioi"], "sites": ["z"]}, "The model 'planted-ioi' brings its own prompts and has no checkpoints"),
    ({"models": ["tinny"]}, "tinny"),
]  # fmt: skip


def test_what_the_model_or_the_prompts_lack_is_refused(inputs):
    for change, message in LACKING:
        with pytest.raises(wb.WorkbenchError) as raised:
            plan(read_spec({**HEADS, **change}), inputs)
        assert message in str(raised.value), f"{change}: {raised.value}"


def test_a_refusal_comes_before_anything_is_written(tmp_path):
    with pytest.raises(wb.WorkbenchError, match="this model has layers 0 to 3"):
        run({**HEADS, "sites": ["z[9.9]"]}, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_metric_whose_module_raises_is_named(inputs, tmp_path, monkeypatch):
    (tmp_path / "raising.py").write_text("raise RuntimeError('boom')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SweepError, match="The metric 'raising:f' cannot be found: boom"):
        plan(read_spec({**HEADS, "metrics": ["raising:f"]}), inputs)


def test_a_metric_that_lies_beside_the_shell_is_found(tmp_path, monkeypatch):
    """Also by the installed command, which does not have the current folder among its paths."""
    (tmp_path / "beside.py").write_text(METRIC.format(factor=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    options = "--preset head-ablation --tasks ioi -n 3 --sites z[1.1] --metrics beside:score --dry-run"
    result = CliRunner().invoke(app, ["sweep", "run", *options.split()])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("1 jobs, 0 done, 1 left; about ")


def test_paths_that_cannot_be_are_no_jobs(inputs):
    spec = read_spec({"preset": "path-sweep", "tasks": ["ioi"], "n": 3, "receivers": ["a2.7", "m2"]})
    whats = [job.what for job in plan(spec, inputs).jobs]
    assert whats.count("a1.0->a2.7") == whats.count("a2.0->m2") == 1
    assert not {"a2.0->a2.7", "a3.0->a2.7", "a3.0->m2"} & set(whats)
    assert place_of("paths", "a1.0->a2.7") == {"writer": "a1.0", "reader": "a2.7"}


def test_kinds_that_are_seldom_kept_take_every_value(tmp_path):
    spec = {**HEADS, "sites": ["resid_mid[1]", "mlp_pre[1]", "logits"], "values": ["mean", "corrupt"]}
    sweep = run(spec, tmp_path / "a", retries=0)
    assert sweep.status().ok
    model = wb.load_model("tiny", device="cpu")
    pairs = wb.load_task("ioi", model, n=3)
    clean, _ = wb.capture_pairs(model, pairs, sites=["resid_mid"])
    expected = wb.effects(model, pairs, sites=["resid_mid[1]"], value=wb.mean(clean)).values[:, 0]
    row = next(row for row in sweep.records if (row["what"], row["value"]) == ("resid_mid[1]", "mean"))
    assert close(row["values"], expected, tolerance=1e-5, scale=max(row["m_base"]))
    assert (
        run({**STEERING, "sites": ["resid_mid"], "strengths": [1.0]}, tmp_path / "b", retries=0).status().ok
    )
    assert (
        run({**HEADS, "sites": ["embed", "pos_embed"], "values": ["optimal"]}, tmp_path / "c", retries=0)
        .status()
        .ok
    )


def test_names_and_indices_of_positions_fit_one_table(tmp_path):
    sweep = run({**HEADS, "sites": ["resid_pre[1]@END", "resid_pre[1]@2"]}, tmp_path)
    assert sweep.rows["pos"].tolist() == ["END", "2"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / TABLE), sweep.rows)
    assert sweep.arrays().sizes["pos"] == 2


def test_half_a_surrogate_pair_in_a_message_harms_nothing(tmp_path, monkeypatch):
    (tmp_path / "halved.py").write_text(
        "import workbench as wb\n@lambda f: wb.metric(f, positions='END')\ndef score(logits):\n    raise ValueError('x\\ud800')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sweep = run({**HEADS, "metrics": ["halved:score"]}, tmp_path / "a", retries=0)
    assert set(sweep.status().failed["error"]) == {
        "MetricError: The function of the metric 'score' failed with ValueError: x?"
    }
    assert (tmp_path / "a" / TABLE).is_file()


def test_rows_of_another_metric_of_the_same_name_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    spec, out = {**HEADS, "metrics": ["remade:score"]}, tmp_path / "a"
    (tmp_path / "remade.py").write_text(METRIC.format(factor=1))
    run(spec, out)
    before = (out / LOG).read_bytes()
    # As in a new process: the module is imported anew, and its source hashed anew.
    (tmp_path / "remade.py").write_text(METRIC.format(factor=-20))
    monkeypatch.delitem(sys.modules, "remade")
    jobs._metric_source.cache_clear()
    with pytest.raises(
        SweepError,
        match=r"holds rows of 2 of these jobs, such as z\[1.1\], computed with other weights, prompts, metric code, circuits",
    ):
        run(spec, out)
    assert (out / LOG).read_bytes() == before


def test_extending_leaves_no_job_behind(tmp_path):
    run(HEADS, tmp_path, limit=1)
    with pytest.raises(
        SweepError,
        match=r"1 jobs of the sweep in .* have not run, and the new spec does not list them. Run them first",
    ):
        run({**HEADS, "values": ["mean"]}, tmp_path, extend=True)
    run(HEADS, tmp_path)
    assert run({**HEADS, "values": ["mean"]}, tmp_path, extend=True).status().counts["done"] == 4


def test_prompts_with_and_without_bos_do_not_mix(tmp_path):
    first = run(HEADS, tmp_path)
    with pytest.raises(
        SweepError, match=r"has bos=None, and the new spec bos=False: .* Choose another folder"
    ):
        run({**HEADS, "values": ["mean"], "bos": False}, tmp_path, extend=True)
    without = run({**HEADS, "bos": False}, tmp_path / "without")
    rows = first.rows.merge(without.rows, on="what", suffixes=("", "_without"))
    assert len(rows) == 2
    assert (rows["mean"] != rows["mean_without"]).all()


def test_a_folder_that_is_run_elsewhere_is_left_as_it_is(tmp_path):
    import psutil

    run(HEADS, tmp_path)
    before = (tmp_path / SPEC).read_bytes()
    held = {
        "pid": os.getppid(),
        "host": os.uname().nodename,
        "since": "now",
        "born": psutil.Process(os.getppid()).create_time(),
    }
    (tmp_path / LOCK).write_text(json.dumps(held))
    with pytest.raises(SweepError, match="has been running this sweep since now"):
        run({**HEADS, "values": ["mean"]}, tmp_path, extend=True)
    assert (tmp_path / SPEC).read_bytes() == before


def test_a_runner_killed_at_its_start_does_not_block_the_folder(tmp_path):
    (tmp_path / f"{SPEC}.123.partial").write_text("{")
    (tmp_path / LOCK).write_text(
        json.dumps({"pid": -1, "host": os.uname().nodename, "since": "then", "born": 1.0})
    )
    assert run(HEADS, tmp_path).status().counts["done"] == 2


def test_a_path_that_is_none_is_refused():
    with pytest.raises(WorkbenchError, match=r"run_sweep: out='a.x00b' does not fit; a path is needed"):
        run(HEADS, "a\0b")


DAMAGES = [
    {"values": "abc"}, {"values": [[1.0]]}, {"m_base": "q"}, {"n": "many"}, {"model": ["tiny"]}, {"extra": 5},
    {"extra": {"edges": 5}}, {"extra": {"edges": [["a"]]}}, {"extra": {"faithfulness": "high"}}, {"extra": {"order": "ab"}},
    {"extra": {"order": ["z[0.0]"], "mean": [1.0], "low": [0.0]}},
    {"extra": {"order": ["z[0.0]"], "mean": 1.0, "low": [0.0], "high": [1.0]}},
]  # fmt: skip


def test_a_line_with_other_types_is_named(tmp_path):
    for damage in DAMAGES:
        folder = write_sweep(tmp_path, [record("z[0.0]", [1.0]) | damage, record("z[0.1]", [np.pi])])
        for read in (read_log, load_sweep):
            with pytest.raises(SweepError) as raised:
                read(folder)
            assert re.search(f"Line 1 of .* is damaged: '{next(iter(damage))}' ", str(raised.value)), damage
