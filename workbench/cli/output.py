"""What a command prints: `say` for lines, `print_table` for rows, `print_json` for programs.

Lines may quote files, models and prompts of anybody. Whatever would move the cursor, colour the text or turn
its direction is spelled out, so that a terminal shows it and does not obey it.
"""

import json
import math
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import typer

WIDEST = 120
"""Columns that nothing printed is wider than."""
ROWS = 30
"""Rows of a table that are printed without being asked for all."""


def say(text: object, *, err: bool = False, as_json: bool = False) -> None:
    """Print a text, its lines as they are and every other invisible character spelled out.

    Args:
        err: to stderr.
        as_json: the text is JSON, which escapes all but plain ASCII itself.
    """
    from workbench.text import spelled  # imported here, since `--help` must not wait for tqdm

    shown = str(text)
    if not as_json:
        shown = "\n".join(map(spelled, shown.split("\n")))
    typer.echo(shown, err=err)


def print_json(value: object) -> None:
    """Print one JSON document: NaN and infinity, which JSON lacks, as null; paths and the like as text."""
    say(json.dumps(_jsonable(value), default=str), as_json=True)


def print_table(rows: Sequence[Mapping[str, object]], *, caption: str = "", most: int = ROWS) -> None:
    """Print rows as a table no wider than the terminal: long texts are wrapped, numbers aligned.

    Args:
        rows: each with the same columns; None and NaN are printed as a dash.
        caption: a line above the table.
        most: rows at most; how many are left out is said below.
    """
    from rich.console import Console
    from rich.table import Table

    from workbench.text import wrapped

    if caption:
        say(wrapped(caption))
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for name in rows[0]:
        is_number = all(isinstance(row[name], int | float) for row in rows if row[name] is not None)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold", no_wrap=False)
    for row in rows[:most]:
        table.add_row(*(_cell(value) for value in row.values()))
    # A pipe has no width; in a terminal a table wider than it is would be torn.
    width = WIDEST
    if sys.stdout.isatty():
        width = min(WIDEST, shutil.get_terminal_size().columns)
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    # rich fills each line to the width; a line that is copied or compared needs no blanks at its end
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())
    if len(rows) > most:
        say(f"{len(rows) - most} more; --json has them all.")


def _cell(value: object) -> str:
    """A cell as text: four significant digits of a number, invisible characters spelled out."""
    from workbench.text import spelled

    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return spelled(str(value))


def _jsonable(value: object) -> object:
    """The value without NaN, infinity and the scalars of numpy, in dictionaries and lists too."""
    if isinstance(value, Mapping):
        return {str(name): _jsonable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(part) for part in value]
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def spell_warnings() -> None:
    """Print warnings with the same care as everything else: they quote files too.

    Ours are a sentence for the user of the shell, without the line of a program.
    """
    plain = warnings.formatwarning

    def formatted(message: Any, category: type[Warning], *place: Any, **rest: Any) -> str:
        from workbench.errors import WorkbenchWarning
        from workbench.text import spelled

        text = plain(message, category, *place, **rest)
        if issubclass(category, WorkbenchWarning):
            text = f"warning: {message}\n"
        return "\n".join(map(spelled, text.split("\n")))

    warnings.formatwarning = formatted
