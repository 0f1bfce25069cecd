"""The recipe of the documentation: every row of a sweep goes to an experiment tracker, here on this machine alone."""

import numpy as np
import pytest

import workbench as wb

wandb = pytest.importorskip("wandb")


@pytest.mark.slow
def test_the_rows_of_a_sweep_are_logged_by_weights_and_biases_offline(tmp_path, monkeypatch):
    # wandb starts a process of its own, which is what takes time here.
    for name, setting in (
        ("MODE", "offline"),
        ("DIR", str(tmp_path)),
        ("ERROR_REPORTING", "false"),
        ("SILENT", "true"),
    ):
        monkeypatch.setenv(f"WANDB_{name}", setting)
    spec = {"preset": "head-ablation", "tasks": ["ioi"], "n": 4}
    tracker = wandb.init(project="circuits", config=spec)

    def on_row(row):
        if row["status"] == "done":
            tracker.log(
                {"site": row["what"], "effect": float(np.mean(row["values"])), "seconds": row["seconds"]}
            )

    rows = []
    sweep = wb.run_sweep(
        spec,
        out=tmp_path / "sweep",
        limit=3,
        progress=False,
        on_row=lambda row: (rows.append(row), on_row(row)),
    )
    assert tracker.step == len(rows) == 3
    last = sweep.rows[sweep.rows["what"] == tracker.summary["site"]]
    assert tracker.summary["effect"] == pytest.approx(float(last["mean"].iloc[0]), rel=1e-6)
    tracker.finish()
    [log] = tmp_path.rglob("run-*.wandb")
    assert log.stat().st_size > 0
