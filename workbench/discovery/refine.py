"""`pruned`: a circuit made smaller, as long as the criteria hold.

Scores are taken in the whole model, where it is not yet known what a circuit can do without. Here the
gradient of every prompt's metric with respect to the weight of every edge is taken *in the circuit*. Leaving
out a set of edges moves the metric of prompt i by about the sum of their gradients g_e,i, so the set is chosen
for which the residuals

    sum over prompts of (m_C,i - m_full,i - sum over left out e of g_e,i)^2 + damping * sum over e of g_e,i^2

stay smallest, one edge after the other: effects that cancel are left out together, effects that add up are
not. Gradients say little of large steps, so the damping keeps edges with large ones: without it, edges on
which all depends are left out where their gradients cancel (SmolLM2-135M: faithfulness falls from 1.01 to
-.04 when 5 % of 14,892 edges are left out in that order; with a damping of 10 it is 1.01 without 30 %). The
gradients are taken anew in each round; in small circuits the steps are measured instead. Read `pruned`.

In graphs of more than `LARGE` edges that gains nothing, and only finer sizes of the ranking are tried
(`cut_finer`). SmolLM2-135M, ioi, cut from 15,896 to 9,000 and to 6,000 edges: the ranking leaves an error of .127
and .155 against `abc`, the order above .125 and .168, and those by the size of the gradients, alone or together
with the scores, .128 to .136 and .151 to .165. Gradients of 24 prompts say less of so many small edges than
scores of 64 along a path.

Source: LeCun et al. 1990, "Optimal brain damage", for one weight at a time; sets by matching pursuit (Mallat and
Zhang 1993).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Float

from workbench.circuit.graph import Graph
from workbench.discovery.criteria import Criteria
from workbench.discovery.frontier import keeping
from workbench.discovery.ranking import first_edges
from workbench.engine.circuits import Circuits, graph_of_runs
from workbench.progress import progress_bar

SHARES = (0.1, 0.25, 0.5)
"""Shares of the edges that a round tries to leave out, all measured together."""
DAMPING = 0.1
"""Of the damping, per edge and prompt: the more edges than prompts, the more their gradients cancel by chance."""
PROMPTS = 24
"""Prompts against each counterfactual whose gradients order the edges."""
FEW = (1, 3, 5)
"""Numbers of edges that a round tries besides in small circuits."""
LEAST_GAIN = 0.05
"""Rounds end when one leaves out less than this share of the edges, or fewer than three."""
BLOCKS = 500
"""In how many blocks a round orders edges at least: in large circuits several are chosen at a time."""
MEASURED = 160
"""Edges up to which every edge is left out by itself instead: exact, also where attention is too hard for
gradients, and then no dearer."""
ROUNDS = 12
SURE = 0.975
"""In what share of resamples the bounds have to hold: more than for sizes, because many more circuits are tried."""
LARGE = 20_000
"""Edges of a graph beyond which gradients in the circuit are not worth their time."""
FINER = 4
"""Sizes tried between two neighbours of the grid."""
Mask = Bool[np.ndarray, "*pos_class writer reader"]


def is_large(graph: Graph) -> bool:
    """Whether a graph is refined along the ranking alone, without gradients."""
    return graph.n_edges > LARGE


def cut_finer(
    order: np.ndarray,
    below: int,
    size: int,
    *,
    runs: Mapping[str, Circuits],
    criteria: Criteria,
    level: float = 0.95,
    seed: int = 0,
) -> Mask:
    """The first edges of a ranking, as few as keep the criteria, of `FINER` sizes between two.

    Args:
        order: flat indices of edges, best first.
        below, size: a size that is too small, and one that passes.
        runs: counterfactual → runs on the prompts that the criteria are held to.

    Returns:
        The circuit, pruned of dead ends.
    """
    graph = graph_of_runs(runs)
    mask = graph.prune(first_edges(graph, order, size))
    # From above, up to the first that fails: a smaller one could hold again only by luck.
    for n_edges in np.geomspace(size, below, FINER + 2)[1:-1].astype(int):
        smaller = graph.prune(first_edges(graph, order, int(n_edges)))
        if not keeping(smaller[None], runs, criteria, level=level, seed=seed)[0]:
            break
        mask = smaller
    return mask


def pruned(
    mask: Mask,
    *,
    gradients: Mapping[str, Circuits],
    runs: Mapping[str, Circuits],
    criteria: Criteria,
    level: float = 0.95,
    seed: int = 0,
    rounds: int = ROUNDS,
    progress: bool = False,
) -> Mask:
    """The smallest circuit found inside another that still keeps the criteria with their intervals.

    Args:
        mask: the circuit to begin with.
        gradients: counterfactual → runs on the prompts whose gradients order the edges.
        runs: counterfactual → runs on the prompts that the criteria are held to.
        seed: of the intervals.
        rounds: at most; each costs the gradients and the circuits of `SHARES`.

    Returns:
        The circuit, pruned of dead ends: the given one, where nothing can be left out.
    """
    graph = graph_of_runs(runs)
    with progress_bar(rounds, "prune", "round", shown=progress) as bar:
        for _ in range(rounds):
            n_edges = int(mask.sum())
            numbers = _numbers(n_edges)
            if not numbers:
                break
            if n_edges <= MEASURED:
                steps = measured_steps(mask, gradients)
            else:
                steps = edge_gradients(mask, gradients)
            order = removal_order(mask, steps, numbers[-1])
            candidates = []
            for n_left_out in numbers:
                candidate = mask.copy()
                candidate.flat[order[:n_left_out]] = False
                candidates.append(graph.prune(candidate))
            keeps = keeping(np.stack(candidates), runs, criteria, sure=SURE, level=level, seed=seed)
            bar.update()
            if not keeps.any():
                break
            kept = [candidate for candidate, held in zip(candidates, keeps, strict=True) if held]
            mask = min(kept, key=np.count_nonzero)
            bar.set_postfix_str(f"{int(mask.sum())} edges")
            gain = n_edges - int(mask.sum())
            if gain < max(FEW[1], LEAST_GAIN * n_edges):
                break
    return mask


def _numbers(n_edges: int) -> list[int]:
    """How many of so many edges a round tries to leave out, ascending."""
    numbers = {int(share * n_edges) for share in SHARES}
    # A single edge of thousands is not worth a round.
    if n_edges * SHARES[0] < 2 * FEW[-1]:
        numbers |= set(FEW)
    return sorted(number for number in numbers if 0 < number < n_edges)


@dataclass(frozen=True, eq=False)
class EdgeSteps:
    """How much the metric of each prompt falls when an edge is left out of a circuit: measured, or estimated.

    A column is a prompt against one counterfactual; counterfactuals count the same, each in units of its
    mean |m(full) - m(empty)|.

    Attributes:
        table: of all edges, those of the graph and those that do not exist.
        residual: what the circuit's metric has more than the model's.
    """

    table: Float[np.ndarray, "flat_edge column"]
    residual: Float[np.ndarray, "column"]


def edge_gradients(mask: Mask, runs: Mapping[str, Circuits]) -> EdgeSteps:
    """The gradients of the first prompts in a circuit, against each counterfactual."""
    tables, residuals = [], []
    for one in runs.values():
        columns, measured = _by_prompt(mask, one)
        n = len(measured)
        scale = float(np.abs(one.full - one.empty).mean()) * np.sqrt(n * len(runs))
        tables.append(columns / scale)
        residuals.append((measured - one.full[:n]) / scale)
    return EdgeSteps(np.concatenate(tables, 1), np.concatenate(residuals))


def measured_steps(mask: Mask, runs: Mapping[str, Circuits]) -> EdgeSteps:
    """The same, measured: every edge of the circuit is left out by itself."""
    inside = np.flatnonzero(mask)
    without = np.repeat(mask[None], len(inside) + 1, axis=0)
    without.reshape(len(without), -1)[np.arange(len(inside)), inside] = False
    masks = np.concatenate([np.zeros_like(mask)[None], graph_of_runs(runs).prune(without)])
    tables, residuals = [], []
    for one in runs.values():
        empty, *left, whole = one.measure(masks)
        scale = float(np.abs(one.full - empty).mean()) * np.sqrt(len(whole) * len(runs))
        table = np.zeros((mask.size, len(whole)))
        table[inside] = (whole - np.stack(left)) / scale
        tables.append(table)
        residuals.append((whole - one.full) / scale)
    return EdgeSteps(np.concatenate(tables, 1), np.concatenate(residuals))


def _by_prompt(mask: Mask, runs: Circuits) -> tuple[np.ndarray, np.ndarray]:
    """[flat_edge, example], the gradients, and [example], the metric of the circuit, of the first prompts."""
    columns: list[np.ndarray] = []
    measured: list[float] = []
    # One prompt in each batch, so that a backward pass costs one prompt and not all; but the runs of an example
    # with answers of several tokens are in one batch with those of all others. Batches are prepared anew in
    # each round: of a large model, all together would not fit into memory.
    per_batch = 1 if runs.expansion.plain else len(runs.expansion.pairs)
    for batch in islice(runs.batches(per_batch), PROMPTS):
        keep = torch.from_numpy(mask[None]).float().requires_grad_()
        of_example = runs.soft(keep, batch)[0][:PROMPTS]
        for i, one in enumerate(of_example):
            last = i == len(of_example) - 1
            (gradient,) = torch.autograd.grad(one, keep, retain_graph=not last)
            columns.append(gradient[0].double().cpu().numpy().ravel())
            measured.append(float(one.detach()))
    return np.stack(columns, 1), np.array(measured)


def removal_order(mask: Mask, estimated: EdgeSteps, n: int) -> np.ndarray:
    """Flat indices of n edges of a circuit: left out in this order, the residuals stay smallest."""
    inside = np.flatnonzero(mask)
    steps = estimated.table[inside]
    damping = DAMPING * len(inside) / len(estimated.residual)
    sizes = (1 + damping) * (steps**2).sum(1)
    residual = estimated.residual.copy()
    left = np.ones(len(inside), dtype=bool)
    order: list[int] = []
    block = max(1, len(inside) // BLOCKS)
    while len(order) < n:
        # |residual - step|^2 - |residual|^2, damped, of each edge that is left.
        cost = np.where(left, sizes - 2 * (steps @ residual), np.inf)
        chosen = _least(cost, min(block, n - len(order)))
        left[chosen] = False
        residual = residual - steps[chosen].sum(0)
        order += inside[chosen].tolist()
    return np.array(order, dtype=int)


def _least(cost: np.ndarray, n: int) -> Sequence[int] | np.ndarray:
    """The indices of the n smallest numbers, the smallest first; equal ones in order."""
    if n == 1:
        return [int(np.argmin(cost))]
    return np.argsort(cost, kind="stable")[:n]
