"""The `workbench` command: a thin skin over the functions. Errors are one message and exit code 2."""

import json
import shlex
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

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
    method: Annotated[str, typer.Option(help="How edges are scored (workbench ls methods).")] = "eap",
    edges: Annotated[int | None, typer.Option(help="Edges in the circuit before pruning; by default 2 % of the graph.")] = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")] = False,
) -> None:
    """Find the circuit of a behaviour and write a report: circuit, edges, effects, faithfulness."""
    import workbench as wb
    from workbench.study import check_output, fresh_folder
    from workbench.tasks.registry import find_task

    own = {".csv": wb.PromptPairs.from_csv, ".jsonl": wb.PromptPairs.from_jsonl}.get(Path(task).suffix.lower())
    if own is None:
        find_task(task)
    with nullcontext(out) if out is not None else fresh_folder(Path(task).stem) as folder:
        check_output(folder, overwrite)
        loaded = wb.load_model(model, device=device)
        many = "half of the pairs" if own else f"{n or 64} pairs"
        typer.echo(f"{task} in {model}: {many} to find the circuit on, as many to test it on, seed {seed}")
        found = wb.discover(
            loaded, own(loaded, task) if own else task, out=folder, n=n, seed=seed, variant=variant, metric=metric,
            value=value, method=method, n_edges=edges, command=shlex.join(["workbench", *sys.argv[1:]]), overwrite=overwrite,
        )  # fmt: skip
    best = found.evaluation.sel(circuit="held-out")
    typer.echo(f"circuit: {found.circuit!r}")
    typer.echo(
        f"faithfulness on held-out prompts: {float(best.faithfulness):.3f} [{float(best.low):.3f}, {float(best.high):.3f}]"
    )
    typer.echo(str(found.report))


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


@app.command("ls")
def list_names(what: Annotated[str, typer.Argument(help="tasks, models or methods")]) -> None:
    """List what there is: tasks, models or methods."""
    from workbench.errors import UnknownName

    listings = {"tasks": _tasks, "models": _models, "methods": _methods}
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
    from workbench.discovery import scores
    from workbench.methods import effects
    from workbench.study import VALUES
    from workbench.tasks.metrics import BUILT_IN

    return [
        f"score_edges   {', '.join(scores.METHODS)}",
        f"effects       {', '.join(effects.METHODS)}",
        f"--value       {', '.join(VALUES)}",
        f"metrics       {', '.join(BUILT_IN)}",
    ]


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
