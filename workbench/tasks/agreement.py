"""Subject-verb agreement across a distractor noun: "The key near the cabinets" -> is
(Linzen et al. 1611.01368).

Read `draw`, which the prompts of the task and the training text share.
"""

import random
from dataclasses import replace
from typing import Literal

from workbench.tasks.grammar import (
    ADJECTIVES,
    CAPITALS,
    COLOURS,
    FEMALE,
    MALE,
    PREPOSITIONS,
    VERBS,
    Lexicon,
    Sentence,
    choose_two,
    fill,
    selected,
)

PRESENT, PAST = VERBS
TEMPLATES = (
    ("The {SUBJECT} {prep} the {DISTRACTOR}", PRESENT),
    ("Yesterday the {SUBJECT} {prep} the {DISTRACTOR}", PAST),
    ("{name} says that the {SUBJECT} {prep} the {DISTRACTOR}", PRESENT),
)
# In these hardly anything but the verb can follow; after the nouns alone "of" or a comma may.
ENGLISH_TEMPLATES = (
    ("I wonder how old the {SUBJECT} {prep} the {DISTRACTOR}", PRESENT),
    ("{name} wanted to know where the {SUBJECT} {prep} the {DISTRACTOR}", PAST),
    ("The {SUBJECT} {prep} the {DISTRACTOR} , as everyone knows ,", PRESENT),
)
Variant = Literal["number", "word"]
VARIANTS: tuple[Variant, ...] = ("number", "word")
COUNTERFACTUALS = VARIANTS
NUMBERLESS = (*FEMALE, *MALE, *COLOURS, *ADJECTIVES, *CAPITALS)


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "number") -> tuple[Sentence, Sentence]:
    """Corrupt: the subject takes the other number; the distractor always has the one the clean subject lacks.

    `word`: a word that is no noun here (a name, a colour) stands in the subject's place, so that it has no
    number. Where a vocabulary spends more tokens on a plural, the lexicon pairs it with another noun's
    singular. Named positions: `SUBJECT`, `DISTRACTOR`, `END` (the distractor too, unless a comma follows).
    """
    subject, distractor = choose_two(rng, lexicon.nouns)
    is_plural = rng.random() < 0.5
    slots = {"prep": rng.choice(PREPOSITIONS), "name": rng.choice(lexicon.names)}
    slots["DISTRACTOR"] = distractor[not is_plural]
    templates = ENGLISH_TEMPLATES if lexicon.is_english else TEMPLATES
    template, verbs = rng.choice([template for template in templates if template[1] in lexicon.verbs])
    key = (subject[0], slots["prep"], distractor[0])

    def sentence(is_plural: bool) -> Sentence:
        """The sentence with this number of the subject; the distractor stays."""
        words, index = fill(template, SUBJECT=subject[is_plural], **slots)
        named = selected(index, "SUBJECT", "DISTRACTOR", "END")
        verb = verbs[is_plural]
        return Sentence(
            words, (verb,), (verbs[not is_plural],), key, named, (verb, rng.choice(ADJECTIVES), ".")
        )

    clean = sentence(is_plural)
    if variant == "word":
        return clean, corrupted(rng, lexicon, clean)
    return clean, sentence(not is_plural)


def corrupted(rng: random.Random, lexicon: Lexicon, clean: Sentence) -> Sentence:
    """A clean sentence with the corruption `word`."""
    words, (_, prep, distractor) = list(clean.words), clean.key
    word = rng.choice([other for other in NUMBERLESS if other not in words])
    words[clean.positions["SUBJECT"]] = word
    # The clean answers stay, so that both sides measure the same verbs.
    return replace(clean, words=tuple(words), key=(word, prep, distractor))


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """Either side of a pair, so that the distractor has the subject's number half of the time."""
    return rng.choice(draw(rng, lexicon))
