"""Records of a log as a long table, and tables as labelled arrays. What was not measured is NaN."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.results import as_labels
from workbench.statistics import benjamini_hochberg, summary
from workbench.sweeps.log import FLAGS
from workbench.sweeps.places import PLACE, place_of

LogRow = Mapping[str, Any]
PROMPTS = ("task", "split", "variant", "n", "seed")
"""Jobs that agree in these ran on the same examples."""
FAMILY = ("study", "model", "checkpoint", "task", "metric", "value", "seed")
"""Jobs that agree in these are tested together: their p-values are corrected for how many they are."""
NUMBERS = ("n_examples", "mean", "se", "low", "high", "p")
_COLUMNS = ("job", "status", *FLAGS, *PLACE, *NUMBERS, "m_base", "seconds", "error")
_WHOLE = ("checkpoint", "layer", "head", "neuron", "n_edges", "step", "n", "seed")
_BLOCK = 2048


def rows_of(records: Sequence[LogRow]) -> pd.DataFrame:
    """One row per record, and per step of a cumulative one: flags, place, numbers with intervals, p and q, error."""
    rows = []
    for record, numbers in zip(
        records, estimates(list(map(values_of, records))).to_dict("records"), strict=True
    ):
        row = {"job": record["job"], "status": record["status"], **{flag: record.get(flag) for flag in FLAGS}}
        row |= dict.fromkeys(PLACE) | place_of(str(record.get("study")), str(record.get("what"))) | numbers
        row |= {
            "m_base": _mean(record.get("m_base")),
            "seconds": record.get("seconds"),
            "error": record.get("error"),
        }
        rows += [row | reported for reported in _reported(record)]
    frame = pd.DataFrame(rows, columns=None if rows else list(_COLUMNS))
    for name in frame.columns.intersection(list(_WHOLE)):
        frame[name] = frame[name].astype("Int64")
    for name in frame.columns.intersection(
        ["mean", "low", "high", "seconds", "strength", "faithfulness", "cpr", "cmd"]
    ):
        frame[name] = frame[name].astype(float)
    if len({type(pos) for pos in frame["pos"].dropna()}) > 1:  # a column of a file has one type
        frame["pos"] = frame["pos"].map(str, na_action="ignore")
    frame = frame.assign(q=corrected(frame, FAMILY), share=share(frame))
    last = ["q", "m_base", "share", "seconds", "error"]
    return pd.DataFrame(frame[[*frame.columns.drop(last), *last]])


def _reported(record: LogRow) -> list[dict[str, Any]]:
    """What a job reports itself, in place of the mean over its examples: the steps of a cumulative one, a faithfulness."""
    extra = record.get("extra") or {}
    if "order" in extra:
        steps = zip(*(extra[name] for name in ("order", "mean", "low", "high")), strict=True)
        made = [
            {
                "step": i + 1,
                "added": added,
                **place_of("effects", str(added)),
                "mean": mean,
                "low": low,
                "high": high,
            }
            for i, (added, mean, low, high) in enumerate(steps)
        ]
        return [*({**step, "se": np.nan, "p": np.nan} for step in made[:-1]), *made[-1:]] or [{}]
    if "faithfulness" in extra:
        kept = {name: extra[name] for name in ("n_edges", "cpr", "cmd") if name in extra}
        return [{"mean": extra["faithfulness"], "low": extra.get("low"), "high": extra.get("high"), **kept}]
    return [{}]


def values_of(record: LogRow) -> np.ndarray:
    """The effect on each example; NaN where it is none."""
    return np.array(record.get("values") or [], dtype=float)


def _mean(values: Any) -> float:
    known = np.array(values or [], dtype=float)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else float("nan")


def estimates(values: Sequence[np.ndarray]) -> pd.DataFrame:
    """`NUMBERS` of each of many samples: mean, bootstrap interval and sign-flip p-value. An empty sample has NaN."""
    lengths = np.array([len(sample) for sample in values], dtype=int)
    made = pd.DataFrame(np.nan, index=range(len(values)), columns=list(NUMBERS)).assign(n_examples=0)
    numbers = {name: made[name].to_numpy(copy=True) for name in NUMBERS}
    for length in np.unique(lengths[lengths > 0]):
        alike = np.flatnonzero(lengths == length)
        for block in np.split(alike, range(_BLOCK, len(alike), _BLOCK)):
            sample = xr.DataArray(np.stack([values[i] for i in block], axis=1), dims=("example", "job"))
            found = summary(sample, p=True).rename(n="n_examples")
            for name in NUMBERS:
                numbers[name][block] = found[name].values
    return made.assign(**numbers)


def corrected(frame: pd.DataFrame, family: Sequence[str]) -> np.ndarray:
    """The p-values of a table after Benjamini and Hochberg, within rows that agree in the columns of `family`."""
    q = np.full(len(frame), np.nan)
    p = frame["p"].to_numpy(dtype=float)
    for at in groups(frame, family):
        q[at] = benjamini_hochberg(p[at])
    return q


def groups(frame: pd.DataFrame, by: Sequence[str]) -> list[np.ndarray]:
    """The places of rows that agree in some columns, group by group in order of appearance."""
    by = [name for name in by if name in frame]
    if not by or frame.empty:
        return [np.arange(len(frame))] if len(frame) else []
    number = frame.groupby(by, dropna=False, sort=False).ngroup().to_numpy()
    return np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])


def share(frame: pd.DataFrame) -> np.ndarray:
    """Mean effect as a share of the unedited metric."""
    mean, base = (frame[name].to_numpy(dtype=float) for name in ("mean", "m_base"))
    return mean / np.where(np.abs(base) > 1e-12, base, np.nan)


def varying(frame: pd.DataFrame, names: Sequence[str] = FLAGS) -> list[str]:
    """The columns among `names` that are not the same in every row."""
    return [name for name in names if name in frame and len(frame[[name]].drop_duplicates()) > 1]


def axes_of(frame: pd.DataFrame) -> list[str]:
    """The columns that tell the jobs of one setting apart: layer and head, neuron or position of one kind of sites, else `what`."""
    if _any(frame, "step"):
        return [*varying(frame, ["what"]), "step"]
    for names in (
        ["layer", "head", "neuron", "pos", "strength"],
        ["writer", "reader", "pos"],
        ["method", "n_edges"],
    ):
        axes = [name for name in names if _all(frame, name)]
        if not axes or (names[0] == "layer" and not (_all(frame, "kind") and not varying(frame, ["kind"]))):
            continue
        if len(frame[[*axes, "what"]].drop_duplicates()) == len(frame[axes].drop_duplicates()):
            told = varying(frame, axes)
            return [axis for axis in axes if axis in told or axis in ("layer", "head", "neuron")] or axes[:1]
    return ["what"]


def _all(frame: pd.DataFrame, name: str) -> bool:
    return name in frame and bool(frame[name].notna().to_numpy().all())


def _any(frame: pd.DataFrame, name: str) -> bool:
    return name in frame and bool(frame[name].notna().to_numpy().any())


def labelled(frame: pd.DataFrame, dims: Sequence[str], columns: Sequence[str]) -> xr.Dataset:
    """Columns of a table as arrays over others; a combination that is in no row is NaN."""
    codes, coords = [], {}
    for dim in dims:
        column = frame[dim]
        numeric = pd.api.types.is_numeric_dtype(column) and _all(frame, dim)
        texts = column if numeric else column.map(lambda label: "none" if pd.isna(label) else str(label))
        code, labels = pd.factorize(texts, sort=numeric)
        codes.append(code)
        coords[dim] = (
            np.asarray(labels, dtype=float if column.dtype.kind == "f" else int)
            if numeric
            else as_labels(labels)
        )
    fields = {}
    for name in columns:
        table = np.full([len(coords[dim]) for dim in dims], np.nan)
        table[tuple(codes)] = frame[name].to_numpy(dtype=float, na_value=np.nan)
        fields[name] = (list(dims), table)
    return xr.Dataset(fields, coords=coords)
