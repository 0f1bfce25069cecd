"""Exercises and their checkers: a checker says what is wrong with an answer, never what would be right.

Read `exercise`, which makes a function the checker of an exercise, and `check`, which a notebook calls. A
checker is a function of the answer alone: it computes what it needs from the models and prompts of the
course, so that nothing a student has in the notebook enters the comparison. It raises `Wrong` with what the
answer lacks, or returns a remark on a right one. The second half of this module reads answers of every shape;
it knows no lesson.
"""

import numbers
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch

from workbench.course.lessons import LESSONS, Lesson
from workbench.errors import UnknownName, WorkbenchError

Difficulty = Literal["easy", "medium", "hard"]
Checker = Callable[[Any], str]


class Wrong(WorkbenchError):
    """An answer that is not right (yet). A notebook shows its message without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]  # IPython calls this in place of printing the traceback


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson.

    Attributes:
        name: lesson and number, as "4.2".
        title: a few words.
        difficulty: "easy", "medium" or "hard".
        asked: what the answer is, in one sentence; shown while there is no answer.
        checker: from an answer to a remark; raises `Wrong`.
    """

    name: str
    title: str
    difficulty: Difficulty
    asked: str
    checker: Checker


TWO_DIGITS = 6e-3
"""How far off a number may be that was rounded to two digits after the point."""

_registered: dict[str, Exercise] = {}
verdicts: list[tuple[str, bool, str]] = []
"""What `check` said in this process: exercise, whether it was right, message.

`workbench course check` reads this list from the notebook's kernel, since anything can be printed by a cell.
"""


def exercise(name: str, title: str, difficulty: Difficulty, asked: str) -> Callable[[Checker], Checker]:
    """A decorator that makes a function the checker of an exercise; the arguments are those of `Exercise`."""

    def register(checker: Checker) -> Checker:
        _registered[name] = Exercise(name, title, difficulty, asked, checker)
        return checker

    return register


def exercises(lesson: Lesson) -> list[Exercise]:
    """The exercises of a lesson, in order."""
    import_module(f"workbench.course.{lesson.module}")  # imported so that its checkers register themselves
    return [one for name, one in sorted(_registered.items()) if name.split(".")[0] == str(lesson.number)]


def find(name: str) -> Exercise:
    """The exercise of a name such as "4.2".

    Raises:
        UnknownName: there is no such exercise.
    """
    of_that_number = [lesson for lesson in LESSONS if str(lesson.number) == str(name).split(".")[0]]
    by_name = {one.name: one for lesson in of_that_number or LESSONS for one in exercises(lesson)}
    if name not in by_name:
        raise UnknownName("exercise", name, by_name)
    return by_name[name]


def check(name: str, answer: Any) -> None:
    """Print whether an answer to an exercise is right.

    Args:
        name: of the exercise, as "4.2".
        answer: a number, text, table or function, as the exercise asks; `...` stands for an answer still to
            be given.

    Raises:
        Wrong: the answer is wrong, and why; the right answer is not told.
        UnknownName: there is no such exercise.

    >>> check("1.2", "resid_post[0]")
    Traceback (most recent call last):
    ...
    workbench.course.exercises.Wrong: Exercise 1.2: 'resid_post[0]' is not a whole number.
    """
    asked = find(name)
    try:
        remark = _checked(asked, answer)
    except Wrong as wrong:
        verdicts.append((name, False, str(wrong)))
        raise
    verdicts.append((name, True, remark))
    print(f"Exercise {name}: right. {remark}")


def _checked(asked: Exercise, answer: Any) -> str:
    try:
        if not _is_open(answer):
            return asked.checker(answer)
    except Wrong as wrong:
        raise Wrong(f"Exercise {asked.name}: {wrong}") from None
    except RecursionError:
        raise Wrong(
            f"Exercise {asked.name}: the answer contains itself, or calls itself without end."
        ) from None
    raise Wrong(f"Exercise {asked.name} is not answered yet. Wanted: {asked.asked}")


def _is_open(answer: Any) -> bool:
    """Whether an answer is still `...` or None, or has such a gap in it."""
    if isinstance(answer, Mapping):
        return any(map(_is_open, answer.values()))
    if isinstance(answer, list | tuple | set):
        return any(map(_is_open, answer))
    return answer is ... or answer is None


def shown(answer: Any) -> str:
    """An answer in a message: on one line, and cut where it is long."""
    text = " ".join(repr(answer).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def listed(noun: str, items: Sequence[Any]) -> str:
    """Items as the subject of a sentence, with its verb.

    >>> listed("layer", [2]), listed("layer", [1, 2, 3])
    ('layer 2 is', 'layers 1, 2 and 3 are')
    """
    words = [str(item) for item in items]
    if len(words) == 1:
        return f"{noun} {words[0]} is"
    return f"{noun}s {', '.join(words[:-1])} and {words[-1]} are"


def explain(
    answer: Any, mistakes: Iterable[tuple[Any, str]], *, atol: float = 0.0, rtol: float = 0.0
) -> None:
    """Raise `Wrong` with the message of the first typical mistake that gives this answer.

    Args:
        answer: a number or an array.
        mistakes: (what the mistake gives, of the shape of the answer; what to say of it).
        atol: how far the answer may be from what the mistake gives.
        rtol: the same as a share of the number: for numbers close to 0, which an absolute distance cannot
            tell apart.
    """
    for value, message in mistakes:
        if np.allclose(answer, value, atol=atol, rtol=rtol):
            raise Wrong(message)


def _plain(answer: Any) -> Any:
    """Tensors as arrays, in lists too."""
    if isinstance(answer, torch.Tensor):
        dense = answer.detach().cpu().to_dense()
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()  # numpy has no bfloat16
    return [_plain(item) for item in answer] if isinstance(answer, list | tuple) else answer


def _array(answer: Any) -> np.ndarray:
    try:
        return np.asarray(_plain(answer))
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"this is not an array: its rows differ in length or in kind. {shown(answer)}") from None


