"""Metrics of many circuits on the same prompts, on the engine that can run them: what every judgement of
circuits is made of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound
from workbench.engine.continuations import bind
from workbench.engine.edge_mixing import check_classes
from workbench.engine.fast.circuits import CircuitWalk
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.readout import Readout
from workbench.engine.hooked.circuits import check_hooks_suffice, circuit_logits, circuits_per_forward
from workbench.engine.hooked.forward import forward
from workbench.engine.inputs import check_pairs
from workbench.engine.memory import memory_budget, rows_per_forward
from workbench.engine.select import fast_decoder
from workbench.engine.values import Value, check_value
from workbench.errors import CircuitError
from workbench.metrics.continuations import expand
from workbench.metrics.metric import Metric
from workbench.models.load import check_eval, model_device
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Shape


@dataclass(frozen=True, eq=False)
class CircuitBatch:
    """Some of the rows (examples, or prompts that go on with an answer), made ready for many runs.

    Attributes:
        weight: [row], of its measure in that of its example.
        walk, readout: on the fast engine; None on hooks.
        logits: what the metric reads of the clean run, where something needs it.
    """

    examples: range
    pairs: PromptPairs
    weight: Tensor
    bound: Bound
    walk: CircuitWalk | None
    readout: Readout | None
    logits: Tensor | None

    def measured(self, stream: Float[Tensor, "example pos d_model"]) -> Float[Tensor, "example"]:
        """The metric of a stream after the last block, at the position that is read or from the first changed
        one on.
        """
        assert self.walk is not None
        assert self.readout is not None
        if self.walk.read is not None:
            return self.readout.measure(self.readout.logits(stream[:, 0]))
        if self.readout.places is not None:
            rows = torch.arange(len(stream), device=stream.device)[:, None]
            places = self.readout.places.to(stream.device) - self.walk.start
            return self.readout.measure(self.readout.logits(stream[rows, places]))
        logits = self.readout.logits(stream)
        if self.walk.start:
            assert self.logits is not None
            logits = torch.cat((self.logits[:, : self.walk.start], logits), 1)
        return self.readout.measure(logits)

    def hooked(self, metric: Metric, logits: Float[Tensor, "example pos vocab"]) -> Float[Tensor, "example"]:
        """The metric of the logits of a run with hooks."""
        return metric(metric.read(logits, self.pairs.clean), self.pairs, self.logits)


class Circuits:
    """The metric of any number of circuits of one graph on the same prompts, with the same other value.

    Args:
        value: the other value of what is not in a circuit.
        budget: bytes of working memory.
    Raises:
        CircuitError, ModelError, MetricError, PromptError, StoreError, EditError: see the messages.
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
        check_value(value)
        memory_budget(model_device(model), budget)
        if graph.shape != Shape.of(model):
            raise CircuitError(f"These edges are of another model: {graph}; this one has {Graph.of(model)}.")
        check_pairs(model, pairs)
        check_classes(graph, pairs.clean)
        metric.check(pairs)
        self.model, self.graph, self.pairs, self.value, self.budget = model, graph, pairs, value, budget
        # Answers of several tokens are runs of their own; of any other metric the rows are the pairs.
        self.expansion = expand(model, pairs, metric)
        self.metric, self.bound = self.expansion.metric, bind(model, self.expansion, value)
        self.longest = int(self.expansion.pairs.clean.lengths.max())
        self.decoder, self.why = (
            fast_decoder(model, self.longest) if value.absolute else (None, "the value needs hooks")
        )
        if self.decoder is None:
            check_hooks_suffice(model, graph)

    @property
    def engine(self) -> str:
        """Which engine runs them."""
        return "reference" if self.decoder is None else "circuit walk"

    @cached_property
    def rows(self) -> int:
        """How many prompts, each under one circuit, are run at a time."""
        if self.decoder is None:
            return circuits_per_forward(self.model, self.graph, self.longest, budget=self.budget)
        shape, graph = self.graph.shape, self.graph
        readers = max(shape.n_heads + 2 * shape.n_kv_heads, shape.d_mlp if graph.neurons else 0)
        streams = 2 * len(graph.writers) + 4 * readers + 8
        each = streams * shape.d_model + 4 * shape.d_mlp + 2 * shape.n_heads * self.longest
        each += 0 if graph.positions is None and self.expansion.plain else len(graph.writers) * readers
        room = memory_budget(model_device(self.model), self.budget)
        return max(1, room // (each * self.longest * self.decoder.embed.element_size()))

    @cached_property
    def full(self) -> np.ndarray:
        """[example]: the metric of the clean run."""
        with torch.no_grad():
            return self.expansion.combine(torch.cat(list(self._full())).double().cpu()).numpy()

    def _full(self) -> Iterator[Tensor]:
        if self.decoder is not None:
            for batch in self._batches:
                assert batch.walk is not None
                assert batch.readout is not None
                yield batch.readout.measure(batch.readout.base_logits(batch.walk.base))
            return
        size = rows_per_forward(self.model, self.longest, budget=self.budget)
        pairs = self.expansion.pairs
        for start in range(0, len(pairs), size):
            part = pairs.select(slice(start, start + size))
            logits = self.metric.read(forward(self.model, part.clean.tokens).logits, part.clean)
            yield self.metric(logits, part, logits if self.metric.needs_reference else None)

    @torch.no_grad()
    def measure(self, circuits: np.ndarray, *, progress: bool = False) -> np.ndarray:
        """[circuit, example]: the metric of every circuit.

        Args:
            circuits: bool [circuit, (pos,) writer, reader], pruned of dead ends.
        """
        # Pruned circuits are often the same: each is run once.
        packed = np.packbits(circuits.reshape(len(circuits), -1), axis=1)
        _, first, again = np.unique(packed, axis=0, return_index=True, return_inverse=True)
        order = np.sort(first)
        place = np.searchsorted(order, first)[again.reshape(-1)]
        circuits = circuits[order]
        out = np.full((len(circuits), len(self.expansion.pairs)), np.nan)
        with tqdm(
            total=out.size, desc="circuits", unit="run", disable=None if progress else True, leave=False
        ) as bar:
            for batch in self._batches:
                per_pass = max(1, self.rows // len(batch.examples))
                for first in range(0, len(circuits), per_pass):
                    part = torch.from_numpy(circuits[first : first + per_pass]).float()
                    out[first : first + per_pass, batch.examples] = (
                        self.of_batch(batch, part).double().cpu().numpy()
                    )
                    bar.update(len(part) * len(batch.examples))
        return self.expansion.combine(torch.from_numpy(out.T)).numpy().T[place]

    def soft(
        self, keep: Float[Tensor, "circuit *pos_class writer reader"], batch: CircuitBatch
    ) -> Float[Tensor, "circuit example"]:
        """The metric under weights of edges between 0 and 1, with their gradients."""
        with torch.enable_grad():
            measured = self.of_batch(batch, keep)
            return measured if self.expansion.plain else self.expansion.combine(measured.T).T

    def of_batch(self, batch: CircuitBatch, keep: Tensor) -> Float[Tensor, "circuit example"]:
        """The metric of circuits on one batch."""
        if batch.walk is None:
            runs = circuit_logits(self.model, self.graph, keep, batch.bound)
            return torch.stack([batch.hooked(self.metric, logits) for logits in runs])
        return torch.stack([batch.measured(stream) for stream in batch.walk.streams(keep)])

    def batches(self, size: int | None = None) -> Iterator[CircuitBatch]:
        """The rows in batches of a size (None: as many as fit), made ready."""
        n = len(self.expansion.pairs)
        size = min(n, size or max(1, self.rows))
        for start in range(0, n, size):
            examples = range(start, min(start + size, n))
            pairs = (
                self.expansion.pairs if len(examples) == n else self.expansion.pairs.select(list(examples))
            )
            yield self._ready(
                examples, pairs, self.bound if len(examples) == n else self.bound.select(examples)
            )

    @property
    def _batches(self) -> Sequence[CircuitBatch] | Iterator[CircuitBatch]:
        """Kept when they take little; made anew otherwise."""
        return self.batches() if self._held is None else self._held

    @cached_property
    def _held(self) -> list[CircuitBatch] | None:
        made = self.batches()
        first = next(made)
        count = -(-len(self.expansion.pairs) // len(first.examples))
        small = (
            first.walk is None
            or first.walk.nbytes * count < memory_budget(model_device(self.model), self.budget) // 2
        )
        return [first, *made] if small else None

    def _ready(self, examples: range, pairs: PromptPairs, bound: Bound) -> CircuitBatch:
        weight = self.expansion.weight[list(examples)]
        if self.decoder is None:
            reference = None
            if self.metric.needs_reference:
                reference = self.metric.read(forward(self.model, pairs.clean.tokens).logits, pairs.clean)
            return CircuitBatch(examples, pairs, weight, bound, None, None, reference)
        decoder: Decoder = self.decoder
        tile = max(2**16, min(2**25, memory_budget(model_device(self.model), self.budget) // 8))
        readout = Readout(decoder, self.metric, pairs, pairs.clean, tile=tile)
        walk = CircuitWalk(decoder, self.graph, bound, places=readout.places)
        whole = readout.places is None
        logits = None
        if self.metric.needs_reference or whole:
            logits = readout.base_logits(walk.base)
        readout.reference = logits if self.metric.needs_reference else None
        return CircuitBatch(examples, pairs, weight, bound, walk, readout, logits)
