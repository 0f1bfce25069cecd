"""`workbench measure`, `check` and `ls`: what models can do, what prompts look like, and the names that there are."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.completions import LISTINGS, completion
from workbench.cli.options import Bos, Chat, Device, Json
from workbench.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from workbench.tasks.measure import Estimate, Score


def measure(
    model: Annotated[str, typer.Argument(help="Embedded name, local Hugging Face directory, or Hub name.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Tasks, or files of your own pairs (.csv, .jsonl, .parquet); by default every task."
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Held-out prompts per behaviour.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    device: Device = None,
    bos: Bos = None,
) -> None:
    """Print how well a model does on held-out prompts of tasks, or on prompts of your own.

    The share of prompts with a right answer above the wrong ones and as first choice of the whole vocabulary,
    and the mean metric of clean and corrupt runs, each with a 95 % interval.
    """
    import workbench as wb
    from workbench.tasks.registry import pairs_of

    loaded, pairs = wb.load_model(model, device=device, bos=bos), None
    if prompts:
        pairs = [pairs_of(name, loaded, n=n, seed=seed, split="heldout") for name in prompts]
    for score in wb.measure(loaded, pairs, n=n, seed=seed):
        if as_json:
            say(json.dumps(_json_row(score)), as_json=True)
        # On stderr, so that a pipe of JSON lines stays JSON.
        if score.skipped:
            say(f"{score.behaviour}: not measured. {score.skipped}", err=True)
        elif not as_json:
            say(_line(score))


def check(
    prompts: Annotated[
        Path, typer.Argument(help="A .csv, .tsv, .jsonl, .json or .parquet file of your own pairs.")
    ],
    model: Annotated[str, typer.Option(help="Embedded name, local Hugging Face directory, or Hub name.")],
    as_json: Json = False,
    device: Device = None,
    bos: Bos = None,
    chat: Chat = False,
) -> None:
    """Look at every row of a file of pairs: tokens, lengths, what does not line up, and whether the model can do it.

    Exits with 1 where a row has a problem.
    """
    import workbench as wb
    from workbench.workflows.check_prompts import check_prompts, positions_of

    found = check_prompts(wb.load_model(model, device=device, bos=bos), prompts, chat=chat)
    if as_json:
        contents = {"source": found.source, "model": found.model, "n": found.n}
        contents["problems"] = [asdict(problem) for problem in found.problems]
        contents["positions"] = {} if found.pairs is None else positions_of(found.pairs)
        contents["competence"] = None if found.competence is None else _json_row(found.competence)
        say(json.dumps(contents), as_json=True)
    else:
        say(str(found))
    if found.problems:
        raise typer.Exit(1)


def _json_row(score: "Score") -> dict[str, Any]:
    """The fields of a score that JSON holds: it has no NaN."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: known(part) for name, part in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return known({name: value for name, value in asdict(score).items() if name != "skipped"})


def _line(score: "Score") -> str:
    """A score as one line of text."""
    columns = [f"{score.behaviour:13} n={score.n:<5}"]
    if math.isfinite(score.bar):
        verdict = "ok" if score.score >= score.bar else "below"
        columns.append(f"score {score.score:.3f}  bar {score.bar:.2f}  {verdict:5}")
    shares = {"right above wrong": score.right_above_wrong, "first choice": score.first_choice}
    columns += [f"{name} {_estimate(share, '.2f')}" for name, share in shares.items()]
    runs = {"clean": score.clean, **score.corrupt}
    listed = ", ".join(f"{name} {_estimate(value, '.3g')}" for name, value in runs.items())
    return "  ".join([*columns, f"{score.metric}: {listed}"])


def _estimate(estimate: "Estimate", form: str) -> str:
    from workbench.statistics import interval_text

    return f"{estimate.mean:{form}} {interval_text(estimate.low, estimate.high, form)}"


def list_names(
    what: Annotated[
        str,
        typer.Argument(
            help="tasks, models, methods, metrics, values or circuits", autocompletion=completion("listings")
        ),
    ],
    as_json: Json = False,
) -> None:
    """List what there is: tasks, models, methods, metrics, values or published circuits."""
    from workbench.errors import UnknownName

    if what not in LISTINGS:
        raise UnknownName("what", what, LISTINGS)
    rows = LISTINGS[what]()
    if as_json:
        print_json(rows)
    else:
        print_table(rows, most=len(rows))
