"""Indirect objects: which name is not repeated. `python circuits/ioi/study.py [--model tiny] [--out DIR] [--check]`"""

from pathlib import Path

from workbench.studies.bench import Bench
from workbench.studies.command import main
from workbench.studies.study import Prediction, Role, Study
from workbench.tasks.registry import load_task


def tests(bench: Bench) -> list[Prediction]:
    heads = bench.of_role("suppressor")
    outputs = [f"z[{head[1:]}]" for head in heads]
    swap = float(bench.swapped(outputs).mean())
    third = load_task("ioi", bench.model, n=len(bench.pairs), split="heldout", variant="abc")
    return [
        Prediction(
            "look at IO instead of S2",
            "A suppressor writes against the name it looks at, be it at IO: to make it look there does what the "
            "corrupt run's output, with that name at S2, does.",
            predicted=swap,
            edit=lambda: bench.change(bench.attending(heads, to="IO", instead_of="S2")),
        ),
        Prediction(
            "only the value at S2",
            "What differs between the runs is the value read at S2, not where the heads look.",
            predicted=swap,
            edit=lambda: bench.swapped([f"v[{head[1:]}]@S2" for head in heads]),
        ),
        Prediction(
            "S2 a third name",
            "With a third name at S2 neither answer is suppressed, so the heads' swap loses half of what the other name loses.",
            predicted=swap / 2,
            edit=lambda: bench.swapped(outputs, pairs=third),
        ),
    ]


STUDY = Study(
    task="ioi",
    title="Indirect objects",
    account="From END a head looks at S2, the name that gives, and writes against it; the name that is left wins. "
    "No head of the circuit copies the indirect object.",
    roles=[
        Role("suppressor", at_least={"S2": 0.4}, at_most={"copying": -0.2}),
        Role("mover", at_least={"IO": 0.4, "copying": 0.2}),
    ],
    tests=tests,
    watched="suppressor",
    limits=[
        "Why the two names are preferred to all other words, other names among them: both prompts share it, so it is in no edge of "
        "the circuit. Of three names, which one is left was not tried."
    ],
    reference="ioi",
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
