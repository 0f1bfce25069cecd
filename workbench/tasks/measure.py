"""What a model can do: its score on held-out prompts of every task that suits its vocabulary."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import PromptError, UnsuitableTask
from workbench.models.load import check_eval, model_device
from workbench.tasks.metrics import metric
from workbench.tasks.pairs import PromptPairs
from workbench.tasks.registry import TASKS, load_task

BATCH = 256


@dataclass(frozen=True)
class Score:
    """A model's score on one behaviour.

    Attributes:
        score: share of prompts whose first choice is a right answer; for greater-than the mean probability of valid
            minus invalid years.
        bar: what `tiny` must reach.
        skipped: why the behaviour could not be measured, or "". `score` is then NaN.
    """

    behaviour: str
    n: int
    score: float
    bar: float
    skipped: str = ""


def measure(model: Any, *, n: int = 600, seed: int = 0, progress: bool = True) -> list[Score]:
    """A score for every task, on `n` distinct held-out prompts each (spread over the variants that have an answer)."""
    check_eval(model)
    if n < 1:
        raise PromptError(f"n={n}: at least one prompt is needed.")
    scores = []
    for name in tqdm(TASKS, desc="measure", unit="task", disable=None if progress else True, leave=False):
        task = TASKS[name]
        variants = task.measured or task.variants[:1]
        try:
            sets = [load_task(name, model, n=-(-n // len(variants)), seed=seed, split="heldout", variant=v) for v in variants]
        except UnsuitableTask as error:
            scores.append(Score(name, 0, float("nan"), task.bar, str(error)))
            continue
        values = torch.cat([_score(model, name, pairs) for pairs in sets])
        scores.append(Score(name, len(values), round(float(values.mean()), 4), task.bar))
    if all(score.skipped for score in scores):
        raise UnsuitableTask("No task suits this model's vocabulary: " + scores[0].skipped)
    return scores


@torch.no_grad()
def _score(model: Any, name: str, pairs: PromptPairs) -> Tensor:
    """[example]: 1 where the first choice is right; for greater-than valid minus invalid probability."""
    parts = []
    measured = metric("prob_diff" if TASKS[name].metric == "prob_diff" else "rank")
    for start in range(0, len(pairs), BATCH):
        part = pairs.select(slice(start, start + BATCH))
        logits = measured.read(model(part.clean.tokens.to(model_device(model))), part.clean)
        values = measured(logits, part).cpu()
        parts.append(values if measured.name == "prob_diff" else (values == 0).float())
    return torch.cat(parts)
