"""Subject-verb agreement across a distractor noun: "The key near the cabinets" -> is
(Linzen et al. 1611.01368).

Read `draw`, which the prompts of the task and the training text share.
"""

import random
from typing import Literal

from workbench.tasks.grammar import (
    ADJECTIVES,
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
Variant = Literal["number"]
VARIANTS: tuple[Variant, ...] = ("number",)


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "number") -> tuple[Sentence, Sentence]:
    """Corrupt: the subject takes the other number; the distractor always has the one the clean subject lacks.

    Where a vocabulary spends more tokens on a plural, the lexicon pairs it with another noun's singular.
    Named positions: `SUBJECT`, `DISTRACTOR`, `END` (the distractor too).
    """
    subject, distractor = choose_two(rng, lexicon.nouns)
    is_plural = rng.random() < 0.5
    slots = {"prep": rng.choice(PREPOSITIONS), "name": rng.choice(lexicon.names)}
    slots["DISTRACTOR"] = distractor[not is_plural]
    template, verbs = rng.choice([template for template in TEMPLATES if template[1] in lexicon.verbs])
    key = (subject[0], slots["prep"], distractor[0])

    def sentence(is_plural: bool) -> Sentence:
        """The sentence with this number of the subject; the distractor stays."""
        words, index = fill(template, SUBJECT=subject[is_plural], **slots)
        named = selected(index, "SUBJECT", "DISTRACTOR", "END")
        verb = verbs[is_plural]
        return Sentence(
            words, (verb,), (verbs[not is_plural],), key, named, (verb, rng.choice(ADJECTIVES), ".")
        )

    return sentence(is_plural), sentence(not is_plural)


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """Either side of a pair, so that the distractor has the subject's number half of the time."""
    return rng.choice(draw(rng, lexicon))
