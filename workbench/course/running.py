"""Run a notebook and say which of its exercises are right."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from workbench.errors import WorkbenchError

_CHECKED = re.compile(r"""^\s*(?:course\.)?check\(\s*["']([\d.]+)["']""", re.MULTILINE)
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
        broken: errors of cells that check nothing, by the number of the cell.
    """

    results: list[Result]
    broken: dict[int, str]


def run_notebook(path: str | Path, *, seconds: int = 600) -> Ran:
    """Run every cell, going on after one that fails, in the notebook's folder. The file stays as it is.

    Args:
        seconds: that a cell may take.
    Raises:
        NotebookError: it is no notebook, or the extra `notebook` is missing.
    """
    if find_spec("nbclient") is None:
        raise NotebookError("Running a notebook needs Jupyter: pip install 'interp-workbench[notebook]'.")
    import nbformat
    from nbclient import NotebookClient

    path = Path(path)
    try:
        made: Any = nbformat.read(path, as_version=4)
    except (OSError, UnicodeDecodeError, ValueError, nbformat.reader.NotJSONError, AttributeError) as error:
        raise NotebookError(f"{path} is no notebook: {error}") from error
    NotebookClient(
        made, timeout=seconds, allow_errors=True, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    results, broken = [], {}
    for i, cell in enumerate(made.cells):
        if cell.cell_type != "code":
            continue
        errors = [out for out in cell.outputs if out.output_type == "error"]
        said = "".join(out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout")
        for name in _CHECKED.findall(cell.source):
            results.append(_result(name, said, errors))
        if errors and not (_CHECKED.search(cell.source) and errors[0].ename == "Wrong"):
            broken[i] = f"{errors[0].ename}: {errors[0].evalue}"
    return Ran(results, broken)


def _result(name: str, said: str, errors: list[Any]) -> Result:
    right = re.search(rf"^Exercise {re.escape(name)}: right\. (.*)", said, re.MULTILINE)
    if right:
        return Result(name, "right", right[1])
    if errors and errors[0].evalue.startswith(f"Exercise {name}"):
        return Result(name, "wrong", errors[0].evalue)
    return Result(name, "not run", f"{errors[0].ename}: {errors[0].evalue}" if errors else "Nothing was said.")
