"""Exercises and how an answer is checked: a checker says what is wrong with an answer, never what would be right.

A checker is a function of the answer alone. It works out what it needs from the models and prompts of the course, so that nothing
of the student's enters the comparison. It raises `Wrong` with what the answer lacks, or returns a remark on a right one.
"""

import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch

from workbench.course.lessons import LESSONS, Lesson
from workbench.errors import UnknownName, WorkbenchError

Difficulty = Literal["easy", "medium", "hard"]


class Wrong(WorkbenchError):
    """An answer that is not right (yet). A notebook shows its message without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson.

    Attributes:
        name: lesson and number, as "4.2".
        asked: what the answer is, in one sentence; shown while there is none.
        checker: answer → a remark; raises `Wrong`.
    """

    name: str
    title: str
    difficulty: Difficulty
    asked: str
    checker: Callable[[Any], str]


TWO_DIGITS = 6e-3
"""How far a number may be off that was rounded to two digits after the point."""
_found: dict[str, Exercise] = {}
told: list[tuple[str, bool, str]] = []
"""What `check` said in this process: exercise, whether it was right, message. `course check` reads it, not what a cell prints."""


def exercise(
    name: str, title: str, difficulty: Difficulty, asked: str
) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
    """Make a function the checker of an exercise."""

    def put(checker: Callable[[Any], str]) -> Callable[[Any], str]:
        _found[name] = Exercise(name, title, difficulty, asked, checker)
        return checker

    return put


def exercises(lesson: Lesson) -> list[Exercise]:
    """Those of a lesson, in order."""
    import_module(f"workbench.course.{lesson.module}")
    return [found for name, found in sorted(_found.items()) if name.split(".")[0] == str(lesson.number)]


def find(name: str) -> Exercise:
    """The exercise of a name such as "4.2"."""
    near = [lesson for lesson in LESSONS if str(lesson.number) == str(name).split(".")[0]]
    by_name = {each.name: each for lesson in near or LESSONS for each in exercises(lesson)}
    if name not in by_name:
        raise UnknownName("exercise", name, by_name)
    return by_name[name]


def check(name: str, answer: Any) -> None:
    """Say whether an answer to an exercise is right.

    Args:
        name: of the exercise, as "4.2".
        answer: a number, text, table or function, as the exercise asks; `...` stands for an answer still to be given.
    Raises:
        Wrong: it is not, and why; the right answer is not told.

    >>> check("1.2", "resid_post[0]")
    Traceback (most recent call last):
    ...
    workbench.course.exercises.Wrong: Exercise 1.2: 'resid_post[0]' is not a whole number.
    """
    asked = find(name)
    try:
        remark = _checked(asked, answer)
    except Wrong as wrong:
        told.append((name, False, str(wrong)))
        raise
    told.append((name, True, remark))
    print(f"Exercise {name}: right. {remark}")


def _checked(asked: Exercise, answer: Any) -> str:
    try:
        if not _open(answer):
            return asked.checker(answer)
    except Wrong as wrong:
        raise Wrong(f"Exercise {asked.name}: {wrong}") from None
    except RecursionError:
        raise Wrong(f"Exercise {asked.name}: this holds itself, or calls itself without end.") from None
    raise Wrong(f"Exercise {asked.name} is not answered yet. Wanted: {asked.asked}")


def _open(answer: Any) -> bool:
    """Whether there is no answer in it, or one with gaps."""
    if isinstance(answer, Mapping):
        return any(map(_open, answer.values()))
    if isinstance(answer, list | tuple | set):
        return any(map(_open, answer))
    return answer is ... or answer is None


# What answers may look like.


