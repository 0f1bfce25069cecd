"""Learned masks: a hard-concrete gate on every edge or component, trained until a set share is open.

Edge Pruning (Bhaskar et al. 2406.16778) on edges, subnetwork probing (Cao et al. 2104.03514) on components;
what is closed carries the patched value. Gates: Louizos et al. 1712.01312. Begin with `learn_circuit`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.score_arrays import is_number
from workbench.engine.circuits import CircuitBatch, Circuits
from workbench.engine.hooked.forward import check_gradients_pass
from workbench.engine.values import Value
from workbench.errors import CircuitError, MetricError, UnknownName
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Position
from workbench.statistics import check_seed, gap_of_means
from workbench.text import progress_bar

LEFT, RIGHT, TEMPERATURE = -0.1, 1.1, 2 / 3
"""Of the hard-concrete distribution: a gate is stretched to (LEFT, RIGHT) and clipped, so that it can be
exactly 0 or 1.
"""
START = 2.0
"""Logit of every gate before training: mostly open, so that the first circuits still do what the model does.
"""
GATED = ("edges", "nodes")


@checked
@model_call()
def learn_circuit(
    model: Model,
    pairs: PromptPairs,
    *,
    value: Value,
    n_edges: int | None = None,
    n_nodes: int | None = None,
    metric: str | Metric | Callable[..., Tensor] = "kl",
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

    Args:
        value: the patched value of what is closed; answers of several tokens are covered as in `effects`.
        n_edges: gates on edges, and how many stay (before pruning).
        n_nodes: gates on heads and MLPs (subnetwork probing) instead, and how many stay; the circuit is every
            edge between.
        metric: of the loss.
        steps, lr: of Adam.
        batch: prompts per step.
        positions: indices or names that edges are told apart by, as in `score_edges`.
        seed: of gates' noise and of batches; the same seed gives the same circuit.
        budget: bytes of working memory.

    Returns:
        A circuit whose scores are sigmoids of the gates' logits (for nodes, those of the writer).

    Raises:
        CircuitError: not exactly one size, or a size or setting of the training that cannot be used.
        MetricError: a metric without a usable gradient, or one that no edge changes.
        PromptError: clean and corrupt prompts of different lengths.
        StoreError: a store that lacks the activations of `value`.
        EditError: not a value, or one that cannot be written here.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("agreement", model, n=4)
    >>> wb.learn_circuit(model, pairs, value=wb.zero(), n_edges=50, steps=2, progress=False).n_requested
    50
    """
    if (n_edges is None) == (n_nodes is None):
        raise CircuitError(
            "learn_circuit: give exactly one of n_edges= (gates on edges) and n_nodes= (gates on components)."
        )
    for name, number in (("steps", steps), ("batch", batch)):
        if number < 1:
            raise CircuitError(f"learn_circuit: {name}={number}; at least 1 is needed.")
    if not (is_number(lr) and lr > 0):
        raise CircuitError(f"learn_circuit: lr={lr}; a finite number above 0 is needed.")
    check_seed(seed)
    check_gradients_pass(model)
    measure = as_metric(metric)
    graph = Graph.of(model, positions=positions)
    on = "edges" if n_nodes is None else "nodes"
    target, most = (n_edges, graph.n_edges) if on == "edges" else (n_nodes, len(graph.writers) - 1)
    if not (type(target) is int and 0 < target <= most):
        raise CircuitError(f"learn_circuit: n_{on}={target}; this graph has {most} {on}.")
    runs = Circuits(model, graph, pairs, value=value, metric=measure, budget=budget)
    gates = _Gates(graph, on, seed)
    loss = _loss(runs, measure)
    with progress_bar(steps, f"gates on {on}", "step", shown=progress) as bar:
        _train(gates, runs, loss, target / most, steps=steps, lr=lr, size=batch, seed=seed, step=bar.update)
    logits = gates.logits.detach().double().numpy()
    # Sigmoids are all positive, so that they rank by size as by sign.
    scores = gates.spread(1 / (1 + np.exp(-logits)))
    edges = np.zeros(graph.exists.shape, dtype=bool)
    if on == "edges":
        order = np.argsort(-scores[graph.exists], kind="stable")[:target]
        edges[tuple(np.argwhere(graph.exists)[order].T)] = True
    else:
        best = np.zeros(len(graph.writers), dtype=bool)
        # Writer 0 is the input, which has no gate.
        best[1 + np.argsort(-logits, kind="stable")[:target]] = True
        edges = graph.between(best)
    attrs = pairs.attrs(model) | {
        "method": f"learn-{on}", "value": value.describe(), "metric": measure.name, "steps": steps,
        "lr": lr, "seed": seed, "forwards": steps, "higher_is_better": measure.higher_is_better,
        "expected_open": float(gates.open_share().detach()) * most, **runs.answer_attrs,
    }  # fmt: skip
    return Circuit.of(
        graph, edges, scores=scores, attrs=attrs, prompt_ids=(*pairs.clean.ids, *pairs.corrupt.ids)
    )


