"""Attribute binding: "Anna has a red ball and Tom has a blue key . Tom 's key is" -> blue
(Feng et al. 2310.17191).

Read `draw`, which the prompts of the task and the training text share.
"""

import random
from dataclasses import replace
from typing import Literal

from workbench.tasks.grammar import COLOURS, Lexicon, Sentence, content_words

Variant = Literal["swap", "word"]
VARIANTS: tuple[Variant, ...] = ("swap", "word")
COUNTERFACTUALS = VARIANTS


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "swap") -> tuple[Sentence, Sentence]:
    """Corrupt: the two colours change places, so the answer flips.

    `word`: a word that is no colour stands in place of the right one, so that neither of the two is right.
    Named positions: `COLOUR` and `OBJECT` (of the thing asked about), `OTHER` (the other colour), `ASKED`
    (the object in the question), `END`.
    """
    things = _things(rng, lexicon, 2)
    target = rng.randrange(2)
    colour, other = things[target][2], things[1 - target][2]
    # There are two things, so that each gets the colour of the other.
    swapped = [(*first[:2], second[2]) for first, second in zip(things, reversed(things), strict=True)]

    def sentence(things: list[tuple[str, str, str]], right: str, wrong: str) -> Sentence:
        """The sentence of these things; `right` is the colour of the target."""
        statement, colour_index = _tell_people(things)
        words = (*statement, *_ask_person(things[target]))
        named = {"COLOUR": colour_index[target], "OBJECT": colour_index[target] + 1}
        named |= {"OTHER": colour_index[1 - target]}
        named |= {"ASKED": len(words) - 2, "END": len(words) - 1}
        return Sentence(words, (right,), (wrong,), _key(things), named, (right, "."))

    clean = sentence(things, colour, other)
    if variant == "word":
        return clean, corrupted(rng, lexicon, clean)
    return clean, sentence(swapped, other, colour)


def corrupted(rng: random.Random, lexicon: Lexicon, clean: Sentence) -> Sentence:
    """A clean sentence with the corruption `word`."""
    words, index = list(clean.words), clean.positions
    word = rng.choice([item for item in content_words() if item not in (*COLOURS, *words)])
    words[index["COLOUR"]] = word
    key = (*clean.key[:2], *sorted((word, words[index["OTHER"]])))
    # The clean answers stay, so that both sides measure the same colours.
    return replace(clean, words=tuple(words), key=key)


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """Two or three things, told of people or directly, and every one of them asked about in random order.

    The direct form ("the ball is red ... the ball is") needs one step less: it is the stepping stone.
    """
    things = _things(rng, lexicon, rng.choice((2, 2, 3)))
    if rng.random() < 0.65:
        statement, ask = _tell_people(things)[0], _ask_person
    else:
        statement, ask = _tell_directly(rng, things), _ask_directly
    first, *others = rng.sample(things, len(things))
    rest = [first[2], "."]
    for thing in others:
        rest += [*ask(thing), thing[2], "."]
    wrong = tuple(thing[2] for thing in others)
    return Sentence((*statement, *ask(first)), (first[2],), wrong, _key(things), rest=tuple(rest))


def _things(rng: random.Random, lexicon: Lexicon, n: int) -> list[tuple[str, str, str]]:
    columns = (rng.sample(words, n) for words in (lexicon.names, lexicon.objects, COLOURS))
    return list(zip(*columns, strict=True))


def _key(things: list[tuple[str, str, str]]) -> tuple[str, ...]:
    """What decides the split: the objects and the colours in any order, whoever owns them."""
    _, objects, colours = zip(*things, strict=True)
    return (*sorted(objects), *sorted(colours))


def _tell_people(things: list[tuple[str, str, str]]) -> tuple[tuple[str, ...], list[int]]:
    words: list[str] = []
    places = []
    # Commas between things, "and" before the last, as in ordinary prose.
    for i, (name, thing, colour) in enumerate(things):
        if 0 < i < len(things) - 1:
            words.append(",")
        elif i > 0:
            words.append("and")
        words += [name, "has", "a", colour, thing]
        places.append(len(words) - 2)
    return (*words, "."), places


def _ask_person(thing: tuple[str, str, str]) -> tuple[str, ...]:
    return (thing[0], "'s", thing[1], "is")


def _tell_directly(rng: random.Random, things: list[tuple[str, str, str]]) -> tuple[str, ...]:
    attribute_first = rng.random() < 0.5
    words: list[str] = []
    for i, (_, thing, colour) in enumerate(things):
        if i > 0:
            words.append("and")
        if attribute_first:
            words += ["a", colour, thing]
        else:
            words += ["the", thing, "is", colour]
    return (*words, ".")


def _ask_directly(thing: tuple[str, str, str]) -> tuple[str, ...]:
    return ("the", thing[1], "is")
