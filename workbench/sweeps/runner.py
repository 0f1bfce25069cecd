"""`run_sweep`: every job of a spec once, whatever happens on the way."""

import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from workbench.errors import SweepError
from workbench.files import whole
from workbench.models.load import one_fingerprint
from workbench.results import versions
from workbench.sweeps.execute import SEPARATE, LogRow, unmeasured
from workbench.sweeps.jobs import Job, JobInputs, SweepPlan, plan
from workbench.sweeps.log import (
    FLAGS,
    SPEC,
    TABLE,
    Log,
    begin,
    claim,
    last_tries,
    locked,
    read_header,
    read_log,
)
from workbench.sweeps.pool import Died, pool
from workbench.sweeps.spec import SweepSpec, read_spec
from workbench.sweeps.table import Sweep, load_sweep

BATCH = 1024


@dataclass(frozen=True)
class SweepCost:
    """What a sweep would do.

    Attributes:
        jobs, done: how many there are, and how many of them a folder holds already.
        settings: (model, task, seed, metric, value), jobs left.
    """

    jobs: int
    done: int
    settings: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        lines = [f"{self.jobs:,} jobs, {self.done:,} done, {self.jobs - self.done:,} left"]
        return "\n".join([*lines, *(f"{left:8,}  {name}" for name, left in self.settings)])


