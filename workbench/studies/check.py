"""`differences`: whether a recomputed study says what a committed one says.

It compares evidence with evidence, field by field; the README is compared with the page that its own evidence
makes.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.circuit.circuit import Circuit
from workbench.studies.evidence import FILE, Evidence
from workbench.studies.prediction import Estimate
from workbench.studies.readme import page

_DECIMAL = re.compile(r"(?<![\w.-])-?\d+\.\d+")
SLACK = 0.002
"""How far a mean may lie outside the other interval: bootstrap ends at three digits move by as much between
machines.
"""
ENDS = 0.1
"""How far the ends of an interval may move, as a share of its width: another order of summation resamples
near-ties.
"""
CLOSE = 0.01
"""How far numbers without an interval may differ, as a share of their size."""


def differences(folder: Path, again: Path) -> list[str]:
    """How a recomputed study differs from a committed one, a sentence each; nothing where they agree.

    Means have to lie in each other's intervals, and the ends of intervals and all other decimals near each
    other, because another machine rounds otherwise; every word, count and edge has to be the same.

    Args:
        folder: the committed study.
        again: the same study computed again.
    """
    circuits = [Circuit.load(each / "circuit.json") for each in (folder, again)]
    evidence = [Evidence.load(each / FILE) for each in (folder, again)]
    drawings = [(each / "circuit.svg").read_text(encoding="utf-8") for each in (folder, again)]
    found = _circuits_differ(*circuits) + _differ("", *evidence)
    for each in (folder, again):
        if (each / "README.md").read_text(encoding="utf-8") != page(Evidence.load(each / FILE)):
            found.append(f"{each.name}/README.md is not the page that its study.json makes")
    # Coordinates in a drawing are decimals, and rounding moves them.
    if _DECIMAL.sub("", drawings[0]) != _DECIMAL.sub("", drawings[1]):
        found.append("circuit.svg shows something else")
    return found


def _circuits_differ(ours: Circuit, theirs: Circuit) -> list[str]:
    if ours != theirs:
        return [f"edges differ: {', '.join(map(str, (ours ^ theirs).edge_list))}"]
    found = ["the roles in circuit.json differ"] if ours.labels != theirs.labels else []
    # Edges that ACDC or a person chose have no scores.
    scores = [np.zeros(0) if each.scores is None else each.scores[each.edges] for each in (ours, theirs)]
    if scores[0].shape != scores[1].shape or not np.allclose(*scores, rtol=CLOSE, atol=1e-4):
        found.append("the scores in circuit.json differ")
    attrs = [_lasting(each.attrs) for each in (ours, theirs)]
    keys = sorted(attrs[0].keys() | attrs[1].keys())
    odd = [key for key in keys if attrs[0].get(key) != attrs[1].get(key)]
    odd += ["prompt_ids"] if ours.prompt_ids != theirs.prompt_ids else []
    return found + ([f"circuit.json differs in {', '.join(odd)}"] if odd else [])


def _lasting(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attrs that do not change with the versions of what computed them."""
    return {key: value for key, value in attrs.items() if not key.startswith("version_")}


def _differ(path: str, ours: Any, theirs: Any) -> list[str]:
    """How two pieces of evidence differ; `path` is where in `study.json` they stand."""
    if isinstance(ours, Estimate) and isinstance(theirs, Estimate):
        return _estimates_differ(path, ours, theirs)
    if type(ours) is not type(theirs):
        return [f"{path}: {theirs!r}, and study.json says {ours!r}"]
    if is_dataclass(ours):
        ours, theirs = _named_fields(ours), _named_fields(theirs)
    if isinstance(ours, Mapping):
        if list(ours) != list(theirs):
            return [f"{path}: it holds {', '.join(theirs)}, and study.json {', '.join(ours)}"]
        return [text for key in ours for text in _differ(f"{path}.{key}".lstrip("."), ours[key], theirs[key])]
    if isinstance(ours, tuple):
        if len(ours) != len(theirs):
            return [f"{path}: {len(theirs)} entries, and study.json has {len(ours)}"]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [text for i, (a, b) in pairs for text in _differ(f"{path}.{getattr(a, 'name', i)}", a, b)]
    # Booleans and integers are exact; only floats depend on the machine.
    if isinstance(ours, float):
        same = np.isclose(theirs, ours, rtol=CLOSE, atol=SLACK, equal_nan=True)
    else:
        same = ours == theirs
    return [] if same else [f"{path}: {theirs!r}, and study.json says {ours!r}"]


def _named_fields(evidence: Any) -> dict[str, Any]:
    return {field.name: getattr(evidence, field.name) for field in fields(evidence)}


def _estimates_differ(path: str, ours: Estimate, theirs: Estimate) -> list[str]:
    if (ours.name, ours.note) != (theirs.name, theirs.note):
        return [f"{path}: {theirs.name}, {theirs.note}, and study.json says {ours.name}, {ours.note}"]
    ends = [(each.low, each.high) for each in (ours, theirs)]
    means = (ours.mean, theirs.mean)
    # Not measured in either: NaN is equal to nothing, so it is asked for by name.
    if np.isnan(means).all():
        return []
    within = all(low - SLACK <= mean <= high + SLACK for mean in means for low, high in ends)
    width = max(high - low for low, high in ends)
    if within and np.allclose(*ends, rtol=0, atol=SLACK + ENDS * width):
        return []
    return [f"{path}: {theirs}, and study.json says {ours}"]
