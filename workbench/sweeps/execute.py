"""Running the jobs of one setting: `run_jobs` gives a row for each, even for a job that fails.

What a job measures is in `measure`; this module turns it into rows of the log, whatever happens.
"""

import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch

from workbench.errors import NotFinite
from workbench.models.calls import model_call
from workbench.sweeps.inputs import JobInputs
from workbench.sweeps.job_context import JobContext, Measurement
from workbench.sweeps.jobs import Job
from workbench.sweeps.log import LogRow
from workbench.sweeps.measure import STUDIES

# Studies whose jobs share nothing but the model and the prompts: each job is a batch of its own.
SEPARATE = ("circuits", "methods", "stability", "cumulative")
# Characters of a traceback that a row keeps, from its end, where the error is.
TRACEBACK_LENGTH = 8000


def run_jobs(inputs: JobInputs, jobs: Sequence[Job]) -> list[LogRow]:
    """A row for each job, in order; every job is of one setting.

    A batch that fails is halved and run again, down to single jobs, so that only the jobs at fault are
    recorded as failed.
    """
    try:
        return _timed(inputs, jobs)
    except Exception as error:
        if len(jobs) == 1:
            return [_failure(jobs[0], error)]
    # Outside the handler, which would keep the failed batch's tensors alive while the halves run.
    middle = len(jobs) // 2
    return run_jobs(inputs, jobs[:middle]) + run_jobs(inputs, jobs[middle:])


def unmeasured(job: Job, status: str, error: str, traceback_text: str | None = None) -> LogRow:
    """The row of a job that gave no numbers, with the reason and its traceback."""
    facts = {"job": job.key, "status": status, "seconds": 0.0, **asdict(job.setting), "what": job.what}
    return facts | {"values": [], "m_base": [], "error": error, "traceback": traceback_text}


def _timed(inputs: JobInputs, jobs: Sequence[Job]) -> list[LogRow]:
    setting, start = jobs[0].setting, time.perf_counter()
    with model_call():
        measurements = STUDIES[setting.study](JobContext(inputs, setting), jobs)
    seconds = round((time.perf_counter() - start) / len(jobs), 6)
    rows: list[LogRow] = []
    for job, measured in zip(jobs, measurements, strict=True):
        facts = {
            "job": job.key,
            "status": _status(measured),
            "seconds": seconds,
            **asdict(setting),
            "what": job.what,
        }
        numbers = {
            "values": measured.values,
            "m_base": measured.m_base,
            "error": None,
            "extra": measured.extra,
        }
        rows.append(facts | numbers)
    return rows


def _failure(job: Job, error: Exception) -> LogRow:
    text = "".join(traceback.format_exception(error))[-TRACEBACK_LENGTH:]
    return unmeasured(job, _failure_status(error), f"{type(error).__name__}: {error}", text)


def _failure_status(error: Exception) -> str:
    if isinstance(error, NotFinite):
        return "nan"
    # Torch reports too little memory of the processor as a plain RuntimeError with these words.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error):
        return "memory"
    return "failed"


def _status(measured: Measurement) -> str:
    """`nan` where the base run's metric, or what the job measured, has no finite number; else `done`."""
    numbers = list(measured.values)
    for number in measured.extra.values():
        # Counts of edges are whole numbers; only a measured number can fail to be one.
        if isinstance(number, float):
            numbers.append(number)
    base_known = not measured.m_base or any(np.isfinite(measured.m_base))
    if base_known and (not numbers or any(np.isfinite(numbers))):
        return "done"
    return "nan"
