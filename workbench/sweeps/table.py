"""What a sweep measured, read from its folder: `load_sweep` gives a long table, labelled arrays and what is made of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import SweepError, UnknownName
from workbench.results import clean_attrs
from workbench.sweeps.contrasts import difference_table, stability_table, synergy_table
from workbench.sweeps.log import MEASURED, STATUSES, last_tries, read_header, read_log
from workbench.sweeps.places import PLACE
from workbench.sweeps.rows import (
    FAMILY,
    FLAGS,
    NUMBERS,
    PROMPTS,
    axes_of,
    corrected,
    estimates,
    groups,
    labelled,
    rows_of,
    share,
    values_of,
    varying,
)

_RIDERS = (*PLACE, "strength", "writer", "reader", "method", "n_edges", "added")
"""Columns that follow from `what` and `step`."""


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

    @property
    def remaining(self) -> int:
        return self.jobs - sum(self.counts.values())

    @property
    def ok(self) -> bool:
        """Whether no job failed; some may still have to run."""
        return not len(self.failed)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        failed = self.failed.astype(object).where(self.failed.notna(), None).to_dict("records")
        return {"jobs": self.jobs, **self.counts, "remaining": self.remaining, "failures": failed}

    def __str__(self) -> str:
        told = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        return f"{self.jobs} jobs: {told or 'none has ended'}, {self.remaining} remaining"


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """A sweep as its folder holds it: `rows` for each job, `arrays`, and tables made of them.

    Effects are m(edited) - m(base), averaged over examples; what was not measured is NaN.

    Attributes:
        folder: where it lies.
        spec: what was asked.
        jobs: how many jobs there are; fewer may have ended.
        records: the line of the log that counts for each job.
        command: what made it, a line for each spec that the folder was extended by; None where that was not kept.
    """

    folder: Path
    spec: Mapping[str, Any]
    jobs: int
    records: tuple[Mapping[str, Any], ...]
    command: str | None = None

    def __repr__(self) -> str:
        flags = {
            flag: sorted({str(record.get(flag)) for record in self.records})
            for flag in FLAGS
            if flag not in ("n", "what")
        }
        told = [
            f"{flag} {'|'.join(found[:4])}{'|…' if len(found) > 4 else ''}"
            for flag, found in flags.items()
            if found not in ([], ["None"])
        ]
        return f"Sweep({str(self.folder)!r}: {self.status()}; {', '.join(told) or 'no rows'})"

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per job, and per step of a cumulative one.

        Columns: job, status; the flags study, model, checkpoint, task, split, variant, n, seed, base, metric, value, what; the
        place kind, layer, head, neuron, pos (and what else a study has: step and added, strength, writer and reader,
        method and n_edges); n_examples, mean, se, low, high (95 % bootstrap over examples), p (sign flips), q (Benjamini and
        Hochberg within a family of equal study, model, checkpoint, task, metric, value, seed), m_base (the unedited
        metric), share (mean / m_base), seconds, error. Rows of circuits have the faithfulness as their mean.
        """
        return rows_of(self.records)

    def select(self, **flags: Any) -> "Sweep":
        """The jobs whose flags are these, or among these: `sweep.select(seed=0, value=["zero", "mean"])`.

        Raises:
            UnknownName: no such flag.  SweepError: no job is left.
        """
        records = self.records
        for flag, wanted in flags.items():
            if flag not in FLAGS:
                raise UnknownName("flag", flag, FLAGS)
            among = list(wanted) if isinstance(wanted, list | tuple | set | frozenset | range) else [wanted]
            kept = tuple(record for record in records if record.get(flag) in among)
            if not kept:
                known = ", ".join(sorted({str(record.get(flag)) for record in records})[:12])
                raise SweepError(
                    f"No job of {str(self.folder)!r} has {flag}={wanted!r}. There are: {known or 'no jobs'}."
                )
            records = kept
        return replace(self, records=records, jobs=len(records))

    def status(self) -> Status:
        """How many jobs ended and how, how many remain, and every failure with its error."""
        counts = Counter(record["status"] for record in self.records)
        columns = ["job", "status", "tries", *FLAGS, "error"]
        failed = [record for record in self.records if record["status"] != "done"]
        table = pd.DataFrame(
            [{c: record.get("try" if c == "tries" else c) for c in columns} for record in failed],
            columns=columns,
        )
        return Status(
            max(self.jobs, len(self.records)), {status: counts[status] for status in STATUSES}, table
        )

    def arrays(self) -> xr.Dataset:
        """`effect` over the flags that vary, the place and `example`; `mean`, `se`, `low`, `high`, `p`, `q` without `example`.

        The place is layer and head, neuron or position where every site is of one kind, otherwise `what`. A flag that is the
        same in every job is an attribute. Not measured: NaN.
        """
        rows = self._measured()
        dims = list(dict.fromkeys([*varying(rows, FLAGS[1:-1]), *axes_of(rows)]))
        made = labelled(rows, dims, ["mean", "se", "low", "high", "p", "q", "m_base"])
        values = {record["job"]: values_of(record) for record in self.records}
        most = max(map(len, values.values()), default=0)
        if most and "step" not in dims:
            long = rows.loc[rows.index.repeat(most), dims].assign(example=np.tile(np.arange(most), len(rows)))
            padded = [
                np.pad(values[job], (0, most - len(values[job])), constant_values=np.nan)
                for job in rows["job"]
            ]
            made["effect"] = labelled(
                long.assign(effect=np.concatenate(padded)), [*dims, "example"], ["effect"]
            )["effect"]
        same = {flag: rows[flag].iloc[0] for flag in FLAGS[:-1] if flag not in dims}
        return made.assign_attrs(
            clean_attrs({flag: None if pd.isna(label) else label for flag, label in same.items()})
        )

    def summary(self, by: Sequence[str] | None = None) -> pd.DataFrame:
        """The mean over what is not in `by`, seeds unless asked otherwise, with its interval.

        The bootstrap draws prompts: what several jobs measured on one example counts once. Jobs without numbers for each
        example (circuits, methods, steps of a cumulative ablation) count once each.

        Args:
            by: columns of `rows`; by default every flag but the seed.
        Returns:
            One row per group: `by` and what follows from it, n_jobs, n_seeds, n_examples, mean, se, low, high, p, q, m_base, share.
        Raises:
            UnknownName: a column that there is not.  SweepError: no job was measured.
        """
        rows = self._measured()
        by = (
            [name for name in (*FLAGS, "step") if name != "seed" and name in rows] if by is None else list(by)
        )
        for name in by:
            if name not in rows:
                raise UnknownName("by", name, map(str, rows.columns))
        values = {record["job"]: values_of(record) for record in self.records}
        stepped = rows["step"].notna().to_numpy() if "step" in rows else np.zeros(len(rows), dtype=bool)
        prompts = np.zeros(len(rows), dtype=int)
        for number, at in enumerate(groups(rows, PROMPTS)):
            prompts[at] = number
        members, samples, made = groups(rows, by), [], []
        riders = [name for name in _RIDERS if name in rows and "what" in by and name not in by]
        jobs, seeds, base = rows["job"].to_numpy(), rows["seed"].to_numpy(), rows["m_base"].to_numpy()
        means = rows["mean"].to_numpy()
        for at in members:
            each = {
                i: means[i : i + 1] if stepped[i] or not len(values[jobs[i]]) else values[jobs[i]] for i in at
            }
            samples.append(_pooled(each, prompts) if len(at) > 1 else np.zeros(0))
            made.append({"n_jobs": len(at), "n_seeds": len(set(seeds[at])), "m_base": base[at].mean()})
        numbers = estimates(samples)
        single = [(i, at[0]) for i, at in enumerate(members) if len(at) == 1]
        if single:
            into, of = map(list, zip(*single, strict=True))
            numbers.loc[into, list(NUMBERS)] = rows.loc[of, list(NUMBERS)].to_numpy()
        firsts = rows.loc[[at[0] for at in members], [*by, *riders]].reset_index(drop=True)
        frame = pd.concat([firsts, pd.DataFrame(made), numbers], axis=1)
        frame = frame.assign(q=corrected(frame, [name for name in FAMILY if name in by]), share=share(frame))
        last = ["m_base", "share"]
        return pd.DataFrame(frame[[*frame.columns.drop(last), *last]])

    def synergy(self) -> pd.DataFrame:
        """Of every pair: site_a, site_b, effect_a, effect_b, effect_both, synergy = both - (a + b), low, high, p, q.

        The interval is over examples, on which all three were measured. Negative: losing both costs more than the two losses,
        as it does where one site stands in for the other.

        Raises:
            SweepError: no pair was edited.
        """
        return synergy_table(self.records)

    def stability(self) -> pd.DataFrame:
        """Mean, least and largest Jaccard index of edges over pairs of seeds, for every method and size.

        Raises:
            SweepError: the sweep is of another study.
        """
        return stability_table(self.records)

    def _measured(self) -> pd.DataFrame:
        rows = pd.DataFrame(self.rows[self.rows["status"].isin(MEASURED)]).reset_index(drop=True)
        if rows.empty:
            raise SweepError(
                f"No job of {str(self.folder)!r} was measured ({self.status()}). See its errors: workbench sweep status."
            )
        return rows


