"""What else a circuit has to stand: its complement, what it misses, what it does not need, and circuits drawn at random.

Sets of components K are knocked out of the circuit and of the whole model alike: the circuit is complete if both change
alike, and minimal if for each of its components there is a K beyond which it is missed (Wang et al. 2211.00593).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.circuit.random import random_circuits
from workbench.engine.circuits import Circuits
from workbench.statistics import bootstrap, central, ratio_of_means

RANDOM_SETS = 10
RANDOM_CIRCUITS = 20
GREEDY_STEPS = 3
NEEDED = 0.01
"""Share of F(M) by which a component must be missed (Wang et al.)."""


@dataclass(frozen=True, eq=False)
class Checked:
    """A circuit under test on some prompts.

    Attributes:
        empty: [example], the metric of the circuit of no edge.
        level: coverage of the intervals.
    """

    circuit: Circuit
    runs: Circuits
    empty: np.ndarray
    level: float
    seed: int

    @property
    def graph(self) -> Graph:
        return self.circuit.graph

    def complement(self) -> dict[str, float]:
        """Faithfulness of everything but the circuit (Marks et al. 2403.19647): near 0 when the circuit is all there is."""
        rest = self.graph.prune(self.graph.exists & ~self.circuit.edges)
        return self._faithful("complement", self.runs.measure(rest[None])[0])

    def random(self) -> dict[str, float]:
        """Faithfulness of random circuits of as many edges, made of whole paths: the mean, and the central share of draws."""
        size = min(self.circuit.n_requested, self.graph.n_edges)
        masks = random_circuits(self.graph, size, draws=RANDOM_CIRCUITS, seed=self.seed, paths=True)
        measured = self.runs.measure(self.graph.prune(masks))
        spread = ratio_of_means(measured.T, self.runs.full[:, None], self.empty[:, None])
        low, high = central(spread, self.level)
        return {"random": float(spread.mean()), "random_low": float(low), "random_high": float(high)}

    def completeness(self) -> tuple[dict[str, float], dict[str, str]]:
        """The largest |F(C without K) - F(M without K)| over sets K, in shares of m(full) - m(empty); and that K.

        K: none, random halves of the circuit's components, the heads of each layer, all MLPs, and a set that grows by the
        component that makes the difference largest.
        """
        members = _members(self.circuit)
        rng = np.random.default_rng(self.seed)
        sets = [np.zeros(len(self.graph.writers), dtype=bool)]
        sets += [_of(self.graph, [m for m in members if rng.random() < 0.5]) for _ in range(RANDOM_SETS)]
        sets += [_of(self.graph, group) for group in _classes(self.graph, members).values()]
        gaps = self._gaps(np.stack(sets))
        grown = sets[0]
        for _ in range(min(GREEDY_STEPS, len(members))):
            more = [grown | _of(self.graph, [m]) for m in members if not grown[m]]
            found = self._gaps(np.stack(more))
            sets, gaps = sets + more, np.concatenate([gaps, found])
            grown = more[int(np.argmax(np.abs(found.mean(1))))]
        worst = int(np.argmax(np.abs(gaps.mean(1))))
        low, high = self._interval(gaps[worst][:, None])
        names = ", ".join(name for name, out in zip(self.graph.writers, sets[worst], strict=True) if out)
        size = self._gap()
        numbers = {
            "incompleteness": abs(float(gaps[worst].mean())),
            "incompleteness_low": low,
            "incompleteness_high": high,
        }
        return {key: value / size for key, value in numbers.items()}, {"incompleteness_set": names or "none"}

    def minimality(self) -> xr.Dataset:
        """How much each component of the circuit is missed: the largest |F(C without K and v) - F(C without K)| over sets K.

        K: none, every other component of its class (heads of a layer, MLPs), all of them, and random halves.

        Returns:
            Dataset over (node,): `missed` in shares of F(M), `low`, `high`, `needed` (1 where missed >= 1 %), `without` (K).
        """
        members = _members(self.circuit)
        classes = _classes(self.graph, members)
        rng = np.random.default_rng(self.seed)
        halves = [[m for m in members if rng.random() < 0.5] for _ in range(RANDOM_SETS)]
        tried: list[tuple[int, np.ndarray]] = []
        for v in members:
            alike = next(group for group in classes.values() if v in group)
            sets = [[], *([w] for w in alike), alike, *halves]
            tried += [(v, _of(self.graph, [w for w in group if w != v])) for group in sets]
        base = (
            self._without(self.circuit.edges, np.stack([out for _, out in tried]))
            if tried
            else np.zeros((0, 1))
        )
        more = (
            np.stack([out | _of(self.graph, [v]) for v, out in tried])
            if tried
            else np.zeros((0, 1), dtype=bool)
        )
        change = (self._without(self.circuit.edges, more) - base) if tried else base
        rows = []
        full = abs(float(self.runs.full.mean())) or np.nan
        for v in members:
            mine = [i for i, (node, _) in enumerate(tried) if node == v]
            best = max(mine, key=lambda i: abs(float(change[i].mean())))
            low, high = self._interval(change[best][:, None])
            out = ", ".join(n for n, gone in zip(self.graph.writers, tried[best][1], strict=True) if gone)
            rows.append(
                (
                    self.graph.writers[v],
                    abs(float(change[best].mean())) / full,
                    low / full,
                    high / full,
                    out or "none",
                )
            )
        columns = list(zip(*rows, strict=True)) if rows else [(), (), (), (), ()]
        missed = np.asarray(columns[1], dtype=float)
        data: dict[str, Any] = {
            "missed": missed,
            "low": columns[2],
            "high": columns[3],
            "needed": (missed >= NEEDED).astype(int),
        }
        found = {name: ("node", np.asarray(values)) for name, values in data.items()}
        found["without"] = ("node", np.asarray(columns[4], dtype=object))
        return xr.Dataset(found, coords={"node": np.asarray(columns[0], dtype=object)})

    def _gap(self) -> float:
        size = abs(float(self.runs.full.mean() - self.empty.mean()))
        return size if size > 1e-6 else np.nan

    def _faithful(self, name: str, measured: np.ndarray) -> dict[str, float]:
        table = np.stack([self.runs.full, self.empty, measured], 1)
        statistic = lambda sample: ratio_of_means(sample[:, 2:], sample[:, :1], sample[:, 1:2])  # noqa: E731
        low, high = bootstrap(table, statistic, level=self.level)
        return {
            name: float(statistic(table)[0]),
            f"{name}_low": float(low[0]),
            f"{name}_high": float(high[0]),
        }

    def _interval(self, change: np.ndarray) -> tuple[float, float]:
        """Of the size of a mean change [example, 1]; its direction is that of the whole sample."""
        sign = np.sign(change.mean()) or 1.0
        low, high = bootstrap(sign * change, lambda sample: sample.mean(0), level=self.level)
        return float(low[0]), float(high[0])

    def _gaps(self, sets: np.ndarray) -> np.ndarray:
        """[set, example]: F(C without K) - F(M without K)."""
        return self._without(self.circuit.edges, sets) - self._without(self.graph.exists, sets)

    def _without(self, edges: np.ndarray, sets: np.ndarray) -> np.ndarray:
        """[set, example]: the metric of some edges without components, bool [set, writer]."""
        inside = np.stack([self.graph.between(~out) for out in sets])
        return self.runs.measure(self.graph.prune(edges & inside))


def _members(circuit: Circuit) -> list[int]:
    """The heads and MLPs of a circuit, as places among the graph's writers."""
    writes = circuit.edges.any(-1)
    writes = writes if writes.ndim == 1 else writes.any(0)
    return [int(w) for w in np.flatnonzero(writes) if w != 0]


def _of(graph: Graph, members: Sequence[int]) -> np.ndarray:
    return np.isin(np.arange(len(graph.writers)), members)


def _classes(graph: Graph, members: Sequence[int]) -> Mapping[str, list[int]]:
    """Components that are alike: the heads of a layer, and the MLPs."""
    found: dict[str, list[int]] = {}
    for member in members:
        name = graph.writers[member]
        found.setdefault(name.split(".")[0] if name.startswith("a") else "m", []).append(member)
    return found
