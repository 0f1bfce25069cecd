"""`workbench sweep`: run, status, resume, table, report, validate.

Exit code 1: a job failed. Exit code 2: the command line, the spec or the folder is wrong.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import Bos, Device, Json, command_line, output_folder, path_of
from workbench.cli.output import print_json, print_table, say
from workbench.cli.sweep_fields import field_option, spec_of

if TYPE_CHECKING:
    from workbench.sweeps.spec import SweepSpec
    from workbench.sweeps.status import Status

sweep = typer.Typer(help="Many experiments as one table.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep.")]
Spec = Annotated[
    Path | None,
    typer.Argument(metavar="[SPEC.yaml]", help="A file with the fields of a sweep; options replace them."),
]
Rows = Annotated[Path | None, typer.Option(parser=path_of, metavar="PATH", help="Write every row there.")]
Backend = Annotated[str, typer.Option(help="local (processes of this machine) or ray.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes or actors.")]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster, or auto; by default one is started here.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Run at most this many jobs now.")]
Retries = Annotated[int, typer.Option(min=0, help="How often a job that failed is tried again.")]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run the code that the file names (metrics: mine:score). Not remembered."),
]


MOST_FAILURES = 20
"""Failed jobs that are printed."""


def _finish(folder: Path, status: "Status", *, as_json: bool) -> None:
    """Print the state of a sweep; exit code 1 when a job failed."""
    if as_json:
        print_json({"folder": folder, **status.to_dict()})
    else:
        _print_status(folder, status)
    if not status.ok:
        raise typer.Exit(1)


def _print_status(folder: Path, status: Any) -> None:
    from workbench.text import visible, wrapped

    say(f"{folder}: {status}")
    # Errors may quote what a model or a file holds, so they are made visible.
    failures = status.to_dict()["failures"]
    for row in failures[:MOST_FAILURES]:
        settings = [row[column] for column in ("model", "task", "metric", "value", "what")]
        job = visible(" ".join(str(setting) for setting in settings if setting is not None))
        reason = visible(str(row["error"] or "cells that are not numbers"))
        say(wrapped(f"  {row['status']:6} {job}, seed {row['seed']}: {reason}"))
    if len(failures) > MOST_FAILURES:
        say(f"  {len(failures) - MOST_FAILURES} more; `workbench sweep status {folder} --json` has them all.")


def _find_modules_here() -> None:
    """Let Python find the modules of metrics (MODULE:FUNCTION) in the current folder."""
    current = str(Path.cwd())
    if current not in sys.path:
        sys.path.append(current)  # last, so that no file here hides an installed module


def _run(spec: "SweepSpec", out: Path, *, as_json: bool, dry_run: bool = False, **options: Any) -> None:
    """Run a sweep with these options of `run_sweep`, or print what it would run."""
    from workbench.sweeps.runner import run_sweep
    from workbench.sweeps.table import Sweep

    _find_modules_here()
    progress = not as_json
    answer = run_sweep(spec, out=out, dry_run=dry_run, progress=progress, command=command_line(), **options)
    if isinstance(answer, Sweep):
        _finish(answer.folder, answer.status(), as_json=as_json)
    else:  # a dry run answers with its cost, which has no rows to finish
        _print_cost(answer, as_json=as_json)


def _print_cost(cost: object, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(cost))  # pyright: ignore[reportArgumentType]
    else:
        say(cost)


@sweep.command()
def run(
    spec: Spec = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of, metavar="PATH", help="Folder of the sweep; by default a fresh one under runs/."
        ),
    ] = None,
    preset: Annotated[str | None, field_option("preset")] = None,
    study: Annotated[str | None, field_option("study")] = None,
    models: Annotated[str | None, field_option("models")] = None,
    checkpoints: Annotated[str | None, field_option("checkpoints")] = None,
    tasks: Annotated[str | None, field_option("tasks")] = None,
    n: Annotated[int | None, typer.Option("-n", "--n", min=1, help="Prompts of a task.")] = None,
    split: Annotated[str | None, field_option("split")] = None,
    sites: Annotated[str | None, field_option("sites")] = None,
    senders: Annotated[str | None, field_option("senders")] = None,
    receivers: Annotated[str | None, field_option("receivers")] = None,
    circuits: Annotated[str | None, field_option("circuits")] = None,
    methods: Annotated[str | None, field_option("methods")] = None,
    n_edges: Annotated[str | None, field_option("n-edges")] = None,
    strengths: Annotated[str | None, field_option("strengths")] = None,
    values: Annotated[str | None, field_option("values")] = None,
    metrics: Annotated[str | None, field_option("metrics")] = None,
    seeds: Annotated[str | None, field_option("seeds")] = None,
    base: Annotated[str | None, field_option("base")] = None,
    bos: Bos = None,
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
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Run a sweep, one job for every combination, or resume it."""
    given = {
        "preset": preset,
        "study": study,
        "models": models,
        "checkpoints": checkpoints,
        "tasks": tasks,
        "n": n,
        "split": split,
        "sites": sites,
        "senders": senders,
        "receivers": receivers,
        "circuits": circuits,
        "methods": methods,
        "n-edges": n_edges,
        "strengths": strengths,
        "values": values,
        "metrics": metrics,
        "seeds": seeds,
        "base": base,
        "bos": bos,
    }
    read = spec_of(spec, given)
    name = spec.stem if spec else preset or study or "own"
    # None: metrics that were typed are the user's own. Those of a file are its writer's, and need --trust.
    may_run: bool | None = trust
    if not trust and (spec is None or metrics is not None):
        may_run = None
    with output_folder(out, f"sweep-{name}") as folder:
        _run(
            read,
            folder,
            as_json=as_json,
            dry_run=dry_run,
            trust=may_run,
            limit=limit,
            retries=retries,
            extend=extend,
            backend=backend,
            workers=workers,
            device=device,
            address=address,
        )


