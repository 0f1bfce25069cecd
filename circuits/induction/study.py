"""Induction: what followed the word the last time.

`python circuits/induction/study.py [--model tiny] [--out DIR] [--check]`
"""

from pathlib import Path

import torch
from torch import Tensor

from workbench.engine.values import constant
from workbench.sites import Shape
from workbench.studies.circuit_experiment import CircuitExperiment, Edits, layer_of
from workbench.studies.command import main
from workbench.studies.prediction import Prediction, Role
from workbench.studies.study import Study

FIRST = 1
"""Position of the list's first word, which is never the one to copy nor the one before it."""


def previous_token_exchanged(experiment: CircuitExperiment, *, below: int, rest: bool) -> Edits:
    """Edits that exchange between FIRST and ITEM what every head below a layer reads from the token before.

    Args:
        below: the first layer that is left alone.
        rest: exchange the rest of each head's output instead, which it reads from all other tokens.
    """
    n_heads = Shape.of(experiment.model).n_heads
    edits: Edits = {}
    for layer in range(below):
        for head in range(n_heads):
            first_previous, first_rest = previous_and_rest(experiment, layer, head, FIRST)
            item_previous, item_rest = previous_and_rest(experiment, layer, head, "ITEM")
            if rest:
                at_first, at_item = first_previous + item_rest, item_previous + first_rest
            else:
                at_first, at_item = item_previous + first_rest, first_previous + item_rest
            edits[f"z[{layer}.{head}]@{FIRST}"] = constant(at_first)
            edits[f"z[{layer}.{head}]@ITEM"] = constant(at_item)
    return edits


def previous_and_rest(
    experiment: CircuitExperiment, layer: int, head: int, position: int | str
) -> tuple[Tensor, Tensor]:
    """[example, d_head] twice: what a head reads from the token before, and the rest of its output."""
    rows, query = torch.arange(len(experiment.pairs)), experiment.pairs.clean.at(position)
    pattern, v, z = (experiment.clean[kind, layer].padded() for kind in ("pattern", "v", "z"))
    kv_head = head // Shape.of(experiment.model).group
    # A head's output is the sum over keys of attention times value: one key's term is removed exactly.
    previous = pattern[rows, head, query, query - 1, None] * v[rows, query - 1, kv_head]
    return previous, z[rows, query, head] - previous


def tests(experiment: CircuitExperiment) -> list[Prediction]:
    heads = experiment.of_role("copier")
    prompts, rows = experiment.pairs.clean, torch.arange(len(experiment.pairs))
    item, first = (prompts.tokens[rows, prompts.at(position)] for position in ("ITEM", FIRST))

    def first_over_item(logits: Tensor) -> Tensor:
        return logits[rows, first] - logits[rows, item]

    attend_to_first = experiment.attending(heads, to=FIRST, instead_of="ITEM")
    moved = float(experiment.change(attend_to_first).mean())
    base = float(experiment.base.mean())
    below = min(map(layer_of, heads))
    predictions = [
        Prediction(
            "first word over item",
            "Copiers raise the logit of whichever word they attend to: made to attend to the list's first "
            "word, they put it as far above the item as the item is above it in the clean run.",
            predicted=-float(experiment.read(first_over_item, {}).mean()),
            edit=lambda: experiment.read(first_over_item, attend_to_first),
        ),
        experiment.only_values(
            heads, "ITEM", "The two runs differ in the word read at ITEM, not in where copiers attend."
        ),
    ]
    previous = experiment.measured["previous"].mean("example").to_series()
    strong = [str(name) for name, score in previous.items() if score >= 0.5]
    previous_token_heads = [name for name in strong if layer_of(name) < below]
    if previous_token_heads:
        predictions.append(
            Prediction(
                f"{' '.join(previous_token_heads)} exchanged",
                "The previous-token heads below the copiers (score at least 0.5) determine the copiers' "
                "keys: exchanging their outputs between the two positions does what moving the attention by "
                "hand does.",
                predicted=moved,
                edit=lambda: experiment.change(
                    experiment.exchanged("z", previous_token_heads, FIRST, "ITEM")
                ),
            )
        )
    predictions += [
        Prediction(
            "previous-token reading of all heads below, exchanged",
            "All heads below determine the keys together: exchanging, between the two positions, only what "
            "each reads from the token before does what moving the attention by hand does.",
            predicted=moved,
            edit=lambda: experiment.change(previous_token_exchanged(experiment, below=below, rest=False)),
        ),
        Prediction(
            "share kept with the rest of their outputs exchanged",
            "A control: exchanging what the same heads read from all other tokens leaves the answer as it "
            "was.",
            predicted=1.0,
            edit=lambda: (
                1 + experiment.change(previous_token_exchanged(experiment, below=below, rest=True)) / base
            ),
        ),
    ]
    return predictions


STUDY = Study(
    task="induction",
    title="Induction",
    account="Several heads of the last layer attend from END to ITEM, the word after the earlier copy of the "
    "last word, and copy it. Their keys learn which word came before from what all heads below read from the "
    "previous token, together: no single head does it.",
    roles=[Role("copier", at_least={"ITEM": 0.5, "copying": 0.3})],
    tests=tests,
    traced_role="copier",
    limits=[
        "How copiers find ITEM: both prompts share this, so no edge of the circuit carries it; path patching "
        "and the exchanges look for it outside the circuit. How the many weak readings of the previous token "
        "add up was not tested.",
    ],
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
