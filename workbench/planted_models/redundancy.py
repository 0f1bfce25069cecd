"""Planted heads that stand in for each other or oppose the answer: backup and negative heads.

Read `backup`. All of them solve one task, the word in capitals. `recipe.py` says what a recipe is.
"""

import random
from collections.abc import Callable
from itertools import product

import torch

from workbench.planted_models.blueprint import Blueprint
from workbench.planted_models.recipe import Example, Recipe, traded


def backup(size: int, gain: float) -> Recipe:
    """The word in capitals → the word. When the main head is silent, a backup head does its work.

    The backup's query is what the main head wrote, with a minus: as long as that is there, it rests at BOS.
    Whatever silences the main head (its k or v corrupted or zeroed) wakes the backup, and the metric hardly
    moves. Corrupt: another of the same words is in capitals.
    """
    drawing, words = _capitals(size, gain)
    _main_and_backup(drawing)
    drawing.read_out("out", words)
    main, spare = _redundant()
    # Either head alone gives the answer: only an edge of both, taken together, loses it.
    sets = tuple(map(frozenset, product(main, spare)))
    return Recipe(drawing, _capital_moves(words), 1, frozenset({"main->backup<q>"}), sets)


def negative(size: int, gain: float) -> Recipe:
    """The word in capitals → the word; a negative head opposes it.

    The negative head attends to the word that is about to be the answer and writes half of it with a minus.
    So it lowers the metric, and still belongs to what the model does: all its edges oppose (2310.04625).
    Corrupt: another word is in capitals, or the word in capitals trades places with another.
    """
    drawing, words = _capitals(size, gain)
    drawing.head("main", 0, [drawing.on("capital")], [drawing.move("capital", "out")])
    drawing.head("negative", 1, [drawing.same("out", "token")], [drawing.move("token", "out", -0.5)])
    drawing.read_out("out", words)
    moves = _capital_moves(words)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        example = moves(rng, 0)
        if kind == 0:
            return example
        trade = {example.answer.upper(): example.wrong.upper(), example.wrong: example.answer}
        return Example(example.clean, traded(example.clean, trade), example.answer, example.wrong)

    return Recipe(drawing, draw, 2, frozenset())


def backup_negative(size: int, gain: float) -> Recipe:
    """A main head, its backup, and a negative head that suppresses whichever of the two speaks.

    Corrupt: another of the same words is in capitals.
    """
    drawing, words = _capitals(size, gain)
    _main_and_backup(drawing)
    drawing.head("negative", 2, [drawing.same("out", "token")], [drawing.move("token", "out", -0.5)])
    drawing.read_out("out", words)
    main, spare = _redundant()
    # While the main head speaks, what tells the negative head of the backup's answer is needless too.
    sets = tuple(map(frozenset, product(main, (*spare, "backup->negative<q>"))))
    shared = {"main->backup<q>", "input->negative<k>", "input->negative<v>"}
    return Recipe(drawing, _capital_moves(words), 1, frozenset(shared), sets)


def _capitals(size: int, gain: float) -> tuple[Blueprint, tuple[str, ...]]:
    """Words in small letters and in capitals; only the latter are in the subspace `capital`."""
    drawing = Blueprint(length=8, gain=gain)
    drawing.space(token=size, capital=size, bos=1, out=size)
    drawing.word("BOS", bos=torch.ones(1))
    words = drawing.alphabet("w", size, "token")
    drawing.alphabet("W", size, "token", "capital")
    drawing.word("?")
    return drawing, words


def _capital_moves(words: tuple[str, ...]) -> Callable[[random.Random, int], Example]:
    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        listed, (a, b) = rng.sample(words, 6), rng.sample(range(6), 2)
        clean = (*listed[:a], listed[a].upper(), *listed[a + 1 :], "?")
        corrupt = (*listed[:b], listed[b].upper(), *listed[b + 1 :], "?")
        return Example(clean, corrupt, listed[a], listed[b])

    return draw


def _main_and_backup(drawing: Blueprint) -> None:
    drawing.head("main", 0, [drawing.on("capital")], [drawing.move("capital", "out")])
    # What the main head wrote cancels the backup's interest in capitals: BOS is then the best match.
    unless = [drawing.on("capital"), drawing.gate("out", "capital", -1.0), drawing.on("bos", 0.5)]
    drawing.head("backup", 1, unless, [drawing.move("capital", "out")])


def _redundant() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the main head needs in order to speak, and what the backup needs in order to speak for it."""
    return ("input->main<k>", "input->main<v>"), ("input->backup<k>", "input->backup<v>", "backup->logits")
