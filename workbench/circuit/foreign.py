"""What files of EAP-IG and MIB hold, and how it becomes a circuit of ours and back.

Read `ForeignCircuit`, then `from_foreign`. What their files mean and ours need:

* They fix no sign, so the caller says what a positive score means there. Edges decide what is in the circuit;
  the flags of nodes are checked and otherwise only noted.
* They name a key and a value for every query head. Where heads share them, one of ours is in the circuit if
  any of theirs is and has the sum of their scores; writing splits the score evenly over the heads that share
  it.
* Their "neurons" are dimensions of a node's output. They are kept (`Circuit.output_neurons`) and written
  back.
* An edge without a score is written as 0, the score that their graphs start with; if every score is 0, none
  is read.

Nothing here knows a file: those are read and written by `foreign_files.py`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench.circuit.circuit import Circuit
from workbench.circuit.components import check_size
from workbench.circuit.graph import Graph
from workbench.errors import CircuitError
from workbench.sites import Shape

_NODE = re.compile(
    r"(?:a(?P<layer>0|[1-9]\d{0,8})\.h(?P<head>0|[1-9]\d{0,8})|m(?:0|[1-9]\d{0,8})|input|logits)", re.ASCII
)
_GPT2 = {"d_vocab": 50257, "n_ctx": 1024}
"""Sizes that other tools' files do not give; those of GPT-2 are assumed."""


@dataclass(frozen=True, eq=False)
class ForeignCircuit:
    """What other tools' files hold, in their names: `a9.h9`, `a10.h7<q>`.

    Attributes:
        cfg: `n_layers n_heads parallel_attn_mlp d_model`.
        nodes: name → whether it is in the circuit.
        sources, targets: the names of the rows and columns of the matrices.
        scores, inside: float and bool [source, target].
        listed: bool [source, target]: which edges the file lists; None: all that exist.
        neurons: name → which dimensions of its output are in the circuit.
    """

    cfg: Mapping[str, Any]
    nodes: Mapping[str, bool]
    sources: Sequence[str]
    targets: Sequence[str]
    scores: np.ndarray
    inside: np.ndarray
    listed: np.ndarray | None
    neurons: Mapping[str, list[bool]]


def from_foreign(
    foreign: ForeignCircuit, shape: Shape | None, sign: float, *, answers_attend: bool = False
) -> Circuit:
    """Our circuit of what a file holds; `sign` turns its scores so that positive supports the behaviour."""
    shape, assumed = _shape_of(foreign, shape)
    graph = Graph(shape, answers_attend=answers_attend)
    check_size(graph)
    writers, readers = {*graph.writers}, {*graph.readers}
    named = [(name, writers | {"logits"}) for name in (*foreign.nodes, *foreign.neurons)]
    named += [(name, writers) for name in foreign.sources] + [(name, readers) for name in foreign.targets]
    for name, known in named:
        if _ours(name, group=shape.group) not in known:
            raise CircuitError(f"there is no {name!r} in {graph}.")
    # Their [source, target] matrices have an order of their own, so the cells are looked up by name. They
    # name a key of each query head; a shared key repeats a column.
    rows = [graph.writer_index[_ours(name)] for name in foreign.sources]
    columns = [graph.reader_index[_ours(name, group=shape.group)] for name in foreign.targets]
    cells = np.ix_(rows, columns)
    exists = graph.exists[cells]
    listed = foreign.listed
    if listed is None:
        listed = exists | foreign.inside
    for wrong, problem in (
        (listed & ~exists, "does not exist"),
        (listed & ~np.isfinite(foreign.scores), "has no finite score"),
    ):
        for u, v in np.argwhere(wrong)[:1]:
            raise CircuitError(f"the edge {foreign.sources[u]}->{foreign.targets[v]} {problem}.")
    edges, scored = np.zeros_like(graph.exists), np.zeros_like(graph.exists)
    scores = np.zeros(graph.exists.shape)
    # `.at`, because columns repeat: plain indexing would keep the last head that shares a key.
    np.logical_or.at(edges, cells, foreign.inside)
    np.logical_or.at(scored, cells, listed)
    with np.errstate(over="ignore"):  # an infinite sum is refused below
        np.add.at(scores, cells, np.where(listed, sign * foreign.scores, 0.0))
    for u, v in np.argwhere(~np.isfinite(scores))[:1]:
        raise CircuitError(
            f"the scores of {graph.writers[u]}->{graph.readers[v]}, one of each head that shares it, add up to "
            "no finite number."
        )
    scores = np.where(scored, scores + 0.0, np.nan)  # + 0.0 turns the -0.0 of a turned sign into 0.0
    # A node whose dimensions are all in the circuit is simply in it: only parts of nodes are noted.
    partial = {}
    for name, dims in foreign.neurons.items():
        if not all(dims):
            partial[_ours(name)] = np.flatnonzero(dims).tolist()
    attrs = {}
    if assumed:
        attrs["assumed"] = assumed
    if partial:
        attrs["output_neurons"] = json.dumps(partial)
    # All 0 is what their graphs start with: no edge was scored.
    any_score = bool(np.nan_to_num(scores).any())
    circuit = Circuit.of(graph, edges, scores=scores if any_score else None, attrs=attrs)
    # What the flags of nodes say is noted, and not obeyed: edges decide.
    return _with_disagreement(circuit, foreign)


