"""How far a sweep is: `Status`, with every failure. Made of the log's lines alone; `read_status` reads them.

Pandas is imported only for the table of failures: `workbench sweep status` prints them without it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.sweeps.folder import read_header
from workbench.sweeps.log import FLAGS, STATUSES, LogRow, last_tries, read_log

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("job", "status", "tries", *FLAGS, "error")


@dataclass(frozen=True)
class Status:
    """How far a sweep is.

    Attributes:
        jobs: how many there are.
        counts: of the jobs that ended, by how: done, nan, failed, memory.
        failures: for each job that is not done: job, status, tries, its flags and error.
    """

    jobs: int
    counts: dict[str, int]
    failures: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, records: Sequence[LogRow], *, jobs: int) -> "Status":
        """The status of a sweep, from the line of the log that counts for each job.

        Args:
            jobs: how many were planned; the log may hold more after the spec was extended.
        """
        counts = Counter(record["status"] for record in records)
        failures: list[dict[str, Any]] = []
        for record in records:
            if record["status"] != "done":
                failure = {name: record.get(name) for name in _COLUMNS}
                failures.append(failure | {"tries": record.get("try")})
        return cls(
            jobs=max(jobs, len(records)),
            counts={status: counts[status] for status in STATUSES},
            failures=tuple(failures),
        )

    @property
    def failed(self) -> "pd.DataFrame":
        """A row for each job that is not done, with its error."""
        import pandas as pd

        return pd.DataFrame(list(self.failures), columns=list(_COLUMNS))

    @property
    def remaining(self) -> int:
        """Jobs that have not ended."""
        return self.jobs - sum(self.counts.values())

    @property
    def ok(self) -> bool:
        """Whether no job failed or ended without a number; some may still have to run."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        failures = [dict(failure) for failure in self.failures]
        return {"jobs": self.jobs, **self.counts, "remaining": self.remaining, "failures": failures}

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        return f"{self.jobs} jobs: {counts or 'none has ended'}, {self.remaining} remaining"


def read_status(folder: str | Path) -> Status:
    """How far the sweep in a folder is.

    Raises:
        SweepError: there is no such folder, it is not a sweep's, or its log is damaged.
    """
    jobs = read_header(folder).get("jobs")
    records = last_tries(read_log(folder))
    return Status.of(records, jobs=jobs if isinstance(jobs, int) else len(records))
