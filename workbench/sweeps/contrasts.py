"""What needs several jobs at once: synergy of pairs, agreement of circuits, the difference between two sweeps."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import SweepError
from workbench.sweeps.places import place_of, sites_of
from workbench.sweeps.rows import FAMILY, FLAGS, PROMPTS, LogRow, corrected, estimates, groups, values_of

_SETTING = tuple(flag for flag in FLAGS if flag != "what")


def synergy_table(records: Sequence[LogRow]) -> pd.DataFrame:
    """Each pair that was edited together beside its two sites edited alone, on the same examples.

    synergy = effect_both - (effect_a + effect_b). Effects are m(edited) - m(base), so a site that stands in for another has
    a negative synergy where the metric is high: losing both costs more than the two losses. NaN where one was not measured.
    """
    known = {(_setting(record), str(record["what"])): values_of(record) for record in records}
    rows, samples = [], []
    for record in records:
        sites = sites_of(str(record["what"]))
        if len(sites) != 2:
            continue
        setting = _setting(record)
        a, b = (known.get((setting, site), np.zeros(0)) for site in sites)
        both = values_of(record)
        same = len(a) == len(b) == len(both)
        samples.append(both - (a + b) if same else np.zeros(0))
        effects = {
            name: float(sample.mean()) if len(sample) else np.nan
            for name, sample in (("a", a), ("b", b), ("both", both))
        }
        flags = {flag: record.get(flag) for flag in _SETTING}
        rows.append(
            flags
            | {"site_a": sites[0], "site_b": sites[1]}
            | {f"effect_{name}": x for name, x in effects.items()}
        )
    if not rows:
        raise SweepError(
            "There are no pairs: synergy is of a sweep of study 'pairs' (preset pairwise-ablation)."
        )
    frame = pd.concat([pd.DataFrame(rows), estimates(samples).rename(columns={"mean": "synergy"})], axis=1)
    return frame.assign(q=corrected(frame, FAMILY))


def _setting(record: LogRow) -> tuple[Any, ...]:
    return tuple(record.get(flag) for flag in _SETTING)


def stability_table(records: Sequence[LogRow]) -> pd.DataFrame:
    """How much the circuits of different seeds agree: mean, least and largest Jaccard index of edges over pairs of seeds."""
    found = [record for record in records if "edges" in (record.get("extra") or {})]
    if not found:
        raise SweepError(
            "There are no circuits: stability is of a sweep of study 'stability' (preset circuit-stability)."
        )
    by = [flag for flag in FLAGS if flag not in ("seed", "what")]
    frame, rows = pd.DataFrame([{flag: record.get(flag) for flag in FLAGS} for record in found]), []
    for at in groups(frame, [*by, "what"]):
        edges = [set(found[i]["extra"]["edges"]) for i in at]
        agreement = np.array(
            [len(a & b) / len(a | b) if a | b else np.nan for a, b in combinations(edges, 2)]
        )
        first, sizes = found[at[0]], [len(each) for each in edges]
        ends = (agreement.mean(), agreement.min(), agreement.max()) if len(agreement) else (np.nan,) * 3
        faithfulness = np.array([found[i]["extra"].get("faithfulness") for i in at], dtype=float)
        flags = (
            {flag: first.get(flag) for flag in by}
            | {"what": first["what"]}
            | place_of("stability", str(first["what"]))
        )
        numbers = dict(zip(("jaccard", "least", "most"), map(float, ends), strict=True)) | {"seeds": len(at)}
        rows.append(
            flags
            | numbers
            | {"edges_least": min(sizes), "edges_most": max(sizes), "faithfulness": faithfulness.mean()}
        )
    return pd.DataFrame(rows)


def difference_table(
    a: pd.DataFrame, b: pd.DataFrame, values_a: dict[str, np.ndarray], values_b: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Rows of both tables joined, with difference = b - a. A flag that is one thing in `a` and another in `b` is not joined on."""
    flags = [flag for flag in FLAGS if flag != "what"]
    apart = [
        flag
        for flag in flags
        if len(_labels(a, flag)) == len(_labels(b, flag)) == 1 and _labels(a, flag) != _labels(b, flag)
    ]
    keys = [*(flag for flag in flags if flag not in apart), "what"]
    keys += ["step"] if "step" in a and "step" in b else []
    columns = [*keys, "job", "mean"]
    joined = a[[*columns, *(name for name in ("added",) if name in a and "step" in keys)]].merge(
        b[columns], on=keys, suffixes=("_a", "_b"), sort=False
    )
    if joined.empty:
        told = "; ".join(
            f"{flag}: {_told(a, flag)} there, {_told(b, flag)} here"
            for flag in keys
            if _labels(a, flag) != _labels(b, flag)
        )
        raise SweepError(
            f"The two sweeps have no job in common. {told or 'One of them has no rows'}. Compare sweeps that share what they edit."
        )
    paired = not set(apart) & set(PROMPTS)
    samples = []
    for first, second in zip(joined["job_a"], joined["job_b"], strict=True):
        x, y = values_a[first], values_b[second]
        samples.append(y - x if paired and "step" not in keys and len(x) == len(y) else np.zeros(0))
    made = joined.rename(columns={"mean_a": "a", "mean_b": "b"}).drop(columns=["job_a", "job_b"])
    numbers = estimates(samples).drop(columns="mean")
    made = pd.concat([made.assign(difference=made["b"] - made["a"]), numbers], axis=1)
    made.attrs["apart"] = {flag: (_told(a, flag), _told(b, flag)) for flag in apart}
    return made.assign(q=corrected(made, FAMILY))


def _labels(frame: pd.DataFrame, flag: str) -> set[str]:
    return set(frame[flag].astype(str))


def _told(frame: pd.DataFrame, flag: str) -> str:
    labels = sorted(_labels(frame, flag))
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
