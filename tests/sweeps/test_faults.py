"""Runners, worker processes, Ray actors and machines of Ray are killed: every job has its row once, none lost, none twice.

Every kill comes at a state (a lock, lines of the log), never after a time, so that the tests hold on a busy machine too.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from closeness import close

from workbench.backends import ray_cluster, run_jobs
from workbench.sweeps.folder import SPEC as SPEC_FILE
from workbench.sweeps.lock import LOCK
from workbench.sweeps.log import LOG, last_tries, read_log
from workbench.sweeps.runner import run_sweep

# One group: tests that kill processes and start Ray run one after the other, beside all others.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kills")]
TESTS = Path(__file__).parents[1]
SPEC = {
    "preset": "head-ablation",
    "sites": ["z", "attn_out", "mlp_out"],
    "tasks": ["ioi"],
    "n": 4,
    "values": ["zero", "constant:0.5"],
}
SPEC |= {"seeds": [0, 1, 2, 3, 4]}
JOBS = 2 * 5 * (32 + 4 + 4)
SCRIPT = """
from workbench.sweeps import pool, runner
runner.BATCH = 8
pool.PATIENCE = 5.0
if __name__ == "__main__":
    runner.run_sweep({spec!r}, out={out!r}, progress=False, device="cpu", **{options!r})
"""


def started(out: Path, stderr=None, **options) -> subprocess.Popen:
    text = SCRIPT.format(spec=SPEC, out=str(out), options=options)
    return subprocess.Popen(
        [sys.executable, "-c", text],
        start_new_session=True,
        stderr=stderr,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def actors_below(pid: int) -> list[psutil.Process]:
    """The processes of Ray actors that a process or its children started."""
    actors = []
    for process in psutil.Process(pid).children(recursive=True):
        # A process may end between being listed and being asked.
        with suppress(psutil.NoSuchProcess):
            if any("_Actor" in argument for argument in process.cmdline()):
                actors.append(process)
    return actors


def actors_on(node) -> list[psutil.Process]:
    """Those on a node of a `ray.cluster_utils.Cluster`."""
    return actors_below(node.all_processes["raylet"][0].process.pid)


# Seconds after which a runner hangs: far more than it needs on one busy core.
HANGS = 900


def wait_for_lines(runner: subprocess.Popen, out: Path, lines: int) -> None:
    """Wait until the log of a runner has so many lines."""
    while len(read_log(out)) < lines:
        assert runner.poll() is None, "the runner ended before it wrote that many lines"
        time.sleep(0.02)


def kill_at(runner: subprocess.Popen, state: Callable[[], bool]) -> None:
    """Kill a runner and its workers as soon as a state is reached, or let it end before."""
    while runner.poll() is None and not state():
        time.sleep(0.002)
    with suppress(ProcessLookupError):
        os.killpg(runner.pid, signal.SIGKILL)
    runner.wait()


def content(out: Path) -> dict[str, list]:
    return {row["job"]: row["values"] for row in last_tries(read_log(out))}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Runners and their workers find the package and the modules of these tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]), prepend=os.pathsep)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, list]:
    """What an undisturbed sweep finds."""
    out = tmp_path_factory.mktemp("plain")
    run_sweep(SPEC, out=out, progress=False, device="cpu")
    assert len(read_log(out)) == JOBS
    return content(out)


def same(a: dict[str, list], b: dict[str, list]) -> bool:
    """Whether two sweeps have the same jobs with the same effects, which are differences of a metric of about 10."""
    return a.keys() == b.keys() and all(close(a[key], b[key], tolerance=1e-5, scale=10.0) for key in a)


def test_a_runner_killed_twenty_times_loses_and_repeats_nothing(plain, tmp_path):
    """Killed at its lock, at its spec, and after 1 to 16 more lines; at times the last line was torn too."""
    out, rng = tmp_path / "a", random.Random(0)
    log = out / LOG
    for kill in range(20):
        n_lines = len(read_log(out)) + rng.randrange(1, 17)
        states = {
            0: (out / LOCK).exists,
            1: (out / SPEC_FILE).exists,
            2: lambda n_lines=n_lines: len(read_log(out)) >= n_lines,
        }
        kill_at(started(out), states[min(kill % 5, 2)])
        if rng.random() < 0.3 and log.exists() and log.stat().st_size:
            os.truncate(log, log.stat().st_size - rng.randrange(1, 60))
    run_sweep(SPEC, out=out, progress=False, device="cpu")
    assert len(read_log(tmp_path / "a")) == JOBS
    assert same(content(tmp_path / "a"), plain)


def test_ctrl_c_ends_cleanly_and_the_sweep_goes_on(plain, tmp_path):
    runner = started(tmp_path / "a")
    wait_for_lines(runner, tmp_path / "a", 24)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(HANGS) != 0
    assert not (tmp_path / "a" / "sweep.lock").exists()
    run_sweep(SPEC, out=tmp_path / "a", progress=False, device="cpu")
    assert len(read_log(tmp_path / "a")) == JOBS
    assert same(content(tmp_path / "a"), plain)


def test_worker_processes_give_the_same_rows_and_may_be_killed(plain, tmp_path):
    runner = started(tmp_path / "a", workers=2)
    wait_for_lines(runner, tmp_path / "a", 16)
    workers = [p for p in psutil.Process(runner.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    assert runner.wait(HANGS) == 0
    assert len(read_log(tmp_path / "a")) == JOBS
    assert same(content(tmp_path / "a"), plain)


def test_a_job_that_kills_its_worker_is_found_and_the_rest_goes_on(tmp_path):
    spec = {"preset": "head-ablation", "tasks": ["ioi"], "n": 3, "sites": ["z[1.1]", "z[3.7]"]}
    spec |= {"metrics": ["sweeps.bad_metrics:kills", "logit_diff"]}
    run_sweep(spec, out=tmp_path, progress=False, workers=2, retries=0, device="cpu")
    rows = read_log(tmp_path)
    assert [row["status"] for row in rows if row["metric"] == "logit_diff"] == ["done", "done"]
    killed = [row for row in rows if row["metric"] != "logit_diff"]
    assert {row["status"] for row in killed} == {"failed"}
    assert all("worker process was killed" in row["error"] for row in killed)


def test_ray_gives_the_same_rows_and_its_actors_may_be_killed(plain, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    runner = started(tmp_path / "a", backend="ray", workers=2)
    killed = 0
    while runner.poll() is None and killed < 3:
        n = len(read_log(tmp_path / "a"))
        if n >= 40 * (killed + 1) and (actors := actors_below(runner.pid)):
            actors[killed % len(actors)].kill()
            killed += 1
        time.sleep(0.05)
    assert runner.wait(HANGS) == 0
    assert killed == 3
    assert len(read_log(tmp_path / "a")) == JOBS
    assert same(content(tmp_path / "a"), plain)
    assert json.loads((tmp_path / "a" / "spec.json").read_text())["jobs"] == JOBS


@contextmanager
def ray_machines(head: int, workers: int):
    """A Ray cluster of a head with so many CPUs and so many workers with one each."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, "include_dashboard": False})
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(params=[1, 0], ids=["a machine to spare", "none to spare"])
def cluster(request):
    with ray_machines(request.param, 2) as machines:
        yield machines


