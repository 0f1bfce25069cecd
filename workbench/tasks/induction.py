"""Induction: "dog red park Tom ... dog red" -> park, with lists and gaps of varying length (2209.11895).

The gap between a word and its repetition varies from prompt to prompt, so copying from a fixed distance
cannot work.
"""

import random
from dataclasses import replace
from typing import Literal

from workbench.tasks.grammar import Lexicon, Sentence

LONGEST_LIST, LONGEST_GAP = 10, 6
# Words of the list that come again before the answer: one is enough for `tiny`; an ordinary model expects new
# words after random ones, unless several come again.
LEAST_REPEATED, LEAST_REPEATED_ENGLISH = 1, 4
Variant = Literal["item", "unmatched"]
VARIANTS: tuple[Variant, ...] = ("item", "unmatched")
COUNTERFACTUALS = VARIANTS


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "item") -> tuple[Sentence, Sentence]:
    """A list, a gap of other words, the list again up to a word; corrupt: the item to copy is another word.

    `unmatched`: the item stays, and the word before it is another one, so that the last word came only once
    and nothing says which word follows.
    Named positions: `PREVIOUS` (first occurrence of the last word), `ITEM` (the word to copy), `END`.
    """
    listed, gap = rng.randint(5, LONGEST_LIST), rng.randint(0, LONGEST_GAP)
    words = rng.sample(lexicon.items, listed + gap + 1)
    items, between, other = words[:listed], words[listed:-1], words[-1]
    least = LEAST_REPEATED_ENGLISH if lexicon.is_english else LEAST_REPEATED
    answer = rng.randint(max(2, least), listed - 1)
    # The repetition may begin in the middle of the list: its first word is not always the list's first.
    start = rng.randint(max(0, answer - least - 2), answer - least)
    prompt = (*items, *between, *items[start:answer])
    swapped = (*items[:answer], other, *items[answer + 1 :], *between, *items[start:answer])
    positions = {"PREVIOUS": answer - 1, "ITEM": answer, "END": len(prompt) - 1}
    key = tuple(items[:2])
    clean = Sentence(prompt, (items[answer],), (other,), key, positions, (*items[answer:], "."))
    if variant == "unmatched":
        return clean, corrupted(rng, lexicon, clean)
    return clean, replace(
        clean,
        words=swapped,
        answers=(other,),
        wrong=(items[answer],),
        rest=(other, *items[answer + 1 :], "."),
    )


def corrupted(rng: random.Random, lexicon: Lexicon, clean: Sentence) -> Sentence:
    """A clean sentence with the corruption `unmatched`."""
    words = list(clean.words)
    taken = {*words, *clean.wrong}
    words[clean.positions["PREVIOUS"]] = rng.choice([word for word in lexicon.items if word not in taken])
    # The clean answers stay, so that both sides measure the same words.
    return replace(clean, words=tuple(words), key=tuple(words[:2]))


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """The clean sentence: the repetition always runs to the end of the list."""
    return draw(rng, lexicon)[0]
