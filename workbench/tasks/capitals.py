"""Facts: "Anna knows that the capital of France is" -> Paris,
for facts in contexts not seen together in training.

Read `draw`, which the prompts of the task and the training text share.
"""

import random
from typing import Literal

from workbench.tasks.grammar import CAPITALS, Lexicon, Sentence, choose_two, fill, selected

TEMPLATES = (
    "{name} lives in the capital of {COUNTRY} , which is",
    "{name} flew to the capital of {COUNTRY} , which is called",
    "The capital of {COUNTRY} , where {name} was born , is",
    "{name} knows that the capital of {COUNTRY} is",
    "In {COUNTRY} , {name} visited the capital ,",
    "{name} asked about {COUNTRY} , so the teacher said its capital is",
)
Variant = Literal["country"]
VARIANTS: tuple[Variant, ...] = ("country",)


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "country") -> tuple[Sentence, Sentence]:
    """Corrupt: another country. Named positions: `COUNTRY`, `END`."""
    template, name = rng.choice(TEMPLATES), rng.choice(lexicon.names)
    country, other = choose_two(rng, tuple(CAPITALS))

    def sentence(country: str, other: str) -> Sentence:
        """The sentence about a country; the other one's capital is wrong."""
        words, index = fill(template, COUNTRY=country, name=name)
        named = selected(index, "COUNTRY", "END")
        capital = CAPITALS[country]
        # The template is part of the key: a fact is held out in one context, not everywhere.
        key = (country, name, template)
        return Sentence(words, (capital,), (CAPITALS[other],), key, named, (capital, "."))

    return sentence(country, other), sentence(other, country)


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """The clean sentence."""
    return draw(rng, lexicon)[0]
