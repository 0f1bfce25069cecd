"""Notebooks from their sources: `NN_name.py` here becomes `NN_name.ipynb` for students and `solutions/NN_name.ipynb`.

    python notebooks/make.py [--run [NN_name ...]]

A source is in percent format. What stands between `# SOLUTION` and `# STUDENT` is for the solutions only; the lines from there to
`# END`, written as comments, are what a student finds instead. A picture `attachment:NAME` of a text cell is the
file of that name here, and goes into the notebook. Solutions keep the outputs that they have; `--run` makes them
anew, of all or of the named ones (minutes).
"""

import base64
import os
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
_ATTACHED = re.compile(r"\(attachment:([\w.]+)\)")
_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_LONGEST = 300  # of a picture's text, which is shown only where the picture cannot be
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
        names = _ATTACHED.findall(cell.source) if cell.cell_type == "markdown" else []
        if names:
            cell["attachments"] = {
                name: {"image/png": base64.b64encode((HERE / name).read_bytes()).decode()} for name in names
            }
    document.metadata = nbformat.from_dict(_KERNEL)
    document.nbformat, document.nbformat_minor = 4, 5
    return document


def run(document: Any) -> Any:
    """The notebook with the outputs of its cells, cleaned; an error stops it."""
    from nbclient import NotebookClient

    # The kernel draws its figures for the notebook, whatever this process draws them for.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    client = NotebookClient(
        document, timeout=600, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(HERE)}}
    )  # fmt: skip
    client.execute(env=environment | {"TQDM_DISABLE": "1"})
    clean(document.cells)
    document.metadata = nbformat.from_dict(_KERNEL)
    return document


def clean(cells: Any) -> None:
    """Leave in outputs what is the same on every machine and can be shown without running anything.

    Warnings name files of the machine; a notebook from elsewhere is not trusted, so its scripts never run, and
    pictures show their still form.
    """
    for cell in cells:
        if cell.cell_type != "code":
            continue
        kept: list[Any] = []
        for output in cell.outputs:
            if output.get("name") == "stderr":
                continue
            if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
            if "data" in output:
                output.metadata = {}
                _clean_data(output.data)
            kept.append(output)
        cell.outputs = kept


def _clean_data(data: Any) -> None:
    if "text/html" in data:
        data["text/html"] = _SCRIPT.sub("", data["text/html"])
    if "text/plain" in data:
        plain = _ADDRESS.sub("", data["text/plain"])
        is_long = len(data) > 1 and len(plain) > _LONGEST
        data["text/plain"] = f"<{plain.partition('(')[0]}>" if is_long else plain


def with_outputs(document: Any, saved: Any) -> Any:
    """The notebook with the outputs of a saved one, where a cell is still the same."""
    by_source = {cell.source: cell for cell in saved.cells if cell.cell_type == "code"}
    for cell in document.cells:
        if cell.cell_type == "code" and cell.source in by_source:
            cell.outputs = by_source[cell.source].outputs
            cell.execution_count = by_source[cell.source].execution_count
    return document


def written(document: Any) -> str:
    """The notebook as text."""
    return nbformat.writes(document) + "\n"


def places(path: Path) -> dict[bool, Path]:
    """Where the notebooks of a source are: of the solutions (True), of students (False)."""
    return {True: HERE / "solutions" / f"{path.stem}.ipynb", False: HERE / f"{path.stem}.ipynb"}


def main() -> None:
    (HERE / "solutions").mkdir(exist_ok=True)
    named = [name for name in sys.argv[1:] if name != "--run"]
    for path in sources():
        source = path.read_text(encoding="utf-8")
        for solution, place in places(path).items():
            document = notebook(source, solution=solution)
            if solution and "--run" in sys.argv and (not named or path.stem in named):
                document = run(document)
            elif solution and place.exists():
                document = with_outputs(document, nbformat.read(place, as_version=4))
            place.write_text(written(document), encoding="utf-8")
            print(place.relative_to(HERE), file=sys.stderr)


if __name__ == "__main__":
    main()
