"""Who runs the batches of a sweep: this process, processes beside it, or Ray actors (`pool`).

A worker that dies gives its batch back as `Died` instead of rows; what to do about it is the runner's choice.
"""

import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Protocol

from workbench.backends import check_backend, ray_cluster, script_unseen
from workbench.errors import WorkbenchError
from workbench.sweeps.execute import run_jobs
from workbench.sweeps.inputs import JobInputs
from workbench.sweeps.jobs import Job
from workbench.sweeps.log import LogRow

JobBatch = Sequence[Job]
PATIENCE = 60.0
"""Seconds without any Ray actor after which a warning says so."""
# Set once in each worker process, so that jobs need not carry what they share; None in the runner's.
_inputs: JobInputs | None = None


class Died(Exception):
    """A worker ended before its batch was done."""


@dataclass(frozen=True)
class BatchResult:
    """A batch with the rows of its jobs, or with the reason why there are none."""

    batch: JobBatch
    rows: list[LogRow] | Died


class Pool(Protocol):
    """Runs batches."""

    def results(self, batches: Sequence[JobBatch]) -> Iterator[BatchResult]:
        """The result of each batch, in the order in which they are done."""
        ...


@contextmanager
def pool(backend: str, workers: int, inputs: JobInputs, *, address: str | None = None) -> Iterator[Pool]:
    """The workers of a sweep, gone at the end.

    Args:
        inputs: of this process, which with one local worker runs everything.
        address: of a Ray cluster; None takes the one that `ray.init` has connected to, or the one in
            RAY_ADDRESS, or starts one here.

    Raises:
        UnknownName: no such backend.
        WorkbenchError: Ray is not installed or an actor cannot start, or `workers` is not a number from 1 up.
    """
    check_backend(backend, workers)
    if backend == "ray":
        with ray_cluster(workers, address=address) as ray:
            yield _Actors(ray, workers, inputs)
    elif workers == 1:
        yield _SameProcess(inputs)
    else:
        processes = _Processes(workers, inputs)
        try:
            yield processes
        finally:
            processes.close()


class _SameProcess:
    def __init__(self, inputs: JobInputs) -> None:
        self.inputs = inputs

    def results(self, batches: Sequence[JobBatch]) -> Iterator[BatchResult]:
        """The result of each batch, in the order in which they are done."""
        for batch in batches:
            yield BatchResult(batch, run_jobs(self.inputs, batch))


def _start(device: str | None, bos: bool | None) -> None:
    """In a worker: inputs of its own, and one thread, since workers share the machine."""
    global _inputs
    import torch

    torch.set_num_threads(1)
    _inputs = JobInputs(device, bos)


def _run(batch: JobBatch) -> list[LogRow]:
    assert _inputs is not None
    return run_jobs(_inputs, batch)


class _Processes:
    """Pools of one process each, so that one that dies takes no other with it."""

    def __init__(self, workers: int, inputs: JobInputs) -> None:
        self.inputs = inputs
        with script_unseen():
            self.idle = [self._new() for _ in range(workers)]
        self.all = list(self.idle)

    def _new(self) -> ProcessPoolExecutor:
        # Spawned and not forked: a fork of a process whose threads hold locks can hang.
        return ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),
            initializer=_start,
            initargs=(self.inputs.device, self.inputs.bos),
        )

    def results(self, batches: Sequence[JobBatch]) -> Iterator[BatchResult]:
        """The result of each batch, in the order in which they are done."""
        waiting = list(reversed(batches))
        running: dict[Future[list[LogRow]], tuple[ProcessPoolExecutor, JobBatch]] = {}
        while waiting or running:
            while waiting and self.idle:
                worker, batch = self.idle.pop(), waiting.pop()
                with script_unseen():
                    running[worker.submit(_run, batch)] = worker, batch
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                worker, batch = running.pop(future)
                try:
                    rows: list[LogRow] | Died = future.result()
                except BrokenProcessPool:
                    worker = self._replaced(worker)
                    rows = Died("The worker process was killed, or ran out of memory.")
                # Marked idle before the result is yielded: the caller may stop iterating there.
                self.idle.append(worker)
                yield BatchResult(batch, rows)

    def _replaced(self, worker: ProcessPoolExecutor) -> ProcessPoolExecutor:
        worker.shutdown(wait=False)
        self.all.remove(worker)
        self.all.append(self._new())
        return self.all[-1]

    def close(self) -> None:
        """End every process at once: a batch that still runs is run again by the next call."""
        for worker in self.all:
            for process in list((worker._processes or {}).values()):  # pyright: ignore[reportPrivateUsage]
                process.terminate()
            worker.shutdown(wait=False, cancel_futures=True)


