"""Sweeps give the numbers of single calls, run every job once, and go on whatever happens."""

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from closeness import close

import workbench as wb
from workbench.errors import OutputExists, SweepError
from workbench.sweeps import runner
from workbench.sweeps.lock import LOCK
from workbench.sweeps.log import LOG, last_tries, read_log
from workbench.sweeps.runner import run_sweep

HEADS = {"preset": "head-ablation", "tasks": ["ioi"], "n": 3}
EIGHT = {**HEADS, "models": ["induction"]}
"""Eight jobs on a small model, for what does not depend on their numbers."""


def run(spec, out, **options):
    return run_sweep(spec, out=out, progress=False, device="cpu", **options)


def lines(out: Path) -> dict[str, dict]:
    return {row["what"]: row for row in last_tries(read_log(out))}


def effects_agree(row, effects) -> bool:
    """Whether a row has these effects, up to the rounding of the metric whose differences they are."""
    return close(row["values"], effects, tolerance=1e-5, scale=float(np.abs(row["m_base"]).max()))


@cache
def tiny_ioi(n: int, checkpoint: int | None = None) -> tuple:
    """The model and the prompts of these sweeps."""
    model = wb.load_model("tiny" if checkpoint is None else f"tiny@{checkpoint}", device="cpu")
    return model, wb.load_task("ioi", model, n=n)


def test_rows_are_what_effects_gives(tmp_path):
    model, pairs = tiny_ioi(8)
    clean, corrupt = wb.capture_pairs(model, pairs)
    values = {
        "zero": wb.zero(),
        "mean": wb.mean(clean),
        "resample": wb.resample(clean, 0),
        "corrupt": wb.from_store(corrupt),
        "constant:0.5": wb.constant(0.5),
        "scale:2": wb.scale(2.0),
    }
    sites = ["z[0.2]", "z[1.7]", "z[3.7]"]
    run({**HEADS, "n": 8, "sites": sites, "values": list(values)}, tmp_path / "a")
    rows = {(row["value"], row["what"]): row for row in last_tries(read_log(tmp_path / "a"))}
    assert len(rows) == len(values) * len(sites)
    for name, value in values.items():
        table = wb.effects(model, pairs, sites=sites, value=value).values
        for site, effects in zip(sites, table.T, strict=True):
            assert effects_agree(rows[name, site], effects), (name, site)


def test_checkpoints_are_models_of_their_own_in_rows_tables_and_keys(tmp_path):
    steps = [1500, 2500]
    run({**HEADS, "checkpoints": steps}, tmp_path / "steps")
    rows = read_log(tmp_path / "steps")
    assert [sum(row["checkpoint"] == step for row in rows) for step in steps] == [32, 32]
    tables = []
    for step in steps:
        model, pairs = tiny_ioi(3, step)
        table = wb.effects(model, pairs, sites=wb.grid("z", model), value=wb.zero())
        tables.append(table)
        for row in rows:
            if row["checkpoint"] == step:
                site = wb.Site.parse(row["what"])
                assert effects_agree(row, table.sel(layer=site.layer, head=site.head).values), row["what"]
    assert abs(tables[0] - tables[1]).max() > 0.1, "the two checkpoints differ"
    sweep = wb.load_sweep(tmp_path / "steps")
    assert sweep.rows["checkpoint"].value_counts().to_dict() == dict.fromkeys(steps, 32)
    summary = sweep.means()
    assert summary.groupby("checkpoint")["n_jobs"].sum().to_dict() == dict.fromkeys(steps, 32)
    means = [float(table.mean()) for table in tables]
    assert close(sweep.means(["checkpoint"])["mean"].to_numpy(), means, tolerance=1e-5, scale=10.0)
    assert sweep.arrays()["mean"].sizes == {"checkpoint": 2, "layer": 4, "head": 8}
    trained = run(HEADS, tmp_path / "trained").rows
    assert trained["checkpoint"].isna().all()
    assert len({*sweep.rows["job"], *trained["job"]}) == 3 * 32


