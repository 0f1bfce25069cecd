"""From the stream after the last block to a metric: only what the metric reads is normed and unembedded.

Read `Readout` first. It knows a metric and one batch of examples; where the edited streams come from it does
not know.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.engine.fast.base_run import BaseRun
from workbench.engine.fast.decoder import Linear
from workbench.engine.fast.staircase import WalkOutcome
from workbench.errors import NotFinite
from workbench.metrics.metric import Metric
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts


def read_position(metric: Metric, prompts: Prompts) -> Int[Tensor, "example"] | None:
    """The one position of each example whose logits are read, or None for several."""
    if metric.positions == "END":
        return prompts.at("END")
    return None


class Readout:
    """A metric over one batch of examples, on the base run and on edited ones.

    Args:
        pairs: of the batch.
        base: the base run of the side that is edited.
        clean: the base run of the clean side, for metrics that compare with it; None: `base` is that run.
        dtype: of the final norm and the unembedding; None takes the model's own.
        tile: bytes of logits that may be there at a time.

    Attributes:
        base_logits: what the metric reads of the base run: [example, vocab], [example, step, vocab] or
            [example, pos, vocab], where vocab are the rows that the metric reads.
        reference: the clean run's logits as the metric reads them, where it compares with them.
    """

    def __init__(
        self,
        metric: Metric,
        pairs: PromptPairs,
        base: BaseRun,
        *,
        tile: int,
        clean: BaseRun | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.decoder, self.metric, self.base, self.tile = base.decoder, metric, base, tile
        self.dtype = dtype or self.decoder.dtype
        vocab_rows, self.pairs = None, pairs
        # A metric that judges all examples at once may look at any row of the vocabulary.
        if metric.rowwise:
            vocab_rows = metric.rows(pairs)
        if vocab_rows is not None:
            # With fewer rows of the vocabulary, the pairs' tokens become indices into those rows.
            self.pairs = pairs.recoded(vocab_rows)
        self.unembed = _rows_of(self.decoder.unembed, vocab_rows, self.dtype)
        self.base_logits = self._logits_of(base)
        self.reference: Tensor | None = None
        if metric.needs_reference:
            self.reference = self.base_logits if clean is None else self._logits_of(clean)

    @cached_property
    def read(self) -> Int[Tensor, "example"] | None:
        """The one position of each example whose logits are read, or None for several."""
        return read_position(self.metric, self.base.prompts)

    @cached_property
    def places(self) -> Int[Tensor, "example *step"] | None:
        """The positions of each example whose logits are read, or None for all."""
        return self.metric.positions_read(self.base.prompts)

    def _logits_of(self, run: BaseRun) -> Tensor:
        stream = run.whole(("resid_pre", self.decoder.shape.n_layers))
        places = self.metric.positions_read(run.prompts)
        if places is not None:
            rows = torch.arange(len(stream), device=stream.device).view(-1, *[1] * (places.ndim - 1))
            stream = stream[rows, places.to(stream.device)]
        return torch.cat([self.logits(tile) for tile in self._tiles(stream)])

    def measure(self, logits: Tensor) -> Float[Tensor, "example"]:
        """The metric of one run of the whole batch."""
        return self.metric(logits, self.pairs, self.reference)

    def write(
        self,
        outcomes: Sequence[WalkOutcome],
        effects: Float[Tensor, "example element"],
        base_metric: Float[Tensor, "example"],
    ) -> None:
        """Write m(edited) - m(base) of a walk's runs into a table of the batch.

        Args:
            base_metric: m(base), the measure of `base_logits`.
        """
        if not self.metric.rowwise:
            self._write_runs(outcomes, effects, base_metric)
            return
        self._write_rows(outcomes, effects, base_metric)
        for outcome in outcomes:
            # An edit that writes what is there has an effect of exactly 0: its run differs from the base run
            # at most in the last digits, since it was computed in other products.
            cells = outcome.cohort.examples[:, None], torch.tensor(outcome.elements)
            effects[cells] = effects[cells].masked_fill(outcome.unchanged.T, 0)

    def _write_rows(self, outcomes: Sequence[WalkOutcome], effects: Tensor, base_metric: Tensor) -> None:
        """The metric judges each example by itself: the examples of many runs share a call of it."""
        for outcome in outcomes:
            # Run after run, which is the order of the streams' rows.
            examples = outcome.cohort.examples.repeat(len(outcome.elements))
            stream, changed_steps = self._read(outcome)
            n_examples, n_measured = len(outcome.cohort.examples), 0
            remaining = iter(examples.tolist())
            measured = []
            for tile in self._tiles(stream.flatten(0, 1)):
                rows = list(islice(remaining, len(tile)))
                reference = None
                if self.reference is not None:
                    reference = self.reference[rows]
                logits = self.logits(tile)
                if changed_steps is not None:
                    # A run computes nothing before its first token: there the base run's logits stand in.
                    changed = changed_steps[rows, :, None].to(logits.device)
                    logits = torch.where(changed, logits, self.base_logits[rows])
                try:
                    measured.append(self.metric(logits, self.pairs.select(rows), reference))
                except NotFinite as error:
                    error.run = outcome.elements[(n_measured + (error.example or 0)) // n_examples]
                    raise
                n_measured += len(rows)
            change = torch.cat(measured) - base_metric[examples.to(base_metric.device)]
            by_run = change.view(len(outcome.elements), -1)
            cells = outcome.cohort.examples[:, None], torch.tensor(outcome.elements)
            effects[cells] = by_run.T.to(effects)

    def _read(
        self, outcome: WalkOutcome
    ) -> tuple[Float[Tensor, "run example *step d_model"], Bool[Tensor, "batch_example step"] | None]:
        """The stream where it is read, and which steps of each batch example are at the run's own tokens."""
        if self.places is None or self.places.ndim == 1:
            return outcome.stream[:, :, 0], None
        cohort, stream = outcome.cohort, outcome.stream
        # Clamped, since steps before the run's first token are replaced by the base run's.
        steps = (self.places[cohort.examples] - cohort.start).clamp(min=0).to(stream.device)
        rows = torch.arange(len(steps), device=stream.device)[:, None]
        return stream[:, rows, steps], self.places >= cohort.start

    def _write_runs(self, outcomes: Sequence[WalkOutcome], effects: Tensor, base_metric: Tensor) -> None:
        """Every run by itself, with the logits of all examples: for functions that may compare examples."""
        elements: dict[int, None] = {}  # a run is in several cohorts, and is measured once
        for outcome in outcomes:
            elements |= dict.fromkeys(outcome.elements)
        for j in elements:
            # Examples in which nothing changes keep the base run's logits, bit by bit: the effect on them may
            # still be one, since the metric may compare them with examples that do change.
            logits = self.base_logits.clone()
            for outcome in outcomes:
                if j not in outcome.elements:
                    continue
                run, cohort = outcome.elements.index(j), outcome.cohort
                changed = (~outcome.unchanged[run]).to(logits.device)
                examples = cohort.examples.to(logits.device)[changed]
                if not len(examples):
                    continue
                stream = outcome.stream[run][changed.to(outcome.stream.device)]
                edited = torch.cat([self.logits(tile) for tile in self._tiles(stream)])
                if self.read is None:
                    logits[examples, cohort.start : cohort.length] = edited
                else:
                    logits[examples] = edited[:, 0]
            try:
                effects[:, j] = (self.measure(logits) - base_metric).to(effects)
            except NotFinite as error:
                error.run = j
                raise

    def logits(self, stream: Tensor) -> Tensor:
        """The logits of streams after the last block: those rows of the vocabulary that the metric reads."""
        # Widened before the norm: in 16 bits its rounding would be as large as a small effect.
        return self.unembed(self.decoder.final_norm(stream.to(self.dtype)))

    def _tiles(self, stream: Tensor) -> Sequence[Tensor]:
        n_tokens = stream[0].numel() // stream.shape[-1]
        # 4 bytes a number, and up to four such tables: logits, their float32 copy and what the metric makes.
        bytes_each = self.unembed.weight.shape[1] * n_tokens * 4 * 4
        return stream.split(max(1, self.tile // max(1, bytes_each)))


def _rows_of(unembed: Linear, vocab_rows: Tensor | None, dtype: torch.dtype) -> Linear:
    """The unembedding of those rows of the vocabulary (None: all), in that precision."""
    if vocab_rows is not None:
        unembed = unembed.columns(vocab_rows.to(unembed.weight.device))
    return unembed.to(dtype)
