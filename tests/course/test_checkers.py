"""Every checker takes the right answer and says of typical wrong ones what is wrong, without giving the right
one away.
"""

import importlib
import re

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from workbench.course import LESSONS, Wrong, check
from workbench.course.exercises import called, exercises, find, names, number, table
from workbench.course.patching import gate
from workbench.errors import UnknownName

CASES = {
    lesson.module: importlib.import_module(f"course_cases.{lesson.module}").CASES
    for lesson in LESSONS
    if importlib.util.find_spec(f"course_cases.{lesson.module}")
}
"""By module, by exercise: a function that makes the right answer, and wrong answers with a part of what is
said of them.
"""
ALL = [(name, case) for cases in CASES.values() for name, case in cases.items()]
ENDLESS: list = []
ENDLESS.append(ENDLESS)
NONSENSE = [
    ..., None, [], {}, "", "no such thing", float("nan"), -1, object(), print, True, 10**400, [[1, 2], [3]], np.array(1), torch.ones(5),
    torch.eye(3).to_sparse(), torch.ones(64, dtype=torch.bfloat16), lambda *given: [1, [2]], lambda *given: 10**400, "x" * 5000, ENDLESS,
]  # fmt: skip


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.module)
def test_a_lesson_has_one_to_five_exercises_and_each_has_cases(lesson):
    found = exercises(lesson)
    assert 1 <= len(found) <= 5
    assert [each.name for each in found] == [f"{lesson.number}.{i + 1}" for i in range(len(found))]
    assert [*CASES[lesson.module]] == [each.name for each in found]


# Seven circuits are measured by seven checks: seconds.
MARKED = [pytest.param(name, case, marks=pytest.mark.slow if name == "10.3" else ()) for name, case in ALL]


@pytest.mark.parametrize(("name", "case"), MARKED, ids=[name for name, _ in ALL])
def test_the_right_answer_is_taken(name, case, capsys):
    check(name, case[0]())
    assert capsys.readouterr().out.startswith(f"Exercise {name}: right. ")


@pytest.mark.parametrize(("name", "case"), MARKED, ids=[name for name, _ in ALL])
def test_wrong_answers_are_told_what_is_wrong(name, case):
    assert len(case[1]) >= 2
    for wrong, said in case[1]:
        with pytest.raises(Wrong, match=re.escape(said)) as caught:
            check(
                name, wrong() if callable(wrong) and getattr(wrong, "__name__", "") == "<lambda>" else wrong
            )
        assert str(caught.value).startswith(f"Exercise {name}")


@pytest.mark.parametrize("name", [name for name, _ in ALL])
def test_nonsense_is_refused(name):
    for i, answer in enumerate(NONSENSE):
        with pytest.raises(Wrong) as caught:
            check(name, answer)
        assert len(str(caught.value)) < 500, f"the message about nonsense {i} is too long"


def test_numbers_are_taken_from_every_kind_of_array():
    one, rows = torch.tensor(2.5, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    assert [
        number(each)
        for each in (2.5, np.float32(2.5), np.array([2.5]), one, one.bfloat16(), xr.DataArray(2.5))
    ] == [2.5] * 6
    for each in (
        rows,
        [*rows],
        [[*row] for row in rows],
        rows.to_sparse(),
        rows.tolist(),
        xr.DataArray(np.ones((3, 2))),
    ):
        assert table(each, (3, 2), "row, column").tolist() == [[1, 1]] * 3
    assert table(pd.Series([1, 2]), (2,), "row").tolist() == [1, 2]


def test_names_are_taken_from_every_kind_of_collection():
    known, given = ["a0.0", "a0.1", "a0.2"], ["a0.1", "a0.2"]
    kinds = (
        given,
        tuple(given),
        {*given},
        dict.fromkeys(given).keys(),
        np.array(given),
        pd.Index(given),
        xr.DataArray(given),
    )
    for each in (*kinds, "a0.1, a0.2", np.array("a0.1,a0.2")):
        assert names(each, known, "head") == {*given}
    for wrong in ({"a0.1": 1}, np.ones(2), ["a0.1", 3], b"a0.1"):
        with pytest.raises(Wrong, match=re.escape("names such as 'a0.0' are wanted, not ")):
            names(wrong, known, "head")


def test_a_function_that_changes_what_it_is_given_changes_no_comparison():
    def emptied(part, *more):
        part.zero_()
        return torch.zeros(len(part))

    with pytest.raises(Wrong, match="off by up to"):
        check("2.1", emptied)
    with pytest.raises(Wrong, match="off by up to"):
        check("1.1", lambda stream: torch.zeros(5, 378) * stream.zero_().sum())


def test_the_gates_of_a_notebook_are_not_those_of_the_checkers():
    model, _ = gate("or")
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    with pytest.raises(Wrong, match="noised together they take 0%"):
        check("5.5", ["a0.0"])


def test_a_function_that_leaves_is_told():
    with pytest.raises(Wrong, match=re.escape("your function raised SystemExit: 3")):
        called(lambda: exec("raise SystemExit(3)"))


def test_an_unanswered_exercise_says_what_is_wanted():
    for lesson in LESSONS:
        for each in exercises(lesson):
            with pytest.raises(Wrong) as caught:
                check(each.name, [...])
            assert str(caught.value) == f"Exercise {each.name} is not answered yet. Wanted: {each.asked}"


def test_an_exercise_that_does_not_exist():
    with pytest.raises(UnknownName):
        find("99.1")
