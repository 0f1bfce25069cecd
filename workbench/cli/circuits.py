"""`workbench discover | evaluate | compare | convert`: circuits found, measured and compared."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.completions import completion
from workbench.cli.options import (
    Bos,
    Chat,
    CircuitName,
    Device,
    Json,
    MetricName,
    ModelName,
    Out,
    Pairs,
    Positive,
    ShapeOf,
    Task,
    Variant,
    command_line,
    names,
    output_folder,
    path_of,
)
from workbench.cli.output import print_json, say

if TYPE_CHECKING:
    from workbench.circuit.circuit import Circuit
    from workbench.models.model import Model
    from workbench.prompts.pairs import PromptPairs
    from workbench.sites import Shape
    from workbench.workflows.evaluate import Judgement


def discover(
    task: Task,
    model: ModelName = "tiny",
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--n",
            help="Pairs to find with, as many to choose the size with, and twice as many to test with; by default "
            "64, and of a file all rows: a quarter, a quarter and a half.",
        ),
    ] = None,
    out: Out = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts and of draws.")] = 0,
    variant: Annotated[
        str | None, typer.Option(help="One kind of corruption; by default all that the task has.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="logit_diff, prob_diff, kl, nll, ...; by default the task's.",
            autocompletion=completion("metrics"),
        ),
    ] = None,
    value: Annotated[
        str, typer.Option(help="What replaces what is outside the circuit: corrupt, zero or mean.")
    ] = "corrupt",
    method: Annotated[
        str,
        typer.Option(
            help="How edges are scored (workbench ls methods).",
            autocompletion=completion("methods", "edges", "circuit"),
        ),
    ] = "eap-ig-inputs",
    edges: Annotated[
        int | None,
        typer.Option(
            help="Edges before dead ends are removed; by default the smallest number that keeps the criteria."
        ),
    ] = None,
    refine: Annotated[bool, typer.Option(help="Leave out edges as long as the criteria hold.")] = True,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="16 pairs, one counterfactual, no controls or resamples: a first look."),
    ] = False,
    multiverse: Annotated[
        bool,
        typer.Option(
            "--multiverse",
            help="Also which edges are found whatever values, metric, method, prompts are chosen.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it will cost, in seconds, and write nothing.")
    ] = False,
    device: Device = None,
    bos: Bos = None,
    chat: Chat = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output folder.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find a circuit that reproduces the model on a behaviour, or say that there is none, and write a report."""
    import workbench as wb
    from workbench.files import check_output
    from workbench.tasks.registry import PAIR_READERS
    from workbench.tasks.task import find_task
    from workbench.text import wrapped
    from workbench.workflows.discover import FILES
    from workbench.workflows.summary import summary_text
    from workbench.workflows.verdict import (
        competence_text,
        competence_warning,
        differences_text,
        headline,
        title_of,
    )

    read = PAIR_READERS.get(Path(task).suffix.lower())
    if read is None:
        find_task(task)  # a misspelt task is refused before the model is loaded
        if chat:
            raise typer.BadParameter("--chat is for prompts of a file; those of a task are no messages.")

    def model_and_pairs() -> "tuple[Model, str | PromptPairs]":
        """The model, and the task's name or the pairs of the file."""
        loaded = wb.load_model(model, device=device, bos=bos)
        return loaded, read(loaded, task, chat=chat) if read else task

    wanted: dict[str, Any] = {
        "n": n, "variant": variant, "metric": metric, "value": value, "refine": "prune" if refine else None,
        "quick": quick,
    }  # fmt: skip
    if dry_run:
        cost = wb.discover_cost(*model_and_pairs(), **wanted)
        if as_json:
            print_json(asdict(cost) | {"seconds": cost.seconds})
        else:
            say(cost)
        return
    with output_folder(out, Path(task).stem) as folder:
        check_output(folder, FILES, overwrite=overwrite)  # refused before the model is loaded
        run = wb.discover(
            *model_and_pairs(), out=folder, seed=seed, method=method, n_edges=edges, multiverse=multiverse,
            command=command_line(), overwrite=overwrite, **wanted,
        )  # fmt: skip
    if as_json:
        print_json({"folder": run.folder, "report": run.report, **json.loads(summary_text(run))})
        return
    lines = [competence_text(run.competence), competence_warning(run.competence)]
    lines += [title_of(run), headline(run), differences_text(run), str(run.report)]
    for line in filter(None, lines):
        say(wrapped(line))


def evaluate_circuit(
    circuit: CircuitName,
    task: Annotated[
        str,
        typer.Option(
            help="A task (workbench ls tasks), or a file of your own pairs (.csv, .jsonl, .parquet)."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Embedded name, local Hugging Face directory, or Hub name; by default the model that the circuit was "
            "found in, or tiny."
        ),
    ] = None,
    value: Annotated[
        str,
        typer.Option(
            help="What replaces the rest: corrupt, zero, mean, resample; several with commas, side by side."
        ),
    ] = "corrupt",
    n: Pairs = 64,
    metric: MetricName = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts, and of random circuits and sets.")] = 0,
    split: Annotated[str, typer.Option(help="heldout or train prompts of a task.")] = "heldout",
    variant: Variant = None,
    tests: Annotated[bool, typer.Option("--tests", help="The five hypothesis tests too.")] = False,
    positive: Positive = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many seconds it takes, from trials on a few prompts.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: each value, then the tests.")
    ] = False,
    device: Device = None,
    bos: Bos = None,
) -> None:
    """Measure a circuit: faithfulness, complement, random circuits, completeness, minimality."""
    import workbench as wb
    from workbench.workflows.evaluate import judge, lines, seconds_of, value_names

    values = value_names(names(value) or [value])
    loaded = wb.load_model(model or _model_of(circuit), device=device, bos=bos)
    read = _circuit(circuit, positive, loaded)
    # Circuits of papers and other tools carry no fingerprint, which is no reason to warn.
    if read.attrs.get("model_fingerprint", "") not in ("", wb.model_fingerprint(loaded)):
        say(
            f"note: this circuit was found in another model ({read.attrs.get('model', 'unnamed')}, other "
            "weights)",
            err=True,
        )

    def judged(n_prompts: int) -> "Judgement":
        """The circuit on that many prompts."""
        return judge(
            read, loaded, task, values=values, n=n_prompts, metric=metric, seed=seed, split=split,
            variant=variant, tests=tests,
        )  # fmt: skip

    if dry_run:
        seconds = seconds_of(judged, n)
        if as_json:
            print_json({"prompts": n, "values": values, "tests": tests, "seconds": seconds})
        else:
            say(
                f"about {seconds:.0f} s on this machine as it is now: {n} prompts, values {', '.join(values)}"
            )
        return
    judgement = judged(n)
    for line in lines(judgement, as_json=as_json):
        say(line, as_json=as_json)


