"""Every way of finding a circuit under one name: scores that are cut, ACDC, and learned masks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import xarray as xr
from torch import Tensor

from workbench.circuit.circuit import Circuit
from workbench.discovery import scores as score_methods
from workbench.discovery.acdc import acdc
from workbench.discovery.masks import learn_circuit
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.values import Value
from workbench.errors import CircuitError, UnknownName
from workbench.metrics.metric import Metric
from workbench.prompts.pairs import PromptPairs

SEARCHES = {
    "acdc": "edges left out one after the other, from the logits down (Conmy et al. 2304.14997); it decides the size",
    "learn-edges": "hard-concrete gates on edges (Bhaskar et al. 2406.16778)",
    "learn-nodes": "hard-concrete gates on heads and MLPs, subnetwork probing (Cao et al. 2104.03514)",
}
METHODS: dict[str, str] = score_methods.METHODS | SEARCHES


@dataclass(frozen=True)
class Discovery:
    """What a method found.

    Attributes:
        scores: of every edge: for "acdc" the cost of leaving it out, for learned masks how open its gate is.
        circuit: cut from them, or the method's own.
    """

    scores: xr.DataArray
    circuit: Circuit

    @property
    def forwards(self) -> int:
        """Passes of all prompts (circuits that were run, forward and backward passes, or training steps)."""
        return int(self.scores.attrs.get("forwards", 0))


def find_by(
    method: str,
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    n_edges: int | None = None,
    seed: int = 0,
    budget: int | None = None,
    progress: bool = True,
    **more: Any,
) -> Discovery:
    """The scores and the circuit of a method.

    Args:
        method: one of `METHODS`.
        metric: of the scores and of ACDC; learned masks come as near as they can to the model's.
        n_edges: how many edges, before pruning; None takes 2 % of the graph. Gates on nodes keep the share of nodes that
            comes nearest to as many edges. ACDC decides itself: it refuses a number.
        more: what the method's function takes besides.

    Raises:
        UnknownName: no such method.  CircuitError: a size for ACDC.
    """
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    shared: dict[str, Any] = {"value": value, "metric": metric, "budget": budget, "progress": progress}
    if method in score_methods.METHODS:
        found = score_edges(model, pairs, method=method, seed=seed, **shared, **more)
        graph_edges = int(found.notnull().sum())
        return Discovery(
            found,
            find_circuit(found, n_edges=max(1, int(0.02 * graph_edges)) if n_edges is None else n_edges),
        )
    if method == "acdc":
        if n_edges is not None:
            raise CircuitError(
                f"acdc decides the size of its circuit by its threshold, so n_edges={n_edges} has no meaning for it."
            )
        circuit = acdc(model, pairs, seed=seed, **shared, **more)
        return Discovery(circuit.to_scores(), circuit)
    edges = Circuit.full(model).graph.n_edges
    size = max(1, int(0.02 * edges)) if n_edges is None else n_edges
    if method == "learn-edges":
        circuit = learn_circuit(model, pairs, n_edges=size, seed=seed, **shared, **more)
    else:
        # A share s of nodes has about s squared of the edges between them.
        nodes = max(1, round((size / edges) ** 0.5 * (len(Circuit.full(model).graph.writers) - 1)))
        circuit = learn_circuit(model, pairs, n_nodes=nodes, seed=seed, **shared, **more)
    return Discovery(circuit.to_scores(), circuit)
