"""Who may write a sweep's folder: one process, whatever the clock says, and one that is gone holds nobody up."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_sweeps import record

from workbench.errors import CannotWrite, SweepError
from workbench.sweeps import lock
from workbench.sweeps.lock import BEAT, LOCK, SYSTEM_LOCK, Waiting, locked
from workbench.sweeps.log import Log, read_log

ELSEWHERE = {
    "pid": 4711,
    "host": "node-17",
    "born": 1.0,
    "since": "2026-01-02 03:04:05",
    "token": "a1b2",
    "boot": "x",
}
HOLDER = """
import sys, time
from pathlib import Path
from workbench.sweeps.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@dataclass
class Clock:
    """A clock of the tests' own. Time passes when somebody sleeps, and `happens` says what happens then."""

    now: float = 0.0
    happens: dict[int, object] = field(default_factory=dict)
    n_sleeps: int = 0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.n_sleeps += 1
        if event := self.happens.get(self.n_sleeps):
            event()

    @property
    def waiting(self) -> Waiting:
        return Waiting(monotonic=lambda: self.now, sleep=self.sleep)


def held_elsewhere(folder: Path, **changes) -> Path:
    """A folder that a process on another machine has locked."""
    (folder / LOCK).write_text(json.dumps(ELSEWHERE | changes))
    (folder / f"{BEAT}{ELSEWHERE['token']}").write_text("000000000007")
    return folder / f"{BEAT}{ELSEWHERE['token']}"


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_no_step_of_the_clock_gives_a_running_process_s_lock_away(tmp_path, holder, monkeypatch):
    """psutil computes when a process started from the clock of the day: a step makes every process another one."""
    monkeypatch.setattr(lock, "_born", lambda pid: 12345.0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with (
        pytest.raises(
            SweepError,
            match=rf"Process {holder.pid} has been running this sweep since .* Wait for it, or stop it\.",
        ),
        locked(tmp_path),
    ):
        pass
    # Nor does a lock that somebody deleted by hand.
    (tmp_path / LOCK).unlink()
    with pytest.raises(SweepError, match="Another process has just begun"), locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid
    with locked(tmp_path, Waiting(sleep=lambda seconds: pytest.fail("waited"))):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert len(list(tmp_path.glob(f"{BEAT}*"))) == 1, "the heartbeat of the killed one is gone"
    assert [path.name for path in tmp_path.iterdir()] == [SYSTEM_LOCK]


def test_two_threads_do_not_share_a_folder(tmp_path):
    refused = []

    def second() -> None:
        try:
            with locked(tmp_path):
                refused.append(False)
        except SweepError:
            refused.append(True)

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        second()
    assert refused == [True, True]


def test_another_machine_s_lock_is_taken_after_five_minutes_without_a_beat(tmp_path):
    held_elsewhere(tmp_path)
    clock = Clock()
    with locked(tmp_path, clock.waiting):
        assert 300 < clock.now < 310
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()
    assert [path.name for path in tmp_path.iterdir()] == [SYSTEM_LOCK]


def test_another_machine_that_counts_is_left_alone(tmp_path):
    beat = held_elsewhere(tmp_path)
    clock = Clock(
        happens={6: lambda: beat.write_text("000000000008"), 59: lambda: beat.write_text("000000000009")}
    )
    before = (tmp_path / LOCK).read_text()
    with (
        pytest.raises(
            SweepError, match="Process 4711 on node-17 has been running this sweep since 2026-01-02 03:04:05"
        ),
        locked(tmp_path, clock.waiting),
    ):
        pass
    assert clock.n_sleeps == 59
    assert (tmp_path / LOCK).read_text() == before


def test_a_last_beat_that_a_slow_drive_shows_late_is_no_life(tmp_path):
    beat = held_elsewhere(tmp_path)
    clock = Clock(happens={3: lambda: beat.write_text("000000000008")})
    with locked(tmp_path, clock.waiting):
        assert 315 < clock.now < 325


def test_a_machine_that_was_started_again_is_another_one(tmp_path):
    """As are containers of one name on several machines, whose systems know nothing of each other."""
    held_elsewhere(tmp_path, host=socket.gethostname())
    clock = Clock()
    with locked(tmp_path, clock.waiting):
        assert clock.now > 300


def test_an_owner_that_ends_meanwhile_is_waited_for_no_longer(tmp_path):
    held_elsewhere(tmp_path)
    clock = Clock(happens={2: (tmp_path / LOCK).unlink})
    with locked(tmp_path, clock.waiting):
        assert clock.n_sleeps == 2


def test_locks_of_version_0_2_keep_their_rules(tmp_path):
    old = {name: ELSEWHERE[name] for name in ("pid", "host", "born", "since")}
    (tmp_path / LOCK).write_text(json.dumps(old))
    message = "Process 4711 on node-17 .* stop it; if that machine is gone, delete '.*sweep.lock'"
    with pytest.raises(SweepError, match=message), locked(tmp_path):
        pass
    for pid in (os.getpid(), -1, 2**40):  # of another start, or of nobody
        (tmp_path / LOCK).write_text(json.dumps(old | {"host": socket.gethostname(), "pid": pid}))
        with locked(tmp_path):
            pass


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"pid": 1}', json.dumps(ELSEWHERE | {"token": "../../x"})]
)
def test_a_lock_that_says_nothing_is_given_five_seconds(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    clock = Clock()
    with locked(tmp_path, clock.waiting):
        assert 5 < clock.now < 6


def test_links_in_the_place_of_locks_lead_nowhere_and_hold_nobody_up(tmp_path):
    """Such a name cannot be created, and nothing can be read there: asking again and again would not end."""
    (tmp_path / LOCK).symlink_to(tmp_path / "gone")
    (tmp_path / f"{BEAT}a1").symlink_to(tmp_path / "loop")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    clock = Clock()
    with locked(tmp_path, clock.waiting):
        assert 5 < clock.now < 6
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", SYSTEM_LOCK]


def test_a_lock_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    (tmp_path / LOCK).mkdir()
    with (
        pytest.raises(
            CannotWrite, match=r"sweep\.lock' of a process that is gone cannot be removed: Is a dir"
        ),
        locked(tmp_path, Clock().waiting),
    ):
        pass
    (tmp_path / LOCK).rmdir()
    held_elsewhere(tmp_path)

    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", read_only)
    with (
        pytest.raises(CannotWrite, match="cannot be removed: Read-only file system"),
        locked(tmp_path, Clock().waiting),
    ):
        pass
    assert json.loads((tmp_path / LOCK).read_text()) == ELSEWHERE


def test_a_heartbeat_that_cannot_be_written_gives_the_lock_back(tmp_path, monkeypatch):
    opened = os.open

    def full(path, flags, *more, **rest):
        if BEAT in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, flags, *more, **rest)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(CannotWrite, match="cannot be written to: No space left on device"), locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [SYSTEM_LOCK]