class _Gates:
    """A gate on every edge, or on every writer but the input for all the edges that leave it."""

    def __init__(self, graph: Graph, on: str, seed: int) -> None:
        if on not in GATED:
            raise UnknownName("on", on, GATED)
        self.graph, self.on = graph, on
        self.exists = torch.from_numpy(graph.exists)
        n = graph.n_edges if on == "edges" else len(graph.writers) - 1
        self.noise = torch.Generator().manual_seed(seed)
        self.logits = torch.full((n,), START, requires_grad=True)

    def sample(self) -> Float[Tensor, "one *pos_class writer reader"]:
        """Weights of all edges under one draw of the gates."""
        # Away from 0 and 1, whose logarithms are infinite.
        u = torch.rand(self.logits.shape, generator=self.noise).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((u.log() - (1 - u).log() + self.logits) / TEMPERATURE)
        gate = (soft * (RIGHT - LEFT) + LEFT).clamp(0, 1)
        if self.on == "edges":
            return torch.zeros(self.exists.shape).masked_scatter(self.exists, gate)[None]
        return (torch.cat((torch.ones(1), gate))[:, None] * self.exists)[None]

    def open_share(self) -> Tensor:
        """The expected share of gates that are not closed."""
        # The expectation has a closed form, P(stretched gate > 0), so it needs no draws (Louizos et al.).
        return torch.sigmoid(self.logits - TEMPERATURE * math.log(-LEFT / RIGHT)).mean()

    def spread(self, numbers: np.ndarray) -> np.ndarray:
        """[(pos,) writer, reader]: each gate's number at its edges; input edges share the nodes' highest."""
        table = np.full(self.graph.exists.shape, np.nan)
        if self.on == "edges":
            table[self.graph.exists] = numbers
            return table
        by_writer = np.concatenate(([numbers.max()], numbers))
        return np.where(self.graph.exists, by_writer[:, None], np.nan)


def _loss(runs: Circuits, metric: Metric) -> Callable[[Tensor, CircuitBatch], Tensor]:
    """The distance of circuits from the model, as a function of their metric and of the batch."""
    if metric.needs_reference:
        # Such a metric is a distance from the clean run already, and so the loss itself.
        return lambda measured, batch: measured.mean()
    empty = runs.measure(np.zeros((1, *runs.graph.exists.shape), dtype=bool))[0]
    gap = abs(float(gap_of_means(runs.full, empty)))
    if np.isnan(gap):
        raise MetricError(
            f"learn_circuit: {metric.name} is the same with every edge and with none, so no edge can matter."
        )
    full = torch.from_numpy(runs.full)

    def squared_distance(measured: Tensor, batch: CircuitBatch) -> Tensor:
        """In units of m(full) - m(empty), so that the learning rate suits any metric."""
        # With answers of several tokens there is one batch, and its rows are combined to examples by now.
        wanted = full
        if runs.expansion.plain:
            wanted = full[list(batch.examples)]
        return (((measured - wanted.to(measured)) / gap) ** 2).mean()

    return squared_distance


def _train(
    gates: _Gates,
    runs: Circuits,
    loss: Callable[[Tensor, CircuitBatch], Tensor],
    target: float,
    *,
    steps: int,
    lr: float,
    size: int,
    seed: int,
    step: Callable[[], Any],
) -> None:
    """Train the gates: Adam descends on them, and ascends on the multipliers of the open share's bounds."""
    # Multipliers grow while the constraint is violated, so that no weight of a penalty has to be chosen.
    multipliers = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [gates.logits], "lr": lr}, {"params": [multipliers], "lr": lr, "maximize": True}]
    )
    n = len(runs.expansion.pairs)
    if n > size and runs.clean_runs.comparison is not None:
        # A metric that compares examples means another thing on a few of them: all, or none.
        runs.clean_runs.check_slices(-(-n // runs.rows))
        size = n
    batches = list(runs.batches(size if runs.expansion.plain else n))
    order = np.random.default_rng(seed)
    for number in range(steps):
        batch = batches[int(order.integers(len(batches)))]
        # The target is approached linearly over the first half: a sudden one would close gates before they
        # are ranked.
        wanted = 1 + (target - 1) * min(1.0, 2 * (number + 1) / steps)
        miss = gates.open_share() - wanted
        distance = loss(runs.soft(gates.sample(), batch), batch)
        total = distance + multipliers[0] * miss + multipliers[1] * miss**2
        if not distance.requires_grad or not bool(torch.isfinite(total)):
            raise MetricError(
                f"learn_circuit: {runs.metric.name} has no usable gradient. Use kl, logit_diff, "
                "prob_diff or nll."
            )
        # Not `total.backward()`, which would leave gradients on the model's weights too.
        learned = [gates.logits, multipliers]
        for tensor, gradient in zip(learned, torch.autograd.grad(total, learned), strict=True):
            tensor.grad = gradient
        optimizer.step()
        step()
