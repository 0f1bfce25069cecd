"""The files of EAP-IG and MIB: JSON and torch's format, each read and written as a `ForeignCircuit`.

Read `parse_json` and `dump_json`; `parse_torch` and `dump_torch` do the same for the other. Whatever is wrong
with a file is an error of some kind, which `formats.py` turns into one message. No file is ever executed.
"""

import json
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.circuit.components import MOST_CELLS
from workbench.circuit.foreign import ForeignCircuit
from workbench.documents import read_json
from workbench.errors import CircuitError
from workbench.text import with_article


def parse_json(path: Path) -> ForeignCircuit:
    """The JSON of EAP-IG and MIB."""
    document = read_json(path)
    _check_keys(document, ("cfg", "nodes", "edges"))
    width, nodes, neurons, edges = document["cfg"]["d_model"], {}, {}, {}
    for name, facts in document["nodes"].items():
        nodes[name] = _flag(facts["in_graph"], name)
        if facts.get("neurons") is not None and name != "logits":
            neurons[name] = _dims(facts["neurons"], width, name)
    for name, facts in document["edges"].items():
        writer, arrow, reader = name.partition("->")
        if not arrow:
            raise CircuitError(f"{name!r} is not an edge. Edges: a9.h9->a10.h7<q>.")
        if type(facts["score"]) not in (int, float):
            raise CircuitError(f"the score of {name} is {facts['score']!r}.")
        edges[writer, reader] = float(facts["score"]), _flag(facts["in_graph"], name)
    # Rows and columns in the order in which the file names them; edges that it leaves out are not listed.
    sources = _numbered(writer for writer, _ in edges)
    targets = _numbered(reader for _, reader in edges)
    size = _checked_size(sources, targets)
    scores, inside, listed = np.zeros(size), np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    for (writer, reader), (score, flag) in edges.items():
        cell = sources[writer], targets[reader]
        scores[cell], inside[cell], listed[cell] = score, flag, True
    return ForeignCircuit(document["cfg"], nodes, [*sources], [*targets], scores, inside, listed, neurons)


def dump_json(foreign: ForeignCircuit, path: Path) -> None:
    """Write the JSON that `parse_json` reads."""
    nodes: dict[str, Any] = {}
    for name, flag in foreign.nodes.items():
        nodes[name] = {"in_graph": flag}
        if name in foreign.neurons:
            nodes[name]["neurons"] = foreign.neurons[name]
    edges: dict[str, Any] = {}
    assert foreign.listed is not None, "our own circuits know which edges exist"
    for u, v in np.argwhere(foreign.listed):
        edges[f"{foreign.sources[u]}->{foreign.targets[v]}"] = {
            "score": float(foreign.scores[u, v]),
            "in_graph": bool(foreign.inside[u, v]),
        }
    document = {"cfg": dict(foreign.cfg), "nodes": nodes, "edges": edges}
    path.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")


def parse_torch(path: Path) -> ForeignCircuit:
    """The torch file of EAP-IG and MIB."""
    try:
        # Never without `weights_only`: a pickle runs whatever its author put in it.
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises whatever its parsing of damaged bytes runs into
        text = str(error).partition("\n")[0] or "it ends too soon"
        raise CircuitError(
            f"it cannot be read without executing what is in it, or is damaged: {text}"
        ) from error
    _check_keys(
        document, ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")
    )
    sources, targets = list(document["src_nodes"]), list(document["dst_nodes"])
    for names in (sources, targets):
        if not all(isinstance(name, str) for name in names):
            raise CircuitError("a node is not named by a text.")
        if len(set(names)) < len(names):
            raise CircuitError("a node is listed twice.")
    size = _checked_size(sources, targets)
    scores = _matrix(document, "edges_scores", size)
    inside = _flags(document, "edges_in_graph", size)
    nodes = dict(zip(sources, _flags(document, "nodes_in_graph", size[:1]).tolist(), strict=True))
    neurons = {}
    if document.get("neurons_in_graph") is not None:
        rows = _flags(document, "neurons_in_graph", (size[0], document["cfg"]["d_model"]))
        neurons = dict(zip(sources, rows.tolist(), strict=True))
    return ForeignCircuit(document["cfg"], nodes, sources, targets, scores, inside, None, neurons)


def dump_torch(foreign: ForeignCircuit, path: Path) -> None:
    """Write the file that `parse_torch` reads."""
    document = {
        "cfg": dict(foreign.cfg),
        "src_nodes": list(foreign.sources),
        "dst_nodes": list(foreign.targets),
        "edges_scores": torch.from_numpy(foreign.scores),
        "edges_in_graph": torch.from_numpy(foreign.inside),
        # Only writers have a row, so that the logits are left out.
        "nodes_in_graph": torch.tensor(list(map(foreign.nodes.__getitem__, foreign.sources))),
    }
    if foreign.neurons:
        neurons = list(map(foreign.neurons.__getitem__, foreign.sources))
        document["neurons_in_graph"] = torch.tensor(neurons)
    torch.save(document, path)


def _numbered(names: Iterable[str]) -> dict[str, int]:
    """Each name once, in order, with its row or column."""
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _checked_size(sources: Sized, targets: Sized) -> tuple[int, int]:
    """Rows and columns of a file's matrices, once it is known that no graph has more."""
    size = (len(sources), len(targets))
    if size[0] * size[1] > MOST_CELLS:
        raise CircuitError(f"{size[0]} writers and {size[1]} readers are more than a circuit file may have.")
    return size


def _check_keys(document: Any, needed: Iterable[str]) -> None:
    if not isinstance(document, dict):
        raise CircuitError(f"it holds {with_article(type(document).__name__)}, not a dictionary.")
    missing = [key for key in needed if key not in document]
    if missing:
        raise CircuitError(f"it lacks {', '.join(missing)}.")
    if not isinstance(document["cfg"], dict):
        raise CircuitError(f"cfg is {with_article(type(document['cfg']).__name__)}, not a dictionary.")


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise CircuitError(f"in_graph of {name} is {value!r}; true or false is needed.")
    return value


def _dims(value: Any, width: int, name: str) -> list[bool]:
    if not isinstance(value, list) or len(value) != width or not all(flag in (0, 1) for flag in value):
        raise CircuitError(f"neurons of {name} is not a list of {width} times true or false.")
    return list(map(bool, value))


def _matrix(document: Mapping[str, Any], name: str, size: tuple[int, ...]) -> np.ndarray:
    value = document[name]
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != size:
        has: Any = type(value).__name__
        if isinstance(value, torch.Tensor):
            has = list(value.shape)
        raise CircuitError(f"{name} is {has}; the lists of nodes need a tensor of {list(size)}.")
    if value.is_complex():
        raise CircuitError(f"{name} holds complex numbers.")
    if value.layout != torch.strided:
        raise CircuitError(f"{name} is sparse; a dense tensor is needed.")
    # One number in the file can stand for a table of any size.
    if value.numel() * value.itemsize > value.untyped_storage().nbytes():
        raise CircuitError(f"{name} promises more numbers than the file holds.")
    return value.detach().to(torch.float64).numpy()


def _flags(document: Mapping[str, Any], name: str, size: tuple[int, ...]) -> np.ndarray:
    matrix = _matrix(document, name, size)
    # Flags may have any dtype, but only two values have a meaning.
    if not np.isin(matrix, (0.0, 1.0)).all():
        raise CircuitError(f"{name} holds more than true and false.")
    return matrix.astype(bool)
