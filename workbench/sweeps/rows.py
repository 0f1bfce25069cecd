"""Rows of a log as a long table (`rows_of`), and columns of tables as labelled arrays (`labelled`).

What was not measured is NaN, and never 0. Nothing here knows of folders.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import SweepError
from workbench.results import as_labels
from workbench.statistics import benjamini_hochberg, summary
from workbench.sweeps.log import FLAGS, LogRow
from workbench.sweeps.places import PLACE, place_of

PROMPTS = ("task", "split", "variant", "n", "seed")
"""Jobs that agree in these ran on the same examples."""
# Jobs that agree in these are tested together: their p-values are corrected for how many they are.
FAMILY = ("study", "model", "checkpoint", "task", "metric", "value", "seed")
NUMBERS = ("n_examples", "mean", "se", "low", "high", "p")
_COLUMNS = ("job", "status", *FLAGS, *PLACE, *NUMBERS, "m_base", "seconds", "error")
# Some rows lack a value of these, which would make pandas read whole numbers as floats.
_WHOLE = ("checkpoint", "layer", "head", "neuron", "n_edges", "step", "n", "seed")
_REAL = ("mean", "low", "high", "seconds", "strength", "faithfulness", "cpr", "cmd")
# At most this many samples are resampled together, which bounds the memory of their draws.
_BLOCK = 2048
MOST_CELLS = 2**28
"""Cells of an array, at most: a few rows that differ in every flag span a large one, nearly all of it NaN."""
# A base metric nearer to 0 than this counts as 0, so that no share of it is computed.
_ZERO = 1e-12


def rows_of(records: Sequence[LogRow]) -> pd.DataFrame:
    """One row per record, and per step of a cumulative one; the columns are those of `Sweep.rows`."""
    numbers = estimates(list(map(values_of, records))).to_dict("records")
    rows: list[dict[str, Any]] = []
    for record, estimate in zip(records, numbers, strict=True):
        row = {"job": record["job"], "status": record["status"]}
        row |= zip(FLAGS, map(record.get, FLAGS), strict=True)
        row |= dict.fromkeys(PLACE) | place_of(str(record.get("study")), str(record.get("what"))) | estimate
        row["m_base"] = _mean(record.get("m_base"))
        row["seconds"], row["error"] = record.get("seconds"), record.get("error")
        rows += [row | reported for reported in _reported(record)]
    frame = pd.DataFrame(rows)
    if not rows:
        frame = pd.DataFrame(columns=list(_COLUMNS))
    for name in frame.columns.intersection(list(_WHOLE)):
        frame[name] = frame[name].astype("Int64")
    for name in frame.columns.intersection(list(_REAL)):
        frame[name] = frame[name].astype(float)
    # A column of a Parquet file has one type, and positions are indices or names.
    if len(set(map(type, frame["pos"].dropna()))) > 1:
        frame["pos"] = frame["pos"].map(str, na_action="ignore")
    frame = frame.assign(q=corrected(frame, FAMILY), share=share(frame))
    last = ["q", "m_base", "share", "seconds", "error"]
    return pd.DataFrame(frame[[*frame.columns.drop(last), *last]])


def _reported(record: LogRow) -> list[dict[str, Any]]:
    """What a job reports itself, in place of the mean over its examples: steps, or a faithfulness."""
    extra = record.get("extra") or {}
    if "order" in extra:
        return _steps(extra) or [{}]
    if "faithfulness" in extra:
        kept = {name: extra[name] for name in ("n_edges", "cpr", "cmd") if name in extra}
        return [{"mean": extra["faithfulness"], "low": extra.get("low"), "high": extra.get("high"), **kept}]
    return [{}]


def _steps(extra: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a cumulative ablation; only the last has examples in the log, so the others have no se and
    p."""
    steps: list[dict[str, Any]] = []
    numbers = zip(extra["order"], extra["mean"], extra["low"], extra["high"], strict=True)
    for step, (added, mean, low, high) in enumerate(numbers, start=1):
        row = {
            "step": step,
            "added": added,
            **place_of("effects", str(added)),
            "mean": mean,
            "low": low,
            "high": high,
        }
        # The log keeps the examples of the last step alone: numbers from them say nothing of earlier steps.
        if step < len(extra["order"]):
            row |= {"se": np.nan, "p": np.nan}
        steps.append(row)
    return steps


def values_of(record: LogRow) -> np.ndarray:
    """[example]: the effect; NaN where it is not a number."""
    return np.array(record.get("values") or [], dtype=float)


def _mean(values: Any) -> float:
    known = np.array(values or [], dtype=float)
    known = known[np.isfinite(known)]
    if not len(known):
        return float("nan")
    return float(known.mean())


