"""`MeasuredRuns`: the base run and edited runs of one side of some pairs, measured.

`RunCost` says what edited runs take.

Both engines' sweeps are given a `MeasuredRuns`. It runs on hooks what is run once: base runs, references,
the other run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from workbench.engine.fast.cohorts import Element
from workbench.engine.first_not_finite import located
from workbench.engine.hooked.forward import Write, forward
from workbench.engine.inputs import check_answers, check_context
from workbench.engine.memory import memory_budget, rows_per_forward
from workbench.engine.read_out import check_read_out, read_out
from workbench.errors import MetricError
from workbench.metrics.metric import Metric
from workbench.models.load import check_eval, model_device
from workbench.models.model import Model
from workbench.names import other_side
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Shape

TRIAL_EXAMPLES, TRIAL_TOLERANCE = 8, 1e-5
"""Examples on which a metric is tried, at least, and how far rounding may move it, as a share of its size."""
ElementsOf = Callable[[Sequence[int]], Sequence[Element]]
"""The examples of a batch → its edited runs, bound to these examples: what both engines are given."""


@dataclass(frozen=True)
class RunCost:
    """What edited runs take.

    Attributes:
        runs: edited prompts that are run.
        skipped: edited prompts that provably change nothing, and so are not run.
        walks: through the layers, of many runs each (on hooks: forward passes of all prompts).
        token_layers: tokens times blocks that are computed, the base run included.
        flops: floating-point operations of their matrix products.
        peak_bytes: working memory at a time, estimated.
    """

    runs: int = 0
    skipped: int = 0
    walks: int = 0
    token_layers: float = 0
    flops: float = 0
    peak_bytes: int = 0

    def plus(self, other: "RunCost") -> "RunCost":
        """Both, one after the other."""
        # Memory is freed between the two, so the larger peak counts and not their sum.
        summed = ("runs", "skipped", "walks", "token_layers", "flops")
        numbers = {name: getattr(self, name) + getattr(other, name) for name in summed}
        return RunCost(**numbers, peak_bytes=max(self.peak_bytes, other.peak_bytes))


def forward_flops(shape: Shape) -> int:
    """FLOPs of one token in a forward pass, without attention's scores; MLPs are counted as if ungated."""
    # q and the output have all heads, k and v the shared ones.
    heads = shape.d_model * shape.d_head * (2 * shape.n_heads + 2 * shape.n_kv_heads)
    # Two operations, a product and a sum, for each weight.
    return 2 * (shape.n_layers * (heads + 2 * shape.d_model * shape.d_mlp) + shape.d_model * shape.d_vocab)


