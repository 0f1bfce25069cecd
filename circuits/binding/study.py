"""Attribute binding: whose is which colour. `python circuits/binding/study.py [--model tiny] [--out DIR] [--check]`"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from workbench.sites import Shape
from workbench.studies.bench import Bench, layer_of
from workbench.studies.command import main
from workbench.studies.study import Prediction, Role, Study


def asked(bench: Bench, *, owner: bool, thing: bool) -> np.ndarray:
    """[example]: the metric's change when the question names the other owner, or the other thing, or both.

    A prompt says "OWNER has a COLOUR THING" twice and asks "OWNER 's THING is".
    """
    prompts, rows = bench.pairs.clean, torch.arange(len(bench.pairs))
    tokens, question, other = prompts.tokens.clone(), prompts.at("ASKED"), prompts.at("OTHER")
    if owner:
        tokens[rows, question - 2] = prompts.tokens[rows, other - 3]
    if thing:
        tokens[rows, question] = prompts.tokens[rows, other + 1]
    return bench.on(replace(prompts, tokens=tokens))


def owner_heads(bench: Bench, *, below: int) -> list[str]:
    """Heads of lower layers that look from COLOUR at its owner, three words before."""
    rows, colour = torch.arange(len(bench.pairs)), bench.pairs.clean.at("COLOUR")
    found = []
    for layer in range(below):
        seen = bench.clean["pattern", layer].padded()[rows, :, colour, colour - 3].mean(0)
        found += [f"a{layer}.{head}" for head, share in enumerate(seen.tolist()) if share >= 0.3]
    return found


def tests(bench: Bench) -> list[Prediction]:
    heads = bench.of_role("mover")
    base = float(bench.base.mean())
    found = [
        bench.only_values(
            heads,
            "COLOUR",
            "What differs between the runs is the colour read at COLOUR, not where movers look.",
        ),
        Prediction(
            "ask for the other owner",
            "A colour stands before its thing and cannot know it, so the owner selects it: with the other owner in the "
            "question (and the thing as it was) the answer flips.",
            predicted=-2 * base,
            edit=lambda: asked(bench, owner=True, thing=False),
        ),
        Prediction(
            "share kept when asked for the other thing",
            "For the same reason the thing in the question changes nothing.",
            predicted=1.0,
            edit=lambda: 1 + asked(bench, owner=False, thing=True) / base,
        ),
    ]
    below = min(map(layer_of, heads))
    tellers = owner_heads(bench, below=below)
    if tellers:
        name, moved = (
            " ".join(tellers),
            float(bench.change(bench.attending(heads, to="OTHER", instead_of="COLOUR")).mean()),
        )
        exchange = bench.exchanged("z", tellers, "COLOUR", "OTHER")
        rest = [f"a{i}.{j}" for i in range(below) for j in range(Shape.of(bench.model).n_heads)]
        others = bench.exchanged("z", [head for head in rest if head not in tellers], "COLOUR", "OTHER")
        found += [
            Prediction(
                f"{name} exchanged",
                "Heads below the movers that look from a colour at its owner (at least 0.3) carry what movers find it by: their "
                "outputs exchanged between the two colours do what moving the attention by hand does.",
                predicted=moved,
                edit=lambda: bench.change(exchange),
            ),
            Prediction(
                "of that exchange the movers' keys",
                "They tell the movers' keys: of all that the exchange changes, the movers' keys at the two colours do it alone.",
                predicted=moved,
                edit=lambda: bench.change(bench.passed_on("k", heads, exchange, ("COLOUR", "OTHER"))),
            ),
            Prediction(
                "share kept with all other heads below exchanged",
                "A control: the heads below the movers that do not look at the owner, exchanged together, leave the answer.",
                predicted=1.0,
                edit=lambda: 1 + bench.change(others) / base,
            ),
        ]
    return found


STUDY = Study(
    task="binding",
    title="Attribute binding",
    account="From END several heads of the last layer look at the colour that belongs to the owner in the question and write it. "
    "They find it by the owner that was named before it, not by the thing that comes after it.",
    roles=[Role("mover", at_least={"COLOUR": 0.5, "copying": 0.3})],
    tests=tests,
    watched="mover",
    limits=[
        "How movers find COLOUR: both prompts share it, so it is in no edge of the circuit; the path table and the last tests look "
        "for it outside. How the owner in the question comes to the movers' queries at END was not tried.",
    ],
    method="eap-ig-activations",
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
