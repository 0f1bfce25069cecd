"""Where jobs run: in processes of this machine, or as Ray tasks.

Read `run_jobs`. It knows nothing of what a job does: jobs are functions of modules and their arguments.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from workbench.errors import UnknownName, WorkbenchError

BACKENDS = ("local", "ray")


def run_jobs(
    function: Callable[..., Any], jobs: Sequence[Sequence[Any]], *, workers: int, backend: str = "local"
) -> Iterator[Any]:
    """The result of `function(*job)` for every job, in the order in which the jobs finish.

    The function, the jobs and the results must be picklable.

    Args:
        workers: processes of this machine, or tasks that run at the same time.
        backend: "local" or "ray" (pip install 'interp-workbench[ray]').

    Raises:
        UnknownName: no such backend.
        WorkbenchError: Ray is not installed; a worker died. Errors of a job come through.
    """
    check_backend(backend, workers)
    yield from (_local if backend == "local" else _ray)(function, jobs, workers)


def check_backend(backend: str, workers: int) -> None:
    """Raise where there is no such backend, or no such number of workers."""
    if backend not in BACKENDS:
        raise UnknownName("backend", backend, BACKENDS)
    if workers < 1:
        raise WorkbenchError(f"workers={workers}: at least one is needed.")


def _local(function: Callable[..., Any], jobs: Sequence[Sequence[Any]], workers: int) -> Iterator[Any]:
    # Spawned, not forked: a fork of a process whose threads hold locks can hang.
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        with script_unseen():
            futures = [pool.submit(function, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise WorkbenchError(
                "A worker process died (killed, or out of memory). What was finished is kept; start again."
            ) from error
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def script_unseen() -> Iterator[None]:
    """Within it, processes that are started do not run the user's script again.

    They would look for functions in `__main__`; jobs are functions of modules and do not need it.
    """
    main = sys.modules["__main__"].__dict__
    kept = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(kept)


@contextmanager
def ray_cluster(workers: int, *, address: str | None = None) -> Iterator[Any]:
    """The module `ray`, connected to a cluster.

    Where it is connected already, that cluster is used; else the one at `address` or in the environment
    variable RAY_ADDRESS; else one is started, and shut down afterwards.

    Raises:
        WorkbenchError: Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise WorkbenchError("backend='ray' needs Ray: pip install 'interp-workbench[ray]'.") from error
    owns_cluster = not ray.is_initialized()
    if owns_cluster:
        # Ray would hide every GPU from tasks that ask for none.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        start: dict[str, Any] = {"address": address or os.environ.get("RAY_ADDRESS")}
        if not start["address"]:
            # "local", because without an address Ray joins any cluster that this machine happens to run.
            start = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, configure_logging=False, **start)
    try:
        yield ray
    finally:
        if owns_cluster:
            ray.shutdown()


def _ray(function: Callable[..., Any], jobs: Sequence[Sequence[Any]], workers: int) -> Iterator[Any]:
    with ray_cluster(workers) as ray:
        remote = ray.remote(num_cpus=1, max_retries=0)(function)
        waiting = [remote.remote(*job) for job in jobs]
        while waiting:
            done, waiting = ray.wait(waiting)
            try:
                yield from ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, WorkbenchError) else error from error
