"""What a model can do: its scores on prompts of your own, or on held-out prompts of every task that suits it.

Read `measure`, and `competent`, which keeps the prompts that a model gets right. It is the only module of the
folder that runs a model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.arguments import checked
from workbench.errors import PromptError, UnsuitableTask
from workbench.metrics.continuations import Expansion, expand
from workbench.metrics.metric import BUILT_IN, alternatives_logprob, metric
from workbench.models.calls import model_call
from workbench.models.load import check_eval, model_device, model_name
from workbench.models.locks import alone
from workbench.models.model import Model
from workbench.models.padding import padding_options
from workbench.progress import progress_bar
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.statistics import mean_interval, share_interval
from workbench.tasks.registry import load_task
from workbench.tasks.task import TASKS, Task
from workbench.text import wrapped

# Prompts per forward pass, and numbers in its logits: 256 MB, which any machine has.
BATCH, MOST_LOGITS = 256, 2**26
NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A mean or a share over prompts and its 95 % interval; NaN where there is nothing to estimate it from."""

    mean: float = NAN
    low: float = NAN
    high: float = NAN

    @classmethod
    def of(cls, values: Float[Tensor, "example"]) -> "Estimate":
        """The mean of values, one for each prompt, with its bootstrap interval. One prompt has no interval."""
        low, high = mean_interval(values.double().numpy())
        return cls(float(values.double().mean()), float(low), float(high))

    @classmethod
    def of_share(cls, hits: Bool[Tensor, "example"]) -> "Estimate":
        """The share of prompts that are hits, with Wilson's interval, as if no prompt were a copy of another.

        One prompt has no interval.
        """
        share = float(hits.double().mean())
        if len(hits) < 2:
            return cls(share)
        return cls(share, *share_interval(int(hits.sum()), len(hits)))


@dataclass(frozen=True)
class Score:
    """A model's score on one set of prompts.

    Attributes:
        behaviour: the task, or the file that the prompts are from.
        n: prompts.
        score: the share of prompts whose first choice is a right answer; for greater-than the mean
            probability of valid minus invalid years.
        bar: the `score` that `tiny` must reach; NaN for prompts of your own.
        skipped: why the behaviour could not be measured, or "". All numbers are then NaN.
        first_choice: share of prompts where no token of the whole vocabulary is likelier than a right answer;
            of several tokens: each of them is the first choice after those before.
        right_above_wrong: share of prompts on which `metric` is above 0 in the clean run.
        metric: the metric of the prompts: how far right answers are above wrong ones.
        clean: the mean metric of the clean run.
        corrupt: counterfactual → the mean metric of its run, with the right and wrong answers of the clean
            prompt.
    """

    behaviour: str
    n: int
    score: float
    bar: float
    skipped: str = ""
    first_choice: Estimate = field(default_factory=Estimate)
    right_above_wrong: Estimate = field(default_factory=Estimate)
    metric: str = ""
    clean: Estimate = field(default_factory=Estimate)
    corrupt: Mapping[str, Estimate] = field(default_factory=dict)

    def __repr__(self) -> str:
        if self.skipped:
            return wrapped(f"<Score {self.behaviour}: not measured. {self.skipped}>")
        right, first = self.right_above_wrong.mean, self.first_choice.mean
        return wrapped(
            f"<Score {self.behaviour}: right above wrong {right:.0%}, first choice {first:.0%} of {self.n} prompts; "
            f"{self.metric} {self.clean.mean:.3g}>"
        )


