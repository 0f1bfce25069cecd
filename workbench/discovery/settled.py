"""`steps="auto"`: points on the path of integrated gradients, doubled until the scores settle.

A path through a hard attention pattern changes at a few points only, and a handful of steps can miss them all:
on programs of known circuit five steps rank true edges at random and fifty find them. Read `settled_scores`.
"""

import numpy as np

from workbench.circuit.graph import Graph
from workbench.discovery.gradient_scores import gradient_scores
from workbench.discovery.score_table import ScoreTable
from workbench.engine.circuits import Circuits
from workbench.errors import warn
from workbench.statistics import gap_of_means

FEWEST_STEPS, MOST_STEPS = 5, 80
"""The first number of steps, which is doubled up to the second. Midpoints of n and of 2n steps share none, so
nothing is reused: to settle at n takes as many passes as about 2n steps."""
TOP_SHARE, TOP_EDGES = 0.01, 10
"""The top of the ranking: this share of the edges, and at least so many."""
NOTHING = 0.01
"""Of the top only scores of at least this share of the largest count: those of smaller ones are mostly noise, whose
order never settles."""
SAME_EDGES, SCORE_CHANGE, MISSED = 0.95, 0.05, 0.05
"""Settled: so much of the top stays, its scores change by less than this share of their size, and the edges of
the input miss less than this share of what patching the input does."""
COMPLETE = ("eap-ig-inputs", "ig-activations")
"""Methods whose scores of the input's edges add up to the effect of the input, with infinitely many steps."""


def settled_scores(
    circuits: Circuits, method: str, *, grid: str, keep: tuple[str, ...], budget: int | None, progress: bool
) -> ScoreTable:
    """The scores with the first number of steps at which they have settled, with a warning where none has.

    Args:
        method, grid, keep, budget: as in `score_edges`.

    Returns:
        the scores; their facts say `steps`, whether they are `settled`, `completeness_gap` (the share of the
        input's effect that its edges miss; NaN where that is unknown) and all `forwards`.
    """
    whole = _effect_of_input(circuits) if method in COMPLETE else float("nan")
    previous, forwards, steps, missed = None, 0, FEWEST_STEPS, float("nan")
    while True:
        table = gradient_scores(
            circuits, method, steps=steps, grid=grid, keep=keep, budget=budget, progress=progress
        )
        forwards += int(table.facts["forwards"])
        scores = _mean_scores(table, circuits.graph)
        if np.isfinite(whole):
            of_input = table.values.mean(0).sum(0)[0]
            missed = abs(float(of_input[circuits.graph.whole.exists[0]].sum()) - whole) / abs(whole)
        settled = previous is not None and has_settled(previous, scores) and not missed > MISSED
        if settled or steps >= MOST_STEPS:
            break
        previous, steps = scores, 2 * steps
    if not settled:
        gap = "" if np.isnan(missed) else f", and the input's edges miss {missed:.0%} of its effect"
        warn(
            f"score_edges: the scores of {method} have not settled with {steps} steps{gap}. Attention or "
            "neurons switch at few points of the path: trust the ranking less, or use method='exact'."
        )
    facts = {"settled": settled, "completeness_gap": missed, "forwards": forwards}
    return ScoreTable(table.values, table.facts | facts)


def _effect_of_input(circuits: Circuits) -> float:
    """m(clean) - m(the input at its patched value, everything else recomputed); NaN where that is nothing."""
    others = circuits.graph.exists.copy()
    others[..., 0, :] = False
    return float(gap_of_means(circuits.full, circuits.measure(others[None])[0]))


def _mean_scores(table: ScoreTable, graph: Graph) -> np.ndarray:
    """[edge]: the mean over prompts, at each class of positions that the graph has."""
    values = table.values.mean(0)
    if graph.positions is None:
        values = values.sum(0)
    return values[graph.exists]


def has_settled(before: np.ndarray, now: np.ndarray) -> bool:
    """Whether the strongest edges [edge] are the same, and their scores too.

    >>> has_settled(np.array([3.0, 2.0, 0.1]), np.array([3.05, 2.0, 0.0]))
    True
    >>> has_settled(np.array([3.0, 0.0, 0.1]), np.array([3.0, 2.0, 0.0]))
    False
    """
    sizes = np.abs(before), np.abs(now)
    n_top = min(len(now), max(TOP_EDGES, int(TOP_SHARE * len(now))))
    top = np.argsort(-sizes[1], kind="stable")[:n_top]
    top = top[sizes[1][top] >= NOTHING * sizes[1].max()]
    # By threshold and not by place, so that edges that tie at the border are in.
    lowest = np.partition(sizes[0], -n_top)[-n_top]
    same = float((sizes[0][top] >= lowest * (1 - 1e-6)).mean())
    change = float(np.abs(now - before)[top].sum())
    return same >= SAME_EDGES and change <= SCORE_CHANGE * float(sizes[1][top].sum())
