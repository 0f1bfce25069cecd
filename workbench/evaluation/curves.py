"""Faithfulness against circuit size, the area under it (CPR, CMD), and the stability of circuits.

Stability is how far circuits agree that are found on prompts drawn again.

`faithfulness_curve` and `stability`. A curve needs scores or a scored circuit; how they were made does not
matter here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench.arguments import called, checked
from workbench.circuit.circuit import Circuit
from workbench.discovery.score_arrays import graph_of, is_number, with_graph
from workbench.discovery.search import RANKINGS, find_circuit
from workbench.engine.continuations import graph_as_run
from workbench.engine.given_values import GivenValue, given_value, name_attrs, writer_sites
from workbench.errors import CircuitError, UnknownName, unwarned
from workbench.evaluation.checks import faithfulness_of
from workbench.evaluation.evaluate import evaluate
from workbench.metrics.metric import GivenMetric, metric_for
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.results import clean_attrs
from workbench.statistics import bootstrap, central, check_level, check_seed

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's ten shares of a graph's edges."""
EVERY_SIZE_UP_TO = 20
"""Edges of a circuit that are added one at a time."""
AREA_DRAWS = 400
"""Bootstrap draws of an area: each is a whole curve, so fewer than for a single number."""


@checked
@model_call()
def faithfulness_curve(
    scores: xr.DataArray | Circuit,
    model: Model,
    pairs: PromptPairs,
    *,
    value: GivenValue | None = None,
    metric: GivenMetric | None = None,
    by: Literal["magnitude", "signed"] | str = "magnitude",
    sizes: float | Sequence[Any] | None = None,
    level: float = 0.95,
    budget: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Faithfulness of the best-scored edges at several circuit sizes, all in one batched evaluation.

    Args:
        scores: of all edges; or a circuit with scores, whose own strongest edges are then what is measured.
        value, metric, level, budget: as in `evaluate`; one value.
        by: rank edges by the size of their score ("magnitude") or by the score itself ("signed"); a circuit's
            edges are always ranked by size.
        sizes: shares of the graph's edges, n = int(share * edges), by default MIB's ten. Of a circuit they
            are numbers of edges, by default each up to 20, then 12 on a log scale up to all.

    Returns:
        Dataset over (size,): `faithfulness`, `low`, `high`, `mean_of_ratios`, `n_edges` (chosen, before
        pruning), `n_pruned`; attrs `area` is CMD (by="magnitude") or CPR (by="signed") when the sizes are
        MIB's ten, named in `area_name`, with its interval `area_low`, `area_high`.

        CPR = integral of f(s) ds and CMD = integral of |1 - f(s)| ds, where f is the faithfulness of the best
        share s of the edges: a higher CPR is better, and a lower CMD. By definition CPR ranks by sign and CMD
        by magnitude, so both take two curves.

    Raises:
        CircuitError: sizes outside the graph, several values, or a circuit without scores.
        UnknownName: a `by` that does not exist.

    Source: MIB, Mueller et al. 2504.13151.
    """
    if isinstance(value, Mapping):
        raise CircuitError("faithfulness_curve: a curve has one value. Make one curve for each.")
    measure = metric_for(metric, pairs)
    graph = scores.graph if isinstance(scores, Circuit) else graph_of(scores)
    Circuit.empty(graph).check_fits(model)  # before the sites of another model are captured
    patched = given_value(value, model, pairs, sites=writer_sites(graph), budget=budget)
    measuring: dict[str, Any] = {
        "value": patched, "metric": measure, "checks": (), "level": level, "budget": budget,
        "progress": progress,
    }  # fmt: skip
    if isinstance(scores, Circuit):
        circuit = replace(scores, graph=graph_as_run(graph, model, pairs, measure, patched))
        circuits, counts = _growth(circuit, sizes)
        result = evaluate(circuits, model, pairs, **measuring)
        attrs = dict(result.attrs) | {
            "kind": "faithfulness_curve",
            "ranked_by": "circuit",
            **name_attrs(value),
        }
        return xr.Dataset(_by_size(result, counts), coords={"size": list(counts)}, attrs=clean_attrs(attrs))
    shares = _shares(sizes)
    # The value decides what is a dead end: it may be another than that of the scores.
    graph = graph_as_run(graph, model, pairs, measure, patched)
    scores = with_graph(scores, graph)
    # Rounded down, as MIB does: on small graphs the first sizes hold no edge.
    counts = [int(share * graph.n_edges) for share in shares]
    # The first sizes of a curve may well be dead ends alone: `n_pruned` says so.
    with unwarned():
        circuits = [find_circuit(scores, n_edges=n, by=by) for n in counts]
    result = evaluate(circuits, model, pairs, **measuring)
    attrs = dict(result.attrs) | {
        "kind": "faithfulness_curve", "ranked_by": by, "method": scores.attrs.get("method", ""),
        **name_attrs(value),
    }  # fmt: skip
    # Areas over other sizes could not be compared with published ones.
    if tuple(shares) == SIZES:
        attrs |= _area_attrs(result, by, level)
    return xr.Dataset(_by_size(result, counts), coords={"size": shares}, attrs=clean_attrs(attrs))


def _shares(sizes: float | Sequence[Any] | None) -> list[Any]:
    """The sizes of a curve as shares of the edges; None: MIB's ten.

    Raises `CircuitError` for anything else.
    """
    if sizes is None:
        return list(SIZES)
    shares: list[Any] = list(sizes) if isinstance(sizes, Iterable) and not isinstance(sizes, str) else [sizes]
    if not shares or not all(is_number(share) and 0 <= share <= 1 for share in shares):
        raise CircuitError(
            f"faithfulness_curve: sizes={shares}; they are shares of the edges, from 0 to 1, and "
            "at least one."
        )
    return shares


def _area_attrs(result: xr.Dataset, by: str, level: float) -> dict[str, Any]:
    """CPR or CMD over MIB's ten sizes, with its bootstrap interval over the prompts."""
    # [example, full + empty + circuits]: an example is drawn with all of its runs, since they vary together.
    table = np.concatenate(
        [result["m_full"].values[None], result["m_empty"].values[None], result["m_circuit"].values]
    ).T

    def area_of(sample: np.ndarray) -> np.ndarray:
        """[1]: the area of the curve of these examples."""
        return np.array([area(faithfulness_of(sample), by=by)])

    low, high = bootstrap(table, area_of, level=level, draws=AREA_DRAWS)
    return {
        "area": area(result["faithfulness"].values, by=by), "area_low": float(low[0]),
        "area_high": float(high[0]), "area_name": "CPR" if by == "signed" else "CMD",
    }  # fmt: skip


def _growth(circuit: Circuit, sizes: float | Sequence[Any] | None) -> tuple[list[Circuit], Sequence[Any]]:
    """The circuits of a circuit's n strongest edges, for growing n, and these n."""
    # Strongest first: a prefix of it is the circuit of that size.
    edges = circuit.edge_list
    if circuit.scores is None or not edges:
        raise CircuitError(
            "faithfulness_curve: a circuit without scores, or without edges, has no strongest "
            "ones. Give scores."
        )
    n = len(edges)
    if sizes is None:
        first = min(n, EVERY_SIZE_UP_TO)
        counts = sorted({*range(1, first + 1), *np.geomspace(first, n, 12).astype(int).tolist(), n})
    else:
        counts = list(sizes) if isinstance(sizes, Iterable) else [sizes]
    if not all(type(k) is int and 1 <= k <= n for k in counts):
        raise CircuitError(
            f"faithfulness_curve: sizes={list(counts)}; of this circuit they are numbers of edges "
            f"from 1 to {n}."
        )
    with unwarned():
        return [Circuit.of(circuit.graph, edges[: int(k)], scores=circuit.scores) for k in counts], counts


def _by_size(result: xr.Dataset, counts: Sequence[int]) -> dict[str, Any]:
    """The columns of a curve, from an evaluation of one circuit for each size."""
    data: dict[str, Any] = {
        name: ("size", result[name].values) for name in ("faithfulness", "low", "high", "mean_of_ratios")
    }
    return data | {"n_edges": ("size", np.array(counts)), "n_pruned": ("size", result["n_edges"].values)}


def area(faithfulness: np.ndarray, sizes: Sequence[float] = SIZES, *, by: str = "signed") -> float:
    """CPR, the integral of f over sizes (by="signed"), or CMD, that of |1 - f| (by="magnitude").

    By trapezoids, without a point at 0.

    >>> round(area(np.ones(10)), 9), area(np.ones(10), by="magnitude")
    (0.999, 0.0)
    """
    if by not in RANKINGS:
        raise UnknownName("by", by, RANKINGS)
    height = faithfulness if by == "signed" else np.abs(1 - faithfulness)
    return float(np.trapezoid(height, np.asarray(sizes)))


@checked
def stability(
    scores: xr.DataArray,
    *,
    find: Callable[[xr.DataArray], Circuit],
    draws: int = 50,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """How much circuits found on resampled prompts agree: the Jaccard index of two circuits' pruned edges.

    Args:
        scores: with an axis `example`, from `score_edges(..., keep=("example",))`.
        find: from mean scores to a circuit, as in `lambda s: wb.find_circuit(s, n_edges=100)`.
        draws: resamples of the prompts, compared in neighbouring pairs.
        level: the central share of the pairs that `low` and `high` bound.
        seed: of the resamples.

    Returns:
        Dataset of `jaccard` (mean over the pairs), `low`, `high` (the central share of the pairs), over (draw,)
        `n_edges`, and over (edge,) `frequency`: the share of the circuits that have it, the most frequent first,
        of edges in any circuit. The index of two empty circuits is 1.

    Raises:
        CircuitError: scores without examples, or too few draws.
    """
    if "example" not in getattr(scores, "dims", ()):
        raise CircuitError(
            "stability: scores of every prompt are needed: score_edges(..., keep=('example',))."
        )
    if scores.sizes["example"] < 2:
        raise CircuitError(
            f"stability: these scores are of {scores.sizes['example']} prompts. Every draw of a single one "
            "is the same, which says nothing: give at least two."
        )
    check_level(level)
    check_seed(seed)
    if draws < 2:
        raise CircuitError(f"stability: draws={draws}; at least two circuits are compared.")
    rng = np.random.default_rng(seed)
    n = scores.sizes["example"]
    circuits: list[Circuit] = []
    for _ in range(draws):
        # NaN of one prompt must reach the mean: `find` then refuses it, rather than score fewer prompts.
        sample = scores.isel(example=rng.integers(0, n, n)).mean("example", skipna=False, keep_attrs=True)
        # What holds for the circuit of all prompts is not said again for each draw.
        with unwarned():
            circuit = called("stability: find=", find, sample)
        if not isinstance(circuit, Circuit):
            raise CircuitError(
                f"stability: find= must return a Circuit, and it returned {type(circuit).__name__}."
            )
        circuits.append(circuit)
    if any(one.graph != circuits[0].graph for one in circuits):
        raise CircuitError(
            "stability: find= returned circuits of different graphs, which share no edges to compare."
        )
    # Neighbours only: every circuit is then in two pairs at most, and the pairs hardly depend on each other.
    agreement = np.array([jaccard(a.edges, b.edges) for a, b in pairwise(circuits)])
    low, high = central(agreement, level)
    data = {
        "jaccard": agreement.mean(),
        "low": low,
        "high": high,
        "n_edges": ("draw", np.array([one.n_edges for one in circuits])),
    }
    names, share = _frequencies(circuits)
    data["frequency"] = ("edge", share)
    attrs = clean_attrs({"kind": "stability", "draws": draws, "seed": seed, "level": level})
    return xr.Dataset(data, coords={"edge": names}, attrs=attrs)


def _frequencies(circuits: Sequence[Circuit]) -> tuple[np.ndarray, np.ndarray]:
    """The edges of any of the circuits and the share of circuits that have each, the most frequent first."""
    share = np.mean([one.edges for one in circuits], axis=0)
    graph = circuits[0].graph
    # positions come first where there are any: an edge is in a circuit where it is at any of them
    while share.ndim > 2:
        share = share.max(0)
    writers, readers = np.nonzero(share)
    order = np.argsort(-share[writers, readers], kind="stable")
    names = [f"{graph.writers[writers[i]]}->{graph.readers[readers[i]]}" for i in order]
    return np.array(names, dtype=object), share[writers, readers][order]


def mean_jaccard(circuits: Sequence[np.ndarray] | np.ndarray, level: float) -> tuple[float, float, float]:
    """Mean Jaccard index over all pairs, and the central share of the pairs; NaN for fewer than two."""
    if len(circuits) < 2:
        return np.nan, np.nan, np.nan
    indices = np.array([jaccard(a, b) for a, b in combinations(circuits, 2)])
    low, high = central(indices, level)
    return float(indices.mean()), float(low), float(high)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared edges over edges of either; two empty circuits agree wholly."""
    either = float((a | b).sum())
    return float((a & b).sum()) / either if either else 1.0