def _with_disagreement(circuit: Circuit, foreign: ForeignCircuit) -> Circuit:
    """The circuit, with a note of the nodes whose flags in the file say something else than its edges."""
    inside = {_ours(name) for name, flag in foreign.nodes.items() if flag} | {"input", "logits"}
    # Theirs flag only nodes that their graph has: others are in neither list.
    disagree = set(map(_ours, foreign.nodes)) & (inside ^ {*circuit.nodes, "input", "logits"})
    if not disagree:
        return circuit
    return replace(circuit, attrs={**circuit.attrs, "nodes_flagged_otherwise": " ".join(sorted(disagree))})


def _shape_of(foreign: ForeignCircuit, shape: Shape | None) -> tuple[Shape, str]:
    """The shape of the circuit's model, and in words what was assumed of it."""
    cfg = {name: foreign.cfg[name] for name in ("n_layers", "n_heads", "d_model", "parallel_attn_mlp")}
    for name in ("n_layers", "n_heads", "d_model"):
        if type(cfg[name]) is not int or cfg[name] < 1:
            raise CircuitError(f"cfg says {name} = {cfg[name]!r}.")
    if not isinstance(cfg["parallel_attn_mlp"], bool):
        raise CircuitError(f"cfg says parallel_attn_mlp = {cfg['parallel_attn_mlp']!r}.")
    if shape is not None:
        ours = {"n_layers": shape.n_layers, "n_heads": shape.n_heads, "d_model": shape.d_model}
        ours["parallel_attn_mlp"] = shape.parallel
        wrong = [
            f"{name} is {cfg[name]}, the model's {ours[name]}" for name in cfg if cfg[name] != ours[name]
        ]
        if wrong:
            raise CircuitError(f"it is for another model: {'; '.join(wrong)}.")
        return shape, ""
    # d_head is assumed below, and must be whole.
    if cfg["d_model"] % cfg["n_heads"]:
        raise CircuitError(
            f"d_model {cfg['d_model']} is not a multiple of {cfg['n_heads']} heads. "
            "Pass shape= (a model or Shape)."
        )
    attn_only = not any(name.startswith("m") for name in foreign.nodes)
    sizes = {"n_kv_heads": cfg["n_heads"], "d_head": cfg["d_model"] // cfg["n_heads"]}
    sizes |= {"d_mlp": 0 if attn_only else 4 * cfg["d_model"], **_GPT2}
    assumed_shape = Shape(
        cfg["n_layers"], cfg["n_heads"], d_model=cfg["d_model"], parallel=cfg["parallel_attn_mlp"],
        attn_only=attn_only, **sizes,
    )  # fmt: skip
    return assumed_shape, ", ".join(f"{name} {size}" for name, size in sizes.items())


def _ours(name: str, *, group: int = 1) -> str:
    """Our name of their node or reader; with `group`, of the key or value that the query head shares."""
    node, bracket, port = name.partition("<")
    match = _NODE.fullmatch(node)
    if match is None or (port and (port not in ("q>", "k>", "v>") or match["head"] is None)):
        raise CircuitError(f"{name!r} is not the name of a node. Names: input, a9.h6, a9.h6<q>, m3, logits.")
    if match["head"] is None:
        return node
    head = int(match["head"])
    if port in ("k>", "v>"):
        head //= group
    return f"a{match['layer']}.{head}{bracket}{port}"


def _theirs(component: str) -> str:
    """Their name of our component."""
    return component.replace(".", ".h")


def to_foreign(circuit: Circuit, sign: float) -> ForeignCircuit:
    """What another tool's file holds of our circuit: a column for every query head, in EAP-IG's order."""
    graph, shape = circuit.graph, circuit.graph.shape
    targets = []
    for layer in range(shape.n_layers):
        targets += [f"a{layer}.h{head}<{port}>" for port in "qkv" for head in range(shape.n_heads)]
        targets += graph.mlp_nodes(layer)
    targets.append("logits")
    columns = [graph.reader_index[_ours(name, group=shape.group)] for name in targets]
    # A shared score is split evenly, so that reading the file sums it to what it was.
    sharing = np.ones(len(targets))
    sharing[np.char.endswith(targets, "k>") | np.char.endswith(targets, "v>")] = shape.group
    scores = np.zeros(graph.exists.shape)
    if circuit.scores is not None:
        scores = np.nan_to_num(circuit.scores)
    inside, kept, neurons = {*circuit.nodes, "logits"}, circuit.output_neurons, {}
    if kept:
        for name in graph.writers:
            # Their files want a flag for every dimension of an output.
            dims = kept.get(name, range(shape.d_model))
            neurons[_theirs(name)] = np.isin(np.arange(shape.d_model), list(dims)).tolist()
    return ForeignCircuit(
        cfg={
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            "parallel_attn_mlp": shape.parallel,
            "d_model": shape.d_model,
        },
        nodes={_theirs(name): name in inside for name in (*graph.writers, "logits")},
        sources=list(map(_theirs, graph.writers)),
        targets=targets,
        scores=sign * scores[:, columns] / sharing + 0.0,
        inside=circuit.edges[:, columns],
        listed=graph.exists[:, columns],
        neurons=neurons,
    )
