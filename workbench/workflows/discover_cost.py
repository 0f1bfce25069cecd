"""`DiscoverCost`: what a `discover` will cost, in seconds, from a few runs on the machine itself.

    workbench discover ioi --dry-run

A circuit, a scoring and a head ablation are run on a few prompts, warm, and multiplied by how many each step
needs. Nothing is written. Read `cost_of`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.discovery.frontier import grid_of_sizes
from workbench.discovery.ranking import first_edges
from workbench.discovery.refine import FEW as FEW_EDGES
from workbench.discovery.refine import FINER, PROMPTS, SHARES, edge_gradients, is_large
from workbench.discovery.scores import score_edges
from workbench.engine.circuits import graph_of_runs
from workbench.engine.counterfactuals import pairs_for
from workbench.engine.values import zero
from workbench.interventions.effects import effects
from workbench.sites import grid
from workbench.text import listed
from workbench.workflows.discovery_job import CONTROL_DRAWS, DRAWS, DiscoveryJob

TRIED = 2
"""Prompts of a trial run."""
SIZES_APART = 3
"""Every third size of the grid is tried."""
USUAL_ROUNDS = 5
"""Rounds that refining usually takes."""


@dataclass(frozen=True)
class DiscoverCost:
    """Seconds of each step, estimated; `seconds` of all of them.

    Attributes:
        n_find, n_select, n_test: prompts of the three sets.
        counterfactuals: what the criteria would be held to.
    """

    steps: dict[str, float]
    n_find: int
    n_select: int
    n_test: int
    counterfactuals: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(self.steps.values())

    def __str__(self) -> str:
        prompts = (
            f"{self.n_find} prompts to find with, {self.n_select} to choose the size with, {self.n_test} to test with; "
            f"against {listed(self.counterfactuals)}"
        )
        lines = [f"  {name:12} {seconds:7.0f} s" for name, seconds in self.steps.items()]
        return "\n".join([prompts, f"about {self.seconds:.0f} s on this machine as it is now", *lines])


def cost_of(job: DiscoveryJob) -> DiscoverCost:
    """The cost of a job, from trial runs on the prompts that it would use."""
    sets, graph = job.sets, job.graph
    few = sets.select.select(slice(TRIED))
    runs = few.circuit_runs(job.value)
    first, one = next(iter(runs.items()))
    value = next(iter(few.values(job.value).values()))
    pairs = pairs_for(few.pairs, first)
    scored: dict[str, Any] = {
        "value": value, "metric": few.metric, "method": "eap-ig-inputs", "progress": False,
    }  # fmt: skip
    score = _seconds(lambda: score_edges(job.model, pairs, **scored)) / TRIED
    # Circuits of the sizes that are tried, of a ranking like the one that will be made: small ones cost less.
    order = job.order(score_edges(job.model, pairs, **scored))
    sizes = grid_of_sizes(graph.n_edges, job.criteria.at_most)
    graph_run = graph_of_runs(runs)
    masks = np.stack([graph_run.prune(first_edges(graph, order, size)) for size in sizes[::SIZES_APART]])
    circuit = _seconds(lambda: one.measure(masks)) / (len(masks) * TRIED)
    gradient = 0.0
    # Larger graphs are refined along the ranking, without gradients.
    if not is_large(graph):
        gradient = _seconds(lambda: edge_gradients(graph.exists, {first: one})) / TRIED
    layer = graph.shape.n_layers // 2
    head = _seconds(
        lambda: effects(
            job.model, few.pairs, sites=grid("z", job.model, layer=layer), value=zero(), metric=few.metric,
            progress=False,
        )
    ) / (graph.shape.n_heads * TRIED)  # fmt: skip
    against, n_select, n_few = len(runs), len(sets.select), len(job.few)
    rounds, candidates = 0, 0
    if job.refine and not job.n_edges:
        rounds, candidates = (1, FINER) if is_large(graph) else (USUAL_ROUNDS, len(SHARES))
        if job.is_small:
            candidates += len(FEW_EDGES)
    per_set = against * circuit
    refining = per_set * n_select * rounds * candidates + rounds * gradient * PROMPTS * against
    steps = {
        "scores": score * len(sets.find) * against,
        "size": per_set * n_select * len(sizes) + refining,
        "test": circuit * 4 * len(sets.test) * (against + 2),
        "heads": head * graph.shape.n_layers * graph.shape.n_heads * n_few,
    }
    if not job.quick:
        steps["controls"] = per_set * (CONTROL_DRAWS + 42) * len(job.fewer)
        steps["stability"] = per_set * 5 * DRAWS * len(job.for_stability)
        steps["agreement"] = per_set * 4 * job.n_agreement * len(job.fewer)
    if job.is_small and against > 1:
        steps["differences"] = refining
    return DiscoverCost(steps, len(sets.find), len(sets.select), len(sets.test), tuple(runs))


def _seconds(call: Callable[[], object]) -> float:
    """The seconds of a call that was made once before."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
