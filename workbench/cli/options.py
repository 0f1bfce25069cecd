"""What the command files share: options, readers of their text, folders, and the command as typed."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.completions import completion


def path_of(text: str) -> Path:
    """A path to write to. An empty one (a shell variable that is not set) would be this folder."""
    if not text.strip():
        raise typer.BadParameter("the path is empty.")
    return Path(text)


Out = Annotated[
    Path | None,
    typer.Option(
        parser=path_of, metavar="PATH", help="Folder for the results; by default a fresh one under runs/."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results in the output folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")]
Bos = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos", help="Prompts of text begin with BOS, or not; by default as the tokenizer adds it."
    ),
]
Chat = Annotated[bool, typer.Option("--chat", help="Put each text into the tokenizer's chat template.")]
Task = Annotated[
    str,
    typer.Argument(
        help="A task (workbench ls tasks), or a file of your own pairs (.csv, .jsonl, .parquet).",
        autocompletion=completion("tasks"),
    ),
]
ModelName = Annotated[
    str,
    typer.Option(
        help="Embedded name, local Hugging Face directory, or Hub name.", autocompletion=completion("models")
    ),
]
ValueName = Annotated[
    str | None,
    typer.Option(
        help="What is written: the other run (clean or corrupt, the default), zero, mean or resample.",
        autocompletion=completion("values"),
    ),
]
Base = Annotated[str, typer.Option(help="Which run is edited: clean or corrupt.")]
Pairs = Annotated[int, typer.Option("-n", "--n", help="Pairs of a task.")]
MetricName = Annotated[
    str | None,
    typer.Option(
        help="logit_diff, sequence_logprob_diff, prob_diff, kl, nll, ...; by default what suits the pairs.",
        autocompletion=completion("metrics"),
    ),
]
Variant = Annotated[str | None, typer.Option(help="Kind of corruption; by default the task's first.")]
Budget = Annotated[
    int | None, typer.Option(help="Working memory in MiB; by default 1024, or half of a GPU's free memory.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be run and what it costs, and run nothing.")
]
CircuitName = Annotated[
    str,
    typer.Argument(
        help="A circuit file, or a published circuit (workbench ls circuits).",
        autocompletion=completion("circuits"),
    ),
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
    # Quoted as a shell needs it, so that the line can be pasted.
    return shlex.join(["workbench", *sys.argv[1:]])


@contextmanager
def output_folder(out: Path | None, name: str) -> Iterator[Path]:
    """The folder of `--out`, or a fresh one under runs/, which is removed if nothing is written."""
    from workbench.files import fresh_folder

    if out is not None:
        yield out  # a folder that was named is made only when something is written
        return
    with fresh_folder(name) as folder:
        yield folder


def names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def positions(text: str) -> list[int | str]:
    """Positions in a list with commas: indices, or names such as END."""
    return [int(name) if name.removeprefix("-").isdigit() else name for name in names(text)]


def in_bytes(mebibytes: int | None) -> int | None:
    """A budget in MiB as bytes; None stays None."""
    return None if mebibytes is None else mebibytes * 2**20