def shown(answer: Any) -> str:
    """An answer in a message: on one line, and cut where it is long."""
    text = " ".join(repr(answer).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def _plain(answer: Any) -> Any:
    """Tensors as arrays, in lists too."""
    if isinstance(answer, torch.Tensor):
        dense = answer.detach().cpu().to_dense()
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
    return [_plain(each) for each in answer] if isinstance(answer, list | tuple) else answer


def _array(answer: Any) -> np.ndarray:
    try:
        return np.asarray(_plain(answer))
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(
            f"this makes no array, as its rows are not of one length or not of one kind: {shown(answer)}."
        ) from None


def number(answer: Any) -> float:
    """A finite number, from Python, numpy, torch or xarray."""
    if hasattr(answer, "__array__"):
        values = _array(answer)
        if values.size != 1:
            raise Wrong(f"one number is wanted, and this has the shape {values.shape}.")
        answer = values.reshape(()).item()
    if isinstance(answer, bool) or not isinstance(answer, numbers.Real):
        raise Wrong(f"{shown(answer)} is not a number.")
    try:
        value = float(answer)
    except OverflowError:
        value = float("inf")
    if not np.isfinite(value):
        raise Wrong(f"{shown(answer)} is not finite: something was divided by zero or not measured.")
    return value


def whole_number(answer: Any) -> int:
    """A whole number."""
    try:
        value = number(answer)
    except Wrong:
        raise Wrong(f"{shown(answer)} is not a whole number.") from None
    if value != int(value):
        raise Wrong(f"{shown(answer)} is not a whole number.")
    return int(value)


def table(answer: Any, shape: Sequence[int], axes: str) -> np.ndarray:
    """An array of this shape, of finite numbers.

    Args:
        axes: the names of the axes, for the message: "example, layer".
    """
    values = _array(answer)
    if values.dtype.kind not in "fiub":
        raise Wrong(f"an array of numbers [{axes}] is wanted, not {type(answer).__name__}.")
    if values.shape != tuple(shape):
        raise Wrong(
            f"an array [{axes}] of shape {tuple(shape)} is wanted, and this has the shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise Wrong(f"{int((~np.isfinite(values)).sum())} of its cells are not numbers.")
    return values.astype(float)


def names(answer: Any, known: Sequence[str], what: str) -> set[str]:
    """Some of a list of known names: one text, with commas between them, or a collection of any kind.

    Args:
        what: one of them is called so in the message: "head".
    """
    listed = _array(answer).tolist() if hasattr(answer, "__array__") else answer
    given = listed.split(",") if isinstance(listed, str) else listed
    if (
        not isinstance(given, Collection)
        or isinstance(given, Mapping)
        or not all(isinstance(name, str) for name in given)
    ):
        raise Wrong(f"names such as {known[0]!r} are wanted, not {shown(answer)}.")
    found = {name.strip() for name in given}
    for name in sorted(found - set(known)):
        raise Wrong(f"{shown(name)} is no {what}. They are written like {known[0]!r}.")
    return found


def one_name(answer: Any, known: Sequence[str], what: str) -> str:
    """One of a list of known names, alone or in a collection."""
    given = names(answer, known, what)
    if len(given) != 1:
        raise Wrong(f"one {what} is wanted, and these are {len(given)}.")
    return given.pop()


def all_names(given: set[str], why_not: Mapping[str, str]) -> None:
    """Raise `Wrong` for a name with a reason against it, or where one without is missing.

    Args:
        why_not: of every known name; empty where there is none.
    """
    for name in sorted(given):
        if why_not[name]:
            raise Wrong(f"{name} {why_not[name]}")
    if len(given) < list(why_not.values()).count(""):
        raise Wrong(f"{len(given)} of them so far, all right; at least one is missing.")


def fields(answer: Any, keys: Sequence[str]) -> dict[str, Any]:
    """What a dict has under these keys; others do not matter."""
    wanted = f"a dict with the keys {', '.join(map(repr, keys))} is wanted"
    if not isinstance(answer, Mapping):
        raise Wrong(f"{wanted}, not {shown(answer)}.")
    if missing := [repr(key) for key in keys if key not in answer]:
        raise Wrong(f"{wanted}; without a value: {', '.join(missing)}.")
    return {key: answer[key] for key in keys}


def called(function: Any, *args: Any, copied: bool = True) -> Any:
    """What a student's function returns.

    Args:
        copied: it is given copies of arrays, so that what it changes in them changes no comparison.
    """
    if not callable(function):
        raise Wrong(f"a function is wanted, not {type(function).__name__}.")
    given = [deepcopy(arg) for arg in args] if copied else args
    try:
        made = function(*given)
    except (Exception, SystemExit) as error:
        raise Wrong(f"your function raised {type(error).__name__}: {error}") from error
    if _open(made):
        raise Wrong("your function returns nothing yet.")
    return made
