"""Further checks of a circuit: complement, completeness, minimality, random circuits of its size.

Start at `CircuitChecks`; `evaluate` and `minimality` call it. Sets of components K are knocked out of the
circuit and of the whole model: the circuit is complete if both change alike, and minimal if for each of its
components there is a K beyond which it is missed (Wang et al. 2211.00593). Nothing here knows how a circuit
was found.
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
from workbench.sites import Node
from workbench.statistics import bootstrap, central, gap_of_means, ratio_of_means

RANDOM_SETS = 10
"""Random halves of the circuit's components, among the sets K."""
RANDOM_CIRCUITS = 20
GREEDY_STEPS = 3
"""How often the greedy set K of `completeness` grows by one component."""
NEEDED = 0.01
"""Share of F(M) by which a component must be missed (Wang et al.)."""


@dataclass(frozen=True, eq=False)
class CircuitChecks:
    """The checks of one circuit on some prompts, under one value.

    Attributes:
        circuit: under test.
        runs: the metric of any circuit of its graph.
        empty: [example], the metric of the circuit of no edge.
        level: coverage of the intervals.
        seed: of random circuits and sets.
        progress: whether long runs show a bar.
    """

    circuit: Circuit
    runs: Circuits
    empty: np.ndarray
    level: float
    seed: int
    progress: bool = False

    @property
    def graph(self) -> Graph:
        """The graph of the circuit, as the runs prune it."""
        return self.runs.graph

    def complement(self) -> dict[str, float]:
        """Faithfulness of all edges outside the circuit; near 0 when the circuit is all there is.

        Source: Marks et al. 2403.19647.
        """
        rest = self.graph.prune(self.graph.exists & ~self.circuit.edges)
        table = np.stack(
            [self.runs.full, self.empty, self.runs.measure(rest[None], progress=self.progress)[0]], 1
        )
        low, high = bootstrap(table, faithfulness_of, level=self.level)
        return {
            "complement": float(faithfulness_of(table)[0]),
            "complement_low": float(low[0]),
            "complement_high": float(high[0]),
        }

    def random(self) -> dict[str, float]:
        """Faithfulness of random circuits of as many edges, made of whole paths: mean and central share."""
        # As many as were chosen, before pruning: pruning is part of what random circuits must survive too.
        size = min(self.circuit.n_requested, self.graph.n_edges)
        masks = random_circuits(self.graph, size, draws=RANDOM_CIRCUITS, seed=self.seed, paths=True)
        measured = self.runs.measure(self.graph.prune(masks), progress=self.progress)
        faithfulness = ratio_of_means(measured.T, self.runs.full[:, None], self.empty[:, None])
        low, high = central(faithfulness, self.level)
        return {"random": float(faithfulness.mean()), "random_low": float(low), "random_high": float(high)}

    def completeness(self) -> dict[str, Any]:
        """The largest |F(C without K) - F(M without K)| over sets K, as a share of m(full) - m(empty).

        The sets K are: none, random halves of the circuit's components, the heads of each layer, all MLPs,
        and a set that grows by the component that makes the difference largest. `incompleteness_set` names
        the components of the K with the largest difference.
        """
        members = _members(self.circuit)
        rng = np.random.default_rng(self.seed)
        # The empty set first: there circuit and model differ as far as the circuit is unfaithful.
        sets = [np.zeros(len(self.graph.writers), dtype=bool)]
        sets += [_set_of(self.graph, half) for half in _random_halves(members, rng)]
        sets += [_set_of(self.graph, group) for group in _classes(self.graph, members).values()]
        gaps = self._gaps(np.stack(sets))
        # Greedy, because there are too many sets to try all; random halves make up for what it misses.
        grown = sets[0]
        for _ in range(min(GREEDY_STEPS, len(members))):
            larger = [grown | _set_of(self.graph, [member]) for member in members if not grown[member]]
            larger_gaps = self._gaps(np.stack(larger))
            sets, gaps = sets + larger, np.concatenate([gaps, larger_gaps])
            grown = larger[int(np.argmax(np.abs(larger_gaps.mean(1))))]
        # The interval is that of the worst set alone: it does not allow for the choice among sets.
        worst = int(np.argmax(np.abs(gaps.mean(1))))
        low, high = self._interval(gaps[worst][:, None])
        behaviour = self._behaviour()
        return {
            "incompleteness": abs(float(gaps[worst].mean())) / behaviour,
            "incompleteness_low": low / behaviour,
            "incompleteness_high": high / behaviour,
            "incompleteness_set": self._names(sets[worst]),
        }

    def minimality(self) -> xr.Dataset:
        """How much each component v of the circuit is missed.

        That is the largest |F(C without K and v) - F(C without K)| over sets K.

        K: none, every other component of its class (heads of a layer, MLPs), all of them, and random halves.

        Returns:
            Dataset over (node,): `missed` in shares of F(M), `low`, `high`, `needed` (1 where missed >= 1 %),
            `without` (K).
        """
        trials = self._minimality_trials()
        change = self._changes(trials)
        # Where F(M) is 0 no share of it exists: NaN.
        full = abs(float(self.runs.full.mean())) or np.nan
        nodes, missed, lows, highs, without = [], [], [], [], []
        for member in _members(self.circuit):
            of_member = [i for i, (removed, _) in enumerate(trials) if removed == member]
            best = max(of_member, key=lambda i: abs(float(change[i].mean())))
            low, high = self._interval(change[best][:, None])
            nodes.append(self.graph.writers[member])
            missed.append(abs(float(change[best].mean())) / full)
            lows.append(low / full)
            highs.append(high / full)
            without.append(self._names(trials[best][1]))
        shares = np.asarray(missed, dtype=float)
        data: dict[str, Any] = {
            "missed": ("node", shares),
            "low": ("node", np.asarray(lows)),
            "high": ("node", np.asarray(highs)),
            "needed": ("node", (shares >= NEEDED).astype(int)),
            "without": ("node", np.asarray(without, dtype=object)),
        }
        return xr.Dataset(data, coords={"node": np.asarray(nodes, dtype=object)})

    def _minimality_trials(self) -> list[tuple[int, np.ndarray]]:
        """Every component v, and each set K, bool [writer] without v, after which v is removed too."""
        members = _members(self.circuit)
        classes = _classes(self.graph, members)
        halves = _random_halves(members, np.random.default_rng(self.seed))
        trials: list[tuple[int, np.ndarray]] = []
        for member in members:
            # Wang et al. search K within a class of heads; without roles, a layer is the class.
            alike = next(group for group in classes.values() if member in group)
            sets = [[], *([other] for other in alike), alike, *halves]
            for group in sets:
                others = [other for other in group if other != member]
                trials.append((member, _set_of(self.graph, others)))
        return trials

    def _changes(self, trials: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        """[trial, example]: F(C without K and v) - F(C without K)."""
        if not trials:
            return np.zeros((0, 1))
        without_set = self._without(self.circuit.edges, np.stack([removed for _, removed in trials]))
        with_member = [removed | _set_of(self.graph, [member]) for member, removed in trials]
        return self._without(self.circuit.edges, np.stack(with_member)) - without_set

    def _behaviour(self) -> float:
        """|m(full) - m(empty)|; NaN where it is rounding only, so that no share of it is formed."""
        return abs(float(gap_of_means(self.runs.full, self.empty)))

    def _names(self, components: np.ndarray) -> str:
        """The components of a set [writer], or "none"."""
        names = [name for name, inside in zip(self.graph.writers, components, strict=True) if inside]
        return ", ".join(names) or "none"

    def _interval(self, change: np.ndarray) -> tuple[float, float]:
        """The interval of the size of a mean change [example, 1].

        Its direction is that of the whole sample: |mean| of each resample would never include 0.
        """
        sign = np.sign(change.mean()) or 1.0
        low, high = bootstrap(sign * change, lambda sample: sample.mean(0), level=self.level)
        return float(low[0]), float(high[0])

    def _gaps(self, sets: np.ndarray) -> np.ndarray:
        """[set, example]: F(C without K) - F(M without K)."""
        return self._without(self.circuit.edges, sets) - self._without(self.graph.exists, sets)

    def _without(self, edges: np.ndarray, sets: np.ndarray) -> np.ndarray:
        """[set, example]: the metric of some edges without components, bool [set, writer]."""
        inside = np.stack([self.graph.between(~removed) for removed in sets])
        return self.runs.measure(self.graph.prune(edges & inside), progress=self.progress)


def faithfulness_of(table: np.ndarray) -> np.ndarray:
    """[circuit]: faithfulness, from the metric of every run [example, full + empty + circuits]."""
    return ratio_of_means(table[:, 2:], table[:, :1], table[:, 1:2])


def _members(circuit: Circuit) -> list[int]:
    """The heads and MLPs of a circuit, as indices into the graph's writers."""
    writes = circuit.edges.any(-1)
    # A component is one node, at however many positions it has edges.
    writes = writes if writes.ndim == 1 else writes.any(0)
    # Index 0 is `input`, which is not a component that could be knocked out.
    return [int(writer) for writer in np.flatnonzero(writes) if writer != 0]


def _random_halves(members: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
    """Random sets that hold each component with probability 1/2."""
    halves = []
    for _ in range(RANDOM_SETS):
        halves.append([member for member in members if rng.random() < 0.5])
    return halves


def _set_of(graph: Graph, members: Sequence[int]) -> np.ndarray:
    """bool [writer]: a set of components, from their indices."""
    return np.isin(np.arange(len(graph.writers)), members)


def _classes(graph: Graph, members: Sequence[int]) -> Mapping[str, list[int]]:
    """Components that are alike: the heads of a layer, and the MLPs."""
    classes: dict[str, list[int]] = {}
    for member in members:
        node = Node.parse(graph.writers[member])
        classes.setdefault(f"a{node.layer}" if node.is_head else "m", []).append(member)
    return classes
