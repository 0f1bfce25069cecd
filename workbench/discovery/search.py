"""From scores of edges or nodes to a circuit: the best, those grown from the logits, or as few as suffice.

Read `find_circuit` first. Arrays of scores are read and refused by `score_arrays.py`; nothing here scores.
"""

import heapq
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from torch import Tensor

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit, mostly_dead_ends
from workbench.circuit.graph import Graph
from workbench.discovery.believable import CriteriaSearch, by_criteria
from workbench.discovery.criteria import Criteria
from workbench.discovery.frontier import best_trade_off
from workbench.discovery.score_arrays import (
    RANKINGS,
    check_array,
    finite_matrix_of,
    graph_in_attrs,
    graph_of,
    is_number,
    joint_scores,
    matrix_of,
    supporting,
)
from workbench.engine.capture import capture
from workbench.engine.circuits import Circuits
from workbench.engine.counterfactuals import counterfactual_values, pairs_for
from workbench.engine.values import Value, from_store, zero
from workbench.errors import CircuitError, NoCircuit, NotFinite, UnknownName, unwarned, warn
from workbench.experiment import writer_sites
from workbench.metrics.metric import BUILT_IN, Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.results import clean_attrs
from workbench.statistics import ratio_of_means

STRATEGIES = ("top", "greedy")
FIRST_SIZES, FINER_SIZES = 24, 12
"""How many sizes `min_faithfulness` tries at once: over the whole range, then between two neighbours."""


