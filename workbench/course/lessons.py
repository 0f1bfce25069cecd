"""The lessons: what each is about, how long it takes and what it builds on."""

from dataclasses import dataclass


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
