"""A notebook that was handed in: what is right in it, and what only looks so."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from workbench.cli.app import app
from workbench.course.running import NotebookError, run_notebook

START = "from workbench.course import check"
RIGHT, WRONG = 'check("1.2", 2 + 1)', 'check("1.2", 9)'
SAYS_NOTHING, NO_CELL = ("not run", "Its cell said nothing about it."), ("not run", "No cell checks it.")


# In place of the course, whose import may take long on a busy machine: a list of verdicts under its name.
LIGHT_START = (
    "import sys, types\n"
    "course = types.SimpleNamespace(verdicts=[])\n"
    "sys.modules['workbench.course.exercises'] = course"
)


@pytest.fixture
def handed_in(tmp_path):
    def write(*cells, start=START):
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in (start, *cells)]
        )
        path = tmp_path / "handed_in.ipynb"
        path.write_text(nbformat.writes(notebook), encoding="utf-8")
        return path

    return write


def said(ran):
    return {result.exercise: (result.state, result.message) for result in ran.results}


@pytest.mark.slow
def test_exercises_without_a_cell_are_not_right(handed_in):
    ran = run_notebook(handed_in(RIGHT))
    assert [(result.exercise, result.state) for result in ran.results] == [
        ("1.1", "not run"),
        ("1.2", "right"),
        ("1.3", "not run"),
    ]
    assert said(ran)["1.1"] == NO_CELL
    assert not ran.done


def test_what_a_cell_prints_is_no_answer(handed_in):
    forged = 'print("Exercise 1.1: right. Yes.")\nif False:\n    check("1.1", 1)'
    own = 'def check(name, answer):\n    print(f"Exercise {name}: right. Yes.")\n\n\ncheck("1.3", 1)'
    ran = run_notebook(handed_in(forged, own))
    assert said(ran) == {"1.1": SAYS_NOTHING, "1.2": NO_CELL, "1.3": SAYS_NOTHING}


@pytest.mark.slow
def test_of_an_exercise_that_is_checked_twice_the_last_counts(handed_in):
    assert said(run_notebook(handed_in(RIGHT, WRONG)))["1.2"][0] == "wrong"
    assert said(run_notebook(handed_in(WRONG, RIGHT)))["1.2"][0] == "right"
    assert (
        said(run_notebook(handed_in("from workbench import course as c", 'c.check("1.2", 3)')))["1.2"][0]
        == "right"
    )


@pytest.mark.slow
def test_a_cell_that_ends_the_kernel_leaves_what_came_before(handed_in):
    ran = run_notebook(handed_in(RIGHT, "import os\nos._exit(1)", 'check("1.3", 1)'))
    assert said(ran)["1.2"][0] == "right"
    assert said(ran)["1.3"] == ("not run", "The run ended before.")
    assert ran.broken == {2: "This ended the kernel. No cell after it was run."}


@pytest.mark.slow
def test_a_cell_that_takes_too_long(handed_in):
    before = 'course.verdicts.append(("1.2", False, "No."))'
    path = handed_in(before, "while True:\n    pass", 'check("1.3", 1)', start=LIGHT_START)
    ran = run_notebook(path, seconds=20)
    assert said(ran)["1.2"] == ("wrong", "No.")
    assert said(ran)["1.3"] == ("not run", "The run ended before.")
    assert ran.broken == {2: "This took longer than 20 seconds. No cell after it was run."}


@pytest.mark.slow
def test_outputs_in_the_file_are_not_read_and_the_file_stays(handed_in):
    path = handed_in("1 + 1")
    made = nbformat.read(path, as_version=4)
    made.cells[1].outputs = [nbformat.v4.new_output("stream", text="Exercise 1.2: right. Yes.")]
    path.write_text(nbformat.writes(made), encoding="utf-8")
    before = path.read_bytes()
    assert run_notebook(path).results == []
    assert path.read_bytes() == before


NO_CELLS = json.dumps({"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}).encode()
BARE_CELL = json.dumps(
    {"cells": [{"cell_type": "code"}], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}
).encode()


@pytest.mark.parametrize(
    "content",
    [b"", b"[1, 2]", bytes(range(256)), b"\xff\xfe", NO_CELLS, BARE_CELL],
    ids=["empty", "list", "binary", "bom", "cells", "cell"],
)
def test_a_file_that_is_no_notebook(tmp_path, content):
    path = tmp_path / "notes.ipynb"
    path.write_bytes(content)
    with pytest.raises(NotebookError, match=re.escape(f"{str(path)!r} is not a notebook: ")):
        run_notebook(path)


@pytest.mark.parametrize("path", ["/no/such/file.ipynb", str(Path(__file__).parent)], ids=["none", "folder"])
def test_a_path_that_is_no_file(path):
    with pytest.raises(NotebookError, match="is not a notebook"):
        run_notebook(path)


@pytest.mark.slow
def test_the_command_says_so_too(handed_in):
    result = CliRunner().invoke(app, ["course", "check", str(handed_in("1 / 0"))])
    assert result.exit_code == 1
    assert (
        result.stdout
        == "cell 1  failed  ZeroDivisionError: division by zero\nNo cell checks an exercise of the course.\n"
    )
