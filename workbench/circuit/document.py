"""The workbench's own circuit files: JSON that names a circuit's edges, graph, model and prompts.

`CircuitDocument` is what a file says, `read_document` and `write_document` are the way in and out. A file
that was damaged, edited or cut is refused, which its checksum shows, and so is one whose edges its own graph
does not have. Files of other tools are read in `formats`.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.checksums import is_unchanged, signed
from workbench.circuit.components import check_labels, check_output_neurons, check_size, clean_facts
from workbench.circuit.graph import Graph
from workbench.documents import read_json
from workbench.errors import CircuitError, SiteError
from workbench.files import check_free, whole
from workbench.sites import Edge

FORMAT = "interp-workbench circuit 1"
_MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    SiteError,
    CircuitError,
)
"""What reading a damaged or hostile document can run into: each means that the file is not usable."""


@dataclass(frozen=True, eq=False)
class CircuitDocument:
    """What a circuit file says; the fields are those of `Circuit`.

    `scores` has numbers at the circuit's own edges, and at those of `other_scores` where the file has them.
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
    all_scores: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a circuit as JSON, whole or not at all, with its edges in this order. Raises `OutputExists`.

    Args:
        all_scores: also write the scores of edges outside the circuit, as `other_scores`.
    """
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
    if all_scores and document.scores is not None:
        outside = np.isfinite(document.scores) & document.graph.exists & ~document.edges
        scores_outside = document.scores[outside].tolist()
        names = map(str, document.graph.edges(outside))
        fields["other_scores"] = dict(zip(names, scores_outside, strict=True))
    with whole(path) as partial:
        partial.write_text(json.dumps(signed(fields), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_document(path: Path, *, edited: bool = False) -> CircuitDocument:
    """What a circuit file says.

    Args:
        edited: accept a file that was changed since it was written.

    Raises:
        CircuitError: no such file, not a circuit, changed since it was written, or edges that its own graph
            does not have.
    """
    fields = _fields(path)
    if edited:
        _count_anew(fields)
    try:
        document = _document(fields)
    except _MALFORMED as error:
        raise CircuitError(f"{str(path)!r} is not a usable circuit file: {error}") from error
    if not edited and (change := _change(fields)):
        name = str(path)
        raise CircuitError(
            f"{name!r} was edited or cut: {change}. If you edited it yourself, sign it again: "
            f"workbench convert {shlex.quote(name)} {shlex.quote(name)} --overwrite"
        )
    return document


def change_of(path: Path) -> str:
    """In which way a circuit file was changed since it was written; empty where it was not.

    Raises:
        CircuitError: no such file, or not a circuit.
    """
    return _change(_fields(path))


def _fields(path: Path) -> dict[str, Any]:
    """The content of a circuit file; nothing but its format is checked."""
    try:
        fields = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CircuitError(f"There is no circuit file {str(path)!r}.") from error
    except OSError as error:
        raise CircuitError(f"The circuit file {str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CircuitError(f"{str(path)!r} is not a usable circuit file: {error}") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise CircuitError(f"{str(path)!r} is not a circuit file: its format is not {FORMAT!r}.")
    return fields


def _change(fields: Mapping[str, Any]) -> str:
    """In which way the content of a file was changed since it was written."""
    promised, n_edges = fields.get("n_edges"), len(fields.get("edges", ()))
    if promised != n_edges:
        return f"it promises {promised} edges and holds {n_edges}"
    if not is_unchanged(fields):
        return "its content does not fit its checksum"
    return ""


def _count_anew(fields: dict[str, Any]) -> None:
    """Raise `n_requested` to the number of edges, which may have grown when the file was edited."""
    n_requested = fields.get("n_requested")
    if type(n_requested) is int and isinstance(fields.get("edges"), dict):
        fields["n_requested"] = max(n_requested, len(fields["edges"]))


def _document(fields: Mapping[str, Any]) -> CircuitDocument:
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
    if int(edges.sum()) < len(listed):
        raise ValueError("an edge is there twice, under two names")
    outside = fields.get("other_scores", {})
    for name, score in outside.items():
        index = graph.index(name)
        if np.any(edges[index]):
            raise ValueError(f"{name} is in the circuit and among the other_scores")
        if type(score) not in (int, float) or not math.isfinite(score):
            raise ValueError(f"the score of {name} is {score!r}")
        scores[index] = float(score)
    prompt_ids, n_requested = fields["prompt_ids"], fields["n_requested"]
    if not isinstance(prompt_ids, list) or not all(isinstance(prompt, str) for prompt in prompt_ids):
        raise ValueError("prompt_ids is not a list of texts")
    if type(n_requested) is not int or n_requested < len(listed):
        raise ValueError(f"n_requested is {n_requested} for {len(listed)} edges")
    scored = bool(outside) or any(score is not None for score in listed.values())
    labels = check_labels(graph, dict(fields.get("labels", {})))
    attrs = clean_facts(dict(fields["attrs"]))
    check_output_neurons(graph, attrs.get("output_neurons", "{}"))
    return CircuitDocument(
        graph, edges, scores if scored else None, n_requested, attrs, frozenset(prompt_ids), labels
    )
