"""From the stream after the last block to a metric: only what the metric reads is normed and unembedded."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.engine.fast.base_run import BaseRun
from workbench.engine.fast.decoder import Decoder, Linear
from workbench.engine.fast.staircase import WalkOutcome
from workbench.metrics.metric import Metric
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts


class Readout:
    """A metric over one batch of examples, on the base run and on edited ones.

    Args:
        pairs: of the batch.
        prompts: the side of them that is edited.
        dtype: of the final norm and the unembedding; None takes the model's own.
        tile: bytes of logits that may be there at a time.
    """

    def __init__(
        self,
        decoder: Decoder,
        metric: Metric,
        pairs: PromptPairs,
        prompts: Prompts,
        *,
        tile: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.decoder, self.metric, self.prompts, self.tile = decoder, metric, prompts, tile
        self.dtype = dtype or decoder.dtype
        rows = metric.rows(pairs) if metric.rowwise else None
        self.pairs = pairs if rows is None else pairs.recoded(rows)
        self.unembed = _part(decoder.unembed, rows, self.dtype)
        self.reference: Tensor | None = None

    @property
    def read(self) -> Int[Tensor, "example"] | None:
        """The one position of each example whose logits are read, or None for several."""
        return self.prompts.at("END") if self.metric.positions == "END" else None

    @cached_property
    def places(self) -> Int[Tensor, "example *step"] | None:
        """The positions of each example whose logits are read, or None for all."""
        return self.metric.positions_read(self.prompts)

    def base_logits(self, base: BaseRun) -> Tensor:
        """What the metric reads of the base run: [example, vocab], [example, step, vocab] or [example, pos, vocab]."""
        stream = base.whole(("resid_pre", self.decoder.shape.n_layers))
        if self.places is not None:
            rows = torch.arange(len(stream), device=stream.device).view(-1, *[1] * (self.places.ndim - 1))
            stream = stream[rows, self.places.to(stream.device)]
        return torch.cat([self.logits(part) for part in self._tiles(stream)])

    def measure(self, logits: Tensor) -> Float[Tensor, "example"]:
        """The metric of one run of the whole batch."""
        return self.metric(logits, self.pairs, self.reference)

    def write(
        self,
        outcomes: Sequence[WalkOutcome],
        table: Float[Tensor, "example element"],
        base: Tensor,
        measured: Tensor,
    ) -> None:
        """Write m(edited) - m(base) of what a walk brought into a table of the batch.

        Args:
            base: the logits of `base_logits`.  measured: [example], the metric of them.
        """
        if self.metric.rowwise:
            self._write_rows(outcomes, table, base, measured)
        else:
            self._write_runs(outcomes, table, base, measured)
        for outcome in outcomes:
            where = outcome.cohort.examples[:, None], torch.tensor(outcome.elements)
            table[where] = table[where].masked_fill(outcome.same.T, 0)

    def _write_rows(
        self, outcomes: Sequence[WalkOutcome], table: Tensor, base: Tensor, measured: Tensor
    ) -> None:
        """Rows of many runs in one call of the metric."""
        for outcome in outcomes:
            chosen = outcome.cohort.examples.repeat(len(outcome.elements))
            stream, late = self._read(outcome)
            rows, examples = self._tiles(stream.flatten(0, 1)), iter(chosen.tolist())
            now = []
            for part in rows:
                mine = list(islice(examples, len(part)))
                reference = None if self.reference is None else self.reference[mine]
                logits = self.logits(part)
                if late is not None:
                    logits = torch.where(late[mine, :, None].to(logits.device), logits, base[mine])
                now.append(self.metric(logits, self.pairs.select(mine), reference))
            change = torch.cat(now) - measured[chosen.to(measured.device)]
            runs = change.view(len(outcome.elements), -1)
            table[outcome.cohort.examples[:, None], torch.tensor(outcome.elements)] = runs.T.to(table)

    def _read(
        self, outcome: WalkOutcome
    ) -> tuple[Float[Tensor, "run example *step d_model"], Bool[Tensor, "row step"] | None]:
        """The stream where it is read; of several positions also which come after the run's first token, of the whole batch."""
        if self.places is None or self.places.ndim == 1:
            return outcome.stream[:, :, 0], None
        cohort, stream = outcome.cohort, outcome.stream
        at = (self.places[cohort.examples] - cohort.start).clamp(min=0).to(stream.device)
        rows = torch.arange(len(at), device=stream.device)[:, None]
        return stream[:, rows, at], self.places >= cohort.start

    def _write_runs(
        self, outcomes: Sequence[WalkOutcome], table: Tensor, base: Tensor, measured: Tensor
    ) -> None:
        """Every run by itself, with the logits of all examples: for functions that may look at several."""
        for j in dict.fromkeys(j for outcome in outcomes for j in outcome.elements):
            logits = base.clone()
            for outcome in outcomes:
                if j in outcome.elements:
                    stream, chosen = (
                        outcome.stream[outcome.elements.index(j)],
                        outcome.cohort.examples.to(base.device),
                    )
                    now = torch.cat([self.logits(part) for part in self._tiles(stream)])
                    if self.read is None:
                        logits[chosen, outcome.cohort.start : outcome.cohort.length] = now
                    else:
                        logits[chosen] = now[:, 0]
            table[:, j] = (self.measure(logits) - measured).to(table)

    def logits(self, stream: Tensor) -> Tensor:
        """The logits of streams after the last block: those rows of the vocabulary that the metric reads."""
        return self.unembed(self.decoder.final_norm(stream.to(self.dtype)))

    def _tiles(self, stream: Tensor) -> Sequence[Tensor]:
        each = self.unembed.weight.shape[1] * stream[0].numel() // stream.shape[-1] * 4 * 4
        return stream.split(max(1, self.tile // max(1, each)))


def _part(unembed: Linear, rows: Tensor | None, dtype: torch.dtype) -> Linear:
    """Those rows of the vocabulary (None: all), in that precision."""
    if rows is not None:
        rows = rows.to(unembed.weight.device)
        bias = None if unembed.bias is None else unembed.bias[rows]
        unembed = Linear(unembed.weight[:, rows], bias)
    bias = None if unembed.bias is None else unembed.bias.to(dtype)
    return replace(unembed, weight=unembed.weight.to(dtype), bias=bias)
