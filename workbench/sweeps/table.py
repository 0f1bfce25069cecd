"""What a sweep measured, read from its folder: `load_sweep` returns a `Sweep` with tables and arrays.

Start at `Sweep.rows`; `summary`, `means`, `arrays`, `synergy` and `stability` are made of the same records. Nothing is
run here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.arguments import checked
from workbench.errors import SweepError, UnknownName
from workbench.results import clean_attrs
from workbench.sweeps.compact import OF_CIRCUITS, OF_EFFECTS, OF_PAIRS, compact
from workbench.sweeps.contrasts import difference_table, stability_table, synergy_table
from workbench.sweeps.folder import read_header
from workbench.sweeps.log import FLAGS, MEASURED, LogRow, last_tries, read_log, value_name
from workbench.sweeps.places import PLACE
from workbench.sweeps.pooling import samples
from workbench.sweeps.rows import (
    FAMILY,
    NUMBERS,
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
from workbench.sweeps.spec import FileFields
from workbench.sweeps.status import Status
from workbench.text import spelled, wrapped

_DEPENDENT = (*PLACE, "strength", "writer", "reader", "method", "n_edges", "added")
"""Columns that follow from `what` and `step`."""


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """A sweep as its folder holds it: `rows` for each job, `arrays`, and tables made of them.

    Effects are m(edited) - m(base), averaged over examples; what was not measured is NaN.

    Attributes:
        folder: where it is.
        spec: what was asked for.
        jobs: how many jobs there are; fewer may have ended.
        records: the line of the log that counts for each job.
        command: what ran it, a line for each spec that the folder was extended by; None where that was not
            kept.
    """

    folder: Path
    spec: Mapping[str, Any]
    jobs: int
    records: tuple[LogRow, ...]
    command: str | None = None

    def __repr__(self) -> str:
        flags: list[str] = []
        for flag in FLAGS:
            labels = sorted({str(record.get(flag)) for record in self.records})
            if flag not in ("n", "what") and labels not in ([], ["None"]):
                if len(labels) > 4:
                    labels = [*labels[:4], "…"]
                flags.append(f"{flag} {spelled('|'.join(labels))}")
        return wrapped(f"Sweep({str(self.folder)!r}: {self.status()}; {', '.join(flags) or 'no rows'})")

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per job, and per step of a cumulative one.

        Columns: job, status; the flags study, model, checkpoint, task, split, variant, n, seed, base, metric,
        value, what; the place kind, layer, head, neuron, pos (and what else a study has: step and added,
        strength, writer and reader, method and n_edges); n_examples, mean, se, low, high (95 % bootstrap over
        examples), p (sign flips), q (Benjamini and Hochberg within a family of equal study, model,
        checkpoint, task, metric, value, seed), m_base (the metric of the base run), share (mean / m_base),
        seconds, error. Rows of circuits have the faithfulness as their mean.
        """
        return rows_of(self.records)

    def select(self, **flags: Any) -> "Sweep":
        """The jobs whose flags are these, or among these: `sweep.select(seed=0, value=["zero", "mean"])`.

        Raises:
            UnknownName: no such flag.
            SweepError: no job is left.
        """
        records = self.records
        for flag, wanted in flags.items():
            if flag not in FLAGS:
                raise UnknownName("flag", flag, FLAGS)
            labels = [wanted]
            if isinstance(wanted, list | tuple | set | frozenset | range):
                labels = list(wanted)
            kept = tuple(record for record in records if _has(record, flag, labels))
            if not kept:
                known = ", ".join(sorted({str(record.get(flag)) for record in records})[:12])
                raise SweepError(
                    f"No job of {str(self.folder)!r} has {flag}={wanted!r}. There are: {known or 'no jobs'}."
                )
            records = kept
        return replace(self, records=records, jobs=len(records))

    def status(self) -> Status:
        """How many jobs ended and how, how many remain, and every failure with its error."""
        return Status.of(self.records, jobs=self.jobs)

    def arrays(self) -> xr.Dataset:
        """Labelled arrays: `effect` over the flags that vary, the place and `example`.

        `mean`, `se`, `low`, `high`, `p`, `q` and `m_base` have the same axes without `example`.

        The place is layer and head, neuron or position where every site is of one kind, otherwise `what`. A
        flag that is the same in every job is an attribute. Not measured: NaN.
        """
        rows = self._measured()
        dims = list(dict.fromkeys([*varying(rows, FLAGS[1:-1]), *axes_of(rows)]))
        arrays = labelled(rows, dims, ["mean", "se", "low", "high", "p", "q", "m_base"])
        values = self._values
        longest = max(map(len, values.values()), default=0)
        # The examples of a cumulative job are those of its last step, so that its steps have none.
        if longest and "step" not in dims:
            by_example = rows.loc[rows.index.repeat(longest), dims]
            by_example = by_example.assign(example=np.tile(np.arange(longest), len(rows)))
            padded = np.full((len(rows), longest), np.nan)
            for row, job in zip(padded, rows["job"], strict=True):
                row[: len(values[job])] = values[job]
            by_example = by_example.assign(effect=padded.ravel())
            arrays["effect"] = labelled(by_example, [*dims, "example"], ["effect"])["effect"]
        attrs: dict[str, Any] = {}
        for flag in FLAGS[:-1]:
            if flag not in dims:
                label = rows[flag].iloc[0]
                attrs[flag] = None if pd.isna(label) else label
        return arrays.assign_attrs(clean_attrs(attrs))

    def summary(self) -> pd.DataFrame:
        """What a reader wants first: every row that was measured, the largest first, and what tells rows apart.

        Returns:
            Of effects: what, and of task, value and the other settings those that differ; mean over seeds, low,
            high and q (p after Benjamini and Hochberg). Of pairs `synergy`, of circuits `stability`.
            attrs["caption"] says what all rows have in common. `means` has every column.

        Raises:
            SweepError: no job was measured.
        """
        study = str(self.rows["study"].iloc[0]) if len(self.rows) else ""
        if study == "stability":
            return compact(self.stability(), "jaccard", OF_CIRCUITS)
        if study == "pairs":
            return compact(self.synergy(), "synergy", OF_PAIRS)
        return compact(self.means(), "mean", OF_EFFECTS)

    def means(self, by: Sequence[str] | None = None) -> pd.DataFrame:
        """The mean over what is not in `by` (by default over seeds), with its interval.

        The bootstrap draws prompts: what several jobs measured on one example counts once. Jobs without
        numbers for each example (circuits, methods, steps of a cumulative ablation) count once each.

        Args:
            by: columns of `rows`; by default every flag but the seed.

        Returns:
            One row per group: `by` and what follows from it, n_jobs, n_seeds, n_examples, mean, se, low,
            high, p, q, m_base, share.

        Raises:
            UnknownName: a column that does not exist.
            SweepError: no job was measured.
        """
        rows = self._measured()
        if by is None:
            by = [name for name in (*FLAGS, "step") if name != "seed" and name in rows]
        by = list(by)
        for name in by:
            if name not in rows:
                raise UnknownName("by", name, map(str, rows.columns))
        members = groups(rows, by)
        pooled = samples(rows, members, self._values)
        base, seeds = rows["m_base"].to_numpy(), rows["seed"].to_numpy()
        counts: list[dict[str, Any]] = []
        for jobs in members:
            counts.append(
                {"n_jobs": len(jobs), "n_seeds": len(set(seeds[jobs])), "m_base": base[jobs].mean()}
            )
        numbers = estimates(pooled)
        # A group of one job has the numbers of that job: a circuit's interval is not that of one number.
        single = [(group, jobs[0]) for group, jobs in enumerate(members) if len(jobs) == 1]
        if single:
            targets, sources = map(list, zip(*single, strict=True))
            numbers.loc[targets, list(NUMBERS)] = rows.loc[sources, list(NUMBERS)].to_numpy()
        dependent = [name for name in _DEPENDENT if name in rows and "what" in by and name not in by]
        firsts = rows.loc[[jobs[0] for jobs in members], [*by, *dependent]].reset_index(drop=True)
        frame = pd.concat([firsts, pd.DataFrame(counts), numbers], axis=1)
        frame = frame.assign(q=corrected(frame, [name for name in FAMILY if name in by]), share=share(frame))
        last = ["m_base", "share"]
        return pd.DataFrame(frame[[*frame.columns.drop(last), *last]])

    def synergy(self) -> pd.DataFrame:
        """A row for every pair: site_a, site_b, effect_a, effect_b, effect_both, synergy = both - (a + b),
        low, high, p, q.

        The interval is over examples, on which all three were measured. Negative: losing both costs more than
        the two losses, as it does where one site stands in for the other.

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

    @cached_property
    def _values(self) -> dict[str, np.ndarray]:
        """Job → [example]."""
        return {record["job"]: values_of(record) for record in self.records}

    def _measured(self) -> pd.DataFrame:
        rows = pd.DataFrame(self.rows[self.rows["status"].isin(MEASURED)]).reset_index(drop=True)
        if rows.empty:
            raise SweepError(
                f"No job of {str(self.folder)!r} was measured ({self.status()}). See its errors: workbench "
                "sweep status."
            )
        return rows


def _has(record: LogRow, flag: str, labels: Sequence[Any]) -> bool:
    """Whether a record's flag is among the labels. Values are compared under their one name: "other" is
    "corrupt"."""
    if flag == "value":
        labels = [value_name(label, record.get("base")) for label in labels]
    return record.get(flag) in labels


@checked
def load_sweep(path: str | Path) -> Sweep:
    """The sweep in a folder, finished or not.

    Raises:
        SweepError: there is no such folder, it is not a sweep's, or its log is damaged.
    """
    header = read_header(path)
    records = last_tries(read_log(path))
    jobs, command = header.get("jobs"), header.get("command")
    return Sweep(
        folder=Path(path),
        spec=FileFields(header["spec"]),
        jobs=jobs if isinstance(jobs, int) else len(records),
        records=tuple(records),
        command=command if isinstance(command, str) else None,
    )


@checked
def compare_sweeps(a: Sweep | str | Path, b: Sweep | str | Path) -> pd.DataFrame:
    """The jobs of two sweeps side by side: difference = b - a, with a paired interval for equal examples.

    Rows are joined on every flag and `what`. A flag that has one label in `a` and another in `b`, such as the
    model, is what is compared: it is not joined on, and `.attrs["apart"]` holds both labels.

    Returns:
        One row per job of both: the flags, a, b, difference, n_examples, se, low, high, p, q.

    Raises:
        SweepError: they have no job in common.
    """
    first, second = _loaded(a), _loaded(b)
    return difference_table(first.rows, second.rows, first._values, second._values)


def _loaded(sweep: Sweep | str | Path) -> Sweep:
    if isinstance(sweep, Sweep):
        return sweep
    return load_sweep(sweep)
