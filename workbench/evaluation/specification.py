"""`specification_curve`: which edges are found whatever is chosen on the way.

A circuit depends on choices that no theory makes: the counterfactual, the patched value, the metric, the
method, the prompts. Here every combination of them scores all edges and gives a circuit of one size. What is
in nearly all of them owes nothing to a choice. No circuit is run. Read `specification_curve`.

Sources: Simonsohn et al. 2020, "Specification curve analysis"; 2407.08734 (choices that move faithfulness).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from workbench.arguments import checked
from workbench.circuit.graph import Graph
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.capture import capture
from workbench.engine.counterfactuals import KINDS_READ, counterfactual_values, pairs_for, those_of
from workbench.engine.values import Value, mean, zero
from workbench.errors import CircuitError, PromptError
from workbench.evaluation.curves import jaccard
from workbench.metrics.metric import GivenMetric
from workbench.metrics.metric import metric as as_metric
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.progress import progress_bar
from workbench.prompts.pairs import PromptPairs
from workbench.results import clean_attrs
from workbench.statistics import central, check_level, check_seed

METHODS = ("eap-ig-inputs", "clean-corrupt")
"""Both keep the scores of single prompts at no cost."""
ROBUST = 0.8
"""Share of the specifications in which a robust edge is."""
CHOICES = ("ablation", "metric", "score_method", "draw")


@checked
@model_call()
def specification_curve(
    model: Model,
    pairs: PromptPairs,
    *,
    n_edges: int,
    metrics: Sequence[GivenMetric] | None = None,
    methods: Sequence[str] = METHODS,
    draws: int = 5,
    steps: int = 5,
    level: float = 0.95,
    seed: int = 0,
    budget: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """The circuits of one size under every combination of choices, and the edges that most of them have.

    Choices: the patched value (every counterfactual of the pairs, `zero`, and `mean` of the clean prompts; the
    last two do not depend on the counterfactual, so each counts once), the metric, the method, and `draws`
    resamples of the prompts, the same ones for every other choice. A circuit has the `n_edges` edges that are
    largest by `joint_scores`, without dead ends.

    Cost: no circuit is run; edges are scored once for each value, metric and method: with two counterfactuals,
    two metrics and two methods 16 times `score_edges` on all prompts, two backward passes each for
    "clean-corrupt" and `steps` for "eap-ig-inputs".

    Args:
        pairs: whose counterfactuals are taken, `further` among them.
        n_edges: of each circuit, before dead ends are pruned.
        metrics: None takes "logit_diff" and "prob_diff", and for answers of several tokens
            "sequence_logprob_diff" and "sequence_logprob".
        methods: of `score_edges`, all of which keep scores of examples.
        draws: resamples of the prompts.
        steps: points on the path of the methods that take one.
        level: the central share of pairs that intervals bound.
        seed: of the resamples.

    Returns:
        Dataset over (ablation, metric, score_method, draw, writer, reader): `edges`, the circuits; over
        (ablation, metric, score_method, draw) `n_edges` without dead ends; over (writer, reader) `share` of the
        specifications that have the edge (NaN where none exists) and `robust`, whether 80 % of them do; over
        (choice,), one of "ablation", "metric", "score_method", "draw": `jaccard`, the mean agreement of two circuits
        that differ in this choice alone, the central share of such pairs in `jaccard_low`, `jaccard_high`, and
        `n_pairs` (NaN and 0 where there is nothing to choose).
        attrs: `n_specifications`, `n_robust`, `n` (prompts).

    Raises:
        CircuitError: a size that the graph does not have, no draws, or no metric or method.
        PromptError: fewer than two prompts.
        UnknownName: a metric or a method that does not exist.
        MetricError: a metric that cannot be measured on these prompts, or whose gradient says nothing.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> curve = specification_curve(model, pairs, n_edges=40, draws=1, methods=["clean-corrupt"], progress=False)
    >>> curve["ablation"].values.tolist()[-2:]
    ['zero', 'mean']
    """
    check_level(level)
    check_seed(seed)
    graph = Graph.of(model)
    if not 0 < n_edges <= graph.n_edges:
        raise CircuitError(f"specification_curve: n_edges={n_edges}; this graph has {graph.n_edges} edges.")
    if draws < 1:
        raise CircuitError(f"specification_curve: draws={draws}; at least one resample is needed.")
    if len(pairs) < 2:
        raise PromptError(
            f"specification_curve: n={len(pairs)}; every resample of a single prompt is the same."
        )
    measures = [as_metric(one) for one in (_metrics_of(pairs) if metrics is None else metrics)]
    if not measures or len(methods) == 0:
        raise CircuitError("specification_curve: give at least one metric and one method.")
    values = _values(model, pairs, budget)
    drawn = np.random.default_rng(seed).integers(0, len(pairs), (draws, len(pairs)))
    shape = (len(values), len(measures), len(methods), draws)
    edges = np.zeros((*shape, *graph.exists.shape), dtype=bool)
    with progress_bar(
        len(values) * len(measures) * len(methods), "scores", "specification", shown=progress
    ) as bar:
        for i, (name, value) in enumerate(values.items()):
            for j, measure in enumerate(measures):
                for k, method in enumerate(methods):
                    scores = score_edges(
                        model, pairs_for(pairs, name), value=value, metric=measure, method=method, steps=steps,
                        seed=seed, keep=("example",), budget=budget, progress=False,
                    )  # fmt: skip
                    for d, examples in enumerate(drawn):
                        edges[i, j, k, d] = find_circuit(scores.isel(example=examples), n_edges=n_edges).edges
                    bar.update()
    coords = {
        "ablation": list(values), "metric": [measure.name for measure in measures], "score_method": list(methods),
        "writer": list(graph.writers), "reader": list(graph.readers), "choice": list(CHOICES),
    }  # fmt: skip
    columns = _columns(graph, edges, level)
    facts = pairs.attrs(model) | {
        "kind": "specification_curve", "n_requested": n_edges, "n_specifications": int(np.prod(shape)),
        "n_robust": int(columns["robust"][1].sum()), "level": level, "seed_of_draws": seed, "steps": steps,
    }  # fmt: skip
    return xr.Dataset(columns, coords=coords, attrs=clean_attrs(facts))


def _metrics_of(pairs: PromptPairs) -> tuple[str, str]:
    """Two metrics of the answers of these pairs."""
    if pairs.answers.shape[2] > 1 or pairs.wrong.shape[2] > 1:
        return "sequence_logprob_diff", "sequence_logprob"
    return "logit_diff", "prob_diff"


def _values(model: Model, pairs: PromptPairs, budget: int | None) -> dict[str, Value]:
    """The patched values by name: of each counterfactual, zero, and the mean of the clean prompts."""
    read = those_of(model, KINDS_READ)
    clean = capture(model, pairs.clean, sites=read, budget=budget, progress=False)
    values = counterfactual_values(model, pairs, budget=budget)
    for name in ("zero", "mean"):
        if name in values:
            raise CircuitError(
                f"specification_curve: a counterfactual is called {name!r}, which is the name of a value. "
                "Call it otherwise."
            )
    return {**values, "zero": zero(), "mean": mean(clean)}


def _columns(graph: Graph, edges: np.ndarray, level: float) -> dict[str, Any]:
    """The columns of the result, from circuits [ablation, metric, score_method, draw, writer, reader]."""
    share = np.where(graph.exists, edges.mean((0, 1, 2, 3)), np.nan)
    agreements = [_agreement(np.moveaxis(edges, axis, 0), level) for axis in range(len(CHOICES))]
    middle, low, high, n_pairs = zip(*agreements, strict=True)
    return {
        "edges": ((*CHOICES, "writer", "reader"), edges),
        "n_edges": (CHOICES, edges.sum((-2, -1))),
        "share": (("writer", "reader"), share),
        # Of ten specifications .8 is eight; rounding of the mean must not ask for nine.
        "robust": (("writer", "reader"), np.nan_to_num(share) >= ROBUST - 1e-9),
        "jaccard": ("choice", np.array(middle)), "jaccard_low": ("choice", np.array(low)),
        "jaccard_high": ("choice", np.array(high)), "n_pairs": ("choice", np.array(n_pairs)),
    }  # fmt: skip


def _agreement(circuits: np.ndarray, level: float) -> tuple[float, float, float, int]:
    """Mean Jaccard index of circuits [choice, ..., writer, reader] that differ in the first axis alone."""
    n_choices = len(circuits)
    # [choice, all other choices, edge]
    flat = circuits.reshape(n_choices, -1, circuits.shape[-2] * circuits.shape[-1])
    indices = []
    for a, b in combinations(flat, 2):
        indices += [jaccard(first, second) for first, second in zip(a, b, strict=True)]
    if not indices:
        return np.nan, np.nan, np.nan, 0
    low, high = central(np.array(indices), level)
    return float(np.mean(indices)), float(low), float(high), len(indices)