def test_pairs_paths_and_positions_are_what_single_calls_give(tmp_path):
    model, pairs = tiny_ioi(3)
    _, corrupt = wb.capture_pairs(model, pairs)
    task = {"tasks": ["ioi"], "n": 3}
    run({"preset": "pairwise-ablation", "sites": ["z[3.7]", "z[1.7]"], **task}, tmp_path / "pairs")
    both = wb.effects(model, pairs, sites=[("z[3.7]", "z[1.7]")], value=wb.zero()).values[:, 0]
    assert set(lines(tmp_path / "pairs")) == {"z[3.7]", "z[1.7]", "z[3.7]+z[1.7]"}
    assert effects_agree(lines(tmp_path / "pairs")["z[3.7]+z[1.7]"], both)
    ends = {"senders": ["a1.7"], "receivers": ["a3.7<v>", "logits"]}
    run({"preset": "path-sweep", **ends, **task}, tmp_path / "paths")
    value = wb.from_store(corrupt)
    path = wb.path_effects(
        model, pairs, senders=["a1.7"], receivers=["a3.7<v>"], value=value, mlps="recomputed"
    ).values
    assert effects_agree(lines(tmp_path / "paths")["a1.7->a3.7<v>"], path.ravel())
    run({"preset": "position-sweep", "sites": ["resid_pre@END"], **task}, tmp_path / "pos")
    at_end = wb.effects(model, pairs, sites=["resid_pre[2]@END"], value=value).values[:, 0]
    assert effects_agree(lines(tmp_path / "pos")["resid_pre[2]@END"], at_end)


def test_the_optimal_constant_is_nearer_than_the_mean(tmp_path):
    run({**HEADS, "sites": ["z[3.7]", "z[1.7]"], "values": ["mean", "optimal"]}, tmp_path)
    losses = {(row["value"], row["what"]): np.square(row["values"]).mean() for row in read_log(tmp_path)}
    for site in ("z[3.7]", "z[1.7]"):
        assert losses["optimal", site] < losses["mean", site]


def test_cumulative_ablation_ends_with_everything_gone(tmp_path):
    sites = [f"z[{layer}.{head}]" for layer in (0, 3) for head in (1, 7)]
    run({"preset": "cumulative-ablation", "sites": sites, "tasks": ["ioi"], "n": 3}, tmp_path)
    (row,) = read_log(tmp_path)
    assert sorted(row["extra"]["order"]) == sorted(sites)
    model, pairs = tiny_ioi(3)
    single = wb.effects(model, pairs, sites=sites, value=wb.zero()).mean("example").values
    assert row["extra"]["order"][0] == sites[int(np.abs(single).argmin())]
    whole = wb.effects(model, pairs, sites=[tuple(sites)], value=wb.zero()).values[:, 0]
    assert effects_agree(row, whole)
    assert close(row["extra"]["mean"][-1], whole.mean(), tolerance=1e-5, scale=max(row["m_base"]))


def test_cumulative_ablation_takes_kinds_and_single_sites_together(tmp_path):
    sites = ["attn_out", "z[3.7]"]
    run({"preset": "cumulative-ablation", "sites": sites, "tasks": ["ioi"], "n": 3}, tmp_path)
    (row,) = read_log(tmp_path)
    assert row["status"] == "done"
    assert sorted(row["extra"]["order"]) == [*(f"attn_out[{layer}]" for layer in range(4)), "z[3.7]"]


def test_a_finished_sweep_runs_nothing(tmp_path):
    run(EIGHT, tmp_path)
    before = (tmp_path / LOG).read_bytes()
    seen = []
    run(EIGHT, tmp_path, on_row=seen.append)
    assert (tmp_path / LOG).read_bytes() == before
    assert seen == []