@dataclass(frozen=True)
class MeasuredRuns:
    """Base and edited runs of one side of some pairs, measured.

    Attributes:
        side: "clean" or "corrupt".
        budget: bytes that one forward pass may use.
        dtype: of the final norm and the unembedding; None for the model's own.
    """

    model: Model
    pairs: PromptPairs
    side: str
    metric: Metric
    budget: int | None = None
    dtype: torch.dtype | None = None

    def check(self) -> None:
        """Raise when these runs cannot be made or measured.

        Raises:
            ModelError: the model is in train mode, or a precision is asked for and its logits are more than
                norm and unembedding.
            MetricError: the metric cannot read the pairs.
            PromptError: a prompt is longer than the context.
        """
        check_eval(self.model)
        self.metric.check(self.pairs)
        check_context(self.model, self.prompts)
        check_context(self.model, self.other)
        if self.dtype is not None:
            check_read_out(self.model)
        check_answers(self.model, self.pairs)

    @cached_property
    def memory(self) -> int:
        """Bytes of working memory: as given, else 1 GiB on a CPU and half of the free memory of a GPU."""
        return memory_budget(model_device(self.model), self.budget)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt of either side."""
        return int(max(self.prompts.lengths.max(), self.other.lengths.max()))

    @property
    def prompts(self) -> Prompts:
        """The prompts of the run that is edited."""
        return self.pairs.side(self.side)

    @property
    def other(self) -> Prompts:
        """The prompts of the other side."""
        return self.pairs.side(other_side(self.side))

    @cached_property
    def per_forward(self) -> int:
        """How many prompts one forward pass holds."""
        return rows_per_forward(self.model, int(self.prompts.lengths.max()), budget=self.budget)

    @cached_property
    def reference(self) -> Tensor | None:
        """What the metric reads of the clean run, where it compares with that run."""
        if not self.metric.needs_reference:
            return None
        # The clean run whichever side is edited: a metric that compares says how far from it a run is.
        return self._read(self.pairs.clean)

    # Cached, as `reference` is: every batch of edited runs subtracts it.
    @cached_property
    def measured(self) -> Tensor:
        """[example]: the metric of the base run."""
        return self.plain(self.prompts)

    def batches(self) -> list[range]:
        """Examples that fit into one forward pass, in order.

        Raises:
            MetricError: there are several batches, and the metric compares examples.
        """
        batches = self._slices(len(self.prompts))
        self.check_slices(len(batches))
        return batches

    def check_slices(self, n_slices: int) -> None:
        """Raise `MetricError` where a metric that compares examples would be given slices of them."""
        if n_slices > 1 and self.comparison is not None:
            raise MetricError(
                f"The metric {self.metric.name!r} needs all {len(self.pairs)} examples at once "
                f"({self.comparison}), and they do not fit into the memory of this call: they would be "
                f"measured in {n_slices} slices. Raise budget= (bytes), or use fewer or shorter prompts."
            )

    @cached_property
    def comparison(self) -> str | None:
        """In words, why an example's measure depends on the other examples; None where it does not.

        A function that does not say is tried once: on some examples of the base run, and on their two halves.
        """
        if self.metric.rowwise:
            return None
        if self.metric.across_examples:
            return "across_examples=True"
        # Logits of all positions take much memory, so that two examples have to do.
        least = 2 if self.metric.positions == "all" else TRIAL_EXAMPLES
        n = min(len(self.pairs), max(least, self.per_forward))
        if n < 2:
            return None
        # Spread over all of them: equal neighbours would hide a comparison.
        chosen = torch.linspace(0, len(self.pairs) - 1, n).round().long().tolist()
        pairs, prompts = self.pairs.select(chosen), self.prompts.select(chosen)
        read = self._read(prompts)
        reference = None if self.reference is None else self.reference[chosen]

        def measured(rows: slice) -> Tensor:
            """[example]: the measure of some of the rows by themselves."""
            return self.metric(read[rows], pairs.select(rows), None if reference is None else reference[rows])

        try:
            together = measured(slice(0, n))
            apart = torch.cat([measured(slice(0, n // 2)), measured(slice(n // 2, n))])
        except Exception as error:  # a function of the user's own may raise anything
            return f"on {n} of them, or on half of these, it fails: {type(error).__name__}: {error}"
        worst = float((together - apart).abs().max())
        if worst > TRIAL_TOLERANCE * float(together.abs().max()):
            return f"on {n} of them and on their halves it differs by {worst:.2g}"
        return None

    def _slices(self, n: int) -> list[range]:
        """The numbers up to n, as many at a time as fit into a forward pass."""
        return [range(first, min(first + self.per_forward, n)) for first in range(0, n, self.per_forward)]

    def _read(self, prompts: Prompts) -> Tensor:
        """What the metric reads of a run without an edit, [example, ...]."""
        read = []
        for examples in self._slices(len(prompts)):
            batch = prompts.select(examples)
            read.append(self.metric.read(self.logits(batch), batch))
        return torch.cat(read)

    def logits(self, prompts: Prompts, copies: int = 1, writes: Sequence[Write] = ()) -> Tensor:
        """[copy * example, pos, vocab] of a forward pass, in the precision asked for."""
        if self.dtype is None:
            return forward(self.model, prompts, copies=copies, writes=writes).logits
        # The bridge would norm in the model's own precision: the last stream is read out by hand.
        last = ("resid_post", Shape.of(self.model).n_layers - 1)
        stream = forward(self.model, prompts, copies=copies, writes=writes, record=[last]).recorded[last]
        return read_out(self.model, stream.to(self.dtype))

    def measure(self, logits: Tensor, prompts: Prompts, examples: Sequence[int]) -> Tensor:
        """[example]: the metric of logits [example, pos, vocab] of these examples."""
        reference = None if self.reference is None else self.reference[list(examples)]
        return self.metric(self.metric.read(logits, prompts), self.pairs.select(examples), reference)

    def plain(self, prompts: Prompts) -> Tensor:
        """[example]: the metric of prompts as they are, without an edit."""
        measured = []
        with located(self.model, prompts):
            for examples in self.batches():
                batch = prompts.select(examples)
                measured.append(self.measure(self.logits(batch), batch, examples))
        return torch.cat(measured)

    def distance(self) -> Tensor:
        """[example]: m(other run) - m(base)."""
        # On the CPU, where tables of effects are: each normalizes by it.
        return (self.plain(self.other) - self.measured).cpu()
