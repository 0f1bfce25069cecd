"""Facts: the capital of a country.

`python circuits/facts/study.py [--model tiny] [--out DIR] [--check]`
"""

from pathlib import Path

import torch

from workbench.studies.circuit_experiment import CircuitExperiment, outputs
from workbench.studies.command import main
from workbench.studies.prediction import Prediction, Role
from workbench.studies.study import Study


def tests(experiment: CircuitExperiment) -> list[Prediction]:
    heads = experiment.of_role("reader")
    corrupt = experiment.heldout.value("corrupt")

    def names_other_capital(logits: torch.Tensor) -> torch.Tensor:
        return (logits.argmax(-1) == experiment.pairs.wrong[:, 0, 0]).float()

    return [
        experiment.only_values(
            heads,
            "COUNTRY",
            "Readers carry the country in the values that they read at it, not in where they attend.",
        ),
        Prediction(
            "share that names the other capital",
            "These heads suffice at END: given the outputs that they have for the other country, the model's "
            "first choice of the whole vocabulary is the other country's capital.",
            predicted=1.0,
            edit=lambda: experiment.read(
                names_other_capital, {f"{site}@END": corrupt for site in outputs(heads)}
            ),
        ),
    ]


STUDY = Study(
    task="capitals",
    title="Capitals",
    account="Heads of the middle layers attend from END to the country and move it there. It reaches the "
    "logits mostly through the MLPs of later layers.",
    roles=[Role("reader", at_least={"COUNTRY": 0.5})],
    tests=tests,
    method="ig-activations",
    limits=["Where the fact is stored: MLPs were taken whole, and no test is about them."],
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
