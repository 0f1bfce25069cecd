"""`PromptSets`: three sets of prompts that share none, to find a circuit with, to choose its size, to test it.

Scores are made on `find`, criteria choose on `select`, and what is reported is measured on `test`: the prompts
that chose a circuit flatter it. Nothing is measured in this module.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.discovery.criteria import MIN_PROMPTS
from workbench.engine.counterfactuals import KINDS_READ, those_of
from workbench.errors import PromptError, warn
from workbench.experiment import PairsInModel
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.tasks.registry import load_task
from workbench.tasks.task import find_task

TASK_PAIRS = 64
"""Pairs of a task to find with, as many to select with, and twice as many to test with."""
EQUAL_LENGTHS = "Edges and circuits need equal lengths within a pair; row 1 of a file is pair 0."


@dataclass(frozen=True, eq=False)
class PromptSets:
    """Pairs in a model, in three sets; no prompt, clean or corrupt, is in two of them."""

    find: PairsInModel
    select: PairsInModel
    test: PairsInModel

    @classmethod
    def of(
        cls,
        model: Model,
        task: str | PromptPairs,
        *,
        n: int | None = None,
        seed: int = 0,
        variant: str | None = None,
        metric: str | Metric | None = None,
    ) -> "PromptSets":
        """The sets of a task: `n` pairs, `n` and 2 `n`; or a quarter, a quarter and a half of own pairs.

        Args:
            n: of pairs of your own it is an upper limit. None takes 64 pairs of a task, and all pairs of your own.
            variant: the one kind of corruption; None takes all that the task has.
            metric: None takes the pairs' own.

        Raises:
            PromptError: fewer than four prompts in a set, pairs whose sides are the same, prompts of unequal
                length within a pair, or `variant` for pairs of your own.
            UnknownName: no such task, variant or metric.
        """
        if n is not None and n < MIN_PROMPTS:
            raise PromptError(f"discover: n={n}; at least {MIN_PROMPTS} pairs are needed in a set.")
        if isinstance(task, PromptPairs):
            if variant is not None:
                raise PromptError(
                    "variant= belongs to a task's name; pairs of your own bring their corruptions."
                )
            # Before they are parted: rows are then numbered as in the file.
            task.check_equal_lengths(EQUAL_LENGTHS)
            parts = _each_once(task).parts((1, 1, 2), seed=seed)
            find, select, test = parts if n is None else _at_most(n, parts, seed)
        else:
            find_task(task)
            n = TASK_PAIRS if n is None else n
            train = load_task(task, model, n=2 * n, seed=seed, split="train", variant=variant)
            find, select = train.parts((1, 1), seed=seed)
            test = load_task(task, model, n=2 * n, seed=seed, split="heldout", variant=variant)
        measure = as_metric(find.metric if metric is None else metric)
        for name, pairs in (("find", find), ("select", select), ("test", test)):
            if len(pairs) < MIN_PROMPTS:
                raise PromptError(
                    f"discover: {len(pairs)} pairs to {name} with, and at least {MIN_PROMPTS} are needed. Give more "
                    f"pairs: {4 * MIN_PROMPTS} that share no prompt make sets of {MIN_PROMPTS}, {MIN_PROMPTS} and "
                    f"{2 * MIN_PROMPTS}."
                )
            _check_sides_differ(pairs)
            pairs.check_equal_lengths(EQUAL_LENGTHS)
            measure.check(pairs)
        # Mean values are read from these alone; with all kinds of activations the stores of the test prompts
        # would take 3 of 6 GB (SmolLM2-135M).
        sites = those_of(model, KINDS_READ)
        sets = [
            PairsInModel.of(model, pairs, metric=measure, sites=sites, seed=seed)
            for pairs in (find, select, test)
        ]
        return cls(*sets)

    @property
    def near_copies(self) -> float:
        """The share of test prompts that differ in one token at most from one that scored or chose."""
        by_length: dict[int, list[list[int]]] = defaultdict(list)
        for prompt_set in (self.find, self.select):
            for tokens in _tokens(prompt_set.pairs):
                by_length[len(tokens)].append(tokens)
        seen = {length: np.array(rows) for length, rows in by_length.items()}
        is_near = [
            len(tokens) in seen and (seen[len(tokens)] != tokens).sum(1).min() <= 1
            for tokens in _tokens(self.test.pairs)
        ]
        return float(np.mean(is_near))


def _tokens(pairs: PromptPairs) -> list[list[int]]:
    """The token ids of each clean prompt."""
    rows = zip(pairs.clean.tokens.tolist(), pairs.clean.lengths.tolist(), strict=True)
    return [tokens[:length] for tokens, length in rows]


def _at_most(n: int, parts: Sequence[PromptPairs], seed: int) -> Iterator[PromptPairs]:
    """`n` pairs of the first two parts and 2 `n` of the third, drawn: a file may be sorted."""
    draw = random.Random(f"at most {seed}")
    for part, most in zip(parts, (n, n, 2 * n), strict=True):
        yield part.select(sorted(draw.sample(range(len(part)), min(most, len(part)))))


def _each_once(pairs: PromptPairs) -> PromptPairs:
    """The first pair of each clean prompt: copies would count as prompts, in every number and interval."""
    # `unique` gives the first index of each.
    first = np.sort(np.unique(pairs.clean.ids, return_index=True)[1]).tolist()
    if len(first) == len(pairs):
        return pairs
    warn(
        f"discover: {len(pairs) - len(first)} of {len(pairs)} pairs repeat the clean prompt of an earlier one and are "
        "left out, because a prompt counts once. Put further corruptions of a prompt into the columns corrupt2, "
        "corrupt3 and so on."
    )
    return pairs.select(first)


def _check_sides_differ(pairs: PromptPairs) -> None:
    """Raise `PromptError` for a pair whose two sides are the same prompt: nothing could make a difference."""
    for name, some in pairs.counterfactuals.items():
        same = [
            i for i, ids in enumerate(zip(some.clean.ids, some.corrupt.ids, strict=True)) if ids[0] == ids[1]
        ]
        if same:
            raise PromptError(
                f"discover: pair {same[0]} has the same prompt on both sides ({name}), so nothing could make a "
                "difference."
            )
