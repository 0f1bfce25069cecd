"""Circuit files of this and of other tools: `read_circuit` and `write_circuit`; `FORMATS` is the list they
use.

EAP-IG and MIB write a graph as JSON or as a torch file. Nothing in a file is executed: torch files are read
with `weights_only`. What their files mean and ours need:

* They fix no sign, so `positive=` says what a positive score means there. Edges decide what is in the
  circuit; the flags of nodes are checked and otherwise only noted.
* They name a key and a value for every query head. Where heads share them, one of ours is in the circuit if
  any of theirs is and has the sum of their scores; writing splits the score evenly over the heads that share
  it.
* Their "neurons" are dimensions of a node's output. They are kept (`Circuit.output_neurons`) and written
  back.
* An edge without a score is written as 0, the score that their graphs start with; if every score is 0, none
  is read.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from workbench.circuit.circuit import Circuit
from workbench.circuit.components import check_size
from workbench.circuit.graph import Graph
from workbench.errors import CircuitError, SiteError, UnknownName
from workbench.files import check_free, whole
from workbench.sites import Shape

Positive = Literal["supports", "opposes"]
_SIGNS = {"supports": 1.0, "opposes": -1.0}
"""What turns another tool's scores into ours, whose positive ones support the behaviour."""
_NODE = re.compile(
    r"(?:a(?P<layer>0|[1-9]\d{0,8})\.h(?P<head>0|[1-9]\d{0,8})|m(?:0|[1-9]\d{0,8})|input|logits)", re.ASCII
)
_GPT2 = {"d_vocab": 50257, "n_ctx": 1024}
_MALFORMED = (
    ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, RuntimeError, SiteError,
)  # fmt: skip
"""What parsing a damaged or hostile file can run into: each means that the file is not usable."""


@dataclass(frozen=True)
class Format:
    """A kind of circuit file. `parse` and `dump` are None for our own, which `Circuit` loads and saves.

    Attributes:
        name, suffix: `write_circuit` takes the first format of a path's suffix when it is told none.
        title: for messages.
        parse: the file as a `Foreign`; any error that it raises means a malformed file.
        dump: writes a `Foreign` to a path.
    """

    name: str
    suffix: str
    title: str
    parse: Callable[[Path], "Foreign"] | None = None
    dump: Callable[["Foreign", Path], None] | None = None


@dataclass(frozen=True, eq=False)
class Foreign:
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


