"""Errors in the words of the shell: `message` names the option, not the argument."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperGroup, TyperOption

from workbench.errors import OutputExists, UnknownName

OTHER_NAMES = {"n_edges": "edges"}
"""Python argument → the name of the option, where they differ by more than dashes."""


def options_of(command: Any, arguments: Sequence[str]) -> dict[str, str]:
    """Argument → option, such as `overwrite` → `--overwrite`, of the command that a command line runs.

    Args:
        command: the whole app.
        arguments: the command line after the app's name.
    """
    # Groups have no options of their own, so the words before the first option name the command.
    for word in arguments:
        if not isinstance(command, TyperGroup) or word not in command.commands:
            break
        command = command.commands[word]
    options = {}
    for parameter in command.params:
        if isinstance(parameter, TyperOption) and parameter.name:
            options[parameter.name] = max(parameter.opts, key=len)
    return options


def message(error: Exception, options: Mapping[str, str]) -> str:
    """What to print about an error, for a command with these options."""
    if isinstance(error, UnknownName) and (option := _option(error.argument, options)):
        return error.sentence(f"{option} {error.given!r}")
    text = str(error)
    if isinstance(error, OutputExists) and "overwrite" in options:
        text = text.replace("pass --overwrite (overwrite=True)", "pass --overwrite")
        return text.replace("pass overwrite=True", "pass --overwrite")
    # Our errors begin with the argument and its value: "discover: n_edges=9999; ..." and "n=0: ...".
    subject = re.match(r"(?P<call>[\w.]+: )?(?P<argument>\w+)=", text)
    if subject and (option := _option(subject["argument"], options)):
        return f"{subject['call'] or ''}{option} {text[subject.end() :]}"
    return text


def _option(argument: str, options: Mapping[str, str]) -> str | None:
    return options.get(OTHER_NAMES.get(argument, argument))
