"""Learned masks: a hard-concrete gate on every edge or component, trained until a set share is open.

Edge Pruning (Bhaskar et al. 2406.16778) on edges, subnetwork probing (Cao et al. 2104.03514) on components;
what is closed carries the patched value. Begin with `learn_circuit`; the gates are in `gates.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.components import dead_ends_text, mostly_dead_ends
from workbench.circuit.graph import Graph
from workbench.discovery.gates import Gates, train
from workbench.discovery.gradient_scores import gradient_scores
from workbench.discovery.score_arrays import finite_matrix_of, graph_of, is_number
from workbench.discovery.search import best_first, first_edges, grown
from workbench.engine.circuits import CircuitBatch, Circuits
from workbench.engine.given_values import GivenValue, given_value, name_attrs, scored_sites
from workbench.engine.hooked.forward import check_gradients_pass
from workbench.errors import CircuitError, MetricError, UnknownName, unwarned, warn
from workbench.metrics.metric import GivenMetric, metric_for
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.progress import progress_bar
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Position
from workbench.statistics import check_seed, gap_of_means

STARTS = ("scores", "open")
START_METHOD, START_STEPS = "eap-ig-inputs", 10
"""The scores that training starts from: a few passes, where each training step is one."""
ENOUGH, TOO_LITTLE = 0.9, 0.5
"""Share of the loss between the empty and the full circuit: with so much no further training is tried, and
below the second there is a warning."""
MARGIN = 0.01
"""By so much of it the scores that training started from have to be better than the trained gates, to be taken."""


@checked
@model_call()
def learn_circuit(
    model: Model,
    pairs: PromptPairs,
    *,
    value: GivenValue | None = None,
    n_edges: int | None = None,
    n_nodes: int | None = None,
    metric: GivenMetric | None = "kl",
    start: xr.DataArray | Literal["scores", "open"] | str = "scores",
    restarts: int = 2,
    steps: int = 300,
    lr: float = 0.3,
    batch: int = 16,
    positions: Position | list[Position] | None = None,
    seed: int = 0,
    budget: int | None = None,
    progress: bool = True,
) -> Circuit:
    """The circuit of the gates that stay most open when only a target share of them may be open.

    Loss: the mean of "kl", or for any other metric the squared distance to the full model's, in units of
    m(full) - m(empty), plus a Lagrangian term that brings the expected share of open gates to the target
    (approached linearly over the first half of the steps). Gates are sampled anew each step.

    Of every training, and of the scores that it starts from, the best gates make a circuit in up to three
    ways (the first n; as many as leave n without dead ends; grown from the outputs). The circuit with the
    lowest loss on the prompts is returned. There is a warning where that is no better than the empty circuit,
    keeps less than half of the way from the empty circuit's loss to the model's, or is mostly dead ends.

    Args:
        value: the patched value of what is closed, a value or its name as in `score_edges`; answers of several
            tokens are covered as in `effects`.
        n_edges: gates on edges, and how many stay (before pruning).
        n_nodes: gates on heads and MLPs (subnetwork probing) instead, and how many stay; the circuit is every
            edge between.
        metric: of the loss; None takes that of the pairs.
        start: where training starts: "scores" orders the gates by the magnitude of eap-ig-inputs scores,
            "open" has them all alike; or edge scores of your own.
        restarts: how many more trainings, with other noise, may follow one whose circuit keeps less than 90 %.
        steps, lr: of Adam.
        batch: prompts per step.
        positions: indices or names that edges are told apart by, as in `score_edges`.
        seed: of gates' noise and of batches; the same seed gives the same circuit.
        budget: bytes of working memory.

    Returns:
        A circuit whose scores are sigmoids of the gates' logits (for nodes, those of the writer).
        attrs: `loss`, `loss_empty`, `loss_full` (means over the prompts), `kept` (1 where the loss is the
        full model's, 0 where it is the empty circuit's), `trainings` and `start`.

    Raises:
        CircuitError: not exactly one size, a size or setting of the training that cannot be used, or scores of
            another graph.
        UnknownName: a start that does not exist.
        MetricError: a metric without a usable gradient, or one that no edge changes.
        PromptError: clean and corrupt prompts of different lengths.
        StoreError: a store that lacks the activations of `value`.
        EditError: not a value, or one that cannot be written here.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("agreement", model, n=4)
    >>> wb.learn_circuit(model, pairs, value="zero", n_edges=50, steps=2, progress=False).n_requested
    50
    """
    if (n_edges is None) == (n_nodes is None):
        raise CircuitError(
            "learn_circuit: give exactly one of n_edges= (gates on edges) and n_nodes= (gates on components)."
        )
    for name, number, least in (("steps", steps, 1), ("batch", batch, 1), ("restarts", restarts, 0)):
        if number < least:
            raise CircuitError(f"learn_circuit: {name}={number}; at least {least} is needed.")
    if not (is_number(lr) and lr > 0):
        raise CircuitError(f"learn_circuit: lr={lr}; a finite number above 0 is needed.")
    if isinstance(start, str) and start not in STARTS:
        raise UnknownName("start", start, STARTS)
    check_seed(seed)
    check_gradients_pass(model)
    measure = metric_for(metric, pairs)
    graph = Graph.of(model, positions=positions)
    on = "edges" if n_nodes is None else "nodes"
    target, most = (n_edges, graph.n_edges) if on == "edges" else (n_nodes, len(graph.writers) - 1)
    if not (type(target) is int and 0 < target <= most):
        raise CircuitError(f"learn_circuit: n_{on}={target}; this graph has {most} {on}.")
    patched = given_value(value, model, pairs, sites=scored_sites(graph), budget=budget)
    runs = Circuits(model, graph, pairs, value=patched, metric=measure, budget=budget)
    graph = runs.graph
    losses = _Losses(runs)
    if not isinstance(start, str):
        order = _given_order(start, graph, on)
    elif start == "scores":
        order = _scored_order(runs, on, budget=budget)
    else:
        order = None
    trained: list[_Cut] = []
    n_trainings = 0
    with progress_bar(steps, f"gates on {on}", "step", shown=progress) as bar:
        # One more try each time that all before it kept too little.
        while n_trainings <= restarts and (n_trainings == 0 or max(cut.kept for cut in trained) < ENOUGH):
            if n_trainings:
                bar.total += steps
            # Every second training starts with all gates alike: the scores may have misled the others.
            gates = Gates(graph, on, seed + n_trainings, None if n_trainings % 2 else order)
            train(
                gates, runs, losses.of_batch, target / most, steps=steps, lr=lr, size=batch,
                seed=seed + n_trainings, step=bar.update,
            )  # fmt: skip
            trained.append(_best_cut(gates, target, losses))
            n_trainings += 1
    best = min(trained, key=lambda cut: cut.loss)
    if order is not None:
        untrained = _best_cut(Gates(graph, on, seed, order), target, losses)
        if untrained.kept > best.kept + MARGIN:
            best = untrained
    attrs = pairs.attrs(model) | {
        "method": f"learn-{on}", "value": patched.describe(), "metric": measure.name, "steps": steps,
        "lr": lr, "seed": seed, "higher_is_better": measure.higher_is_better,
        "forwards": steps * n_trainings + (START_STEPS if order is not None and isinstance(start, str) else 0),
        "expected_open": float(best.gates.open_share().detach()) * most,
        "start": start if isinstance(start, str) else "given", "trainings": n_trainings,
        "loss": best.loss, "loss_empty": losses.empty, "loss_full": losses.full, "kept": best.kept,
        **runs.answer_attrs, **name_attrs(value),
    }  # fmt: skip
    with unwarned():
        circuit = Circuit.of(
            graph,
            best.edges,
            # Sigmoids are all positive, so that they rank by size as by sign.
            scores=best.gates.spread(best.gates.open()),
            attrs=attrs,
            prompt_ids=(*pairs.clean.ids, *pairs.corrupt.ids),
        )
    if on == "edges":
        circuit = replace(circuit, n_requested=target)
    _warn_of(circuit, best, losses)
    return circuit


class _Losses:
    """The distance of circuits from the model: of gates in training, and of circuits on all prompts.

    Attributes:
        full, empty: of the circuits of every edge and of none, means over the prompts.
    """

    def __init__(self, runs: Circuits) -> None:
        self.runs, self.metric = runs, runs.metric
        none = runs.empty
        self.gap = abs(float(gap_of_means(runs.full, none)))
        if np.isnan(self.gap):
            raise MetricError(
                f"learn_circuit: {self.metric.name} is the same with every edge and with none, so no edge can "
                "matter."
            )
        self.full, self.empty = (float(self._means(one[None])[0]) for one in (runs.full, none))

    def of_batch(self, measured: Tensor, batch: CircuitBatch) -> Tensor:
        """The loss of one batch under sampled gates.

        In units of m(full) - m(empty), so that the learning rate suits any metric. A metric that compares with
        the clean run is a distance already, and so the loss itself.
        """
        if self.metric.needs_reference:
            return measured.mean()
        # With answers of several tokens there is one batch, and its rows are combined to examples by now.
        wanted = torch.from_numpy(self.runs.full)
        if self.runs.expansion.plain:
            wanted = wanted[list(batch.examples)]
        return (((measured - wanted.to(measured)) / self.gap) ** 2).mean()

    def of_circuits(self, edges: np.ndarray) -> np.ndarray:
        """[circuit]: the loss of circuits [circuit, (pos,) writer, reader] on all prompts."""
        return self._means(self.runs.measure(edges))

    def _means(self, measured: np.ndarray) -> np.ndarray:
        if self.metric.needs_reference:
            return measured.mean(1)
        return (((measured - self.runs.full) / self.gap) ** 2).mean(1)


@dataclass(frozen=True, eq=False)
class _Cut:
    """The circuit that gates end in.

    Attributes:
        edges: without dead ends.
        loss: on all prompts.
        kept: 1 where that is the full model's loss, 0 where it is the empty circuit's.
    """

    gates: Gates
    edges: np.ndarray
    loss: float
    kept: float


def _best_cut(gates: Gates, target: int, losses: _Losses) -> _Cut:
    """Of the circuits that the most open gates make, the one with the lowest loss."""
    candidates = np.stack(list(_candidates(gates, target)))
    of_circuits = losses.of_circuits(candidates)
    best = int(np.argmin(of_circuits))
    loss = float(of_circuits[best])
    return _Cut(gates, candidates[best], loss, (losses.empty - loss) / (losses.empty - losses.full))


def _candidates(gates: Gates, target: int) -> Iterator[np.ndarray]:
    """Circuits of the most open gates, without dead ends."""
    graph, openness = gates.graph, gates.open()
    if gates.on == "nodes":
        inside = np.zeros(len(graph.writers), dtype=bool)
        # Writer 0 is the input, which has no gate.
        inside[1 + np.argsort(-openness, kind="stable")[:target]] = True
        yield graph.prune(graph.between(inside))
        return
    rank = np.where(graph.exists, gates.spread(openness), -np.inf)
    order = best_first(graph, rank)
    yield graph.prune(first_edges(graph, order, target))
    # Pruning never removes more of a larger choice than that choice adds, so the number left grows with it.
    low, high = target, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if graph.prune(first_edges(graph, order, middle)).sum() <= target:
            low = middle
        else:
            high = middle - 1
    yield graph.prune(first_edges(graph, order, low))
    yield graph.prune(first_edges(graph, grown(graph, rank, target), target))


def _scored_order(runs: Circuits, on: str, *, budget: int | None) -> np.ndarray:
    """[gate]: the magnitude of gradient scores of the same prompts, value and metric."""
    table = gradient_scores(
        runs, START_METHOD, steps=START_STEPS, grid="midpoint", keep=(), budget=budget, progress=False
    )
    values = table.values[0]
    if runs.graph.positions is None:
        values = values[0]
    return _of_gates(values, runs.graph, on)


def _given_order(scores: xr.DataArray, graph: Graph, on: str) -> np.ndarray:
    """[gate]: the magnitude of scores that the caller gave."""
    own_graph = graph_of(scores)
    if own_graph != graph:
        raise CircuitError(f"learn_circuit: start= has scores of another graph: {own_graph}; wanted {graph}.")
    return _of_gates(finite_matrix_of(scores, graph, "learn_circuit"), graph, on)


def _of_gates(values: np.ndarray, graph: Graph, on: str) -> np.ndarray:
    """[gate]: magnitudes of edge scores, or for nodes of the sum over what they write."""
    if on == "edges":
        return np.abs(values[graph.exists])
    of_writers = np.where(graph.exists, values, 0.0).reshape(-1, *values.shape[-2:]).sum((0, 2))
    return np.abs(of_writers[1:])


def _warn_of(circuit: Circuit, best: _Cut, losses: _Losses) -> None:
    """Warn of a circuit that does not do what was asked."""
    figures = f"loss {best.loss:.3g}; the empty circuit has {losses.empty:.3g}, the model {losses.full:.3g}"
    cure = "Try a larger size, more steps, or start= with scores of another method (method='exact')."
    if best.kept <= 0:
        warn(f"learn_circuit: what was found is no better than the empty circuit ({figures}). {cure}")
    elif best.kept < TOO_LITTLE:
        warn(f"learn_circuit: what was found is far from the model ({figures}). {cure}")
    if best.gates.on == "edges" and mostly_dead_ends(circuit.n_requested, circuit.n_edges):
        warn(
            f"learn_circuit: {circuit.n_requested:,} edges were asked for and {circuit.n_edges:,} are left: the "
            f"others are {dead_ends_text(circuit.graph)}. {cure}"
        )
