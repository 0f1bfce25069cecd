"""The table of all studies."""

import re
from pathlib import Path

from workbench.circuit.circuit import Circuit
from workbench.studies.readme import _table
from workbench.studies.study import Number

_SCORES = ("faithfulness", "complement", "random circuits", "other heads", "stability")


_ROW = re.compile(r"^\| ([^|]+?) \| (-?\d+\.\d+) \[(-?\d+\.\d+), (-?\d+\.\d+)\] \|", re.MULTILINE)


_VERDICT = re.compile(r"\| (holds|\*\*fails\*\*) \|")


def numbers(readme: str) -> dict[str, tuple[float, float, float]]:
    """Name → (mean, low, high) of every row of a study's README that begins with a number with its interval."""
    return {name: (float(a), float(b), float(c)) for name, a, b, c in _ROW.findall(readme)}


def table(circuits: Path) -> str:
    """The studies in a folder of circuits side by side, a row for each, from their committed files."""
    head = ("study", "edges", *_SCORES, "most of another task", "predictions held")
    folders = [
        path.parent
        for path in sorted(circuits.glob("*/study.py"))
        if (path.parent / "circuit.json").is_file()
    ]
    return _table(head, [_line(folder) for folder in folders])


def _line(folder: Path) -> tuple[str, ...]:
    circuit, readme = (
        Circuit.load(folder / "circuit.json"),
        (folder / "README.md").read_text(encoding="utf-8"),
    )
    known = {name: Number(name, *three) for name, three in numbers(readme).items()}
    other = max(
        (number for name, number in known.items() if name.startswith("on ")), key=lambda number: number.mean
    )
    verdicts = _VERDICT.findall(readme)
    return (
        f"[{folder.name}]({folder.name}/README.md)",
        f"{circuit.n_edges} of {circuit.graph.n_edges}",
        *(str(known[name]) for name in _SCORES),
        f"{other} {other.name}",
        f"{verdicts.count('holds')} of {len(verdicts)}",
    )
