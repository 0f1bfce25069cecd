"""The course: its lessons, and the checkers of their exercises. The lessons themselves are in `notebooks/`."""

from workbench.course.exercises import Wrong, check
from workbench.course.lessons import LESSONS, Lesson

__all__ = ["LESSONS", "Lesson", "Wrong", "check"]
