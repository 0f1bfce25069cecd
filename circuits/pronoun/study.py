"""Pronouns: she or he for a name. `python circuits/pronoun/study.py [--model tiny] [--out DIR] [--check]`"""

from pathlib import Path

import numpy as np

from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.studies.bench import Bench, outputs
from workbench.studies.command import main
from workbench.studies.study import Prediction, Role, Study
from workbench.tasks.grammar import FEMALE


def same_gender(bench: Bench) -> PromptPairs:
    """The clean prompts, each beside one with another name of its gender."""
    clean, at = bench.pairs.clean, bench.pairs.clean.at("NAME").tolist()
    names = [int(clean.tokens[i, at[i]]) for i in range(len(clean))]
    female = [clean.strings[i][at[i]].strip() in FEMALE for i in range(len(clean))]
    rows = []
    for i in range(len(clean)):
        donor = next(
            names[j % len(clean)]
            for j in range(i + 1, i + len(clean))
            if _suits(names, female, i, j % len(clean))
        )
        row = clean.tokens[i, : int(clean.lengths[i])].tolist()
        rows.append([*row[: at[i]], donor, *row[at[i] + 1 :]])
    where = [{name: int(places[i]) for name, places in clean.positions.items()} for i in range(len(clean))]
    other = Prompts.of(rows, positions=where, bos=clean.bos)
    return PromptPairs(clean, other, bench.pairs.answers, bench.pairs.wrong, bench.pairs.provenance)


def _suits(names: list[int], female: list[bool], i: int, j: int) -> bool:
    return names[i] != names[j] and female[i] == female[j]


def tests(bench: Bench) -> list[Prediction]:
    heads = bench.of_role("reader")
    base = float(bench.base.mean())

    def kept() -> np.ndarray:
        return 1 + bench.swapped(outputs(heads), pairs=same_gender(bench)) / base

    return [
        bench.only_values(
            heads, "NAME", "Readers bring the gender by what they read at the name, not by where they look."
        ),
        Prediction(
            "share kept with another name of the same gender",
            "What counts is the gender and not the name: outputs from a prompt with another name of that gender keep the answer, on average.",
            predicted=1.0,
            edit=kept,
        ),
    ]


STUDY = Study(
    task="pronoun",
    title="Pronouns",
    account="From END several heads of the last layer look at the name and bring its gender; they and the last MLP write the pronoun.",
    roles=[Role("reader", at_least={"NAME": 0.3, "copying": 0.2})],
    tests=tests,
    method="eap-ig-activations",
    limits=["Names are female or male by construction in this grammar, which says nothing about people."],
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
