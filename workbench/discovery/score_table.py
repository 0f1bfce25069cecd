"""Scores of edges: `ScoreTable` holds them as plain numbers, `labelled` makes the array that users get."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench.circuit.graph import Graph
from workbench.results import effect_array


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores and how they were made.

    Attributes:
        values: [example or 1, pos or class of positions or 1, writer, reader].
        facts: for the attrs of the result: `engine`, `forwards`, ...
    """

    values: np.ndarray
    facts: dict[str, Any]


def labelled(
    table: np.ndarray, graph: Graph, lengths: np.ndarray, keep: Sequence[str], attrs: dict[str, Any]
) -> xr.DataArray:
    """Scores over the kept axes and (writer, reader), or over one axis `edge` for a graph with neurons.

    Args:
        table: [example or 1, pos or class of positions or 1, writer, reader].
        lengths: [example], tokens of each that have scores.
        keep: of "example" and "pos": which of the first two axes were kept.
    """
    table = np.where(graph.whole.exists, table, np.nan)
    coords: dict[str, Any] = {}
    if "example" in keep:
        coords["example"] = np.arange(len(lengths))
    if "pos" in keep:
        coords["pos"] = np.arange(table.shape[1])
        if "example" in keep:
            # Padding is not a token, so it has no score.
            padding = np.arange(table.shape[1]) >= lengths[:, None]
            table[padding] = np.nan
    elif graph.positions is not None:
        coords["pos"] = [str(position) for position in graph.positions]
    kept_sizes = [len(labels) for labels in coords.values()]
    if not graph.neurons:
        coords |= {"writer": list(graph.writers), "reader": list(graph.readers)}
        values = table.reshape([*kept_sizes, *table.shape[2:]])
        return effect_array(values, tuple(coords), coords, name="score", attrs=attrs)
    # A matrix over neurons is mostly absent edges, so those that exist are listed on one axis.
    writer, reader = np.nonzero(graph.whole.exists)
    values = table[..., writer, reader].reshape(*kept_sizes, -1)
    writers, readers = (np.asarray(names, dtype=object) for names in (graph.writers, graph.readers))
    scores = effect_array(values, (*coords, "edge"), coords, name="score", attrs=attrs)
    return scores.assign_coords(writer=("edge", writers[writer]), reader=("edge", readers[reader]))
