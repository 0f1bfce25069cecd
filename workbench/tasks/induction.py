"""Induction: "dog red park Tom ... dog red" -> park, with lists and gaps of varying length (2209.11895).

The gap between a word and its repetition varies from prompt to prompt, so copying from a fixed distance
cannot work.
"""

import random
from dataclasses import replace
from typing import Literal

from workbench.tasks.grammar import Lexicon, Sentence

LONGEST_LIST, LONGEST_GAP = 10, 6
Variant = Literal["item"]
VARIANTS: tuple[Variant, ...] = ("item",)


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "item") -> tuple[Sentence, Sentence]:
    """A list, a gap of other words, the list again up to a word; corrupt: the item to copy is another word.

    Named positions: `PREVIOUS` (first occurrence of the last word), `ITEM` (the word to copy), `END`.
    """
    listed, gap = rng.randint(5, LONGEST_LIST), rng.randint(0, LONGEST_GAP)
    words = rng.sample(lexicon.items, listed + gap + 1)
    items, between, other = words[:listed], words[listed:-1], words[-1]
    answer = rng.randint(2, listed - 1)
    # The repetition may begin in the middle of the list: its first word is not always the list's first.
    start = rng.randint(max(0, answer - 3), answer - 1)
    prompt = (*items, *between, *items[start:answer])
    swapped = (*items[:answer], other, *items[answer + 1 :], *between, *items[start:answer])
    positions = {"PREVIOUS": answer - 1, "ITEM": answer, "END": len(prompt) - 1}
    key = tuple(items[:2])
    clean = Sentence(prompt, (items[answer],), (other,), key, positions, (*items[answer:], "."))
    return clean, replace(
        clean,
        words=swapped,
        answers=(other,),
        wrong=(items[answer],),
        rest=(other, *items[answer + 1 :], "."),
    )


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """The clean sentence: the repetition always runs to the end of the list."""
    return draw(rng, lexicon)[0]
