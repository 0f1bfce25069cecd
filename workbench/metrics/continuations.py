"""Answers of several tokens: what has to be run to measure them, and how the measures of those runs combine.

A token of an answer is read behind those before it, so each answer asks for a run of its own, prompt + answer; answers
that differ in their last token alone share one. A metric of pairs is then a weighted sum over such *rows*, and as effects,
edge scores and circuits are linear in the metric, every table of rows combines in the same way:

    rows = expand(model, pairs, metric)                  # a metric of one token: the pairs themselves
    bound = bind(model, rows, value, side="clean")       # workbench.engine.continuations: writes at prompt positions only
    table = ...rows.pairs, rows.metric, bound...         # [row, ...]
    result = rows.combine(table)                         # [example, ...]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from workbench.errors import MetricError, PromptError
from workbench.metrics.metric import BUILT_IN, Metric
from workbench.metrics.metric import metric as as_metric
from workbench.prompts.pairs import PromptPairs, padded_answers
from workbench.prompts.prompts import Prompts
from workbench.sites import Shape

ROW_METRIC = "sequence_logprob"


@dataclass(frozen=True, eq=False)
class Expansion:
    """The rows that pairs become under a metric.

    Attributes:
        examples: the pairs that were expanded, one for each example.
        pairs: of the rows. Named positions and `END` are those of the prompt; its answers are the row's own.
        metric: of a row.
        owner: [row], the example that a row belongs to.
        weight: [row], of its measure in that of the example.
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
        """The weighted sum over the rows of each example; NaN where a row is."""
        if self.plain:
            return table
        weight = self.weight.to(table).view(-1, *[1] * (table.ndim - 1))
        combined = table.new_zeros(len(self.examples), *table.shape[1:])
        return combined.index_add(0, self.owner.to(table.device), table * weight)


def expand(model: Any, pairs: PromptPairs, metric: str | Metric | Callable[..., Tensor]) -> Expansion:
    """The rows of pairs under a metric; the pairs themselves unless it reads answers of several tokens.

    Raises:
        MetricError: no answers where it needs them, or a metric of one's own that reads a continuation.
        PromptError: an answer that does not fit into the context behind its prompt, has a gap, or would follow something
            else than the last token.
    """
    measure = as_metric(metric)
    if not measure.reads_answer_tokens:
        return Expansion(pairs, pairs, measure, torch.arange(len(pairs)), torch.ones(len(pairs)))
    if measure not in BUILT_IN.values():
        raise MetricError(
            f"The metric {measure.name!r} reads a continuation, which only sequence_logprob and its difference can."
        )
    measure.check(pairs)
    for side in (pairs.clean, pairs.corrupt):
        elsewhere = (side.at("END") != side.lengths - 1).nonzero()
        if len(elsewhere):
            raise PromptError(
                f"Prompt {int(elsewhere[0])} goes on behind its END, where the answers would have to follow."
            )
    owner: list[int] = []
    weight: list[float] = []
    answers: list[list[list[int]]] = []
    for sign, table in ((1, "answers"), (-1, "wrong")):
        for example, listed in enumerate(
            _alternatives(getattr(pairs, table)) if table in measure.needs else ()
        ):
            shared: dict[tuple[int, ...], list[list[int]]] = {}
            for tokens in listed:
                shared.setdefault(tuple(tokens[:-1]), []).append(tokens)
            for alike in shared.values():
                owner.append(example)
                weight.append(sign * len(alike) / len(listed))
                answers.append(alike)
    given = [alike[0][:-1] for alike in answers]
    clean, corrupt = (_continued(model, side, owner, given) for side in (pairs.clean, pairs.corrupt))
    table = padded_answers(answers)
    rows = PromptPairs(clean, corrupt, table, torch.full_like(table[:, :1, :1], -1), pairs.provenance)
    return Expansion(
        pairs, rows, BUILT_IN[ROW_METRIC], torch.tensor(owner), torch.tensor(weight, dtype=torch.float64)
    )


def _alternatives(table: Int[Tensor, "example alternative token"]) -> list[list[list[int]]]:
    """The tokens of every real alternative of each example."""
    listed = [[[token for token in tokens if token >= 0] for tokens in example] for example in table.tolist()]
    gaps = ((table[:, :, :-1] < 0) & (table[:, :, 1:] >= 0)).flatten(1).any(1).nonzero()
    if len(gaps):
        raise PromptError(
            f"An answer of example {int(gaps[0])} has a gap: its tokens come first and -1 fills up the rest."
        )
    return [[tokens for tokens in example if tokens] for example in listed]


def _continued(model: Any, prompts: Prompts, owner: Sequence[int], given: Sequence[Sequence[int]]) -> Prompts:
    """Prompts with tokens behind them; their named positions stay."""
    room = Shape.of(model).n_ctx
    rows = [
        [*prompts.tokens[i, : int(prompts.lengths[i])].tolist(), *tokens]
        for i, tokens in zip(owner, given, strict=True)
    ]
    for i, row, tokens in zip(owner, rows, given, strict=True):
        if len(row) > room:
            raise PromptError(
                f"Example {i}: a prompt of {len(row) - len(tokens)} tokens and {len(tokens)} of an answer do not fit into the "
                f"model's context of {room}."
            )
    strings = [(*prompts.strings[i], *map(str, tokens)) for i, tokens in zip(owner, given, strict=True)]
    positions = [
        {name: int(where[i]) for name, where in prompts.positions.items() if where[i] >= 0} for i in owner
    ]
    return Prompts.of(rows, strings=strings, positions=positions, bos=prompts.bos)
