"""Code that a data file names is run only where the user says so, at every call; otherwise its file is named."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.app import app
from workbench.errors import SweepError
from workbench.sweeps.log import read_log
from workbench.sweeps.runner import run_sweep
from workbench.sweeps.spec import SweepSpec
from workbench.sweeps.trust import code_files

FIELDS = {"preset": "head-ablation", "tasks": ["ioi"], "n": 3, "sites": ["z[1.1]"]}
MODULE = """
from pathlib import Path
import workbench as wb
Path({ran!r}).touch()
score = wb.metric(lambda logits: logits.max(-1).values, positions="END")
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A file that names a function of a module in a package; importing either leaves a trace."""
    package = tmp_path / "package_of_somebody"
    package.mkdir()
    (package / "__init__.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    )
    (package / "theirs.py").write_text(MODULE.format(ran=str(tmp_path / "ran")))
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump(FIELDS | {"metrics": ["package_of_somebody.theirs:score", "logit_diff"]})
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["workbench"])
    yield tmp_path / "a.yaml"
    for name in ("package_of_somebody", "package_of_somebody.theirs"):
        sys.modules.pop(name, None)


def run(spec, **options):
    return run_sweep(spec, out=Path("out"), progress=False, device="cpu", **options)


def call(*arguments):
    return CliRunner().invoke(app, ["sweep", *arguments])


def test_a_file_s_code_is_not_run_unless_it_is_trusted(spec, tmp_path):
    for refused in (
        lambda: run(spec),
        lambda: run(str(spec)),
        lambda: run(SweepSpec.model_validate(yaml.safe_load(spec.read_text())), trust=False),
    ):
        with pytest.raises(SweepError) as error:
            refused()
        assert str(error.value) == (
            f"The metric 'package_of_somebody.theirs:score' is code of {str(tmp_path / 'package_of_somebody' / 'theirs.py')!r}, "
            "named by a file, and is not trusted: running it can do whatever you can do. Read it, then pass "
            "trust=True (--trust), at every call."
        )
    assert isinstance(call("run", "a.yaml", "--out", "out").exception, SweepError)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
    assert run(spec, trust=True).status().ok
    assert (tmp_path / "ran").exists()


def test_trust_is_not_remembered(spec, tmp_path):
    assert call("run", "a.yaml", "--out", "out", "--limit", "1", "--trust").exit_code == 0
    n_rows = len(read_log(tmp_path / "out"))
    for refused in (
        lambda: run(wb.load_sweep("out").spec),
        lambda: _raised(call("resume", "out")),
        lambda: _raised(call("run", "a.yaml", "--out", "out")),
        lambda: run({**FIELDS, "metrics": ["nll"]}, extend=True),
    ):
        with pytest.raises(SweepError, match="is not trusted"):
            refused()
    assert len(read_log(tmp_path / "out")) == n_rows
    assert call("resume", "out", "--trust").exit_code == 0
    assert len(read_log(tmp_path / "out")) == 2


def _raised(outcome):
    raise outcome.exception


def test_dry_run_and_validate_name_the_file_of_the_code(spec, tmp_path):
    where = repr(str(tmp_path / "package_of_somebody" / "theirs.py"))
    cost = run(spec, dry_run=True)
    assert (cost.jobs, cost.untrusted) == (1, (("package_of_somebody.theirs:score", where),))
    line = (
        f"       ?  the metric 'package_of_somebody.theirs:score', code of {where}: not trusted, cost unknown"
    )
    assert call("run", "a.yaml", "--out", "out", "--dry-run").stdout.splitlines()[-1] == line
    alone = {**FIELDS, "metrics": ["package_of_somebody.theirs:score"]}
    spec.write_text(yaml.safe_dump(alone))
    assert run(spec, dry_run=True).jobs == 0
    said = json.loads(call("validate", "a.yaml", "--json").stdout)["code"]
    assert said == {"package_of_somebody.theirs:score": f"{where}: not trusted, cost unknown"}
    assert "not trusted, cost unknown" in call("validate", "a.yaml").stdout
    assert not (tmp_path / "ran").exists()
    assert run(spec, dry_run=True, trust=True).jobs == 1


@pytest.mark.slow
def test_metrics_that_the_user_wrote_or_typed_are_trusted(spec, tmp_path):
    mine = {**FIELDS, "metrics": ["package_of_somebody.theirs:score"]}
    assert run(mine, dry_run=True).jobs == 1
    assert run(SweepSpec(**mine), dry_run=True).jobs == 1
    typed = call(
        "run", "a.yaml", "--metrics", "package_of_somebody.theirs:score", "--out", "out", "--dry-run"
    )
    assert typed.stdout.splitlines()[0].startswith("1 jobs, 0 done, 1 left; about ")


def test_what_cannot_be_located_is_said_to_be_nowhere():
    for module in ("nowhere", "nowhere.at.all", "", ".", "json.nothing", "a\0b"):
        assert code_files([f"{module}:f"]) == {f"{module}:f": "no file that could be found"}, module
    assert code_files(["logit_diff", 5, ["a:b"]]) == {}
