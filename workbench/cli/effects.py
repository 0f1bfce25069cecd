"""Commands."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import (
    Base,
    Budget,
    Device,
    DryRun,
    MetricName,
    ModelName,
    Out,
    Overwrite,
    Pairs,
    Task,
    ValueName,
)


def effects(
    task: Task,
    kind: Annotated[
        str,
        typer.Option(help="Kind of site: z, resid_pre, mlp_out, attn_out, q, k, v, pattern, mlp_post, ..."),
    ] = "z",
    value: ValueName = "from_store",
    pos: Annotated[
        str, typer.Option(help="all (whole sequences), each, or positions and names: END or 3,END.")
    ] = "all",
    method: Annotated[str, typer.Option(help="exact, gradient, integrated or atp-star.")] = "exact",
    model: ModelName = "tiny",
    base: Base = "clean",
    n: Pairs = 64,
    metric: MetricName = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts, and of resample.")] = 0,
    variant: Annotated[
        str | None, typer.Option(help="Kind of corruption; by default the task's first.")
    ] = None,
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
        raise UnknownName("method", method, METHODS)
    question = Question(
        task, n, seed, variant, value, metric, base, None if budget is None else budget * 2**20
    )
    asked = {"kind": kind, "pos": pos, "method": method}
    _answer(question, "effects", asked, model, device, out, overwrite, dry_run)


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
    value: ValueName = "from_store",
    model: ModelName = "tiny",
    base: Base = "clean",
    n: Pairs = 64,
    metric: MetricName = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts, and of resample.")] = 0,
    variant: Annotated[
        str | None, typer.Option(help="Kind of corruption; by default the task's first.")
    ] = None,
    budget: Budget = None,
    device: Device = None,
    out: Out = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Path patching from senders into receivers, or along whole paths: a table (paths.nc) and a picture (paths.png)."""
    from workbench.workflows.effects import Question

    def named(text: str | None) -> list[str | tuple[str, ...]] | None:
        parts = (
            []
            if text is None
            else [tuple(name.strip() for name in part.split("+")) for part in text.split(",")]
        )
        return [part[0] if len(part) == 1 else part for part in parts] or None

    question = Question(
        task, n, seed, variant, value, metric, base, None if budget is None else budget * 2**20
    )
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
    with (
        nullcontext(out) if out is not None else fresh_folder(f"{Path(question.task).stem}-{what}") as folder
    ):
        check_output(folder, (f"{what}.nc", f"{what}.png"), overwrite=overwrite)
        result = getattr(question, what)(wb.load_model(model, device=device), **asked)
        for line in strongest(result):
            typer.echo(line)
        for path in write(result, folder, what, overwrite=overwrite):
            typer.echo(str(path))
