"""What needs several jobs at once: synergy of pairs, agreement of circuits, differences of two sweeps."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import SweepError
from workbench.sweeps.log import FLAGS, LogRow
from workbench.sweeps.places import place_of, sites_of
from workbench.sweeps.rows import FAMILY, PROMPTS, corrected, estimates, groups, values_of

_SETTING = tuple(flag for flag in FLAGS if flag != "what")


def synergy_table(records: Sequence[LogRow]) -> pd.DataFrame:
    """Each pair that was edited together beside its two sites edited alone, on the same examples.

    synergy = effect_both - (effect_a + effect_b). Effects are m(edited) - m(base), so for a metric
    that is high when the behaviour is there, two sites that stand in for each other have a negative synergy:
    losing both costs more than the sum of the single losses. NaN where one was not measured.

    Raises:
        SweepError: no pair was edited.
    """
    known: dict[tuple[Any, ...], np.ndarray] = {}
    for record in records:
        known[_setting(record), str(record["what"])] = values_of(record)
    rows: list[dict[str, Any]] = []
    samples: list[np.ndarray] = []
    for record in records:
        sites = sites_of(str(record["what"]))
        if len(sites) != 2:
            continue
        setting, both = _setting(record), values_of(record)
        a, b = (known.get((setting, site), np.zeros(0)) for site in sites)
        # Example by example, so that what is common to the three effects does not widen the interval.
        sample = np.zeros(0)
        if len(a) == len(b) == len(both):
            sample = both - (a + b)
        samples.append(sample)
        row: dict[str, Any] = dict(zip(_SETTING, setting, strict=True))
        row |= {"site_a": sites[0], "site_b": sites[1]}
        row |= {"effect_a": _mean(a), "effect_b": _mean(b), "effect_both": _mean(both)}
        rows.append(row)
    if not rows:
        raise SweepError(
            "There are no pairs: synergy needs a sweep of study 'pairs' (preset pairwise-ablation)."
        )
    frame = pd.concat([pd.DataFrame(rows), estimates(samples).rename(columns={"mean": "synergy"})], axis=1)
    return frame.assign(q=corrected(frame, FAMILY))


def _setting(record: LogRow) -> tuple[Any, ...]:
    return tuple(map(record.get, _SETTING))


def _mean(values: np.ndarray) -> float:
    """The mean, or NaN of nothing: numpy warns of an empty one."""
    if not len(values):
        return float("nan")
    return float(values.mean())


def stability_table(records: Sequence[LogRow]) -> pd.DataFrame:
    """How much the circuits of different seeds agree.

    Mean, least and largest Jaccard index of edges over pairs of seeds.

    Raises:
        SweepError: no record holds the edges of a circuit.
    """
    circuits = [record for record in records if "edges" in (record.get("extra") or {})]
    if not circuits:
        raise SweepError(
            "There are no circuits: stability needs a sweep of study 'stability' (preset circuit-stability)."
        )
    by = [flag for flag in FLAGS if flag not in ("seed", "what")]
    frame = pd.DataFrame([{flag: record.get(flag) for flag in FLAGS} for record in circuits])
    rows: list[dict[str, Any]] = []
    for members in groups(frame, [*by, "what"]):
        rows.append(_agreement([circuits[i] for i in members], by))
    return pd.DataFrame(rows)


def _agreement(circuits: Sequence[LogRow], by: Sequence[str]) -> dict[str, Any]:
    """The row of circuits that differ in their seed alone."""
    first = circuits[0]
    edges = [set(circuit["extra"]["edges"]) for circuit in circuits]
    jaccard: list[float] = []
    for a, b in combinations(edges, 2):
        # Two circuits without edges have nothing in common and nothing apart: 0 / 0.
        jaccard.append(len(a & b) / len(a | b) if a | b else np.nan)
    # With one seed there is no pair that could agree, so the agreement is NaN.
    indices = np.array(jaccard or [np.nan])
    sizes = list(map(len, edges))
    faithfulness = np.array([circuit["extra"].get("faithfulness") for circuit in circuits], dtype=float)
    row = {flag: first.get(flag) for flag in by} | {"what": first["what"]}
    return row | place_of("stability", str(first["what"])) | {
        "jaccard": float(indices.mean()), "least": float(indices.min()), "most": float(indices.max()),
        "seeds": len(circuits), "edges_least": min(sizes), "edges_most": max(sizes),
        "faithfulness": faithfulness.mean(),
    }  # fmt: skip


def difference_table(
    a: pd.DataFrame, b: pd.DataFrame, values_a: Mapping[str, np.ndarray], values_b: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Rows of both tables joined, with difference = b - a.

    A flag that has one label in `a` and another in `b` is what is compared; it is not joined on.

    Args:
        a, b: `rows` of two sweeps.
        values_a, values_b: job → [example].

    Raises:
        SweepError: no row of one has a partner in the other.
    """
    flags = [flag for flag in FLAGS if flag != "what"]
    compared = [flag for flag in flags if _differs(a, b, flag)]
    keys = [*(flag for flag in flags if flag not in compared), "what"]
    stepped = "step" in a and "step" in b
    if stepped:
        keys.append("step")
    columns = [*keys, "job", "mean"]
    of_a = list(columns)
    if stepped and "added" in a:
        of_a.append("added")
    joined = a[of_a].merge(b[columns], on=keys, suffixes=("_a", "_b"), sort=False)
    if joined.empty:
        differences: list[str] = []
        for flag in keys:
            if _labels(a, flag) != _labels(b, flag):
                differences.append(f"{flag}: {_shown(a, flag)} in the first, {_shown(b, flag)} in the second")
        reason = "; ".join(differences) or "One of them has no rows"
        raise SweepError(
            f"The two sweeps have no job in common. {reason}. Compare sweeps that share what they edit."
        )
    # Examples correspond only where both sweeps ran on the same prompts; steps have no examples.
    paired = not stepped and not set(compared) & set(PROMPTS)
    samples: list[np.ndarray] = []
    for first, second in zip(joined["job_a"], joined["job_b"], strict=True):
        x, y = values_a[first], values_b[second]
        sample = np.zeros(0)
        if paired and len(x) == len(y):
            sample = y - x
        samples.append(sample)
    table = joined.rename(columns={"mean_a": "a", "mean_b": "b"}).drop(columns=["job_a", "job_b"])
    table = table.assign(difference=table["b"] - table["a"])
    table = pd.concat([table, estimates(samples).drop(columns="mean")], axis=1)
    table.attrs["apart"] = {flag: (_shown(a, flag), _shown(b, flag)) for flag in compared}
    return table.assign(q=corrected(table, FAMILY))


def _differs(a: pd.DataFrame, b: pd.DataFrame, flag: str) -> bool:
    """Whether a flag has one label in one table, and one other in the other."""
    labels_a, labels_b = _labels(a, flag), _labels(b, flag)
    return len(labels_a) == len(labels_b) == 1 and labels_a != labels_b


def _labels(frame: pd.DataFrame, flag: str) -> set[str]:
    return set(frame[flag].astype(str))


def _shown(frame: pd.DataFrame, flag: str) -> str:
    labels = sorted(_labels(frame, flag))
    shown = ", ".join(labels[:4])
    if len(labels) > 4:
        shown += f" and {len(labels) - 4} more"
    return shown
