"""Planted heads that feed each other: by the query (Q), the key (K) or the value (V) of the next one.

Read `q_composition` and `v_composition`; `compositions` has all three in one model. `recipe.py` says
what a recipe is.
"""

import random
from dataclasses import replace

import torch

from workbench.planted_models.blueprint import Blueprint
from workbench.planted_models.recipe import Example, Recipe, deal, interleaved, swapped


def q_composition(size: int, gain: float) -> Recipe:
    """`d3 x1 x2 x3 x4 x5 ?` → `x3`: a head fetches a pointer, and that is the next head's query.

    Corrupt: another pointer, or the word it points to trades places with another.
    """
    drawing = Blueprint(length=8, gain=gain)
    drawing.space(token=size, digit=5, pointer=5, out=size)
    words, digits = drawing.alphabet("x", size, "token"), drawing.alphabet("d", 5, "digit")
    drawing.word("?")
    drawing.head("fetch", 0, [drawing.on("digit")], [drawing.move("digit", "pointer")])
    left = torch.zeros(drawing.length, 5)
    # Behind BOS and the digit itself: the first digit points to position 2.
    left[2:7] = torch.eye(5)
    point = replace(drawing.same("pointer", "position"), left=left)
    drawing.head("target", 1, [point], [drawing.move("token", "out")])
    drawing.read_out("out", words)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        listed, (a, b) = rng.sample(words, 5), rng.sample(range(5), 2)
        clean = (digits[a], *listed, "?")
        pointer = digits[b] if kind == 0 else digits[a]
        corrupt = (pointer, *swapped(listed, a, b, kind == 1), "?")
        return Example(clean, corrupt, listed[a], listed[b])

    return Recipe(drawing, draw, 2, frozenset({"input->fetch<k>", "input->target<k>"}))


def v_composition(size: int, gain: float) -> Recipe:
    """`x1 x2 x3 ! x4 x5 ?` → `x3`: a head copies each word one step on, another moves the copy to the end.

    Corrupt: the mark stands elsewhere, or the word before it trades places with another.
    """
    drawing = Blueprint(length=8, gain=gain)
    drawing.space(token=size, mark=1, previous=size, out=size)
    words = drawing.alphabet("x", size, "token")
    drawing.word("!", mark=torch.ones(1))
    drawing.word("?")
    drawing.head(
        "previous", 0, [drawing.same("position", "position", shift=-1)], [drawing.move("token", "previous")]
    )
    # The mark itself holds a copy of the word before it: the target needs no position.
    drawing.head("target", 1, [drawing.on("mark")], [drawing.move("previous", "out")])
    drawing.read_out("out", words)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        listed, (a, b) = rng.sample(words, 5), rng.sample(range(5), 2)
        other = swapped(listed, a, b, kind == 1)
        at = b if kind == 0 else a
        clean = (*listed[: a + 1], "!", *listed[a + 1 :], "?")
        corrupt = (*other[: at + 1], "!", *other[at + 1 :], "?")
        return Example(clean, corrupt, listed[a], listed[b])

    return Recipe(drawing, draw, 2, frozenset({"input->previous<q>", "input->previous<k>"}))


def compositions(size: int, gain: float) -> Recipe:
    """`cue (value key ;) (value key ;) (value key ;) ?` → the value whose key is the cue.

    Three heads feed one: the first its query (the cue), the second its keys, the third its values. Nine edges
    of the same shape could be there; three are. Corrupt: another cue, two keys swapped, or two values
    swapped.
    """
    drawing = Blueprint(length=12, gain=gain)
    drawing.space(token=size, separator=1, cue=size, key=size, value=size, out=size)
    words = drawing.alphabet("t", size, "token")
    drawing.word(";", separator=torch.ones(1))
    drawing.word("?")
    drawing.head(
        "feed-q",
        0,
        [drawing.gate("position", "position", q_only=11, k_only=1)],
        [drawing.move("token", "cue")],
    )
    drawing.head(
        "feed-k", 0, [drawing.same("position", "position", shift=-1)], [drawing.move("token", "key")]
    )
    drawing.head(
        "feed-v", 0, [drawing.same("position", "position", shift=-2)], [drawing.move("token", "value")]
    )
    drawing.head(
        "target", 1, [drawing.same("cue", "key"), drawing.on("separator")], [drawing.move("value", "out")]
    )
    drawing.read_out("out", words)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        keys, values, (a, b) = *deal(rng, words, 3, 3), rng.sample(range(3), 2)
        other_keys, other_values = swapped(keys, a, b, kind == 1), swapped(values, a, b, kind == 2)
        clean = (keys[a], *interleaved(values, keys, [";"] * 3), "?")
        cue = keys[b] if kind == 0 else keys[a]
        corrupt = (cue, *interleaved(other_values, other_keys, [";"] * 3), "?")
        return Example(clean, corrupt, values[a], values[b])

    # The feeding heads attend by position, which both runs share.
    places = {f"input->feed-{port}<{end}>" for port in "qkv" for end in "qk"}
    return Recipe(drawing, draw, 3, frozenset(places | {"input->target<k>"}))
