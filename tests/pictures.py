"""Circuits, scores by position and patterns made by hand, for the tests of the renderers."""

import numpy as np
import torch
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.render import panels
from workbench.render.circuit.svg import CircuitView
from workbench.render.panel import Panel
from workbench.sites import Shape

SMALL = Shape(4, 8, 8, 128, 16, 512, 376, 64)
TOKENS = ["<bos>", " When", " Mary", " and", " John", " went", ",", " John", " gave", " to"]
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    '"]]>',
    "\x00",
    "\ud800",
    "👩‍🔬",
    "שלום",
    "\u202egnp.exe",
    "\u2028",
    "&amp;<b>",
    " ",
]
ATTRS = {
    "model": "tiny",
    "task": "ioi",
    "metric": "logit_diff",
    "value": "from_store",
    "method": "eap",
    "n": 64,
    "seed": 7,
}


def make_circuit(shape: Shape = SMALL, n: int = 40, *, scored: bool = True) -> Circuit:
    """At least `n` edges that lie on random complete paths, with scores of either sign."""
    graph, rng = Graph(shape), np.random.default_rng(0)
    group = shape.n_heads // shape.n_kv_heads
    chosen: dict[str, float] = {}
    while len(chosen) < n:
        reader = "logits"
        while reader:
            column = graph.readers.index(reader)
            options = [w for i, w in enumerate(graph.writers) if graph.exists[i, column]]
            writer = "input" if rng.random() < 0.25 else options[rng.integers(len(options))]
            chosen[f"{writer}->{reader}"] = float(rng.normal())
            if writer == "input":
                reader = ""
            elif writer.startswith("m"):
                reader = writer
            else:
                layer, head = writer[1:].split(".")
                port = "qkv"[rng.integers(3)]
                reader = f"a{layer}.{head if port == 'q' else int(head) // group}<{port}>"
    scores = np.full(graph.exists.shape, np.nan)
    for edge, score in chosen.items():
        scores[graph.index(edge)] = score
    return Circuit.of(graph, chosen, scores=scores if scored else None, attrs=ATTRS)


def make_view(circuit: Circuit, tokens: list[str], **options) -> CircuitView:
    """A view with everything in it."""
    rng, graph, n = np.random.default_rng(1), circuit.graph, len(tokens)
    parts = rng.dirichlet(np.full(n, 0.1), size=graph.exists.shape)
    scores = np.where(circuit.edges[..., None], circuit.scores[..., None] * parts, np.nan)
    by_pos = xr.DataArray(
        scores,
        dims=("writer", "reader", "pos"),
        coords={"writer": list(graph.writers), "reader": list(graph.readers)},
    )
    patterns = {head: np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None] for head in circuit.heads}
    settings = {"title": "Indirect object", "faithfulness": (0.87, 0.81, 0.92)} | options
    return CircuitView.of(circuit, tokens=tokens, position_scores=by_pos, patterns=patterns, **settings)


def make_panels(strings: list[str]) -> list[Panel]:
    """A panel of each component on these tokens; the fourth is likely everywhere."""
    rng, n = np.random.default_rng(0), len(strings)
    pattern = np.tril(rng.random((2, n, n)))
    logits = torch.tensor(rng.normal(size=(n, n + 9)))
    logits[:, min(3, n - 1)] += 9
    words, acts = strings + [f" w{i}" for i in range(9)], rng.normal(size=(n, 2, 3))
    best = logits.softmax(-1).topk(3)
    table = {
        "token": (("layer", "pos", "rank"), best.indices.numpy()[None]),
        "prob": (("layer", "pos", "rank"), best.values[None]),
    }
    return [
        panels.attention_panel(strings, pattern / pattern.sum(-1, keepdims=True), [strings[0], "a3.4"]),
        Panel("AttentionPattern", {"attention": pattern[0], "tokens": strings}),
        Panel("AttentionPatterns", {"attention": pattern, "tokens": strings}),
        panels.tokens(strings, rng.normal(size=n)),
        panels.tokens(strings, torch.tensor(rng.normal(size=(3, n))), names=strings[:3], title=strings[0]),
        Panel("Hello", {"name": strings[0]}),
        panels.neurons(strings, acts),
        panels.log_probs(strings, logits.log_softmax(-1), ids=range(n), decode=words, k=4),
        panels.top_samples([strings, strings[:2]], [acts, acts[:2]]),
        panels.top_tokens(xr.Dataset(table), words, strings=strings),
    ]
