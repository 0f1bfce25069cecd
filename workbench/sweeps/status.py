"""How far a sweep is: `Status`, with every failure. Made of the log's lines alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.sweeps.log import FLAGS, STATUSES, LogRow


@dataclass(frozen=True)
class Status:
    """How far a sweep is.

    Attributes:
        jobs: how many there are.
        counts: of the jobs that ended, by how: done, nan, failed, memory.
        failed: a row for each job that is not done, with its error.
    """

    jobs: int
    counts: dict[str, int]
    failed: pd.DataFrame

    @classmethod
    def of(cls, records: Sequence[LogRow], *, jobs: int) -> "Status":
        """The status of a sweep, from the line of the log that counts for each job.

        Args:
            jobs: how many were planned; the log may hold more after the spec was extended.
        """
        counts = Counter(record["status"] for record in records)
        columns = ["job", "status", "tries", *FLAGS, "error"]
        failures: list[dict[str, Any]] = []
        for record in records:
            if record["status"] != "done":
                failure = dict(zip(columns, map(record.get, columns), strict=True))
                failures.append(failure | {"tries": record.get("try")})
        return cls(
            jobs=max(jobs, len(records)),
            counts={status: counts[status] for status in STATUSES},
            failed=pd.DataFrame(failures, columns=columns),
        )

    @property
    def remaining(self) -> int:
        """Jobs that have not ended."""
        return self.jobs - sum(self.counts.values())

    @property
    def ok(self) -> bool:
        """Whether no job failed or ended without a number; some may still have to run."""
        return not len(self.failed)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        failed = self.failed.astype(object).where(self.failed.notna(), None).to_dict("records")
        return {"jobs": self.jobs, **self.counts, "remaining": self.remaining, "failures": failed}

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        return f"{self.jobs} jobs: {counts or 'none has ended'}, {self.remaining} remaining"
