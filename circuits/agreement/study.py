"""Agreement: the verb of a far subject. `python circuits/agreement/study.py [--model tiny] [--out DIR] [--check]`"""

from pathlib import Path

from workbench.studied import Bench, Prediction, Role, Study, outputs
from workbench.studied_pages import main


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
    ]


STUDY = Study(
    task="agreement",
    title="Agreement",
    account="From END some heads look at the subject and read its number there; another says it by where it "
    "looks, which the number changes.",
    roles=[
        Role("reader", at_least={"SUBJECT": 0.5, "copying": 0.3}),
        Role("switch", at_least={"SUBJECT": 0.2}, at_most={"copying": 0.2}),
    ],
    tests=tests,
    watched="switch",
    method="atp-star",
    limits=["Where a switch looks for each number: only that its attention carries it was tried."],
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
