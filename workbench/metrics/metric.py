"""How an outcome is measured, per example.

`Metric` is the type, `metric` makes one, `BUILT_IN` lists the built-in ones.

Below, l are the logits at the last position (`END`), p their softmax; right and wrong are the alternatives of
an example.

| name | formula | unit | better |
|---|---|---|---|
| `logit_diff` | mean of l over right - mean of l over wrong | logits | higher |
| `prob_diff` | sum of p over right - sum of p over wrong | probability | higher |
| `kl` | KL(p of the clean run, p) = sum over the vocabulary of p_clean (log p_clean - log p) | nats | lower |
| `nll` | -log(sum of p over right) | nats | lower |
| `rank` | how many tokens have a higher logit than the best right one | places below the top | lower |
| `accuracy` | 1 if the best right logit is above the best wrong one, else 0 | share | higher |
| `sequence_logprob` | mean over right answers of log p(answer tokens, one after the other) | nats | higher |
| `sequence_logprob_diff` | that of the right answers - that of the wrong ones | nats | higher |

Metrics are frozen objects that are not bound to prompts. A metric is called with the logits it reads, the
pairs they belong to, and the logits of the clean run (`reference`). The built-in ones read `END` and get
`[example, vocab]`; a callable of your own gets `[example, pos, vocab]`, or, wrapped by
`metric(fn, positions="END")`, `[example, vocab]`.

The two `sequence_` metrics read answers of several tokens. Each token of an answer is read after those before
it, so every answer needs a run of its own (answers that differ in their last token alone share one):
`metrics.continuations` makes those runs. How *circuits* are measured, faithfulness, is in `evaluation`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.arguments import called, checked
from workbench.errors import MetricError, NotFinite, UnknownName
from workbench.finite import is_finite
from workbench.names import MetricName
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts

Function = Callable[[Tensor, PromptPairs, Tensor | None], Tensor]


@checked
@dataclass(frozen=True)
class Metric:
    """A named measure of a run.

    Attributes:
        function: `(logits, pairs, reference) -> [example]`.
        positions: "END" (logits are [example, vocab]), "all" ([example, pos, vocab]; equal lengths only) or
            "continuation" ([example, step, vocab] from `END` to the last position).
        needs: which of the pairs' tables it reads, `answers` and `wrong`: at least one alternative, and
            unless it reads a continuation, one token each.
        whole_vocabulary: whether it reads every row of the vocabulary or only those of the tables.
        needs_reference: whether it compares with the clean run. Its gradient is then 0 there: nothing can be
            attributed.
        higher_is_better: whether the behaviour raises it; nll and rank fall, and so does the distance to the
            clean run.
        rowwise: whether each example's number depends on its own row alone, so that rows of many runs may be
            measured together; otherwise the function is called once per run.
        across_examples: whether an example's number depends on other examples too, as in `logits -
            logits.mean(0)`: all are then measured at once, and a call whose memory does not hold them is
            refused. Without either, a function is tried on halves of the examples before it is given slices.
        unit: of the result.
    """

    name: str
    function: Function
    positions: Literal["END", "all", "continuation"] | str = "END"
    needs: tuple[Literal["answers", "wrong"], ...] = ()
    whole_vocabulary: bool = True
    needs_reference: bool = False
    higher_is_better: bool = True
    unit: str = ""
    rowwise: bool = False
    across_examples: bool = False

    def __repr__(self) -> str:
        unit = f" in {self.unit}" if self.unit else ""
        better = "higher" if self.higher_is_better else "lower"
        return f"<Metric {self.name}{unit}, read at {self.positions}, {better} is better>"

    def __post_init__(self) -> None:
        if self.rowwise and self.across_examples:
            raise MetricError(
                f"The metric {self.name!r} is rowwise or across_examples, not both: an example's number "
                "depends on its own row alone, or on others too."
            )

    @property
    def reads_answer_tokens(self) -> bool:
        """Whether it reads answers of several tokens, with a run for each."""
        return self.positions == "continuation"

    def rows(self, pairs: PromptPairs) -> Tensor | None:
        """The vocabulary rows it reads, or None for all of them."""
        if self.whole_vocabulary:
            return None
        # The unembedding of these rows alone is far less work than that of a large vocabulary.
        tokens = torch.cat([getattr(pairs, table).flatten() for table in self.needs])
        return torch.unique(tokens[tokens >= 0])

    def check(self, pairs: PromptPairs) -> None:
        """Raise `MetricError` when these prompts cannot be measured with it."""
        if self.positions == "all" and not (
            bool((pairs.clean.lengths == pairs.clean.lengths[0]).all()) and pairs.equal_lengths
        ):
            raise MetricError(
                f"The metric {self.name!r} reads every position, and these prompts differ in length. "
                "Use prompts of one length, "
                "or wb.metric(fn, positions='END') for one that reads the last position."
            )
        for table in self.needs:
            self._check_table("answer" if table == "answers" else "wrong answer", getattr(pairs, table))

    def check_attributable(self, base: str = "clean") -> None:
        """Raise `MetricError` when the gradient says nothing: the metric compares that run with itself."""
        if self.needs_reference and base == "clean":
            raise MetricError(
                f"The metric {self.name!r} compares with the clean run, so its gradient there is zero and "
                "every score would be noise. Use logit_diff, prob_diff or nll, or the exact method."
            )

    def _check_table(self, word: str, table: Tensor) -> None:
        # Reading the first token of several would measure another word without a sign of it.
        long = (table >= 0).sum(-1) > 1
        if bool(long.any()) and not self.reads_answer_tokens:
            example = int(long.any(-1).nonzero()[0])
            tokens = [int(t) for t in table[example][long[example]][0] if t >= 0]
            raise MetricError(
                f"The metric {self.name!r} reads one token, and the {word} of example {example} has "
                f"{len(tokens)} (ids {tokens}). "
                "Choose words that are one token in this vocabulary, or metric='sequence_logprob_diff'."
            )
        none = (table >= 0).flatten(1).sum(1) == 0
        if bool(none.any()):
            example = int(none.nonzero()[0])
            raise MetricError(
                f"The metric {self.name!r} needs the {word} of every example; example {example} has none."
            )

    def read(self, logits: Float[Tensor, "example pos vocab"], prompts: Prompts) -> Tensor:
        """The logits that it reads.

        [example, vocab] at each prompt's `END`, [example, step, vocab] of a continuation, or all of them.
        """
        positions = self.positions_read(prompts)
        if positions is None:
            return logits
        rows = torch.arange(len(prompts), device=logits.device)
        # [example, 1] against [example, step], so that each step reads its own example.
        rows = rows.view(-1, *[1] * (positions.ndim - 1))
        return logits[rows, positions.to(logits.device)]

    def positions_read(self, prompts: Prompts) -> Int[Tensor, "example *step"] | None:
        """The positions that it reads: [example], or [example, step] of a continuation; None for all."""
        if self.positions == "all":
            return None
        return prompts.from_end() if self.reads_answer_tokens else prompts.at("END")

    def __call__(
        self, logits: Tensor, pairs: PromptPairs, reference: Tensor | None = None
    ) -> Float[Tensor, "example"]:
        """The measure of each example, in float32 (float64 stays).

        Raises:
            NotFinite: the logits or the metric.
            MetricError: the function does not return one number per example, or the clean run's logits are
                missing.
        """
        if self.needs_reference and reference is None:
            raise MetricError(
                f"The metric {self.name!r} compares with the clean run: give its logits as reference."
            )
        if reference is not None and not is_finite(reference):
            raise NotFinite(
                f"The clean run, with which {self.name!r} compares, has logits that are not finite."
            )
        # Half precision would lose the digits that effects, differences of metrics, are made of.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if not is_finite(logits):
            bad = int((~torch.isfinite(logits)).flatten(1).any(1).nonzero()[0])
            raise NotFinite(
                f"The logits of example {bad} are not finite. "
                "Check the edit (a scale or a constant that is too large) and the model's dtype.",
                example=bad,
            )
        label = f"The function of the metric {self.name!r}"
        measured = called(label, self.function, logits, pairs, reference, error=MetricError)
        if not isinstance(measured, Tensor) or tuple(measured.shape) != (len(pairs),):
            shape = tuple(measured.shape) if isinstance(measured, Tensor) else type(measured).__name__
            raise MetricError(
                f"The metric {self.name!r} returned {shape} for {len(pairs)} examples. "
                "It must return one number per example, a tensor of shape [example]; "
                "averaging is yours to do afterwards."
            )
        if not bool(torch.isfinite(measured).all()):
            bad = int((~torch.isfinite(measured)).nonzero()[0])
            raise NotFinite(
                f"The metric {self.name!r} is not a finite number for example {bad}, though its logits are.",
                place=f"the metric {self.name!r}",
                example=bad,
            )
        return measured


GivenMetric = MetricName | Metric | Callable[..., Tensor]
"""What `metric=` takes: the name of one in `BUILT_IN`, a metric, or a function `logits -> [example]`."""


@checked
def metric(
    given: GivenMetric,
    *,
    positions: Literal["END", "all"] | str | None = None,
    across_examples: bool = False,
) -> Metric:
    """A metric from a name, a metric, or a function of your own `logits -> [example]`.

    Args:
        given: the name of one in `BUILT_IN`, a metric (which comes back as it is), or a function.
        positions: what a function gets: "all" [example, pos, vocab] (the default) or "END" [example, vocab].
        across_examples: whether a function compares examples, and so needs all of them at once. Without it a
            function that does is noticed where memory is short, by what it makes of half of the examples.

    Raises:
        UnknownName: no metric of that name.
        MetricError: `positions` or `across_examples` with a metric that has its own.

    >>> metric("logit_diff").unit
    'logits'
    """
    if positions not in (None, "END", "all"):
        raise UnknownName("positions", positions, ("END", "all"))
    own_function = callable(given) and not isinstance(given, Metric)
    if positions is not None and not own_function:
        raise MetricError(
            f"positions={positions!r} is for functions of your own; {given!s} reads the positions it needs."
        )
    if across_examples and not own_function:
        raise MetricError(
            f"across_examples is for functions of your own; {given!s} says itself whether it compares them."
        )
    if isinstance(given, Metric):
        return given
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        return Metric(
            name, lambda logits, pairs, reference: given(logits), positions=positions or "all",
            across_examples=across_examples,
        )  # fmt: skip
    if given not in BUILT_IN:
        raise UnknownName("metric", given, BUILT_IN)
    return BUILT_IN[given]


def metric_for(given: GivenMetric | None, pairs: PromptPairs) -> Metric:
    """The metric that is asked for; None asks for the pairs' own.

    >>> metric_for(None, PromptPairs.of([[5, 7]], [[4, 7]], [9], [8])).name
    'logit_diff'
    """
    return metric(pairs.metric if given is None else given)


def _at(logits: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """[example, alternative]: the values at each alternative's first token, and which alternatives are real.

    The others are padding.
    """
    tokens = table[:, :, 0].to(logits.device)
    if int(tokens.max()) >= logits.shape[1]:
        raise MetricError(f"Token id {int(tokens.max())} is outside the vocabulary of {logits.shape[1]}.")
    # Padding is -1, which cannot be gathered; what is read in its place is masked by the caller.
    return logits.gather(1, tokens.clamp(min=0)), tokens >= 0


def alternatives_mean(logits: Tensor, table: Tensor) -> Tensor:
    """[example]: the mean of `logits` [example, vocab] over the alternatives of `table`.

    `table` is [example, alternative, token].
    """
    values, real = _at(logits, table)
    return (values * real).sum(1) / real.sum(1)


def alternatives_mass(logits: Tensor, table: Tensor) -> Tensor:
    """[example]: the probability of any of the alternatives."""
    values, real = _at(logits.softmax(-1), table)
    return (values * real).sum(1)


def best_alternative(logits: Tensor, table: Tensor) -> Tensor:
    """[example]: the highest logit among the alternatives."""
    values, real = _at(logits, table)
    return values.masked_fill(~real, float("-inf")).max(1).values


def alternatives_logprob(
    logits: Float[Tensor, "example step vocab"], table: Int[Tensor, "example alternative token"]
) -> Float[Tensor, "example alternative"]:
    """The summed log-probability of the tokens of each alternative, read step by step.

    0 for alternatives that are padding.

    Raises:
        MetricError: more tokens than steps, or an id outside the vocabulary.
    """
    longest = int((table >= 0).sum(-1).max())
    if longest > logits.shape[1]:
        raise MetricError(
            f"Answers have up to {longest} tokens and the runs go on for {logits.shape[1]}: "
            "answers of several tokens need runs of their own, "
            "workbench.metrics.continuations.expand(model, pairs, metric)."
        )
    if int(table.max()) >= logits.shape[2]:
        raise MetricError(f"Token id {int(table.max())} is outside the vocabulary of {logits.shape[2]}.")
    tokens = table[:, :, :longest].to(logits.device)
    # Log-probabilities add up over steps, so no product of small numbers underflows.
    steps = logits[:, :longest].log_softmax(-1)
    # [example, vocab, step] at [example, alternative, step]: each token of an alternative at its own step
    logprobs = steps.transpose(1, 2).gather(1, tokens.clamp(min=0))
    return (logprobs * (tokens >= 0)).sum(-1)


def _sequence(logits: Tensor, table: Tensor) -> Tensor:
    """[example]: the mean of the alternatives' log-probabilities."""
    real = (table >= 0).any(-1).to(logits.device)
    return alternatives_logprob(logits, table).sum(1) / real.sum(1)


def _sequence_logprob(logits: Tensor, pairs: PromptPairs, reference: Any) -> Tensor:
    return _sequence(logits, pairs.answers)


def _sequence_logprob_diff(logits: Tensor, pairs: PromptPairs, reference: Any) -> Tensor:
    return _sequence(logits, pairs.answers) - _sequence(logits, pairs.wrong)


def _logit_diff(logits: Tensor, pairs: PromptPairs, reference: Any) -> Tensor:
    return alternatives_mean(logits, pairs.answers) - alternatives_mean(logits, pairs.wrong)


def _prob_diff(logits: Tensor, pairs: PromptPairs, reference: Any) -> Tensor:
    return alternatives_mass(logits, pairs.answers) - alternatives_mass(logits, pairs.wrong)


def _kl(logits: Tensor, pairs: PromptPairs, reference: Tensor | None) -> Tensor:
    assert reference is not None
    clean, current = reference.to(logits.dtype).log_softmax(-1), logits.log_softmax(-1)
    return (clean.exp() * (clean - current)).sum(-1)


def _nll(logits: Tensor, pairs: PromptPairs, reference: Any) -> Tensor:
    values, real = _at(logits.log_softmax(-1), pairs.answers)
    # log of a sum of probabilities, from their logarithms: stable where all of them are tiny.
    return -values.masked_fill(~real, float("-inf")).logsumexp(1)


def rank_of_best(logits: Tensor, table: Tensor) -> Tensor:
    """[example]: how many tokens of the vocabulary are ahead of the best alternative."""
    return (logits > best_alternative(logits, table)[:, None]).sum(1).to(logits.dtype)


def _rank(logits: Tensor, pairs: PromptPairs, reference: Any) -> Tensor:
    return rank_of_best(logits, pairs.answers)


def _accuracy(logits: Tensor, pairs: PromptPairs, reference: Any) -> Tensor:
    return (best_alternative(logits, pairs.answers) > best_alternative(logits, pairs.wrong)).to(logits.dtype)


ANSWERS: tuple[Literal["answers", "wrong"], ...] = ("answers",)
BOTH: tuple[Literal["answers", "wrong"], ...] = ("answers", "wrong")
BUILT_IN: dict[str, Metric] = {
    built_in.name: built_in
    for built_in in (
        Metric("logit_diff", _logit_diff, needs=BOTH, whole_vocabulary=False, unit="logits", rowwise=True),
        Metric("prob_diff", _prob_diff, needs=BOTH, unit="probability", rowwise=True),
        Metric("kl", _kl, needs_reference=True, higher_is_better=False, unit="nats", rowwise=True),
        Metric("nll", _nll, needs=ANSWERS, higher_is_better=False, unit="nats", rowwise=True),
        Metric("rank", _rank, needs=ANSWERS, higher_is_better=False, unit="places below the top",
               rowwise=True),
        Metric("accuracy", _accuracy, needs=BOTH, whole_vocabulary=False, unit="share", rowwise=True),
        Metric("sequence_logprob", _sequence_logprob, "continuation", needs=ANSWERS, unit="nats",
               rowwise=True),
        Metric("sequence_logprob_diff", _sequence_logprob_diff, "continuation", needs=BOTH, unit="nats",
               rowwise=True),
    )
}  # fmt: skip