@checked
@model_call()
def find_circuit(
    scores: xr.DataArray,
    *,
    n_edges: int | None = None,
    threshold: float | None = None,
    n_nodes: int | None = None,
    min_faithfulness: float | None = None,
    criteria: Criteria | None = None,
    refine: Literal["prune"] | str | None = None,
    by: Literal["magnitude", "signed"] | str = "magnitude",
    strategy: Literal["top", "greedy"] | str = "top",
    model: Model | None = None,
    pairs: PromptPairs | None = None,
    value: Value | Mapping[str, Value] | None = None,
    metric: str | Metric | Callable[..., Tensor] | None = None,
    budget: int | None = None,
    progress: bool = False,
) -> Circuit:
    """The circuit of the highest-scored edges; dead ends are pruned afterwards.

    A warning says where that takes more than half of them; `strategy="greedy"` is the way out.

    Args:
        scores: from `score_edges` (any graph), or for `n_nodes` from `score_nodes`. Scores of single prompts
            or of several counterfactuals (axes `example`, `ablation`) are joined by `joint_scores`.
        n_edges: how many edges to choose, counted before pruning.
        threshold: choose every edge with a score of at least this (an absolute score, unless `by="signed"`).
        n_nodes: how many heads and MLPs to choose, by their node scores; the circuit is every edge between
            them.
        min_faithfulness: the smallest number of edges whose circuit keeps this share of the behaviour on
            `pairs`. Sizes are searched on a grid that is refined; faithfulness need not grow with size, so a
            smaller one may exist.
        criteria: the smallest number of edges of a grid that keeps these `Criteria` on `pairs`, at it and at
            the next two sizes, against every counterfactual.
        refine: "prune", with `criteria`: then leave out edges as long as the criteria hold.
        by: "magnitude" ranks by the size of a score: edges that oppose the behaviour are part of what the
            model does. "signed" asks another question, what supports the behaviour: without the edges that
            oppose it such a circuit can exceed the model.
        strategy: "top" takes the best edges wherever they are; "greedy" grows from the logits and always adds
            the best edge into a node that is there already (not with `threshold`), so every edge has a path
            to the logits.
        model, pairs: for `min_faithfulness` and `criteria`. Choose on prompts that made no scores, and report
            numbers of a third set: the prompts that chose a circuit flatter it.
        value, metric: for the same; None takes those of the scores. For `criteria` several values by name:
            the circuit has to keep the criteria with each.
        budget: for the same: bytes of working memory.

    Raises:
        CircuitError: not exactly one way to say how many edges, or an array that holds no usable scores.
        NoCircuit: no size up to `criteria.at_most` keeps the criteria; its `frontier` has the measures.
        NotFinite: an edge or node has a score that is NaN or infinite; the message names it.
        UnknownName: a ranking or a strategy that does not exist.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=8)
    >>> scores = wb.score_edges(model, pairs, value=wb.zero())
    >>> wb.find_circuit(scores, n_edges=30).n_requested
    30
    """
    _check_one_size(
        {
            "n_edges": n_edges,
            "threshold": threshold,
            "n_nodes": n_nodes,
            "min_faithfulness": min_faithfulness,
            "criteria": criteria,
        }
    )
    if refine is not None and criteria is None:
        raise CircuitError("find_circuit: refine= goes with criteria=, which say what must not be lost.")
    if by not in RANKINGS:
        raise UnknownName("by", by, RANKINGS)
    if strategy not in STRATEGIES:
        raise UnknownName("strategy", strategy, STRATEGIES)
    if n_nodes is not None:
        if strategy == "greedy":
            raise CircuitError(
                "find_circuit: greedy grows a circuit by its edges, so it goes with n_edges= and "
                "not with n_nodes=."
            )
        return _of_nodes(scores, n_nodes, by)
    # Scores keep their sign in the circuit, whatever ranked its edges.
    signed = joint_scores(scores, by="signed")
    graph = graph_of(signed)
    values = finite_matrix_of(signed, graph, "find_circuit")
    sizes = values
    if by == "magnitude":
        sizes = np.abs(matrix_of(joint_scores(scores), graph))
    rank = np.where(graph.exists, sizes, -np.inf)
    if threshold is not None:
        if strategy == "greedy":
            raise CircuitError(
                "find_circuit: a threshold says which edges, so there is nothing to grow: use "
                "n_edges= with greedy."
            )
        if not is_number(threshold):
            raise CircuitError(f"find_circuit: threshold={threshold} is not a finite number.")
        return _circuit_of(scores, graph, rank >= threshold, values, by)
    if n_edges is not None and not (type(n_edges) is int and 0 <= n_edges <= graph.n_edges):
        raise CircuitError(f"find_circuit: n_edges={n_edges}; this graph has {graph.n_edges} edges.")
    order = best_first(graph, rank)
    if strategy == "greedy":
        order = grown(graph, rank, graph.n_edges if n_edges is None else n_edges)
    if criteria is not None:
        several = _runs_by_name(scores, graph, model, pairs, value, metric, budget)
        search = by_criteria(order, several, criteria, refine=refine, progress=progress)
        return _believable(scores, graph, search, criteria, values, by)
    if n_edges is None:
        assert min_faithfulness is not None
        if isinstance(value, Mapping):
            raise CircuitError("find_circuit: min_faithfulness= takes one value; criteria= takes several.")
        runs = _runs(scores, graph, min_faithfulness, model, pairs, value, metric, budget)
        n_edges = _smallest_size(runs, order, min_faithfulness)
    return _circuit_of(scores, graph, first_edges(graph, order, n_edges), values, by)


def _check_one_size(sizes: Mapping[str, Any]) -> None:
    """Raise `CircuitError` unless exactly one of the arguments that say how many edges is given."""
    named = [name for name, number in sizes.items() if number is not None]
    if len(named) != 1:
        raise CircuitError(
            f"find_circuit: give exactly one of {'=, '.join(sizes)}=; given: {', '.join(named) or 'none'}."
        )


def best_first(graph: Graph, rank: np.ndarray) -> np.ndarray:
    """Flat indices of the edges of a graph, the highest rank first; equal ones in graph order."""
    order = np.argsort(-np.where(graph.exists, rank, -np.inf), axis=None, kind="stable")
    return order[: graph.n_edges]


