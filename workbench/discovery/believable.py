"""`by_criteria`: the smallest circuit of a ranking that keeps the criteria, made smaller where that is wanted.

`find_circuit(criteria=...)` and `discover` call it. Read `CriteriaSearch`: its frontier is a result even
where no size passes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.discovery.criteria import Criteria
from workbench.discovery.frontier import BEYOND, frontier, grid_of_sizes, smallest_passing
from workbench.discovery.ranking import first_edges
from workbench.discovery.refine import Mask, cut_finer, is_large, pruned
from workbench.engine.circuits import Circuits, graph_of_runs
from workbench.errors import UnknownName

REFINEMENTS = ("prune",)


@dataclass(frozen=True, eq=False)
class CriteriaSearch:
    """What the criteria chose.

    Attributes:
        frontier: the measures by size, as `frontier.frontier` returns them.
        size: the smallest number of edges that passes, before dead ends are pruned; None: there is none.
        chosen: the edges of that size without dead ends; None where no size passes.
        edges: after refining, which may succeed where no size passes. None: no circuit keeps the criteria.
    """

    frontier: xr.Dataset
    size: int | None
    chosen: Mask | None
    edges: Mask | None


def by_criteria(
    order: np.ndarray,
    runs: Mapping[str, Circuits],
    criteria: Criteria,
    *,
    refine: str | None = None,
    gradients: Mapping[str, Circuits] | None = None,
    accepting: Mapping[str, Circuits] | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> CriteriaSearch:
    """Measure the sizes of a grid, take the smallest that passes, and refine it.

    Args:
        order: flat indices of edges, best first.
        runs: counterfactual → runs on the prompts that the criteria are held to.
        refine: None, or "prune": leave out edges as long as the criteria hold (`refine.pruned`; in large graphs
            `refine.cut_finer`).
        gradients: runs on the prompts whose gradients order edges for refining. They have to be others than those
            that accept: else edges are left out that these prompts alone can do without. None takes `runs`.
        accepting: runs on the prompts that accept what refining leaves out; None takes `runs`.
        seed: of intervals and of refining.

    Raises:
        UnknownName: a refinement that does not exist.
    """
    if refine is not None and refine not in REFINEMENTS:
        raise UnknownName("refine", refine, REFINEMENTS)
    graph = graph_of_runs(runs)
    sizes = grid_of_sizes(graph.n_edges, criteria.at_most)
    measured = frontier(order, sizes, runs, criteria, level=level, seed=seed, progress=progress)
    size = smallest_passing(measured)
    chosen = None if size is None else graph.prune(first_edges(graph, order, size))
    edges = chosen
    if refine == "prune" and is_large(graph):
        if size is not None:
            below = max([other for other in sizes if other < size], default=1)
            edges = cut_finer(order, below, size, runs=runs, criteria=criteria, level=level, seed=seed)
    elif refine == "prune":
        start = refining_start(measured)
        if start is not None:
            first = graph.prune(first_edges(graph, order, start))
            smaller = pruned(
                first, gradients=gradients or runs, runs=accepting or runs, criteria=criteria, level=level,
                seed=seed, progress=progress,
            )  # fmt: skip
            most = criteria.at_most * graph.n_edges if chosen is None else int(chosen.sum())
            if smaller.sum() <= most:
                edges = smaller
    return CriteriaSearch(measured, size, chosen, edges)


def refining_start(measured: xr.Dataset) -> int | None:
    """The size to refine from; None where none keeps the criteria.

    The largest of those by which a size passes: with more edges to choose from, fewer have to stay. Where none
    passes up to `at_most`, the smallest beyond it from which on the criteria hold.
    """
    sizes, holds = measured["size"].values, measured["holds"].all("ablation").values
    size = smallest_passing(measured)
    if size is not None:
        return int(sizes[np.flatnonzero(sizes == size)[0] + BEYOND])
    first = len(sizes)
    while first > 0 and holds[first - 1]:
        first -= 1
    return int(sizes[first]) if first < len(sizes) else None
