"""What a recipe is: a drawing, the prompts it solves, and what the two runs of a pair share.

Read `Recipe`. `deal`, `swapped` and `interleaved` are what recipes draw their prompts with.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

from workbench.planted_models.blueprint import Blueprint


@dataclass(frozen=True)
class Example:
    """One pair of prompts, as words without BOS, and the next words after the clean and the corrupt one."""

    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    answer: str
    wrong: str


@dataclass(frozen=True)
class Recipe:
    """A drawing with its prompts.

    Attributes:
        blueprint: the drawing.
        draw: `(rng, kind) -> Example`: a pair of prompts; `kind` is the kind of corruption, from 0 to `kinds`
            - 1.
        shared: edges that carry nothing that differs between the runs.
        redundant: sets of edges of which each alone changes little.
    """

    blueprint: Blueprint
    draw: Callable[[random.Random, int], Example]
    kinds: int
    shared: frozenset[str]
    redundant: tuple[frozenset[str], ...] = ()


def deal(rng: random.Random, words: tuple[str, ...], *counts: int) -> list[list[str]]:
    """Disjoint random hands of words."""
    dealt = rng.sample(words, sum(counts))
    return [[dealt.pop() for _ in range(count)] for count in counts]


def swapped(row: list[str], a: int, b: int, really: bool) -> list[str]:
    """The row with two words in each other's place, or (`really` False) a copy of it."""
    order = list(row)
    if really:
        order[a], order[b] = order[b], order[a]
    return order


def traded(words: tuple[str, ...], trade: Mapping[str, str]) -> tuple[str, ...]:
    """The words with every key of `trade` replaced by its value, wherever it stands."""
    return tuple(trade.get(word, word) for word in words)


def interleaved(*rows: list[str]) -> list[str]:
    """The first word of every row, then the second of every row, and so on."""
    return list(chain.from_iterable(zip(*rows, strict=True)))
