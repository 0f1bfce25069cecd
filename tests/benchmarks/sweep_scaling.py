"""What a sweep of 10^6 jobs on 64 workers would take, from what a job, a batch and a worker cost here; and which of them is in the way.

    python tests/benchmarks/sweep_scaling.py [--json] [--workers 64] [--jobs 1000000]

Every cost is measured on the sweep of `sweeps.py` by the code that a sweep runs: planning, running on one thread, sending a batch to
a Ray actor and its rows back, writing them, and reading the whole folder at the end.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from sweeps import spec

from workbench.sweeps.execute import run_jobs
from workbench.sweeps.folder import TABLE, begin
from workbench.sweeps.inputs import JobInputs
from workbench.sweeps.jobs import plan
from workbench.sweeps.log import Log
from workbench.sweeps.pool import pool
from workbench.sweeps.runner import BATCH, run_sweep
from workbench.sweeps.spec import read_spec
from workbench.sweeps.table import load_sweep


@dataclass(frozen=True)
class Costs:
    """Seconds: of a job in each part, of a batch on its way through Ray, and of starting workers."""

    planning: float
    running: float
    sending: float
    writing: float
    reading: float
    start: float


class _Echo:
    """An actor that gives back rows at once."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def run(self, batch: Any) -> list[Any]:
        return self.rows[: len(batch)]


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = what()
    return time.perf_counter() - start, made


def measured() -> Costs:
    """The costs on this machine."""
    torch.set_num_threads(1)
    asked, lab = read_spec(spec()), JobInputs()
    plan(asked, lab)
    planning, planned = timed(lambda: plan(asked, lab))
    jobs = list(planned.jobs)
    batches = [list(group[i : i + BATCH]) for _, group in planned.groups for i in range(0, len(group), BATCH)]
    run_jobs(lab, batches[0][:8])
    running, rows = timed(lambda: [row for batch in batches for row in run_jobs(lab, batch)])
    with tempfile.TemporaryDirectory() as folder:
        begin(Path(folder) / "sweep", asked, {"jobs": len(jobs)}, extend=False)
        log = Log(Path(folder) / "sweep")
        writing, _ = timed(
            lambda: [
                log.append([{**row, "try": 1} for row in rows[i : i + BATCH]])
                for i in range(0, len(rows), BATCH)
            ]
        )
        reading, _ = timed(lambda: load_sweep(Path(folder) / "sweep").rows.to_parquet(Path(folder) / TABLE))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    echo = ray.remote(_Echo).remote(rows[:BATCH])
    ray.get(echo.run.remote(batches[0]))
    sending, _ = timed(lambda: [ray.get(echo.run.remote(batch)) for batch in batches])
    ray.shutdown()

    def started() -> None:
        with tempfile.TemporaryDirectory() as folder, pool("ray", 2, JobInputs()) as crew:
            list(crew.results([batches[0][:1], batches[1][:1]]))
            run_sweep({**spec(), "sites": ["z[0.0]"]}, out=folder, progress=False)

    start, _ = timed(started)
    n = len(jobs)
    return Costs(planning / n, running / n, sending / n, writing / n, reading / n, start)


def projected(costs: Costs, *, jobs: int, workers: int) -> dict[str, float]:
    """Seconds that each part takes; workers run beside the driver, which sends, receives and writes."""
    driver = jobs * (costs.sending + costs.writing)
    crew = jobs * costs.running / workers
    before, after = costs.start + jobs * costs.planning, jobs * costs.reading
    return {
        "start": costs.start, "planning": jobs * costs.planning, "workers, each": crew, "driver: sending": jobs * costs.sending,
        "driver: writing": jobs * costs.writing, "reading back": after, "in all": before + max(driver, crew) + after,
        "one worker": jobs * costs.running,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=10**6)
    asked = parser.parse_args()
    costs = measured()
    made = projected(costs, jobs=asked.jobs, workers=asked.workers)
    if asked.json:
        print(json.dumps({"costs": vars(costs), "seconds": made}))
        return
    for name, seconds in vars(costs).items():
        print(
            f"{name:10} {seconds:8.2f} s" if name == "start" else f"{name:10} {seconds * 1000:8.3f} ms a job"
        )
    print(f"\n{asked.jobs:,} jobs on {asked.workers} workers")
    for name, seconds in made.items():
        print(f"{name:16} {seconds:10,.0f} s")


if __name__ == "__main__":
    main()