def compare(
    a: CircuitName,
    b: CircuitName,
    positive: Positive = None,
    shape_of: ShapeOf = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything as one JSON object, with the edges that differ.")
    ] = False,
) -> None:
    """Compare two circuits: edges, nodes, roles. A is the reference of precision and recall."""
    import workbench as wb

    first, second = (_circuit(name, positive, shape_of) for name in (a, b))
    comparison = wb.compare(first, second)
    if as_json:
        print_json(comparison.to_dict())
    else:
        say(comparison)


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", help="A circuit file of this or another tool, or a published circuit."),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            parser=path_of,
            metavar="OUT",
            help="The file to write; .json is ours, .pt that of EAP-IG and MIB.",
        ),
    ],
    positive: Positive = None,
    shape_of: ShapeOf = None,
    form: Annotated[
        str | None, typer.Option("--format", help="workbench, eap-json or eap-pt; by default by suffix.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: Json = False,
) -> None:
    """Read a circuit in one format and write it in another, with all its scores; a circuit edited by hand is
    signed again.

    --positive is what scores mean in the other tool's file.
    """
    import workbench as wb
    from workbench.circuit.document import change_of
    from workbench.circuit.formats import FORMATS, format_for, is_ours

    file_format = FORMATS[format_for(target, form)]
    circuit = _circuit(source, positive, shape_of, edited=True)
    if Path(source).is_file() and is_ours(Path(source)) and (change := change_of(Path(source))):
        say(f"note: {source} was edited or cut: {change}. What is written is what it says now.", err=True)
    # Our own format says itself what a positive score means.
    if file_format.dump is None or positive is None:
        path = wb.write_circuit(circuit, target, format=form, overwrite=overwrite)
    else:
        path = wb.write_circuit(circuit, target, format=form, overwrite=overwrite, positive=positive)
    unscored = _unscored(circuit)
    if as_json:
        facts = {"file": path, "format": file_format.name, "edges": circuit.n_edges, "unscored": unscored}
        print_json(facts | {"source": source})
    else:
        say(f"{path}: {circuit!r}")
    if file_format.dump is not None and unscored:
        say(
            f"note: {file_format.name} has a number for every edge. {unscored:,} of {circuit.graph.n_edges:,} "
            f"edges of {source} have no score and were written as 0.",
            err=True,
        )


def _unscored(circuit: "Circuit") -> int:
    """How many edges of a circuit's graph have no score."""
    import numpy as np

    if circuit.scores is None:
        return circuit.graph.n_edges
    return int((~np.isfinite(circuit.scores) & circuit.graph.exists).sum())


def _model_of(name: str) -> str:
    """The model that a circuit's file says it was found in; "tiny" for those that say nothing.

    Only models that are named here already are taken from a file: loading another might ask the network for it.

    Raises:
        CircuitError: it was found in another model.
    """
    import workbench as wb
    from workbench.circuit.formats import is_ours
    from workbench.errors import CircuitError
    from workbench.models import embedded, pinned

    if not Path(name).is_file() or not is_ours(Path(name)):
        return "tiny"
    found_in = str(wb.Circuit.load(name).attrs.get("model", "tiny"))
    if found_in.partition("@")[0] not in (*embedded.names(), *pinned.PINNED):
        raise CircuitError(
            f"{name!r} is a circuit of the model {found_in!r}: name where that is, with --model."
        )
    return found_in


def _circuit(
    name: str, positive: str | None = None, shape_of: object = None, *, edited: bool = False
) -> "Circuit":
    """The circuit in a file, or the published one of that name.

    Args:
        shape_of: whose graph another tool's file is of: a model, or the name of a model or circuit.
        edited: take a file of ours although it was changed since it was written.
    """
    import workbench as wb
    from workbench.circuit.formats import is_ours
    from workbench.errors import CircuitError

    if not Path(name).is_file():
        # A name with a suffix was meant as a file, so no published circuit is suggested.
        if Path(name).suffix:
            raise CircuitError(f"There is no circuit file {name!r}.")
        return wb.reference_circuit(name)
    # Our own files say what graph they are of; another tool's need a shape.
    if is_ours(Path(name)):
        return wb.Circuit.load(name, edited=edited)
    shape = None if shape_of is None else _shape(shape_of)
    return wb.read_circuit(name, positive=positive, shape=shape)


def _shape(shape_of: object) -> "Shape":
    import workbench as wb
    from workbench.circuit.published import published_names

    if not isinstance(shape_of, str):
        return wb.Shape.of(shape_of)
    if shape_of in published_names() or Path(shape_of).is_file():
        return _circuit(shape_of).graph.shape
    return wb.Shape.of(wb.load_model(shape_of))
