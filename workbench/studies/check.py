"""Whether a study made again says the same."""

import re
from pathlib import Path

import numpy as np

from workbench.circuit.circuit import Circuit
from workbench.studies.table import numbers

_INTERVAL = re.compile(r"(-?\d+\.\d+) \[(-?\d+\.\d+), (-?\d+\.\d+)\]")


_DECIMAL = re.compile(r"(?<![\w.-])-?\d+\.\d+")


def differences(folder: Path, other: Path) -> list[str]:
    """How a recomputed study differs from a committed one, whose every edge, number and word counts.

    Means have to lie in each other's intervals, and their ends and all other decimals near each other, because another
    machine rounds otherwise; everything else has to be the same.
    """
    found = _other_circuit(*(Circuit.load(each / "circuit.json") for each in (folder, other)))
    texts = [(each / "README.md").read_text(encoding="utf-8") for each in (folder, other)]
    known, again = map(numbers, texts)
    found += [f"{name} is in one README only" for name in sorted(known.keys() ^ again.keys())]
    lines = [text.splitlines() for text in texts]
    if len(lines[0]) != len(lines[1]):
        found.append(f"the README has {len(lines[0])} lines, and {len(lines[1])} when made anew")
    else:
        found += [said for ours, theirs in zip(*lines, strict=True) if (said := _other_line(ours, theirs))]
    pictures = [
        _DECIMAL.sub("", (each / "circuit.svg").read_text(encoding="utf-8")) for each in (folder, other)
    ]
    return found + ([] if pictures[0] == pictures[1] else ["circuit.svg shows something else"])


def _other_circuit(ours: Circuit, theirs: Circuit) -> list[str]:
    if ours != theirs:
        return [f"edges differ: {', '.join(map(str, (ours ^ theirs).edge_list))}"]
    found = ["the roles in circuit.json differ"] if ours.labels != theirs.labels else []
    scores = [np.zeros(0) if each.scores is None else each.scores[each.edges] for each in (ours, theirs)]
    if scores[0].shape != scores[1].shape or not np.allclose(*scores, rtol=0.01, atol=1e-4):
        found.append("the scores in circuit.json differ")
    facts = [{k: v for k, v in each.attrs.items() if not k.startswith("version_")} for each in (ours, theirs)]
    odd = sorted(key for key in facts[0].keys() | facts[1].keys() if facts[0].get(key) != facts[1].get(key))
    odd += ["prompt_ids"] if ours.prompt_ids != theirs.prompt_ids else []
    return found + ([f"circuit.json differs in {', '.join(odd)}"] if odd else [])


def _other_line(ours: str, theirs: str) -> str:
    """How a line of a README differs from the one made anew, or nothing."""
    name = ours.split("|")[1].strip() if ours.startswith("| ") else f"{ours[:40]} ..."
    for (a, *ends), (b, *others) in zip(_intervals(ours), _intervals(theirs), strict=False):
        width = max(ends[1] - ends[0], others[1] - others[0])
        if not all(low - 0.002 <= mean <= high + 0.002 for mean in (a, b) for low, high in (ends, others)):
            return f"{name}: {b:.3f}, and the README says {a:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
        if not np.allclose(ends, others, rtol=0, atol=0.002 + width / 10):
            return f"{name}: [{others[0]:.3f}, {others[1]:.3f}], and the README says [{ends[0]:.3f}, {ends[1]:.3f}]"
    rest = [_INTERVAL.sub("", line) for line in (ours, theirs)]
    if _DECIMAL.sub("", rest[0]) != _DECIMAL.sub("", rest[1]):
        return f"{name}: the README says other words"
    near = all(map(_near, *map(_DECIMAL.findall, rest)))
    return "" if near else f"{name}: the README says other numbers"


def _near(ours: str, theirs: str) -> bool:
    """Whether two decimals are within 1 % and their last digit."""
    return abs(float(ours) - float(theirs)) <= 0.01 * abs(float(ours)) + 1.5 * 10 ** -len(
        ours.partition(".")[2]
    )


def _intervals(line: str) -> list[tuple[float, float, float]]:
    return [(float(mean), float(low), float(high)) for mean, low, high in _INTERVAL.findall(line)]