def _pooled(each: Mapping[int, np.ndarray], prompts: np.ndarray) -> np.ndarray:
    """The numbers of several jobs, those on the same example averaged."""
    pools: dict[tuple[int, int], list[np.ndarray]] = {}
    for i, values in each.items():
        pools.setdefault((prompts[i], len(values)), []).append(values)
    alike = [np.stack(pool) for pool in pools.values()]
    return np.concatenate([_known_mean(pool) for pool in alike])


def _known_mean(pool: np.ndarray) -> np.ndarray:
    known = np.isfinite(pool)
    n = known.sum(0)
    return np.where(known, pool, 0).sum(0) / np.where(n, n, np.nan)


def load_sweep(path: str | Path) -> Sweep:
    """The sweep in a folder, finished or not.

    Raises:
        SweepError: there is no such folder, it is no sweep's, or its log is damaged.
    """
    header = read_header(path)
    records = last_tries(read_log(path))
    jobs, command = header.get("jobs"), header.get("command")
    return Sweep(
        Path(path),
        header["spec"],
        jobs if isinstance(jobs, int) else len(records),
        tuple(records),
        command if isinstance(command, str) else None,
    )


def compare_sweeps(a: Sweep | str | Path, b: Sweep | str | Path) -> pd.DataFrame:
    """The jobs of two sweeps side by side: difference = b - a, with a paired interval where the examples agree.

    Rows are joined on every flag and `what`; a flag that has one label in `a` and another in `b`, such as the model, is what is
    compared, stands in `.attrs["apart"]`, and is not joined on.

    Returns:
        One row per job of both: the flags, a, b, difference, n_examples, se, low, high, p, q.
    Raises:
        SweepError: they have no job in common.
    """
    first, second = (each if isinstance(each, Sweep) else load_sweep(each) for each in (a, b))
    values = [{record["job"]: values_of(record) for record in sweep.records} for sweep in (first, second)]
    return difference_table(first.rows, second.rows, *values)
