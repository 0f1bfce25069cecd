"""Greater-than: which years may follow. `python circuits/greater_than/study.py [--model tiny] [--out DIR] [--check]`"""

from pathlib import Path

import numpy as np

from workbench.prompts.pairs import PromptPairs
from workbench.studies.bench import Bench, outputs
from workbench.studies.command import main
from workbench.studies.study import Prediction, Role, Study


def other_years(bench: Bench) -> PromptPairs:
    """The clean prompts, each beside one with a year half of the years away."""
    n = len(bench.pairs)
    order = sorted(
        range(n), key=lambda i: bench.pairs.clean.tokens[i, bench.pairs.clean.at("YEAR")[i]].item()
    )
    later = [order[(order.index(i) + n // 2) % n] for i in range(n)]
    others = bench.pairs.clean.select(later)
    return PromptPairs(
        bench.pairs.clean, others, bench.pairs.answers, bench.pairs.wrong, bench.pairs.provenance
    )


def between_years(bench: Bench) -> np.ndarray:
    """[example]: what the circuit keeps where the corrupt prompt is another clean one, in shares of the mean that there is to keep."""
    found = bench.kept(other_years(bench))
    full, empty = float(found["m_full"].mean()), float(found["m_empty"].mean())
    return (found["m_circuit"].values - empty) / (full - empty)


def tests(bench: Bench) -> list[Prediction]:
    heads, others = bench.of_role("year reader"), other_years(bench)
    late = [head for head in heads if not head.startswith("a0.")]
    early = [head for head in heads if head.startswith("a0.")]
    found = [
        Prediction(
            "kept between other years",
            "The circuit was found against the year 01 alone. If it carries the year and not a mark of 01, it keeps as much "
            "where the other prompt has any year.",
            predicted=float(bench.kept(bench.pairs)["faithfulness"]),
            edit=lambda: between_years(bench),
        ),
        bench.only_values(
            heads,
            "YEAR",
            "Between two such years, readers bring the year by what they read at it, not by where they look.",
            who="between other years ",
            pairs=others,
        ),
    ]
    for name, group in (("late", late), ("first-layer", early)):
        if group:
            found.append(
                Prediction(
                    f"{name} readers at END only",
                    f"{' '.join(group)}: acting at END, where the answer is due; swapped there alone, outputs do what they do swapped everywhere.",
                    predicted=float(bench.swapped(outputs(group)).mean()),
                    edit=lambda group=group: bench.swapped([f"z[{head[1:]}]@END" for head in group]),
                )
            )
    if late:
        found.append(
            Prediction(
                "late readers against 01 only where they look",
                f"{' '.join(late)}: at a year as early as 01 they hardly look; that alone does what their whole outputs do.",
                predicted=float(bench.swapped(outputs(late)).mean()),
                edit=lambda: bench.swapped([f"pattern[{head[1:]}]@END" for head in late]),
            )
        )
    return found


STUDY = Study(
    task="greater_than",
    title="Greater-than",
    account="From END heads look at YEAR and bring it there; those behind the first layer hardly look at a year as early as 01, and say "
    "that by where they look. It reaches the logits mostly through the MLPs.",
    roles=[Role("year reader", at_least={"YEAR": 0.5})],
    tests=tests,
    watched="year reader",
    limits=[
        "How the MLPs make larger years of it: they were taken whole, and no test tries them.",
        "How a key says that its year is early, and from which year on heads look.",
    ],
    method="eap-ig-activations",
    reference="greater_than",
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
