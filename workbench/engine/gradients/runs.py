"""Which runs a gradient method takes its slopes from: at the clean run, at both ends, or along the way to the other value."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.circuits import CircuitBatch
from workbench.engine.gradients.edge_gradients import WriterDifferences
from workbench.engine.gradients.reader_gradients import GradientRun, decoder_run, hooked_run
from workbench.engine.hooked.forward import Write
from workbench.metrics.metric import Metric
from workbench.sites import Key, Site


@dataclass(frozen=True, eq=False)
class GradientRuns:
    """Forward and backward passes of one batch.

    Attributes:
        start: the first token that anything is computed for.
    """

    model: Any
    graph: Graph
    batch: CircuitBatch
    metric: Metric
    sources: WriterDifferences
    start: int

    def at(self, shares: Sequence[float]) -> GradientRun:
        """Between other and clean token embeddings, at these shares of the way (1: the clean run)."""
        if all(share == 1 for share in shares):
            return self._run(len(shares))
        if self.batch.walk is None:
            return self._run(
                len(shares), hooks=[Write("embed", None, self._on_the_way(Site("embed"), shares))]
            )
        decoder, tokens = self.batch.walk.decoder, self.batch.pairs.clean.tokens
        here = decoder.embed[tokens.to(decoder.device)]
        change = self.batch.bound.edited(Site("embed"), here) - here
        return self._run(len(shares), moved=_ways(shares, change[:, self.start :]))

    def group(self, key: Key, shares: Sequence[float]) -> GradientRun:
        """With the activations of one group of writers between their other value and the clean one."""
        n = len(shares)
        value, other = self._writes(key)
        between = value + _ways(shares, other - value)
        if self.batch.walk is None:
            return self._run(n, hooks=[Write(*key, lambda _: between.flatten(0, 1))])
        if key[0] == "resid_pre":
            return self._run(n, moved=between - value)
        return self._run(n, written={("z" if key[0] == "z" else "mlp_out", key[1]): between})

    def dropped(self, layer: int) -> GradientRun:
        """The clean run with no gradient through what a layer writes."""
        return self._run(1, dropped=layer)

    def _writes(self, key: Key) -> tuple[Tensor, Tensor]:
        value, other = self.sources.values[key], self.sources.others[key]
        if key[0] != "mlp_post":
            return value, other
        assert self.batch.walk is not None
        assert key[1] is not None
        out = self.batch.walk.decoder.layers[key[1]].mlp_out
        assert out is not None
        return out(value), out(other)

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

            def measure(logits):
                return self._weighted([batch.hooked(self.metric, one) for one in logits.split(size)])

            return hooked_run(self.model, batch.bound, measure, self.metric.name, hooks, n)
        stream = batch.walk.base.whole(("resid_pre", 0))[:, self.start :]
        stream = stream.expand(n, *stream.shape) if moved is None else stream + moved
        return decoder_run(
            batch.walk.base, self.graph, stream, self._measure, self.metric.name, start=self.start, written=written, dropped=dropped
        )  # fmt: skip

    def _measure(self, streams: Tensor) -> Tensor:
        walk = self.batch.walk
        assert walk is not None
        if walk.read is None:
            return self._weighted([self.batch.measured(one[:, walk.start - self.start :]) for one in streams])
        rows, read = torch.arange(len(walk.read)), walk.read - self.start
        return self._weighted([self.batch.measured(one[rows, read][:, None]) for one in streams])

    def _weighted(self, measured: Sequence[Tensor]) -> Tensor:
        """The sum of measures over versions and rows, each row with its weight in its example."""
        summed = torch.stack(list(measured)).sum(0)
        return (summed * self.batch.weight.to(summed)).sum()

    def _on_the_way(self, site: Site, shares: Sequence[float]) -> Any:
        def change(value: Tensor) -> Tensor:
            parts = [value[:0]]
            for share, part in zip(shares, value.split(len(self.batch.pairs)), strict=True):
                other = self.batch.bound.edited(site, part.detach())
                parts.append(part + (1 - share) * (other - part))
            return torch.cat(parts)

        return change


def _ways(shares: Sequence[float], change: Tensor) -> Tensor:
    """[row, ...]: (1 - share) of a change, for every share."""
    left = torch.tensor([1 - share for share in shares], dtype=change.dtype, device=change.device)
    return left.view(-1, *[1] * change.ndim) * change


def groups(sources: WriterDifferences, graph: Graph) -> Iterator[tuple[Key, slice]]:
    """The groups of writers that move together: the input, the heads of a layer, an MLP; with their place among writers."""
    at = 0
    for key in sources.values:
        kind, _ = key
        n = {"z": graph.shape.n_heads, "mlp_post": graph.shape.d_mlp}.get(kind, 1)
        yield key, slice(at, at + n)
        at += n


def shares(steps: int, grid: str) -> list[float]:
    """The shares of the way from the other embeddings to the clean ones: left 0..m-1, right 1..m, or midpoints, over m."""
    shift = {"left": 0.0, "right": 1.0, "midpoint": 0.5}[grid]
    return [(k + shift) / steps for k in range(steps)]
