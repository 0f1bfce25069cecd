"""Circuit files of this and other tools: `read_circuit` and `write_circuit`, by the list `FORMATS`.

EAP-IG and MIB write a graph as JSON or as a torch file: `foreign_files.py` reads and writes those, and
`foreign.py` says what they mean. Here it is decided which format a file has, and every error names the file.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.foreign import ForeignCircuit, from_foreign, to_foreign
from workbench.circuit.foreign_files import dump_json, dump_torch, parse_json, parse_torch
from workbench.circuit.graph import Graph
from workbench.documents import read_json
from workbench.errors import CircuitError, SiteError, UnknownName, warn
from workbench.files import check_free, whole
from workbench.sites import Shape

Positive = Literal["supports", "opposes"]
_SIGNS = {"supports": 1.0, "opposes": -1.0}
"""What turns another tool's scores into ours, whose positive ones support the behaviour."""
_MALFORMED = (
    ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, RuntimeError, SiteError,
)  # fmt: skip
"""What parsing a damaged or hostile file can run into: each means that the file is not usable."""


@dataclass(frozen=True)
class Format:
    """A kind of circuit file. `parse` and `dump` are None for our own, which `Circuit` loads and saves.

    Attributes:
        name, suffix: without the name of a format `write_circuit` takes the first one of the path's suffix.
        title: for messages.
        parse: the file as a `ForeignCircuit`; any error that it raises means a malformed file.
        dump: writes a `ForeignCircuit` to a path.
    """

    name: str
    suffix: str
    title: str
    parse: Callable[[Path], ForeignCircuit] | None = None
    dump: Callable[[ForeignCircuit, Path], None] | None = None


@checked
def read_circuit(
    path: str | Path,
    *,
    positive: Positive | str | None = None,
    shape: Any = None,
    answers_attend: bool = False,
) -> Circuit:
    """The circuit in a file, whatever tool wrote it; it has the scores of every edge that the file scores.

    Args:
        path: our JSON, or the `.json` or `.pt` of EAP-IG and MIB.
        positive: what a positive score means in another tool's file: "supports" or "opposes" the behaviour.
            Required for those, because they descend a loss or ascend a metric; ours are always "supports".
        shape: the model or `Shape` the circuit is of. Without one, what another tool's file does not say is
            assumed and named in `attrs["assumed"]`: as many kv heads as heads, d_head = d_model / n_heads,
            d_mlp = 4 d_model, and the vocabulary and context of GPT-2.
        answers_attend: as in `Graph`, of another tool's file, which does not say it: edges into keys and values
            that lead to no logits are then kept.

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
        if answers_attend:
            raise CircuitError(
                f"{str(path)!r} is our own: it says whether answers attend to the prompt. Leave answers_attend= out."
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
        if shape is not None:
            shape = Shape.of(shape)
        circuit = from_foreign(source.parse(path), shape, _SIGNS[positive], answers_attend=answers_attend)
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
        warn(
            f"{path.name}: {len(circuit.output_neurons)} nodes "
            "have only some dimensions of their output in the circuit. "
            "They are kept for .weighted_edge_count and for writing; evaluation takes whole nodes."
        )
    return replace(circuit, attrs={**circuit.attrs, **facts})


@checked
def write_circuit(
    circuit: Circuit,
    path: str | Path,
    *,
    format: Literal["workbench", "eap-json", "eap-pt"] | str | None = None,
    positive: Positive | str = "supports",
    overwrite: bool = False,
) -> Path:
    """Write a circuit for this or another tool, whole or not at all, with the scores of all edges.

    The other tools' files hold a number for every edge: one without a score is written as 0.

    Args:
        format: "workbench", "eap-json" or "eap-pt"; by default ours for `.json` and theirs for `.pt`.
        positive: what a positive score means in another tool's file.

    Raises:
        CircuitError: a circuit with positions or neurons, which the other formats cannot hold, or an unknown
            suffix.
        UnknownName: an unknown format.
        OutputExists: the file exists.
    """
    path = Path(path)
    if positive not in ("supports", "opposes"):
        raise UnknownName("positive", positive, ("supports", "opposes"))
    target = FORMATS[format_for(path, format)]
    if target.dump is None:
        if positive == "opposes":
            raise CircuitError("write_circuit: positive scores support the behaviour in our own format.")
        return circuit.save(path, all_scores=True, overwrite=overwrite)
    check_free(path, overwrite=overwrite)
    if circuit.graph != Graph(circuit.graph.shape):
        raise CircuitError(
            f"write_circuit: {target.name} holds no positions and no neurons of MLPs. Write "
            "circuit.collapsed."
        )
    n_read_by_answers = 0
    if circuit.graph.answers_attend:
        n_read_by_answers = circuit.n_edges - int(Graph(circuit.graph.shape).prune(circuit.edges).sum())
    if n_read_by_answers:
        warn(
            f"write_circuit: {n_read_by_answers:,} of {circuit.n_edges:,} edges lead to keys and values that answers "
            f"of several tokens read, and to no logits. {target.name} does not say so: without "
            "read_circuit(..., answers_attend=True) they are left out as dead ends."
        )
    with whole(path) as partial:
        target.dump(to_foreign(circuit, _SIGNS[positive]), partial)
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
        document = read_json(path)
    except (ValueError, OSError) as error:
        raise CircuitError(f"{str(path)!r} is not a usable circuit file: {error}") from error
    if (
        isinstance(document, dict)
        and "format" not in document
        and {"cfg", "nodes", "edges"} & document.keys()
    ):
        return FORMATS["eap-json"]
    return FORMATS["workbench"]


_JSON = "a circuit of EAP-IG or MIB in JSON"
_TORCH = "a circuit of EAP-IG or MIB in torch's format"
FORMATS: dict[str, Format] = {
    "workbench": Format("workbench", ".json", "a circuit of this workbench"),
    "eap-json": Format("eap-json", ".json", _JSON, parse_json, dump_json),
    "eap-pt": Format("eap-pt", ".pt", _TORCH, parse_torch, dump_torch),
}
"""Every kind of circuit file. Another tool's needs a `parse` and a `dump`."""