def estimates(values: Sequence[np.ndarray]) -> pd.DataFrame:
    """`NUMBERS` of each of many samples: mean, bootstrap interval, sign-flip p-value; NaN of an empty one."""
    lengths = np.array(list(map(len, values)), dtype=int)
    numbers = {name: np.full(len(values), np.nan) for name in NUMBERS}
    numbers["n_examples"] = np.zeros(len(values), dtype=int)
    # Samples of equal length are resampled together, with the same draws as each would get alone.
    for length in np.unique(lengths[lengths > 0]):
        equal = np.flatnonzero(lengths == length)
        for block in np.split(equal, range(_BLOCK, len(equal), _BLOCK)):
            sample = xr.DataArray(np.stack([values[i] for i in block], axis=1), dims=("example", "job"))
            summaries = summary(sample, p=True).rename(n="n_examples")
            for name in NUMBERS:
                numbers[name][block] = summaries[name].values
    return pd.DataFrame(numbers, columns=list(NUMBERS), index=range(len(values)))


def corrected(frame: pd.DataFrame, family: Sequence[str]) -> np.ndarray:
    """The p-values after Benjamini and Hochberg, among rows that agree in the columns of `family`."""
    q = np.full(len(frame), np.nan)
    p = frame["p"].to_numpy(dtype=float)
    for members in groups(frame, family):
        q[members] = benjamini_hochberg(p[members])
    return q


def groups(frame: pd.DataFrame, by: Sequence[str]) -> list[np.ndarray]:
    """The indices of rows that agree in some columns, group by group in order of appearance."""
    by = [name for name in by if name in frame]
    if frame.empty:
        return []
    if not by:
        return [np.arange(len(frame))]
    # Without dropna=False pandas leaves out rows whose flag is missing, such as models without checkpoints.
    number = frame.groupby(by, dropna=False, sort=False).ngroup().to_numpy()
    return np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])


def share(frame: pd.DataFrame) -> np.ndarray:
    """Mean effect as a share of the base run's metric; NaN where that is 0."""
    mean, base = frame["mean"].to_numpy(dtype=float), frame["m_base"].to_numpy(dtype=float)
    return mean / np.where(np.abs(base) > _ZERO, base, np.nan)


def varying(frame: pd.DataFrame, names: Sequence[str] = FLAGS) -> list[str]:
    """The columns among `names` that are not the same in every row."""
    return [name for name in names if name in frame and len(frame[[name]].drop_duplicates()) > 1]


def axes_of(frame: pd.DataFrame) -> list[str]:
    """The columns that tell the jobs of one setting apart.

    Where every site is of one kind: layer, and head, neuron, position or strength. For paths: writer, reader
    and position. For methods: method and size. Otherwise `what`.
    """
    if "step" in frame and bool(frame["step"].notna().to_numpy().any()):
        return [*varying(frame, ["what"]), "step"]
    sites = ["layer", "head", "neuron", "pos", "strength"]
    paths, methods = ["writer", "reader", "pos"], ["method", "n_edges"]
    for names in (sites, paths, methods):
        axes = [name for name in names if _is_complete(frame, name)]
        one_kind = _is_complete(frame, "kind") and not varying(frame, ["kind"])
        if not axes or (names is sites and not one_kind):
            continue
        if len(frame[[*axes, "what"]].drop_duplicates()) == len(frame[axes].drop_duplicates()):
            needed = {*varying(frame, axes), "layer", "head", "neuron"}
            return [axis for axis in axes if axis in needed] or axes[:1]
    return ["what"]


def _is_complete(frame: pd.DataFrame, name: str) -> bool:
    """Whether a column is there with a value in every row."""
    return name in frame and bool(frame[name].notna().to_numpy().all())


def _label_text(label: Any) -> str:
    """A label as text: one array holds labels of one type."""
    if pd.isna(label):
        return "none"
    return str(label)


def labelled(frame: pd.DataFrame, dims: Sequence[str], columns: Sequence[str]) -> xr.Dataset:
    """Columns of a table as arrays over others; a combination that is in no row is NaN."""
    codes: list[np.ndarray] = []
    coords: dict[str, np.ndarray] = {}
    for dim in dims:
        column = frame[dim]
        if pd.api.types.is_numeric_dtype(column) and _is_complete(frame, dim):
            code, labels = pd.factorize(column, sort=True)
            kind = int
            if column.dtype.kind == "f":
                kind = float
            coords[dim] = np.asarray(labels, dtype=kind)
        else:
            code, labels = pd.factorize(column.map(_label_text))
            coords[dim] = as_labels(labels)
        codes.append(code)
    fields: dict[str, Any] = {}
    shape = [len(coords[dim]) for dim in dims]
    if prod(shape) > MOST_CELLS:
        sizes = ", ".join(f"{dim} ({size})" for dim, size in zip(dims, shape, strict=True))
        raise SweepError(
            f"An array over {sizes} has more than {MOST_CELLS:,} cells. Use select(...) first, or .rows."
        )
    for name in columns:
        table = np.full(shape, np.nan)
        table[tuple(codes)] = frame[name].to_numpy(dtype=float, na_value=np.nan)
        fields[name] = (list(dims), table)
    return xr.Dataset(fields, coords=coords)
