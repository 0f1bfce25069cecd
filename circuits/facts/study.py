"""Facts: the capital of a country. `python circuits/facts/study.py [--model tiny] [--out DIR] [--check]`"""

from pathlib import Path

import torch

from workbench.engine.values import from_store
from workbench.studies.bench import Bench, outputs
from workbench.studies.command import main
from workbench.studies.study import Prediction, Role, Study


def tests(bench: Bench) -> list[Prediction]:
    heads = bench.of_role("reader")

    def other_capital(logits: torch.Tensor) -> torch.Tensor:
        return (logits.argmax(-1) == bench.pairs.wrong[:, 0, 0]).float()

    return [
        bench.only_values(
            heads, "COUNTRY", "Readers bring the country by what they read at it, not by where they look."
        ),
        Prediction(
            "share that names the other capital",
            "These heads suffice at END: with the other country's outputs there, the other country's "
            "capital is the first choice of the whole vocabulary.",
            predicted=1.0,
            edit=lambda: bench.change(
                {f"{site}@END": from_store(bench.corrupt) for site in outputs(heads)}, read=other_capital
            ),
        ),
    ]


STUDY = Study(
    task="capitals",
    title="Capitals",
    account="From END heads of the middle layers look at the country and bring it there; it reaches the logits mostly through the MLPs behind them.",
    roles=[Role("reader", at_least={"COUNTRY": 0.5})],
    tests=tests,
    method="ig-activations",
    limits=["Where the fact is kept: MLPs were taken whole, and no test tries them."],
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
