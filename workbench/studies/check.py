"""`differences`: whether a recomputed study says what a committed one says.

It compares evidence with evidence, field by field; the README is compared with the page that its own evidence
makes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.circuit.circuit import Circuit
from workbench.studies.evidence import FILE, Evidence
from workbench.studies.prediction import Estimate
from workbench.studies.readme import page

_TAG = re.compile(r"<[^>]*>")
_DECIMAL = re.compile(r"(?<![\w.-])-?\d+\.\d+")
SLACK = 0.002
"""How far a mean or an end of an interval may move on another machine, whatever the interval's width."""
MOVES = 0.1
"""How far they may move as a share of the interval's width: sums in another order are rounded differently,
which decides near-ties between prompts.
"""
SHOWN = 0.0101
"""How far a number in a drawing may move: one of the last digit that is written there."""
CLOSE = 0.01
"""How far numbers without an interval may differ, as a share of their size."""


def differences(folder: Path, again: Path) -> list[str]:
    """How a recomputed study differs from a committed one, a sentence each; nothing where they agree.

    Means, ends of intervals and all other decimals have to be near each other, because another machine rounds
    differently; every word, count and edge has to be the same.

    Args:
        folder: the committed study.
        again: the same study computed again.
    """
    ours, theirs = _Files.read(folder), _Files.read(again)
    reasons = _circuits_differ(ours.circuit, theirs.circuit) + _differ("", ours.evidence, theirs.evidence)
    for files in (ours, theirs):
        if files.readme != page(files.evidence):
            reasons.append(f"{files.name}/README.md is not the page that its study.json makes")
    if not _same_drawing(ours.drawing, theirs.drawing):
        reasons.append("circuit.svg shows something else")
    return reasons


def _same_drawing(ours: str, theirs: str) -> bool:
    """Whether two drawings have the same shapes and words, and numbers near each other in their texts."""
    # Coordinates are decimals inside of tags: rounding moves them, so they are not compared.
    if _DECIMAL.sub("", ours) != _DECIMAL.sub("", theirs):
        return False
    numbers = [list(map(float, _DECIMAL.findall(_TAG.sub(" ", drawing)))) for drawing in (ours, theirs)]
    return len(numbers[0]) == len(numbers[1]) and np.allclose(*numbers, rtol=CLOSE, atol=SHOWN)


@dataclass(frozen=True)
class _Files:
    """What the folder of a study holds."""

    name: str
    circuit: Circuit
    evidence: Evidence
    readme: str
    drawing: str

    @classmethod
    def read(cls, folder: Path) -> "_Files":
        """The files of a folder; errors name the one that cannot be read."""
        readme = (folder / "README.md").read_text(encoding="utf-8")
        drawing = (folder / "circuit.svg").read_text(encoding="utf-8")
        circuit, evidence = Circuit.load(folder / "circuit.json"), Evidence.load(folder / FILE)
        return cls(folder.name, circuit, evidence, readme, drawing)


def _circuits_differ(ours: Circuit, theirs: Circuit) -> list[str]:
    if ours != theirs:
        return [f"edges differ: {', '.join(map(str, (ours ^ theirs).edge_list))}"]
    reasons = []
    if ours.labels != theirs.labels:
        reasons.append("the roles in circuit.json differ")
    our_scores, their_scores = _edge_scores(ours), _edge_scores(theirs)
    same_shape = our_scores.shape == their_scores.shape
    if not same_shape or not np.allclose(our_scores, their_scores, rtol=CLOSE, atol=1e-4):
        reasons.append("the scores in circuit.json differ")
    our_attrs, their_attrs = _lasting(ours.attrs), _lasting(theirs.attrs)
    keys = sorted(our_attrs.keys() | their_attrs.keys())
    changed = [key for key in keys if our_attrs.get(key) != their_attrs.get(key)]
    if ours.prompt_ids != theirs.prompt_ids:
        changed.append("prompt_ids")
    if changed:
        reasons.append(f"circuit.json differs in {', '.join(changed)}")
    return reasons


def _edge_scores(circuit: Circuit) -> np.ndarray:
    """[edge]: the scores of its edges; none where a person chose them."""
    if circuit.scores is None:
        return np.zeros(0)
    return circuit.scores[circuit.edges]


def _lasting(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attrs that change neither with the versions of what computed them nor with the processor."""
    # How many scores are exactly 0 is up to rounding.
    return {
        key: value
        for key, value in attrs.items()
        if not key.startswith("version_") and key != "edges_of_gradient_0"
    }


def _differ(path: str, ours: Any, theirs: Any) -> list[str]:
    """How two pieces of evidence differ; `path` is where in `study.json` they stand."""
    if isinstance(ours, Estimate) and isinstance(theirs, Estimate):
        return _estimates_differ(path, ours, theirs)
    if type(ours) is not type(theirs):
        return [f"{path}: {theirs!r}, and study.json says {ours!r}"]
    if is_dataclass(ours):
        ours, theirs = _named_fields(ours), _named_fields(theirs)
    reasons: list[str] = []
    if isinstance(ours, Mapping):
        if list(ours) != list(theirs):
            return [f"{path}: it holds {', '.join(theirs)}, and study.json {', '.join(ours)}"]
        for key in ours:
            reasons += _differ(f"{path}.{key}".lstrip("."), ours[key], theirs[key])
        return reasons
    if isinstance(ours, tuple):
        if len(ours) != len(theirs):
            return [f"{path}: {len(theirs)} entries, and study.json has {len(ours)}"]
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            # By name where there is one: "tests.values" tells a reader more than "tests.3".
            reasons += _differ(f"{path}.{getattr(a, 'name', i)}", a, b)
        return reasons
    # Booleans and integers are exact; only floats depend on the machine.
    if isinstance(ours, float):
        same = np.isclose(theirs, ours, rtol=CLOSE, atol=SLACK, equal_nan=True)
    else:
        same = ours == theirs
    if not same:
        reasons.append(f"{path}: {theirs!r}, and study.json says {ours!r}")
    return reasons


def _named_fields(evidence: Any) -> dict[str, Any]:
    return {field.name: getattr(evidence, field.name) for field in fields(evidence)}


def _estimates_differ(path: str, ours: Estimate, theirs: Estimate) -> list[str]:
    if (ours.name, ours.note) != (theirs.name, theirs.note):
        return [f"{path}: {theirs.name}, {theirs.note}, and study.json says {ours.name}, {ours.note}"]
    # Not measured in either: NaN is equal to nothing, so it is asked for by name.
    if np.isnan((ours.mean, theirs.mean)).all():
        return []
    width = max(ours.high - ours.low, theirs.high - theirs.low)
    mean_and_ends = [(one.mean, one.low, one.high) for one in (ours, theirs)]
    if np.allclose(*mean_and_ends, rtol=0, atol=SLACK + MOVES * width):
        return []
    return [f"{path}: {theirs}, and study.json says {ours}"]
