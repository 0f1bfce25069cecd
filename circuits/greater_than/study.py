"""Greater-than: which years may follow.

`python circuits/greater_than/study.py [--model tiny] [--out DIR] [--check]`
"""

from pathlib import Path

import numpy as np

from workbench.prompts.pairs import PromptPairs
from workbench.studies.circuit_experiment import CircuitExperiment, outputs
from workbench.studies.command import main
from workbench.studies.prediction import Prediction, Role
from workbench.studies.study import Study


def other_years(pairs: PromptPairs) -> PromptPairs:
    """The clean prompts, each beside the one whose year is half of the set away in order of years."""
    n = len(pairs)
    years = pairs.clean.tokens[range(n), pairs.clean.at("YEAR")].tolist()
    order = sorted(range(n), key=years.__getitem__)
    distant = [order[(order.index(i) + n // 2) % n] for i in range(n)]
    return PromptPairs(pairs.clean, pairs.clean.select(distant), pairs.answers, pairs.wrong, pairs.provenance)


def kept_between_years(experiment: CircuitExperiment) -> np.ndarray:
    """[example]: the share that the circuit keeps when the corrupt prompt is another clean one."""
    result = experiment.kept(other_years(experiment.pairs))
    full, empty = float(result["m_full"].mean()), float(result["m_empty"].mean())
    return (result["m_circuit"].values - empty) / (full - empty)


def at_end_only(experiment: CircuitExperiment, name: str, heads: list[str]) -> Prediction:
    return Prediction(
        f"{name} readers at END only",
        f"{' '.join(heads)} act at END, where the answer is due: swapping their outputs there alone does "
        "what swapping them everywhere does.",
        predicted=float(experiment.swapped(outputs(heads)).mean()),
        edit=lambda: experiment.swapped([f"z[{head[1:]}]@END" for head in heads]),
    )


def tests(experiment: CircuitExperiment) -> list[Prediction]:
    heads = experiment.of_role("year reader")
    first_layer = [head for head in heads if head.startswith("a0.")]
    late = [head for head in heads if head not in first_layer]
    predictions = [
        Prediction(
            "kept between other years",
            "The circuit was found against the year 01 alone. If it carries the year and not a mark of 01, "
            "it keeps as much when the other prompt has any year.",
            predicted=float(experiment.kept(experiment.pairs)["faithfulness"]),
            edit=lambda: kept_between_years(experiment),
        ),
        experiment.only_values(
            heads,
            "YEAR",
            "Between two such years, readers carry the year in the values that they read at it, not in where "
            "they attend.",
            subject="between other years ",
            pairs=other_years(experiment.pairs),
        ),
    ]
    if late:
        predictions.append(at_end_only(experiment, "late", late))
    if first_layer:
        predictions.append(at_end_only(experiment, "first-layer", first_layer))
    if late:
        predictions.append(
            Prediction(
                "late readers against 01 only their attention",
                f"{' '.join(late)} hardly attend to a year as early as 01; replacing their attention alone "
                "does what replacing their whole outputs does.",
                predicted=float(experiment.swapped(outputs(late)).mean()),
                edit=lambda: experiment.swapped([f"pattern[{head[1:]}]@END" for head in late]),
            )
        )
    return predictions


STUDY = Study(
    task="greater_than",
    title="Greater-than",
    account="Heads attend from END to YEAR and move it there. Heads after the first layer hardly attend to a "
    "year as early as 01, so they signal an early year by where they attend. The year reaches the logits "
    "mostly through the MLPs.",
    roles=[Role("year reader", at_least={"YEAR": 0.5})],
    tests=tests,
    traced_role="year reader",
    limits=[
        "How the MLPs turn the year into a preference for larger years: they were taken whole, and no test "
        "is about them.",
        "How a key encodes that its year is early, and from which year on heads attend to it.",
    ],
    method="eap-ig-activations",
    reference="greater_than",
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
