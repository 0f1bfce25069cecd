"""Scores of edges against the edges that are known to be true.

Two areas under the curve exist in the field and differ: over all thresholds, and over the ten sizes of MIB. Edges of equal
score count as every order of theirs on average, so that no result hangs on the order of the graph.
"""

import json
from collections.abc import Iterable
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from workbench.circuit.graph import Graph
from workbench.errors import CircuitError, UnknownName
from workbench.sites import Edge

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of a graph's edges."""

By = Literal["magnitude", "signed"] | str
Scores = xr.DataArray | Float[np.ndarray, "..."]
Truth = Iterable[Edge | str] | Bool[np.ndarray, "..."]


def edge_auroc(scores: Scores, true_edges: Truth, *, by: By = "magnitude") -> float:
    """The chance that a true edge outranks a false one, ties counting half: the ordinary area under the ROC curve.

    (sum of the ranks of the true edges - t(t + 1)/2) / (t f), of t true and f false edges.

    Args:
        scores: from `score_edges`, or an array with NaN where there is no edge.
        true_edges: their names, or, for an array, a boolean one like it.
        by: rank by the size of the scores, or by the scores themselves, higher being truer.

    Raises:
        UnknownName: `by`.  CircuitError: scores or edges that do not fit, or edges all true or all false.

    >>> edge_auroc(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))
    0.75
    """
    rank, true = _ranked(scores, true_edges, by)
    t, f = true.sum(), (~true).sum()
    return float((rankdata(rank)[true].sum() - t * (t + 1) / 2) / (t * f))


def edge_auroc_mib(scores: Scores, true_edges: Truth, *, by: By = "magnitude") -> float:
    """MIB's area under the ROC curve: its ten sizes only, n = int(share * edges) of the best edges.

    TPR and FPR at each, FPR divided by its last value, trapezoid, no point before the first: on small graphs the first
    sizes hold no edge, and on large ones what lies before FPR(.001) is missing. Arguments as of `edge_auroc`.

    Source: MIB, Mueller et al. 2504.13151.
    """
    rank, true = _ranked(scores, true_edges, by)
    n = np.array([int(share * len(rank)) for share in MIB_SIZES])
    hits = _hits(rank, true)[n]
    tpr, fpr = hits / true.sum(), (n - hits) / (~true).sum()
    return float(np.trapezoid(tpr, fpr / fpr[-1]))


def precision_at_true_size(scores: Scores, true_edges: Truth, *, by: By = "magnitude") -> float:
    """The share of true edges among as many of the best as there are true ones. Arguments as of `edge_auroc`."""
    rank, true = _ranked(scores, true_edges, by)
    return float(_hits(rank, true)[true.sum()] / true.sum())


def _hits(rank: np.ndarray, true: np.ndarray) -> np.ndarray:
    """[edges + 1]: how many of the best n edges are true, the mean over all orders of edges of equal rank."""
    _, group = np.unique(-rank, return_inverse=True)
    share = np.bincount(group, weights=true) / np.bincount(group)
    return np.concatenate([[0], np.cumsum(share[np.sort(group)])])


def _ranked(scores: Scores, true_edges: Truth, by: str) -> tuple[np.ndarray, np.ndarray]:
    """[edge], [edge]: what the edges are ranked by, and which are true, of those that exist."""
    if by not in ("magnitude", "signed"):
        raise UnknownName("by", by, ("magnitude", "signed"))
    if isinstance(scores, xr.DataArray):
        values, true, exists = _of_graph(scores, true_edges)
    elif isinstance(true_edges, np.ndarray):
        values, true, exists = np.asarray(scores, dtype=float), true_edges, np.isfinite(scores)
    else:
        raise CircuitError(
            "Names of edges need scores from wb.score_edges(...); with an array give a boolean array like it."
        )
    if true.shape != values.shape:
        raise CircuitError(f"True edges of shape {true.shape} do not fit scores of shape {values.shape}.")
    if not np.isfinite(values[exists]).all():
        raise CircuitError("Some edges have no finite score. Check the metric and the edits that made them.")
    values, true = values[exists], true[exists].astype(bool)
    if true.all() or not true.any():
        raise CircuitError(
            f"{true.sum()} of {len(true)} edges are true: there must be true and false ones to tell apart."
        )
    return np.abs(values) if by == "magnitude" else values, true


def _of_graph(scores: xr.DataArray, true_edges: Truth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scores, turned so that higher is better; which edges are true; which exist: as matrices of the scores' graph."""
    try:
        graph = Graph.from_dict(json.loads(scores.attrs["graph"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CircuitError(
            "These scores do not say which graph they belong to. Make them with wb.score_edges(...)."
        ) from error
    if "example" in scores.dims:
        raise CircuitError(
            "These scores are kept by example: average them first, with scores.mean('example', keep_attrs=True)."
        )
    values = np.asarray(
        scores.values if int(scores.attrs.get("higher_is_better", 1)) else -scores.values, dtype=float
    )
    if "edge" in scores.dims:
        matrix = np.full(graph.exists.shape, np.nan)
        matrix[..., *np.nonzero(graph.whole.exists)] = values
        values = matrix
    if values.shape != graph.exists.shape:
        raise CircuitError(
            f"Scores of shape {values.shape} do not fit a graph with matrices of {graph.exists.shape}."
        )
    if isinstance(true_edges, np.ndarray):
        return values, true_edges, graph.exists
    true = np.zeros_like(graph.exists)
    for edge in true_edges:
        true[graph.index(edge)] = True
    return values, true, graph.exists
