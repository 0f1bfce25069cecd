"""`workbench effects` and `workbench paths`: patching and ablation as a table and a picture."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.completions import completion
from workbench.cli.options import (
    Base,
    Bos,
    Budget,
    Device,
    DryRun,
    Json,
    MetricName,
    ModelName,
    Out,
    Overwrite,
    Pairs,
    Task,
    ValueName,
    Variant,
    in_bytes,
    names,
    output_folder,
)
from workbench.cli.output import print_json, say

if TYPE_CHECKING:
    from workbench.models.model import Model

Seed = Annotated[int, typer.Option(help="Seed of the prompts, and of resample.")]


def effects(
    task: Task,
    kind: Annotated[
        str,
        typer.Option(
            help="Kind of site: heads (z), mlps (mlp_out), resid_pre, attn_out, q, k, v, pattern, ..."
        ),
    ] = "z",
    value: ValueName = None,
    pos: Annotated[
        str, typer.Option(help="all (whole sequences), each, or positions and names: END or 3,END.")
    ] = "all",
    method: Annotated[
        str,
        typer.Option(
            help="exact, gradient, integrated or atp-star.", autocompletion=completion("methods", "effects")
        ),
    ] = "exact",
    model: ModelName = "tiny",
    base: Base = "clean",
    n: Pairs = 64,
    metric: MetricName = None,
    seed: Seed = 0,
    variant: Variant = None,
    budget: Budget = None,
    device: Device = None,
    bos: Bos = None,
    out: Out = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Edit every site of a kind in turn: patching and ablation, as effects.nc and effects.png."""
    from workbench.errors import UnknownName
    from workbench.interventions.effects import METHODS
    from workbench.sites import kind_named
    from workbench.workflows.effects import Question

    # Names are checked before the model is loaded, which takes seconds.
    kind_named(kind, words=True)
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    question = Question(task, n, seed, variant, value, metric, base, in_bytes(budget))
    question.check()

    def measure(loaded: "Model") -> Any:
        """The effects, or with `dry_run` the plan."""
        return question.effects(loaded, kind=kind, pos=pos, method=method, dry_run=dry_run)

    _answer(
        measure,
        task,
        "effects",
        model,
        device,
        bos,
        out,
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=as_json,
    )


def paths(
    task: Task,
    senders: Annotated[
        str | None,
        typer.Option(help="all, heads, mlps, or names: input,a0.1,m2; a1.2+a1.3 are patched together."),
    ] = None,
    receivers: Annotated[
        str | None,
        typer.Option(
            help="Names: a3.1<q>,m3,logits,a2.0<k>@END; a2.0<q>+a2.1<q> is a set. By default logits."
        ),
    ] = None,
    path: Annotated[
        list[str] | None, typer.Option(help="A whole path instead, such as 'input->a1.2->a3.1<q>->logits'.")
    ] = None,
    mlps: Annotated[
        str, typer.Option(help="MLPs on the way: frozen (direct edges alone) or recomputed.")
    ] = "frozen",
    value: ValueName = None,
    model: ModelName = "tiny",
    base: Base = "clean",
    n: Pairs = 64,
    metric: MetricName = None,
    seed: Seed = 0,
    variant: Variant = None,
    budget: Budget = None,
    device: Device = None,
    bos: Bos = None,
    out: Out = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Path patching from senders into receivers, or along whole paths: paths.nc and paths.png."""
    from workbench.workflows.effects import Question

    question = Question(task, n, seed, variant, value, metric, base, in_bytes(budget))
    question.check()
    # `path_effects` knows "heads" and "mlps" itself; "all" is what it does by default.
    writers = senders
    if senders not in ("heads", "mlps"):
        writers = None if senders == "all" else _nodes(senders)

    def measure(loaded: "Model") -> Any:
        """The effects of the paths, or with `dry_run` the plan."""
        return question.paths(
            loaded,
            senders=writers,
            receivers=_nodes(receivers),
            paths=path or None,
            mlps=mlps,
            dry_run=dry_run,
        )

    _answer(
        measure, task, "paths", model, device, bos, out, overwrite=overwrite, dry_run=dry_run, as_json=as_json
    )


def _nodes(text: str | None) -> list[str | tuple[str, ...]] | None:
    """Names of nodes with commas, sets joined by +; None where there are none."""
    nodes: list[str | tuple[str, ...]] = []
    for name in names(text or ""):
        nodes.append(tuple(names(name.replace("+", ","))) if "+" in name else name)
    return nodes or None


def _answer(
    measure: Callable[["Model"], Any],
    task: str,
    name: str,
    model: str,
    device: str | None,
    bos: bool | None,
    out: Path | None,
    *,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure, write `NAME.nc` and `NAME.png`, print the strongest cells; with `dry_run` print the plan."""
    import workbench as wb
    from workbench.files import check_output
    from workbench.workflows.effects import strongest, write

    # A plan is printed and leaves no folder behind.
    if dry_run:
        plan = measure(wb.load_model(model, device=device, bos=bos))
        if as_json:
            print_json(asdict(plan))
        else:
            say(plan)
        return
    with output_folder(out, f"{Path(task).stem}-{name}") as folder:
        check_output(folder, (f"{name}.nc", f"{name}.png"), overwrite=overwrite)
        result = measure(wb.load_model(model, device=device, bos=bos))
        files = write(result, folder, name, overwrite=overwrite)
        if as_json:
            facts = {"headline": result.wb.headline(), "strongest": result.wb.table().to_dict("records")}
            print_json(facts | {"n": result.sizes["example"], "files": files})
            return
        for line in strongest(result):
            say(line)
        for path in files:
            say(path)
