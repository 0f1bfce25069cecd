"""Indirect objects: "When Anna and Tom went to the park , Tom gave a ball to" -> Anna
(Wang et al. 2211.00593).

Read `draw`, which the prompts of the task and the training text share.
"""

import random
from dataclasses import replace
from typing import Literal

from workbench.tasks.grammar import Lexicon, Sentence, fill

TEMPLATES = (
    "When {N1} and {N2} went to the {place} , {S2} gave a {object} to",
    "While {N1} and {N2} were at the {place} , {S2} handed a {object} to",
    "After {N1} and {N2} left the {place} , {S2} sent a {object} to",
    "Then {N1} and {N2} had a long talk at the {place} . {S2} gave a {object} to",
    "{N1} and {N2} met at the {place} . Later {S2} showed a {object} to",
)
TEMPLATES_OF_THREE = (
    "When {N1} , {N2} and {N3} went to the {place} , {S2} and {T2} gave a {object} to",
    "When {N1} , {N2} and {N3} went to the {place} , {T2} and {S2} gave a {object} to",
    "While {N1} , {N2} and {N3} were at the {place} , {S2} and {T2} handed a {object} to",
    "While {N1} , {N2} and {N3} were at the {place} , {T2} and {S2} handed a {object} to",
)
Variant = Literal["swap", "abc", "three"]
VARIANTS: tuple[Variant, ...] = ("swap", "abc", "three")
COUNTERFACTUALS: tuple[Variant, ...] = ("swap", "abc")


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "swap") -> tuple[Sentence, Sentence]:
    """A clean sentence and its corruption, of equal length.

    Named positions: `IO`, `S1`, `S2`, `END`, on both sides those of the clean sentence.
    `swap`: the repeated name becomes the other name, so the answer flips. `abc`: the repeated name becomes a
    third name, so nothing says which is right. `three`: three names, two of which are repeated; one of them
    is swapped.
    """
    names = rng.sample(lexicon.names, 3)
    introduced, templates = names[:2], TEMPLATES
    if variant == "three":
        introduced, templates = names, TEMPLATES_OF_THREE
    answer, repeated, *rest = rng.sample(introduced, len(introduced))
    template = rng.choice(templates)
    slots = {"place": rng.choice(lexicon.places), "object": rng.choice(lexicon.objects)}
    slots |= dict(zip(("N1", "N2", "N3"), introduced, strict=False))
    # Of three names the third is repeated too, so that the answer alone comes once.
    slots |= dict(zip(("T2",), rest, strict=False))

    words, index = fill(template, **slots, S2=repeated)
    introduced_at = {name: index[f"N{i}"] for i, name in enumerate(introduced, start=1)}
    positions = {"IO": introduced_at[answer], "S1": introduced_at[repeated]}
    positions |= {"S2": index["S2"], "END": index["END"]}
    key = (*sorted(introduced), slots["place"])
    clean = Sentence(words, (answer,), (repeated,), key, positions, (answer, "."))
    if variant == "abc":
        return clean, _with_giver(clean, names[2])
    swapped, _ = fill(template, **slots, S2=answer)
    return clean, Sentence(swapped, (repeated,), (answer,), key, positions, (repeated, "."))


def corrupted(rng: random.Random, lexicon: Lexicon, clean: Sentence) -> Sentence:
    """A clean sentence of `swap` with the corruption `abc`."""
    introduced = {clean.words[clean.positions[name]] for name in ("IO", "S1")}
    return _with_giver(clean, rng.choice([name for name in lexicon.names if name not in introduced]))


def _with_giver(clean: Sentence, name: str) -> Sentence:
    """The sentence in which a name that was not introduced is the one that gives."""
    words = list(clean.words)
    words[clean.positions["S2"]] = name
    # The clean answers stay, so that both sides measure the same names, though none is right any more.
    return replace(clean, words=tuple(words))


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """Mostly two names; some of three; a few with a new giver, where either name may follow."""
    variant = rng.choices(VARIANTS, weights=(0.72, 0.08, 0.2))[0]
    return draw(rng, lexicon, variant)[variant == "abc"]
