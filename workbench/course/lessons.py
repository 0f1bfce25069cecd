"""The lessons: what each is about, how long it takes and what it builds on."""

import ast
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Lesson:
    """One lesson.

    Attributes:
        module: its checkers are in `workbench.course.MODULE`, its notebook is `notebooks/NN_MODULE.py`.
        minutes: that it takes.
        needs: numbers of the lessons it builds on.
    """

    number: int
    module: str
    title: str
    minutes: int
    needs: tuple[int, ...]

    @property
    def file(self) -> str:
        """Name of its notebook, without an ending."""
        return f"{self.number:02d}_{self.module}"


LESSONS = (
    Lesson(0, "first_look", "First look", 30, ()),
    Lesson(1, "residual_stream", "Residual stream and logit lens", 40, (0,)),
    Lesson(2, "attribution", "Direct logit attribution", 40, (1,)),
    Lesson(3, "ablations", "Ablations: zero, mean, resample, and why they disagree", 45, (0,)),
    Lesson(4, "heads", "Heads: previous-token, duplicate, induction, and a shortcut", 50, (0, 3)),
    Lesson(5, "patching", "Activation patching, denoising and noising", 45, (3,)),
    Lesson(6, "paths", "Path patching, and how heads compose", 50, (5,)),
    Lesson(7, "discovery", "Automatic discovery: EAP, EAP-IG, ACDC, masks", 60, (6,)),
    Lesson(8, "reality", "Is the circuit real?", 60, (5,)),
    Lesson(9, "counterfactual", "The counterfactual is the question", 40, (8,)),
    Lesson(10, "lies", "How to lie with a circuit", 60, (9,)),
    Lesson(11, "probes", "Sparse probes: used or merely decodable", 50, (1,)),
    Lesson(12, "training", "How a circuit forms", 40, (4, 5)),
    Lesson(13, "capstone", "A study of your own", 60, (7, 10)),
)


def titles(lesson: Lesson) -> list[dict[str, str]]:
    """The name, title and difficulty of each exercise of a lesson, in order.

    Read from the source of its checkers: to import them takes seconds, and a listing needs no model.

    >>> titles(LESSONS[1])[0]["name"]
    '1.1'
    """
    source = files("workbench.course").joinpath(f"{lesson.module}.py").read_text(encoding="utf-8")
    listing = []
    for function in ast.parse(source).body:
        for call in getattr(function, "decorator_list", []):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "exercise":
                name, title, difficulty = map(ast.literal_eval, call.args[:3])
                listing.append({"name": name, "title": title, "difficulty": difficulty})
    return sorted(listing, key=lambda row: row["name"])
