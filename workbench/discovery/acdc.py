"""ACDC: try every edge, from the logits down, and leave out those that cost little (Conmy et al. 2304.14997).

Most edges are left out, so several are tried at once: run k has the next k edges removed. The results are
read in order, up to the first edge whose removal costs too much; so the circuit is exactly that of one edge
at a time. Begin with `acdc`.
"""

from typing import Literal

import numpy as np
import xarray as xr

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.score_arrays import finite_matrix_of, graph_of, is_number, matrix_of
from workbench.engine.circuits import Circuits
from workbench.engine.given_values import GivenValue, given_value, name_attrs, writer_sites
from workbench.errors import CircuitError, MetricError, UnknownName
from workbench.metrics.metric import GivenMetric, metric_for
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.progress import progress_bar
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Position
from workbench.statistics import check_seed

ORDERS = ("late-first", "early-first", "random", "scores")
MOST_AT_ONCE, FIRST_AT_ONCE = 64, 8
"""How many edges are tried in one batch: at most, and in the first."""
DEFAULT_THRESHOLD = 0.01
"""The threshold where none is given, as a share of |m(empty) - m(full)|."""


@checked
@model_call()
def acdc(
    model: Model,
    pairs: PromptPairs,
    *,
    value: GivenValue | None = None,
    threshold: float | None = None,
    metric: GivenMetric | None = "kl",
    order: Literal["late-first", "early-first", "random", "scores"] | str = "late-first",
    scores: xr.DataArray | None = None,
    positions: Position | list[Position] | None = None,
    seed: int = 0,
    at_once: int = MOST_AT_ONCE,
    budget: int | None = None,
    progress: bool = True,
) -> Circuit:
    """The circuit that is left when every edge whose removal costs less than `threshold` is removed.

    Readers are taken in reverse topological order, and for each its senders in the order given. The cost of
    an edge is how much the metric rises (or falls, where higher is better) when the edge is removed, averaged
    over prompts. A node that is left with no input or no output is removed with it.

    Args:
        value: the patched value of edges that are left out, a value or its name as in `score_edges`; answers of
            several tokens are covered as in `effects`.
        threshold: tau, in the metric's unit; None takes 1 % of |m(empty) - m(full)|.
        metric: "kl" is the distance to the clean run.
        order: of the senders of a reader: latest first, earliest first, at random, or least score first
            (`scores=`). The circuit depends on it.
        scores: of `score_edges`, for order="scores".
        positions: indices or names that edges are told apart by, as in `score_edges`.
        seed: of the random order.
        at_once: the most edges tried in one batch; the circuit does not depend on it.
        budget: bytes of working memory.

    Returns:
        A circuit; its scores are the cost of each edge when it was tried (0 for those that went with a dead
        node: without them nothing changes), its attrs say threshold, order, and how many circuits were run.

    Raises:
        UnknownName: an order that does not exist.
        CircuitError: a threshold, scores or a number of edges that cannot be used.
        NotFinite: an edge has a score that is NaN or infinite.
        MetricError: a metric that no edge changes, or that these prompts cannot be measured with.
        PromptError: clean and corrupt prompts of different lengths.
        StoreError: a store that lacks the activations of `value`.
        EditError: not a value, or one that cannot be written here.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("agreement", model, n=4)
    >>> circuit = wb.acdc(model, pairs, value="corrupt", threshold=1.0, progress=False)
    >>> circuit.n_edges < 100
    True
    """
    if order not in ORDERS:
        raise UnknownName("order", order, ORDERS)
    if (order == "scores") != (scores is not None):
        raise CircuitError("acdc: scores= goes with order='scores', and that order needs it.")
    if at_once < 1:
        raise CircuitError(f"acdc: at_once={at_once}; at least one edge is tried at a time.")
    if threshold is not None and not (is_number(threshold) and threshold >= 0):
        raise CircuitError(f"acdc: threshold={threshold}; it is a cost, so a finite number from 0 up.")
    if scores is not None and positions is not None:
        raise CircuitError("acdc: the graph of scores= has its positions already: leave positions= out.")
    check_seed(seed)
    measure = metric_for(metric, pairs)
    graph = Graph.of(model, positions=positions)
    if scores is not None:
        graph = graph_of(scores)
        finite_matrix_of(scores, graph, "acdc")
    patched = given_value(value, model, pairs, sites=writer_sites(graph), budget=budget)
    runs = Circuits(model, graph, pairs, value=patched, metric=measure, budget=budget)
    graph = runs.graph
    if threshold is None:
        threshold = _default_threshold(runs, measure.name)
    trial = _Trial(runs, float(threshold), at_once, higher_is_better=measure.higher_is_better)
    with progress_bar(graph.n_edges, "acdc", "edge", shown=progress) as bar:
        for reader in reversed(range(len(graph.readers))):
            senders = _senders(graph, reader, order, scores, seed)
            trial.try_edges(senders)
            bar.update(len(senders))
    attrs = pairs.attrs(model) | {
        "method": "acdc", "value": patched.describe(), "metric": measure.name, "threshold": threshold,
        "order": order, "higher_is_better": measure.higher_is_better,
        "forwards": trial.n_runs, "engine": runs.engine, **runs.answer_attrs, **name_attrs(value),
    }  # fmt: skip
    ids = (*pairs.clean.ids, *pairs.corrupt.ids)
    return Circuit.of(graph, trial.edges, scores=trial.costs, attrs=attrs, prompt_ids=ids)