@checked
@model_call()
def measure(
    model: Model,
    pairs: PromptPairs | Sequence[PromptPairs] | None = None,
    *,
    n: int = 600,
    seed: int = 0,
    progress: bool = True,
) -> list[Score]:
    """A score for each set of prompts; without one, for every task on `n` distinct held-out prompts.

    A circuit of a behaviour that the model does not have explains nothing, so measure first: below 85 % right
    above wrong, find other prompts, or keep those it gets right with `competent`. The prompts of a task are
    spread over the variants that have a right answer.

    Args:
        pairs: one set of prompts or several; None: every task.
        n, seed: of the prompts of tasks, where no pairs are given.

    Raises:
        PromptError: `n` is less than 1, or no set of pairs is given.
        UnsuitableTask: no task suits the model's vocabulary.
        ModelError: the model is in train mode.

    >>> import workbench as wb
    >>> tiny = wb.load_model("tiny")
    >>> [score] = measure(tiny, wb.load_task("ioi", tiny, n=16), progress=False)
    >>> score.right_above_wrong.mean, list(score.corrupt)
    (1.0, ['swap', 'abc'])
    """
    check_eval(model)
    if n < 1:
        raise PromptError(f"n={n}: at least one prompt is needed.")
    sets = [pairs] if isinstance(pairs, PromptPairs) else pairs
    if sets is not None and not sets:
        raise PromptError("pairs: there is no set of prompts. Give one, or None for every task.")
    if sets is None:
        jobs = [partial(_score_of_task, model, task, n, seed) for task in TASKS.values()]
    else:
        jobs = [partial(_score, model, [some]) for some in sets]
    scores = []
    with progress_bar(len(jobs), "measure", "set", shown=progress) as bar:
        for job in jobs:
            scores.append(job())
            bar.update()
    if all(score.skipped for score in scores):
        raise UnsuitableTask("No task suits this model's vocabulary: " + scores[0].skipped)
    return scores


@checked
@model_call()
def competent(model: Model, pairs: PromptPairs) -> PromptPairs:
    """The pairs whose clean prompt the model gets right: its metric there is above 0, right above wrong.

    How many they are stands in `provenance["competent"]` ("41 of 64") and in the attrs of what is measured
    with them. Chosen by the clean run alone, they say nothing of how a model behaves on all prompts.

    Raises:
        PromptError: the model gets none of them right.
        ModelError: the model is in train mode.

    >>> import workbench as wb
    >>> tiny = wb.load_model("tiny")
    >>> competent(tiny, wb.load_task("ioi", tiny, n=16)).provenance["competent"]
    '16 of 16'
    """
    check_eval(model)
    values = clean_run(model, pairs).values
    kept = (values > 0).nonzero().flatten().tolist()
    if not kept:
        name = pairs.provenance.get("task", "own prompts")
        raise PromptError(
            f"{model_name(model)!r} gets none of the {len(pairs)} prompts of {name!r} right: the mean "
            f"{pairs.metric} of its clean runs is {float(values.mean()):.3g}. Use prompts that it can do; "
            "measure(model, pairs) says how well it does."
        )
    count = f"{len(kept)} of {len(pairs)}"
    chosen = pairs.select(kept)
    return replace(chosen, provenance={**pairs.provenance, "competent": count})


