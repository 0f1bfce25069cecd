"""Folders of results: nothing of others is touched, and no folder mixes two runs."""

import os
import subprocess
import sys

import pytest

from workbench.errors import OutputExists
from workbench.files import check_free, replaced

FILES = ("a.txt", "report.html")


def write(out, text):
    with replaced(out, FILES, overwrite=True) as partial:
        for name in FILES:
            (partial / name).write_text(text)


def test_folders_of_others_stay(tmp_path):
    for name in (".ioi-2024-backup", ".ioi-31337-notes", ".ioi.elsewhere.31337-x.workbench-partial", "ioi-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    write(tmp_path / "ioi", "new")
    assert len(list(tmp_path.glob("*/thesis.txt"))) == 4
    assert (tmp_path / "ioi" / "a.txt").read_text() == "new"


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    code = (
        "import os, signal, pathlib\nfrom workbench.files import replaced\n"
        f"with replaced(pathlib.Path({str(tmp_path / 'ioi')!r}), ('a.txt',), overwrite=False):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    write(tmp_path / "ioi", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["ioi"]


def test_a_run_stopped_while_it_is_moved_in_place_mixes_nothing(tmp_path, monkeypatch):
    write(tmp_path / "ioi", "old")
    moves, move = [], os.replace

    def stopped(source, target):
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "ioi", "new")
    assert {path.name: path.read_text() for path in (tmp_path / "ioi").iterdir()} == {"a.txt": "new"}


def test_special_files_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputExists, match="is a device or a pipe and not a file"):
        check_free(tmp_path / "pipe", overwrite=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(OutputExists) as caught, replaced(tmp_path / "run", ["page.html"], overwrite=False):
        pass
    assert str(caught.value) == f"The folder {str(tmp_path)!r} cannot be written to: No space left on device."
    assert not any(tmp_path.iterdir())
