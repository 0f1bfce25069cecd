"""Every lesson runs from top to bottom in JupyterLab, in a browser that reaches nothing else: no cell fails, every
exercise is right, every lesson shows a picture, and what it is saved with.
"""

import json
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebook_outputs import differences

from notebooks import lab, run_all
from workbench.course import LESSONS
from workbench.course.exercises import exercises

ROOT = Path(__file__).parents[2]


def kinds_shown(cells: Sequence[Any]) -> Iterator[str]:
    """The media types of what cells show."""
    for cell in cells:
        for output in cell.get("outputs", []):
            yield from output.get("data", {})


def printed(cells: Sequence[Any]) -> str:
    """What cells print."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", "")) for output in outputs)


# Two halves, so that two workers share the longest test of the suite; a server for each lesson would cost more.
@pytest.mark.slow
@pytest.mark.parametrize("lessons", [LESSONS[::2], LESSONS[1::2]], ids=["even", "odd"])
def test_lessons_run_in_jupyterlab(lessons, tmp_path):
    make = runpy.run_path(str(ROOT / "notebooks" / "make.py"))
    for lesson in lessons:
        # Without the outputs that it is saved with: what stands there afterwards was shown now.
        source = (ROOT / "notebooks" / f"{lesson.file}.py").read_text(encoding="utf-8")
        empty = make["written"](make["notebook"](source, solution=True))
        (tmp_path / f"{lesson.file}.ipynb").write_text(empty, encoding="utf-8")
    with lab(tmp_path) as server:
        for lesson in lessons:
            ran = run_all(server, f"{lesson.file}.ipynb", seconds=300)
            assert ran.errors == [], lesson.title
            assert ran.requests == [], lesson.title
            for exercise in exercises(lesson):
                assert f"Exercise {exercise.name}: right." in printed(ran.cells), exercise.name
            pictures = {"image/png", "text/html", "image/svg+xml"} & set(kinds_shown(ran.cells))
            assert pictures, f"{lesson.title} shows no picture"
            saved = nbformat.read(ROOT / "notebooks" / "solutions" / f"{lesson.file}.ipynb", as_version=4)
            whole = {"cells": ran.cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
            shown = nbformat.reads(json.dumps(whole), as_version=4).cells
            make["clean"](shown)
            assert differences(saved.cells, shown) == [], f"{lesson.title}: python notebooks/make.py --run"
