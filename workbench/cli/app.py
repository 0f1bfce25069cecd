"""The `workbench` command: a thin skin over the functions. Errors are one message and exit code 2."""

import json
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.course import course
from workbench.cli.options import Out, Overwrite, command_line
from workbench.cli.runs import diff_runs, probe_store, report_run
from workbench.cli.store import store
from workbench.cli.sweep import sweep

app = typer.Typer(
    help="A mechanistic interpretability workbench around TransformerLens models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")]


@app.command()
def discover(
    task: Annotated[str, typer.Argument(help="A task (workbench ls tasks), or a .csv or .jsonl file of your own pairs.")],
    model: Annotated[str, typer.Option(help="Embedded name, local Hugging Face directory, or Hub name.")] = "tiny",
    n: Annotated[
        int | None, typer.Option(help="Pairs of a task to find the circuit on, and as many to test it on; by default 64.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; by default a fresh one under runs/.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    variant: Annotated[str | None, typer.Option(help="Kind of corruption; by default the task's first.")] = None,
    metric: Annotated[str | None, typer.Option(help="logit_diff, prob_diff, kl, nll, ...; by default the task's.")] = None,
    value: Annotated[
        str, typer.Option(help="What replaces what is outside the circuit: from_store, zero or mean.")
    ] = "from_store",
    method: Annotated[str, typer.Option(help="How the circuit is found (workbench ls methods).")] = "eap",
    edges: Annotated[int | None, typer.Option(help="Edges in the circuit before pruning; by default 2 % of the graph.")] = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")] = False,
) -> None:
    """Find the circuit of a behaviour and write a report: circuit, edges, effects, faithfulness."""
    import workbench as wb
    from workbench.files import check_output, fresh_folder
    from workbench.statistics import interval_text
    from workbench.workflows.discover import FILES
    from workbench.tasks.registry import find_task

    own = {".csv": wb.PromptPairs.from_csv, ".jsonl": wb.PromptPairs.from_jsonl}.get(Path(task).suffix.lower())
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


Task = Annotated[str, typer.Argument(help="A task (workbench ls tasks), or a .csv or .jsonl file of your own pairs.")]
ModelName = Annotated[str, typer.Option(help="Embedded name, local Hugging Face directory, or Hub name.")]
ValueName = Annotated[str, typer.Option(help="What is written: from_store (the other run), zero, mean or resample.")]
Base = Annotated[str, typer.Option(help="Which run is edited: clean or corrupt.")]
Pairs = Annotated[int, typer.Option("-n", "--n", help="Pairs of a task.")]
MetricName = Annotated[
    str | None, typer.Option(help="logit_diff, sequence_logprob_diff, prob_diff, kl, nll, ...; by default what suits the pairs.")
]
Budget = Annotated[int | None, typer.Option(help="Working memory in MiB; by default 1024, or half of a GPU's free memory.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be run and what it costs, and run nothing.")]


@app.command()
def effects(
    task: Task,
    kind: Annotated[
        str, typer.Option(help="Kind of site: z, resid_pre, mlp_out, attn_out, q, k, v, pattern, mlp_post, ...")
    ] = "z",
    value: ValueName = "from_store",
    pos: Annotated[str, typer.Option(help="all (whole sequences), each, or positions and names: END or 3,END.")] = "all",
    method: Annotated[str, typer.Option(help="exact, gradient, integrated or atp-star.")] = "exact",
    model: ModelName = "tiny",
    base: Base = "clean",
    n: Pairs = 64,
    metric: MetricName = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts, and of resample.")] = 0,
    variant: Annotated[str | None, typer.Option(help="Kind of corruption; by default the task's first.")] = None,
    budget: Budget = None,
    device: Device = None,
    out: Out = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Edit every site of a kind in turn: patching and ablation as a table (effects.nc) and a picture (effects.png)."""
    from workbench.errors import UnknownName
    from workbench.interventions.effects import METHODS
    from workbench.sites import kind_named
    from workbench.workflows.effects import Question

    kind_named(kind)
    if method not in METHODS:
        raise UnknownName("method of effects", method, METHODS)
    question = Question(task, n, seed, variant, value, metric, base, None if budget is None else budget * 2**20)
    asked = {"kind": kind, "pos": pos, "method": method}
    _answer(question, "effects", asked, model, device, out, overwrite, dry_run)


@app.command()
def paths(
    task: Task,
    senders: Annotated[
        str | None, typer.Option(help="all, heads, mlps, or names: input,a0.1,m2; a1.2+a1.3 are patched together.")
    ] = None,
    receivers: Annotated[
        str | None, typer.Option(help="Names: a3.1<q>,m3,logits,a2.0<k>@END; a2.0<q>+a2.1<q> is a set. By default logits.")
    ] = None,
    path: Annotated[list[str] | None, typer.Option(help="A whole path instead, such as 'input->a1.2->a3.1<q>->logits'.")] = None,
    mlps: Annotated[str, typer.Option(help="MLPs on the way: frozen (direct edges alone) or recomputed.")] = "frozen",
    value: ValueName = "from_store",
    model: ModelName = "tiny",
    base: Base = "clean",
    n: Pairs = 64,
    metric: MetricName = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts, and of resample.")] = 0,
    variant: Annotated[str | None, typer.Option(help="Kind of corruption; by default the task's first.")] = None,
    budget: Budget = None,
    device: Device = None,
    out: Out = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Path patching from senders into receivers, or along whole paths: a table (paths.nc) and a picture (paths.png)."""
    from workbench.workflows.effects import Question

    def named(text: str | None) -> list[str | tuple[str, ...]] | None:
        parts = [] if text is None else [tuple(name.strip() for name in part.split("+")) for part in text.split(",")]
        return [part[0] if len(part) == 1 else part for part in parts] or None

    question = Question(task, n, seed, variant, value, metric, base, None if budget is None else budget * 2**20)
    which = senders if senders in ("heads", "mlps") else None if senders == "all" else named(senders)
    asked = {"senders": which, "receivers": named(receivers), "paths": path or None, "mlps": mlps}
    _answer(question, "paths", asked, model, device, out, overwrite, dry_run)


def _answer(
    question: Any,
    what: str,
    asked: dict[str, Any],
    model: str,
    device: str | None,
    out: Path | None,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Run a question, write its table and picture, and print the strongest cells; with `dry_run` print the plan."""
    import workbench as wb
    from workbench.files import check_output, fresh_folder
    from workbench.workflows.effects import strongest, write

    question.check()
    if dry_run:
        typer.echo(str(getattr(question, what)(wb.load_model(model, device=device), dry_run=True, **asked)))
        return
    with nullcontext(out) if out is not None else fresh_folder(f"{Path(question.task).stem}-{what}") as folder:
        check_output(folder, (f"{what}.nc", f"{what}.png"), overwrite=overwrite)
        result = getattr(question, what)(wb.load_model(model, device=device), **asked)
        for line in strongest(result):
            typer.echo(line)
        for path in write(result, folder, what, overwrite=overwrite):
            typer.echo(str(path))


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="Embedded name, local Hugging Face directory, or Hub name.")],
    n: Annotated[int, typer.Option(help="Held-out prompts per behaviour.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    device: Device = None,
) -> None:
    """Print a model's score on held-out prompts of every task."""
    import workbench as wb

    for score in wb.measure(wb.load_model(model, device=device), n=n, seed=seed):
        if as_json:
            value = None if score.skipped else score.score
            typer.echo(json.dumps({"behaviour": score.behaviour, "n": score.n, "score": value, "bar": score.bar}))
        if score.skipped:
            typer.echo(f"{score.behaviour}: not measured. {score.skipped}", err=True)
        elif as_json:
            continue
        else:
            verdict = "ok" if score.score >= score.bar else "below"
            typer.echo(f"{score.behaviour:13} n={score.n:<5} score {score.score:.3f}  bar {score.bar:.2f}  {verdict}")


CircuitName = Annotated[str, typer.Argument(help="A circuit file, or a published circuit (workbench ls circuits).")]
Positive = Annotated[str | None, typer.Option(help="What a positive score means in another tool's file: supports or opposes.")]
ShapeOf = Annotated[
    str | None, typer.Option(help="Whose graph another tool's file is of: a circuit (file or published), or a model.")
]


@app.command("evaluate")
def evaluate_circuit(
    circuit: CircuitName,
    task: Annotated[str, typer.Option(help="A task (workbench ls tasks), or a .csv or .jsonl file of your own pairs.")],
    model: ModelName = "tiny",
    value: Annotated[
        str, typer.Option(help="What replaces the rest: from_store, zero, mean, resample; several with commas, side by side.")
    ] = "from_store",
    n: Pairs = 64,
    metric: MetricName = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts, and of random circuits and sets.")] = 0,
    split: Annotated[str, typer.Option(help="heldout or train prompts of a task.")] = "heldout",
    variant: Annotated[str | None, typer.Option(help="Kind of corruption; by default the task's first.")] = None,
    tests: Annotated[bool, typer.Option("--tests", help="The five hypothesis tests too.")] = False,
    positive: Positive = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line: each value, then the tests.")] = False,
    device: Device = None,
) -> None:
    """Measure a circuit: faithfulness, complement, random circuits, completeness, minimality, with intervals."""
    import workbench as wb
    from workbench.errors import UnknownName
    from workbench.workflows.evaluate import judged, lines
    from workbench.workflows.effects import VALUES

    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in VALUES:
            raise UnknownName("value", name, VALUES)
    loaded = wb.load_model(model, device=device)
    asked = _circuit(circuit, positive, loaded)
    if asked.attrs.get("model_fingerprint", "") not in ("", wb.model_fingerprint(loaded)):
        typer.echo(
            f"note: this circuit was found in another model ({asked.attrs.get('model', 'unnamed')}, other weights)", err=True
        )
    found = judged(
        asked, loaded, task, values=names, n=n, metric=metric, seed=seed, split=split,
        variant=variant, tests=tests,
    )  # fmt: skip
    for line in lines(found, as_json=as_json):
        typer.echo(line)


app.add_typer(store, name="store")
app.add_typer(sweep, name="sweep")
app.add_typer(course, name="course")
for name, command in (("probe", probe_store), ("report", report_run), ("diff", diff_runs)):
    app.command(name)(command)
bench = typer.Typer(help="Methods against models whose circuit is known.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command()
def circuits(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts and cases; a few minutes on two cores.")] = False,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; may be repeated.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only this model, tiny or planted-NAME; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of models, prompts and methods.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, a row each.")] = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Every method on every planted model and on the tasks of tiny: a table (bench.parquet) and a page (bench.html)."""
    from workbench.evaluation.benchmark import bench_circuits, json_line, overview
    from workbench.workflows.evaluate import BENCH_FILES, write_bench
    from workbench.files import check_output, fresh_folder

    with nullcontext(out) if out is not None else fresh_folder("bench") as folder:
        check_output(folder, BENCH_FILES, overwrite=overwrite)
        rows = []
        for row in bench_circuits(quick=quick, methods=method, models=model, seed=seed):
            rows.append(row)
            if as_json:
                typer.echo(json_line(row))
        if not as_json:
            typer.echo(overview(rows).to_string(index=False, na_rep=""))
        for path in write_bench(rows, folder, command_line(), overwrite=overwrite):
            typer.echo(str(path), err=as_json)


@bench.command()
def behaviours(
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method of scores; may be repeated.")] = None,
    model: ModelName = "tiny",
    share: Annotated[float, typer.Option(help="Share of the behaviour that a circuit has to keep.")] = 0.9,
    n: Pairs = 64,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, a row each.")] = False,
    device: Device = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The smallest circuit of every behaviour of a model: a table (behaviours.parquet) and a page (behaviours.html)."""
    import workbench as wb
    from workbench.evaluation.behaviours import METHODS, behaviours_table, smallest_circuits
    from workbench.evaluation.benchmark import json_line
    from workbench.workflows.evaluate import BEHAVIOUR_FILES, write_behaviours
    from workbench.files import check_output, fresh_folder

    with nullcontext(out) if out is not None else fresh_folder("behaviours") as folder:
        check_output(folder, BEHAVIOUR_FILES, overwrite=overwrite)
        loaded, rows = wb.load_model(model, device=device), []
        for found in smallest_circuits(loaded, tasks=task, methods=method or METHODS, share=share, n=n, seed=seed):
            rows += found
            for line in map(json_line, found) if as_json else ():
                typer.echo(line)
        if not as_json:
            typer.echo(behaviours_table(rows).to_string(index=False))
        for path in write_behaviours(rows, folder, command_line(), overwrite=overwrite):
            typer.echo(str(path), err=as_json)


@app.command()
def compare(
    a: CircuitName,
    b: CircuitName,
    positive: Positive = None,
    shape_of: ShapeOf = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object, with the edges that differ.")] = False,
) -> None:
    """Compare two circuits: edges, nodes, classes of components, roles. A is the reference for precision and recall."""
    import workbench as wb

    found = wb.compare(*(_circuit(name, positive, shape_of) for name in (a, b)))
    typer.echo(json.dumps(found.to_dict()) if as_json else str(found))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A circuit file of this or another tool, or a published circuit.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; .json is ours, .pt that of EAP-IG and MIB.")],
    positive: Positive = None,
    shape_of: ShapeOf = None,
    form: Annotated[str | None, typer.Option("--format", help="workbench, eap-json or eap-pt; by default by suffix.")] = None,
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
    from workbench.circuit.published import reference_names

    if not isinstance(name, str):
        return wb.Shape.of(name)
    if name in reference_names() or Path(name).is_file():
        return _circuit(name).graph.shape
    return wb.Shape.of(wb.load_model(name))


@app.command("ls")
def list_names(what: Annotated[str, typer.Argument(help="tasks, models, methods or circuits")]) -> None:
    """List what there is: tasks, models, methods or published circuits."""
    from workbench.errors import UnknownName

    listings = {"tasks": _tasks, "models": _models, "methods": _methods, "circuits": _circuits}
    if what not in listings:
        raise UnknownName("thing to list", what, listings)
    for line in listings[what]():
        typer.echo(line)


def _tasks() -> list[str]:
    from workbench.tasks.registry import TASKS

    return [f"{t.name:13} {t.description} Variants: {', '.join(t.variants)}." for t in TASKS.values()]


def _models() -> list[str]:
    from workbench.models import zoo

    lines = []
    for name in zoo.names():
        steps = ", ".join(f"{name}@{step}" for step in zoo.steps(name))
        lines.append(f"{name:13} embedded" + (f"; training steps: {steps}" if steps else ""))
    return [*lines, "or a local Hugging Face directory, or a Hub name such as gpt2"]


def _methods() -> list[str]:
    from workbench.discovery.methods import METHODS
    from workbench.interventions import effects
    from workbench.workflows.discover import VALUES
    from workbench.metrics.metric import BUILT_IN

    return [
        *(f"{name:19} {what}" for name, what in METHODS.items()),
        f"effects       {', '.join(effects.METHODS)}",
        f"--value       {', '.join(VALUES)}",
        f"metrics       {', '.join(BUILT_IN)}",
    ]


def _circuits() -> list[str]:
    from workbench.circuit.published import reference_circuit, reference_names

    found = {name: reference_circuit(name) for name in reference_names()}
    return [f"{name:13} {one.attrs['title']}: {one.n_edges} edges. {one.attrs['source']}." for name, one in found.items()]


def main() -> None:
    """Run the command; a deliberate error is its message on stderr and exit code 2."""
    from workbench.errors import WorkbenchError

    # A terminated run cleans up as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except (WorkbenchError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
