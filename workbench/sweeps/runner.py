"""`run_sweep`: every job of a spec is run once, even if the process is killed and started again.

The runner plans the jobs, leaves out those whose row says `done`, hands the rest to a pool and writes what
comes back. It does not know what a job measures.
"""

import math
import shlex
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.arguments import checked
from workbench.errors import SweepError
from workbench.files import whole
from workbench.models.calls import model_call
from workbench.progress import progress_bar, write_line
from workbench.results import versions
from workbench.sweeps.execute import SEPARATE, run_jobs, unmeasured
from workbench.sweeps.folder import SPEC, TABLE, begin, claim, read_header
from workbench.sweeps.inputs import JobInputs, JobSetting
from workbench.sweeps.interrupts import interrupts_kept
from workbench.sweeps.jobs import Job, SweepPlan, plan
from workbench.sweeps.lock import locked
from workbench.sweeps.log import FLAGS, MEASURED, Log, LogRow, last_tries, read_log
from workbench.sweeps.pool import BatchResult, Died, JobBatch, Pool, pool
from workbench.sweeps.spec import FileFields, SweepSpec, read_spec
from workbench.sweeps.table import Sweep, load_sweep
from workbench.sweeps.trust import check_trusted, code_files
from workbench.text import spelled

# At most this many jobs make a batch. A killed run loses one batch; each batch costs an fsync and an engine
# walk.
BATCH = 1024


TRIED = 8
"""Jobs of a batch whose seconds a dry run takes."""


@dataclass(frozen=True)
class SweepCost:
    """What a sweep would do.

    Attributes:
        jobs, done: how many there are, and how many of them are done in the folder.
        settings: ("model · task · seed · metric · value", jobs left), for each setting.
        untrusted: (metric, file of its code) for each metric that is code named by a file. It is not
            imported, so that its jobs cannot be counted.
        seconds: of the jobs left, estimated from a batch of each study, model and task that is tried; NaN
            where the batch failed.
    """

    jobs: int
    done: int
    settings: tuple[tuple[str, int], ...]
    untrusted: tuple[tuple[str, str], ...] = ()
    seconds: float = math.nan

    def __str__(self) -> str:
        took = (
            "" if math.isnan(self.seconds) else f"; about {self.seconds:,.0f} s on this machine as it is now"
        )
        lines = [f"{self.jobs:,} jobs, {self.done:,} done, {self.jobs - self.done:,} left{took}"]
        lines += [f"{left:8,}  {spelled(name)}" for name, left in self.settings]
        for metric, file in self.untrusted:
            lines.append(f"       ?  the metric {metric!r}, code of {file}: not trusted, cost unknown")
        return "\n".join(lines)