def read_circuit(path: str | Path, *, positive: Positive | str | None = None, shape: Any = None) -> Circuit:
    """The circuit in a file, whatever tool wrote it; it has the scores of every edge that the file scores.

    Args:
        path: our JSON, or the `.json` or `.pt` of EAP-IG and MIB.
        positive: what a positive score means in another tool's file: "supports" or "opposes" the behaviour.
            Required for those, because they descend a loss or ascend a metric; ours are always "supports".
        shape: the model or `Shape` the circuit is of. Without one, what another tool's file does not say is
            assumed and named in `attrs["assumed"]`: as many kv heads as heads, d_head = d_model / n_heads,
            d_mlp = 4 d_model, and the vocabulary and context of GPT-2.

    Raises:
        CircuitError: no such file, a malformed file, one for another model, or a missing `positive`.
        UnknownName: `positive` is neither.
    """
    path = Path(path)
    if positive not in (None, "supports", "opposes"):
        raise UnknownName("positive", positive, ("supports", "opposes"))
    if not path.is_file():
        raise CircuitError(f"There is no circuit file {str(path)!r}.")
    source = _format_of(path)
    if source.parse is None:
        if positive == "opposes":
            raise CircuitError(
                f"{str(path)!r} is our own: its positive scores support the behaviour. Leave positive= out."
            )
        circuit = Circuit.load(path)
        if shape is not None:
            circuit.check_fits(shape)
        return circuit
    if positive is None:
        raise CircuitError(
            f"{str(path)!r} is {source.title}, which does not say what a positive score means. "
            'Pass positive="supports" or positive="opposes".'
        )
    try:
        known_shape = None if shape is None else Shape.of(shape)
        circuit = _from_foreign(source.parse(path), known_shape, _SIGNS[positive])
    except CircuitError as error:
        raise CircuitError(f"{str(path)!r} is not usable as {source.title}: {error}") from error
    except _MALFORMED as error:
        # Python's own errors say little without their kind: "KeyError: 'cfg'".
        raise CircuitError(
            f"{str(path)!r} is not usable as {source.title}: {type(error).__name__}: {error}"
        ) from error
    facts = {"source_format": source.name, "source_file": path.name, "positive": positive}
    facts["source_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if circuit.output_neurons:
        warnings.warn(
            f"{path.name}: {len(circuit.output_neurons)} nodes have only some dimensions of their "
            "output in the circuit. "
            "They are kept for .weighted_edge_count and for writing; evaluation takes whole nodes.",
            stacklevel=2,
        )
    return replace(circuit, attrs={**circuit.attrs, **facts})


def write_circuit(
    circuit: Circuit,
    path: str | Path,
    *,
    format: str | None = None,
    positive: Positive | str = "supports",
    overwrite: bool = False,
) -> Path:
    """Write a circuit for this or another tool, whole or not at all.

    Args:
        format: "workbench", "eap-json" or "eap-pt"; by default ours for `.json` and theirs for `.pt`.
        positive: what a positive score shall mean in another tool's file.

    Raises:
        CircuitError: a circuit with positions or neurons, which the other formats cannot hold, or an unknown
            suffix.
        UnknownName: an unknown format.  OutputExists: the file exists.
    """
    path = Path(path)
    if positive not in ("supports", "opposes"):
        raise UnknownName("positive", positive, ("supports", "opposes"))
    target = FORMATS[format_for(path, format)]
    if target.dump is None:
        if positive == "opposes":
            raise CircuitError("write_circuit: positive scores support the behaviour in our own format.")
        return circuit.save(path, overwrite=overwrite)
    check_free(path, overwrite=overwrite)
    if circuit.graph != Graph(circuit.graph.shape):
        raise CircuitError(
            f"write_circuit: {target.name} holds no positions and no neurons of MLPs. Write "
            "circuit.collapsed."
        )
    with whole(path) as partial:
        target.dump(_to_foreign(circuit, _SIGNS[positive]), partial)
    return path


def format_for(path: Path, name: str | None = None) -> str:
    """The name of the format that a path is written in: the one that is asked for, or by its suffix."""
    if name is not None and name not in FORMATS:
        raise UnknownName("format", name, FORMATS)
    fitting = [known.name for known in FORMATS.values() if known.suffix == path.suffix.lower()]
    if name is None and not fitting:
        suffixes = ", ".join(dict.fromkeys(known.suffix for known in FORMATS.values()))
        raise CircuitError(f"{path.name!r} has no suffix of a circuit file ({suffixes}). Name its format.")
    return name or fitting[0]


def is_ours(path: Path) -> bool:
    """Whether a file is in our own format, or in none that is known."""
    return _format_of(path).parse is None


def _format_of(path: Path) -> Format:
    if path.suffix.lower() in (".pt", ".pth"):
        return FORMATS["eap-pt"]
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CircuitError(f"{str(path)!r} is not a usable circuit file: {error}") from error
    if (
        isinstance(document, dict)
        and "format" not in document
        and {"cfg", "nodes", "edges"} & document.keys()
    ):
        return FORMATS["eap-json"]
    return FORMATS["workbench"]


def _from_foreign(foreign: Foreign, shape: Shape | None, sign: float) -> Circuit:
    """Our circuit of what a file holds; `sign` turns its scores so that positive supports the behaviour."""
    shape, assumed = _shape_of(foreign, shape)
    graph = Graph(shape)
    check_size(graph)
    writers, readers = {*graph.writers}, {*graph.readers}
    named = [(name, writers | {"logits"}) for name in (*foreign.nodes, *foreign.neurons)]
    named += [(name, writers) for name in foreign.sources] + [(name, readers) for name in foreign.targets]
    for name, known in named:
        if _ours(name, group=shape.group) not in known:
            raise CircuitError(f"there is no {name!r} in {graph}.")
    # Their matrices [source, target] lie at these rows and columns of ours. Where heads share keys, columns
    # repeat.
    cells = np.ix_(
        [graph.writer_index[_ours(name)] for name in foreign.sources],
        [graph.reader_index[_ours(name, group=shape.group)] for name in foreign.targets],
    )
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
    edges, scored, scores = (np.zeros(graph.exists.shape, dtype=kind) for kind in (bool, bool, float))
    # `.at`, because columns repeat: plain indexing would keep the last head that shares a key.
    np.logical_or.at(edges, cells, foreign.inside)
    np.logical_or.at(scored, cells, listed)
    np.add.at(scores, cells, np.where(listed, sign * foreign.scores, 0.0))
    scores = np.where(scored, scores + 0.0, np.nan)  # + 0.0 turns the -0.0 of a turned sign into 0.0
    partial = {
        _ours(name): np.flatnonzero(dims).tolist() for name, dims in foreign.neurons.items() if not all(dims)
    }
    attrs = {"assumed": assumed} if assumed else {}
    if partial:
        attrs["output_neurons"] = json.dumps(partial)
    # All 0 is what their graphs start with: no edge was scored.
    any_score = bool(np.nan_to_num(scores).any())
    circuit = Circuit.of(graph, edges, scores=scores if any_score else None, attrs=attrs)
    return _with_disagreement(circuit, foreign)


def _with_disagreement(circuit: Circuit, foreign: Foreign) -> Circuit:
    """The circuit, with a note of the nodes whose flags in the file say something else than its edges."""
    inside = {_ours(name) for name, flag in foreign.nodes.items() if flag} | {"input", "logits"}
    disagree = {_ours(name) for name in foreign.nodes} & (inside ^ {*circuit.nodes, "input", "logits"})
    if not disagree:
        return circuit
    return replace(circuit, attrs={**circuit.attrs, "nodes_flagged_otherwise": " ".join(sorted(disagree))})


def _shape_of(foreign: Foreign, shape: Shape | None) -> tuple[Shape, str]:
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
        wrong = [f"{name} {cfg[name]} (model: {ours[name]})" for name in cfg if cfg[name] != ours[name]]
        if wrong:
            raise CircuitError(f"it is for another model. They differ in {', '.join(wrong)}.")
        return shape, ""
    # d_head is assumed below, and must be whole.
    if cfg["d_model"] % cfg["n_heads"]:
        raise CircuitError(
            f"d_model {cfg['d_model']} is no multiple of {cfg['n_heads']} heads. Pass shape= (a "
            "model or Shape)."
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


def _to_foreign(circuit: Circuit, sign: float) -> Foreign:
    """What a file of another tool holds of our circuit: a column for every query head, in the order of
    EAP-IG.
    """
    graph, shape = circuit.graph, circuit.graph.shape
    targets = []
    for layer in range(shape.n_layers):
        targets += [f"a{layer}.h{head}<{port}>" for port in "qkv" for head in range(shape.n_heads)]
        targets += graph.mlp_nodes(layer)
    targets.append("logits")
    columns = [graph.reader_index[_ours(name, group=shape.group)] for name in targets]
    # A shared score is split evenly, so that reading the file sums it to what it was.
    sharing = np.ones(len(targets))
    sharing[[name.endswith(("k>", "v>")) for name in targets]] = shape.group
    scores = np.zeros(graph.exists.shape) if circuit.scores is None else np.nan_to_num(circuit.scores)
    inside, kept, neurons = {*circuit.nodes, "logits"}, circuit.output_neurons, {}
    if kept:
        for name in graph.writers:
            dims = set(kept.get(name, range(shape.d_model)))
            neurons[_theirs(name)] = [dim in dims for dim in range(shape.d_model)]
    return Foreign(
        cfg={
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            "parallel_attn_mlp": shape.parallel,
            "d_model": shape.d_model,
        },
        nodes={_theirs(name): name in inside for name in (*graph.writers, "logits")},
        sources=[_theirs(name) for name in graph.writers],
        targets=targets,
        scores=sign * scores[:, columns] / sharing + 0.0,
        inside=circuit.edges[:, columns],
        listed=graph.exists[:, columns],
        neurons=neurons,
    )


def _parse_json(path: Path) -> Foreign:
    """The JSON of EAP-IG and MIB."""
    document = json.loads(path.read_text(encoding="utf-8"))
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
    sources = _numbered(writer for writer, _ in edges)
    targets = _numbered(reader for _, reader in edges)
    scores, inside, listed = (
        np.zeros((len(sources), len(targets)), dtype=kind) for kind in (float, bool, bool)
    )
    for (writer, reader), (score, flag) in edges.items():
        cell = sources[writer], targets[reader]
        scores[cell], inside[cell], listed[cell] = score, flag, True
    return Foreign(document["cfg"], nodes, [*sources], [*targets], scores, inside, listed, neurons)


def _numbered(names: Iterable[str]) -> dict[str, int]:
    """Each name once, in order, with its row or column."""
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _parse_pt(path: Path) -> Foreign:
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
    size = (len(sources), len(targets))
    scores = _matrix(document, "edges_scores", size)
    inside = _flags(document, "edges_in_graph", size)
    nodes = dict(zip(sources, _flags(document, "nodes_in_graph", size[:1]).tolist(), strict=True))
    neurons = {}
    if document.get("neurons_in_graph") is not None:
        rows = _flags(document, "neurons_in_graph", (size[0], document["cfg"]["d_model"]))
        neurons = dict(zip(sources, rows.tolist(), strict=True))
    return Foreign(document["cfg"], nodes, sources, targets, scores, inside, None, neurons)


def _check_keys(document: Any, needed: Iterable[str]) -> None:
    if not isinstance(document, dict):
        raise CircuitError(f"it holds a {type(document).__name__}, not a dictionary.")
    missing = [key for key in needed if key not in document]
    if missing:
        raise CircuitError(f"it lacks {', '.join(missing)}.")
    if not isinstance(document["cfg"], dict):
        raise CircuitError(f"cfg is a {type(document['cfg']).__name__}, not a dictionary.")


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise CircuitError(f"in_graph of {name} is {value!r}; true or false is needed.")
    return value


def _dims(value: Any, width: int, name: str) -> list[bool]:
    if not isinstance(value, list) or len(value) != width or not all(flag in (0, 1) for flag in value):
        raise CircuitError(f"neurons of {name} is not a list of {width} times true or false.")
    return [bool(flag) for flag in value]


def _matrix(document: Mapping[str, Any], name: str, size: tuple[int, ...]) -> np.ndarray:
    value = document[name]
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != size:
        has = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise CircuitError(f"{name} is {has}; the lists of nodes need a tensor of {list(size)}.")
    if value.is_complex():
        raise CircuitError(f"{name} holds complex numbers.")
    return value.detach().to(torch.float64).numpy()


def _flags(document: Mapping[str, Any], name: str, size: tuple[int, ...]) -> np.ndarray:
    matrix = _matrix(document, name, size)
    # Flags may have any dtype, but only two values have a meaning.
    if not np.isin(matrix, (0.0, 1.0)).all():
        raise CircuitError(f"{name} holds more than true and false.")
    return matrix.astype(bool)


def _dump_json(foreign: Foreign, path: Path) -> None:
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


def _dump_pt(foreign: Foreign, path: Path) -> None:
    document = {
        "cfg": dict(foreign.cfg),
        "src_nodes": list(foreign.sources),
        "dst_nodes": list(foreign.targets),
        "edges_scores": torch.from_numpy(foreign.scores),
        "edges_in_graph": torch.from_numpy(foreign.inside),
        "nodes_in_graph": torch.tensor([foreign.nodes[name] for name in foreign.sources]),
    }
    if foreign.neurons:
        document["neurons_in_graph"] = torch.tensor([foreign.neurons[name] for name in foreign.sources])
    torch.save(document, path)


FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        Format("workbench", ".json", "a circuit of this workbench"),
        Format("eap-json", ".json", "a circuit of EAP-IG or MIB in JSON", _parse_json, _dump_json),
        Format("eap-pt", ".pt", "a circuit of EAP-IG or MIB in torch's format", _parse_pt, _dump_pt),
    )
}
"""Every kind of circuit file. Another tool's needs a `parse` and a `dump`."""
