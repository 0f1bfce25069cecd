"""Attribute binding: whose is which colour.

`python circuits/binding/study.py [--model tiny] [--out DIR] [--check]`
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from workbench.sites import Shape
from workbench.studies.circuit_experiment import CircuitExperiment, layer_of
from workbench.studies.command import main
from workbench.studies.prediction import Prediction, Role
from workbench.studies.study import Study


def question_changed(experiment: CircuitExperiment, *, owner: bool, thing: bool) -> np.ndarray:
    """[example]: the metric's change when the question names the other owner, or the other thing, or both.

    A prompt says "OWNER has a COLOUR THING" twice and asks "OWNER 's THING is".
    """
    prompts, rows = experiment.pairs.clean, torch.arange(len(experiment.pairs))
    tokens, question, other = prompts.tokens.clone(), prompts.at("ASKED"), prompts.at("OTHER")
    if owner:
        tokens[rows, question - 2] = prompts.tokens[rows, other - 3]
    if thing:
        tokens[rows, question] = prompts.tokens[rows, other + 1]
    return experiment.on(replace(prompts, tokens=tokens))


def owner_heads(experiment: CircuitExperiment, *, below: int) -> list[str]:
    """Heads of layers below this one that attend from COLOUR to its owner, three words before."""
    rows, colour = torch.arange(len(experiment.pairs)), experiment.pairs.clean.at("COLOUR")
    heads = []
    for layer in range(below):
        pattern = experiment.clean["pattern", layer].padded()  # [example, head, query, key]
        attention = pattern[rows, :, colour, colour - 3].mean(0)
        heads += [f"a{layer}.{head}" for head, share in enumerate(attention.tolist()) if share >= 0.3]
    return heads


def tests(experiment: CircuitExperiment) -> list[Prediction]:
    heads = experiment.of_role("mover")
    base = float(experiment.base.mean())
    predictions = [
        experiment.only_values(
            heads, "COLOUR", "The two runs differ in the colour read at COLOUR, not in where movers attend."
        ),
        Prediction(
            "ask for the other owner",
            "A colour stands before its thing and cannot know it, so the owner selects it: with the other "
            "owner in the question (and the thing as it was) the answer flips.",
            predicted=-2 * base,
            edit=lambda: question_changed(experiment, owner=True, thing=False),
        ),
        Prediction(
            "share kept when asked for the other thing",
            "For the same reason the thing in the question changes nothing.",
            predicted=1.0,
            edit=lambda: 1 + question_changed(experiment, owner=False, thing=True) / base,
        ),
    ]
    below = min(map(layer_of, heads))
    informants = owner_heads(experiment, below=below)
    return predictions + (exchange_tests(experiment, heads, informants, below=below) if informants else [])


def exchange_tests(
    experiment: CircuitExperiment, movers: list[str], informants: list[str], *, below: int
) -> list[Prediction]:
    """Predictions about the heads that attend from a colour to its owner (`informants`)."""
    base = float(experiment.base.mean())
    by_hand = experiment.attending(movers, to="OTHER", instead_of="COLOUR")
    moved = float(experiment.change(by_hand).mean())
    exchange = experiment.exchanged("z", informants, "COLOUR", "OTHER")
    n_heads = Shape.of(experiment.model).n_heads
    all_below = [f"a{layer}.{head}" for layer in range(below) for head in range(n_heads)]
    others = [head for head in all_below if head not in informants]
    control = experiment.exchanged("z", others, "COLOUR", "OTHER")
    return [
        Prediction(
            f"{' '.join(informants)} exchanged",
            "Heads below the movers that attend from a colour to its owner (at least 0.3) write what movers "
            "find it by: exchanging their outputs between the two colours does what moving the attention by "
            "hand does.",
            predicted=moved,
            edit=lambda: experiment.change(exchange),
        ),
        Prediction(
            "of that exchange the movers' keys",
            "They act through the movers' keys: of all that the exchange changes, the movers' keys at the "
            "two colours do it alone.",
            predicted=moved,
            edit=lambda: experiment.change(experiment.passed_on("k", movers, exchange, ("COLOUR", "OTHER"))),
        ),
        Prediction(
            "share kept with all other heads below exchanged",
            "A control: exchanging together the heads below the movers that do not attend to the owner "
            "leaves the answer as it was.",
            predicted=1.0,
            edit=lambda: 1 + experiment.change(control) / base,
        ),
    ]


STUDY = Study(
    task="binding",
    title="Attribute binding",
    account="Several heads of the last layer attend from END to the colour that belongs to the owner in the "
    "question and copy it. They find it by the owner that was named before it, not by the thing that comes "
    "after it.",
    roles=[Role("mover", at_least={"COLOUR": 0.5, "copying": 0.3})],
    tests=tests,
    traced_role="mover",
    limits=[
        "How movers find COLOUR: both prompts share this, so no edge of the circuit carries it; path "
        "patching and the last tests look for it outside the circuit. How the owner in the question reaches "
        "the movers' queries at END was not tested.",
    ],
    method="eap-ig-activations",
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