@one_fingerprint()
def run_sweep(
    spec: SweepSpec | Mapping[str, Any] | str | Path,
    *,
    out: str | Path,
    backend: str = "local",
    workers: int = 1,
    limit: int | None = None,
    dry_run: bool = False,
    extend: bool = False,
    retries: int = 1,
    device: str | None = None,
    address: str | None = None,
    on_row: Callable[[LogRow], None] | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Sweep | SweepCost:
    """Run the jobs of a sweep that its folder does not hold yet; the folder's results come back.

    Jobs that share a model, prompts, value and metric run together in one walk of the engine. Each batch is on the disk before
    the next begins: stopped at any moment, by Ctrl-C or by force, the same call goes on from there. A job that fails is
    recorded with its traceback, and the rest goes on.

    Args:
        spec: a `SweepSpec`, its fields, or a YAML file.
        out: the sweep's folder.
        backend: "local", or "ray" (pip install 'interp-workbench[ray]').  workers: processes, or actors.
        address: of a Ray cluster.
        limit: at most so many jobs now.
        dry_run: say what is to do, write nothing: a `SweepCost`.
        extend: add the jobs of another spec to a folder.
        retries: how often a job that failed, here or in an earlier run, is tried again by this call.
        on_row: is given each row as it comes, for a tracker of experiments.
        command: what makes the sweep, for its report; by default the script that runs, or "Python" where there is none.
    Raises:
        SweepError: the folder holds another sweep, another process runs it, or the spec does not fit.

    >>> import tempfile
    >>> spec = {"preset": "head-ablation", "tasks": ["ioi"], "n": 4}
    >>> run_sweep(spec, out=tempfile.mkdtemp(), progress=False).rows.shape[0]
    32
    """
    asked, folder = read_spec(spec), Path(out)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise SweepError(f"limit={limit!r}: at least one job is needed; leave it out for all of them.")
    if retries < 0:
        raise SweepError(f"retries={retries}: 0 for none, or a number of further tries.")
    lab = JobInputs(device)
    planned = plan(asked, lab)
    if dry_run:
        return _cost(planned, _known(folder))
    made = {
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": versions(),
        "command": command or _script(),
    }
    with ExitStack() as stack:
        claim(folder)
        stack.enter_context(locked(folder))
        known = _known(folder)
        _check_meaning(folder, planned, known)
        if extend:
            _check_left(folder, asked, planned, known, lab)
        begin(
            folder,
            asked,
            {"jobs": len({job.key for job in planned.jobs} | set(known)), **made},
            extend=extend,
        )
        log = Log(folder)
        left = [job for job in planned.jobs if known.get(job.key, {"status": ""})["status"] != "done"][:limit]
        tries = {job.key: 0 for job in left}
        bar = stack.enter_context(
            tqdm(total=len(left), desc="sweep", unit="job", disable=None if progress else True, leave=False)
        )
        crew = stack.enter_context(pool(backend, workers, lab, address=address)) if left else None
        todo = _batches(left, workers)
        while todo and crew is not None:
            again: list[Sequence[Job]] = []
            for batch, outcome in crew.results(todo):
                if isinstance(outcome, Died) and len(batch) > 1:  # halves show which job it was
                    again += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
                    continue
                rows = (
                    [unmeasured(job, "failed", str(outcome)) for job in batch]
                    if isinstance(outcome, Died)
                    else outcome
                )
                for row in rows:
                    tries[row["job"]] += 1
                    row["try"] = tries[row["job"]]
                log.append(rows)
                bad = [
                    [job]
                    for job, row in zip(batch, rows, strict=True)
                    if row["status"] != "done" and row["try"] <= retries
                ]
                again += bad
                bar.update(len(batch) - len(bad))
                for row in rows if on_row else ():
                    _told(on_row, row)
            todo = again
        sweep = load_sweep(folder)
        if not sweep.status().remaining:
            with whole(folder / TABLE) as partial:
                sweep.rows.to_parquet(partial)
    return sweep


def _script() -> str:
    """The command line of the script that runs; a notebook or a prompt has none."""
    return shlex.join(["python", *sys.argv]) if hasattr(sys.modules["__main__"], "__file__") else "Python"


def _known(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The line that counts of each job that has ended."""
    return {row["job"]: row for row in last_tries(read_log(folder))}


def _check_meaning(folder: Path, planned: SweepPlan, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise where the folder holds a planned job with another key: its rows would stand beside the new ones as one thing."""
    keys: dict[tuple[Any, ...], str] = {
        (*asdict(job.setting).values(), job.what): job.key for job in planned.jobs
    }
    stale = [row for key, row in known.items() if keys.get(tuple(map(row.get, FLAGS)), key) != key]
    if stale:
        raise SweepError(
            f"{str(folder)!r} holds {len(stale)} of these jobs, such as {stale[0].get('what')}, of other weights, prompts, code of the "
            "metric, circuits or versions. Choose another folder."
        )


def _check_left(
    folder: Path, asked: SweepSpec, planned: SweepPlan, known: Mapping[str, Mapping[str, Any]], lab: JobInputs
) -> None:
    """Raise where jobs of the spec in the folder have not run and the new one does not ask for them: nothing would any more."""
    before = read_spec(read_header(folder)["spec"]) if (folder / SPEC).exists() else asked
    if before != asked and (
        left := {job.key for job in plan(before, lab).jobs} - {job.key for job in planned.jobs} - set(known)
    ):
        raise SweepError(
            f"{len(left)} jobs of the sweep in {str(folder)!r} have not run, and are not among these. Run them first "
            "(`workbench sweep resume`), or ask for them too."
        )


def _batches(jobs: Sequence[Job], workers: int) -> list[Sequence[Job]]:
    """Jobs of one setting together, in pieces that every worker gets some of; those that share nothing one by one."""
    size = max(1, min(BATCH, -(-len(jobs) // workers)))
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.setting, []).append(job)
    made: list[Sequence[Job]] = []
    for setting, group in groups.items():
        step = 1 if setting.study in SEPARATE else size
        made += [group[i : i + step] for i in range(0, len(group), step)]
    return made


def _told(on_row: Callable[[LogRow], None] | None, row: LogRow) -> None:
    """A tracker that fails does not stop the sweep, and is heard of."""
    assert on_row is not None
    try:
        on_row(row)
    except Exception:
        tqdm.write("on_row failed:\n" + traceback.format_exc())


def _cost(planned: SweepPlan, known: Mapping[str, Mapping[str, Any]]) -> SweepCost:
    done = {key for key, row in known.items() if row["status"] == "done"}
    told = []
    for setting, jobs in planned.groups:
        name = setting.model if setting.checkpoint is None else f"{setting.model}@{setting.checkpoint}"
        facts = (name, setting.task, f"seed {setting.seed}", setting.metric, setting.value)
        told.append((" · ".join(facts), sum(job.key not in done for job in jobs)))
    return SweepCost(len(planned), sum(job.key in done for job in planned.jobs), tuple(told))
