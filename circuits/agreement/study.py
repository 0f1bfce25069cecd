"""Agreement: the verb of a far subject.

`python circuits/agreement/study.py [--model tiny] [--out DIR] [--check]`
"""

from pathlib import Path

import numpy as np

from workbench.lenses.head_scores import attention_to
from workbench.stores.store import ActivationStore
from workbench.studies.circuit_experiment import CircuitExperiment, outputs
from workbench.studies.command import main
from workbench.studies.prediction import Prediction, Role
from workbench.studies.study import Study
from workbench.tasks.grammar import NOUNS


def singular_preference(experiment: CircuitExperiment, heads: list[str]) -> np.ndarray:
    """[example]: how much more of their attention at END heads give to the subject when it is singular."""

    def attention(store: ActivationStore) -> np.ndarray:
        table = experiment.by_head(attention_to(store, ["SUBJECT"]).isel(key_pos=0))
        return table.sel(component=heads).mean("component").values.astype(float)

    prompts = experiment.pairs.clean
    subjects = zip(prompts.strings, prompts.at("SUBJECT").tolist(), strict=True)
    # One side of every pair is singular and the other plural; NOUNS are the singular forms.
    clean_is_singular = [strings[position].strip() in NOUNS for strings, position in subjects]
    difference = attention(experiment.clean) - attention(experiment.corrupt)
    return np.where(clean_is_singular, 1, -1) * difference


def tests(experiment: CircuitExperiment) -> list[Prediction]:
    readers, switches = experiment.of_role("reader"), experiment.of_role("switch")
    return [
        experiment.only_values(
            readers,
            "SUBJECT",
            "Readers carry the number in the values that they read at the subject, not in where they attend.",
            subject="readers: ",
        ),
        Prediction(
            "switches: only their attention",
            "A switch carries the number in where it attends: replacing its attention from END alone does "
            "what replacing its whole output does.",
            predicted=float(experiment.swapped(outputs(switches)).mean()),
            edit=lambda: experiment.swapped([f"pattern[{head[1:]}]@END" for head in switches]),
        ),
        Prediction(
            "switches: attention to a singular more than to a plural",
            "A switch attends to a singular subject and away from a plural one. This is measured without an "
            "edit.",
            predicted=0.5,
            edit=lambda: singular_preference(experiment, switches),
            at_least=0.5,
        ),
    ]


STUDY = Study(
    task="agreement",
    title="Agreement",
    account="Some heads attend from END to the subject and read its number there. One more head signals the "
    "number by where it attends: to a singular subject, and away from a plural one.",
    roles=[
        Role("reader", at_least={"SUBJECT": 0.5, "copying": 0.3}),
        Role("switch", at_least={"SUBJECT": 0.2}, at_most={"copying": 0.2}),
    ],
    tests=tests,
    traced_role="switch",
    method="atp-star",
    limits=["What a switch attends to instead of a plural, and how a key encodes the number of its noun."],
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
