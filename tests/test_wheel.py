"""The wheel carries the model and the circuits, and works where there is no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import workbench

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_runs_the_main_job_outside_the_repository(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for carried in (
        "_data/models/tiny/model.safetensors",
        "_data/models/induction/config.json",
        "_data/models/shortcut/tokenizer.json",
        "_circuits/README.md",
        "_circuits/reference/ioi.json",
        "render/circuit/circuit.js",
        "render/circuit/frame.js",
        "render/panels.js",
        "py.typed",
        "__init__.pyi",
    ):
        assert f"workbench/{carried}" in names
    assert {name.split("/")[0] for name in names} <= {
        "workbench",
        f"interp_workbench-{workbench.__version__}.dist-info",
    }
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
        timeout=300,
    )
    environment = os.environ | {"PYTHONPATH": str(site), "TQDM_DISABLE": "1"}
    call = [
        sys.executable,
        "-P",
        "-c",
        "import workbench.cli.app as c; print(c.__file__); c.main()",
        "discover",
        "ioi",
        "--n",
        "8",
        "--out",
        "run",
    ]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000