def test_a_third_process_s_lock_is_not_replaced_by_the_one_that_was_moved(tmp_path, monkeypatch):
    """Between the look and the move the lock changed hands, and between the move and the way back again."""
    held_elsewhere(tmp_path)
    second, third = ELSEWHERE | {"token": "c3"}, ELSEWHERE | {"token": "d4"}
    replace = os.replace

    def meanwhile(source, target):
        Path(source).write_text(json.dumps(second))
        replace(source, target)
        Path(source).write_text(json.dumps(third))

    monkeypatch.setattr(os, "replace", meanwhile)
    lock._remove_stale(tmp_path / LOCK, ELSEWHERE)
    assert json.loads((tmp_path / LOCK).read_text()) == third
    assert not list(tmp_path.glob("*.gone"))


def test_a_process_that_lost_its_lock_writes_no_line_more(tmp_path):
    with locked(tmp_path) as mine:
        log = Log(tmp_path, mine.check)
        log.append([record("z[0.0]", [1.0])])
        # It slept for an hour, and a process elsewhere took over.
        held_elsewhere(tmp_path)
        with pytest.raises(
            SweepError, match="was taken over while this process did not answer; process 4711 on node-17"
        ):
            log.append([record("z[0.1]", [1.0])])
        assert len(read_log(tmp_path)) == 1
    assert json.loads((tmp_path / LOCK).read_text()) == ELSEWHERE, "another's lock is not removed"


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_EVERY", 0.005)
    counts = set()
    with locked(tmp_path):
        (beat,) = tmp_path.glob(f"{BEAT}*")
        while len(counts) < 4:
            counts.add(beat.read_bytes())
    assert not list(tmp_path.glob(f"{BEAT}*"))


def test_a_log_that_is_a_link_to_another_file_is_not_cut(tmp_path):
    own, folder = tmp_path / "own.txt", tmp_path / "s"
    own.write_text("a file without a line end")
    folder.mkdir()
    (folder / "jobs.jsonl").symlink_to(own)
    with pytest.raises(
        SweepError, match=r"jobs.jsonl' is a link, and the log of a sweep is a file of its folder"
    ):
        Log(folder)
    assert own.read_text() == "a file without a line end"


@pytest.mark.slow
def test_a_disk_that_is_full_is_named_and_leaves_no_lock(tmp_path):
    """Files of no more than so many bytes, as a full disk allows them."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from workbench.errors import CannotWrite\n"
        "from workbench.sweeps.lock import locked\n"
        "from workbench.sweeps.log import Log\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))\n"
        "try:\n"
        "    with locked(Path('s')) as lock:\n"
        "        log = Log(Path('s'), lock.check)\n"
        "        for number in range(9):\n"
        "            log.append([{'job': str(number), 'status': 'done', 'text': 'x' * 150}])\n"
        "except CannotWrite as error:\n"
        "    print(error)\n"
    )
    (tmp_path / "s").mkdir()
    for limit, message in (
        (0, "'s' cannot be written to: File too large."),
        (900, "'s/jobs.jsonl' cannot be written: File too large. The jobs"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, str(limit)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.startswith(message), done.stdout + done.stderr
        assert not (tmp_path / "s" / LOCK).exists()
    path = tmp_path / "s" / "jobs.jsonl"
    assert path.stat().st_size == 900
    Log(tmp_path / "s")
    assert path.read_bytes().endswith(b"\n") or not path.stat().st_size
