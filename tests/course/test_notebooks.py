"""The notebooks: they match their sources, solutions run, a student's version fails only at its exercises."""

import functools
import json
import runpy
from pathlib import Path

import pytest
from browsers import BROWSER

from workbench.course import LESSONS
from workbench.course.exercises import exercises
from workbench.course.running import run_notebook

ROOT = Path(__file__).parents[2]
PARTS = (
    "**Goal.**",
    "**Time**",
    "**Prerequisites**",
    "## Predict first",
    "## What could be wrong with this conclusion?",
    "**Further reading.**",
)


@functools.cache
def make():
    """What `notebooks/make.py` defines; its imports take seconds, so not while tests are collected."""
    return runpy.run_path(str(ROOT / "notebooks" / "make.py"))


def source(lesson):
    return ROOT / "notebooks" / f"{lesson.file}.py"


def test_there_is_a_source_for_each_lesson():
    assert [path.stem for path in make()["sources"]()] == [lesson.file for lesson in LESSONS]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.module)
def test_notebooks_are_those_of_their_source(lesson):
    text = source(lesson).read_text(encoding="utf-8")
    for solution, place in make()["places"](source(lesson)).items():
        assert place.read_text(encoding="utf-8") == make()["written"](text, solution=solution), (
            f"run python notebooks/make.py ({place.name})"
        )


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.module)
def test_a_lesson_has_its_parts(lesson):
    text = source(lesson).read_text(encoding="utf-8")
    assert f"# # {lesson.number} · {lesson.title}" in text
    assert f"**Time** {lesson.minutes} minutes." in text
    for heading in PARTS:
        assert heading in text, heading
    assert "picture to remember" in text.replace("\n# ", " ")  # a sentence may go over a line's end
    for exercise in exercises(lesson):
        assert f"**Exercise {exercise.name}** ({exercise.difficulty})." in text
        assert f'check("{exercise.name}", ' in text


def test_students_do_not_find_the_solutions():
    text = "a = 1\n# SOLUTION\nb = 2\n# STUDENT\n# b = ...\n# END\nc = 3\n"
    assert make()["text_of"](text, solution=False) == "a = 1\nb = ...\nc = 3\n"
    assert make()["text_of"](text, solution=True) == "a = 1\nb = 2\nc = 3\n"
    with pytest.raises(ValueError, match="not complete"):
        make()["text_of"]("# SOLUTION\nb = 2\n# END\n", solution=True)


@pytest.mark.slow
@pytest.mark.skipif(
    BROWSER is not None, reason="test_jupyterlab runs the same notebooks, with the same claims"
)
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.module)
def test_the_solutions_run(lesson):
    ran = run_notebook(make()["places"](source(lesson))[True])
    assert ran.broken == {}
    assert [(result.exercise, result.state) for result in ran.results] == [
        (each.name, "right") for each in exercises(lesson)
    ], ran


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.module)
def test_a_students_version_fails_at_its_exercises_only(lesson):
    place = make()["places"](source(lesson))[False]
    ran = run_notebook(place)
    assert ran.broken == {}
    for result, each in zip(ran.results, exercises(lesson), strict=True):
        assert (result.exercise, result.state) == (each.name, "wrong")
    outputs = [
        cell.get("outputs")
        for cell in json.loads(place.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    assert not any(outputs)
