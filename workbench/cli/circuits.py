"""Commands."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import (
    CircuitName,
    Device,
    MetricName,
    ModelName,
    Pairs,
    Positive,
    ShapeOf,
    command_line,
)


def discover(
    task: Annotated[
        str, typer.Argument(help="A task (workbench ls tasks), or a .csv or .jsonl file of your own pairs.")
    ],
    model: Annotated[
        str, typer.Option(help="Embedded name, local Hugging Face directory, or Hub name.")
    ] = "tiny",
    n: Annotated[
        int | None,
        typer.Option(
            help="Pairs of a task to find the circuit on, and as many to test it on; by default 64."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; by default a fresh one under runs/.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    variant: Annotated[
        str | None, typer.Option(help="Kind of corruption; by default the task's first.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="logit_diff, prob_diff, kl, nll, ...; by default the task's.")
    ] = None,
    value: Annotated[
        str, typer.Option(help="What replaces what is outside the circuit: from_store, zero or mean.")
    ] = "from_store",
    method: Annotated[str, typer.Option(help="How the circuit is found (workbench ls methods).")] = "eap",
    edges: Annotated[
        int | None, typer.Option(help="Edges in the circuit before pruning; by default 2 % of the graph.")
    ] = None,
    device: Device = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output folder.")
    ] = False,
) -> None:
    """Find the circuit of a behaviour and write a report: circuit, edges, effects, faithfulness."""
    import workbench as wb
    from workbench.files import check_output, fresh_folder
    from workbench.statistics import interval_text
    from workbench.tasks.registry import find_task
    from workbench.workflows.discover import FILES

    own = {".csv": wb.PromptPairs.from_csv, ".jsonl": wb.PromptPairs.from_jsonl}.get(
        Path(task).suffix.lower()
    )
    if own is None:
        find_task(task)
    with nullcontext(out) if out is not None else fresh_folder(Path(task).stem) as folder:
        check_output(folder, FILES, overwrite=overwrite)
        loaded = wb.load_model(model, device=device)
        many = "half of the pairs" if own else f"{n or 64} pairs"
        typer.echo(f"{task} in {model}: {many} to find the circuit on, as many to test it on, seed {seed}")
        found = wb.discover(
            loaded, own(loaded, task) if own else task, out=folder, n=n, seed=seed, variant=variant, metric=metric,
            value=value, method=method, n_edges=edges, command=command_line(), overwrite=overwrite,
        )  # fmt: skip
    best = found.evaluation.sel(circuit="held-out")
    typer.echo(f"circuit: {found.circuit!r}")
    typer.echo(
        f"faithfulness on held-out prompts: {float(best.faithfulness):.3f} {interval_text(float(best.low), float(best.high))}"
    )
    typer.echo(str(found.report))


def evaluate_circuit(
    circuit: CircuitName,
    task: Annotated[
        str, typer.Option(help="A task (workbench ls tasks), or a .csv or .jsonl file of your own pairs.")
    ],
    model: ModelName = "tiny",
    value: Annotated[
        str,
        typer.Option(
            help="What replaces the rest: from_store, zero, mean, resample; several with commas, side by side."
        ),
    ] = "from_store",
    n: Pairs = 64,
    metric: MetricName = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts, and of random circuits and sets.")] = 0,
    split: Annotated[str, typer.Option(help="heldout or train prompts of a task.")] = "heldout",
    variant: Annotated[
        str | None, typer.Option(help="Kind of corruption; by default the task's first.")
    ] = None,
    tests: Annotated[bool, typer.Option("--tests", help="The five hypothesis tests too.")] = False,
    positive: Positive = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: each value, then the tests.")
    ] = False,
    device: Device = None,
) -> None:
    """Measure a circuit: faithfulness, complement, random circuits, completeness, minimality, with intervals."""
    import workbench as wb
    from workbench.errors import UnknownName
    from workbench.workflows.effects import VALUES
    from workbench.workflows.evaluate import judged, lines

    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in VALUES:
            raise UnknownName("value", name, VALUES)
    loaded = wb.load_model(model, device=device)
    asked = _circuit(circuit, positive, loaded)
    if asked.attrs.get("model_fingerprint", "") not in ("", wb.model_fingerprint(loaded)):
        typer.echo(
            f"note: this circuit was found in another model ({asked.attrs.get('model', 'unnamed')}, other weights)",
            err=True,
        )
    found = judged(
        asked, loaded, task, values=names, n=n, metric=metric, seed=seed, split=split,
        variant=variant, tests=tests,
    )  # fmt: skip
    for line in lines(found, as_json=as_json):
        typer.echo(line)


def compare(
    a: CircuitName,
    b: CircuitName,
    positive: Positive = None,
    shape_of: ShapeOf = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything as one JSON object, with the edges that differ.")
    ] = False,
) -> None:
    """Compare two circuits: edges, nodes, classes of components, roles. A is the reference for precision and recall."""
    import workbench as wb

    found = wb.compare(*(_circuit(name, positive, shape_of) for name in (a, b)))
    typer.echo(json.dumps(found.to_dict()) if as_json else str(found))


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", help="A circuit file of this or another tool, or a published circuit."),
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The file to write; .json is ours, .pt that of EAP-IG and MIB."),
    ],
    positive: Positive = None,
    shape_of: ShapeOf = None,
    form: Annotated[
        str | None, typer.Option("--format", help="workbench, eap-json or eap-pt; by default by suffix.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Read a circuit in one format and write it in another; --positive is what scores mean in the other tool's file."""
    import workbench as wb
    from workbench.circuit.formats import FORMATS, format_for

    kind = FORMATS[format_for(target, form)]
    circuit = _circuit(source, positive, shape_of)
    means = {} if kind.dump is None or positive is None else {"positive": positive}
    typer.echo(f"{wb.write_circuit(circuit, target, format=form, overwrite=overwrite, **means)}: {circuit!r}")


def _circuit(name: str, positive: str | None = None, shape_of: Any = None) -> Any:
    """The circuit in a file, or the published one of that name."""
    import workbench as wb
    from workbench.circuit.formats import is_ours
    from workbench.errors import CircuitError

    if not Path(name).is_file():
        if Path(name).suffix:
            raise CircuitError(f"There is no circuit file {name!r}.")
        return wb.reference_circuit(name)
    if is_ours(Path(name)):
        return wb.Circuit.load(name)
    return wb.read_circuit(name, positive=positive, shape=None if shape_of is None else _shape(shape_of))


def _shape(name: Any) -> Any:
    import workbench as wb
    from workbench.circuit.published import published_names

    if not isinstance(name, str):
        return wb.Shape.of(name)
    if name in published_names() or Path(name).is_file():
        return _circuit(name).graph.shape
    return wb.Shape.of(wb.load_model(name))
