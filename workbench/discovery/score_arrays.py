"""Arrays of scores: which graph they belong to, and their values in the order of that graph.

Read `graph_of` and `matrix_of`: they refuse what is not an array of edge scores, or only a piece of one.
Nothing here scores or chooses.
"""

import json
from itertools import combinations
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench.arguments import checked
from workbench.circuit.components import check_size
from workbench.circuit.graph import Graph
from workbench.documents import parse_json
from workbench.errors import CircuitError, NotFinite, SiteError, UnknownName

RANKINGS = ("magnitude", "signed")


def graph_of(scores: xr.DataArray) -> Graph:
    """The graph that edge scores belong to. Raises `CircuitError` for anything else."""
    check_array(scores)
    axes = [dim for dim in scores.dims if dim != "pos"]
    if axes not in (["writer", "reader"], ["edge"]) or "graph" not in scores.attrs:
        raise CircuitError(
            f"Edge scores have dims (writer, reader), not {scores.dims}. Make them with "
            "wb.score_edges(...); average kept axes first."
        )
    graph = graph_in_attrs(scores)
    # `pos` may be the graph's classes of tokens, or kept positions of a graph without them: those must be
    # summed first.
    leading = ("pos",) if graph.positions is not None else ()
    positions = list(map(str, graph.positions or ()))
    fits = scores.dims[: -len(axes)] == leading
    if not fits or (leading and list(scores["pos"].values) != positions):
        raise CircuitError(
            f"These edge scores have dims {scores.dims}, and their graph has {graph}: average kept "
            "axes first."
        )
    expected = [list(graph.writers), list(graph.readers)]
    if "edge" in scores.dims:
        writer, reader = np.nonzero(graph.whole.exists)
        expected = [np.asarray(graph.writers)[writer].tolist(), np.asarray(graph.readers)[reader].tolist()]
    # An axis without labels may be in any order, so it is refused like one of another order.
    labels = [scores.coords[axis].values.tolist() for axis in ("writer", "reader") if axis in scores.coords]
    if labels != expected:
        raise CircuitError(
            f"These edge scores are not over the whole graph in its own order ({graph}): do not "
            "select or sort them."
        )
    return graph


def matrix_of(scores: xr.DataArray, graph: Graph) -> np.ndarray:
    """[(pos,) writer, reader] of edge scores, positive where the edge supports the behaviour.

    NaN where there is no edge.
    """
    values = supporting(scores)
    if scores.dims[-1] != "edge":
        return values
    table = np.full((*values.shape[:-1], *graph.whole.exists.shape), np.nan)
    writer, reader = np.nonzero(graph.whole.exists)
    table[..., writer, reader] = values
    return table


def finite_matrix_of(scores: xr.DataArray, graph: Graph, caller: str) -> np.ndarray:
    """`matrix_of`, where every edge has a finite score. Raises `NotFinite`, which names one that has none."""
    values = matrix_of(scores, graph)
    check_finite_scores(values, graph, caller)
    return values


def check_finite_scores(values: np.ndarray, graph: Graph, caller: str) -> None:
    """Raise `NotFinite` where an edge of the graph has a score that is not a finite number.

    Args:
        values: [..., (pos,) writer, reader].
        caller: whose scores they are, for the message.
    """
    bad = np.argwhere(~np.isfinite(values) & graph.exists)
    if len(bad):
        writer, reader = bad[0, -2:]
        edge = f"{graph.writers[writer]}->{graph.readers[reader]}"
        raise NotFinite(
            f"{caller}: the score of {edge} is not a finite number ({len(bad):,} of all scores are not). "
            "Check the metric, the edits and the model's dtype.",
            place=edge,
        )


@checked
def joint_scores(
    scores: xr.DataArray, *, by: Literal["magnitude", "signed"] | str = "magnitude"
) -> xr.DataArray:
    """One score for every edge, from scores of several prompts (`example`) and counterfactuals (`ablation`).

    Args:
        by: "magnitude": over prompts the root of the mean square, so that an edge that supports on some and
            opposes on others counts; "signed": the mean. Over counterfactuals, in either case, the mean of
            scores divided by their largest size, so that each counts the same.

    Returns:
        DataArray without these axes; scores that have none of them come back as they are.

    >>> scores = xr.DataArray([[1.0], [-1.0]], dims=["example", "edge"])
    >>> joint_scores(scores).values, joint_scores(scores, by="signed").values
    (array([1.]), array([0.]))
    """
    if by not in RANKINGS:
        raise UnknownName("by", by, RANKINGS)
    joint = scores
    if "example" in joint.dims:
        if by == "magnitude":
            joint = ((joint.astype(float) ** 2).mean("example", skipna=False)) ** 0.5
        else:
            joint = joint.astype(float).mean("example", skipna=False)
    if "ablation" in joint.dims:
        if by == "magnitude":
            joint = abs(joint)
        axes = [dim for dim in joint.dims if dim != "ablation"]
        # NaN marks edges that the graph lacks; scores that are NaN by mistake stay so and are refused.
        largest = abs(joint).max(axes)
        joint = (joint / largest.where(largest > 0, 1.0)).mean("ablation", skipna=False)
    return joint.assign_attrs(scores.attrs)


def most_alike(scores: xr.DataArray) -> tuple[str, str, float]:
    """The two counterfactuals whose scores are most alike, and the cosine between these (means over prompts).

    Args:
        scores: of two counterfactuals or more, on the axis `ablation`.

    >>> scores = xr.DataArray([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]], {"ablation": ["a", "b", "c"]}, ["ablation", "edge"])
    >>> most_alike(scores)
    ('a', 'b', 1.0)
    """
    means = scores.mean("example") if "example" in scores.dims else scores
    # NaN marks edges that the graph lacks.
    rows = np.nan_to_num(means.transpose("ablation", ...).values.reshape(means.sizes["ablation"], -1))
    lengths = np.linalg.norm(rows, axis=1)
    cosines = rows @ rows.T / np.maximum(np.outer(lengths, lengths), np.finfo(float).tiny)
    first, second = max(combinations(range(len(rows)), 2), key=lambda pair: cosines[pair])
    names = list(map(str, scores["ablation"].values))
    return names[first], names[second], float(cosines[first, second])


def supporting(scores: xr.DataArray) -> np.ndarray:
    """The values turned so that positive supports the behaviour, also where a lower metric is better."""
    if int(scores.attrs.get("higher_is_better", 1)):
        return scores.values
    return -scores.values


def check_array(scores: xr.DataArray) -> None:
    """Raise `CircuitError` unless scores are real numbers."""
    if scores.dtype.kind not in "fiu":
        raise CircuitError(f"Scores are real numbers, not {scores.dtype}.")


def graph_in_attrs(scores: xr.DataArray) -> Graph:
    """The graph that the attrs of scores describe."""
    try:
        graph = Graph.from_dict(parse_json(scores.attrs["graph"]))
    except (ValueError, TypeError, KeyError, AttributeError, SiteError) as error:
        raise CircuitError(f"These scores do not say which graph they belong to: {error}") from error
    check_size(graph)
    return graph


def with_graph(scores: xr.DataArray, graph: Graph) -> xr.DataArray:
    """The scores, of this graph: one with the same edges and other dead ends, as runs with another value have."""
    return scores.assign_attrs(graph=json.dumps(graph.to_dict()))


def is_number(number: Any) -> bool:
    """Whether it is a finite real number."""
    return (
        isinstance(number, int | float | np.integer | np.floating)
        and type(number) is not bool
        and bool(np.isfinite(number))
    )