@checked
@model_call()
def run_sweep(
    spec: SweepSpec | Mapping[str, Any] | str | Path,
    *,
    out: str | Path,
    backend: Literal["local", "ray"] | str = "local",
    workers: int = 1,
    limit: int | None = None,
    dry_run: bool = False,
    extend: bool = False,
    retries: int = 1,
    device: str | None = None,
    address: str | None = None,
    on_row: Callable[[LogRow], None] | None = None,
    command: str | None = None,
    trust: bool | None = None,
    progress: bool = True,
) -> Sweep | SweepCost:
    """Run the jobs that are not done: not run yet, failed, or without a number. Returns the folder's results.

    Jobs that share a model, prompts, value and metric run together in one walk of the engine. Each batch is
    on the disk before the next begins: stopped at any moment, by Ctrl-C or by force, the same call resumes. A
    job that fails is recorded with its traceback, and the others still run.

    Args:
        spec: a `SweepSpec`, its fields, or a YAML file.
        out: the sweep's folder.
        backend: "local", or "ray" (pip install 'interp-workbench[ray]').
        workers: processes, or actors.
        address: of a Ray cluster.
        limit: run at most this many jobs in this call.
        dry_run: return a `SweepCost`: what there is to do; nothing is written.
        extend: add the jobs of another spec to a folder.
        retries: how often a job that failed, in this run or in an earlier one, is tried again by this call.
        on_row: called with each row once it is on the disk, for example to send it to an experiment tracker. A row is
            a dict: `status` ("done", ...), `what` (the site), `values` and `m_base` (by example), `seconds`, and the
            setting. What it raises is told and stops nothing.
        command: what runs the sweep, for its report; by default the command line of the script, or "Python"
            where there is none.
        trust: run code that the spec names, as in `metrics: ["mine:my_metric"]`. None runs it where the spec
            was written in Python, and refuses it where the spec is a file, or was read from a sweep's folder.
            It is not remembered.

    Raises:
        SweepError: the folder holds another sweep, another process runs it, the spec does not fit, or a file
            names code that is not trusted.
        OutputExists: the folder holds other things than a sweep.
        UnknownName: an unknown model, task, metric, method, kind or position in the spec.

    >>> import tempfile
    >>> spec = {"preset": "head-ablation", "tasks": ["ioi"], "n": 4}
    >>> run_sweep(spec, out=tempfile.mkdtemp(), progress=False).rows.shape[0]
    32
    """
    requested, folder = read_spec(spec), Path(out)
    if limit is not None and limit < 1:
        raise SweepError(f"limit={limit!r}: at least one job is needed; leave it out for all of them.")
    if retries < 0:
        raise SweepError(f"retries={retries}: 0 for none, or a number of further tries.")
    inputs = JobInputs(device, requested.bos)
    may_run = trust is True or (trust is None and not isinstance(spec, str | Path | FileFields))
    if dry_run:
        untrusted = {} if may_run else code_files(requested.metrics)
        return _cost(
            _plan_without(untrusted, requested, inputs), inputs, _known_rows(folder), untrusted, workers
        )
    check_trusted(requested.metrics, trust=may_run)
    planned = plan(requested, inputs)
    facts = {
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": versions(),
        "command": command or _script(),
    }
    with ExitStack() as stack:
        claim(folder)
        lock = stack.enter_context(locked(folder))
        known = _known_rows(folder)
        _check_same_keys(folder, planned, known)
        if extend:
            _check_nothing_left_behind(folder, requested, planned, known, inputs, trust=trust is True)
        n_jobs = len(_keys(planned) | set(known))
        lock.check()  # what comes now changes the folder, and looking at it may have taken long
        begin(folder, requested, {"jobs": n_jobs, **facts}, extend=extend)
        log = Log(folder, lock.check)
        todo = [job for job in planned.jobs if known.get(job.key, {"status": ""})["status"] != "done"][:limit]
        if todo:
            bar = stack.enter_context(progress_bar(len(todo), "sweep", "job", shown=progress))
            workforce = stack.enter_context(pool(backend, workers, inputs, address=address))
            raise_lost_interrupt = stack.enter_context(interrupts_kept())

            def after_batch(rows: Sequence[LogRow]) -> None:
                if on_row is not None:
                    for row in rows:
                        _report(on_row, row)
                raise_lost_interrupt()

            _run(todo, workforce, log, workers=workers, retries=retries, after_batch=after_batch, bar=bar)
        sweep = load_sweep(folder)
        if not sweep.status().remaining:
            lock.check()
            with whole(folder / TABLE) as partial:
                sweep.rows.to_parquet(partial)
    return sweep


def _run(
    jobs: Sequence[Job],
    workforce: Pool,
    log: Log,
    *,
    workers: int,
    retries: int,
    after_batch: Callable[[Sequence[LogRow]], None],
    bar: Any,
) -> None:
    """Run the jobs and log a row for every try, until each has been measured or has used up its tries.

    Args:
        after_batch: is called with a batch's rows once they are on the disk.
    """
    tries: Counter[str] = Counter()
    batches = _batches(jobs, workers)
    while batches:
        next_batches: list[JobBatch] = []
        for result in workforce.results(batches):
            batch = result.batch
            if isinstance(result.rows, Died) and len(batch) > 1:
                # One job of the batch may have killed the worker, and none of them is blamed: halves show
                # which it was.
                middle = len(batch) // 2
                next_batches += [batch[:middle], batch[middle:]]
                continue
            rows = _rows(result)
            failed: list[JobBatch] = []
            for job, row in zip(batch, rows, strict=True):
                tries[job.key] += 1
                row["try"] = tries[job.key]
                if row["status"] != "done" and tries[job.key] <= retries:
                    failed.append([job])
            log.append(rows)
            next_batches += failed
            bar.update(len(batch) - len(failed))
            after_batch(rows)
        batches = next_batches


def _rows(result: BatchResult) -> list[LogRow]:
    if isinstance(result.rows, Died):
        return [unmeasured(job, "failed", str(result.rows)) for job in result.batch]
    return result.rows


def _script() -> str:
    """The command line of the script that runs; a notebook or a prompt has none."""
    if not hasattr(sys.modules["__main__"], "__file__"):
        return "Python"
    return shlex.join(["python", *sys.argv])


def _known_rows(folder: Path) -> dict[str, LogRow]:
    """The row that counts of each job that has ended, by the job's key."""
    return {row["job"]: row for row in last_tries(read_log(folder))}


def _keys(planned: SweepPlan) -> set[str]:
    """The keys of all planned jobs."""
    return {job.key for job in planned.jobs}


