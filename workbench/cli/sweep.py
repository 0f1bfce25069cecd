"""`workbench sweep`: run, status, resume, table, report, validate. Exit code 1: a job failed; 2: what was asked is wrong."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import Json, command_line

sweep = typer.Typer(help="Many experiments as one table.", no_args_is_help=True)
Place = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep.")]
Spec = Annotated[
    Path | None,
    typer.Argument(metavar="[SPEC.yaml]", help="A file with the fields of a sweep; options replace them."),
]
Backend = Annotated[str, typer.Option(help="local (processes of this machine) or ray.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes or actors.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster, or auto; by default one is started here.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Run at most so many jobs now.")]
Retries = Annotated[int, typer.Option(min=0, help="How often a job that failed is tried again.")]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _together(text: str) -> list[Any]:
    """Sites; those joined by + are edited together."""
    return [part.split("+") if "+" in part else part for part in _names(text)]


def _numbers(kind: type) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part) for part in _names(text)]


FIELDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "preset": (
        str,
        "head-ablation, layer-ablation, neuron-ablation, cumulative-ablation, pairwise-ablation, position-sweep, ...",
    ),
    "study": (str, "effects, pairs, cumulative, paths, circuits, methods, stability or steering."),
    "models": (_names, "Embedded names, local folders or Hub names."),
    "checkpoints": (_numbers(int), "Training steps of an embedded model."),
    "tasks": (_names, "Tasks (workbench ls tasks) or .csv files."),
    "split": (str, "train or heldout prompts."),
    "sites": (
        _together,
        "z is every head, resid_pre@each each position, z[1.2], z[1.2]+z[2.0] both together.",
    ),
    "senders": (_names, "Of paths."),
    "receivers": (_names, "Of paths."),
    "circuits": (_names, "Circuit files."),
    "methods": (_names, "Methods that find circuits (workbench ls methods)."),
    "n-edges": (_numbers(int), "Sizes of circuits."),
    "strengths": (_numbers(float), "Of steering."),
    "values": (_names, "zero, mean, resample, constant:X, optimal, other, scale:X."),
    "metrics": (_names, "By default the task's; MODULE:FUNCTION of a module that is installed or lies here."),
    "seeds": (_numbers(int), "Of prompts, and of resample."),
    "base": (str, "Which run is edited: clean or corrupt."),
}
"""How the text of an option becomes a field of the spec, and its help."""


def _field(name: str) -> Any:
    return typer.Option(
        f"--{name}", help=FIELDS[name][1] + (" Several with commas." if FIELDS[name][0] is not str else "")
    )


def spec_of(path: Path | None, given: dict[str, Any]) -> Any:
    """The spec in a file with options in place of its fields, or one made of options alone.

    Raises:
        SweepError: neither was given, or a text is not what its option needs.
    """
    from workbench.errors import SweepError
    from workbench.sweeps.spec import read_spec

    fields = {}
    for name, text in given.items():
        if text is None:
            continue
        key = name.replace("-", "_")
        try:
            fields[key] = FIELDS[name][0](text) if name in FIELDS else text
        except ValueError as error:
            raise SweepError(
                f"--{name} {text!r}: {error}. Numbers with commas are needed, as in 1,2,3."
            ) from error
    if path is None and not fields:
        raise SweepError(
            "What is to be swept? Give a SPEC.yaml, or --preset head-ablation --models tiny --tasks ioi."
        )
    return read_spec(fields) if path is None else read_spec(path, **fields)


def _finish(found: Any, as_json: bool) -> None:
    """Print where a sweep stands; exit code 1 when a job failed."""
    status = found.status()
    if as_json:
        typer.echo(json.dumps({"folder": str(found.folder), **status.to_dict()}, default=str))
    else:
        _tell(found.folder, status)
    if not status.ok:
        raise typer.Exit(1)


def _tell(folder: Path, status: Any) -> None:
    from workbench.text import visible

    typer.echo(f"{folder}: {status}")
    for row in status.to_dict()["failures"]:
        where = " ".join(
            str(row[flag]) for flag in ("model", "task", "metric", "value", "what") if row[flag] is not None
        )
        typer.echo(
            f"  {row['status']:6} {visible(where)}, seed {row['seed']}: {visible(str(row['error'] or 'cells that are no number'))}"
        )


def _run(spec: Any, out: Path, as_json: bool, dry_run: bool = False, **options: Any) -> None:
    from workbench.sweeps.runner import run_sweep

    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that nothing here hides an installed module
    found = run_sweep(
        spec,
        out=out,
        dry_run=dry_run,
        progress=sys.stderr.isatty() and not as_json,
        command=command_line(),
        **options,
    )
    if dry_run:
        typer.echo(json.dumps(asdict(found), default=str) if as_json else str(found))
    else:
        _finish(found, as_json)


@sweep.command()
def run(
    spec: Spec = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep; by default a fresh one under runs/.")
    ] = None,
    preset: Annotated[str | None, _field("preset")] = None,
    study: Annotated[str | None, _field("study")] = None,
    models: Annotated[str | None, _field("models")] = None,
    checkpoints: Annotated[str | None, _field("checkpoints")] = None,
    tasks: Annotated[str | None, _field("tasks")] = None,
    n: Annotated[int | None, typer.Option("-n", "--n", min=1, help="Prompts of a task.")] = None,
    split: Annotated[str | None, _field("split")] = None,
    sites: Annotated[str | None, _field("sites")] = None,
    senders: Annotated[str | None, _field("senders")] = None,
    receivers: Annotated[str | None, _field("receivers")] = None,
    circuits: Annotated[str | None, _field("circuits")] = None,
    methods: Annotated[str | None, _field("methods")] = None,
    n_edges: Annotated[str | None, _field("n-edges")] = None,
    strengths: Annotated[str | None, _field("strengths")] = None,
    values: Annotated[str | None, _field("values")] = None,
    metrics: Annotated[str | None, _field("metrics")] = None,
    seeds: Annotated[str | None, _field("seeds")] = None,
    base: Annotated[str | None, _field("base")] = None,
    backend: Backend = "local",
    workers: Workers = 1,
    device: Device = None,
    address: Address = None,
    limit: Limit = None,
    retries: Retries = 1,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add these jobs to the sweep in the folder.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a sweep, one job for every combination, or go on with it."""
    from workbench.files import fresh_folder

    given = {
        "preset": preset, "study": study, "models": models, "checkpoints": checkpoints, "tasks": tasks, "n": n, "split": split,
        "sites": sites, "senders": senders, "receivers": receivers, "circuits": circuits, "methods": methods, "n-edges": n_edges,
        "strengths": strengths, "values": values, "metrics": metrics, "seeds": seeds, "base": base,
    }  # fmt: skip
    asked = spec_of(spec, given)
    with (
        nullcontext(out)
        if out is not None
        else fresh_folder(f"sweep-{spec.stem if spec else preset or study or 'own'}") as folder
    ):
        where: dict[str, Any] = {"backend": backend, "workers": workers, "device": device, "address": address}
        _run(asked, folder, as_json, dry_run, limit=limit, retries=retries, extend=extend, **where)


