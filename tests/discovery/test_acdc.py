"""ACDC: one edge at a time, written out on hooks, leaves the same edges however many are tried at once."""

import numpy as np
import pytest
import torch
from closeness import close
from families import model_of, pairs_and_stores

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.acdc import acdc
from workbench.discovery.scores import score_edges
from workbench.engine.hooked.circuits import circuit_logits
from workbench.engine.hooked.forward import forward
from workbench.engine.values import from_store, zero
from workbench.errors import CircuitError, MetricError, NotFinite, UnknownName
from workbench.evaluation.evaluate import evaluate
from workbench.metrics.metric import metric as as_metric

DOUBLE = torch.float64


def one_at_a_time(
    model, pairs, value, threshold, *, metric="kl", order="late-first", scores=None, positions=None, seed=0
):
    """The edges that are left, each tried alone by a full run with hooks."""
    graph, measure = Graph.of(model, positions=positions), as_metric(metric)
    bound, sign = value.bind(model, pairs.clean, pairs.corrupt), -1 if measure.higher_is_better else 1
    with torch.no_grad():
        reference = measure.read(forward(model, pairs.clean.tokens).logits, pairs.clean)

    def cost(edges):
        keep = torch.from_numpy(graph.prune(edges)).to(DOUBLE)[None]
        logits = measure.read(circuit_logits(model, graph, keep, bound)[0], pairs.clean)
        return sign * float(measure(logits, pairs, reference).mean())

    edges, now = graph.exists.copy(), cost(graph.exists)
    for reader in reversed(range(len(graph.readers))):
        edges = graph.prune(edges)
        senders = [(*index, reader) for index in np.argwhere(graph.exists[..., reader]).tolist()]
        senders.sort(key=lambda index: index[-2])
        if order == "late-first":
            senders.reverse()
        if order == "random":
            senders = [senders[i] for i in np.random.default_rng([seed, reader]).permutation(len(senders))]
        if order == "scores":
            senders.sort(key=lambda index: float(scores.values[index]))
        for edge in senders:
            if not edges[edge]:
                continue
            edges[edge] = False
            without = cost(edges)
            if without - now < threshold:
                now = without
            else:
                edges[edge] = True
    return Circuit.of(graph, edges)


# Every family, order and metric, alternated: the order of tries does not change what a family computes.
CASES = [
    ("gpt2", {}), ("llama", {"order": "early-first"}), ("neox", {"order": "random", "seed": 3}),
    ("native-attn-only", {"order": "scores"}), ("gpt2", {"metric": "logit_diff"}),
    ("gpt2", {"positions": [2]}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "settings"), CASES, ids=str)
def test_the_edges_left_are_those_of_one_edge_at_a_time(family, settings):
    model = model_of(family, DOUBLE)
    pairs, _, corrupt = pairs_and_stores(family, (4, 4), DOUBLE)
    value, settings = from_store(corrupt), dict(settings)
    ends = evaluate(
        Circuit.empty(model), model, pairs, value=value, metric=settings.get("metric", "kl"), checks=()
    )
    threshold = 0.02 * abs(float((ends.m_empty - ends.m_full).mean()))
    if settings.get("order") == "scores":
        settings["scores"] = score_edges(model, pairs, value=value)
    expected = one_at_a_time(model, pairs, value, threshold, **settings)
    assert 0 < expected.n_edges < expected.graph.n_edges
    for at_once in (1, 3, 64) if not settings else (3,):
        circuit = acdc(model, pairs, value=value, threshold=threshold, at_once=at_once, **settings)
        assert circuit == expected, at_once
        assert circuit.attrs["threshold"] == threshold
        assert circuit.attrs["order"] == settings.get("order", "late-first")


