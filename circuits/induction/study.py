"""Induction: what followed the word the last time. `python circuits/induction/study.py [--model tiny] [--out DIR] [--check]`"""

from pathlib import Path

import torch

from workbench.studied import Bench, Prediction, Role, Study, layer_of
from workbench.studied_pages import main

FIRST = 1
"""Position of the list's first word, which is never the one to copy nor the one before it."""


def tests(bench: Bench) -> list[Prediction]:
    heads, rows = bench.of_role("copier"), torch.arange(len(bench.pairs))
    item, first = (bench.pairs.clean.tokens[rows, bench.pairs.clean.at(where)] for where in ("ITEM", FIRST))

    def first_over_item(logits: torch.Tensor) -> torch.Tensor:
        return logits[rows, first] - logits[rows, item]

    look_away = bench.attending(heads, to=FIRST, instead_of="ITEM")
    previous = bench.measured["previous"].mean("example").to_series()
    pointers = [str(name) for name, score in previous.items() if score >= 0.5 and layer_of(str(name)) < min(map(layer_of, heads))]
    moved = float(bench.change(look_away).mean())
    found = [
        Prediction(
            "first word over item",
            "Copiers write whatever word they look at: made to look at the list's first word, they put it as far above the "
            "item as the item is above it in the clean run.",
            predicted=-float(bench.change({}, read=first_over_item).mean()),
            edit=lambda: bench.change(look_away, read=first_over_item),
        ),
        bench.only_values(heads, "ITEM", "What differs between the runs is the word read at ITEM, not where copiers look."),
    ]
    if pointers:
        name = " ".join(pointers)
        found.append(
            Prediction(
                f"{name} exchanged",
                "Heads below the copiers that look at the token before (score at least 0.5) tell the copiers' keys: their outputs "
                "exchanged between the two places do what moving the attention by hand does.",
                predicted=moved,
                edit=lambda: bench.change(bench.exchanged("z", pointers, FIRST, "ITEM")),
            )
        )
    return found


STUDY = Study(
    task="induction",
    title="Induction",
    account="From END several heads of the last layer look at ITEM, the word behind the earlier copy of the last word, and write it. "
    "What tells their keys which word came before is not settled: heads that look one token back are tried.",
    roles=[Role("copier", at_least={"ITEM": 0.5, "copying": 0.3})],
    tests=tests,
    watched="copier",
    limits=[
        "How copiers find ITEM: both prompts share it, so it is in no edge of the circuit; the path table and the exchange of outputs "
        "look for it outside.",
    ],
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
