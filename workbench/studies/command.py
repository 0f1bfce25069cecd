"""The command of a study: `write` studies a model and fills its folder; `main` is a `study.py`'s command."""

import shlex
import sys
import tempfile
from pathlib import Path

import typer

from workbench.errors import WorkbenchError
from workbench.files import check_output, replaced
from workbench.models.calls import model_call
from workbench.models.load import load_model, model_name
from workbench.models.model import Model
from workbench.models.pinned import PINNED, is_cached
from workbench.render.circuit.svg import CircuitView
from workbench.render.export import export
from workbench.studies.check import differences
from workbench.studies.evidence import FILE, Evidence
from workbench.studies.measure import evidence
from workbench.studies.readme import page
from workbench.studies.study import Study
from workbench.text import spelled

FILES = ("circuit.json", FILE, "README.md", "circuit.svg")


@model_call()
def write(
    study: Study, model: Model, out: Path, *, command: str, n: int | None = None, overwrite: bool = False
) -> Evidence:
    """Study a model and write its circuit, evidence, page and picture, all or none.

    Raises:
        OutputExists: they are there already.
        PromptError: a single prompt.
    """
    # Refused now, not after a minute of measuring.
    check_output(out, FILES, overwrite=overwrite)
    experiment = study.experiment(model, n=n)
    measured = evidence(study, experiment, command=command)
    kept = measured.estimate("faithfulness")
    view = CircuitView.of(
        experiment.labelled_circuit,
        title=f"{study.task} in {model_name(model)}",
        faithfulness=(kept.mean, kept.low, kept.high),
    )
    with replaced(out, FILES, overwrite=overwrite) as partial:
        experiment.labelled_circuit.save(partial / "circuit.json")
        measured.save(partial / FILE)
        (partial / "README.md").write_text(page(measured), encoding="utf-8")
        export(view, partial / "circuit.svg")
    return measured


def main(study: Study, folder: Path) -> None:
    """The command line of a study: `study.py [--model NAME] [--out DIR] [--n N] [--check] [--overwrite]`."""

    def command(
        model: str = typer.Option(study.model, help="A name, or a Hugging Face directory."),
        out: Path | None = typer.Option(  # noqa: B008
            None, help=f"Folder; for {study.model} the study's own."
        ),
        n: int | None = typer.Option(None, help="Prompts; by default the study's number."),
        check: bool = typer.Option(
            False, help="Compute it again and compare with the committed files; write nothing."
        ),
        overwrite: bool = typer.Option(False, help="Replace what is in --out."),
    ) -> None:
        """Find a behaviour's circuit, test its account and write its evidence, or check the committed one."""
        # Other models and sizes must not replace the committed study.
        committed = model == study.model and n is None
        _check_options(study.model, committed, folder, out, check=check, overwrite=overwrite)
        if check:
            raise typer.Exit(_check(study, folder))
        # Another model's prompts begin as its own tokenizer has them begin.
        loaded = load_model(model, bos=study.bos if model == study.model else None)
        # The command that the page prints: of the committed study it is the plain one.
        options = () if committed else ("--model", model_name(loaded), "--n", str(n or study.n))
        target = out or folder
        write(
            study, loaded, target, command=_command(folder, *options), n=n, overwrite=overwrite or out is None
        )
        print(target / "README.md")

    try:
        typer.run(command)
    except WorkbenchError as error:
        print(spelled(str(error)), file=sys.stderr)
        raise SystemExit(1) from error


def _check_options(
    model: str, committed: bool, folder: Path, out: Path | None, *, check: bool, overwrite: bool
) -> None:
    """Refuse what would write over the committed files, or compare them with something else."""
    if check and (out is not None or overwrite):
        raise WorkbenchError("--check writes nothing: leave out --out and --overwrite.")
    if out is None and not committed and not check:
        raise WorkbenchError(
            f"Only a study of {model} with its own number of prompts is written to its own folder: "
            "give --out DIR."
        )
    to_folder = out is not None and out.resolve() == folder.resolve()
    if not committed and (check or to_folder):
        raise WorkbenchError(
            f"The committed files are about {model} with the study's own number of prompts: "
            "give another --out, and no --check."
        )


def _check(study: Study, folder: Path) -> int:
    """Compute a study again and print how it differs from the committed one; 1 where it does.

    Where the study is of pinned weights that are not on this machine, that is said, and is no failure.
    """
    if study.model in PINNED and not is_cached(PINNED[study.model]):
        print(
            f"{folder.name}: NOT CHECKED, because the weights of {study.model!r} are not on this machine. "
            f"Get them with `workbench models get {study.model}`."
        )
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary) / folder.name
        write(study, load_model(study.model, bos=study.bos), again, command=_command(folder))
        reasons = differences(folder, again)
    agrees = f"{folder.name}: the edges are the same, and every number is within its interval"
    print("\n".join(map(spelled, reasons)) or agrees)
    return int(bool(reasons))


def _command(folder: Path, *options: str) -> str:
    return shlex.join(["python", f"circuits/{folder.name}/study.py", *options])
