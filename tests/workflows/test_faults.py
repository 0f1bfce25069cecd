"""`discover` is killed: at every step of writing its results, and in the middle of its work. Nothing is half there, and the
next run leaves no trace of it. Every kill comes at a step and not after a time, so that the tests hold on a busy machine.
"""

import itertools
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.files import fresh_folder, whole
from workbench.workflows import discover as module
from workbench.workflows import discovery_job
from workbench.workflows.discover import FILES, discover

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kills")]
# Of what `discover` does to the disk: each of these calls is a step.
STEPS = ("mkdir", "replace", "rename", "unlink", "rmdir")
NOTES = "notes.txt"


def small_report(sections, path: Path, **_options) -> None:
    """A page without its pictures, whose drawing is most of a run's writing, written as the whole page is."""
    with whole(path) as partial:
        partial.write_text("<html></html>\n")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What a run measured: its arguments for `_write`, so that each kill does not measure everything again."""
    torch.set_num_threads(1)
    caught = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_write", lambda *arguments: caught.append(arguments))
        patch.setattr(module, "sections_of", lambda *_: [])
        discover(
            wb.load_model("tiny"), "agreement", out=tmp_path_factory.mktemp("r") / "x", n=4, progress=False
        )
    return caught[0]


def write(results, out: Path, *, overwrite: bool) -> None:
    run, *others, _ = results
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "report", small_report)
        module._write(replace(run, folder=out), *others, overwrite)


def die_at(number: int) -> None:
    """Let this process kill itself just before the step with that number."""
    steps = itertools.count(1)

    def fatal(step):
        def call(*arguments, **options):
            if next(steps) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **options)

        return call

    for name in STEPS:
        setattr(os, name, fatal(getattr(os, name)))


def killed(target, *arguments) -> bool:
    """Whether a call in a process of its own was killed, and did not end before."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def write_until_killed(results, out: Path, overwrite: bool, step: int) -> None:
    die_at(step)
    write(results, out, overwrite=overwrite)


def check_whole(out: Path) -> None:
    """A run's folder has every file but that of other choices, which was not asked for, and each can be read."""
    made = {path.name for path in out.iterdir() if path.name != NOTES}
    assert made == set(FILES) - {"multiverse.nc"}
    Circuit.load(out / "circuit.json")
    for name in made:
        if name.endswith(".nc"):
            wb.load(out / name)
    assert (out / "report.html").read_text().rstrip().endswith("</html>")


def test_a_new_run_is_there_as_a_whole_or_not_at_all(results, tmp_path):
    out, n_kills = tmp_path / "run", 0
    for step in itertools.count(1):
        if not killed(write_until_killed, results, out, False, step):
            break
        n_kills += 1
        if out.exists():
            check_whole(out)
            shutil.rmtree(out)
    assert n_kills >= 8
    check_whole(out)
    shutil.rmtree(out)
    write(results, out, overwrite=False)
    check_whole(out)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_replaces_another_mixes_nothing_and_leaves_what_is_not_its_own(results, tmp_path):
    out, n_kills = tmp_path / "run", 0
    write(results, out, overwrite=False)
    (out / NOTES).write_text("mine")
    old = {path.name: path.read_bytes() for path in out.iterdir()}
    for step in itertools.count(1):
        if not killed(write_until_killed, results, out, True, step):
            break
        n_kills += 1
        assert (out / NOTES).read_text() == "mine"
        # What is not finished lies in a hidden folder, which the next run clears.
        present = {path.name for path in out.iterdir() if not path.name.startswith(".")} - {NOTES}
        assert present <= set(FILES)
        # The next run makes it whole again, and nothing of the killed one is left beside it.
        write(results, out, overwrite=True)
        check_whole(out)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert n_kills >= 12
    assert {path.name for path in out.iterdir()} == set(old)


def work_until_killed(stage: str, root: Path) -> None:
    """Run `discover` into a fresh folder, as the command does, and die where a stage begins."""

    def die(*_arguments, **_options):
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(discovery_job, stage, die)
    with fresh_folder("agreement", root) as folder:
        discover(wb.load_model("tiny"), "agreement", out=folder, n=4, progress=False)


@pytest.mark.parametrize("stage", ["effects", "score_edges"])
def test_a_run_that_is_killed_at_work_leaves_nothing_behind(results, tmp_path, stage):
    assert killed(work_until_killed, stage, tmp_path)
    assert not any(path.is_file() for path in (tmp_path / "agreement-001").iterdir())
    with fresh_folder("agreement", tmp_path) as folder:
        assert folder.name == "agreement-001"
        write(results, folder, overwrite=False)
    check_whole(tmp_path / "agreement-001")
    assert [path.name for path in tmp_path.iterdir()] == ["agreement-001"]
