"""A circuit that the criteria choose, for studies whose circuit has to hold against every counterfactual.

Edges are scored on some prompts, the size is chosen on others, and what stays when the prompts are drawn
again is the core. Read `by_rule`. Nothing here looks at held-out prompts.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.discovery.criteria import Criteria
from workbench.discovery.frontier import best_trade_off
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.errors import NoCircuit, unwarned
from workbench.evaluation.curves import mean_jaccard
from workbench.evaluation.rule_stability import in_core
from workbench.experiment import PairsInModel
from workbench.studies.prediction import Estimate
from workbench.tasks.registry import load_task

DRAWS = 10
"""Resamples of the prompts that make the core."""


def find_and_select(task: str, train: PairsInModel) -> tuple[PairsInModel, PairsInModel]:
    """Training pairs that make scores, and others that choose a size, each as many as `train` has."""
    pairs = load_task(task, train.model, n=2 * len(train), seed=train.seed, split="train")
    find, select = (
        PairsInModel.of(train.model, part, metric=train.metric)
        for part in pairs.parts((1, 1), seed=train.seed)
    )
    return find, select


def scores_of(find: PairsInModel, method: str) -> xr.DataArray:
    """(ablation, example, writer, reader): scores of single prompts against every counterfactual."""
    return score_edges(
        find.model, find.pairs, value=find.counterfactuals, metric=find.metric, method=method,
        keep=("example",), progress=False,
    )  # fmt: skip


def by_rule(
    scores: xr.DataArray, select: PairsInModel, criteria: Criteria, *, refine: str | None = None
) -> Circuit:
    """The smallest circuit that keeps the criteria against every counterfactual.

    Raises:
        NoCircuit: no size up to `criteria.at_most` keeps them.
    """
    return find_circuit(
        scores, criteria=criteria, refine=refine, model=select.model, pairs=select.pairs,
        value=select.counterfactuals, metric=select.metric,
    )  # fmt: skip


def by_rule_or_nearest(
    scores: xr.DataArray, select: PairsInModel, criteria: Criteria
) -> tuple[Circuit, bool]:
    """The refined circuit of `by_rule` and True; where there is none the nearest that counts and False."""
    try:
        return by_rule(scores, select, criteria, refine="prune"), True
    except NoCircuit as none:
        measured = none.frontier
        assert isinstance(measured, xr.Dataset)
        return find_circuit(scores, n_edges=best_trade_off(measured)), False


@dataclass(frozen=True, eq=False)
class Core:
    """What stays of a circuit when the prompts of its scores are drawn again.

    Attributes:
        circuit: the edges that nine in ten of the draws have, without dead ends.
        stability: the Jaccard index of two draws, with the central share of the pairs.
    """

    circuit: Circuit
    stability: Estimate


def core(scores: xr.DataArray, n_edges: int, *, draws: int = DRAWS, seed: int = 0) -> Core:
    """The core of the best `n_edges` edges: every draw is cut at this size, so that no circuit is run.

    Args:
        scores: as `scores_of` returns them.
        n_edges: counted before dead ends are pruned.
    """
    rng, n = np.random.default_rng(seed), scores.sizes["example"]
    # What a warning says of one circuit need not be said again for each draw.
    with unwarned():
        circuits = [
            find_circuit(scores.isel(example=rng.integers(0, n, n)), n_edges=n_edges) for _ in range(draws)
        ]
    edges = [one.edges for one in circuits]
    staying = Circuit.of(circuits[0].graph, in_core(np.mean(edges, axis=0))).pruned
    agreement = mean_jaccard(edges, 0.95)
    note = f"Jaccard index of circuits of {n_edges} edges found on {draws} resamples of the prompts"
    return Core(staying, Estimate("stability", *agreement, note))


def estimated_swaps(scores: xr.DataArray) -> pd.Series:
    """Writer → about how much swapping its output changes the metric, as a share of the largest change.

    The sum of the scores of a writer's edges estimates the swap; its size is averaged over counterfactuals.
    """
    by_writer = scores.mean("example").sum("reader")
    if "ablation" not in by_writer.dims:
        by_writer = by_writer.expand_dims("ablation")
    size = abs(by_writer)
    return (size / size.max("writer")).mean("ablation").to_series()
