"""From scores of edges or nodes to a circuit: the best, those grown from the logits, or as few as suffice.

Read `find_circuit` first. Arrays of scores are read and refused by `score_arrays.py`; nothing here scores.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.components import dead_ends_text, mostly_dead_ends
from workbench.circuit.graph import Graph
from workbench.discovery.believable import CriteriaSearch, by_criteria
from workbench.discovery.criteria import MIN_PROMPTS, USUAL_PROMPTS, Criteria
from workbench.discovery.frontier import best_trade_off
from workbench.discovery.ranking import best_first, first_edges, grown
from workbench.discovery.refine import is_large
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
from workbench.discovery.scored_runs import patched_values, runs_by_name, runs_of, smallest_size
from workbench.engine.circuits import graph_of_runs
from workbench.engine.given_values import GivenValue
from workbench.errors import CircuitError, NoCircuit, NotFinite, PromptError, UnknownName, unwarned, warn
from workbench.metrics.metric import GivenMetric
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.results import clean_attrs

STRATEGIES = ("top", "greedy")


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
    value: GivenValue | Mapping[str, GivenValue] | None = None,
    metric: GivenMetric | None = None,
    budget: int | None = None,
    progress: bool = True,
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
            the next two sizes, against every counterfactual; the error of (b), and (c), in nine of ten resamples
            of the prompts, because these prompts choose.
        refine: "prune", with `criteria`: then leave out edges as long as the criteria hold. In graphs of up to
            20,000 edges one half of the pairs then orders the edges, and the other half accepts.
        by: "magnitude" ranks by the size of a score: edges that oppose the behaviour are part of what the
            model does. "signed" asks another question, what supports the behaviour: without the edges that
            oppose it such a circuit can exceed the model.
        strategy: "top" takes the best edges wherever they are; "greedy" grows from the outputs
            (`Graph.is_output`) and always adds the best edge into a node that is there already (not with
            `threshold`), so every edge has a path to one.
        model, pairs: for `min_faithfulness` and `criteria`. Choose on prompts that made no scores, and report
            numbers of a third set: the prompts that chose a circuit flatter it.
        value, metric: for the same, as in `score_edges`; None takes those of the scores. For `criteria` several
            values, a mapping of names: the circuit has to keep the criteria with each.
        budget: for the same: bytes of working memory.

    Raises:
        CircuitError: not exactly one way to say how many edges, or an array that holds no usable scores.
        NoCircuit: no size up to `criteria.at_most` keeps the criteria; its `frontier` has the measures.
        PromptError: `criteria` with fewer than four different prompts to choose with, in each half where `refine`
            makes halves.
        NotFinite: an edge or node has a score that is NaN or infinite; the message names it.
        UnknownName: a ranking or a strategy that does not exist.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=8)
    >>> scores = wb.score_edges(model, pairs, value="zero")
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
    if n_edges is not None:
        order = _ordered(graph, rank, strategy, n_edges)
        return _circuit_of(scores, graph, first_edges(graph, order, n_edges), values, by)
    value = patched_values(value, graph, model, pairs, budget)
    if criteria is not None:
        # Edges left out by the gradients of the prompts that also accept it would fit those prompts and no
        # others (`tiny`, ioi: an error of .11 on them, .15 on new ones).
        halves = ()
        if pairs is not None:
            halves = () if refine is None or is_large(graph) else pairs.parts((1, 1))
            _check_enough(*(halves or (pairs,)))
        several = runs_by_name(scores, graph, model, pairs, value, metric, budget)
        assert pairs is not None  # without them there are no runs
        gradients = accepting = None
        if halves:
            gradients, accepting = (
                runs_by_name(scores, graph, model, half, value, metric, budget) for half in halves
            )
        # The runs decide what is a dead end: they may have other values than the scores.
        graph = graph_of_runs(several)
        search = by_criteria(
            _ordered(graph, rank, strategy, graph.n_edges),
            several,
            criteria,
            refine=refine,
            gradients=gradients,
            accepting=accepting,
            progress=progress,
        )
        return chosen_on(pairs, _believable(scores, graph, search, criteria, values, by))
    assert min_faithfulness is not None
    if isinstance(value, Mapping):
        raise CircuitError("find_circuit: min_faithfulness= takes one value; criteria= takes several.")
    runs = runs_of(scores, graph, min_faithfulness, model, pairs, value, metric, budget)
    assert pairs is not None  # without them there are no runs
    graph = runs.graph
    order = _ordered(graph, rank, strategy, graph.n_edges)
    n_chosen = smallest_size(runs, order, min_faithfulness)
    circuit = _circuit_of(scores, graph, first_edges(graph, order, n_chosen), values, by)
    return chosen_on(pairs, circuit)


def _ordered(graph: Graph, rank: np.ndarray, strategy: str, n: int) -> np.ndarray:
    """Flat indices of edges, the first n of which are in the order of a strategy."""
    if strategy == "greedy":
        return grown(graph, rank, n)
    return best_first(graph, rank)


def _check_one_size(sizes: Mapping[str, Any]) -> None:
    """Raise `CircuitError` unless exactly one of the arguments that say how many edges is given."""
    named = [name for name, number in sizes.items() if number is not None]
    if len(named) != 1:
        raise CircuitError(
            f"find_circuit: give exactly one of {'=, '.join(sizes)}=; given: {', '.join(named) or 'none'}."
        )


def chosen_on(pairs: PromptPairs, circuit: Circuit) -> Circuit:
    """A circuit that knows that these pairs chose it: `evaluate` counts them as seen."""
    return replace(circuit, prompt_ids=circuit.prompt_ids | set(pairs.clean.ids))


def _check_enough(*sets: PromptPairs) -> None:
    """Raise `PromptError` for too few prompts to choose with, and warn of few; copies of a prompt count once."""
    fewest = min(len(set(pairs.clean.ids)) for pairs in sets)
    if fewest < MIN_PROMPTS:
        halves = (
            " in each half of pairs= (refine= takes one to order edges, one to accept)"
            if len(sets) > 1
            else ""
        )
        raise PromptError(
            f"find_circuit: {fewest} different clean prompts{halves}, and at least {MIN_PROMPTS} are needed to "
            "choose a circuit by criteria."
        )
    n_copies = sum(len(pairs) - len(set(pairs.clean.ids)) for pairs in sets)
    if n_copies:
        warn(
            f"find_circuit: {n_copies} of {sum(map(len, sets))} pairs repeat the clean prompt of an earlier one. "
            "Each counts as a prompt, so intervals are narrower than those of as many different prompts."
        )
    if fewest < USUAL_PROMPTS:
        warn(
            f"find_circuit: only {fewest} prompts choose, and a circuit keeps the criteria on so few by luck at "
            f"times: give {USUAL_PROMPTS} or more, and twice as many with refine=."
        )


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
        size = best_trade_off(measured)
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
            f"are {dead_ends_text(graph)}. strategy='greedy' grows the circuit from the outputs instead; or choose "
            "more edges."
        )
    return circuit
