"""`PromptSets`: three sets of prompts that share none, to find a circuit with, to choose its size, to test it.

Scores are made on `find`, criteria choose on `select`, and what is reported is measured on `test`: the prompts
that chose a circuit flatter it. Nothing is measured in this module.
"""

from dataclasses import dataclass

from workbench.errors import PromptError
from workbench.experiment import PairsInModel
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.tasks.registry import find_task, load_task

FEWEST = 4
"""Prompts of a set, at least: an interval over fewer says nothing."""
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
        n: int = 64,
        seed: int = 0,
        variant: str | None = None,
        metric: str | Metric | None = None,
    ) -> "PromptSets":
        """The sets of a task: `n` pairs, `n` and 2 `n`; or a quarter, a quarter and a half of own pairs.

        Args:
            variant: the one kind of corruption; None takes all that the task has.
            metric: None takes the pairs' own.

        Raises:
            PromptError: fewer than four prompts in a set, pairs whose sides are the same, prompts of unequal
                length within a pair, or `variant` for pairs of your own.
            UnknownName: no such task, variant or metric.
        """
        if isinstance(task, PromptPairs):
            if variant is not None:
                raise PromptError(
                    "variant= belongs to a task's name; pairs of your own bring their corruptions."
                )
            # Before they are parted: rows are then numbered as in the file.
            task.check_equal_lengths(EQUAL_LENGTHS)
            find, select, test = task.parts((1, 1, 2), seed=seed)
        else:
            find_task(task)
            train = load_task(task, model, n=2 * n, seed=seed, split="train", variant=variant)
            find, select = train.parts((1, 1), seed=seed)
            test = load_task(task, model, n=2 * n, seed=seed, split="heldout", variant=variant)
        measure = as_metric(find.metric if metric is None else metric)
        for name, pairs in (("find", find), ("select", select), ("test", test)):
            if len(pairs) < FEWEST:
                raise PromptError(
                    f"discover: {len(pairs)} pairs to {name} with, and at least {FEWEST} are needed. Give more "
                    f"pairs: {4 * FEWEST} that share no prompt make sets of {FEWEST}, {FEWEST} and {2 * FEWEST}."
                )
            _check_sides_differ(pairs)
            pairs.check_equal_lengths(EQUAL_LENGTHS)
            measure.check(pairs)
        sets = [PairsInModel.of(model, pairs, metric=measure, seed=seed) for pairs in (find, select, test)]
        return cls(*sets)


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
