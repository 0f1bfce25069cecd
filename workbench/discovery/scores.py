"""Scores of edges and nodes: how much each one supports the behaviour. Positive: without it the metric falls.

    score(edge) = m(clean) - m(clean run with that edge at the patched value)

"exact" measures that; the other methods of `METHODS` estimate it. Read `score_edges` first; `score_nodes` is
the same for whole components. What is done with scores is the matter of `search`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from workbench.arguments import checked
from workbench.circuit.graph import Graph
from workbench.discovery.exact import conditional_scores, exact_scores
from workbench.discovery.gradient_scores import INTEGRATED, gradient_scores
from workbench.discovery.score_arrays import check_finite_scores, graph_in_attrs, with_graph
from workbench.discovery.score_table import ScoreTable, labelled
from workbench.discovery.settled import settled_scores
from workbench.engine.circuits import Circuits
from workbench.engine.continuations import graph_as_run
from workbench.engine.counterfactuals import pairs_for
from workbench.engine.given_values import GivenValue, given_value, name_attrs, scored_sites
from workbench.engine.nodes import writer
from workbench.errors import CircuitError, MetricError, UnknownName, WorkbenchError
from workbench.interventions.effects import effects
from workbench.metrics.metric import GivenMetric, Metric, metric_for
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.names import SCORE_METHODS, ScoreMethod
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Position
from workbench.statistics import check_seed, gap_of_means

log = logging.getLogger(__name__)

METHODS = SCORE_METHODS
GRIDS = ("left", "right", "midpoint")
NODE_METHODS = (*METHODS, "gradient", "integrated")
EFFECTS = ("exact", "gradient", "integrated", "atp-star")
"""Methods of `score_nodes` that are negated effects of components; the others are sums of edge scores."""
Axis = Literal["example", "pos"] | str


@checked
@model_call()
def score_edges(
    model: Model,
    pairs: PromptPairs,
    *,
    value: GivenValue | Mapping[str, GivenValue] | None = None,
    metric: GivenMetric | None = None,
    method: ScoreMethod = "eap",
    steps: int | Literal["auto"] | str = 5,
    grid: Literal["left", "right", "midpoint"] | str = "midpoint",
    seed: int = 0,
    normalized: bool = False,
    positions: Position | Sequence[Position] | None = None,
    neurons: bool | int | Sequence[int] = False,
    keep: Sequence[Axis] = (),
    budget: int | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """A score for every edge of the model's graph; positive means that without the edge the metric falls.

    Where a higher metric is better, a positive score is support for the behaviour; for other metrics
    `find_circuit` reverses the sign.
    "exact" is m(clean) - m(that edge patched); the rest estimate it: see `METHODS`.

    Args:
        value: the patched value of the writers, a value or its name as in `effects` (all but "optimal"; None is the
            corrupt run); it covers answers of several tokens where it does there. A mapping of names to values
            scores them side by side, on an axis `ablation`;
            `counterfactual_values` makes one of every corruption that the pairs have.
        metric: a name, a `Metric` or a function; None takes that of the pairs. "kl" measures the distance to the
            clean run: its gradient there is 0, so methods that take gradients only there refuse it.
        method: a name in `METHODS`.
        steps: points on the path of the methods that take one. Five are too few where attention is hard;
            "auto" takes 5, 10, 20, 40 or 80: as many as it takes until the strongest edges keep their place
            and their scores. That is three times the work of 5 where it settles at once (at 10), at most 31
            times, with a warning where it does not settle.
        grid: where they lie, from the patched value (0) to the clean one (1): "left" k = 0..m-1 over m (the
            published code), "right" 1..m (the paper), or the midpoints.
        seed: of "random".
        normalized: divide by m(full) - m(empty), means over prompts: scores are then shares of the behaviour.
        positions: indices or names; edges are told apart by them, all other tokens make the class "rest".
        neurons: layers whose MLP is split into neurons; True: all.
        keep: axes not to sum or average over: "example", "pos" (gradient methods and graphs without
            positions).
        budget: bytes of working memory; writers are worked out in blocks that fit.

    Returns:
        DataArray ([ablation, example, pos,] writer, reader) in graph order, NaN where no edge exists; "pos" are the
        classes of a graph with positions. A graph with neurons gives one flat axis `edge` with coordinates
        `writer` and `reader`.
        attrs: `forwards` (passes of all prompts), `source_blocks`, `engine`; with a path `steps`, and with
        "auto" whether they are `settled`; for "atp-star" `edges_of_gradient_0`, of which a warning tells.

    Raises:
        UnknownName: a method, a grid or an axis that does not exist, or `steps` other than "auto".
        SiteError: positions or neurons that the model does not have.
        MetricError: a metric that cannot be measured on these prompts, or whose gradient says nothing.
        PromptError: clean and corrupt prompts of different lengths.
        StoreError: a store that lacks the activations of `value`.
        EditError: not a value, or one that cannot be written here.
        NotFinite: activations, logits or gradients overflow; the message names a layer or an edge.
        ModelError: a model in train mode, or one that the method cannot run.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> scores = wb.score_edges(model, wb.load_task("ioi", model, n=4), value="zero")
    >>> int(scores.notnull().sum())
    1519
    """
    if method not in tuple(METHODS):
        raise UnknownName("method", method, METHODS)
    if grid not in GRIDS:
        raise UnknownName("grid", grid, GRIDS)
    if isinstance(steps, str):
        if steps != "auto":
            raise UnknownName("steps", steps, ("auto",))
    elif steps < 1:
        raise WorkbenchError(f"score_edges: steps={steps}; the path needs at least one point.")
    unknown = [axis for axis in keep if axis not in ("example", "pos")]
    if unknown:
        raise UnknownName("keep", unknown[0], ("example", "pos"))
    check_seed(seed)
    if isinstance(value, Mapping):
        by_name = {}
        for name, one in value.items():
            by_name[name] = score_edges(
                model, pairs_for(pairs, name), value=one, metric=metric, method=method, steps=steps, grid=grid,
                seed=seed, normalized=normalized, positions=positions, neurons=neurons, keep=keep,
                budget=budget, progress=progress,
            )  # fmt: skip
        return _side_by_side(by_name)
    graph = Graph.of(model, positions=positions, neurons=neurons)
    if "pos" in keep and (graph.positions is not None or method in ("exact", "conditional", "random")):
        raise WorkbenchError(
            "score_edges: keep=('pos',) is for gradient methods without positions=. "
            f"With method={method!r} name them: positions=[...] gives every edge a score at each."
        )
    measure = metric_for(metric, pairs)
    patched = given_value(value, model, pairs, sites=scored_sites(graph), budget=budget)
    circuits = Circuits(model, graph, pairs, value=patched, metric=measure, budget=budget)
    graph = circuits.graph
    _check_one_token(method, measure)
    log.info(
        "%d edges on %d prompts, method %s, value %s, metric %s",
        graph.n_edges, len(pairs), method, patched.describe(), measure.name,
    )  # fmt: skip
    if method == "random":
        table = _noise(graph, len(pairs) if "example" in keep else 1, seed)
    elif method in ("exact", "conditional"):
        table = _measured(circuits, method, keep, progress)
    elif isinstance(steps, str) and method in INTEGRATED:
        table = settled_scores(
            circuits, method, grid=grid, keep=tuple(keep), budget=budget, progress=progress
        )
    else:
        # Methods without a path read no steps.
        n_steps = 1 if isinstance(steps, str) else steps
        table = gradient_scores(
            circuits, method, steps=n_steps, grid=grid, keep=keep, budget=budget, progress=progress
        )
    values = table.values
    if normalized:
        values = values / _gap(circuits, measure.name)
    check_finite_scores(values, graph, f"score_edges(method={method!r})")
    attrs = pairs.attrs(model) | {
        "kind": "edge_scores", "method": method, "value": patched.describe(), "metric": measure.name,
        "unit": "share" if normalized else measure.unit, "higher_is_better": measure.higher_is_better,
        "normalized": normalized, "graph": json.dumps(graph.to_dict()),
        "prompt_ids": " ".join((*pairs.clean.ids, *pairs.corrupt.ids)), **table.facts,
        **circuits.answer_attrs, **name_attrs(value),
    }  # fmt: skip
    # Sums over batches are made in float64; more digits than the model's own would be noise.
    if next(model.parameters()).dtype != torch.float64:
        values = values.astype(np.float32)
    return labelled(values, graph, circuits.reach.numpy(), keep, attrs)


def _side_by_side(by_name: Mapping[str, xr.DataArray]) -> xr.DataArray:
    """Scores of several values on an axis `ablation`, found on the prompts of all of them."""
    if not by_name:
        raise CircuitError("score_edges: value={} names no value. Give one, as in {'zero': wb.zero()}.")
    joined = xr.concat(by_name.values(), "ablation", combine_attrs="override")
    ids = dict.fromkeys(" ".join(str(one.attrs["prompt_ids"]) for one in by_name.values()).split())
    described = ", ".join(str(one.attrs["value"]) for one in by_name.values())
    joined = joined.assign_coords(ablation=list(by_name))
    first, *others = (graph_in_attrs(one) for one in by_name.values())
    joined = joined.assign_attrs(value=described, prompt_ids=" ".join(ids))
    # Those of the first value alone would be said of all.
    joined.attrs = {
        key: fact for key, fact in joined.attrs.items() if key not in ("value_name", "value_from")
    }
    return with_graph(joined, first.joined(*others))


def _check_one_token(method: str, metric: Metric) -> None:
    """Raise `MetricError` for atp-star with answers of several tokens."""
    if method == "atp-star" and metric.reads_answer_tokens:
        raise MetricError(
            "atp-star takes sizes prompt by prompt, which answers of several tokens "
            f"({metric.name}) do not allow. Use eap."
        )


def _noise(graph: Graph, n_rows: int, seed: int) -> ScoreTable:
    """Scores that know nothing: what a method must beat."""
    n_classes = len(graph.positions or (None,))
    size = (n_rows, n_classes, *graph.whole.exists.shape)
    return ScoreTable(np.random.default_rng(seed).standard_normal(size), {"seed": seed, "forwards": 0})


def _measured(circuits: Circuits, method: str, keep: Sequence[str], progress: bool) -> ScoreTable:
    """The scores of the methods that run a circuit for every edge."""
    if method == "exact":
        scores, forwards = exact_scores(circuits, progress=progress), circuits.graph.n_edges + 1
    else:
        scores, forwards = conditional_scores(circuits, progress=progress)
    if circuits.graph.positions is None:
        scores = scores[:, None]  # without positions one class holds all tokens
    if "example" not in keep:
        scores = scores.mean(0, keepdims=True)
    return ScoreTable(scores, {"engine": circuits.engine, "forwards": forwards})


def _gap(circuits: Circuits, metric_name: str) -> float:
    """m(full) - m(empty), means over prompts. Raises `MetricError` where it is 0."""
    gap = float(gap_of_means(circuits.full, circuits.empty))
    if np.isnan(gap):
        raise MetricError(
            f"score_edges: {metric_name} is the same in the full and in the empty circuit, "
            "so nothing can be normalized by it."
        )
    return gap


@checked
@model_call()
def score_nodes(
    model: Model,
    pairs: PromptPairs,
    *,
    value: GivenValue | None = None,
    metric: GivenMetric | None = None,
    method: ScoreMethod | Literal["gradient", "integrated"] = "eap",
    keep: Sequence[Literal["example"] | str] = (),
    steps: int | Literal["auto"] | str | None = None,
    grid: Literal["left", "right", "midpoint"] | str = "midpoint",
    seed: int = 0,
    normalized: bool = False,
    budget: int | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """A score for every writer: input, heads, MLPs. Positive: without it the metric falls.

    "exact", "gradient", "integrated" and "atp-star" are the negated `effects` of what each writes; the edge
    methods are sums of a writer's edge scores over its readers.

    Args:
        value, metric, budget: as in `score_edges`.
        method: one of `NODE_METHODS`.
        keep: ("example",) for a score of every example.
        steps: points on the path, or "auto"; None takes the default of `effects` or `score_edges`.
        grid, seed, normalized: as in `score_edges`; of the edge methods.

    Returns:
        DataArray ([example,] writer), in the order of `Graph.writers`.

    Raises:
        UnknownName: a method or an axis that does not exist.
        WorkbenchError: `normalized` with a method that gives effects.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> wb.score_nodes(model, wb.load_task("ioi", model, n=4), value="zero").sizes["writer"]
    37
    """
    if method not in NODE_METHODS:
        raise UnknownName("method", method, NODE_METHODS)
    unknown = [axis for axis in keep if axis != "example"]
    if unknown:
        raise UnknownName("keep", unknown[0], ("example",))
    measure = metric_for(metric, pairs)
    # Made once: the edge methods, the effects and the dead ends of the graph are all of it.
    patched = given_value(value, model, pairs, sites=scored_sites(Graph.of(model)), budget=budget)
    shared: dict[str, Any] = {"value": patched, "metric": measure, "budget": budget, "progress": progress}
    if steps is not None:
        shared["steps"] = steps
    if method not in EFFECTS:
        edges = score_edges(
            model, pairs, method=method, grid=grid, seed=seed, normalized=normalized, keep=keep, **shared
        )
        return edges.sum("reader", keep_attrs=True).assign_attrs(kind="node_scores", **name_attrs(value))
    if normalized:
        raise WorkbenchError(
            f"score_nodes: method={method!r} gives effects in the metric's unit; normalized=True "
            "goes with methods of edges, such as eap."
        )
    graph = graph_as_run(Graph.of(model), model, pairs, measure, patched)
    sites = [writer(name, graph.shape).site for name in graph.writers]
    # An effect is what patching changes; a score is what is lost by it, so the sign turns.
    scores = -effects(model, pairs, sites=sites, method=method, **shared)
    scores = scores.rename(site="writer").assign_coords(writer=list(graph.writers)).rename("score")
    if "example" not in keep:
        scores = scores.mean("example", keep_attrs=True)
    facts = {
        "kind": "node_scores", "higher_is_better": int(measure.higher_is_better),
        "graph": json.dumps(graph.to_dict()), "prompt_ids": " ".join((*pairs.clean.ids, *pairs.corrupt.ids)),
        "value": patched.describe(), "method": method, **name_attrs(value),
    }  # fmt: skip
    return scores.assign_attrs(facts)
