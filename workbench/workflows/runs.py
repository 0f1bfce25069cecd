"""Pages of the folders of runs: one run shown again (`workbench report`), or two compared (`workbench diff`).

`report_run` and `report_difference` read files only and need no model: circuits, results (netCDF) and tables
(parquet) are known by their names (`run_files.py`). `run_contents.py` says what is shown of each, and
`run_difference.py` what differs; how a circuit or a result is drawn is decided in `render`.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.render.report import report
from workbench.workflows.run_contents import Section, shown_content
from workbench.workflows.run_difference import difference_of
from workbench.workflows.run_files import read_file, run_files
from workbench.workflows.run_leads import lead_of_difference, lead_of_run


def report_run(
    folder: str | Path, path: str | Path, *, command: str | None = None, overwrite: bool = False
) -> Path:
    """A page of every circuit, result and table in a folder; of a file that cannot be read it says why.

    Raises:
        WorkbenchError: there is no such folder, or nothing in it can be read.
        OutputExists: the page is there already.
    """
    folder = Path(folder)
    sections: list[Section] = []
    failures: list[WorkbenchError] = []
    contents: dict[str, Any] = {}
    for name, kind in run_files(folder).items():
        try:
            contents[name] = read_file(folder / name, kind)
            shown, caption = shown_content(contents[name])
            sections.append((heading_of(name), shown, _with_file(caption, name)))
        except WorkbenchError as error:
            # One damaged file leaves the others; only a page of nothing but errors is refused.
            failures.append(error)
            sections.append((heading_of(name), str(error), ""))
    if len(failures) == len(sections):
        raise WorkbenchError(f"Nothing in {str(folder)!r} can be read. {' '.join(map(str, failures))}")
    return report(
        sections,
        path,
        title=f"Run {folder.name}",
        subtitle=str(folder),
        lead=lead_of_run(contents),
        command=command,
        overwrite=overwrite,
    )


def heading_of(file: str) -> str:
    """What a section of a file is called: the name of the file in words.

    >>> heading_of("head_ablation.nc"), heading_of("ioi.circuit.json")
    ('Head ablation', 'Ioi circuit')
    """
    words = Path(file).stem.replace("_", " ").replace(".", " ")
    return f"{words[:1].upper()}{words[1:]}"


def _with_file(caption: str, file: str) -> str:
    """The caption, with the file that is shown."""
    return f"{caption} File: {file}".strip()


def report_difference(
    a: str | Path, b: str | Path, path: str | Path, *, command: str | None = None, overwrite: bool = False
) -> Path:
    """A page of what differs between two runs: their circuits edge by edge, their results cell by cell.

    Raises:
        WorkbenchError: no such folder, or no file that both have.
        OutputExists: the page is there already.
    """
    folders = (Path(a), Path(b))
    first_files, second_files = map(run_files, folders)
    both = {name: kind for name, kind in first_files.items() if name in second_files}
    if not both:
        raise WorkbenchError(
            f"{str(a)!r} and {str(b)!r} have no file in common: {', '.join(first_files)} in the first, "
            f"{', '.join(second_files)} in the second."
        )
    # The names of the folders head the page; where they are alike the paths tell them apart.
    names = (folders[0].name, folders[1].name)
    if names[0] == names[1]:
        names = (str(a), str(b))
    sections: list[Section] = []
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, kind in both.items():
        try:
            first, second = (read_file(folder / name, kind) for folder in folders)
            pairs[name] = first, second
            shown, caption = difference_of(first, second, names)
            sections.append((heading_of(name), shown, _with_file(caption, name)))
        except WorkbenchError as error:
            sections.append((heading_of(name), str(error), ""))
    unshared = [(names[0], file) for file in first_files if file not in both]
    unshared += [(names[1], file) for file in second_files if file not in both]
    if unshared:
        sections.append(("Only in one", pd.DataFrame(unshared, columns=["run", "file"]), ""))
    title = f"{names[0]} and {names[1]}"
    lead = lead_of_difference(pairs, names, unshared)
    return report(sections, path, title=title, lead=lead, command=command, overwrite=overwrite)
