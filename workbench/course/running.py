"""Run a notebook and say which of its exercises are right.

Read `run_notebook`. What counts is what `check` itself noted in the notebook's kernel, so a cell that prints
"right", a `check` of the student's own, or an exercise that was taken out earns nothing. A notebook is a
program all the same: someone who means to deceive this can.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, Literal

from workbench.course.exercises import exercises
from workbench.course.lessons import LESSONS
from workbench.errors import WorkbenchError

_CHECKED = re.compile(r"""\bcheck\(\s*["']([\d.]+)["']""")
_ASK = (
    "import sys as _s; print(__import__('json').dumps("
    "getattr(_s.modules.get('workbench.course.exercises'), 'verdicts', [])))"
)
"""The cell that asks a notebook's kernel what `check` said so far."""
State = Literal["right", "wrong", "not run"]


class NotebookError(WorkbenchError):
    """A file that is not a notebook, or cells that cannot be run."""


@dataclass(frozen=True)
class Result:
    """How an exercise of a notebook went.

    Attributes:
        exercise: its name, as "4.2".
        state: "right", "wrong" or "not run".
        message: what the checker said, or why it said nothing.
    """

    exercise: str
    state: State
    message: str


@dataclass(frozen=True)
class NotebookRun:
    """A notebook that was run.

    Attributes:
        results: one for each exercise of every lesson that the notebook checks an exercise of, in order.
            Where an exercise is checked more than once, the last time counts.
        broken: errors of cells that check nothing, by the number of the cell.
    """

    results: list[Result]
    broken: dict[int, str]

    @property
    def right(self) -> int:
        """How many exercises are right."""
        return sum(result.state == "right" for result in self.results)

    @property
    def done(self) -> bool:
        """Whether there are exercises, all of them are right, and every cell ran."""
        return bool(self.results) and self.right == len(self.results) and not self.broken


def run_notebook(path: str | Path, *, seconds: int = 600) -> NotebookRun:
    """Run every cell in the notebook's folder, going on after one that fails. The file is not changed.

    Args:
        path: of an .ipynb file.
        seconds: that a cell may take. A cell that takes longer, or ends the kernel, is the last that is run.
    Raises:
        NotebookError: it is not a notebook, or the extra `notebook` is missing.
    """
    if find_spec("nbclient") is None:
        raise NotebookError("Running a notebook needs Jupyter: pip install 'interp-workbench[notebook]'.")
    import nbformat

    path = Path(path)
    unreadable = (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        nbformat.reader.NotJSONError,
        nbformat.ValidationError,
    )
    try:
        notebook: Any = nbformat.read(path, as_version=4)
        nbformat.validate(notebook, relax_add_props=True)
    except unreadable as error:
        raise NotebookError(f"{str(path)!r} is not a notebook: {str(error).splitlines()[0]}") from error
    verdicts, ended = _run(notebook, path.parent, seconds)
    broken, unchecked = {}, {}
    for i, cell in enumerate(notebook.cells):
        errors = [out for out in cell.get("outputs", []) if out.output_type == "error"]
        checked = _CHECKED.findall(cell.source) if cell.cell_type == "code" else []
        if errors and not (checked and errors[0].ename == "Wrong"):
            broken[i] = f"{errors[0].ename}: {errors[0].evalue}"
        reason = "Its cell said nothing about it."
        if any(i >= last for last in ended):
            reason = "The run ended before."
        unchecked |= dict.fromkeys(checked, broken.get(i, reason))
    return NotebookRun(_results(verdicts, unchecked), broken | ended)


def _run(notebook: Any, folder: Path, seconds: int) -> tuple[Mapping[str, tuple[bool, str]], dict[int, str]]:
    """By exercise, what `check` said last; and the cell at which the run ended before the notebook did."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    # After each cell comes one that asks for the verdicts so far: those before a kernel dies are not lost.
    asking = [nbformat.v4.new_code_cell(_ASK) for _ in notebook.cells]
    both: Any = nbformat.from_dict({**notebook, "cells": []})
    both.cells = [cell for pair in zip(notebook.cells, asking, strict=True) for cell in pair]
    started = [0]
    client = NotebookClient(
        both,
        timeout=seconds,
        allow_errors=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=lambda cell, cell_index: started.append(cell_index // 2),
    )
    ended = {}
    try:
        client.execute(stderr=DEVNULL)  # of the kernel itself: what cells write there is in their outputs
    except CellTimeoutError:
        ended = {started[-1]: f"This took longer than {seconds} seconds. No cell after it was run."}
    except DeadKernelError:
        ended = {started[-1]: "This ended the kernel. No cell after it was run."}
    verdicts: dict[str, tuple[bool, str]] = {}
    for cell in asking:
        lines = "".join(out.get("text", "") for out in cell.outputs).splitlines()
        if lines:
            with suppress(ValueError):  # what another cell's thread printed is not a verdict
                verdicts = {name: (right, message) for name, right, message in json.loads(lines[-1])}
    return verdicts, ended


def _results(verdicts: Mapping[str, tuple[bool, str]], unchecked: Mapping[str, str]) -> list[Result]:
    """One for each exercise of the lessons that occur."""
    numbers = {name.split(".")[0] for name in (*verdicts, *unchecked)}
    results = []
    for lesson in LESSONS:
        for one in exercises(lesson) if str(lesson.number) in numbers else ():
            if one.name in verdicts:
                right, message = verdicts[one.name]
                results.append(Result(one.name, "right" if right else "wrong", message))
            else:
                results.append(Result(one.name, "not run", unchecked.get(one.name, "No cell checks it.")))
    return results
