"""Scores of edges against the edges that are known to be true.

Two areas under the curve exist in the field and differ: over all thresholds (`edge_auroc`), and over the ten
sizes of MIB (`edge_auroc_mib`). Edges of equal score count as the mean over all their orders, so that no
result depends on the order of the graph. Only numbers are compared here: no model is run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from workbench.circuit.graph import Graph
from workbench.discovery.score_arrays import graph_in_attrs
from workbench.errors import CircuitError, NotFinite, UnknownName
from workbench.evaluation.curves import SIZES
from workbench.sites import Edge

By = Literal["magnitude", "signed"] | str
Scores = xr.DataArray | Float[np.ndarray, "..."]
Truth = Iterable[Edge | str] | Bool[np.ndarray, "..."]
NOISE_DIGITS = 6
"""Digits, of the largest score, to which scores are compared."""


def edge_auroc(scores: Scores, true_edges: Truth, *, by: By = "magnitude") -> float:
    """The chance that a true edge outranks a false one, ties counting half: the ordinary AUROC.

    Scores that agree to six digits of the largest are ties.
    (sum of the ranks of the true edges - t(t + 1)/2) / (t f), of t true and f false edges.

    Args:
        scores: from `score_edges`, or an array with NaN where there is no edge.
        true_edges: their names, or, for an array, a boolean one like it.
        by: rank by the size of the scores, or by the scores themselves, higher being truer.

    Raises:
        UnknownName: a `by` that does not exist.
        CircuitError: scores or edges that do not fit, or edges all true or all false.

    >>> edge_auroc(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))
    0.75
    """
    edges = _ranked(scores, true_edges, by)
    t, f = edges.true.sum(), (~edges.true).sum()
    # `rankdata` gives edges of equal score their mean rank: ties count half.
    return float((rankdata(edges.rank)[edges.true].sum() - t * (t + 1) / 2) / (t * f))


def edge_auroc_mib(scores: Scores, true_edges: Truth, *, by: By = "magnitude") -> float:
    """MIB's area under the ROC curve: its ten sizes only, n = int(share * edges) of the best edges.

    TPR and FPR at each, FPR divided by its last value, trapezoid, no point before the first: on small graphs
    the first sizes hold no edge, and on large ones what lies before FPR(.001) is missing. Arguments as of
    `edge_auroc`.

    Source: MIB, Mueller et al. 2504.13151.
    """
    edges = _ranked(scores, true_edges, by)
    # Rounded down, as MIB does.
    n = np.array([int(share * len(edges.rank)) for share in SIZES])
    hits = _hits(edges)[n]
    tpr, fpr = hits / edges.true.sum(), (n - hits) / (~edges.true).sum()
    # Over the last value, so that a ranking of all edges spans the whole axis.
    return float(np.trapezoid(tpr, fpr / fpr[-1]))


def precision_at_true_size(scores: Scores, true_edges: Truth, *, by: By = "magnitude") -> float:
    """The share of true edges among as many of the best as there are true ones.

    Arguments as of `edge_auroc`.
    """
    edges = _ranked(scores, true_edges, by)
    n_true = edges.true.sum()
    return float(_hits(edges)[n_true] / n_true)


@dataclass(frozen=True, eq=False)
class _RankedEdges:
    """The edges that exist.

    Attributes:
        rank: [edge], what they are ranked by; higher is better.
        true: bool [edge].
    """

    rank: np.ndarray
    true: np.ndarray


def _hits(edges: _RankedEdges) -> np.ndarray:
    """[edges + 1]: how many of the best n edges are true, the mean over all orders of edges of equal rank."""
    _, group = np.unique(-edges.rank, return_inverse=True)
    # Each edge of a group of equal rank counts as the group's share of true ones.
    share = np.bincount(group, weights=edges.true) / np.bincount(group)
    return np.concatenate([[0], np.cumsum(share[np.sort(group)])])


def _ranked(scores: Scores, true_edges: Truth, by: str) -> _RankedEdges:
    """The ranks and the truth of the edges that exist. Raises as `edge_auroc` does."""
    if by not in ("magnitude", "signed"):
        raise UnknownName("by", by, ("magnitude", "signed"))
    if isinstance(scores, xr.DataArray):
        graph = _graph_of(scores)
        values, true, exists = _matrix(scores, graph), _truth(true_edges, graph), graph.exists
    elif isinstance(true_edges, np.ndarray):
        values, true = np.asarray(scores, dtype=float), true_edges
        exists = ~np.isnan(values)
    else:
        raise CircuitError(
            "Names of edges need scores from wb.score_edges(...); with an array give a boolean array like it."
        )
    if true.shape != values.shape:
        raise CircuitError(f"True edges of shape {true.shape} do not fit scores of shape {values.shape}.")
    if not np.isfinite(values[exists]).all():
        raise NotFinite("Some edges have no finite score. Check the metric and the edits that made them.")
    values, true = values[exists], true[exists].astype(bool)
    if true.all() or not true.any():
        raise CircuitError(
            f"{true.sum()} of {len(true)} edges are true: there must be true and false ones to tell apart."
        )
    # Effects of nothing are rounding errors of some 1e-8 of the largest, in an order of their own on every processor.
    digits = values / (np.abs(values).max() or 1.0)
    rank = np.round(digits, NOISE_DIGITS)
    return _RankedEdges(np.abs(rank) if by == "magnitude" else rank, true)


def _graph_of(scores: xr.DataArray) -> Graph:
    """The graph that scores belong to.

    Raises `CircuitError` where they do not say, or are kept by example.
    """
    try:
        graph = graph_in_attrs(scores)
    except CircuitError as error:
        raise CircuitError(
            "These scores do not say which graph they belong to. Make them with wb.score_edges(...)."
        ) from error
    if "example" in scores.dims:
        raise CircuitError(
            "These scores are kept by example: average them first, with scores.mean('example', "
            "keep_attrs=True)."
        )
    return graph


def _matrix(scores: xr.DataArray, graph: Graph) -> np.ndarray:
    """[(pos,) writer, reader]: the scores, turned so that higher supports the behaviour."""
    sign = 1 if int(scores.attrs.get("higher_is_better", 1)) else -1
    values = sign * np.asarray(scores.values, dtype=float)
    if "edge" in scores.dims:
        matrix = np.full(graph.exists.shape, np.nan)
        matrix[..., *np.nonzero(graph.whole.exists)] = values
        values = matrix
    if values.shape != graph.exists.shape:
        raise CircuitError(
            f"Scores of shape {values.shape} do not fit a graph with matrices of {graph.exists.shape}."
        )
    return values


def _truth(true_edges: Truth, graph: Graph) -> np.ndarray:
    """bool [(pos,) writer, reader]: which edges are true."""
    if isinstance(true_edges, np.ndarray):
        return true_edges
    true = np.zeros_like(graph.exists)
    for edge in true_edges:
        true[graph.index(edge)] = True
    return true
