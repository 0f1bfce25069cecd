"""The `workbench` command: the commands in the order of `--help`. Errors are one message and exit code 2."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from workbench.cli.bench import behaviours, circuits
from workbench.cli.circuits import compare, convert, discover, evaluate_circuit
from workbench.cli.course import course
from workbench.cli.effects import effects, paths
from workbench.cli.listings import check, list_names, measure
from workbench.cli.logs import log_to_stderr
from workbench.cli.models import models
from workbench.cli.output import say, spell_warnings
from workbench.cli.runs import diff_runs, probe_store, report_run
from workbench.cli.store import store
from workbench.cli.sweep import sweep

# Typer carries a copy of click within, and shows this class of it only as the base of another.
UsageError: Any = typer.BadParameter.__base__


class SpelledGroup(TyperGroup):
    """Commands whose messages about arguments spell out invisible characters, as all other messages do."""

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """The context of a command line. Raises `UsageError`, spelled out."""
        with _spelled_out():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the line names. Raises `UsageError`, spelled out."""
        with _spelled_out():
            return super().invoke(ctx)


@contextmanager
def _spelled_out() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        from workbench.text import spelled

        text = error.format_message()
        if spelled(text) == text:
            raise  # as click shows it
        raise UsageError(spelled(text), ctx=error.ctx) from error


app = typer.Typer(
    cls=SpelledGroup,
    help="A mechanistic interpretability workbench around TransformerLens models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Methods against models whose circuit is known.", no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        from workbench import __version__

        say(f"workbench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end."),
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            help="Say what is done, on stderr; -vv says more. Before the command.",
        ),
    ] = 0,
) -> None:
    """A mechanistic interpretability workbench around TransformerLens models."""
    log_to_stderr(verbose)


for name, command in (
    ("discover", discover),
    ("effects", effects),
    ("paths", paths),
    ("measure", measure),
    ("check", check),
    ("evaluate", evaluate_circuit),
    ("probe", probe_store),
    ("report", report_run),
    ("diff", diff_runs),
    ("compare", compare),
    ("convert", convert),
    ("ls", list_names),
):
    app.command(name)(command)
for name, command in (("circuits", circuits), ("behaviours", behaviours)):
    bench.command(name)(command)
groups = (("models", models), ("store", store), ("sweep", sweep), ("course", course), ("bench", bench))
for name, group in groups:
    app.add_typer(group, name=name)


def main() -> None:
    """Run the command; a deliberate error is its message on stderr and exit code 2."""
    from workbench.errors import WorkbenchError

    # SIGTERM becomes an exception, so that a run cleans up as after Ctrl-C; 143 is the shell's code for it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    spell_warnings()
    try:
        app()
    except (WorkbenchError, OSError) as error:
        from workbench.cli.messages import message, options_of

        options = options_of(typer.main.get_command(app), sys.argv[1:])
        say(f"error: {message(error, options)}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
