"""`workbench course`: list the lessons, check a notebook. Exit code 1: an exercise is not right yet; 2: what was asked is wrong."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import Json

course = typer.Typer(help="Lessons and their exercises.", no_args_is_help=True)


@course.command("list")
def list_(as_json: Json = False) -> None:
    """The lessons with their exercises."""
    from workbench.course.exercises import exercises
    from workbench.course.lessons import LESSONS

    told = [
        {**asdict(lesson), "file": lesson.file, "exercises": [{"name": e.name, "title": e.title, "difficulty": e.difficulty} for e in exercises(lesson)]}
        for lesson in LESSONS
    ]  # fmt: skip
    if as_json:
        print(json.dumps(told))
        return
    for lesson in told:
        after = f", after {', '.join(map(str, lesson['needs']))}" if lesson["needs"] else ""
        print(
            f"{lesson['number']:2d}  {lesson['title']}  ({lesson['minutes']} min{after})  notebooks/{lesson['file']}.ipynb"
        )
        for each in lesson["exercises"]:
            print(f"      {each['name']}  {each['title']}  ({each['difficulty']})")


@course.command("check")
def check(
    notebook: Annotated[Path, typer.Argument(help="A notebook with answers; it is run, and stays as it is.")],
    as_json: Json = False,
    seconds: Annotated[int, typer.Option(min=1, help="Longest that one cell may take.")] = 600,
) -> None:
    """Run a notebook and say which exercises are right."""
    from workbench.course.running import run_notebook

    ran = run_notebook(notebook, seconds=seconds)
    if as_json:
        print(json.dumps(asdict(ran)))
    else:
        for result in ran.results:
            print(f"{result.exercise}  {result.state:8}{result.message}")
        for cell, error in ran.broken.items():
            print(f"cell {cell}  failed  {error}")
        print(
            f"{ran.right} of {len(ran.results)} exercises right"
            if ran.results
            else "No cell checks an exercise of the course."
        )
    if not ran.done:
        raise typer.Exit(1)
