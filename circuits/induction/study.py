"""Induction: what followed the word the last time. `python circuits/induction/study.py [--model tiny] [--out DIR] [--check]`"""

from pathlib import Path
from typing import Any

import torch

from workbench.engine.values import constant
from workbench.sites import Shape
from workbench.studies.bench import Bench, layer_of
from workbench.studies.command import main
from workbench.studies.study import Prediction, Role, Study

FIRST = 1
"""Position of the list's first word, which is never the one to copy nor the one before it."""


def read_one_back(bench: Bench, *, below: int, rest: bool) -> dict[Any, Any]:
    """Edits: what every head below a layer reads from the token before changes places between FIRST and ITEM; or the rest of it."""
    shape, rows, edits = Shape.of(bench.model), torch.arange(len(bench.pairs)), {}
    places = {where: bench.pairs.clean.at(where) for where in (FIRST, "ITEM")}
    for layer in range(below):
        pattern, v, z = (bench.clean[kind, layer].padded() for kind in ("pattern", "v", "z"))
        for head in range(shape.n_heads):
            back = {
                w: pattern[rows, head, at, at - 1, None] * v[rows, at - 1, head // shape.group]
                for w, at in places.items()
            }
            others = {where: z[rows, at, head] - back[where] for where, at in places.items()}
            for here, there in ((FIRST, "ITEM"), ("ITEM", FIRST)):
                made = back[here] + others[there] if rest else back[there] + others[here]
                edits[f"z[{layer}.{head}]@{here}"] = constant(made)
    return edits


def tests(bench: Bench) -> list[Prediction]:
    heads, rows = bench.of_role("copier"), torch.arange(len(bench.pairs))
    item, first = (bench.pairs.clean.tokens[rows, bench.pairs.clean.at(where)] for where in ("ITEM", FIRST))

    def first_over_item(logits: torch.Tensor) -> torch.Tensor:
        return logits[rows, first] - logits[rows, item]

    look_away = bench.attending(heads, to=FIRST, instead_of="ITEM")
    moved, base, below = (
        float(bench.change(look_away).mean()),
        float(bench.base.mean()),
        min(map(layer_of, heads)),
    )
    previous = bench.measured["previous"].mean("example").to_series()
    pointers = [str(name) for name, score in previous.items() if score >= 0.5 and layer_of(str(name)) < below]
    found = [
        Prediction(
            "first word over item",
            "Copiers write whatever word they look at: made to look at the list's first word, they put it as far above the "
            "item as the item is above it in the clean run.",
            predicted=-float(bench.change({}, read=first_over_item).mean()),
            edit=lambda: bench.change(look_away, read=first_over_item),
        ),
        bench.only_values(
            heads, "ITEM", "What differs between the runs is the word read at ITEM, not where copiers look."
        ),
    ]
    if pointers:
        name = " ".join(pointers)
        found.append(
            Prediction(
                f"{name} exchanged",
                "Heads below the copiers whose job it is to look at the token before (score at least 0.5) tell the copiers' keys: their "
                "outputs exchanged between the two places do what moving the attention by hand does.",
                predicted=moved,
                edit=lambda: bench.change(bench.exchanged("z", pointers, FIRST, "ITEM")),
            )
        )
    found += [
        Prediction(
            "read one back by all heads below, exchanged",
            "All heads below tell the keys together: what each reads from the token before, and nothing else of it, exchanged "
            "between the two places does what moving the attention by hand does.",
            predicted=moved,
            edit=lambda: bench.change(read_one_back(bench, below=below, rest=False)),
        ),
        Prediction(
            "share kept with the rest of them exchanged",
            "A control: what the same heads read from all other tokens, exchanged instead, leaves the answer.",
            predicted=1.0,
            edit=lambda: 1 + bench.change(read_one_back(bench, below=below, rest=True)) / base,
        ),
    ]
    return found


STUDY = Study(
    task="induction",
    title="Induction",
    account="From END several heads of the last layer look at ITEM, the word behind the earlier copy of the last word, and write it. "
    "What tells their keys which word came before is what the heads below read one token back, all together: no single one does it.",
    roles=[Role("copier", at_least={"ITEM": 0.5, "copying": 0.3})],
    tests=tests,
    watched="copier",
    limits=[
        "How copiers find ITEM: both prompts share it, so it is in no edge of the circuit; the path table and the exchanges "
        "look for it outside. How the many weak readings of the token before add up was not tried.",
    ],
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
