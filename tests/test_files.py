"""Folders of results: nothing of others is touched, and no folder mixes two runs."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import workbench as wb
from workbench.errors import CannotWrite, OutputExists, WorkbenchError
from workbench.files import alone, check_free, fresh_folder, read_bytes, replaced, whole
from workbench.studies.evidence import Evidence
from workbench.sweeps.spec import read_spec

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


def killed(code: str) -> None:
    """Run code in a process that kills itself."""
    lines = "import os, signal, pathlib\nfrom workbench.files import fresh_folder, replaced, whole\n" + code
    assert subprocess.run([sys.executable, "-c", lines], check=False).returncode == -9


def test_a_fresh_folder_of_a_killed_run_is_used_again(tmp_path):
    root = f"pathlib.Path({str(tmp_path)!r})"
    killed(f"with fresh_folder('ioi', {root}):\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    assert (tmp_path / "ioi-001").is_dir()
    with fresh_folder("ioi", tmp_path) as folder:
        assert folder == tmp_path / "ioi-001"
        (folder / "kept").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["ioi-001"]


def test_a_partial_file_of_a_killed_run_is_removed_by_the_next(tmp_path):
    path = f"pathlib.Path({str(tmp_path / 'c.json')!r})"
    killed(f"with whole({path}) as p:\n    p.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n")
    assert len(list(tmp_path.iterdir())) == 1
    with whole(tmp_path / "other.json") as partial:
        partial.write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


def test_a_run_moves_in_place_as_a_whole_where_nothing_is(tmp_path, monkeypatch):
    moved = []
    rename = os.rename
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("moved file by file"))
    monkeypatch.setattr(os, "rename", lambda *paths: (moved.append(paths), rename(*paths)))
    write(tmp_path / "new", "a")
    with fresh_folder("ioi", tmp_path) as folder:
        write(folder, "b")
    assert len(moved) == 2
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("new", "ioi-001"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(FILES)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@cache
def tiny():
    """The packaged model: not to be changed."""
    return wb.load_model("tiny")


READERS = {
    "circuit": wb.Circuit.load,
    "other circuit": lambda path: wb.read_circuit(path, positive="supports"),
    "netCDF": wb.load,
    "lens": wb.TunedLens.load,
    "spec": read_spec,
    "evidence": Evidence.load,
    "sweep": lambda path: wb.load_sweep(path.parent),
    "store": lambda path: wb.open_store(path.parent),
    "corpus": lambda path: wb.read_corpus(tiny(), path),
    "pairs": lambda path: wb.PromptPairs.from_csv(tiny(), path),
}


@pytest.mark.parametrize("reader", READERS)
def test_pipes_and_devices_are_not_opened(tmp_path, reader):
    """A pipe that nobody writes to would be waited for without end."""
    name = {"sweep": "spec.json", "store": "store.json"}.get(reader, "file.json")
    os.mkfifo(tmp_path / name)
    with pytest.raises(WorkbenchError):
        READERS[reader](tmp_path / name)
    if name == "file.json":
        with pytest.raises(WorkbenchError):
            READERS[reader](Path("/dev/zero"))


def test_reading_is_bounded(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", most=5) == b"12345"
    with pytest.raises(OSError, match="it has more than 4 bytes"):
        read_bytes(tmp_path / "a", most=4)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)


def test_a_folder_of_runs_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    def mkdir(self, *_arguments, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(
        OutputExists, match=r"The folder '.*runs' cannot be written to: Permission denied\. Choose"
    ):
        fresh_folder("x", tmp_path / "runs").__enter__()


def test_a_full_disk_is_told_of_the_folder_to_come_and_not_of_the_one_that_is_gone(tmp_path):
    def fill() -> None:
        with replaced(tmp_path / "run", ["a"], overwrite=False) as partial, whole(partial / "a"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CannotWrite) as error:
        fill()
    assert (
        str(error.value)
        == f"'{tmp_path / 'run' / 'a'}' cannot be written: No space left on device. Nothing was left there."
    )
    assert not list(tmp_path.iterdir())


def in_two_drives(folder, monkeypatch):
    """Let a rename from one subfolder of a folder into another fail, as between two drives."""
    depth = len(folder.resolve().parts)

    def within(move):
        def call(source, target):
            drives = {Path(path).resolve().parts[: depth + 1] for path in (source, target)}
            if len(drives) > 1:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            move(source, target)

        return call

    monkeypatch.setattr(os, "rename", within(os.rename))
    monkeypatch.setattr(os, "replace", within(os.replace))


@pytest.mark.parametrize("is_link", [True, False])
def test_a_run_goes_to_another_drive(tmp_path, monkeypatch, is_link):
    """Through a link, and into a folder where a drive begins; an old run is replaced, not lost."""
    in_two_drives(tmp_path, monkeypatch)
    out = tmp_path / "disk"
    out.mkdir()
    if is_link:
        (tmp_path / "home").mkdir()
        out = tmp_path / "home" / "run"
        out.symlink_to(tmp_path / "disk")
    for text in ("old", "new"):
        write(out, text)
        assert {path.name: path.read_text() for path in out.iterdir()} == dict.fromkeys(FILES, text)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_an_old_run_on_another_drive_that_is_full_stays(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    write(tmp_path / "disk", "old")
    in_two_drives(tmp_path, monkeypatch)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(CannotWrite, match="disk' cannot be written: No space left on device"):
        write(tmp_path / "disk", "new")
    assert {path.name: path.read_text() for path in (tmp_path / "disk").iterdir()} == dict.fromkeys(
        FILES, "old"
    )


def test_a_folder_that_is_there_is_written_to_where_none_can_be_made_beside_it(tmp_path, monkeypatch):
    out, access = tmp_path / "mine", os.access
    out.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    write(out, "new")
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def test_two_runs_that_end_at_once_do_not_mix(tmp_path):
    """Both find the folder free; the one that is later is refused, and waits no longer than it is told."""
    refused = pytest.raises(CannotWrite, match="is being written to by another process")
    with alone(tmp_path), refused, alone(tmp_path, 0.1):
        pytest.fail("two are alone")
    with alone(tmp_path):
        pass


def test_a_fresh_folder_ends_where_its_root_is_gone(tmp_path):
    with fresh_folder("ioi", tmp_path / "runs"):
        shutil.rmtree(tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def test_a_fresh_folder_is_made_where_another_run_removes_its_root(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def removed(self, *arguments, **options):
        if self.name.startswith("."):  # its claim, before which another run that ends removes the folder
            monkeypatch.setattr(Path, "mkdir", mkdir)
            self.parent.rmdir()
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", removed)
    with fresh_folder("ioi", tmp_path / "runs") as folder:
        assert folder.is_dir()


def test_links_that_lead_nowhere_are_not_replaced_unasked(tmp_path):
    for name, target in (("dangling", "gone"), ("loop", "loop")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with pytest.raises(OutputExists, match=r"exists\. Choose another path, or pass overwrite=True"):
            check_free(tmp_path / name, overwrite=False)


def test_a_path_that_cannot_be_looked_at_is_refused(tmp_path):
    with pytest.raises(OutputExists, match="cannot be written: File name too long"):
        check_free(tmp_path / ("n" * 300), overwrite=False)
