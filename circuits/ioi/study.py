"""Indirect objects: which name is not repeated.

`python circuits/ioi/study.py [--model tiny] [--out DIR] [--check]`
"""

from pathlib import Path

from workbench.studies.circuit_experiment import CircuitExperiment, outputs
from workbench.studies.command import main
from workbench.studies.prediction import Prediction, Role
from workbench.studies.study import Study
from workbench.tasks.registry import load_task


def tests(experiment: CircuitExperiment) -> list[Prediction]:
    heads = experiment.of_role("suppressor")
    swap = float(experiment.swapped(outputs(heads)).mean())
    three_names = load_task("ioi", experiment.model, n=len(experiment.pairs), split="heldout", variant="abc")
    return [
        Prediction(
            "attend to IO instead of S2",
            "A suppressor lowers the logit of whichever name it attends to. Made to attend to IO, it changes "
            "the metric as much as the corrupt run's output does, which was computed with that name at S2.",
            predicted=swap,
            edit=lambda: experiment.change(experiment.attending(heads, to="IO", instead_of="S2")),
        ),
        experiment.only_values(
            heads, "S2", "The two runs differ in the value read at S2, not in where the heads attend."
        ),
        Prediction(
            "S2 a third name",
            "With a third name at S2 neither answer is suppressed, so swapping the heads' outputs loses half "
            "of what it loses with the other name.",
            predicted=swap / 2,
            edit=lambda: experiment.swapped(outputs(heads), pairs=three_names),
        ),
    ]


STUDY = Study(
    task="ioi",
    title="Indirect objects",
    account="The head attends from END to S2 and suppresses that name, so the other name wins. No head of "
    "the circuit copies the indirect object.",
    roles=[
        Role("suppressor", at_least={"S2": 0.4}, at_most={"copying": -0.2}),
        Role("mover", at_least={"IO": 0.4, "copying": 0.2}),
    ],
    tests=tests,
    traced_role="suppressor",
    limits=[
        "Why the model prefers these two names to all other words, other names among them: both prompts "
        "share this, so no edge of the circuit carries it. Which of three names is left was not tested."
    ],
    reference="ioi",
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
