"""Gendered pronouns: "Anna lost the ball near the park so" -> she (Mathwin et al. 2023)."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from workbench.tasks.grammar import ADJECTIVES, FEMALE, MALE, Lexicon, Sentence, content_words, fill, selected

TEMPLATES = (
    ("{NAME} went to the {place} because", "she", "he"),
    ("{NAME} took the {object} to the {place} because", "she", "he"),
    ("{NAME} lost the {object} near the {place} so", "she", "he"),
    ("When {NAME} came to the {place} with a {object} ,", "she", "he"),
    ("One day , {NAME} went to the {place} .", "She", "He"),
    ("{NAME} found a {object} at the {place} .", "She", "He"),
)
# A new sentence about a person begins with the pronoun; within a sentence much else may follow.
ENGLISH_TEMPLATES = (
    ("One day , {NAME} went to the {place} .", "She", "He"),
    ("One day , {NAME} found a {object} at the {place} .", "She", "He"),
    ("One morning , {NAME} took the {object} to the {place} .", "She", "He"),
)
Variant = Literal["gender", "word"]
VARIANTS: tuple[Variant, ...] = ("gender", "word")
COUNTERFACTUALS = VARIANTS
GENDERED = (*FEMALE, *MALE, "boy", "girl", "king", "boys", "girls", "kings")


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "gender") -> tuple[Sentence, Sentence]:
    """Corrupt: a name of the other gender. `word`: a word in its place that has no gender (guest).

    Named positions: `NAME`, `END`.
    """
    usable = _usable(ENGLISH_TEMPLATES, lexicon) if lexicon.is_english else []
    # A vocabulary may split She or He, and neither she nor he.
    template, she, he = rng.choice(usable or _usable(TEMPLATES, lexicon))
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

    clean = sentence(*people[0])
    if variant == "word":
        return clean, corrupted(rng, lexicon, clean)
    return clean, sentence(*people[1])


def _usable(templates: Sequence[tuple[str, str, str]], lexicon: Lexicon) -> list[tuple[str, str, str]]:
    """The templates whose pronouns the lexicon has."""
    return [template for template in templates if set(template[1:]) <= set(lexicon.pronouns)]


def corrupted(rng: random.Random, lexicon: Lexicon, clean: Sentence) -> Sentence:
    """A clean sentence with the corruption `word`."""
    words, taken = list(clean.words), {*GENDERED, *clean.words}
    word = rng.choice([item for item in content_words() if item not in taken])
    words[clean.positions["NAME"]] = word
    # The clean answers stay, so that both sides measure the same pronouns, though both are right now.
    return replace(clean, words=tuple(words), key=(word, *clean.key[1:]))


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """The clean sentence."""
    return draw(rng, lexicon)[0]
