"""The runs that gradients are taken from: the clean run, or runs on the way to the patched value.

Read `GradientRuns.at` and `group`. A share says how far a run is from the patched value: 0 is patched, 1 is
clean. Edges and tables of scores are not known here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.circuits import CircuitBatch
from workbench.engine.gradients.gradient_run import GradientRun, decoder_run, hooked_run
from workbench.engine.gradients.separable import check_separable
from workbench.engine.gradients.writer_differences import WriterDifferences
from workbench.engine.hooked.forward import Write
from workbench.metrics.metric import Metric
from workbench.models.model import Model
from workbench.sites import Key, Site


@dataclass(frozen=True, eq=False)
class GradientRuns:
    """Forward and backward passes of one batch, on the decoder or on hooks.

    Attributes:
        sources: what writers write in the clean run, and their patched values.
        start: the first token that anything is computed for.
        by_example: whether the gradient of each example is wanted, and not only their sum.
    """

    model: Model
    graph: Graph
    batch: CircuitBatch
    metric: Metric
    sources: WriterDifferences
    start: int
    by_example: bool = False

    def at(self, shares: Sequence[float]) -> GradientRun:
        """Runs between patched and clean token embeddings, at these shares of the way (1: the clean run)."""
        if all(share == 1 for share in shares):
            # The clean run itself: nothing is set, so the result is exact to the bit.
            return self._run(len(shares))
        if self.batch.walk is None:
            write = Write("embed", None, self._towards_patched(Site("embed"), shares))
            return self._run(len(shares), hooks=[write])
        decoder, tokens = self.batch.walk.decoder, self.batch.pairs.clean.tokens
        embedded = decoder.embed[tokens.to(decoder.device)]
        change = self.batch.bound.edited(Site("embed"), embedded) - embedded
        return self._run(len(shares), moved=_towards(shares, change[:, self.start :]))

    def group(self, key: Key, shares: Sequence[float]) -> GradientRun:
        """Runs with one group of writers between its patched and its clean activations, at these shares."""
        n = len(shares)
        value, patched = self._ends(key)
        between = value + _towards(shares, patched - value)
        if self.batch.walk is None:
            return self._run(n, hooks=[Write(*key, lambda _: between.flatten(0, 1))])
        if key[0] == "resid_pre":
            return self._run(n, moved=between - value)
        kind, layer = key
        if kind == "mlp_post":
            kind = "mlp_out"  # `_ends` has turned neurons into what the MLP writes
        return self._run(n, written={(kind, layer): between})

    def dropped(self, layer: int) -> GradientRun:
        """The clean run with no gradient through what a layer writes (GradDrop)."""
        return self._run(1, dropped=layer)

    def _ends(self, key: Key) -> tuple[Tensor, Tensor]:
        """The clean and the patched activation of a group of writers; for neurons, what the MLP writes."""
        value, patched = self.sources.values[key], self.sources.patched[key]
        if key[0] != "mlp_post":
            return value, patched
        assert self.batch.walk is not None
        assert key[1] is not None
        out = self.batch.walk.decoder.layers[key[1]].mlp_out
        assert out is not None
        return out(value), out(patched)

    def _run(
        self,
        n: int,
        *,
        moved: Tensor | None = None,
        written: dict[Key, Tensor] | None = None,
        dropped: int | None = None,
        hooks: Sequence[Write] = (),
    ) -> GradientRun:
        batch, size = self.batch, len(self.batch.pairs)
        if batch.walk is None:

            def measure(logits: Tensor) -> Tensor:
                """The summed metric of logits [row * example, pos, vocab]."""
                measured = []
                for version in logits.split(size):
                    measured.append(batch.hooked(self.metric, version))
                    self._check(measured[-1], version)
                return self._weighted(measured)

            return hooked_run(self.model, batch.bound, measure, self.metric.name, hooks, n)
        stream = batch.walk.base.whole(("resid_pre", 0))[:, self.start :]
        stream = stream.expand(n, *stream.shape)  # [row, example, pos, d_model]; rows share their memory
        if moved is not None:
            stream = stream + moved
        base, name = batch.walk.base, self.metric.name
        return decoder_run(
            base, self.graph, stream, self._measure, name, start=self.start, written=written, dropped=dropped
        )

    def _measure(self, streams: Tensor) -> Tensor:
        walk = self.batch.walk
        assert walk is not None
        measured = []
        for stream in streams:
            if walk.read is None:
                read = stream[:, walk.start - self.start :]
            else:
                read = stream[torch.arange(len(walk.read)), walk.read - self.start][:, None]
            measured.append(self.batch.measured(read))
            self._check(measured[-1], read)
        return self._weighted(measured)

    def _check(self, measured: Tensor, source: Tensor) -> None:
        if self.by_example:
            check_separable(self.metric, measured, source)

    def _weighted(self, measured: Sequence[Tensor]) -> Tensor:
        """The sum of measures over versions and rows, each row with its weight in its example."""
        summed = torch.stack(list(measured)).sum(0)
        return (summed * self.batch.weight.to(summed)).sum()

    def _towards_patched(self, site: Site, shares: Sequence[float]) -> Callable[[Tensor], Tensor]:
        def change(value: Tensor) -> Tensor:
            """An activation [row * example, ...], each row at its share of the way."""
            versions = []
            for share, version in zip(shares, value.split(len(self.batch.pairs)), strict=True):
                # The patched value is a constant: a gradient through it would be one of the other prompt.
                patched = self.batch.bound.edited(site, version.detach())
                versions.append(version + (1 - share) * (patched - version))
            return torch.cat(versions)

        return change


def _towards(shares: Sequence[float], change: Tensor) -> Tensor:
    """[row, ...]: (1 - share) of a change, for every share."""
    remaining = torch.tensor([1 - share for share in shares], dtype=change.dtype, device=change.device)
    return remaining.view(-1, *[1] * change.ndim) * change


def groups(sources: WriterDifferences, graph: Graph) -> Iterator[tuple[Key, slice]]:
    """Writers that move together (the input, a layer's heads, an MLP): key, and slice of `graph.writers`."""
    first = 0
    for key in sources.values:
        kind, _ = key
        n = {"z": graph.shape.n_heads, "mlp_post": graph.shape.d_mlp}.get(kind, 1)
        yield key, slice(first, first + n)
        first += n


def shares(steps: int, grid: str) -> list[float]:
    """The shares of the way from the patched embeddings to the clean ones, for m steps.

    Args:
        grid: "left" 0..m-1 over m, "right" 1..m over m, or "midpoint".
    """
    shift = {"left": 0.0, "right": 1.0, "midpoint": 0.5}[grid]
    return [(k + shift) / steps for k in range(steps)]
