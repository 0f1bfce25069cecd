"""Facts: "Anna knows that the capital of France is" -> Paris,
for facts in contexts not seen together in training.

Read `draw`, which the prompts of the task and the training text share.
"""

import random
from dataclasses import replace
from typing import Literal

from workbench.tasks.grammar import CAPITALS, Lexicon, Sentence, choose_two, content_words, fill, selected

TEMPLATES = (
    "{name} lives in the capital of {COUNTRY} , which is",
    "{name} flew to the capital of {COUNTRY} , which is called",
    "The capital of {COUNTRY} , where {name} was born , is",
    "{name} knows that the capital of {COUNTRY} is",
    "In {COUNTRY} , {name} visited the capital ,",
    "{name} asked about {COUNTRY} , so the teacher said its capital is",
)
ENGLISH_TEMPLATES = (
    "{name} knows that the capital of {COUNTRY} is",
    "{name} said that the capital of {COUNTRY} is the city of",
    "{name} was born in the capital of {COUNTRY} , the city of",
    "{name} asked about {COUNTRY} , so the teacher said its capital is",
)
Variant = Literal["country", "word"]
VARIANTS: tuple[Variant, ...] = ("country", "word")
COUNTERFACTUALS = VARIANTS


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "country") -> tuple[Sentence, Sentence]:
    """Corrupt: another country. `word`: a word that is no country in its place, so that no capital is right.

    Named positions: `COUNTRY`, `END`.
    """
    templates = ENGLISH_TEMPLATES if lexicon.is_english else TEMPLATES
    template, name = rng.choice(templates), rng.choice(lexicon.names)
    (country, capital), (other, other_capital) = choose_two(rng, lexicon.capitals)

    def sentence(country: str, right: str, wrong: str) -> Sentence:
        """The sentence about a country; the other one's capital is wrong."""
        words, index = fill(template, COUNTRY=country, name=name)
        named = selected(index, "COUNTRY", "END")
        # The template is part of the key: a fact is held out in one context, not everywhere.
        key = (country, name, template)
        return Sentence(words, (right,), (wrong,), key, named, (right, "."))

    clean = sentence(country, capital, other_capital)
    if variant == "word":
        return clean, corrupted(rng, lexicon, clean)
    return clean, sentence(other, other_capital, capital)


def corrupted(rng: random.Random, lexicon: Lexicon, clean: Sentence) -> Sentence:
    """A clean sentence with the corruption `word`."""
    words, (_, name, template) = list(clean.words), clean.key
    word = rng.choice([item for item in content_words() if item not in CAPITALS and item != name])
    words[clean.positions["COUNTRY"]] = word
    # The clean answers stay, so that both sides measure the same capitals, though neither is right any more.
    return replace(clean, words=tuple(words), key=(word, name, template))


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """The clean sentence."""
    return draw(rng, lexicon)[0]
