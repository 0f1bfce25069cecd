"""Every method of discovery in one call: `find_by` returns a `Discovery`, whichever of `METHODS` it used.

Scores that are cut (`scores`, `search`), ACDC (`acdc`) and learned masks (`masks`). Nothing here evaluates a
circuit.
"""

from dataclasses import dataclass
from typing import Any

import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery import scores as score_methods
from workbench.discovery.acdc import acdc
from workbench.discovery.masks import learn_circuit
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.values import Value
from workbench.errors import CircuitError, UnknownName
from workbench.metrics.metric import GivenMetric, metric_for
from workbench.models.model import Model
from workbench.names import SEARCHES
from workbench.prompts.pairs import PromptPairs

METHODS: dict[str, str] = score_methods.METHODS | SEARCHES
MEANS_OVER_EXAMPLES = ("eap", "eap-ig-inputs", "clean-corrupt")
"""Methods whose scores are means over prompts of gradients at the same few points: each prompt's scores cost
nothing more.
"""
DEFAULT_SHARE = 0.02
"""Share of the graph's edges that is chosen where no size is given."""


@dataclass(frozen=True)
class Discovery:
    """What a method found.

    Attributes:
        scores: of every edge: for "acdc" the cost of leaving it out, for learned masks how open its gate is.
        circuit: cut from them, or the method's own.
        by_example: the scores of each prompt (example, writer, reader), whose mean `scores` is; None unless
            they were wanted, and for methods outside `MEANS_OVER_EXAMPLES`.
    """

    scores: xr.DataArray
    circuit: Circuit
    by_example: xr.DataArray | None = None

    @property
    def forwards(self) -> int:
        """Passes of all prompts (circuits that were run, forward and backward passes, or training steps)."""
        return int(self.scores.attrs.get("forwards", 0))


def find_by(
    method: str,
    model: Model,
    pairs: PromptPairs,
    *,
    value: Value,
    metric: GivenMetric | None = None,
    n_edges: int | None = None,
    steps: int | str | None = None,
    by_example: bool = False,
    seed: int = 0,
    budget: int | None = None,
    progress: bool = True,
) -> Discovery:
    """The scores and the circuit of a method.

    Args:
        method: one of `METHODS`.
        metric: of the scores and of ACDC; learned masks come as near as they can to the model's.
        n_edges: how many edges, before pruning; None takes 2 % of the graph. Gates on nodes keep the share of
            nodes that comes nearest to as many edges. ACDC decides itself: it refuses a number.
        steps: points on the path of integrated gradients ("auto" as in `score_edges`), or training steps of
            masks; None: the method's own default.
        by_example: whether to keep the scores of each prompt, where that costs nothing.
        seed: of what the method draws at random.
        budget: bytes of working memory.

    Raises:
        UnknownName: no such method.
        CircuitError: a size or steps for ACDC.
    """
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    shared: dict[str, Any] = {
        "value": value,
        "metric": metric_for(metric, pairs),
        "budget": budget,
        "progress": progress,
    }
    if method == "acdc":
        if n_edges is not None:
            raise CircuitError(
                f"acdc decides the size of its circuit by its threshold, so n_edges={n_edges} has "
                "no meaning for it."
            )
        if steps is not None:
            raise CircuitError(f"acdc tries every edge once, so steps={steps} has no meaning for it.")
        circuit = acdc(model, pairs, seed=seed, **shared)
        return Discovery(circuit.to_scores(), circuit)
    shared["seed"] = seed
    if steps is not None:
        shared["steps"] = steps
    if method in score_methods.METHODS:
        return _cut(method, model, pairs, shared, n_edges, by_example)
    graph = Graph.of(model)
    size = _size(n_edges, graph.n_edges)
    if method == "learn-edges":
        circuit = learn_circuit(model, pairs, n_edges=size, **shared)
    else:
        # A share s of nodes has about s squared of the edges between them.
        nodes = max(1, round((size / graph.n_edges) ** 0.5 * (len(graph.writers) - 1)))
        circuit = learn_circuit(model, pairs, n_nodes=nodes, **shared)
    return Discovery(circuit.to_scores(), circuit)


def _cut(
    method: str,
    model: Model,
    pairs: PromptPairs,
    shared: dict[str, Any],
    n_edges: int | None,
    by_example: bool,
) -> Discovery:
    """The best-scored edges of a method that scores every edge."""
    if by_example and method in MEANS_OVER_EXAMPLES:
        each_prompt = score_edges(model, pairs, method=method, keep=("example",), **shared)
        # Summed in float64, as `score_edges` sums over prompts itself.
        scores = each_prompt.astype(float).mean("example", skipna=False, keep_attrs=True)
        scores = scores.astype(each_prompt.dtype)
    else:
        each_prompt = None
        scores = score_edges(model, pairs, method=method, **shared)
    size = _size(n_edges, int(scores.notnull().sum()))
    return Discovery(scores, find_circuit(scores, n_edges=size), each_prompt)


def _size(n_edges: int | None, graph_edges: int) -> int:
    """How many edges to choose of a graph's."""
    if n_edges is not None:
        return n_edges
    return max(1, int(DEFAULT_SHARE * graph_edges))
