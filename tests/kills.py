"""Forty processes are killed: builds of stores, sweeps and `workbench discover`. Nothing is lost, doubled or left.

    python tests/kills.py [--n 40] [--seed 0] [--victim discover]

A victim is killed with all of its workers when the folder that it writes to has changed a random number of
times, so that the hour of death is a state of the disk and not a time. After each kill what is there must be
whole; after the last one the same command runs to its end, and its results are those of a run that nobody
disturbed.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.cli.app import app
from workbench.models.model import Model
from workbench.stores.disk import verify
from workbench.stores.plan import record_name
from workbench.sweeps import runner
from workbench.sweeps.log import last_tries, read_log
from workbench.workflows.discover import FILES

CHECKED_EVERY = 0.003
"""Seconds between two looks at the folder."""
SPEC = {
    "preset": "head-ablation",
    "tasks": ["ioi"],
    "n": 4,
    "values": ["zero", "constant:0.5"],
    "seeds": [0, 1],
}


@dataclass(frozen=True)
class Victim:
    """A command that is killed.

    Attributes:
        run: does all of its work in a folder.
        check: raises `AssertionError` where a folder that a kill left is not as it should be.
        content: what a finished folder holds, to be compared with an undisturbed one's.
        changes: of the folder, at most so many before a kill.
        kills: of forty, how many are its own.
    """

    name: str
    run: Callable[[Path], None]
    check: Callable[[Path], None]
    content: Callable[[Path], object]
    changes: int
    kills: int


def _model() -> Model:
    return wb.load_model("tiny", device="cpu")


def _build(folder: Path, workers: int = 1) -> None:
    prompts = wb.load_task("ioi", _model(), n=48).clean
    sites = ["z", "resid_post", "pattern"]
    wb.capture(
        _model(),
        prompts,
        sites=sites,
        path=folder,
        shard_bytes=60_000,
        threads=1,
        workers=workers,
        progress=False,
    )


def _check_store(folder: Path) -> None:
    if not (folder / "store.json").exists():
        return
    unfinished = {damage.shard for damage in verify(folder) if damage.why.startswith("its bytes")}
    # A file of an unfinished shard may be any; with a record it must be as it was written.
    assert not [shard for shard in unfinished if shard is None or (folder / record_name(shard)).exists()]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _sweep(folder: Path) -> None:
    runner.BATCH = 4
    wb.run_sweep(SPEC, out=folder, workers=2, progress=False, device="cpu")


def _check_sweep(folder: Path) -> None:
    rows = read_log(folder)
    assert len(last_tries(rows)) == len(rows), "a job is done twice"
    assert {row["status"] for row in rows} <= {"done"}


def _values(folder: Path) -> object:
    left = [path.name for path in folder.iterdir() if path.name.startswith(".") or "gone" in path.name]
    return (
        {row["job"]: row["values"] for row in read_log(folder)},
        sorted(left),
        (folder / "rows.parquet").exists(),
    )


def _discover(folder: Path) -> None:
    with suppress(SystemExit):
        app(["discover", "agreement", "-n", "4", "--out", str(folder), "--overwrite"])


def _check_run(folder: Path) -> None:
    if not folder.exists():
        return
    present = {path.name for path in folder.iterdir()}
    assert present <= set(FILES), present
    if "circuit.json" in present:
        Circuit.load(folder / "circuit.json")
    for name in present:
        if name.endswith(".nc"):
            wb.load(folder / name)


def _results(folder: Path) -> object:
    circuit = Circuit.load(folder / "circuit.json")
    arrays = [wb.load(path) for path in sorted(folder.glob("*.nc"))]
    assert (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    # Attributes hold versions and names of machines; numbers are compared.
    return (
        circuit.edges.tolist(),
        [str(array.to_dict()["coords"]) for array in arrays],
        [repr(array) for array in arrays],
    )


VICTIMS = (
    Victim("store", _build, _check_store, _bytes, 40, 12),
    Victim("store, 2 workers", lambda folder: _build(folder, 2), _check_store, _bytes, 40, 6),
    Victim("sweep, 2 workers", _sweep, _check_sweep, _values, 14, 11),
    Victim("discover", _discover, _check_run, _results, 10, 11),
)


def _state(folder: Path) -> frozenset[tuple[str, int]]:
    """What is in a folder and beside it: names and sizes."""
    state = []
    # `walk` leaves out what is gone before it is looked at.
    for place, _, names in os.walk(folder.parent):
        state.append((place, 0))
        for name in names:
            with suppress(OSError):
                state.append((f"{place}/{name}", os.stat(f"{place}/{name}").st_size))
    return frozenset(state)


def _started(victim: Victim, folder: Path) -> int:
    """The process id of a victim, the first of a group of its own."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    try:
        victim.run(folder)
        os._exit(0)
    except BaseException as error:
        print(f"{victim.name}: {type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


def _ended(pid: int) -> int | None:
    """The exit code of a victim, or None while it lives."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def killed(victim: Victim, folder: Path, changes: int) -> bool:
    """Kill a victim once its folder has changed so many times; False where it ended before."""
    before, pid = _state(folder), _started(victim, folder)
    while (code := _ended(pid)) is None:
        now = _state(folder)
        if now != before:
            before, changes = now, changes - 1
        if changes <= 0:
            with suppress(ProcessLookupError):  # it ends just now
                os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        time.sleep(CHECKED_EVERY)
    assert code == 0, f"{victim.name} ended with {code}"
    return False


def kill_all(victim: Victim, n: int, rng: random.Random) -> dict[str, int]:
    """Kill a victim `n` times, in one folder after the other, and check what is left. Returns what was done."""
    place = Path(tempfile.mkdtemp(prefix="kills-"))
    undisturbed = place / "undisturbed" / "x"
    undisturbed.parent.mkdir()
    assert not killed(victim, undisturbed, sys.maxsize)
    right = victim.content(undisturbed)
    counts = {"kills": 0, "finished": 0}
    folder, last = place / "0" / "x", False
    while not last:
        folder.parent.mkdir(exist_ok=True)
        # The last run goes to its end.
        last = counts["kills"] >= n
        if not last and killed(victim, folder, rng.randint(1, victim.changes)):
            counts["kills"] += 1
            victim.check(folder)
            continue
        if last:
            assert not killed(victim, folder, sys.maxsize)
        counts["finished"] += 1
        assert victim.content(folder) == right, f"{victim.name}: other results than an undisturbed run's"
        left = [path.name for path in folder.parent.iterdir() if path != folder]
        assert not left, f"{victim.name} leaves {left}"
        folder = place / str(counts["finished"]) / "x"
    shutil.rmtree(place)
    return counts


def main() -> None:
    """Kill and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victim", choices=[victim.name for victim in VICTIMS], help="this one alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    _model()
    print(f"{'victim':<18} {'kills':>5} {'runs to the end after them':>27} {'seconds':>8}")
    for victim in VICTIMS:
        if given.victim not in (None, victim.name):
            continue
        start = time.perf_counter()
        n = max(1, round(victim.kills * given.n / 40))
        counts = kill_all(victim, n, random.Random(f"{given.seed} {victim.name}"))
        seconds = time.perf_counter() - start
        print(f"{victim.name:<18} {counts['kills']:>5} {counts['finished']:>27} {seconds:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
