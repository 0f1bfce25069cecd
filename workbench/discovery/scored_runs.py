"""Runs of circuits for scores: with the values and the metric that the scores were made with.

`find_circuit` measures sizes with them. Read `runs_by_name`; `values_of` and `metric_of` read the attrs of
scores.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from workbench.circuit.graph import Graph
from workbench.discovery.ranking import first_edges
from workbench.discovery.score_arrays import is_number
from workbench.engine.circuits import Circuits
from workbench.engine.counterfactuals import counterfactual_values, pairs_for
from workbench.engine.given_values import GivenValue, given_value, writer_sites
from workbench.engine.values import Value, zero
from workbench.errors import CircuitError
from workbench.metrics.metric import BUILT_IN, GivenMetric, Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.statistics import ratio_of_means

FIRST_SIZES, FINER_SIZES = 24, 12
"""How many sizes `min_faithfulness` tries at once: over the whole range, then between two neighbours."""


def runs_of(
    scores: xr.DataArray,
    graph: Graph,
    target: float,
    model: Model | None,
    pairs: PromptPairs | None,
    value: Value | None,
    metric: GivenMetric | None,
    budget: int | None,
) -> Circuits:
    """Runs of circuits on the prompts that a size is searched on."""
    model, pairs = _measurable("min_faithfulness", graph, model, pairs)
    if not is_number(target):
        raise CircuitError(f"find_circuit: min_faithfulness={target} is not a finite number.")
    if value is None:
        value = value_of(scores, graph, model, pairs)
    return Circuits(model, graph, pairs, value=value, metric=metric_of(scores, metric), budget=budget)


def runs_by_name(
    scores: xr.DataArray,
    graph: Graph,
    model: Model | None,
    pairs: PromptPairs | None,
    value: Value | Mapping[str, Value] | None,
    metric: GivenMetric | None,
    budget: int | None,
) -> dict[str, Circuits]:
    """Runs of circuits with each value, by its name."""
    model, pairs = _measurable("criteria", graph, model, pairs)
    if value is None:
        value = values_of(scores, graph, model, pairs)
    if not isinstance(value, Mapping):
        value = {pairs.counterfactual: value}
    measure = metric_of(scores, metric)
    runs = {}
    for name, one in value.items():
        some = pairs_for(pairs, name)
        runs[name] = Circuits(model, graph, some, value=one, metric=measure, budget=budget)
    return runs


def patched_values(
    value: GivenValue | Mapping[str, GivenValue] | None,
    graph: Graph,
    model: Model | None,
    pairs: PromptPairs | None,
    budget: int | None,
) -> Value | dict[str, Value] | None:
    """Values that were given by name, made of all the pairs once: halves of the pairs then share one mean."""
    # What lacks is refused where runs are made.
    if value is None or model is None or pairs is None or graph.shape != Graph.of(model).shape:
        return None
    sites = writer_sites(graph)
    if isinstance(value, Mapping):
        values = {}
        for name, one in value.items():
            values[name] = given_value(one, model, pairs_for(pairs, name), sites=sites, budget=budget)
        return values
    return given_value(value, model, pairs, sites=sites, budget=budget)


def _measurable(
    argument: str, graph: Graph, model: Model | None, pairs: PromptPairs | None
) -> tuple[Model, PromptPairs]:
    """The model and the pairs, if circuits of the graph can be measured with them; `argument` asks for it."""
    if model is None or pairs is None:
        raise CircuitError(f"find_circuit: {argument}= needs model= and pairs= to measure circuits on.")
    if graph.shape != Graph.of(model).shape:
        raise CircuitError(
            f"find_circuit: the scores are of another model: {graph}; this one has {Graph.of(model)}."
        )
    return model, pairs


def smallest_size(runs: Circuits, order: np.ndarray, target: float) -> int:
    """The smallest size tried whose circuit is faithful enough: a coarse grid, then finer below its first."""
    graph = runs.graph

    def faithfulness(sizes: np.ndarray) -> np.ndarray:
        """[size]: of the circuits of the first edges, in one batch."""
        masks = np.stack([graph.prune(first_edges(graph, order, int(n))) for n in sizes])
        return ratio_of_means(runs.measure(masks).T, runs.full[:, None], runs.empty[:, None])

    # Invariant: `high` suffices; of the sizes tried up to `low`, none did.
    low, high = 0, len(order)
    if not faithfulness(np.array([high]))[0] >= target:
        raise CircuitError(
            f"find_circuit: even all {high} edges do not reach min_faithfulness={target} on these prompts."
        )
    # Small sizes are tried more densely: most behaviours need few edges.
    sizes = np.unique(np.geomspace(1, high, FIRST_SIZES).astype(int))
    while len(sizes):
        suffices = faithfulness(sizes) >= target
        if suffices.any():
            first = int(np.argmax(suffices))
            high = int(sizes[first])
            # Nothing below the first size was tried now, so `low` stays where it is.
            if first:
                low = int(sizes[first - 1])
        else:
            low = int(sizes[-1])
        if high - low <= 1:
            break
        sizes = np.unique(np.linspace(low + 1, high - 1, FINER_SIZES).astype(int))
    return high


def values_of(
    scores: xr.DataArray, graph: Graph, model: Model, pairs: PromptPairs
) -> Value | dict[str, Value]:
    """The patched value, or values by name, that scores were made with, for these prompts."""
    if "ablation" not in scores.coords:
        return value_of(scores, graph, model, pairs)
    values: dict[str, Value] = dict(counterfactual_values(model, pairs, sites=writer_sites(graph)))
    names = [str(name) for name in np.atleast_1d(scores["ablation"].values)]
    unknown = [name for name in names if name not in values and name != "zero"]
    if unknown:
        raise CircuitError(
            f"find_circuit: the scores were made with the value {unknown[0]!r}, and these pairs have the "
            f"counterfactuals {', '.join(values)}: pass value=."
        )
    return {name: values.get(name, zero()) for name in names}


def value_of(scores: xr.DataArray, graph: Graph, model: Model, pairs: PromptPairs) -> Value:
    """The patched value that scores were made with, for these prompts.

    Raises `CircuitError` where it cannot be made again and so has to be given.
    """
    # Scores know the name of a value that was given by name.
    name = scores.attrs.get("value_name", scores.attrs.get("value", ""))
    if "value_name" in scores.attrs or name in ("zero", "from_store"):
        return given_value(str(name), model, pairs, sites=writer_sites(graph))
    raise CircuitError(
        f"find_circuit: the scores were made with value={name!r}, which cannot be made again from "
        "them: pass value=."
    )


def metric_of(scores: xr.DataArray, metric: GivenMetric | None) -> Metric:
    """The metric given, or that of the scores.

    Raises `CircuitError` where the scores were made with a metric of your own and none is given.
    """
    if metric is not None:
        return as_metric(metric)
    name = scores.attrs.get("metric", "")
    if name not in BUILT_IN:
        raise CircuitError(
            f"find_circuit: the scores were made with a metric of your own ({name!r}): pass metric=."
        )
    return as_metric(name)
