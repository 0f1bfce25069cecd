"""Every checker takes the right answer and says of typical wrong ones what is wrong, without giving the right one away."""

import importlib
import re

import pytest

from workbench.course import LESSONS, Wrong, check
from workbench.course.exercises import exercises, find
from workbench.errors import UnknownName

CASES = {
    lesson.module: importlib.import_module(f"course_cases.{lesson.module}").CASES
    for lesson in LESSONS
    if importlib.util.find_spec(f"course_cases.{lesson.module}")
}
"""By module, by exercise: a function that makes the right answer, and wrong answers with a part of what is said of them."""
ALL = [(name, case) for cases in CASES.values() for name, case in cases.items()]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.module)
def test_a_lesson_has_one_to_five_exercises_and_each_has_cases(lesson):
    found = exercises(lesson)
    assert 1 <= len(found) <= 5
    assert [each.name for each in found] == [f"{lesson.number}.{i + 1}" for i in range(len(found))]
    assert [*CASES[lesson.module]] == [each.name for each in found]


@pytest.mark.parametrize(("name", "case"), ALL, ids=[name for name, _ in ALL])
def test_the_right_answer_is_taken(name, case, capsys):
    check(name, case[0]())
    assert capsys.readouterr().out.startswith(f"Exercise {name}: right. ")


@pytest.mark.parametrize(("name", "case"), ALL, ids=[name for name, _ in ALL])
def test_wrong_answers_are_told_what_is_wrong(name, case):
    assert len(case[1]) >= 2
    for wrong, said in case[1]:
        with pytest.raises(Wrong, match=re.escape(said)) as caught:
            check(name, wrong() if callable(wrong) and getattr(wrong, "__name__", "") == "<lambda>" else wrong)
        assert str(caught.value).startswith(f"Exercise {name}")


@pytest.mark.parametrize(("name", "case"), ALL, ids=[name for name, _ in ALL])
@pytest.mark.parametrize(
    "answer", [..., None, [], {}, "", "no such thing", float("nan"), -1, object(), print, True], ids=lambda it: type(it).__name__
)
def test_nonsense_is_refused(name, case, answer):
    with pytest.raises(Wrong):
        check(name, answer)


def test_an_unanswered_exercise_says_what_is_wanted():
    for lesson in LESSONS:
        for each in exercises(lesson):
            with pytest.raises(Wrong) as caught:
                check(each.name, [...])
            assert str(caught.value) == f"Exercise {each.name} is not answered yet. Wanted: {each.asked}"


def test_an_exercise_that_does_not_exist():
    with pytest.raises(UnknownName):
        find("99.1")