def _default_threshold(runs: Circuits, metric_name: str) -> float:
    """1 % of |m(empty) - m(full)|. Raises `MetricError` where that is 0."""
    threshold = DEFAULT_THRESHOLD * abs(float(runs.empty.mean()) - float(runs.full.mean()))
    if threshold == 0:
        raise MetricError(
            f"acdc: {metric_name} is the same with every edge and with none, so no edge can matter."
        )
    return threshold


def _senders(
    graph: Graph, reader: int, order: str, scores: xr.DataArray | None, seed: int
) -> list[tuple[int, ...]]:
    """Indices [(pos,) writer, reader] of the edges into a reader, in the order in which they are tried."""
    edges = [(*index, reader) for index in np.argwhere(graph.exists[..., reader]).tolist()]
    edges.sort(key=lambda index: index[-2])
    if order == "late-first":
        return edges[::-1]
    if order == "random":
        # Seeded by the reader too, so that no two readers draw the same order.
        return [edges[i] for i in np.random.default_rng([seed, reader]).permutation(len(edges))]
    if scores is not None:
        values = matrix_of(scores, graph)
        return sorted(edges, key=lambda index: float(values[index]))
    return edges


class _Trial:
    """The edges that are left, and what the removal of each cost when it was tried."""

    def __init__(self, runs: Circuits, threshold: float, at_once: int, *, higher_is_better: bool) -> None:
        self.runs, self.graph, self.threshold = runs, runs.graph, threshold
        # A loss: what a removal makes worse goes up, whichever direction of the metric is better.
        self.sign = -1.0 if higher_is_better else 1.0
        self.loss = self.sign * float(runs.full.mean())
        self.edges = runs.graph.exists.copy()
        self.costs = np.where(self.edges, 0.0, np.nan)
        self.at_once, self.width, self.n_runs = at_once, min(FIRST_AT_ONCE, at_once), 1

    def try_edges(self, senders: list[tuple[int, ...]]) -> None:
        """Try the edges into one reader."""
        # What earlier removals left dead can be removed for nothing, so it is not tried.
        self.edges = self.graph.prune(self.edges)
        waiting = [edge for edge in senders if self.edges[edge]]
        while waiting:
            tried = waiting[: self.width]
            masks = np.repeat(self.edges[None], len(tried), axis=0)
            for k, edge in enumerate(tried):
                masks[(slice(k, None), *edge)] = False  # run k lacks the edges 0..k, as if each were removed
            losses = self.sign * self.runs.measure(self.graph.prune(masks)).mean(1)
            self.n_runs += len(tried)
            n_decided = self._decide(tried, losses.tolist())
            # A kept edge makes the runs after it worthless: try fewer at a time where edges are kept.
            if self.edges[tried[n_decided - 1]]:
                self.width = max(1, self.width // 2)
            else:
                self.width = min(self.at_once, 2 * self.width)
            waiting = waiting[n_decided:]

    def _decide(self, tried: list[tuple[int, ...]], losses: list[float]) -> int:
        """Remove edges in order, up to the first whose removal costs too much.

        Returns how many edges were decided. Losses after a kept edge are discarded: they were measured
        without that edge.
        """
        for k, (edge, loss) in enumerate(zip(tried, losses, strict=True), start=1):
            self.costs[edge] = loss - self.loss
            if loss - self.loss >= self.threshold:
                return k
            self.edges[edge] = False
            self.loss = loss
        return len(tried)