def _check_same_keys(folder: Path, planned: SweepPlan, known: Mapping[str, LogRow]) -> None:
    """Raise where the folder holds a planned job under another key: the table would mix two results."""
    keys: dict[tuple[Any, ...], str] = {}
    for job in planned.jobs:
        keys[(*asdict(job.setting).values(), job.what)] = job.key
    stale = [row for key, row in known.items() if keys.get(tuple(map(row.get, FLAGS)), key) != key]
    if stale:
        raise SweepError(
            f"{str(folder)!r} holds rows of {len(stale)} of these jobs, such as {stale[0].get('what')}, "
            "computed with other weights, prompts, metric code, circuits or versions. Choose another folder."
        )


def _check_nothing_left_behind(
    folder: Path,
    requested: SweepSpec,
    planned: SweepPlan,
    known: Mapping[str, LogRow],
    inputs: JobInputs,
    *,
    trust: bool,
) -> None:
    """Raise where jobs of the folder's spec have not run and the spec that replaces it does not list them."""
    if not (folder / SPEC).exists():
        return
    before = read_spec(read_header(folder)["spec"])
    if before == requested:
        return
    if before.bos != requested.bos:
        # Rows do not say it, so means over them would mix both.
        raise SweepError(
            f"The sweep in {str(folder)!r} has bos={before.bos}, and the new spec bos={requested.bos}: prompts with "
            "and without BOS cannot be told apart in one table. Choose another folder."
        )
    # Planning imports the code of the metrics that the folder's file names and this call does not.
    check_trusted(set(before.metrics) - set(requested.metrics), trust=trust)
    left = _keys(plan(before, inputs)) - _keys(planned) - set(known)
    if left:
        raise SweepError(
            f"{len(left)} jobs of the sweep in {str(folder)!r} have not run, and the new spec does not "
            "list them. Run them first (`workbench sweep resume`), or list them too."
        )


def _batches(jobs: Sequence[Job], workers: int) -> list[JobBatch]:
    """Jobs of one setting together, in pieces that every worker gets some of; separate ones one by one."""
    # Rounded up, so that no worker is left without jobs while another has a batch more.
    size = max(1, min(BATCH, -(-len(jobs) // workers)))
    groups: dict[JobSetting, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.setting, []).append(job)
    batches: list[JobBatch] = []
    for setting, group in groups.items():
        step = size
        if setting.study in SEPARATE:
            step = 1  # these jobs share nothing, and each is long enough to keep a worker busy
        batches += [group[start : start + step] for start in range(0, len(group), step)]
    return batches


def _report(on_row: Callable[[LogRow], None], row: LogRow) -> None:
    """Hand a row to a tracker. One that fails does not stop the sweep; its traceback is printed."""
    try:
        on_row(row)
    except Exception:
        lines = ["on_row failed:", *traceback.format_exc().splitlines()]
        write_line("\n".join(map(spelled, lines)))


def _plan_without(untrusted: Collection[str], requested: SweepSpec, inputs: JobInputs) -> SweepPlan:
    """The plan without the metrics whose code is not trusted."""
    trusted = tuple(metric for metric in requested.metrics if metric not in untrusted)
    # An empty list of metrics would stand for the task's own.
    if untrusted and not trusted:
        return SweepPlan(requested, ())
    return plan(requested.model_copy(update={"metrics": trusted}), inputs)


def _cost(
    planned: SweepPlan,
    inputs: JobInputs,
    known: Mapping[str, LogRow],
    untrusted: Mapping[str, str],
    workers: int,
) -> SweepCost:
    done = {key for key, row in known.items() if row["status"] == "done"}
    settings: list[tuple[str, int]] = []
    seconds, tried = 0.0, {}
    for setting, jobs in planned.groups:
        facts = (setting.model_name, setting.task, f"seed {setting.seed}", setting.metric, setting.value)
        left = [job for job in jobs if job.key not in done]
        settings.append((" · ".join(facts), len(left)))
        # Metrics, values and seeds of one study, model and task cost about the same.
        kind = (setting.study, setting.model_name, setting.task)
        if left and kind not in tried:
            tried[kind] = _seconds_per_job(inputs, left)
        if left:
            seconds += len(left) * tried[kind] / max(1, workers)  # fewer than one is refused when it runs
    n_done = sum(job.key in done for job in planned.jobs)
    return SweepCost(len(planned), n_done, tuple(settings), tuple(untrusted.items()), seconds)


def _seconds_per_job(inputs: JobInputs, jobs: Sequence[Job]) -> float:
    """The seconds of a job, from a batch of a few that is run and not written; NaN where it fails."""
    few = jobs[:TRIED]
    if jobs[0].setting.study in SEPARATE:
        few = jobs[:1]
    else:
        run_jobs(
            inputs, few[:1]
        )  # what is done once for all, such as the capture of activations, comes first
    rows = run_jobs(inputs, few)
    if any(row["status"] not in MEASURED for row in rows):
        return math.nan
    return sum(row["seconds"] for row in rows) / len(rows)