@pytest.fixture
def cluster_of_none():
    with ray_machines(0, 0) as machines:
        yield machines


def test_a_machine_of_a_ray_cluster_and_then_an_actor_on_another_may_be_lost(plain, tmp_path, cluster):
    runner = started(tmp_path / "a", backend="ray", workers=2, address=cluster.address)
    wait_for_lines(runner, tmp_path / "a", 40)
    cluster.remove_node(next(node for node in cluster.worker_nodes if actors_on(node)), allow_graceful=False)
    wait_for_lines(runner, tmp_path / "a", 120)
    actors_below(os.getpid())[0].kill()
    assert runner.wait(HANGS) == 0
    rows = read_log(tmp_path / "a")
    assert len(rows) == JOBS
    assert {(row["status"], row["try"]) for row in rows} == {("done", 1)}, "no job is blamed for a machine"
    assert same(content(tmp_path / "a"), plain)


def test_a_cluster_that_happens_to_run_here_is_joined_only_when_it_is_named(cluster_of_none, monkeypatch):
    """Ray by itself joins any: this one has no machine, so the job would wait for ever."""
    assert list(run_jobs(os.path.join, [("a", "b")], workers=1, backend="ray")) == ["a/b"]
    monkeypatch.setenv("RAY_ADDRESS", cluster_of_none.address)
    with ray_cluster(1) as ray:
        assert ray.get_runtime_context().gcs_address == cluster_of_none.address


def test_a_cluster_without_a_machine_is_said_to_be_awaited(plain, tmp_path, cluster_of_none):
    """One that joins later runs the sweep."""
    messages = tmp_path / "messages"
    with open(messages, "w") as stderr:
        runner = started(
            tmp_path / "a", stderr=stderr, backend="ray", workers=1, address=cluster_of_none.address
        )
    while "No Ray actor has been there for 5 s: the sweep waits for 1," not in messages.read_text():
        assert runner.poll() is None, messages.read_text()
        time.sleep(0.2)
    cluster_of_none.add_node(num_cpus=1)
    assert runner.wait(HANGS) == 0
    assert same(content(tmp_path / "a"), plain)