class _Actor:
    """Holds models and stores on a worker of the cluster. The name is what `ps` shows of its process."""

    def __init__(self, device: str | None, bos: bool | None) -> None:
        _start(device, bos)

    def ready(self) -> None:
        """Returns once there is a process that takes batches."""

    def run(self, batch: JobBatch) -> list[LogRow]:
        """The rows of a batch."""
        return _run(batch)


class _Actors:
    """Ray actors. Ray restarts an actor that dies or whose machine is lost, on another machine if it must.

    A batch goes only to an actor that has answered: Ray may take half a minute to see that a machine is gone,
    and an actor for which no machine is left waits for one.
    """

    def __init__(self, ray: Any, workers: int, inputs: JobInputs) -> None:
        self.ray = ray
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 and inputs.device in (None, "cuda") else 0
        # The actor is restarted without end, but a batch is never repeated by Ray: the runner must hear that
        # it was lost.
        actor_class = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=0)(_Actor)
        self.idle: list[Any] = []
        self.starting: dict[Any, Any] = {}
        for _ in range(workers):
            self._await(actor_class.remote(inputs.device, inputs.bos))

    def _await(self, actor: Any) -> None:
        # This call alone is repeated through restarts, so that it returns when the actor is back.
        self.starting[actor.ready.options(max_task_retries=-1).remote()] = actor

    def _started(self, ready: Any) -> Any:
        """The actor that has answered."""
        try:
            self.ray.get(ready)
        except self.ray.exceptions.RayActorError as error:
            reason = str(error).strip().splitlines()[-1]
            raise WorkbenchError(
                f"A Ray actor cannot start: {reason}. Every machine needs the same interp-workbench."
            ) from error
        return self.starting.pop(ready)

    def _next(self, running: Collection[Any]) -> Any:
        """The first that is done: a batch, or an actor's start."""
        while True:
            done, _ = self.ray.wait([*running, *self.starting], timeout=PATIENCE)
            if done:
                return done[0]
            if not running:
                self._warn_of_waiting()

    def _warn_of_waiting(self) -> None:
        n_cpus = self.ray.cluster_resources().get("CPU", 0)
        warnings.warn(
            f"No Ray actor has been there for {PATIENCE:.0f} s: the sweep waits for {len(self.starting)}, "
            f"each with a CPU (and a GPU if there is one), and the cluster has {n_cpus:g} CPUs, others' work "
            "included. Add a machine, or stop with Ctrl-C: what is done is kept.",
            stacklevel=2,
        )

    def results(self, batches: Sequence[JobBatch]) -> Iterator[BatchResult]:
        """The result of each batch, in the order in which they are done."""
        waiting = list(reversed(batches))
        running: dict[Any, tuple[Any, JobBatch]] = {}
        lost = (self.ray.exceptions.RayActorError, self.ray.exceptions.ObjectLostError)
        while waiting or running:
            while waiting and self.idle:
                actor, batch = self.idle.pop(), waiting.pop()
                running[actor.run.remote(batch)] = actor, batch
            done = self._next(running)
            if done in self.starting:
                self.idle.append(self._started(done))
                continue
            actor, batch = running.pop(done)
            try:
                rows: list[LogRow] | Died = self.ray.get(done)
                self.idle.append(actor)
            except lost as error:
                rows = Died(f"The Ray actor died: {str(error).splitlines()[0]}")
                self._await(actor)
            yield BatchResult(batch, rows)
