"""A folder that an earlier version wrote is resumed: jobs keep their keys, and values written in it keep their meaning.

`old_sweep/` is that folder, finished: heads of tiny on ioi, 8 prompts, the values zero, other, mean and resample.
"""

import json
import shutil
from pathlib import Path

import pytest
from closeness import close

from workbench.sweeps.folder import SPEC
from workbench.sweeps.inputs import JobInputs
from workbench.sweeps.jobs import plan
from workbench.sweeps.log import LOG, read_log
from workbench.sweeps.runner import run_sweep
from workbench.sweeps.spec import read_spec

OLD = Path(__file__).parent / "old_sweep"


@pytest.fixture
def folder(tmp_path):
    """The old folder as its runner would have left it had it been stopped after three of eight jobs."""
    lines = (OLD / LOG).read_text().splitlines(keepends=True)
    (tmp_path / LOG).write_text("".join(lines[:3]))
    shutil.copy(OLD / SPEC, tmp_path / SPEC)
    return tmp_path


def test_an_old_folder_resumes_and_repeats_no_job(folder):
    old_rows = {row["job"]: row for row in read_log(OLD)}
    spec = json.loads((folder / SPEC).read_text())["spec"]
    sweep = run_sweep(spec, out=folder, progress=False, device="cpu")
    rows = read_log(folder)
    assert [row["job"] for row in rows] == list(old_rows)
    assert sweep.status().counts["done"] == len(old_rows) == 8
    for row in rows:
        scale = max(row["m_base"])
        assert close(row["values"], old_rows[row["job"]]["values"], tolerance=1e-5, scale=scale), row["what"]


def test_a_finished_old_folder_is_only_read(folder):
    shutil.copy(OLD / LOG, folder / LOG)
    spec = json.loads((folder / SPEC).read_text())["spec"]
    run_sweep(spec, out=folder, progress=False, device="cpu")
    assert (folder / LOG).read_bytes() == (OLD / LOG).read_bytes()
    assert (folder / SPEC).read_bytes() == (OLD / SPEC).read_bytes()


def test_the_old_jobs_are_planned_with_their_old_keys():
    spec = json.loads((OLD / SPEC).read_text())["spec"]
    assert [job.key for job in plan(read_spec(spec), JobInputs("cpu")).jobs] == [
        row["job"] for row in read_log(OLD)
    ]
