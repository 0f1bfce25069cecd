"""Gendered pronouns: "Anna lost the ball near the park so" -> she (Mathwin et al. 2023)."""

import random
from typing import Literal

from workbench.tasks.grammar import ADJECTIVES, Lexicon, Sentence, fill, selected

TEMPLATES = (
    ("{NAME} went to the {place} because", "she", "he"),
    ("{NAME} took the {object} to the {place} because", "she", "he"),
    ("{NAME} lost the {object} near the {place} so", "she", "he"),
    ("When {NAME} came to the {place} with a {object} ,", "she", "he"),
    ("One day , {NAME} went to the {place} .", "She", "He"),
    ("{NAME} found a {object} at the {place} .", "She", "He"),
)
Variant = Literal["gender"]
VARIANTS: tuple[Variant, ...] = ("gender",)


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "gender") -> tuple[Sentence, Sentence]:
    """Corrupt: a name of the other gender. Named positions: `NAME`, `END`."""
    usable = [template for template in TEMPLATES if set(template[1:]) <= set(lexicon.pronouns)]
    template, she, he = rng.choice(usable)
    slots = {"place": rng.choice(lexicon.places), "object": rng.choice(lexicon.objects)}
    people = [(rng.choice(lexicon.female), she, he), (rng.choice(lexicon.male), he, she)]
    rng.shuffle(people)
    rest = ("was", rng.choice(ADJECTIVES), ".")

    def sentence(name: str, right: str, wrong: str) -> Sentence:
        """The sentence about a person, with the pronoun that refers to them."""
        words, index = fill(template, NAME=name, **slots)
        key = (name, slots["place"])
        if "{object}" in template:
            key += (slots["object"],)
        return Sentence(words, (right,), (wrong,), key, selected(index, "NAME", "END"), (right, *rest))

    return sentence(*people[0]), sentence(*people[1])


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """The clean sentence."""
    return draw(rng, lexicon)[0]
