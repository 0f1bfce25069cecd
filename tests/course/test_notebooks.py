"""The notebooks: they match their sources, solutions run and show what they are saved with, a student's version fails
only at its exercises.
"""

import functools
import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest
from browsers import BROWSER
from notebook_outputs import alike, differences
from PIL import Image

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
        saved = nbformat.read(place, as_version=4)
        for cell in saved.cells if solution else ():
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        assert saved == make()["notebook"](text, solution=solution), (
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
        asked = text.partition(f"**Exercise {exercise.name}**")[2].partition("# %%")[0]
        assert asked.count("<details>") == asked.count("</details>") == 2, f"{exercise.name}: two hints"
    last = text.rpartition("\n#\n# ")[2].replace("\n# ", " ").strip()
    assert re.fullmatch(r"\*\*You may not conclude\*\* that [^.]+\.", last)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.module)
def test_solutions_are_saved_with_outputs_that_fit_any_machine(lesson):
    place = make()["places"](source(lesson))[True]
    text = place.read_text(encoding="utf-8")
    cells = [cell for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs]
    assert {"image/png", "text/html"} & {kind for output in shown for kind in output.get("data", {})}
    assert all(cell.execution_count for cell in cells), "run python notebooks/make.py --run"
    assert "error" not in {output.output_type for output in shown}
    assert "stderr" not in {output.get("name") for output in shown}
    for exercise in exercises(lesson):
        assert f"Exercise {exercise.name}: right." in text
    assert not re.search(r"ipykernel_|/home/|/root/|/tmp/| at 0x", text)
    assert len(text) < 400_000


def test_the_diagram_is_that_of_its_script_and_travels_in_the_notebook():
    diagram = runpy.run_path(str(ROOT / "notebooks" / "diagram.py"))
    assert diagram["PLACE"].read_text(encoding="utf-8") == diagram["drawing"]()
    with Image.open(ROOT / "notebooks" / "transformer.png") as drawn:
        assert drawn.info["Source"] == diagram["mark"](diagram["drawing"]())
    text = source(LESSONS[0]).read_text(encoding="utf-8")
    assert f"![{diagram['ALT']}](attachment:transformer.png)" in text
    pictures = [cell.get("attachments", {}) for cell in make()["notebook"](text, solution=False).cells]
    assert next(filter(None, pictures)).keys() == {"transformer.png"}


def test_lesson_0_begins_with_one_picture_in_ten_lines():
    cells = make()["notebook"](source(LESSONS[0]).read_text(encoding="utf-8"), solution=False).cells
    code = next(cell.source for cell in cells if cell.cell_type == "code")
    assert len(code.splitlines()) <= 10
    assert "panels.attention" in code.splitlines()[-1]


def test_numbers_may_differ_by_a_share_of_the_largest_and_words_may_not():
    assert alike("effect -8.21 of 9.20", "effect -8.22 of 9.20")
    assert not alike("effect -8.21 of 9.20", "effect -7.21 of 9.20")
    assert not alike("effect -8.21 of 9.20", "effects -8.21 of 9.20")
    assert not alike("1 of 2", "1")


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
    place = make()["places"](source(lesson))[True]
    ran = run_notebook(place)
    assert ran.broken == {}
    assert [(result.exercise, result.state) for result in ran.results] == [
        (each.name, "right") for each in exercises(lesson)
    ], ran
    text = source(lesson).read_text(encoding="utf-8")
    again = make()["run"](make()["notebook"](text, solution=True))
    assert differences(nbformat.read(place, as_version=4).cells, again.cells) == []


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
