"""What a model can do: its score on held-out prompts of every task that suits its vocabulary."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import PromptError, UnsuitableTask
from workbench.metrics.continuations import expand
from workbench.metrics.metric import alternatives_logprob, metric
from workbench.models.load import check_eval, model_device
from workbench.prompts.pairs import PromptPairs
from workbench.tasks.registry import TASKS, load_task

BATCH = 256


@dataclass(frozen=True)
class Score:
    """A model's score on one behaviour.

    Attributes:
        score: share of prompts whose first choice is a right answer (of several tokens: each of them the
            first choice behind those before); for greater-than the mean probability of valid minus invalid
            years.
        bar: what `tiny` must reach.
        skipped: why the behaviour could not be measured, or "". `score` is then NaN.
    """

    behaviour: str
    n: int
    score: float
    bar: float
    skipped: str = ""


def measure(model: Any, *, n: int = 600, seed: int = 0, progress: bool = True) -> list[Score]:
    """A score for every task, on `n` distinct held-out prompts each (spread over the variants that have an
    answer).
    """
    check_eval(model)
    if n < 1:
        raise PromptError(f"n={n}: at least one prompt is needed.")
    scores = []
    for name in tqdm(TASKS, desc="measure", unit="task", disable=None if progress else True, leave=False):
        task = TASKS[name]
        variants = task.measured or task.variants[:1]
        try:
            sets = [
                load_task(name, model, n=-(-n // len(variants)), seed=seed, split="heldout", variant=v)
                for v in variants
            ]
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
    if pairs.metric == "sequence_logprob_diff":
        return _score_continued(model, name, pairs)
    parts = []
    measured = metric("prob_diff" if TASKS[name].metric == "prob_diff" else "rank")
    for start in range(0, len(pairs), BATCH):
        part = pairs.select(slice(start, start + BATCH))
        logits = measured.read(model(part.clean.tokens.to(model_device(model))), part.clean)
        values = measured(logits, part).cpu()
        parts.append(values if measured.name == "prob_diff" else (values == 0).float())
    return torch.cat(parts)


def _score_continued(model: Any, name: str, pairs: PromptPairs) -> Tensor:
    """The same for answers of several tokens."""
    rows, total = expand(model, pairs, "sequence_logprob_diff"), torch.zeros(len(pairs))
    right, mass = rows.weight > 0, TASKS[name].metric == "prob_diff"
    for start in range(0, len(rows.pairs), BATCH):
        part, here = rows.pairs.select(slice(start, start + BATCH)), slice(start, start + BATCH)
        logits = rows.metric.read(model(part.clean.tokens.to(model_device(model))), part.clean).float().cpu()
        real = part.answers >= 0
        if mass:
            found = alternatives_logprob(logits, part.answers).exp() * real.any(-1)
            values = found.sum(1) * torch.where(right[here], 1.0, -1.0)
        else:
            first = logits.argmax(-1)[:, None, : part.answers.shape[2]]
            chosen = ((first == part.answers[..., : first.shape[2]]) | ~real[..., : first.shape[2]]).all(
                -1
            ) & real.any(-1)
            values = (chosen.any(1) & right[here]).float()
        total.index_add_(0, rows.owner[here], values)
    return total if mass else total.clamp(max=1)
