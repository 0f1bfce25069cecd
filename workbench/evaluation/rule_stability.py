"""`rule_stability`: would other prompts of the same kind have led to the same circuit, and to any?

The whole rule is repeated on scores of examples that are drawn again: edges are ordered by `joint_scores`,
sizes are tried, the smallest that passes is taken. Refining is left out: it costs as much as all draws
together. `curves.stability` cuts every draw at a size that is given instead. Read `rule_stability`, then
`_smallest`, which finds the size without measuring all of them.
"""

from collections.abc import Generator, Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Int
from scipy.stats import binomtest

from workbench.arguments import checked
from workbench.circuit.graph import Graph
from workbench.discovery.criteria import Criteria
from workbench.discovery.frontier import BEYOND, grid_of_sizes, keeping, measure_against
from workbench.discovery.score_arrays import finite_matrix_of, graph_of, joint_scores
from workbench.discovery.search import best_first, first_edges
from workbench.engine.circuits import Circuits, graph_of_runs
from workbench.errors import CircuitError
from workbench.evaluation.curves import mean_jaccard
from workbench.models.calls import model_call
from workbench.progress import progress_bar
from workbench.results import clean_attrs
from workbench.statistics import central, check_level, check_seed

BELOW, ABOVE = 3, 5
"""Steps of the grid of sizes around `near` at which a draw may pass."""
IN_CORE = 0.9
"""Share of the draws that found a circuit in which an edge of the core is."""
Walk = Generator[list[int], list[bool], int | None]


