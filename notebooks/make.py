"""Notebooks from their sources: `NN_name.py` here becomes `NN_name.ipynb` for students and `solutions/NN_name.ipynb`.

    python notebooks/make.py

A source is in percent format. What stands between `# SOLUTION` and `# STUDENT` is for the solutions only; the lines from there to
`# END`, written as comments, are what a student finds instead.
"""

import re
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat

HERE = Path(__file__).parent
_REGION = re.compile(
    r"^# SOLUTION\n(?P<solution>.*?)^# STUDENT\n(?P<student>.*?)^# END\n", re.MULTILINE | re.DOTALL
)
_COMMENT = re.compile(r"^# ?", re.MULTILINE)
_KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def sources() -> list[Path]:
    """The sources, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def text_of(source: str, *, solution: bool) -> str:
    """The text of one of the two versions of a source."""
    text = _REGION.sub(
        lambda region: region["solution"] if solution else _COMMENT.sub("", region["student"]), source
    )
    left = re.search(r"^# (SOLUTION|STUDENT|END)$", text, re.MULTILINE)
    if left:
        raise ValueError(f"A region is not complete: {left[0]!r} is left in the text.")
    return text


def notebook(source: str, *, solution: bool) -> Any:
    """One of the two notebooks of a source, without outputs and with the same cell ids each time."""
    document = jupytext.reads(text_of(source, solution=solution), fmt="py:percent")
    for i, cell in enumerate(document.cells):
        cell["id"], cell["metadata"] = f"cell-{i:02d}", {}
    document.metadata = nbformat.from_dict(_KERNEL)
    document.nbformat, document.nbformat_minor = 4, 5
    return document


def written(source: str, *, solution: bool) -> str:
    """The notebook as text."""
    return nbformat.writes(notebook(source, solution=solution)) + "\n"


def places(path: Path) -> dict[bool, Path]:
    """Where the notebooks of a source are: of the solutions (True), of students (False)."""
    return {True: HERE / "solutions" / f"{path.stem}.ipynb", False: HERE / f"{path.stem}.ipynb"}


def main() -> None:
    (HERE / "solutions").mkdir(exist_ok=True)
    for path in sources():
        for solution, place in places(path).items():
            place.write_text(written(path.read_text(encoding="utf-8"), solution=solution), encoding="utf-8")
            print(place.relative_to(HERE), file=sys.stderr)


if __name__ == "__main__":
    main()
