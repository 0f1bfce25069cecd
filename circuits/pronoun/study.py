"""Pronouns: she or he for a name.

`python circuits/pronoun/study.py [--model tiny] [--out DIR] [--check]`
"""

from pathlib import Path

import numpy as np

from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.studies.circuit_experiment import CircuitExperiment, outputs
from workbench.studies.command import main
from workbench.studies.prediction import Prediction, Role
from workbench.studies.study import Study
from workbench.tasks.grammar import FEMALE


def same_gender(pairs: PromptPairs) -> PromptPairs:
    """The clean prompts, each beside a copy with another name of the same gender."""
    clean, n = pairs.clean, len(pairs)
    positions = clean.at("NAME").tolist()
    names = [int(clean.tokens[i, positions[i]]) for i in range(n)]
    female = [clean.strings[i][positions[i]].strip() in FEMALE for i in range(n)]
    rows = []
    for i in range(n):
        donor = _donor(i, names, female)
        row = clean.tokens[i, : int(clean.lengths[i])].tolist()
        rows.append([*row[: positions[i]], donor, *row[positions[i] + 1 :]])
    named = [{name: int(index[i]) for name, index in clean.positions.items()} for i in range(n)]
    others = Prompts.of(rows, positions=named, bos=clean.bos)
    return PromptPairs(clean, others, pairs.answers, pairs.wrong, pairs.provenance)


def _donor(i: int, names: list[int], female: list[bool]) -> int:
    """The first other name of the same gender in the prompts after prompt i, starting again at the first."""
    order = [*range(i + 1, len(names)), *range(i)]
    return next(names[j] for j in order if names[j] != names[i] and female[j] == female[i])


def tests(experiment: CircuitExperiment) -> list[Prediction]:
    heads = experiment.of_role("reader")
    base = float(experiment.base.mean())

    def kept_with_same_gender() -> np.ndarray:
        return 1 + experiment.swapped(outputs(heads), pairs=same_gender(experiment.pairs)) / base

    return [
        experiment.only_values(
            heads,
            "NAME",
            "Readers carry the gender in the values that they read at the name, not in where they attend.",
        ),
        Prediction(
            "share kept with another name of the same gender",
            "The gender counts and not the name: outputs computed with another name of the same gender keep "
            "the answer, on average.",
            predicted=1.0,
            edit=kept_with_same_gender,
        ),
    ]


STUDY = Study(
    task="pronoun",
    title="Pronouns",
    account="Several heads of the last layer attend from END to the name and read its gender; they and the "
    "last MLP write the pronoun.",
    roles=[Role("reader", at_least={"NAME": 0.3, "copying": 0.2})],
    tests=tests,
    method="eap-ig-activations",
    limits=["Names are female or male by construction in this grammar, which says nothing about people."],
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
