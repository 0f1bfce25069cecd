"""The command of a study."""

import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

from workbench.errors import WorkbenchError
from workbench.files import check_output, replaced
from workbench.models.load import load_model, model_name, one_fingerprint
from workbench.render.circuit.export import export
from workbench.render.circuit.svg import CircuitView
from workbench.studies.bench import Bench
from workbench.studies.check import differences
from workbench.studies.readme import page
from workbench.studies.study import Study
from workbench.studies.table import numbers

FILES = ("circuit.json", "README.md", "circuit.svg")


@one_fingerprint()
def write(
    study: Study, model: Any, out: Path, *, command: str, n: int | None = None, overwrite: bool = False
) -> Bench:
    """Study a model, and write `circuit.json`, `README.md` and `circuit.svg`, all or none."""
    check_output(out, FILES, overwrite=overwrite)
    bench = Bench.of(study, model, n=n)
    text = page(bench, command)
    faithful = numbers(text).get("faithfulness")
    with replaced(out, FILES, overwrite=overwrite) as partial:
        bench.circuit.save(partial / "circuit.json")
        (partial / "README.md").write_text(text, encoding="utf-8")
        view = CircuitView.of(
            bench.circuit, title=f"{study.task} in {model_name(model)}", faithfulness=faithful
        )
        export(view, partial / "circuit.svg")
    return bench


def _asked(study: str, *options: str) -> str:
    return shlex.join(["python", f"circuits/{study}/study.py", *options])


def main(study: Study, folder: Path) -> None:
    """The command line of a study: `study.py [--model tiny] [--out DIR] [--n N] [--check] [--overwrite]`."""

    def command(
        model: str = typer.Option("tiny", help="A name, or a Hugging Face directory."),
        out: Path | None = typer.Option(None, help="Where to write; for tiny the study's own folder."),  # noqa: B008
        n: int | None = typer.Option(None, help="Prompts; None takes the study's."),
        check: bool = typer.Option(
            False, help="Compute it anew and compare with the committed files; write nothing."
        ),
        overwrite: bool = typer.Option(False, help="Replace what is in --out."),
    ) -> None:
        own = model == "tiny" and n is None
        if check and (out is not None or overwrite):
            raise WorkbenchError("--check writes nothing: leave out --out and --overwrite.")
        if out is None and not own and not check:
            raise WorkbenchError(
                "Only tiny with the study's own prompts is written to its folder: give --out DIR."
            )
        if not own and (check or (out is not None and out.resolve() == folder.resolve())):
            raise WorkbenchError(
                "The committed files are about tiny with the study's own prompts: give another --out, no --check."
            )
        if check:
            with tempfile.TemporaryDirectory() as place:
                write(study, load_model(model), Path(place) / folder.name, command=_asked(folder.name), n=n)
                found = differences(folder, Path(place) / folder.name)
            print(
                "\n".join(found)
                or f"{folder.name}: the edges are the same, and every number is within its interval"
            )
            raise typer.Exit(bool(found))
        target = folder if out is None else out
        loaded = load_model(model)
        asked = _asked(
            folder.name, *(() if own else ("--model", model_name(loaded), "--n", str(n or study.n)))
        )
        write(study, loaded, target, command=asked, n=n, overwrite=overwrite or out is None)
        print(target / "README.md")

    try:
        typer.run(command)
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
