"""What a model can do: its score on held-out prompts of every task that suits its vocabulary.

Read `measure`. It is the only module of the folder that runs a model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.arguments import checked
from workbench.errors import PromptError, UnsuitableTask
from workbench.metrics.continuations import expand
from workbench.metrics.metric import alternatives_logprob, metric
from workbench.models.calls import model_call
from workbench.models.load import check_eval, model_device
from workbench.models.locks import alone
from workbench.models.model import Model
from workbench.models.padding import padding_options
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.tasks.registry import TASKS, Task, load_task
from workbench.text import progress_bar

# Prompts per forward pass: what `tiny` needs for them fits into any machine's memory.
BATCH = 256


@dataclass(frozen=True)
class Score:
    """A model's score on one behaviour.

    Attributes:
        score: share of prompts whose first choice is a right answer (of several tokens: each of them the
            first choice after those before); for greater-than the mean probability of valid minus invalid
            years.
        bar: what `tiny` must reach.
        skipped: why the behaviour could not be measured, or "". `score` is then NaN.
    """

    behaviour: str
    n: int
    score: float
    bar: float
    skipped: str = ""


@checked
@model_call()
def measure(model: Model, *, n: int = 600, seed: int = 0, progress: bool = True) -> list[Score]:
    """A score for every task, on `n` distinct held-out prompts each.

    The prompts are spread over the variants that have a right answer.

    Raises:
        PromptError: `n` is less than 1.
        UnsuitableTask: no task suits the model's vocabulary.
        ModelError: the model is in train mode.
    """
    check_eval(model)
    if n < 1:
        raise PromptError(f"n={n}: at least one prompt is needed.")
    scores = []
    with progress_bar(len(TASKS), "measure", "task", shown=progress) as bar:
        for task in TASKS.values():
            scores.append(_score_of_task(model, task, n, seed))
            bar.update()
    if all(score.skipped for score in scores):
        raise UnsuitableTask("No task suits this model's vocabulary: " + scores[0].skipped)
    return scores


def _score_of_task(model: Model, task: Task, n: int, seed: int) -> Score:
    """The mean score on the held-out prompts of all measured variants of a task."""
    variants = task.measured or task.variants[:1]
    # Rounded up, so that there are at least n prompts.
    n_each = -(-n // len(variants))
    sets = []
    try:
        for variant in variants:
            pairs = load_task(task.name, model, n=n_each, seed=seed, split="heldout", variant=variant)
            sets.append(pairs)
    except UnsuitableTask as error:
        return Score(task.name, 0, float("nan"), task.bar, str(error))
    values = torch.cat([_score(model, task.name, pairs) for pairs in sets])
    return Score(task.name, len(values), round(float(values.mean()), 4), task.bar)


@torch.no_grad()
def _score(model: Model, name: str, pairs: PromptPairs) -> Tensor:
    """[example]: 1 where the first choice is right; for greater-than valid minus invalid probability."""
    if pairs.metric == "sequence_logprob_diff":
        return _score_several_tokens(model, name, pairs)
    scores = []
    by_probability = TASKS[name].metric == "prob_diff"
    measured = metric("prob_diff" if by_probability else "rank")
    for start in range(0, len(pairs), BATCH):
        batch = pairs.select(slice(start, start + BATCH))
        logits = measured.read(_logits(model, batch.clean), batch.clean)
        values = measured(logits, batch).cpu()
        if not by_probability:
            # Rank 0 counts as right: no other token has a larger logit.
            values = (values == 0).float()
        scores.append(values)
    return torch.cat(scores)


def _logits(model: Model, prompts: Prompts) -> Tensor:
    """[example, pos, vocab]; padding is not attended to, and hooks of other threads are not met."""
    options = padding_options(model, prompts.lengths, prompts.tokens.shape[1])
    with alone(model):
        return model(prompts.tokens.to(model_device(model)), **options)


def _score_several_tokens(model: Model, name: str, pairs: PromptPairs) -> Tensor:
    """The same for answers of several tokens."""
    # A row is a prompt followed by one of its answers: right ones have a positive weight.
    rows, total = expand(model, pairs, "sequence_logprob_diff"), torch.zeros(len(pairs))
    is_right, by_probability = rows.weight > 0, TASKS[name].metric == "prob_diff"
    for start in range(0, len(rows.pairs), BATCH):
        chosen = slice(start, start + BATCH)
        batch = rows.pairs.select(chosen)
        logits = rows.metric.read(_logits(model, batch.clean), batch.clean).float().cpu()
        is_token = batch.answers >= 0  # padding is -1 and no token
        if by_probability:
            probabilities = alternatives_logprob(logits, batch.answers).exp() * is_token.any(-1)
            values = probabilities.sum(1) * torch.where(is_right[chosen], 1.0, -1.0)
        else:
            first_choice = logits.argmax(-1)[:, None, : batch.answers.shape[2]]
            n_read = first_choice.shape[2]
            agrees = (first_choice == batch.answers[..., :n_read]) | ~is_token[..., :n_read]
            is_chosen = agrees.all(-1) & is_token.any(-1)
            values = (is_chosen.any(1) & is_right[chosen]).float()
        total.index_add_(0, rows.owner[chosen], values)
    # An example has a row per answer: it is right when one of them is chosen.
    if by_probability:
        return total
    return total.clamp(max=1)