def first_edges(graph: Graph, order: np.ndarray, n: int) -> np.ndarray:
    """bool [(pos,) writer, reader]: the first n of ordered edges."""
    edges = np.zeros(graph.exists.size, dtype=bool)
    edges[order[:n]] = True
    return edges.reshape(graph.exists.shape)


def grown(graph: Graph, rank: np.ndarray, n: int) -> np.ndarray:
    """Flat indices of edges in the order in which a circuit grows from the logits."""
    order: list[int] = []
    flat = np.arange(graph.exists.size).reshape(graph.exists.shape)
    inside = np.zeros(len(graph.readers), dtype=bool)
    # A heap of (-rank, index): the best edge into what is inside is popped first, equal ones in graph order.
    waiting: list[tuple[float, int]] = []

    def enter(readers: np.ndarray) -> None:
        """Put every edge into these readers on the heap."""
        new = readers & ~inside
        inside[new] = True
        edges = flat[..., new][graph.exists[..., new]]
        for index in edges.tolist():
            heapq.heappush(waiting, (-float(rank.flat[index]), index))

    enter(np.arange(len(graph.readers)) == len(graph.readers) - 1)
    while waiting and len(order) < n:
        _, index = heapq.heappop(waiting)
        order.append(index)
        writer = index // len(graph.readers) % len(graph.writers)
        enter(graph.feeds[:, writer])
    return np.array(order, dtype=int)


def _runs(
    scores: xr.DataArray,
    graph: Graph,
    target: float,
    model: Model | None,
    pairs: PromptPairs | None,
    value: Value | None,
    metric: str | Metric | Callable[..., Tensor] | None,
    budget: int | None,
) -> Circuits:
    """Runs of circuits on the prompts that a size is searched on."""
    if model is None or pairs is None:
        raise CircuitError("find_circuit: min_faithfulness= needs model= and pairs= to measure circuits on.")
    if not is_number(target):
        raise CircuitError(f"find_circuit: min_faithfulness={target} is not a finite number.")
    if graph.shape != Graph.of(model).shape:
        raise CircuitError(
            f"find_circuit: the scores are of another model: {graph}; this one has {Graph.of(model)}."
        )
    if value is None:
        value = value_of(scores, graph, model, pairs)
    return Circuits(model, graph, pairs, value=value, metric=metric_of(scores, metric), budget=budget)


def _runs_by_name(
    scores: xr.DataArray,
    graph: Graph,
    model: Model | None,
    pairs: PromptPairs | None,
    value: Value | Mapping[str, Value] | None,
    metric: str | Metric | Callable[..., Tensor] | None,
    budget: int | None,
) -> dict[str, Circuits]:
    """Runs of circuits with each value, by its name."""
    if model is None or pairs is None:
        raise CircuitError("find_circuit: criteria= needs model= and pairs= to measure circuits on.")
    if graph.shape != Graph.of(model).shape:
        raise CircuitError(
            f"find_circuit: the scores are of another model: {graph}; this one has {Graph.of(model)}."
        )
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


def _believable(
    scores: xr.DataArray,
    graph: Graph,
    search: CriteriaSearch,
    criteria: Criteria,
    values: np.ndarray,
    by: str,
) -> Circuit:
    """The circuit that the criteria chose. Raises `NoCircuit` where they chose none."""
    measured = search.frontier
    against = ", ".join(map(str, measured["ablation"].values))
    if search.edges is None:
        size = best_trade_off(measured, int(criteria.at_most * graph.n_edges))
        error = float(measured["error"].sel(size=size).max())
        raise NoCircuit(
            f"find_circuit: no circuit of at most {criteria.at_most:.0%} of the {graph.n_edges} edges "
            f"reproduces the model on these prompts against {against}. The nearest has {size} edges and an "
            f"error of {error:.2f} per prompt.",
            frontier=measured,
        )
    circuit = _circuit_of(scores, graph, search.edges, values, by)
    facts = {"criteria": json.dumps(asdict(criteria)), "criteria_against": against}
    return replace(circuit, attrs=clean_attrs({**circuit.attrs, **facts}))


