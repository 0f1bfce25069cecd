"""The workbench's own circuit files: JSON that names a circuit's edges, graph, model and prompts.

`CircuitDocument` is what a file says, `read_document` and `write_document` are the way in and out. A file
that was damaged or cut is refused, and so is one whose edges its own graph does not have. Files of other
tools are read in `formats`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.circuit.components import check_labels, check_size
from workbench.circuit.graph import Graph
from workbench.errors import CircuitError, SiteError
from workbench.files import check_free, whole
from workbench.sites import Edge

FORMAT = "interp-workbench circuit 1"
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, SiteError)
"""What reading a damaged or hostile document can run into: each means that the file is not usable."""


@dataclass(frozen=True, eq=False)
class CircuitDocument:
    """What a circuit file says; the fields are those of `Circuit`.

    `scores` has numbers at the circuit's own edges only.
    """

    graph: Graph
    edges: np.ndarray
    scores: np.ndarray | None
    n_requested: int
    attrs: Mapping[str, Any]
    prompt_ids: frozenset[str]
    labels: Mapping[str, str]


def write_document(
    document: CircuitDocument,
    path: Path,
    scored_edges: Sequence[tuple[Edge, float]],
    *,
    overwrite: bool = False,
) -> None:
    """Write a circuit as JSON, whole or not at all, with its edges in this order. Raises `OutputExists`."""
    check_free(path, overwrite=overwrite)
    # JSON has no NaN: an edge without a score gets null.
    edges: dict[str, float | None] = {str(edge): None for edge, _ in scored_edges}
    edges |= {str(edge): score for edge, score in scored_edges if math.isfinite(score)}
    fields: dict[str, Any] = {
        "format": FORMAT,
        "shape": document.graph.to_dict(),
        "n_edges": len(edges),
        "n_requested": document.n_requested,
        "attrs": dict(document.attrs),
        "prompt_ids": sorted(document.prompt_ids),
    }
    if document.labels:
        fields["labels"] = dict(document.labels)
    fields["edges"] = edges
    with whole(path) as partial:
        partial.write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_document(path: Path) -> CircuitDocument:
    """What a circuit file says.

    Raises:
        CircuitError: no such file, not a circuit, or edges that its own graph does not have.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise CircuitError(f"{str(path)!r} is not a circuit file: its format is not {FORMAT!r}.")
        document = _document(fields)
    except OSError as error:
        raise CircuitError(f"There is no circuit file {str(path)!r}.") from error
    except _MALFORMED as error:
        raise CircuitError(f"{str(path)!r} is not a usable circuit file: {error}") from error
    n_edges = int(document.edges.sum())
    if n_edges != fields.get("n_edges"):
        raise CircuitError(
            f"{str(path)!r} was edited or cut: it promises {fields.get('n_edges')} edges and holds {n_edges}."
        )
    return document


def _document(fields: dict[str, Any]) -> CircuitDocument:
    """The checked content of a file. Raises one of `_MALFORMED` where it is not that of a circuit."""
    graph = Graph.from_dict(fields["shape"])
    check_size(graph)
    listed = fields["edges"]
    edges, scores = np.zeros_like(graph.exists), np.full(graph.exists.shape, np.nan)
    for name, score in listed.items():
        index = graph.index(name)
        # `type` and not `isinstance`: true is an int for Python, and no score.
        if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
            raise ValueError(f"the score of {name} is {score!r}")
        edges[index] = True
        if score is not None:
            scores[index] = float(score)
    prompt_ids, n_requested = fields["prompt_ids"], fields["n_requested"]
    if not isinstance(prompt_ids, list) or not all(isinstance(prompt, str) for prompt in prompt_ids):
        raise ValueError("prompt_ids is not a list of texts")
    if type(n_requested) is not int or n_requested < len(listed):
        raise ValueError(f"n_requested is {n_requested} for {len(listed)} edges")
    scored = any(score is not None for score in listed.values())
    labels = check_labels(graph, dict(fields.get("labels", {})))
    attrs = dict(fields["attrs"])
    _check_output_neurons(attrs.get("output_neurons", "{}"))
    return CircuitDocument(
        graph, edges, scores if scored else None, n_requested, attrs, frozenset(prompt_ids), labels
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys must differ: of two equal edges, `json` would silently keep the last."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return fields


def _check_output_neurons(text: Any) -> None:
    """Raise `ValueError` unless `output_neurons` is the JSON text of lists of dimensions by name."""
    by_node = json.loads(text) if isinstance(text, str) else None
    lists = by_node.values() if isinstance(by_node, dict) else [None]
    for dims in lists:
        if not isinstance(dims, list) or not all(type(dim) is int for dim in dims):
            raise ValueError("output_neurons is not the text of lists of dimensions by name")