@sweep.command()
def resume(
    folder: Place,
    backend: Backend = "local",
    workers: Workers = 1,
    device: Device = None,
    address: Address = None,
    limit: Limit = None,
    retries: Retries = 1,
    as_json: Json = False,
) -> None:
    """Run the jobs that have not been measured, of the spec in the folder."""
    from workbench.sweeps.spec import read_spec
    from workbench.sweeps.table import load_sweep

    spec = read_spec(dict(load_sweep(folder).spec))
    where: dict[str, Any] = {"backend": backend, "workers": workers, "device": device, "address": address}
    _run(spec, folder, as_json, limit=limit, retries=retries, **where)


@sweep.command()
def status(folder: Place, as_json: Json = False) -> None:
    """How many jobs are done, failed and remaining, and every failure; exit code 1 when there is one."""
    from workbench.sweeps.table import load_sweep

    _finish(load_sweep(folder), as_json)


@sweep.command()
def table(
    folder: Place,
    csv: Annotated[Path | None, typer.Option(help="Write every row there.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write every row there.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace these files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every row, one JSON object a line.")] = False,
) -> None:
    """The rows of a sweep as a file or as JSON, or the strongest ones as text."""
    from workbench.files import check_free, whole
    from workbench.sweeps.table import load_sweep
    from workbench.text import visible
    from workbench.workflows.sweep import strongest

    found = load_sweep(folder)
    files = [(path, name) for path, name in ((csv, "to_csv"), (parquet, "to_parquet")) if path is not None]
    for path, _ in files:
        check_free(path, overwrite=overwrite)
    for path, name in files:
        with whole(path) as partial:
            getattr(found.rows, name)(partial, index=False)
        typer.echo(str(path), err=as_json)
    if as_json:
        typer.echo(found.rows.to_json(orient="records", lines=True), nl=False)
    elif not files:
        shown, caption = strongest(found)
        texts = shown.map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
        typer.echo(f"{caption}\n{texts.to_string(index=False, na_rep='', float_format='{:.4g}'.format)}")


@sweep.command()
def report(
    folder: Place,
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the folder.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
    as_json: Json = False,
) -> None:
    """A page with the sweep's picture, its strongest rows, its failures and what was asked."""
    from workbench.sweeps.table import load_sweep
    from workbench.workflows.sweep import report_sweep

    page = report_sweep(load_sweep(folder), out or folder / "report.html", overwrite=overwrite)
    typer.echo(json.dumps({"report": str(page)}) if as_json else str(page))


@sweep.command()
def validate(
    path: Annotated[Path, typer.Argument(metavar="SPEC|DIR", help="A SPEC.yaml, or the folder of a sweep.")],
    as_json: Json = False,
) -> None:
    """Check a spec, or every line of a sweep's folder, and say what is in it; exit code 2 and the reason if it is not sound."""
    from workbench.sweeps.table import load_sweep

    if path.is_dir():
        found = load_sweep(path)
        facts = {"folder": str(path), "jobs": found.jobs, "rows": len(found.rows)}
    else:
        facts = spec_of(path, {}).model_dump(mode="json")
    shown = {name: value for name, value in facts.items() if value not in (None, [], {})}
    typer.echo(
        json.dumps(facts)
        if as_json
        else "\n".join(f"{name}: {json.dumps(value)}" for name, value in shown.items())
    )
