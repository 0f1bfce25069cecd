"""`Circuits`: the metric of many circuits on the same prompts, on the engine that can run them.

Search, faithfulness, checks and masks all measure circuits through it. `Circuits.measure` takes any number of
circuits; a `CircuitBatch` is some of the prompts, prepared once for all of them. This module does not know
what a measurement is used for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound
from workbench.engine.circuit_check import check_circuits
from workbench.engine.continuations import answer_attrs, answers_attend, bind
from workbench.engine.edge_mixing import check_classes
from workbench.engine.fast.circuits import CircuitWalk
from workbench.engine.fast.readout import Readout
from workbench.engine.fast.staircase import TILE
from workbench.engine.first_not_finite import located
from workbench.engine.hooked.circuits import check_hooks_suffice, circuit_logits, circuits_per_forward
from workbench.engine.hooked.forward import forward
from workbench.engine.inputs import check_pairs
from workbench.engine.memory import memory_budget, rows_per_forward
from workbench.engine.runs import MeasuredRuns
from workbench.engine.select import fast_decoder
from workbench.engine.threads import few_threads
from workbench.engine.values import Value
from workbench.errors import CircuitError
from workbench.metrics.continuations import expand
from workbench.metrics.metric import Metric
from workbench.models.load import check_eval, model_device
from workbench.progress import progress_bar
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Shape


@dataclass(frozen=True, eq=False)
class CircuitBatch:
    """Some of the rows (examples, or prompts that go on with an answer), prepared for many runs.

    Attributes:
        weight: [row], the factor of a row's measure in the sum that is the measure of its example.
        walk, readout: on the fast engine; None on hooks.
        logits: what the metric reads of the clean run, where something needs it.
        tile: bytes of logits that may be there at a time.
    """

    examples: range
    pairs: PromptPairs
    weight: Tensor
    bound: Bound
    walk: CircuitWalk | None
    readout: Readout | None
    logits: Tensor | None
    tile: int = TILE
    # Made when they are first read: most measurements read one metric alone.
    _further: dict[Metric, Readout] = field(default_factory=dict)
    _clean_logits: dict[str, Tensor] = field(default_factory=dict)

    def further(self, metric: Metric) -> Readout:
        """What reads another metric of the same runs; made once."""
        assert self.walk is not None
        if metric not in self._further:
            self._further[metric] = Readout(metric, self.pairs, self.walk.base, tile=self.tile)
        return self._further[metric]

    def measured_by(self, metric: Metric, stream: Float[Tensor, "example pos d_model"]) -> Tensor:
        """[example]: another metric of a stream after the last block, read at `END` or along the answer."""
        assert self.walk is not None
        readout = self.further(metric)
        if self.walk.read is not None:
            return readout.measure(readout.logits(stream[:, 0]))
        return readout.measure(readout.logits(self._at_places(readout, stream)))

    def _at_places(self, readout: Readout, stream: Float[Tensor, "example pos d_model"]) -> Tensor:
        """[example, (step,) d_model]: a stream where a metric reads it."""
        assert self.walk is not None
        assert readout.places is not None
        # Places count from 0 and the stream from the walk's start, so its rows lie at place - start.
        places = readout.places.to(stream.device) - self.walk.start
        rows = torch.arange(len(stream), device=stream.device).view(-1, *[1] * (places.ndim - 1))
        return stream[rows, places]

    def measured(self, stream: Float[Tensor, "example pos d_model"]) -> Float[Tensor, "example"]:
        """The metric of a stream after the last block.

        The stream holds the one position that is read, or every token from the first changed one on.
        """
        assert self.walk is not None
        assert self.readout is not None
        if self.walk.read is not None:
            # The walk has already left out all but the one position that the metric reads.
            return self.readout.measure(self.readout.logits(stream[:, 0]))
        if self.readout.places is not None:
            return self.readout.measure(self.readout.logits(self._at_places(self.readout, stream)))
        logits = self.readout.logits(stream)
        # Tokens before the first change have the logits of the clean run, exactly.
        if self.walk.start:
            assert self.logits is not None
            logits = torch.cat((self.logits[:, : self.walk.start], logits), 1)
        return self.readout.measure(logits)

    def hooked(self, metric: Metric, logits: Float[Tensor, "example pos vocab"]) -> Float[Tensor, "example"]:
        """The metric of the logits of a run with hooks."""
        return metric(metric.read(logits, self.pairs.clean), self.pairs, self.logits)

    def hooked_by(
        self, metric: Metric, logits: Float[Tensor, "example pos vocab"], model: Any
    ) -> Float[Tensor, "example"]:
        """Another metric of the logits of a run with hooks, read at `END` or along the answer."""
        clean, places = self.pairs.clean, metric.positions
        if metric.needs_reference and places not in self._clean_logits:
            self._clean_logits[places] = metric.read(forward(model, clean).logits, clean)
        return metric(metric.read(logits, clean), self.pairs, self._clean_logits.get(places))


# Working memory of one pass of circuits on a CPU, even where the budget allows more. Passes that fill 1 GiB
# run out of the processor's caches: with 128 MiB `evaluate` on `tiny` takes 3.75 s and not 7.3, with 256 MiB
# a curve of GPT-2 small 2.8 s and not 7.1. Only the circuits of a pass are fewer: the prompts of a batch stay
# as many as the budget allows, because each batch works out its base run and its patched values anew.
CIRCUIT_PASS_BYTES = 2**27


class Circuits:
    """The metric of any number of circuits of one graph, on the same prompts and counterfactual value.

    Args:
        value: the counterfactual value, which edges outside of a circuit carry.
        budget: bytes of working memory.

    Raises:
        CircuitError: the graph is of another model.
        ModelError: the model is in train mode; only hooks can run it and they cannot run this graph (see
            `check_hooks_suffice`); or circuits of it are not run right (see `circuit_check`).
        MetricError: the metric does not fit the pairs.
        PromptError: a pair's prompts differ in length, or lack a position of the graph.
        StoreError: the value's store is of another model or of other prompts.
        EditError: `value` would change nothing.
    """

    def __init__(
        self,
        model: Any,
        graph: Graph,
        pairs: PromptPairs,
        *,
        value: Value,
        metric: Metric,
        budget: int | None = None,
    ) -> None:
        check_eval(model)
        memory_budget(model_device(model), budget)
        if graph.shape != Shape.of(model):
            raise CircuitError(f"These edges are of another model: {graph}; this one has {Graph.of(model)}.")
        check_pairs(model, pairs)
        check_classes(graph, pairs.clean)
        metric.check(pairs)
        self.model, self.pairs, self.value, self.budget = model, pairs, value, budget
        # Answers of several tokens are runs of their own, so rows are not pairs
        # then; with other metrics they are.
        self.pairs_metric, self.expansion = metric, expand(model, pairs, metric)
        # The same edges, but what of them is a dead end depends on the answers and on the value.
        self.graph = replace(graph, answers_attend=answers_attend(self.expansion, value))
        self.metric, self.bound = self.expansion.metric, bind(model, self.expansion, value)
        self.longest = int(self.expansion.pairs.clean.lengths.max())
        self.decoder, self.why = None, "the value needs hooks"
        # The fast engine computes all counterfactual values before it runs, so they may not depend on a run.
        if value.absolute:
            self.decoder, self.why = fast_decoder(model, self.longest)
        if self.decoder is None:
            check_hooks_suffice(model, graph)
        check_circuits(model, fast=self.decoder is not None)

    @property
    def engine(self) -> str:
        """Which engine runs them."""
        return "reference" if self.decoder is None else "circuit walk"

    @cached_property
    def clean_runs(self) -> MeasuredRuns:
        """The clean run, on which a metric is tried that might compare examples."""
        return MeasuredRuns(self.model, self.expansion.pairs, "clean", self.metric, self.budget)

    @property
    def answer_attrs(self) -> dict[str, str]:
        """For the attrs of a result: whether the value covers answers of several tokens, if there are any."""
        return answer_attrs(self.expansion, self.value)

    def located(self) -> AbstractContextManager[None]:
        """Around measurements: a refusal of numbers that are not finite names the layer."""
        return located(self.model, self.expansion.pairs.clean)

    @cached_property
    def reach(self) -> Int[Tensor, "example"]:
        """How many tokens of each example may carry the value: its prompt, and answers that it covers."""
        longest = torch.zeros(len(self.pairs), dtype=torch.long)
        return longest.scatter_reduce(0, self.expansion.owner, self.bound.reach, "amax")

    @cached_property
    def rows(self) -> int:
        """How many prompts, each under one circuit, are run at a time."""
        if self.decoder is None:
            return circuits_per_forward(self.model, self.graph, self.longest, budget=self.budget)
        shape, graph = self.graph.shape, self.graph
        # Numbers per token, as an upper estimate. Every writer has a stream and its difference; of one block,
        # all readers' inputs exist before and after the norm, each with a temporary.
        readers = shape.n_heads + 2 * shape.n_kv_heads
        if graph.neurons:
            readers = max(readers, shape.d_mlp)
        streams = 2 * len(graph.writers) + 4 * readers + 8
        per_token = streams * shape.d_model + 4 * shape.d_mlp + 2 * shape.n_heads * self.longest
        if graph.positions is not None or not self.expansion.plain:
            per_token += len(graph.writers) * readers  # each token gathers the edge weights of its class
        return max(1, self.memory // (per_token * self.longest * self.decoder.embed.element_size()))

    @property
    def memory(self) -> int:
        """Bytes of working memory: `budget`, else 1 GiB on a CPU and half of the free memory of a GPU."""
        return memory_budget(model_device(self.model), self.budget)

    @property
    def rows_per_pass(self) -> int:
        """How many prompts, each under one circuit, pass the layers together: at most `rows`."""
        if self.decoder is None or self.decoder.device.type != "cpu" or self.memory <= CIRCUIT_PASS_BYTES:
            return self.rows
        return max(1, self.rows * CIRCUIT_PASS_BYTES // self.memory)

    @cached_property
    def full(self) -> np.ndarray:
        """[example]: the metric of the clean run."""
        with torch.no_grad(), self.located():
            return self.expansion.combine(torch.cat(list(self._full())).double().cpu()).numpy()

    @cached_property
    def empty(self) -> np.ndarray:
        """[example]: the metric of the circuit without an edge."""
        return self.measure(np.zeros((1, *self.graph.exists.shape), dtype=bool))[0]

    def full_by(self, metric: Metric) -> np.ndarray:
        """[example]: another metric of the clean run, read at `END` or along the answer."""
        measured = []
        with torch.no_grad(), self.located():
            for batch in self._batches:
                if batch.walk is None:
                    logits = forward(self.model, batch.pairs.clean).logits
                    measured.append(batch.hooked_by(metric, logits, self.model))
                else:
                    readout = batch.further(metric)
                    measured.append(readout.measure(readout.base_logits))
        return torch.cat(measured).double().cpu().numpy()[self.first_row]

    def _full(self) -> Iterator[Tensor]:
        if self.decoder is not None:
            for batch in self._batches:
                assert batch.walk is not None
                assert batch.readout is not None
                yield batch.readout.measure(batch.readout.base_logits)
            return
        pairs = self.expansion.pairs
        size = rows_per_forward(self.model, self.longest, budget=self.budget)
        self.clean_runs.check_slices(-(-len(pairs) // size))
        for start in range(0, len(pairs), size):
            some_pairs = pairs.select(slice(start, start + size))
            logits = self.metric.read(forward(self.model, some_pairs.clean).logits, some_pairs.clean)
            # Where a metric compares with the clean run, that run is its own reference here.
            yield self.metric(logits, some_pairs, logits if self.metric.needs_reference else None)

    def measure(self, circuits: np.ndarray, *, progress: bool = False) -> np.ndarray:
        """[circuit, example]: the metric of every circuit.

        Args:
            circuits: bool [circuit, (pos,) writer, reader], pruned of dead ends.
        """
        return self.measure_with(circuits, (), progress=progress)[0]

    @torch.no_grad()
    def measure_with(
        self, circuits: np.ndarray, further: Sequence[Metric], *, progress: bool = False
    ) -> np.ndarray:
        """[1 + further, circuit, example]: the metric of every circuit, and others of the same runs.

        Args:
            circuits: as in `measure`.
            further: metrics that read `END`, or along the answer of each row.
        """
        distinct, row_of = _distinct(circuits)
        # Circuits that are alike are run once.
        measured = np.full((1 + len(further), len(distinct), len(self.expansion.pairs)), np.nan)
        bar = progress_bar(measured[0].size, "circuits", "run", shown=progress)
        with bar, few_threads(self.graph.shape.d_model), self.located():
            for batch in self._batches:
                per_pass = max(1, self.rows_per_pass // len(batch.examples))
                for first in range(0, len(distinct), per_pass):
                    keep = torch.from_numpy(distinct[first : first + per_pass]).float()
                    scores = self.of_batch(batch, keep, further).double().cpu().numpy()
                    measured[:, first : first + per_pass, batch.examples] = scores
                    bar.update(scores[0].size)
        # `combine` adds up the answers of an example along the first axis:
        # [row, circuit] → [example, circuit].
        combined = self.expansion.combine(torch.from_numpy(measured[0].T)).numpy().T
        # Of an example's rows the first counts: the others have the same prompt and other answers.
        return np.concatenate([combined[None], measured[1:, :, self.first_row]])[:, row_of]

    @cached_property
    def first_row(self) -> np.ndarray:
        """[example]: the first of each example's rows."""
        return np.unique(self.expansion.owner.numpy(), return_index=True)[1]

    def soft(
        self, keep: Float[Tensor, "circuit *pos_class writer reader"], batch: CircuitBatch
    ) -> Float[Tensor, "circuit example"]:
        """The metric under weights of edges between 0 and 1, with their gradients."""
        with torch.enable_grad():
            measured = self.of_batch(batch, keep)[0]
            if self.expansion.plain:
                return measured
            return self.expansion.combine(measured.T).T

    def of_batch(
        self, batch: CircuitBatch, keep: Tensor, further: Sequence[Metric] = ()
    ) -> Float[Tensor, "metric circuit row"]:
        """The metric of circuits on one batch, and further ones."""
        rows = []
        if batch.walk is None:
            for logits in circuit_logits(self.model, self.graph, keep, batch.bound):
                others = [batch.hooked_by(metric, logits, self.model) for metric in further]
                rows.append(torch.stack([batch.hooked(self.metric, logits), *others]))
        else:
            for stream in batch.walk.streams(keep):
                others = [batch.measured_by(metric, stream) for metric in further]
                rows.append(torch.stack([batch.measured(stream), *others]))
        return torch.stack(rows, 1)

    def batches(self, size: int | None = None) -> Iterator[CircuitBatch]:
        """The rows in batches of a size (None: as many as fit), prepared."""
        n = len(self.expansion.pairs)
        size = min(n, size or max(1, self.rows))
        self.clean_runs.check_slices(-(-n // size))
        for start in range(0, n, size):
            examples = range(start, min(start + size, n))
            pairs, bound = self.expansion.pairs, self.bound
            # A selection of everything would lose what the bound value has already read from its store.
            if len(examples) < n:
                pairs, bound = pairs.select(list(examples)), bound.select(examples)
            yield self._ready(examples, pairs, bound)

    @property
    def _batches(self) -> Sequence[CircuitBatch] | Iterator[CircuitBatch]:
        """All batches: the kept ones where they take little memory, else prepared one after the other."""
        if self._held is None:
            return self.batches()
        return self._held

    @cached_property
    def _held(self) -> list[CircuitBatch] | None:
        """All batches where together they take less than half of the budget, else None."""
        batches = self.batches()
        first = next(batches)
        # Rounded up, because the last batch may be smaller.
        n_batches = -(-len(self.expansion.pairs) // len(first.examples))
        # All batches are kept if they fit; on hooks they do, since only the clean logits of a batch are held.
        if first.walk is None or first.walk.nbytes * n_batches < self.memory // 2:
            return [first, *batches]
        return None

    @torch.no_grad()
    def _ready(self, examples: range, pairs: PromptPairs, bound: Bound) -> CircuitBatch:
        """A batch with all that does not depend on the circuit: base run, patched values, reference.

        None of it has a gradient: a batch is used in many steps of training, whose graphs would share a part.
        """
        weight = self.expansion.weight[list(examples)]
        if self.decoder is None:
            reference = None
            if self.metric.needs_reference:
                reference = self.metric.read(forward(self.model, pairs.clean).logits, pairs.clean)
            return CircuitBatch(examples, pairs, weight, bound, None, None, reference)
        # A tile of logits may take an eighth of the budget; beyond 32 MiB larger products gain nothing.
        tile = max(2**16, min(TILE, self.memory // 8))
        places = self.metric.positions_read(pairs.clean)
        walk = CircuitWalk(self.decoder, self.graph, bound, places=places)
        readout = Readout(self.metric, pairs, walk.base, tile=tile)
        # A metric of all positions reads the clean logits before the first change.
        reads_logits = self.metric.needs_reference or places is None
        logits = readout.base_logits if reads_logits else None
        return CircuitBatch(examples, pairs, weight, bound, walk, readout, logits, tile)


def graph_of_runs(runs: Mapping[str, Circuits]) -> Graph:
    """The graph of runs on the same edges: an edge is a dead end of it only if it is one in all of them.

    With answers of several tokens they differ in that: runs with zero values cover the answers, runs with corrupt
    values do not (see `Graph.answers_attend`).
    """
    first, *others = (one.graph for one in runs.values())
    return first.joined(*others)


def _distinct(circuits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each circuit once, in order of its first occurrence, and the row there of every circuit.

    Pruned circuits are often the same, and each is run once.
    """
    # As bits: `np.unique` sorts whole rows, and these are eight times shorter.
    packed = np.packbits(circuits.reshape(len(circuits), -1), axis=1)
    _, first, inverse = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    # `np.unique` sorts by content; in the caller's order, appended circuits leave the passes before them as
    # they were.
    order = np.sort(first)
    return circuits[order], np.searchsorted(order, first)[inverse.reshape(-1)]
