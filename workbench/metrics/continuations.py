"""Answers of several tokens: what has to be run to measure them, and how the measures of those runs combine.

A token of an answer is read after those before it, so each answer asks for a run of its own, prompt + answer;
answers that differ in their last token alone share one. A metric of pairs is then a weighted sum over such
*rows*, and as effects, edge scores and circuits are linear in the metric, every table of rows combines in the
same way:

    rows = expand(model, pairs, metric)                  # a metric of one token: the pairs themselves
    bound = bind(model, rows, value, side="clean")       # of the engine: writes at prompt positions only
    table = ...                                          # [row, ...], of rows.pairs, rows.metric and bound
    result = rows.combine(table)                         # [example, ...]

`expand` returns an `Expansion`. What is written in a run, and where, is the engine's matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from workbench.errors import MetricError, PromptError
from workbench.metrics.metric import BUILT_IN, GivenMetric, Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.model import Model
from workbench.prompts.answers import padded_answers
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Shape

ROW_METRIC = "sequence_logprob"
"""What is measured of a row; differences are in the weights of rows."""


@dataclass(frozen=True, eq=False)
class Expansion:
    """The rows that pairs become under a metric.

    Attributes:
        examples: the pairs that were expanded, one for each example.
        pairs: of the rows. Named positions and `END` are those of the prompt; its answers are the row's own.
        metric: of a row.
        owner: [row], the example that a row belongs to.
        weight: [row], the factor of a row's measure in the sum that is the measure of its example.
    """

    examples: PromptPairs
    pairs: PromptPairs
    metric: Metric
    owner: Int[Tensor, "row"]
    weight: Float[Tensor, "row"]

    @property
    def plain(self) -> bool:
        """Whether the rows are the pairs themselves."""
        return self.pairs is self.examples

    def combine(self, table: Shaped[Tensor, "row *axes"]) -> Shaped[Tensor, "example *axes"]:
        """The weighted sum over the rows of each example; NaN where one of the rows is NaN."""
        if self.plain:
            return table
        weight = self.weight.to(table).view(-1, *[1] * (table.ndim - 1))
        # `index_add` sums the rows of an example; plain indexing would keep the last.
        combined = table.new_zeros(len(self.examples), *table.shape[1:])
        return combined.index_add(0, self.owner.to(table.device), table * weight)


def expand(model: Model, pairs: PromptPairs, metric: GivenMetric) -> Expansion:
    """The rows of pairs under a metric; the pairs themselves unless it reads answers of several tokens.

    Raises:
        MetricError: no answers where it needs them, or a metric of one's own that reads a continuation.
        PromptError: an answer that does not fit into the context after its prompt, or would follow something
            else than the last token.
    """
    measure = as_metric(metric)
    if not measure.reads_answer_tokens:
        return Expansion(pairs, pairs, measure, torch.arange(len(pairs)), torch.ones(len(pairs)))
    # A metric of your own might not be a weighted sum over answers, which is all that rows can combine.
    if measure not in BUILT_IN.values():
        raise MetricError(
            f"The metric {measure.name!r} reads a continuation, which only sequence_logprob and "
            "its difference can."
        )
    measure.check(pairs)
    for side in (pairs.clean, pairs.corrupt):
        not_last = (side.at("END") != side.lengths - 1).nonzero()
        if len(not_last):
            raise PromptError(
                f"Prompt {int(not_last[0])} goes on after its END, where the answers would have to follow."
            )
    terms = _terms(pairs, measure)
    prefixes = [term.answers[0][:-1] for term in terms]
    owner = [term.example for term in terms]
    clean, corrupt = (_with_answers(model, side, owner, prefixes) for side in (pairs.clean, pairs.corrupt))
    table = padded_answers([term.answers for term in terms])
    # A row has right answers only: the sign of a wrong one is in its weight.
    rows = PromptPairs(clean, corrupt, table, torch.full_like(table[:, :1, :1], -1), pairs.provenance)
    weight = torch.tensor([term.weight for term in terms], dtype=torch.float64)
    return Expansion(pairs, rows, BUILT_IN[ROW_METRIC], torch.tensor(owner), weight)


@dataclass(frozen=True)
class _AnswerTerm:
    """Answers of one example that share all tokens but the last, and so one run; `weight` is their weight."""

    example: int
    weight: float
    answers: list[list[int]]


def _terms(pairs: PromptPairs, metric: Metric) -> list[_AnswerTerm]:
    """The terms of the metric: right answers first, then wrong ones, each in the order of examples."""
    terms: list[_AnswerTerm] = []
    for sign, table in ((1, "answers"), (-1, "wrong")):
        if table not in metric.needs:
            continue
        for example, listed in enumerate(_alternatives(getattr(pairs, table))):
            by_prefix: dict[tuple[int, ...], list[list[int]]] = {}
            # The last token is read from the run and not given to it, so answers that differ there share one.
            for tokens in listed:
                by_prefix.setdefault(tuple(tokens[:-1]), []).append(tokens)
            for answers in by_prefix.values():
                terms.append(_AnswerTerm(example, sign * len(answers) / len(listed), answers))
    return terms


def _alternatives(table: Int[Tensor, "example alternative token"]) -> list[list[list[int]]]:
    """The tokens of every real alternative of each example, without padding."""
    listed: list[list[list[int]]] = []
    for example in table.tolist():
        without_padding = [[token for token in tokens if token >= 0] for tokens in example]
        listed.append([tokens for tokens in without_padding if tokens])
    return listed


def _with_answers(
    model: Model, prompts: Prompts, owner: Sequence[int], prefixes: Sequence[Sequence[int]]
) -> Prompts:
    """Each row's prompt with answer tokens after it; named positions and `END` stay the prompt's."""
    context = Shape.of(model).n_ctx
    rows, strings, positions = [], [], []
    for i, tokens in zip(owner, prefixes, strict=True):
        n_prompt = int(prompts.lengths[i])
        if n_prompt + len(tokens) > context:
            raise PromptError(
                f"Example {i}: a prompt of {n_prompt} tokens and {len(tokens)} of an answer do not fit into "
                f"the model's context of {context}."
            )
        rows.append([*prompts.tokens[i, :n_prompt].tolist(), *tokens])
        strings.append((*prompts.strings[i], *map(str, tokens)))
        # -1 marks a name that this example does not have.
        positions.append({name: int(index[i]) for name, index in prompts.positions.items() if index[i] >= 0})
    return Prompts.of(
        rows, strings=strings, positions=positions, bos=prompts.bos, tokenizer=prompts.tokenizer
    )
