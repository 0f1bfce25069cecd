"""Agreement: the verb of a far subject. `python circuits/agreement/study.py [--model tiny] [--out DIR] [--check]`"""

from pathlib import Path

import numpy as np

from workbench.lenses.head_scores import attention_to
from workbench.studies.bench import Bench, outputs
from workbench.studies.command import main
from workbench.studies.study import Prediction, Role, Study
from workbench.tasks.grammar import NOUNS


def to_singular(bench: Bench, heads: list[str]) -> np.ndarray:
    """[example]: how much more of their attention at END heads give to the subject of the prompt where it is a singular."""
    words, places = bench.pairs.clean.strings, bench.pairs.clean.at("SUBJECT").tolist()
    singular = [row[place].strip() in NOUNS for row, place in zip(words, places, strict=True)]
    clean, corrupt = (
        bench.by_head(attention_to(store, ["SUBJECT"]).isel(key_pos=0))
        .sel(component=heads)
        .mean("component")
        .values
        for store in (bench.clean, bench.corrupt)
    )
    return np.where(singular, 1, -1) * (clean - corrupt).astype(float)


def tests(bench: Bench) -> list[Prediction]:
    readers, switches = bench.of_role("reader"), bench.of_role("switch")
    return [
        bench.only_values(
            readers,
            "SUBJECT",
            "Readers bring the number by what they read at the subject, not by where they look.",
            who="readers: ",
        ),
        Prediction(
            "switches: only where they look",
            "A switch brings the number by where it looks: its attention from END alone does what its whole output does.",
            predicted=float(bench.swapped(outputs(switches)).mean()),
            edit=lambda: bench.swapped([f"pattern[{head[1:]}]@END" for head in switches]),
        ),
        Prediction(
            "switches: attention to a singular more than to a plural",
            "It looks at a singular subject and away from a plural one. This is measured without an edit.",
            predicted=0.5,
            edit=lambda: to_singular(bench, switches),
            at_least=0.5,
        ),
    ]


STUDY = Study(
    task="agreement",
    title="Agreement",
    account="From END some heads look at the subject and read its number there; another says it by where it "
    "looks: at a singular, and not at a plural.",
    roles=[
        Role("reader", at_least={"SUBJECT": 0.5, "copying": 0.3}),
        Role("switch", at_least={"SUBJECT": 0.2}, at_most={"copying": 0.2}),
    ],
    tests=tests,
    watched="switch",
    method="atp-star",
    limits=["What a switch looks at instead of a plural, and how a key says which number its noun has."],
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