@pytest.mark.types
def test_orders_and_seeds_matter():
    model = model_of("gpt2", DOUBLE)
    pairs, _, corrupt = pairs_and_stores("gpt2", dtype=DOUBLE)
    settings = {"value": from_store(corrupt), "threshold": 0.02}
    first, again, other = (acdc(model, pairs, order="random", seed=seed, **settings) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert acdc(model, pairs, order="early-first", **settings) != acdc(model, pairs, **settings)


@pytest.mark.parametrize("metric", ["kl", "logit_diff", "nll"])
def test_a_huge_threshold_leaves_nothing_and_costs_are_what_was_felt(metric):
    model = model_of("gpt2", DOUBLE)
    pairs, _, corrupt = pairs_and_stores("gpt2", dtype=DOUBLE)
    circuit = acdc(model, pairs, value=from_store(corrupt), metric=metric, threshold=1e9)
    assert circuit.n_edges == 0
    # Everything was removed in turn, so the costs add up to the whole fall.
    measure = as_metric(metric)
    with torch.no_grad():
        clean, other = (forward(model, side.tokens).logits[:, -1] for side in (pairs.clean, pairs.corrupt))
    fall = measure(other, pairs, clean).mean() - measure(clean, pairs, clean).mean()
    fall = -fall if measure.higher_is_better else fall
    graph = circuit.graph
    last = np.isfinite(circuit.scores[:, graph.reader_index["logits"]])
    assert last.all(), "every edge into the logits was tried"
    assert close(float(np.nansum(circuit.scores)), float(fall), tolerance=1e-9)


def test_a_threshold_of_zero_keeps_what_costs_anything():
    model = model_of("gpt2", DOUBLE)
    pairs, _, corrupt = pairs_and_stores("gpt2", dtype=DOUBLE)
    circuit = acdc(model, pairs, value=from_store(corrupt), threshold=0.0)
    kept = np.array([circuit.score(edge) for edge in circuit.edge_list])
    assert (kept >= 0).all()
    gone = circuit.scores[circuit.graph.exists & ~circuit.edges]
    assert (gone[np.isfinite(gone)] < 0).all()


def test_no_threshold_is_one_per_cent_of_what_there_is_to_lose():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    circuit = acdc(model, pairs, value=from_store(corrupt), metric="logit_diff")
    with torch.no_grad():
        clean, other = (
            as_metric("logit_diff")(model(side.tokens)[:, -1], pairs).mean()
            for side in (pairs.clean, pairs.corrupt)
        )
    largest = float(max(abs(clean), abs(other)))
    assert close(circuit.attrs["threshold"], 0.01 * float(abs(clean - other)), tolerance=1e-5, scale=largest)
    assert circuit.prompt_ids == {*pairs.clean.ids, *pairs.corrupt.ids}
    assert circuit.attrs["higher_is_better"] == 1


def refused(error_type, **settings):
    model, pairs = model_of("gpt2"), pairs_and_stores("gpt2")[0]
    with pytest.raises(error_type) as error:
        acdc(model, pairs, **({"value": zero(), "threshold": 1.0} | settings))
    return str(error.value)


def test_what_cannot_be_tried_is_refused():
    pairs = pairs_and_stores("gpt2")[0]
    scores = score_edges(model_of("gpt2"), pairs, value=zero())
    assert refused(UnknownName, order="late") == (
        "order='late' is not known. Did you mean 'late-first'? Choices: early-first, late-first, "
        "random, scores."
    )
    goes = "acdc: scores= goes with order='scores', and that order needs it."
    assert refused(CircuitError, order="scores") == refused(CircuitError, scores=scores) == goes
    for at_once in (0, -1):
        assert (
            refused(CircuitError, at_once=at_once)
            == f"acdc: at_once={at_once}; at least one edge is tried at a time."
        )
    assert refused(CircuitError, threshold=-1.0) == (
        "acdc: threshold=-1.0; it is a cost, so a finite number from 0 up."
    )
    assert refused(CircuitError, order="scores", scores=scores, positions=[2]) == (
        "acdc: the graph of scores= has its positions already: leave positions= out."
    )
    assert refused(
        NotFinite, order="scores", scores=scores.copy(data=np.full(scores.shape, np.inf))
    ).startswith("acdc: the score of input->a0.0<q> is not a finite number (")
    other = score_edges(model_of("llama"), pairs, value=zero())
    assert refused(CircuitError, order="scores", scores=other) == (
        f"These edges are of another model: {Graph.of(model_of('llama'))}; this one has "
        f"{Graph.of(model_of('gpt2'))}."
    )

    def same(logits):
        return torch.zeros(len(logits))

    assert refused(MetricError, threshold=None, metric=same) == (
        "acdc: same is the same with every edge and with none, so no edge can matter."
    )
