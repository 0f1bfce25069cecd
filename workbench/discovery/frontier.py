"""The frontier: how well a ranking's circuits do what the model does, by size, and the smallest to believe.

A size passes when the criteria hold at it and at the next two sizes of the grid, against every
counterfactual, in most resamples of the prompts: a curve that touches the bounds once by chance does not
count. Read `frontier`, then `smallest_passing`. `search.find_circuit(criteria=...)` is the call; how edges were
ranked does not matter here.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool

from workbench.discovery.criteria import LETTERS, SURE, Criteria
from workbench.discovery.ranking import first_edges
from workbench.engine.circuits import Circuits, graph_of_runs
from workbench.engine.resemblance import MEASURES, resemblance
from workbench.progress import progress_bar
from workbench.statistics import central

STEP = 1.5
"""Neighbouring sizes of the grid differ by this factor."""
SMALLEST = 0.0005
"""The smallest size of the grid, as a share of the graph's edges."""
BEYOND = 2
"""Sizes at which the criteria have to hold still, after the one that passes."""


def grid_of_sizes(n_edges: int, at_most: float) -> list[int]:
    """Numbers of edges to try: down from the largest that counts, and `BEYOND` larger ones.

    >>> grid_of_sizes(1519, 0.15)
    [3, 5, 8, 13, 20, 30, 45, 67, 101, 151, 227, 341, 512]
    """
    largest = at_most * n_edges
    sizes = {min(n_edges, int(largest * STEP**k)) for k in range(BEYOND + 1)}
    size = largest
    while size >= max(3, SMALLEST * n_edges):
        sizes.add(int(size))
        size /= STEP
    return sorted(sizes)


