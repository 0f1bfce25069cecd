"""Writes the reference circuits beside this file. README.md says what is from the papers and what is assumed."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.sites import Node, Shape

GPT2_SMALL = Shape(12, 12, 12, 768, 64, 3072, 50257, 1024)
ATTN_ONLY_4L = Shape(4, 8, 8, 512, 64, 0, 48262, 1024, attn_only=True)
ACCESSED = "2026-11-24"
HEADS = {
    "name mover": "9.9 10.0 9.6",
    "backup name mover": "10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9",
    "negative name mover": "10.7 11.10",
    "S-inhibition": "7.3 7.9 8.6 8.10",
    "induction": "5.5 5.8 5.9 6.9",
    "duplicate token": "0.1 0.10 3.0",
    "previous token": "2.2 4.11",
}


def heads(names: str) -> list[str]:
    return [f"a{name}" for name in names.split()]


def between(graph: Graph, writers: Iterable[str], readers: Iterable[str], ports: str = "qkv") -> set[str]:
    """Every edge that exists from the writers into those ports of the readers."""
    ends: list[str] = []
    for name in readers:
        # A head reads by its query, key and value; MLPs and the logits have a single input.
        if Node.parse(name).is_head:
            ends += [f"{name}<{port}>" for port in ports]
        else:
            ends.append(name)
    edges = set()
    for writer, reader in product(writers, ends):
        if graph.exists[graph.writer_index[writer], graph.reader_index[reader]]:
            edges.add(f"{writer}->{reader}")
    return edges


def ioi() -> Circuit:
    graph, roles = Graph(GPT2_SMALL), {role: heads(names) for role, names in HEADS.items()}
    movers = [head for role, names in roles.items() if role.endswith("mover") for head in names]
    mlps, every = [f"m{layer}" for layer in range(12)], [head for names in roles.values() for head in names]
    first = roles["previous token"] + roles["duplicate token"]
    edges = between(graph, ["input"], first)
    edges |= between(graph, roles["previous token"], roles["induction"], "kv")
    edges |= between(graph, roles["induction"] + roles["duplicate token"], roles["S-inhibition"], "kv")
    edges |= between(graph, roles["S-inhibition"], movers, "q")
    edges |= between(graph, ["input"], movers, "kv") | between(graph, ["input"], roles["S-inhibition"], "q")
    edges |= between(graph, movers, ["logits"])
    edges |= between(graph, ["input", *every, *mlps], mlps) | between(graph, mlps, [*every, *mlps, "logits"])
    return circuit(
        graph, edges, {head: role for role, names in roles.items() for head in names},
        task="ioi", model="gpt2-small", title="Indirect object identification in GPT-2 small",
        source="Wang et al., Interpretability in the Wild, arXiv 2211.00593, figure 2 and its list of heads",
        assumed="MLPs are included as the paper leaves them in place: every edge between an MLP and the input, the "
        "circuit's heads, other MLPs and the logits",
    )  # fmt: skip


def greater_than() -> Circuit:
    graph = Graph(GPT2_SMALL)
    early, late = heads("0.1 0.3 0.5"), heads("5.5 6.1 6.9 7.10 8.11 9.1")
    low, high = [f"m{layer}" for layer in range(4)], [f"m{layer}" for layer in range(8, 12)]
    edges = between(graph, ["input"], [*early, *low]) | between(graph, ["a0.1"], low)
    edges |= between(graph, [*early, *low], late) | between(graph, low, low)
    edges |= (
        between(graph, late, high) | between(graph, high, high) | between(graph, [*late, *high], ["logits"])
    )
    labels = dict.fromkeys(early, "start-year head") | dict.fromkeys(low, "early MLP")
    labels |= dict.fromkeys(late, "year attention head") | dict.fromkeys(high, "late MLP")
    return circuit(
        graph, edges, labels,
        task="greater_than", model="gpt2-small", title="Greater-than in GPT-2 small",
        source="Hanna et al., How does GPT-2 compute greater-than?, arXiv 2305.00586",
        assumed="edges: those that Conmy et al. (arXiv 2304.14997) give between these groups of nodes, without the further "
        "MLPs that they let write into queries",
    )  # fmt: skip


def docstring() -> Circuit:
    graph, last = Graph(ATTN_ONLY_4L), heads("3.0 3.6")
    edges = between(graph, ["a0.5"], ["a1.4"], "v") | between(
        graph, ["a0.5", "input"], ["a2.0", "a1.2"], "qk"
    )
    edges |= between(graph, ["a1.4"], ["a2.0"], "v") | between(graph, ["a1.4"], last, "q")
    edges |= between(graph, ["a0.5", "input"], last, "v") | between(graph, ["a2.0", "a1.2"], last, "k")
    edges |= between(graph, last, ["logits"]) | between(graph, ["input"], ["a0.5"], "v")
    labels = {"a3.0": "argument mover", "a3.6": "argument mover"}
    return circuit(
        graph, edges, labels,
        task="docstring", model="attn-only-4l", title="Docstring arguments in a four-layer attention-only model",
        source="Heimersheim and Janiak, A circuit for Python docstrings in a 4-layer attention-only transformer, 2023; edges "
        "as in Conmy et al., arXiv 2304.14997",
        assumed="input->a0.5<v>, without which nothing would enter a0.5",
    )  # fmt: skip


def circuit(graph: Graph, edges: Iterable[str], labels: dict[str, str], **attrs: str) -> Circuit:
    facts = {**attrs, "method": "published", "accessed": ACCESSED}
    published = Circuit.of(graph, edges, labels=labels, attrs=facts)
    assert published.n_edges == published.n_requested, (
        "every edge lies on a path from the input to the logits"
    )
    return published


if __name__ == "__main__":
    for make in (ioi, greater_than, docstring):
        print(make().save(Path(__file__).parent / f"{make.__name__}.json", overwrite=True), repr(make()))
