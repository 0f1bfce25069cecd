"""Hard-concrete gates on edges or components, and their training.

`Gates` are sampled, `train` trains them. What is closed carries the patched value. Which circuit the gates end
in is decided in `masks.py`. Source: Louizos et al. 1712.01312.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.circuits import CircuitBatch, Circuits
from workbench.errors import MetricError, UnknownName

LEFT, RIGHT, TEMPERATURE = -0.1, 1.1, 2 / 3
"""Of the hard-concrete distribution: a gate is stretched to (LEFT, RIGHT) and clipped, so that it can be
exactly 0 or 1.
"""
START = 2.0
"""Logit of every gate before training: mostly open, so that the first circuits still do what the model does.
"""
HEADSTART = 2.0
"""Logits by which the best-scored gate is ahead of the worst where training starts from scores."""
GATED = ("edges", "nodes")


class Gates:
    """A gate on every edge, or on every writer but the input for all the edges that leave it.

    Args:
        on: "edges" or "nodes".
        seed: of the noise.
        order: [gate], numbers whose order the gates start in, the largest the most open; None: all alike.
    """

    def __init__(self, graph: Graph, on: str, seed: int, order: np.ndarray | None = None) -> None:
        if on not in GATED:
            raise UnknownName("on", on, GATED)
        self.graph, self.on = graph, on
        self.exists = torch.from_numpy(graph.exists)
        n = graph.n_edges if on == "edges" else len(graph.writers) - 1
        self.noise = torch.Generator().manual_seed(seed)
        start = torch.full((n,), START)
        if order is not None:
            start += HEADSTART * (torch.from_numpy(_ranks(order)).float() - 0.5)
        self.logits = start.requires_grad_()

    def sample(self) -> Float[Tensor, "one *pos_class writer reader"]:
        """Weights of all edges under one draw of the gates."""
        # Away from 0 and 1, whose logarithms are infinite.
        u = torch.rand(self.logits.shape, generator=self.noise).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((u.log() - (1 - u).log() + self.logits) / TEMPERATURE)
        gate = (soft * (RIGHT - LEFT) + LEFT).clamp(0, 1)
        if self.on == "edges":
            return torch.zeros(self.exists.shape).masked_scatter(self.exists, gate)[None]
        return (torch.cat((torch.ones(1), gate))[:, None] * self.exists)[None]

    def open(self) -> np.ndarray:
        """[gate]: sigmoids of the logits, in double precision."""
        return 1 / (1 + np.exp(-self.logits.detach().double().numpy()))

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


def _ranks(numbers: np.ndarray) -> np.ndarray:
    """Ranks from 0 (the smallest) to 1 (the largest); equal numbers share the mean of theirs."""
    _, group, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - (counts + 1) / 2
    return middles[group.reshape(-1)] / max(1, len(numbers) - 1)


def train(
    gates: Gates,
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
