"""What the command files share: options, and the command as it was typed."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path | None, typer.Option(help="Folder for the results; by default a fresh one under runs/.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results in the output folder.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def command_line() -> str:
    """The command that runs, for the "Made by" of what it writes."""
    return shlex.join(["workbench", *sys.argv[1:]])