@sweep.command()
def resume(
    folder: Folder,
    backend: Backend = "local",
    workers: Workers = 1,
    device: Device = None,
    address: Address = None,
    limit: Limit = None,
    retries: Retries = 1,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Run the jobs of the folder's spec that are not done: not run yet, failed, or without a number."""
    from workbench.sweeps.spec import read_spec
    from workbench.sweeps.table import load_sweep

    spec = read_spec(dict(load_sweep(folder).spec))
    _run(
        spec,
        folder,
        as_json=as_json,
        trust=trust,
        limit=limit,
        retries=retries,
        backend=backend,
        workers=workers,
        device=device,
        address=address,
    )


@sweep.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """How many jobs are done, failed and remaining, and every failure; exit code 1 when there is one."""
    from workbench.sweeps.status import read_status

    _finish(folder, read_status(folder), as_json=as_json)


@sweep.command()
def table(
    folder: Folder,
    csv: Rows = None,
    parquet: Rows = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace these files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every row, one JSON object a line.")] = False,
) -> None:
    """The rows of a sweep as a file or as JSON, or the strongest ones as text."""
    from workbench.files import check_free, whole
    from workbench.sweeps.strongest import strongest
    from workbench.sweeps.table import load_sweep

    swept = load_sweep(folder)
    files = [path for path in (csv, parquet) if path is not None]
    for path in files:
        check_free(path, overwrite=overwrite)
    for path in files:
        with whole(path) as partial:
            # Parquet keeps lists and types, which CSV turns into text.
            if path == csv:
                swept.rows.to_csv(partial, index=False)
            else:
                swept.rows.to_parquet(partial, index=False)
        say(str(path), err=as_json)
    if as_json:
        lines = str(swept.rows.to_json(orient="records", lines=True))
        say(lines.removesuffix("\n"), as_json=True)
    elif not files:
        shown, caption = strongest(swept)
        print_table(shown.to_dict("records"), caption=caption)


@sweep.command()
def report(
    folder: Folder,
    out: Annotated[
        Path | None,
        typer.Option(parser=path_of, metavar="PATH", help="The page; by default report.html in the folder."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
    as_json: Json = False,
) -> None:
    """A page with the sweep's picture, its strongest rows, its failures and what was asked."""
    from workbench.sweeps.table import load_sweep
    from workbench.workflows.sweep import report_sweep

    # By default the page lies in the sweep's folder. A later report replaces it only with --overwrite.
    page = report_sweep(load_sweep(folder), out or folder / "report.html", overwrite=overwrite)
    say(json.dumps({"report": str(page)}) if as_json else str(page), as_json=as_json)


@sweep.command()
def validate(
    path: Annotated[Path, typer.Argument(metavar="SPEC|DIR", help="A SPEC.yaml, or the folder of a sweep.")],
    as_json: Json = False,
) -> None:
    """Check a spec, or every line of a sweep's folder; exit code 2 and the reason if one is wrong.

    Where it names code, the file is named, and the code is not run.
    """
    from workbench.sweeps.table import load_sweep
    from workbench.sweeps.trust import code_files

    if path.is_dir():
        swept = load_sweep(path)
        facts = {"folder": str(path), "jobs": swept.jobs, "rows": len(swept.rows)}
        metrics = swept.spec.get("metrics")
    else:
        facts = spec_of(path, {}).model_dump(mode="json")
        metrics = facts["metrics"]
    _find_modules_here()
    code = code_files(metrics if isinstance(metrics, list) else [])
    if code:
        facts["code"] = {metric: f"{file}: not trusted, cost unknown" for metric, file in code.items()}
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if value not in (None, [], {}):
            say(f"{name}: {json.dumps(value)}")