@checked
@model_call()
def rule_stability(
    scores: xr.DataArray,
    runs: Mapping[str, Circuits],
    criteria: Criteria,
    *,
    draws: int = 10,
    near: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """The circuits that the rule finds on resampled examples: sizes, agreement, and the edges that stay.

    The rule: edges by the magnitude of `joint_scores`, the sizes of `grid_of_sizes`, the smallest at which the
    criteria hold, and at the next two, against every counterfactual; not refined, so sizes are to be compared
    with `near` and not with those of a refined circuit. A draw takes n of the n examples with replacement, the
    same ones for every counterfactual. The prompts of `runs` stay as they are. Draws share most of their
    examples, so circuits of wholly other prompts agree less than these.

    Cost: about five circuits for each draw on every prompt and counterfactual, at most
    2 * (BELOW + ABOVE + 1) + BEYOND; and without `near` as many more as one draw over the whole grid.

    Args:
        scores: of single examples, with an axis `example`: `score_edges(..., keep=("example",))`, of one or of
            several counterfactuals (`ablation`).
        runs: counterfactual → runs of circuits against it, on the prompts that choose the size.
        draws: resamples of the examples.
        near: the size that the rule finds on all examples: a draw may pass from three steps of the grid below
            it to five above, and counts as one that found nothing otherwise. None: it is found here; where
            there is none, the largest size that counts stands in for it (attrs["near_passes"] is 0).
        level: coverage of the intervals.
        seed: of the draws and of the intervals of the criteria.

    Returns:
        Dataset over (draw,): `size` (edges chosen, NaN where no size passes), `n_edges` (without dead ends);
        over (writer, reader), with (pos,) before them where the graph has positions: `frequency` (share of the
        draws with a circuit that have the edge; NaN where none has one) and `core` (whether at least 90 % of
        them have it); over (draw, writer, reader) `edges`, empty where no size passes. Numbers: `found` (share
        of draws that found a circuit) with the Clopper-Pearson interval `found_low`, `found_high`;
        `median_size`, with the central share of the draws that found one in `size_low`, `size_high`;
        `jaccard`, the mean over all pairs of those draws, with the central share of the pairs in
        `jaccard_low`, `jaccard_high`; `jaccard_near`, `_low`, `_high`: the same of all draws when each is cut
        at `near`; `core_size`. Over (ablation,): `core_faithfulness`, `core_error` with `_low` and `_high`, of
        the core as a circuit.
        attrs: `draws`, `n_found`, `near`, `n_examples`.

    Raises:
        CircuitError: scores without examples or of one only, too few draws, a size that the graph does not
            have, no runs, or those of another graph.
        NotFinite: an edge has a score that is NaN or infinite.
    """
    check_level(level)
    check_seed(seed)
    if "example" not in scores.dims or scores.sizes["example"] < 2:
        raise CircuitError(
            "rule_stability: scores of at least two examples are needed: score_edges(..., keep=('example',))."
        )
    if draws < 2:
        raise CircuitError(f"rule_stability: draws={draws}; at least two circuits are compared.")
    if not runs:
        raise CircuitError("rule_stability: no runs are given; give one for each counterfactual, by name.")
    all_examples = joint_scores(scores)
    graph = graph_of(all_examples)
    for name, one in runs.items():
        if one.graph != graph:
            raise CircuitError(
                f"rule_stability: the runs against {name!r} are of another graph: {one.graph}; the scores have "
                f"{graph}."
            )
    # The runs decide what is a dead end: they may have other values than the scores.
    graph = graph_of_runs(runs)
    if near is not None and not 0 < near <= graph.n_edges:
        raise CircuitError(f"rule_stability: near={near}; this graph has {graph.n_edges} edges.")
    grid = grid_of_sizes(graph.n_edges, criteria.at_most)
    judge = _Judge(graph, runs, criteria, level, seed)
    # The last sizes of the grid only confirm those before them.
    last = len(grid) - 1 - BEYOND
    near_passes = True
    if near is None:
        order = _order(all_examples, graph)
        (near,) = judge.smallest([order], grid, range(last + 1))
        near_passes = near is not None
    middle = last if near is None else min(last, int(np.argmin(np.abs(np.log(np.array(grid) / near)))))
    near = grid[middle] if near is None else near
    window = range(max(0, middle - BELOW), min(last, middle + ABOVE) + 1)
    rng, n = np.random.default_rng(seed), scores.sizes["example"]
    orders = [_order(_resampled(scores, rng.integers(0, n, n)), graph) for _ in range(draws)]
    sizes = judge.smallest(orders, grid, window, progress=progress)
    edges = np.zeros((draws, *graph.exists.shape), dtype=bool)
    for circuit, order, size in zip(edges, orders, sizes, strict=True):
        if size is not None:
            circuit[:] = graph.prune(first_edges(graph, order, size))
    cut = graph.prune(np.stack([first_edges(graph, order, near) for order in orders]))
    found = np.array([size is not None for size in sizes])
    table = _table(graph, edges, cut, found, level)
    found_sizes = np.array([size for size in sizes if size is not None] or [np.nan])
    low, high = central(found_sizes, level)
    table = table.assign(
        size=("draw", np.array([np.nan if size is None else size for size in sizes])),
        median_size=np.median(found_sizes), size_low=low, size_high=high,
    )  # fmt: skip
    table = table.merge(judge.measures_of(table["core"].values))
    facts = {
        "kind": "rule_stability", "draws": draws, "n_found": int(found.sum()), "near": near,
        "near_passes": near_passes, "n_examples": n, "level": level, "seed": seed, "refined": False,
    }  # fmt: skip
    return table.assign_attrs(clean_attrs(facts))


class _Judge:
    """Tells which circuits keep the criteria against every counterfactual."""

    def __init__(
        self, graph: Graph, runs: Mapping[str, Circuits], criteria: Criteria, level: float, seed: int
    ) -> None:
        self.graph, self.runs, self.criteria, self.level, self.seed = graph, runs, criteria, level, seed

    def smallest(
        self, orders: Sequence[np.ndarray], grid: Sequence[int], window: range, *, progress: bool = False
    ) -> list[int | None]:
        """For each order of edges, the smallest size of the grid, at an index of the window, that passes."""
        walks: dict[int, Walk] = {i: _smallest(window) for i in range(len(orders))}
        asked = {i: next(walk) for i, walk in walks.items()}
        found: list[int | None] = [None] * len(orders)
        with progress_bar(len(orders), "resamples", "draw", shown=progress) as bar:
            # The next sizes of all draws are run together, so that they share the base runs.
            while asked:
                masks = []
                for i, indices in asked.items():
                    masks += [first_edges(self.graph, orders[i], grid[index]) for index in indices]
                pruned = self.graph.prune(np.stack(masks))
                kept = keeping(pruned, self.runs, self.criteria, level=self.level, seed=self.seed)
                answers = iter(kept.tolist())
                answered = {i: [next(answers) for _ in indices] for i, indices in asked.items()}
                asked = {}
                for i, holding in answered.items():
                    try:
                        asked[i] = walks[i].send(holding)
                    except StopIteration as end:
                        found[i] = None if end.value is None else grid[end.value]
                        bar.update()
        return found

    def measures_of(self, core: np.ndarray) -> xr.Dataset:
        """Over (ablation,): faithfulness and error of the core as a circuit."""
        mask = self.graph.prune(core)[None]
        measured = measure_against(mask, self.runs, self.criteria, level=self.level, seed=self.seed)
        names = {
            "faithfulness": "core_faithfulness", "low": "core_faithfulness_low", "error": "core_error",
            "high": "core_faithfulness_high", "error_low": "core_error_low", "error_high": "core_error_high",
        }  # fmt: skip
        return measured.isel(circuit=0, drop=True)[list(names)].rename(names)


def _smallest(window: range) -> Walk:
    """Find the smallest index of a window at which the criteria hold, and at the next `BEYOND` too.

    A generator: it yields the indices whose circuits it wants to have judged, is sent the answers, and returns
    the index, or None. The answer is that of trying all of them, with fewer runs: the farthest of the sizes
    that have to hold is tried first, and where it fails no size up to it can pass.
    """
    first = window.start
    known: dict[int, bool] = {}
    while first < window.stop:
        last = first + BEYOND
        if last not in known:
            (known[last],) = yield [last]
        if known[last]:
            rest = [index for index in range(first, last) if index not in known]
            if rest:
                known |= dict(zip(rest, (yield rest), strict=True))
        failing = [index for index in range(first, last + 1) if not known.get(index, True)]
        if not failing:
            return first
        first = failing[-1] + 1
    return None


def _resampled(scores: xr.DataArray, drawn: Int[np.ndarray, "example"]) -> xr.DataArray:
    """`joint_scores` of the examples that were drawn."""
    if "ablation" not in scores.dims:
        return joint_scores(scores.isel(example=drawn))
    # One counterfactual at a time: copies of all would take as much memory again as the scores of a large model.
    joint = [
        joint_scores(scores.isel(ablation=i).isel(example=drawn)) for i in range(scores.sizes["ablation"])
    ]
    return joint_scores(xr.concat(joint, "ablation", combine_attrs="override"))


def _order(joint: xr.DataArray, graph: Graph) -> np.ndarray:
    """Flat indices of edges, the largest joint score first."""
    return best_first(graph, np.abs(finite_matrix_of(joint, graph, "rule_stability")))


def in_core(frequency: np.ndarray) -> np.ndarray:
    """Whether edges are in the core, from the share of the draws that have them; NaN is in none."""
    # Of ten draws .9 is nine; rounding of the mean must not ask for ten.
    return np.nan_to_num(frequency) >= IN_CORE - 1e-9


def _table(graph: Graph, edges: np.ndarray, cut: np.ndarray, found: np.ndarray, level: float) -> xr.Dataset:
    """How far the circuits of the draws agree.

    Args:
        edges: bool [draw, (pos,) writer, reader], of each draw's own size; empty where none passed.
        cut: the same, every draw at the size `near`.
        found: [draw], whether a size passed.
    """
    dims = ("writer", "reader") if graph.positions is None else ("pos", "writer", "reader")
    coords = {"writer": list(graph.writers), "reader": list(graph.readers)}
    if graph.positions is not None:
        coords["pos"] = [str(position) for position in graph.positions]
    frequency = np.full(graph.exists.shape, np.nan)
    if found.any():
        frequency = np.where(graph.exists, edges[found].mean(0), np.nan)
    core = in_core(frequency)
    share = binomtest(int(found.sum()), len(found)).proportion_ci(confidence_level=level, method="exact")
    own, near = mean_jaccard(edges[found], level), mean_jaccard(cut, level)
    columns = {
        "n_edges": ("draw", np.where(found, edges.reshape(len(edges), -1).sum(1), np.nan)),
        "edges": (("draw", *dims), edges), "frequency": (dims, frequency), "core": (dims, core),
        "found": ((), found.mean()), "found_low": ((), share.low), "found_high": ((), share.high),
        "core_size": ((), int(core.sum())),
    }  # fmt: skip
    for name, agreement in (("jaccard", own), ("jaccard_near", near)):
        for end, number in zip(("", "_low", "_high"), agreement, strict=True):
            columns[f"{name}{end}"] = ((), number)
    return xr.Dataset(columns, coords=coords)