def frontier(
    order: np.ndarray,
    sizes: Sequence[int],
    runs: Mapping[str, Circuits],
    criteria: Criteria,
    *,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """The measures of the first n of ordered edges, for every size n.

    Args:
        order: flat indices of edges, best first.
        runs: counterfactual → runs of circuits against it, on the same prompts.

    Returns:
        Dataset over (ablation, size): each of `MEASURES` with `_low` and `_high` (of the faithfulness `low`
        and `high`), `m_circuit` (mean), `holds_a` to `holds_d` (with the margin of `Criteria.held`, because these
        prompts choose), `holds` (all of them), `passes`; over (size,) `n_edges`, `n_pruned` and `passes_all`;
        over (ablation,) `m_full`, `m_empty` (means). attrs: the bounds of the criteria, and `largest`, the size up
        to which a circuit counts.
    """
    graph = graph_of_runs(runs)
    masks = [graph.prune(first_edges(graph, order, size)) for size in sizes]
    measured = measure_against(
        np.stack(masks), runs, criteria, sure=SURE, level=level, seed=seed, progress=progress
    )
    measured = measured.rename(circuit="size").assign_coords(size=list(sizes))
    n_pruned = np.array([int(mask.sum()) for mask in masks])
    # A circuit without an edge is none, whatever the bounds are.
    holds = holds_all(measured) & xr.DataArray(n_pruned > 0, dims="size")
    passes = holds.copy()
    for step in range(1, BEYOND + 1):
        # At the end of the grid there is no next size, and so nothing that passes.
        passes = passes & holds.shift(size=-step, fill_value=False)
    low, high = criteria.faithfulness
    facts = {
        "kind": "frontier", "level": level, "seed": seed, "faithfulness_from": low, "faithfulness_to": high,
        "error_at_most": criteria.error, "prompts_near_at_least": criteria.prompts_near,
        "kl_recovered_at_least": criteria.kl_recovered,
        "answers_kept_at_least": criteria.answers_kept, "same_choice_at_least": criteria.same_choice,
        "largest": int(criteria.at_most * graph.n_edges), "n_edges_of_graph": graph.n_edges,
    }  # fmt: skip
    return measured.assign_attrs(facts).assign(
        holds=holds,
        passes=passes,
        passes_all=passes.all("ablation"),
        n_edges=("size", np.asarray(sizes)),
        n_pruned=("size", n_pruned),
    )


def measure_against(
    masks: np.ndarray,
    runs: Mapping[str, Circuits],
    criteria: Criteria,
    *,
    sure: float | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """The measures of circuits against each counterfactual, and which criteria hold.

    Args:
        masks: bool [circuit, (pos,) writer, reader], pruned of dead ends.
        sure: in what share of resamples of the prompts the error of (b), and (c), have to hold (see
            `Criteria.held`); None asks for the numbers alone.

    Returns:
        Dataset over (ablation, circuit), as `frontier` over (ablation, size).
    """
    by_name = []
    with progress_bar(len(runs), "circuits", "counterfactual", shown=progress) as bar:
        for one in runs.values():
            by_name.append(_measured(masks, one, level, seed, sure or SURE))
            bar.update()
    joined = xr.concat(by_name, "ablation").assign_coords(ablation=list(runs))
    return with_verdicts(joined, criteria, margin=sure is not None)


def keeping(
    masks: np.ndarray,
    runs: Mapping[str, Circuits],
    criteria: Criteria,
    *,
    sure: float = SURE,
    level: float = 0.95,
    seed: int = 0,
) -> Bool[np.ndarray, "circuit"]:
    """Whether circuits keep all criteria against every counterfactual.

    Args:
        masks, sure: as in `measure_against`.
    """
    # The counterfactual that changes the metric least comes first: an error is a larger share of its gap, so it
    # refutes most circuits, and those are not run against the others.
    hardest_first = sorted(runs, key=lambda name: float(np.abs(runs[name].full - runs[name].empty).mean()))
    holding = np.ones(len(masks), dtype=bool)
    for name in hardest_first:
        left = np.flatnonzero(holding)
        if not len(left):
            break
        one = {name: runs[name]}
        measured = measure_against(masks[left], one, criteria, sure=sure, level=level, seed=seed)
        holding[left] = holds_all(measured).values[0]
    return holding


def with_verdicts(measured: xr.Dataset, criteria: Criteria, *, margin: bool = False) -> xr.Dataset:
    """Measures over (ablation, circuit) with `holds_a` to `holds_d`: whether each criterion holds."""
    measures = {str(name): measured[name].values for name in measured.data_vars}
    held = criteria.held(measures, margin=margin)
    dims = ("ablation", "circuit")
    return measured.assign({f"holds_{letter}": (dims, holds) for letter, holds in held.items()})


def holds_all(measured: xr.Dataset) -> xr.DataArray:
    """Whether all criteria hold together, of measures `with_verdicts`, over their axes."""
    return xr.concat([measured[f"holds_{letter}"] for letter in LETTERS], "criterion").all("criterion")


def failing(cell: xr.Dataset) -> str:
    """The letters of the criteria that a circuit fails against a counterfactual; "" where it keeps all.

    Args:
        cell: one circuit against one counterfactual, of measures `with_verdicts`.
    """
    return "".join(letter for letter in LETTERS if not bool(cell[f"holds_{letter}"]))


def _measured(masks: np.ndarray, runs: Circuits, level: float, seed: int, sure: float) -> xr.Dataset:
    """The measures against one counterfactual, with their intervals, over (circuit,)."""
    beside = resemblance(runs, masks)
    measures, resampled = beside.measures(), beside.resampled(seed=seed)
    intervals = {name: central(sample, level) for name, sample in resampled.items()}
    columns = {}
    for name in MEASURES:
        # Faithfulness is the main number, so its interval has the plain names, as in `evaluate`.
        prefix = "" if name == "faithfulness" else f"{name}_"
        columns[name] = ("circuit", measures[name][0])
        columns[f"{prefix}low"] = ("circuit", intervals[name][0])
        columns[f"{prefix}high"] = ("circuit", intervals[name][1])
    # Each tail of an interval of this level holds 1 - sure.
    columns["error_bound"] = ("circuit", central(resampled["error"], 2 * sure - 1)[1])
    columns["kl_recovered_bound"] = ("circuit", central(resampled["kl_recovered"], 2 * sure - 1)[0])
    columns["m_circuit"] = ("circuit", beside.metric.mean(1))
    columns |= {"m_full": ((), beside.full.mean()), "m_empty": ((), beside.empty.mean())}
    return xr.Dataset(columns)


def smallest_passing(measured: xr.Dataset) -> int | None:
    """The smallest size of a frontier that passes against every counterfactual; None where none does."""
    passing = measured["size"].values[measured["passes_all"].values]
    return int(passing[0]) if len(passing) else None


def smallest_by_counterfactual(measured: xr.Dataset) -> dict[str, int | None]:
    """Counterfactual → the smallest size that passes against it alone: the circuit of that difference."""
    smallest: dict[str, int | None] = {}
    for name in measured["ablation"].values:
        passing = measured["size"].values[measured["passes"].sel(ablation=name).values]
        smallest[str(name)] = int(passing[0]) if len(passing) else None
    return smallest


def best_trade_off(measured: xr.Dataset) -> int:
    """The size whose worst error per prompt, over counterfactuals, is least, of those that count as a circuit.

    Sizes that are dead ends alone come last: a circuit without an edge is no trade-off.
    """
    worst = np.where(measured["n_pruned"].values > 0, measured["error"].max("ablation").values, 1e300)
    allowed = measured["size"].values <= measured.attrs["largest"]
    return int(measured["size"].values[np.argmin(np.where(allowed, worst, np.inf))])
