"""`workbench bench circuits | behaviours`: methods against known circuits, and on behaviours."""

from typing import Annotated

import typer

from workbench.cli.options import Device, ModelName, Out, Overwrite, Pairs, command_line, output_folder
from workbench.cli.output import say


def circuits(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer prompts and cases; a few minutes on two cores.")
    ] = False,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; may be repeated.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this model: tiny, planted-NAME, or one that `models get` brought; may be repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of models, prompts and methods.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, a row each.")] = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Every method on every planted model and on trained ones: bench.parquet and bench.html."""
    from workbench.evaluation.benchmark import bench_circuits, by_construction, json_line, on_trained_models
    from workbench.files import check_output
    from workbench.workflows.bench import BENCH_FILES, write_bench

    with output_folder(out, "bench") as folder:
        check_output(folder, BENCH_FILES, overwrite=overwrite)
        rows = []
        # Rows are printed as they come: the whole benchmark takes half an hour.
        for row in bench_circuits(quick=quick, methods=method, models=model, seed=seed):
            rows.append(row)
            if as_json:
                say(json_line(row), as_json=True)
        if not as_json:
            for table in (by_construction(rows), on_trained_models(rows)):
                if len(table):
                    say(table.to_string(index=False, na_rep=""))
        for path in write_bench(rows, folder, command_line(), overwrite=overwrite):
            say(str(path), err=as_json)


def behaviours(
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method of scores; may be repeated.")
    ] = None,
    model: ModelName = "tiny",
    share: Annotated[float, typer.Option(help="Share of the behaviour that a circuit has to keep.")] = 0.9,
    n: Pairs = 64,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, a row each.")] = False,
    device: Device = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The smallest circuit of every behaviour of a model: behaviours.parquet and behaviours.html."""
    import workbench as wb
    from workbench.evaluation.behaviours import METHODS, behaviours_table, smallest_circuits
    from workbench.evaluation.benchmark import json_line
    from workbench.files import check_output
    from workbench.workflows.bench import BEHAVIOUR_FILES, write_behaviours

    with output_folder(out, "behaviours") as folder:
        check_output(folder, BEHAVIOUR_FILES, overwrite=overwrite)
        loaded, rows = wb.load_model(model, device=device), []
        # The package is imported by now, so its default cannot stand in the signature.
        methods = method or METHODS
        for task_rows in smallest_circuits(loaded, tasks=task, methods=methods, share=share, n=n, seed=seed):
            rows += task_rows
            if as_json:
                for row in task_rows:
                    say(json_line(row), as_json=True)
        if not as_json:
            say(behaviours_table(rows).to_string(index=False))
        for path in write_behaviours(rows, folder, command_line(), overwrite=overwrite):
            say(str(path), err=as_json)
