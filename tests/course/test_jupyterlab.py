"""Every lesson runs from top to bottom in JupyterLab, in a browser that reaches nothing else: no cell fails, every
exercise is right, every lesson shows a picture.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

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
    for lesson in lessons:
        shutil.copy(ROOT / "notebooks" / "solutions" / f"{lesson.file}.ipynb", tmp_path)
    with lab(tmp_path) as server:
        for lesson in lessons:
            ran = run_all(server, f"{lesson.file}.ipynb", seconds=300)
            assert ran.errors == [], lesson.title
            assert ran.requests == [], lesson.title
            for exercise in exercises(lesson):
                assert f"Exercise {exercise.name}: right." in printed(ran.cells), exercise.name
            pictures = {"image/png", "text/html", "image/svg+xml"} & set(kinds_shown(ran.cells))
            assert pictures, f"{lesson.title} shows no picture"
