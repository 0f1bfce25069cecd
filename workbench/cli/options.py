"""What the command files share: options, and the command as it was typed."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path | None, typer.Option(help="Folder for the results; by default a fresh one under runs/.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results in the output folder.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")]
Task = Annotated[
    str, typer.Argument(help="A task (workbench ls tasks), or a .csv or .jsonl file of your own pairs.")
]
ModelName = Annotated[str, typer.Option(help="Embedded name, local Hugging Face directory, or Hub name.")]
ValueName = Annotated[
    str, typer.Option(help="What is written: from_store (the other run), zero, mean or resample.")
]
Base = Annotated[str, typer.Option(help="Which run is edited: clean or corrupt.")]
Pairs = Annotated[int, typer.Option("-n", "--n", help="Pairs of a task.")]
MetricName = Annotated[
    str | None,
    typer.Option(
        help="logit_diff, sequence_logprob_diff, prob_diff, kl, nll, ...; by default what suits the pairs."
    ),
]
Budget = Annotated[
    int | None, typer.Option(help="Working memory in MiB; by default 1024, or half of a GPU's free memory.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be run and what it costs, and run nothing.")
]
CircuitName = Annotated[
    str, typer.Argument(help="A circuit file, or a published circuit (workbench ls circuits).")
]
Positive = Annotated[
    str | None, typer.Option(help="What a positive score means in another tool's file: supports or opposes.")
]
ShapeOf = Annotated[
    str | None,
    typer.Option(help="Whose graph another tool's file is of: a circuit (file or published), or a model."),
]


def command_line() -> str:
    """The command that runs, for the "Made by" of what it writes."""
    return shlex.join(["workbench", *sys.argv[1:]])
