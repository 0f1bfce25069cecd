"""Who runs the batches of a sweep: this process, processes beside it, or Ray actors. A worker that dies costs its batch a try."""

import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Protocol

from workbench.backends import check_backend, ray_cluster, script_unseen
from workbench.errors import WorkbenchError
from workbench.sweeps.execute import LogRow, run_jobs
from workbench.sweeps.jobs import Job, JobInputs

JobBatch = Sequence[Job]
PATIENCE = 60.0
"""Seconds without any Ray actor after which a warning says so."""
_lab: JobInputs | None = None


class Died(Exception):
    """A worker was gone before its batch was done."""


class Pool(Protocol):
    """Runs batches; `results` yields each with its rows, or with the reason why there are none."""

    def results(self, batches: Sequence[JobBatch]) -> Iterator[tuple[JobBatch, list[LogRow] | Died]]: ...


@contextmanager
def pool(backend: str, workers: int, lab: JobInputs, *, address: str | None = None) -> Iterator[Pool]:
    """The workers of a sweep, gone at the end.

    Args:
        lab: of this process, which with one local worker runs everything.
        address: of a Ray cluster; None starts one here, or takes what `ray.init` was told before.
    """
    check_backend(backend, workers)
    if backend == "ray":
        with ray_cluster(workers, address=address) as ray:
            yield _Actors(ray, workers, lab.device)
    elif workers == 1:
        yield _Here(lab)
    else:
        made = _Processes(workers, lab.device)
        try:
            yield made
        finally:
            made.close()


class _Here:
    def __init__(self, lab: JobInputs) -> None:
        self.lab = lab

    def results(self, batches: Sequence[JobBatch]) -> Iterator[tuple[JobBatch, list[LogRow] | Died]]:
        for batch in batches:
            yield batch, run_jobs(self.lab, batch)


def _start(device: str | None) -> None:
    """In a worker: a lab of its own, and one thread, since workers share the machine."""
    global _lab
    import torch

    torch.set_num_threads(1)
    _lab = JobInputs(device)


def _run(batch: JobBatch) -> list[LogRow]:
    assert _lab is not None
    return run_jobs(_lab, batch)


class _Processes:
    """Pools of one process each, so that one that dies takes no other with it."""

    def __init__(self, workers: int, device: str | None) -> None:
        self.device = device
        with script_unseen():
            self.idle = [self._new() for _ in range(workers)]
        self.all = list(self.idle)

    def _new(self) -> ProcessPoolExecutor:
        # started anew and not forked: a fork of a process whose threads hold locks can hang
        return ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_start, initargs=(self.device,)
        )

    def results(self, batches: Sequence[JobBatch]) -> Iterator[tuple[JobBatch, list[LogRow] | Died]]:
        waiting, running = (
            list(reversed(batches)),
            dict[Future[list[LogRow]], tuple[ProcessPoolExecutor, JobBatch]](),
        )
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
                    worker.shutdown(wait=False)
                    self.all.remove(worker)
                    worker = self._new()
                    self.all.append(worker)
                    rows = Died("The worker process was killed, or ran out of memory.")
                self.idle.append(worker)
                yield batch, rows

    def close(self) -> None:
        for worker in self.all:
            for process in list((worker._processes or {}).values()):  # pyright: ignore[reportPrivateUsage]
                process.terminate()
            worker.shutdown(wait=False, cancel_futures=True)


class _Actor:
    """Holds models and stores on a worker of the cluster."""

    def __init__(self, device: str | None) -> None:
        _start(device)

    def ready(self) -> None:
        """Returns once there is a process that takes batches."""

    def run(self, batch: JobBatch) -> list[LogRow]:
        return _run(batch)


class _Actors:
    """Ray actors; one that dies, or whose machine does, is made anew by Ray, elsewhere if need be.

    Only one that has said that it is there is given a batch: Ray may take half a minute to see that a machine is gone, and an actor
    for which no machine is left waits for one.
    """

    def __init__(self, ray: Any, workers: int, device: str | None) -> None:
        self.ray = ray
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 and device in (None, "cuda") else 0
        made = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=0)(_Actor)
        self.idle, self.starting = [], dict[Any, Any]()
        for _ in range(workers):
            self._await(made.remote(device))

    def _await(self, actor: Any) -> None:
        self.starting[actor.ready.options(max_task_retries=-1).remote()] = actor

    def _started(self, ready: Any) -> Any:
        try:
            self.ray.get(ready)
        except self.ray.exceptions.RayActorError as error:
            why = str(error).strip().splitlines()[-1]
            raise WorkbenchError(
                f"A Ray actor cannot start: {why}. Every machine needs the same interp-workbench."
            ) from error
        return self.starting.pop(ready)

    def _next(self, running: Collection[Any]) -> Any:
        """The first that is done: a batch, or an actor's start."""
        while True:
            done, _ = self.ray.wait([*running, *self.starting], timeout=PATIENCE)
            if done:
                return done[0]
            if not running:
                have = self.ray.cluster_resources().get("CPU", 0)
                warnings.warn(
                    f"No Ray actor has been there for {PATIENCE:.0f} s: the sweep waits for {len(self.starting)}, each with a CPU "
                    f"(and a GPU if there is one), and the cluster has {have:g} CPUs, others' work included. Add a machine, or "
                    "stop with Ctrl-C: what is done is kept.",
                    stacklevel=2,
                )

    def results(self, batches: Sequence[JobBatch]) -> Iterator[tuple[JobBatch, list[LogRow] | Died]]:
        waiting, running = list(reversed(batches)), {}
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
            yield batch, rows
