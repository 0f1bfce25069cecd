"""The course: its lessons, and the checkers of their exercises. The lessons themselves are in `notebooks/`.

Begin with `exercises.py`: what an exercise is, and how a checker reads an answer. `lessons.py` lists the
lessons; each has a module of its name with its checkers (`first_look.py` is the simplest). `fixtures.py`
holds the models and prompts that checkers share, and `running.py` runs a notebook that was handed in. Lessons
do not import each other.
"""

from workbench.course.exercises import Wrong, check
from workbench.course.lessons import LESSONS, Lesson

__all__ = ["LESSONS", "Lesson", "Wrong", "check"]