def number(answer: Any) -> float:
    """A finite number, from Python, numpy, torch or xarray.

    Raises:
        Wrong: it is not one finite number.
    """
    if hasattr(answer, "__array__"):
        values = _array(answer)
        if values.size != 1:
            raise Wrong(f"one number is wanted, and this has the shape {values.shape}.")
        answer = values.reshape(()).item()
    if isinstance(answer, bool) or not isinstance(answer, numbers.Real):
        raise Wrong(f"{shown(answer)} is not a number.")
    try:
        value = float(answer)
    except OverflowError:  # a Python integer beyond what a float holds
        value = float("inf")
    if not np.isfinite(value):
        raise Wrong(f"{shown(answer)} is not finite: something was divided by zero or not measured.")
    return value


def whole_number(answer: Any) -> int:
    """A whole number.

    Raises:
        Wrong: it is not.
    """
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
        answer: an array, a tensor, a list of lists.
        shape: the shape that is wanted.
        axes: the names of the axes, for the message: "example, layer".

    Raises:
        Wrong: another shape, or cells that are not finite numbers.
    """
    values = _array(answer)
    if values.dtype.kind not in "fiub":
        raise Wrong(f"an array of numbers [{axes}] is wanted, not {type(answer).__name__}.")
    if values.shape != tuple(shape):
        raise Wrong(
            f"an array [{axes}] of shape {tuple(shape)} is wanted, and this has the shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise Wrong(f"{int((~np.isfinite(values)).sum())} of its cells are not finite numbers.")
    return values.astype(float)


def names(answer: Any, known: Sequence[str], what: str) -> set[str]:
    """Some of a list of known names: one text with commas, or a collection of any kind.

    Args:
        answer: the names.
        known: the names that exist.
        what: what one of them is called in the message: "head".

    Raises:
        Wrong: it is not a collection of names, or one of them does not exist.
    """
    plain = _array(answer).tolist() if hasattr(answer, "__array__") else answer
    chosen = plain.split(",") if isinstance(plain, str) else plain
    is_list = isinstance(chosen, Collection) and not isinstance(chosen, Mapping)
    if not is_list or not all(isinstance(name, str) for name in chosen):
        raise Wrong(f"names such as {known[0]!r} are wanted, not {shown(answer)}.")
    stripped = {name.strip() for name in chosen}
    for name in sorted(stripped - set(known)):
        raise Wrong(f"{shown(name)} is no {what}. They are written like {known[0]!r}.")
    return stripped


def one_name(answer: Any, known: Sequence[str], what: str) -> str:
    """One of a list of known names, alone or in a collection; arguments and errors are those of `names`."""
    chosen = names(answer, known, what)
    if len(chosen) != 1:
        raise Wrong(f"one {what} is wanted, and these are {len(chosen)}.")
    return chosen.pop()


def all_names(chosen: set[str], why_not: Mapping[str, str]) -> None:
    """Raise `Wrong` for a chosen name with a reason against it, or where a name without one is missing.

    Args:
        chosen: the names of the answer.
        why_not: for every known name what speaks against it; empty where nothing does.
    """
    for name in sorted(chosen):
        if why_not[name]:
            raise Wrong(f"{name} {why_not[name]}")
    if len(chosen) < list(why_not.values()).count(""):
        raise Wrong(f"{len(chosen)} of them so far, all right; at least one is missing.")


def fields(answer: Any, keys: Sequence[str]) -> dict[str, Any]:
    """What a dict has under these keys; other keys do not matter.

    Raises:
        Wrong: it is not a dict, or a key is missing.
    """
    wanted = f"a dict with the keys {', '.join(map(repr, keys))} is wanted"
    if not isinstance(answer, Mapping):
        raise Wrong(f"{wanted}, not {shown(answer)}.")
    missing = [repr(key) for key in keys if key not in answer]
    if missing:
        raise Wrong(f"{wanted}; without a value: {', '.join(missing)}.")
    return {key: answer[key] for key in keys}


def called(function: Any, *arguments: Any, copied: bool = True) -> Any:
    """What a student's function returns.

    Args:
        function: the answer.
        arguments: what it is called with.
        copied: it gets copies, so that what it changes in them changes no comparison.

    Raises:
        Wrong: it is not a function, it raises, or it returns nothing.
    """
    if not callable(function):
        raise Wrong(f"a function is wanted, not {type(function).__name__}.")
    passed = [deepcopy(argument) for argument in arguments] if copied else arguments
    try:
        returned = function(*passed)
    except (Exception, SystemExit) as error:  # whatever a student's code raises is an answer to be explained
        raise Wrong(f"your function raised {type(error).__name__}: {error}") from error
    if _is_open(returned):
        raise Wrong("your function returns nothing yet.")
    return returned