def test_limit_dry_run_and_extend(tmp_path):
    cost = run(EIGHT, tmp_path / "a", dry_run=True)
    assert (cost.jobs, cost.done) == (8, 0)
    assert not (tmp_path / "a").exists()
    run(EIGHT, tmp_path / "a", limit=5)
    assert len(read_log(tmp_path / "a")) == 5
    assert run(EIGHT, tmp_path / "a", dry_run=True).done == 5
    with pytest.raises(
        SweepError,
        match=r"holds another sweep: values: \[\] in the folder, \['mean'\] in this spec.*extend=True",
    ):
        run({**EIGHT, "values": ["zero", "mean"]}, tmp_path / "a")
    run({**EIGHT, "values": ["zero", "mean"]}, tmp_path / "a", extend=True)
    assert len(read_log(tmp_path / "a")) == len(last_tries(read_log(tmp_path / "a"))) == 16


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputExists, match=r"is not a sweep and not empty \(it has 'thesis.txt'\)"):
        run(EIGHT, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("metric", "status", "error"),
    [
        ("raises", "failed", "MetricError: "),
        ("nothing", "nan", None),
        ("wrong_shape", "failed", "MetricError: "),
        ("too_big", "memory", "OutOfMemoryError: "),
    ],
)
def test_a_metric_that_misbehaves_is_recorded_and_the_rest_goes_on(metric, status, error, tmp_path):
    spec = {**EIGHT, "sites": ["z[1.1]", "z[0.3]"], "metrics": [f"sweeps.bad_metrics:{metric}", "logit_diff"]}
    run(spec, tmp_path, retries=1)
    rows = read_log(tmp_path)
    bad = [row for row in rows if row["metric"] != "logit_diff"]
    assert [row["status"] for row in rows if row["metric"] == "logit_diff"] == ["done"] * 2
    assert {row["status"] for row in bad} == {status}
    assert sorted(row["try"] for row in bad) == [1, 1, 2, 2]
    if error:
        assert all(row["error"].startswith(error) for row in bad)
        assert "Traceback" in bad[0]["traceback"]


def test_a_torn_last_line_is_run_again(tmp_path):
    run(EIGHT, tmp_path)
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(whole[:-40])
    assert len(read_log(tmp_path)) == 7
    run(EIGHT, tmp_path)
    assert len(read_log(tmp_path)) == 8
    assert sorted(lines(tmp_path)) == sorted({row["what"] for row in map(json.loads, whole.splitlines())})


def test_a_damaged_line_is_named(tmp_path):
    run(EIGHT, tmp_path)
    content = (tmp_path / LOG).read_bytes().splitlines(keepends=True)
    (tmp_path / LOG).write_bytes(b"".join([*content[:2], b"{]\n", *content[3:]]))
    with pytest.raises(
        SweepError,
        match=r"Line 3 of '.*jobs.jsonl' is damaged: .*Delete that line; .workbench sweep resume. runs its job again.",
    ):
        run(EIGHT, tmp_path)


def test_two_runners_do_not_share_a_folder(tmp_path):
    import psutil

    run(EIGHT, tmp_path, limit=1)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        held = {"pid": other.pid, "host": os.uname().nodename, "since": "2026-01-02 03:04:05"}
        held["born"] = psutil.Process(other.pid).create_time()
        (tmp_path / LOCK).write_text(json.dumps(held))
        with pytest.raises(
            SweepError, match=rf"Process {other.pid} has been running this sweep since 2026-01-02 03:04:05"
        ):
            run(EIGHT, tmp_path)
        assert len(read_log(tmp_path)) == 1
    finally:
        other.kill()
        other.wait()
    run(EIGHT, tmp_path)
    assert len(read_log(tmp_path)) == 8
    assert not (tmp_path / LOCK).exists()


def test_wrong_numbers_are_refused(tmp_path):
    for name, value in (("limit", 0), ("limit", "3"), ("limit", 1.5), ("retries", -1), ("workers", 0)):
        with pytest.raises(wb.WorkbenchError, match=f"{name}={value!r}"):
            run(EIGHT, tmp_path / "a", **{name: value})


def test_a_tracker_that_fails_does_not_stop_the_sweep(tmp_path, capsys):
    def tracker(row):
        raise RuntimeError("tracker is down")

    run(EIGHT, tmp_path, on_row=tracker)
    assert len(read_log(tmp_path)) == 8
    assert "tracker is down" in "".join(capsys.readouterr())


class InterruptedWhenDeleted:
    """Ctrl-C comes while it is deleted, where Python drops the exception."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_stops_the_sweep_after_the_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "BATCH", 4)
    doomed = [InterruptedWhenDeleted()]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a script of one's own
    try:
        with pytest.raises(KeyboardInterrupt):
            run(EIGHT, tmp_path, on_row=lambda row: doomed.clear())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(read_log(tmp_path)) == 4
    run(EIGHT, tmp_path)
    assert len(read_log(tmp_path)) == 8
