"""What a command prints: `say`, the one way to the terminal.

Lines may quote files, models and prompts of anybody. Whatever would move the cursor, colour the text or turn
its direction is spelled out, so that a terminal shows it and does not obey it.
"""

import warnings
from typing import Any

import typer


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