def _smallest_size(runs: Circuits, order: np.ndarray, target: float) -> int:
    """The smallest size tried whose circuit is faithful enough: a coarse grid, then finer below its first."""
    graph = runs.graph
    empty = runs.measure(np.zeros((1, *graph.exists.shape), dtype=bool))[0]

    def faithfulness(sizes: np.ndarray) -> np.ndarray:
        """[size]: of the circuits of the first edges, in one batch."""
        masks = np.stack([graph.prune(first_edges(graph, order, int(n))) for n in sizes])
        return ratio_of_means(runs.measure(masks).T, runs.full[:, None], empty[:, None])

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


def values_of(scores: xr.DataArray, graph: Graph, model: Model, pairs: PromptPairs) -> Value | dict[str, Value]:
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
    name = scores.attrs.get("value", "")
    if name == "zero":
        return zero()
    if name == "from_store":
        return from_store(capture(model, pairs.corrupt, sites=writer_sites(graph), progress=False))
    raise CircuitError(
        f"find_circuit: the scores were made with value={name!r}, which cannot be made again from "
        "them: pass value=."
    )


def metric_of(scores: xr.DataArray, metric: str | Metric | Callable[..., Tensor] | None) -> Metric:
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


def _of_nodes(scores: xr.DataArray, n_nodes: int, by: str) -> Circuit:
    """The circuit of every edge between the components with the best node scores."""
    check_array(scores)
    if scores.dims != ("writer",):
        raise CircuitError(
            f"find_circuit: n_nodes= needs node scores with dims (writer,), not {scores.dims}: use "
            "wb.score_nodes(...)."
        )
    graph = graph_in_attrs(scores)
    values = supporting(scores)
    if "writer" not in scores.coords or tuple(scores["writer"].values) != graph.writers:
        raise CircuitError(
            f"These node scores are not over all writers in graph order ({graph}): do not select "
            "or sort them."
        )
    if not (type(n_nodes) is int and 0 <= n_nodes < len(graph.writers)):
        raise CircuitError(
            f"find_circuit: n_nodes={n_nodes}; this graph has {len(graph.writers) - 1} heads and MLPs."
        )
    if not np.isfinite(values).all():
        node = graph.writers[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise NotFinite(
            f"find_circuit: the score of {node} is not a finite number. Check the metric, the edits and the "
            "model's dtype.",
            place=node,
        )
    rank = np.abs(values) if by == "magnitude" else values
    # Writer 0 is `input`: it is in every circuit, and counts as none of the nodes.
    order = [w for w in np.argsort(-rank, kind="stable") if w != 0][:n_nodes]
    edges = graph.between(np.isin(np.arange(len(graph.writers)), order))
    return _circuit_of(scores, graph, edges, np.where(graph.exists, values[:, None], np.nan), by)


def _circuit_of(
    scores: xr.DataArray, graph: Graph, edges: np.ndarray, values: np.ndarray, by: str
) -> Circuit:
    """The circuit of these edges, with the provenance of the scores it was cut from."""
    # These attrs describe the array, or are kept elsewhere in a circuit.
    attrs = {
        key: fact for key, fact in scores.attrs.items() if key not in ("prompt_ids", "graph", "kind", "unit")
    }
    with unwarned():
        circuit = Circuit.of(
            graph,
            edges & graph.exists,
            scores=values.astype(float),
            attrs=attrs | {"ranked_by": by},
            prompt_ids=str(scores.attrs.get("prompt_ids", "")).split(),
        )
    if mostly_dead_ends(circuit.n_requested, circuit.n_edges):
        warn(
            f"find_circuit: {circuit.n_requested:,} edges were chosen and {circuit.n_edges:,} are left: the others "
            "are dead ends, on no path from input to logits. strategy='greedy' grows the circuit from the "
            "logits instead; or choose more edges."
        )
    return circuit
