"""The course: its lessons, and the checkers of their exercises. The lessons themselves are in `notebooks/`.

Begin with `exercises.py`: what an exercise is, and how a checker reads an answer. `lessons.py` lists the
lessons; each has a module of its name with its checkers (`first_look.py` is the simplest). `fixtures.py`
holds the models and prompts that checkers share, and `running.py` runs a notebook that was handed in. Lessons
do not import each other.
"""

import lazy_loader

# The names are imported on first use: a list of lessons needs no tensor library.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"exercises": ["Wrong", "check"], "lessons": ["LESSONS", "Lesson"]}
)
