"""`workbench course`: list the lessons, check a notebook.

Exit code 1: an exercise is not right yet. Exit code 2: the command line is wrong.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import Json
from workbench.cli.output import print_json, say

course = typer.Typer(help="Lessons and their exercises.", no_args_is_help=True)


@course.command("list")
def list_(as_json: Json = False) -> None:
    """The lessons with their exercises."""
    from workbench.course.lessons import LESSONS, titles

    listing = []
    for lesson in LESSONS:
        listing.append({**asdict(lesson), "file": lesson.file, "exercises": titles(lesson)})
    if as_json:
        print_json(listing)
        return
    for lesson in listing:
        about = f"{lesson['minutes']} min"
        if lesson["needs"]:
            about += f", after {', '.join(map(str, lesson['needs']))}"
        say(f"{lesson['number']:2d}  {lesson['title']}  ({about})  notebooks/{lesson['file']}.ipynb")
        for exercise in lesson["exercises"]:
            say(f"      {exercise['name']}  {exercise['title']}  ({exercise['difficulty']})")


@course.command("check")
def check(
    notebook: Annotated[Path, typer.Argument(help="A notebook with answers; it is run, and stays as it is.")],
    as_json: Json = False,
    seconds: Annotated[int, typer.Option(min=1, help="Longest that one cell may take.")] = 600,
) -> None:
    """Run a notebook and say which exercises are right."""
    from workbench.course.running import run_notebook

    run = run_notebook(notebook, seconds=seconds)
    if as_json:
        print_json(asdict(run))
    else:
        for result in run.results:
            say(f"{result.exercise}  {result.state:8}{result.message}")
        for cell, error in run.broken.items():
            say(f"cell {cell}  failed  {error}")
        if run.results:
            say(f"{run.right} of {len(run.results)} exercises right")
        else:
            say("No cell checks an exercise of the course.")
    # Scripts of teachers read the exit code.
    if not run.done:
        raise typer.Exit(1)
