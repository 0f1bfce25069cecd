"""`workbench measure` and `workbench ls`: what models can do, and the names that there are."""

import json
from typing import Annotated

import typer

from workbench.cli.options import Device
from workbench.cli.output import say


def measure(
    model: Annotated[str, typer.Argument(help="Embedded name, local Hugging Face directory, or Hub name.")],
    n: Annotated[int, typer.Option("-n", "--n", help="Held-out prompts per behaviour.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    device: Device = None,
) -> None:
    """Print a model's score on held-out prompts of every task."""
    import workbench as wb

    for score in wb.measure(wb.load_model(model, device=device), n=n, seed=seed):
        if as_json:
            value = None if score.skipped else score.score
            row = {"behaviour": score.behaviour, "n": score.n, "score": value, "bar": score.bar}
            say(json.dumps(row), as_json=True)
        # On stderr, so that a pipe of JSON lines stays JSON.
        if score.skipped:
            say(f"{score.behaviour}: not measured. {score.skipped}", err=True)
        elif not as_json:
            verdict = "ok" if score.score >= score.bar else "below"
            say(
                f"{score.behaviour:13} n={score.n:<5} score {score.score:.3f}  bar {score.bar:.2f}  {verdict}"
            )


def list_names(what: Annotated[str, typer.Argument(help="tasks, models, methods or circuits")]) -> None:
    """List what there is: tasks, models, methods or published circuits."""
    from workbench.errors import UnknownName

    listings = {"tasks": _tasks, "models": _models, "methods": _methods, "circuits": _circuits}
    if what not in listings:
        raise UnknownName("what", what, listings)
    for line in listings[what]():
        say(line)


def _tasks() -> list[str]:
    from workbench.tasks.registry import TASKS

    return [
        f"{task.name:13} {task.description} Variants: {', '.join(task.variants)}." for task in TASKS.values()
    ]


def _models() -> list[str]:
    from workbench.models import embedded

    lines = []
    for name in embedded.names():
        steps = ", ".join(f"{name}@{step}" for step in embedded.steps(name))
        line = f"{name:13} embedded"
        if steps:  # models that were not kept while they were trained have none
            line += f"; training steps: {steps}"
        lines.append(line)
    return [*lines, "or a local Hugging Face directory, or a Hub name such as gpt2"]


def _methods() -> list[str]:
    from workbench.discovery.methods import METHODS
    from workbench.interventions import effects
    from workbench.metrics.metric import BUILT_IN
    from workbench.workflows.discover import VALUES

    methods = [f"{name:19} {meaning}" for name, meaning in METHODS.items()]
    return [
        *methods,
        f"effects       {', '.join(effects.METHODS)}",
        f"--value       {', '.join(VALUES)}",
        f"metrics       {', '.join(BUILT_IN)}",
    ]


def _circuits() -> list[str]:
    from workbench.circuit.published import published_names, reference_circuit

    lines = []
    for name in published_names():
        circuit = reference_circuit(name)
        title, source = circuit.attrs["title"], circuit.attrs["source"]
        lines.append(f"{name:13} {title}: {circuit.n_edges} edges. {source}.")
    return lines
