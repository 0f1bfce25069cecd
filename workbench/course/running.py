"""Run a notebook and say which of its exercises are right.

What counts is what `check` itself noted in the notebook's kernel, so that a cell which prints "right", a `check` of one's own, or an
exercise that was taken out earns nothing. A notebook is a program all the same: who means to deceive this can.
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
_NOTED = "import sys as _s; print(__import__('json').dumps(getattr(_s.modules.get('workbench.course.exercises'), 'told', [])))"
State = Literal["right", "wrong", "not run"]


class NotebookError(WorkbenchError):
    """A file that is no notebook, or cells that cannot be run."""


@dataclass(frozen=True)
class Result:
    """How an exercise of a notebook went.

    Attributes:
        message: of the checker.
    """

    exercise: str
    state: State
    message: str


@dataclass(frozen=True)
class Ran:
    """A notebook that was run.

    Attributes:
        results: one for each exercise of every lesson that the notebook checks an exercise of, in order. Where an exercise is
            checked more than once, the last time counts.
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


def run_notebook(path: str | Path, *, seconds: int = 600) -> Ran:
    """Run every cell, going on after one that fails, in the notebook's folder. The file stays as it is.

    Args:
        seconds: that a cell may take. One that takes longer, or ends the kernel, is the last that is run.
    Raises:
        NotebookError: it is no notebook, or the extra `notebook` is missing.
    """
    if find_spec("nbclient") is None:
        raise NotebookError("Running a notebook needs Jupyter: pip install 'interp-workbench[notebook]'.")
    import nbformat

    path = Path(path)
    try:
        made: Any = nbformat.read(path, as_version=4)
        nbformat.validate(made, relax_add_props=True)
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        nbformat.reader.NotJSONError,
        nbformat.ValidationError,
    ) as error:
        raise NotebookError(f"{path} is no notebook: {str(error).splitlines()[0]}") from error
    noted, ended = _run(made, path.parent, seconds)
    broken, unchecked = {}, {}
    for i, cell in enumerate(made.cells):
        errors = [out for out in cell.get("outputs", []) if out.output_type == "error"]
        checked = _CHECKED.findall(cell.source) if cell.cell_type == "code" else []
        if errors and not (checked and errors[0].ename == "Wrong"):
            broken[i] = f"{errors[0].ename}: {errors[0].evalue}"
        late = any(i >= last for last in ended)
        unchecked |= dict.fromkeys(
            checked, broken.get(i, "The run ended before." if late else "Its cell said nothing about it.")
        )
    return Ran(_results(noted, unchecked), broken | ended)


def _run(made: Any, folder: Path, seconds: int) -> tuple[Mapping[str, tuple[bool, str]], dict[int, str]]:
    """By exercise, what `check` noted last; and the cell at which the run ended before the notebook did."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    # After each cell, one that asks what was noted so far: what is known before a kernel ends is not lost.
    asking = [nbformat.v4.new_code_cell(_NOTED) for _ in made.cells]
    both: Any = nbformat.from_dict({**made, "cells": []})
    both.cells = [cell for pair in zip(made.cells, asking, strict=True) for cell in pair]
    at = [0]
    runner = NotebookClient(
        both,
        timeout=seconds,
        allow_errors=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=lambda cell, cell_index: at.append(cell_index // 2),
    )
    ended = {}
    try:
        runner.execute(stderr=DEVNULL)  # of the kernel itself: what cells write there is in their outputs
    except CellTimeoutError:
        ended = {at[-1]: f"This took longer than {seconds} seconds. No cell after it was run."}
    except DeadKernelError:
        ended = {at[-1]: "This ended the kernel. No cell after it was run."}
    noted: dict[str, tuple[bool, str]] = {}
    for cell in asking:
        for line in "".join(out.get("text", "") for out in cell.outputs).splitlines()[-1:]:
            with suppress(ValueError):
                noted = {name: (right, message) for name, right, message in json.loads(line)}
    return noted, ended


def _results(noted: Mapping[str, tuple[bool, str]], unchecked: Mapping[str, str]) -> list[Result]:
    """One for each exercise of the lessons that occur."""
    met = {name.split(".")[0] for name in (*noted, *unchecked)}
    results = []
    for each in (found for lesson in LESSONS if str(lesson.number) in met for found in exercises(lesson)):
        if each.name in noted:
            right, message = noted[each.name]
            results.append(Result(each.name, "right" if right else "wrong", message))
        else:
            results.append(Result(each.name, "not run", unchecked.get(each.name, "No cell checks it.")))
    return results