def _score_of_task(model: Model, task: Task, n: int, seed: int) -> Score:
    """The score on the held-out prompts of all measured variants of a task."""
    variants = task.measured or task.variants[:1]
    # Rounded up, so that there are at least n prompts.
    n_each = -(-n // len(variants))
    sets = []
    try:
        for variant in variants:
            pairs = load_task(task.name, model, n=n_each, seed=seed, split="heldout", variant=variant)
            sets.append(pairs)
    except UnsuitableTask as error:
        return Score(task.name, 0, NAN, task.bar, str(error))
    return _score(model, sets)


@dataclass(frozen=True, eq=False)
class CleanRun:
    """What the clean prompts give, [example] each.

    Attributes:
        values: the metric of the pairs.
        is_first: 1 where the first choice is a right answer.
        probability: of any right answer minus any wrong one.
    """

    values: Tensor
    is_first: Tensor
    probability: Tensor


def _score(model: Model, sets: Sequence[PromptPairs]) -> Score:
    """The score on several sets of prompts of one behaviour together."""
    runs = [clean_run(model, pairs) for pairs in sets]
    values, first, probability = (
        torch.cat([getattr(run, name) for run in runs]) for name in ("values", "is_first", "probability")
    )
    corrupt: dict[str, Estimate] = {}
    for pairs in sets:
        for name, one in pairs.counterfactuals.items():
            corrupt[name] = Estimate.of(_values(model, one, "corrupt"))
    behaviour = str(sets[0].provenance.get("task", "own prompts"))
    task = TASKS.get(behaviour)
    scored = probability if task is not None and task.metric == "prob_diff" else first
    return Score(
        behaviour,
        len(values),
        round(float(scored.mean()), 4),
        NAN if task is None else task.bar,
        first_choice=Estimate.of_share(first > 0),
        right_above_wrong=Estimate.of_share(values > 0),
        metric=sets[0].metric,
        clean=Estimate.of(values),
        corrupt=corrupt,
    )


def clean_run(model: Model, pairs: PromptPairs) -> CleanRun:
    """What the clean prompts give; `measure` adds the runs of the counterfactuals."""
    if metric(pairs.metric).reads_answer_tokens:
        return _run_of_several_tokens(model, pairs)
    values, first, probability = [], [], []
    for batch, logits in _batches(model, pairs, "clean"):
        at_end = BUILT_IN["rank"].read(logits, batch.clean)
        values.append(_measured(pairs.metric, logits, batch, batch.clean))
        # Rank 0 counts as right: no other token has a larger logit.
        first.append((BUILT_IN["rank"](at_end, batch) == 0).float().cpu())
        probability.append(BUILT_IN["prob_diff"](at_end, batch).cpu())
    return CleanRun(*map(torch.cat, (values, first, probability)))


def _values(model: Model, pairs: PromptPairs, side: str) -> Float[Tensor, "example"]:
    """The metric of the pairs in the run of one side."""
    rows = expand(model, pairs, pairs.metric)
    values = []
    for batch, logits in _batches(model, rows.pairs, side):
        values.append(_measured(rows.metric.name, logits, batch, batch.side(side)))
    return rows.combine(torch.cat(values))


def _measured(name: str, logits: Tensor, batch: PromptPairs, prompts: Prompts) -> Float[Tensor, "example"]:
    measure = BUILT_IN[name]
    return measure(measure.read(logits, prompts), batch).cpu()


@torch.no_grad()
def _batches(model: Model, pairs: PromptPairs, side: str) -> Iterator[tuple[PromptPairs, Tensor]]:
    """Some pairs at a time and their logits [example, pos, vocab] in the run of one side.

    Padding is not attended to, and hooks of other threads are not met.
    """
    width = pairs.side(side).tokens.shape[1]
    n_rows = max(1, min(BATCH, MOST_LOGITS // (width * int(model.cfg.d_vocab))))
    for start in range(0, len(pairs), n_rows):
        batch = pairs.select(slice(start, start + n_rows))
        prompts = batch.side(side)
        options = padding_options(model, prompts.lengths, prompts.tokens.shape[1])
        with alone(model):
            logits = model(prompts.tokens.to(model_device(model)), **options)
        yield batch, logits


def _run_of_several_tokens(model: Model, pairs: PromptPairs) -> CleanRun:
    """The same for answers of several tokens."""
    # A row is a prompt followed by one of its answers: right ones have a positive weight.
    rows = expand(model, pairs, "sequence_logprob_diff")
    values, first, probability = [], [], []
    for batch, logits in _batches(model, rows.pairs, "clean"):
        steps = rows.metric.read(logits, batch.clean).float().cpu()
        is_token = batch.answers >= 0  # padding is -1 and no token
        values.append(rows.metric(steps, batch))
        probability.append((alternatives_logprob(steps, batch.answers).exp() * is_token.any(-1)).sum(1))
        choice = steps.argmax(-1)[:, None, : batch.answers.shape[2]]
        n_read = choice.shape[2]
        agrees = (choice == batch.answers[..., :n_read]) | ~is_token[..., :n_read]
        first.append((agrees.all(-1) & is_token.any(-1)).any(1).float())
    is_right = rows.weight > 0
    sign = torch.where(is_right, 1.0, -1.0)
    return CleanRun(
        rows.combine(torch.cat(values)),
        # An example has a row per answer: it is right when one of them is chosen.
        _sums(rows, torch.cat(first) * is_right).clamp(max=1),
        _sums(rows, torch.cat(probability) * sign),
    )


def _sums(rows: Expansion, table: Float[Tensor, "row"]) -> Float[Tensor, "example"]:
    """The sum over the rows of each example."""
    return torch.zeros(len(rows.examples)).index_add_(0, rows.owner, table.float())
