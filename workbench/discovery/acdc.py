"""ACDC: try every edge, from the logits down, and leave out those whose absence is hardly felt (Conmy et al. 2304.14997).

Most edges are left out, so several are tried at once: run k has the next k edges gone. What is kept is read off in order,
up to the first edge that is missed; so the outcome is that of one edge at a time, exactly.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.search import graph_of, is_number, matrix_of
from workbench.engine.circuits import Circuits
from workbench.engine.values import Value
from workbench.errors import CircuitError, MetricError, UnknownName
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.load import one_fingerprint
from workbench.prompts.pairs import PromptPairs
from workbench.sites import Position
from workbench.statistics import check_seed

ORDERS = ("late-first", "early-first", "random", "scores")
MOST_AT_ONCE = 64


@one_fingerprint()
def acdc(
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value,
    threshold: float | None = None,
    metric: str | Metric | Callable[..., Tensor] = "kl",
    order: Literal["late-first", "early-first", "random", "scores"] | str = "late-first",
    scores: xr.DataArray | None = None,
    positions: Position | list[Position] | None = None,
    seed: int = 0,
    at_once: int = MOST_AT_ONCE,
    budget: int | None = None,
    progress: bool = True,
) -> Circuit:
    """The circuit that is left when every edge whose removal costs less than `threshold` is removed.

    Readers are taken in reverse topological order, and for each its senders in the order given. The cost of an edge is the
    rise of the metric (the fall of one where higher is better) when it goes, on the mean over prompts; a node that is left
    with no input or no output goes with it.

    Args:
        threshold: tau, in the metric's unit; None takes 1 % of |m(empty) - m(full)|.
        metric: "kl" is the distance to the clean run.
        order: of the senders of a reader: latest first, earliest first, at random, or least score first (`scores=`). The
            outcome depends on it.
        at_once: the most edges tried in one batch; the outcome does not depend on it.

    Returns:
        A circuit; its scores are the cost of each edge when it was tried (0 for those that went with a dead node: without
        them nothing changes), its attrs say threshold, order, and how many circuits were run.

    Raises:
        UnknownName, CircuitError, MetricError, PromptError, StoreError, EditError: see the messages.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("agreement", model, n=4)
    >>> _, corrupt = wb.capture_pairs(model, pairs)
    >>> found = wb.acdc(model, pairs, value=wb.from_store(corrupt), threshold=1.0, progress=False)
    >>> found.n_edges < 100
    True
    """
    if order not in ORDERS:
        raise UnknownName("order", order, ORDERS)
    if (order == "scores") != (scores is not None):
        raise CircuitError("acdc: scores= goes with order='scores', and that order needs it.")
    if type(at_once) is not int or at_once < 1:
        raise CircuitError(f"acdc: at_once={at_once}; at least one edge is tried at a time.")
    if threshold is not None and not (is_number(threshold) and threshold >= 0):
        raise CircuitError(f"acdc: threshold={threshold}; it is a cost, so a finite number from 0 up.")
    if scores is not None and positions is not None:
        raise CircuitError("acdc: the graph of scores= has its positions already: leave positions= out.")
    check_seed(seed)
    measure = as_metric(metric)
    graph = Graph.of(model, positions=positions) if scores is None else graph_of(scores)
    if scores is not None and not np.isfinite(matrix_of(scores, graph)[graph.exists]).all():
        raise CircuitError(
            "acdc: some edges have no finite score. Check the metric and the edits that made them."
        )
    runs = Circuits(model, graph, pairs, value=value, metric=measure, budget=budget)
    sign = -1.0 if measure.higher_is_better else 1.0
    full = sign * float(runs.full.mean())
    if threshold is None:
        threshold = 0.01 * abs(
            sign * float(runs.measure(np.zeros((1, *graph.exists.shape), dtype=bool)).mean()) - full
        )
        if threshold == 0:
            raise MetricError(
                f"acdc: {measure.name} is the same with every edge and with none, so no edge can matter."
            )
    trial = _Trial(runs, sign, float(threshold), at_once, full)
    with tqdm(
        total=graph.n_edges, desc="acdc", unit="edge", disable=None if progress else True, leave=False
    ) as bar:
        for reader in reversed(range(len(graph.readers))):
            senders = _senders(graph, reader, order, scores, seed)
            trial.reader(senders)
            bar.update(len(senders))
    attrs = pairs.attrs(model) | {
        "method": "acdc", "value": value.describe(), "metric": measure.name, "threshold": threshold, "order": order,
        "higher_is_better": measure.higher_is_better, "forwards": trial.n_runs, "engine": runs.engine,
    }  # fmt: skip
    ids = (*pairs.clean.ids, *pairs.corrupt.ids)
    return Circuit.of(graph, trial.edges, scores=trial.costs, attrs=attrs, prompt_ids=ids)


def _senders(
    graph: Graph, reader: int, order: str, scores: xr.DataArray | None, seed: int
) -> list[tuple[int, ...]]:
    """Indices of the edges into a reader, in the order in which they are tried."""
    found = [(*index, reader) for index in np.argwhere(graph.exists[..., reader]).tolist()]
    found.sort(key=lambda index: index[-2])
    if order == "late-first":
        return found[::-1]
    if order == "random":
        return [found[i] for i in np.random.default_rng([seed, reader]).permutation(len(found))]
    if scores is not None:
        values = matrix_of(scores, graph)
        return sorted(found, key=lambda index: float(values[index]))
    return found


class _Trial:
    """The edges that are left, and what each cost when it was tried."""

    def __init__(self, runs: Circuits, sign: float, threshold: float, at_once: int, full: float) -> None:
        self.runs, self.graph, self.sign, self.threshold = runs, runs.graph, sign, threshold
        self.edges = runs.graph.exists.copy()
        self.costs = np.where(self.edges, 0.0, np.nan)
        self.now, self.most, self.width, self.n_runs = full, at_once, min(8, at_once), 1

    def reader(self, senders: list[tuple[int, ...]]) -> None:
        """Try the edges into one reader."""
        alive = self.graph.prune(self.edges)
        self.edges = alive
        waiting = [edge for edge in senders if alive[edge]]
        while waiting:
            tried = waiting[: self.width]
            masks = np.repeat(self.edges[None], len(tried), axis=0)
            for k, edge in enumerate(tried):
                masks[(slice(k, None), *edge)] = False
            values = self.sign * self.runs.measure(self.graph.prune(masks)).mean(1)
            self.n_runs += len(tried)
            done = 0
            for edge, value in zip(tried, values.tolist(), strict=True):
                done += 1
                self.costs[edge] = value - self.now
                if value - self.now >= self.threshold:
                    break
                self.edges[edge] = False
                self.now = value
            missed = bool(self.edges[tried[done - 1]])
            self.width = max(1, self.width // 2) if missed else min(self.most, 2 * self.width)
            waiting = waiting[done:]
