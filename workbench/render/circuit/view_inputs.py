"""What a `CircuitView` is made of, checked against the circuit: scores, patterns, intervals and a curve.

Each function returns plain tuples and dicts, which are all that a picture needs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.errors import CircuitError
from workbench.names import OTHER_SIDE, other_side

Ends = tuple[str, str]
"""Writer and reader of an edge."""


def default_title(circuit: Circuit) -> str:
    """The title of a circuit without one: its task, where that is known."""
    task = circuit.attrs.get("task")
    if task:
        return f"Circuit for {task}"
    return "Circuit"


def token_labels(tokens: Sequence[str] | None, by_pos: Mapping[Ends, tuple[float, ...]]) -> tuple[str, ...]:
    """The tokens, or the numbers of the positions that have scores."""
    if tokens is not None:
        return tuple(tokens)
    length = max(map(len, by_pos.values()), default=0)
    return tuple(map(str, range(length)))


def cut_patterns(
    patterns: Mapping[tuple[int, int], np.ndarray], length: int
) -> dict[tuple[int, int], np.ndarray]:
    """The patterns [query_pos, key_pos], cut to `length` positions; whole where no positions are known."""
    shown = {}
    for (layer, head), pattern in patterns.items():
        values = np.asarray(pattern, dtype=float)
        if values.ndim != 2 or min(values.shape) < length:
            raise CircuitError(
                f"The pattern of a{layer}.{head} has shape {values.shape}; one of [query_pos, key_pos] for a "
                f"prompt of {length} tokens is needed. Select one example, as in pattern[example, head]."
            )
        if length:
            values = values[:length, :length]
        shown[int(layer), int(head)] = values
    return shown


def intervals_of_edges(circuit: Circuit, intervals: xr.Dataset | None) -> dict[Ends, tuple[float, float]]:
    """Low and high of the score of every edge that has both; without intervals none."""
    if intervals is None:
        return {}
    for name in ("low", "high"):
        if name not in intervals or set(intervals[name].dims) != {"writer", "reader"}:
            raise CircuitError(
                "intervals needs `low` and `high` over (writer, reader), as wb.summary(scores) gives them."
            )
    low, high = _in_graph_order(circuit, intervals["low"]), _in_graph_order(circuit, intervals["high"])
    bounds = {}
    for edge in circuit.edge_list:
        at = circuit.graph.index(edge)
        if np.isfinite(low[at]) and np.isfinite(high[at]):
            bounds[edge.writer, edge.reader] = (float(low[at]), float(high[at]))
    return bounds


def _in_graph_order(circuit: Circuit, table: xr.DataArray) -> np.ndarray:
    """[writer, reader] values in the order of the graph's names."""
    for axis, names in (("writer", circuit.graph.writers), ("reader", circuit.graph.readers)):
        named = axis in table.coords and sorted(map(str, table[axis].values)) == sorted(names)
        if not named:
            raise CircuitError(
                f"intervals belongs to another graph: its {axis}s are not those of {circuit.graph}."
            )
        # by name, because a table that was sorted or merged has the same names in another order
        table = table.sel({axis: list(names)})
    return table.transpose("writer", "reader").values


def curve_rows(curve: xr.Dataset | None) -> tuple[tuple[int, float, float, float], ...]:
    """(edges, faithfulness, low, high) of each size that was measured, smallest first; or nothing."""
    if curve is None:
        return ()
    names = ("n_edges", "faithfulness", "low", "high")
    missing = [name for name in names if name not in curve.variables]
    if missing:
        raise CircuitError(
            f"curve lacks {', '.join(missing)}: give what faithfulness_curve(circuit, ...) returns."
        )
    # a curve of other scores would show a faithfulness that the edges in the picture do not have
    if curve.attrs.get("ranked_by") != "circuit":
        raise CircuitError(
            "The picture shows a circuit's own strongest edges, and this curve is of others: give what "
            "faithfulness_curve(circuit, ...) returns, with the circuit in place of scores."
        )
    columns = [np.asarray(curve[name].values, dtype=float) for name in names]
    rows = sorted(row for row in zip(*columns, strict=True) if np.isfinite(row[1]))
    return tuple((int(n), float(share), float(low), float(high)) for n, share, low, high in rows)


def provenance_of(circuit: Circuit, faithfulness: tuple[float, float, float] | None) -> tuple[str, ...]:
    """The facts under a title: model, data, metric, method, size and faithfulness, where they are known."""
    attrs: Mapping[str, Any] = circuit.attrs
    facts = []
    if "model" in attrs:
        facts.append(f"model {attrs['model']}")
    data = attrs.get("task") or attrs.get("data")
    if data:
        fact = f"data {data}"
        if "n" in attrs:
            fact += f" ({attrs['n']} prompts)"
        facts.append(fact)
    metric, value = attrs.get("metric"), attrs.get("value")
    if circuit.graph.answers_attend:
        facts.append("keys and values are read by the answer's tokens too")
    if value:
        # A circuit is found on the clean run, so a value from a store is the other run's, the corrupt one. Scores
        # over several counterfactuals have the value of each.
        sides = [other_side("clean") if one in OTHER_SIDE else one for one in str(value).split(", ")]
        value = ", ".join(dict.fromkeys(sides))
    if metric:
        fact = f"metric {metric}"
        if value:
            fact += f" ({value})"
        facts.append(fact)
    elif value:
        facts.append(f"value {value}")
    if "method" in attrs:
        facts.append(f"method {attrs['method']}")
    facts.append(f"{circuit.n_edges:,} of {circuit.graph.n_edges:,} edges")
    if faithfulness is not None:
        share, low, high = faithfulness
        facts.append(f"faithfulness of all {circuit.n_edges:,}: {share:.2f} [{low:.2f}, {high:.2f}]")
    return tuple(facts)


def scores_by_position(
    circuit: Circuit, scores: xr.DataArray | None, tokens: Sequence[str] | None
) -> dict[Ends, tuple[float, ...]]:
    """The scores of every edge at each position, up to the last token or the last position with a score.

    Without scores none.
    """
    if scores is None:
        return {}
    if set(scores.dims) != {"writer", "reader", "pos"}:
        raise CircuitError(
            f"position_scores has dims {tuple(map(str, scores.dims))}; (writer, reader, pos) of one prompt "
            "is needed. Select an example, as in scores.isel(example=0)."
        )
    scores = scores.transpose("writer", "reader", "pos")
    for axis, names in (("writer", circuit.graph.writers), ("reader", circuit.graph.readers)):
        if axis in scores.coords:
            fits = tuple(map(str, scores[axis].values)) == names
        else:
            fits = scores.sizes[axis] == len(names)
        if not fits:
            raise CircuitError(
                f"position_scores belongs to another graph: its {axis}s are not those of {circuit.graph}."
            )
    values = scores.values.astype(float)
    # positions after the prompt's end are NaN in a batch of prompts of several lengths
    measured = np.flatnonzero(np.isfinite(values).any((0, 1)))
    last = int(measured.max(initial=-1)) + 1
    if tokens is not None and last > len(tokens):
        raise CircuitError(
            f"position_scores reaches position {last - 1}, but there are {len(tokens)} tokens."
        )
    length = last if tokens is None else min(len(tokens), values.shape[2])
    rows = {}
    for edge in circuit.edge_list:
        row = values[circuit.graph.index(edge)][:length]
        rows[edge.writer, edge.reader] = tuple(map(float, row))
    return rows
