"""`workbench store ...`: build, inspect, verify and repair stores of activations on disk."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import (
    Bos,
    Budget,
    Chat,
    Device,
    Json,
    ModelName,
    in_bytes,
    names,
    path_of,
    positions,
)
from workbench.cli.output import print_json, say

store = typer.Typer(help="Stores of activations on disk.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="Folder of the store.")]


@store.command()
def build(
    corpus: Annotated[
        str,
        typer.Argument(
            help="A text file (a text a line), a .jsonl file, or a task (its prompts, clean and corrupt)."
        ),
    ],
    path: Annotated[
        Path,
        typer.Argument(
            parser=path_of,
            metavar="PATH",
            help="Folder of the store; with a task, its folders clean and corrupt.",
        ),
    ],
    model: ModelName = "tiny",
    sites: Annotated[
        str | None,
        typer.Option(
            help="Kinds or sites with commas: resid_post,mlp_post[3]; by default what patching needs."
        ),
    ] = None,
    keep: Annotated[
        str, typer.Option(help="all rows, mean over each prompt, or positions with commas: END,3.")
    ] = "all",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default the model's.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", "--n", help="Prompts at most (64 of a task).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of a task's prompts.")] = 0,
    split: Annotated[str, typer.Option(help="train or heldout prompts of a task.")] = "train",
    column: Annotated[
        str | None, typer.Option(help="Column of a .jsonl file; by default tokens, input_ids or text.")
    ] = None,
    long: Annotated[
        str, typer.Option(help="Texts longer than the context: split, truncate or error.")
    ] = "split",
    workers: Annotated[int, typer.Option(help="Processes, or Ray tasks.")] = 1,
    backend: Annotated[str, typer.Option(help="local or ray.")] = "local",
    budget: Budget = None,
    device: Device = None,
    bos: Bos = None,
    chat: Chat = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes (rows, bytes, time), and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run prompts and keep their activations. After a crash, run the same command again to resume."""
    import workbench as wb
    from workbench.models.load import dtype_named
    from workbench.tasks.task import TASKS

    if chat and corpus in TASKS:
        raise typer.BadParameter("--chat is for texts of a file; the prompts of a task are no messages.")
    loaded = wb.load_model(model, device=device, bos=bos)
    options = {
        "sites": None if sites is None else names(sites),
        "keep": keep if keep in ("all", "mean") else positions(keep),
        "dtype": dtype_named(dtype),
        "budget": in_bytes(budget),
    }
    # A task has two sides, each a store of its own; a corpus has one.
    if corpus in TASKS:
        pairs = wb.load_task(corpus, loaded, n=64 if n is None else n, seed=seed, split=split)
        prompts_of = {path / side: pairs.side(side) for side in ("clean", "corrupt")}
    else:
        prompts = wb.read_corpus(loaded, Path(corpus), column=column, long=long, limit=n, chat=chat)
        prompts_of = {path: prompts}
    listing: list[dict[str, Any]] = []
    for folder, prompts in prompts_of.items():
        if dry_run:
            cost = wb.capture_cost(loaded, prompts, **options)
            listing.append({"folder": folder, **asdict(cost)})
            say(f"{folder}: {cost}", err=as_json)
        else:
            built = wb.capture(loaded, prompts, path=folder, workers=workers, backend=backend, **options)
            listing.append({"folder": folder, "prompts": len(prompts), "bytes": built.nbytes()})
            say(repr(built), err=as_json)
    if as_json:
        print_json(listing)


@store.command()
def inspect(path: Folder, as_json: Json = False) -> None:
    """Say what a store holds, and of which model and prompts it is."""
    from workbench.stores.disk import DiskStore, exists, join, read_plan
    from workbench.stores.plan import record_name

    # The plan says what the store will hold, the records which of its shards are finished.
    plan, held = read_plan(str(path)), DiskStore(str(path))
    done = sum(exists(join(str(path), record_name(shard))) for shard in range(len(plan.shards)))
    lengths = held.index.counts
    if as_json:
        facts: dict[str, Any] = {
            "model": plan.model_name, "model_fingerprint": plan.model, "tokenizer": plan.tokenizer,
            "prompts": plan.n, "prompts_fingerprint": plan.prompts, "keep": plan.keep,
            "rows": len(held.index.prompts), "bytes": held.nbytes(), "dtype": str(plan.dtype),
            "shards": len(plan.shards), "finished": done, "versions": plan.versions,
            "kinds": {kind: held.layers(kind) for kind in held.kinds},
        }  # fmt: skip
        print_json(facts)
        return
    say(f"model      {plan.model_name} {plan.model}")
    say(f"tokenizer  {plan.tokenizer}")
    say(f"prompts    {plan.n}, {int(lengths.min())} to {int(lengths.max())} rows each, {plan.prompts}")
    say(f"keep       {plan.keep}")
    say(f"size       {len(held.index.prompts)} rows, {held.nbytes() / 2**20:.1f} MiB in {plan.dtype}")
    say(f"shards     {done} of {len(plan.shards)} finished")
    for kind in held.kinds:
        # Kinds such as the embedding have no layers, and are named without one.
        layers = held.layers(kind)
        shape = list(plan.shapes[plan.sites[f"{kind}[{layers[0]}]" if layers else kind]])
        listed = "layers " + ", ".join(map(str, layers)) if layers else ""
        say(f"  {kind:11} {listed} {shape}")
    say("made with  " + ", ".join(f"{name} {version}" for name, version in plan.versions.items()))


@store.command()
def verify(path: Folder, as_json: Json = False) -> None:
    """Compare every file with its checksum; lists damaged files, with exit code 2 where there are any."""
    from workbench.stores.disk import verify as check

    damaged = list(check(path))
    for damage in damaged:
        say(f"{damage.file}: {damage.why}", err=True)
    if as_json:
        print_json({"folder": path, "damaged": [{"file": one.file, "why": one.why} for one in damaged]})
    if damaged:
        raise typer.Exit(2)
    if not as_json:
        say(f"{path}: every file is as it was written")


@store.command()
def repair(
    path: Folder,
    model: Annotated[
        str | None, typer.Option(help="The model of the store; by default the one that the store names.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Recompute the damaged shards, and only those."""
    import workbench as wb
    from workbench.stores.disk import read_plan

    # `repair` checks the fingerprint, so a name that means another model by now is refused.
    loaded = wb.load_model(model or read_plan(str(path)).model_name, device=device)
    recomputed = wb.repair(loaded, path)
    if as_json:
        print_json({"folder": path, "recomputed": list(recomputed)})
        return
    for name in recomputed:
        say(f"recomputed: {name}")
    if not recomputed:
        say(f"{path}: nothing is damaged")
