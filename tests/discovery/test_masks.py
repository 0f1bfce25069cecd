"""Learned masks: closed and open gates are circuits, gradients match finite differences, planted edges."""

from functools import cache

import numpy as np
import pytest
import torch
from benchmarks.learned_masks import trial
from closeness import close
from families import model_of, pairs_and_stores

import workbench as wb
from workbench.circuit.graph import Graph
from workbench.discovery.gates import START, Gates
from workbench.discovery.masks import learn_circuit
from workbench.discovery.scores import score_edges
from workbench.engine.circuits import Circuits
from workbench.engine.values import from_store, mean, scale, zero
from workbench.errors import CircuitError, MetricError, UnknownName
from workbench.metrics.metric import metric as as_metric


def runs_of(family, value, *, metric="logit_diff", positions=None, dtype=torch.float64, lengths=(6, 6, 6)):
    model = model_of(family, dtype)
    pairs, clean, corrupt = pairs_and_stores(family, lengths, dtype)
    known = {
        "from_store": lambda: from_store(corrupt),
        "zero": zero,
        "mean": lambda: mean(clean),
        "scale": lambda: scale(0.5),
    }[value]()
    graph = Graph.of(model, positions=positions)
    return Circuits(model, graph, pairs, value=known, metric=as_metric(metric))


@pytest.mark.parametrize(
    ("family", "value", "positions"),
    [
        ("gpt2", "from_store", None),
        ("llama", "zero", None),
        ("neox", "mean", None),
        ("gpt2", "from_store", [2, "END"]),
        ("native-attn-only", "from_store", None),
        ("gpt2", "scale", None),
    ],
)
def test_open_and_closed_gates_are_a_circuit(family, value, positions):
    runs = runs_of(family, value, positions=positions)
    graph = runs.graph
    masks = np.stack(
        [
            graph.prune(graph.exists & (np.random.default_rng(s).random(graph.exists.shape) < 0.6))
            for s in range(3)
        ]
    )
    masks = np.concatenate([masks, graph.exists[None], graph.exists[None] & False])
    expected = runs.measure(masks)
    (batch,) = runs.batches()
    got = runs.soft(torch.from_numpy(masks).double().requires_grad_(), batch).detach().numpy()
    assert close(got, expected)
    assert np.ptp(expected) > 1e-3


@pytest.mark.parametrize(
    ("family", "positions", "metric"),
    [("gpt2", None, "kl"), ("llama", None, "logit_diff"), ("llama", None, "kl"), ("gpt2", [2], "logit_diff")],
)
def test_the_gradient_of_a_weight_is_a_finite_difference_of_the_metric(family, positions, metric):
    runs = runs_of(family, "from_store", metric=metric, positions=positions)
    graph, generator = runs.graph, np.random.default_rng(0)
    keep = torch.from_numpy(np.where(graph.exists, generator.uniform(0.2, 0.8, graph.exists.shape), 0))[
        None
    ].requires_grad_()
    (batch,) = runs.batches()
    # The norms of a llama work in float32, whatever the model's dtype.
    size, tolerance = (5e-3, 2e-3) if family == "llama" else (1e-5, 1e-5)
    (gradient,) = torch.autograd.grad(runs.soft(keep, batch).sum(), keep)
    for at in generator.permutation(np.argwhere(graph.exists))[:4]:
        index, ends = (0, *at), []
        for step in (size, -size):
            moved = keep.detach().clone()
            moved[index] += step
            ends.append(float(runs.of_batch(batch, moved).detach().sum()))
        difference = (ends[0] - ends[1]) / (2 * size)
        assert close(
            difference, float(gradient[index]), tolerance=tolerance, scale=float(gradient.abs().max())
        )


@pytest.mark.parametrize("on", ["edges", "nodes"])
def test_the_gradient_of_a_gate_is_a_finite_difference_of_the_loss(on):
    runs = runs_of("gpt2", "from_store", metric="kl")
    (batch,) = runs.batches()

    def loss(moved=None, step=0.0):
        gates = Gates(runs.graph, on, seed=1)
        gates.logits = torch.full_like(gates.logits, 0.3)
        if moved is not None:
            gates.logits[moved] += step
        gates.logits.requires_grad_()
        # The same noise every time.
        return runs.soft(gates.sample().double(), batch).mean(), gates

    value, gates = loss()
    value.backward()
    gradients = gates.logits.grad
    assert gradients is not None
    strongest = gradients.abs().argsort(descending=True)[:3].tolist()
    assert float(gradients.abs().max()) > 1e-4
    for gate in strongest:
        up, down = (float(loss(gate, step)[0].detach()) for step in (1e-2, -1e-2))
        assert abs((up - down) / 2e-2 - float(gradients[gate])) < 2e-2 * float(gradients.abs().max())


@pytest.mark.types
def test_gates_stand_for_edges_or_for_writers():
    graph = Graph.of(model_of("llama"), positions=[2])
    edges, nodes = Gates(graph, "edges", 0), Gates(graph, "nodes", 0)
    assert len(edges.logits) == graph.n_edges
    assert len(nodes.logits) == len(graph.writers) - 1
    drawn = nodes.sample()[0].detach().numpy()
    assert (drawn[:, 0][graph.exists[:, 0]] == 1).all(), "the input stays"
    for w in range(1, len(graph.writers)):
        assert len(np.unique(drawn[:, w][graph.exists[:, w]])) == 1
    assert (drawn[~graph.exists] == 0).all()
    many = torch.stack([edges.sample().detach()[0][edges.exists] for _ in range(400)])
    assert abs(float((many > 0).double().mean()) - float(edges.open_share().detach())) < 0.01, (
        "the expected share is that of the draws"
    )


@cache
def planted(name):
    known = wb.planted(name, n=16)
    pairs = wb.planted_pairs(known)
    return known, pairs, from_store(wb.capture_pairs(known.model, pairs)[1])


@pytest.mark.parametrize(
    ("name", "metric"), [("induction", "kl"), ("induction", "logit_diff"), ("v-composition", "kl")]
)
def test_planted_edges_are_found(name, metric):
    known, pairs, value = planted(name)
    true = known.edges["corrupt"]
    circuit = learn_circuit(known.model, pairs, value=value, n_edges=len(true) + 2, metric=metric, steps=60)
    assert len(set(map(str, circuit.edge_list)) & true) >= 0.8 * len(true)
    assert circuit.n_requested == len(true) + 2
    assert circuit.attrs["method"] == "learn-edges"
    graph = circuit.graph
    hits = np.array([str(edge) in true for edge in graph.edges()])
    gates = circuit.scores[graph.exists]  # how open: sigmoids of the logits
    assert np.median(gates[hits]) > 0.9
    assert np.median(gates[~hits]) < 0.1, "true gates end far above the others"


def test_planted_heads_are_found_and_the_circuit_is_every_edge_between():
    known, pairs, value = planted("induction")
    circuit = learn_circuit(known.model, pairs, value=value, n_nodes=2, steps=100, batch=8)
    assert circuit == wb.Circuit.of_nodes(Graph.of(known.model), known.heads.values())
    assert circuit.attrs["method"] == "learn-nodes"
    logits = {edge.writer: circuit.score(edge) for edge in circuit.graph.edges() if edge.reader == "logits"}
    best = sorted((name for name in logits if name != "input"), key=lambda name: -logits[name])[:2]
    assert set(best) == set(known.heads.values())
    assert circuit.score("input->logits") == max(logits.values())


def test_the_share_of_open_gates_comes_to_the_target():
    known, pairs, value = planted("induction")
    for target in (6, 20):
        circuit = learn_circuit(known.model, pairs, value=value, n_edges=target, steps=150, batch=4)
        assert abs(circuit.attrs["expected_open"] - target) < 0.25 * target


@pytest.mark.types
def test_the_same_seed_gives_the_same_circuit():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    first, again, other = (
        learn_circuit(model, pairs, value=from_store(corrupt), n_edges=30, steps=5, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert np.array_equal(first.scores, again.scores, equal_nan=True)
    assert not np.array_equal(first.scores, other.scores, equal_nan=True)
    positions = learn_circuit(
        model, pairs, value=from_store(corrupt), n_edges=30, steps=2, positions=[2, "END"]
    )
    assert positions.graph == Graph.of(model, positions=[2, "END"])


def test_losses_say_how_far_the_circuit_is_from_the_model():
    known, pairs, value = planted("induction")
    circuit = learn_circuit(known.model, pairs, value=value, n_edges=9, steps=3, restarts=0)
    facts = circuit.attrs
    assert (facts["trainings"], facts["start"], facts["forwards"]) == (1, "scores", 13)
    measured = wb.evaluate(circuit, known.model, pairs, value=value, metric="kl", checks=()).squeeze()
    for name, of_evaluate in (("loss", "m_circuit"), ("loss_empty", "m_empty"), ("loss_full", "m_full")):
        assert close(
            facts[name], float(measured[of_evaluate].mean()), tolerance=1e-6, scale=facts["loss_empty"]
        ), name
    assert close(facts["kept"], float(measured["faithfulness"]), tolerance=1e-6, scale=1.0)
    # What is returned is no worse than the scores that training started from.
    scores = wb.score_edges(known.model, pairs, value=value, metric="kl", method="eap-ig-inputs", steps=10)
    cut = wb.evaluate(
        wb.find_circuit(scores, n_edges=9), known.model, pairs, value=value, metric="kl", checks=()
    )
    assert facts["loss"] <= float(cut["m_circuit"].mean()) + 0.011 * facts["loss_empty"]


def test_training_starts_from_scores_of_ones_own():
    known, pairs, value = planted("induction")
    graph = Graph.of(known.model)
    exact = wb.score_edges(known.model, pairs, value=value, method="exact", progress=False)
    given = learn_circuit(known.model, pairs, value=value, n_edges=8, steps=1, restarts=0, start=exact)
    best = wb.find_circuit(exact, n_edges=8)
    assert set(map(str, given.edge_list)) >= set(map(str, best.edge_list)) & known.edges["corrupt"]
    assert given.attrs["start"] == "given"
    order = np.abs(exact.values[graph.exists])
    start = Gates(graph, "edges", 0, order).logits.detach().numpy()
    assert (np.diff(start[np.argsort(order, kind="stable")]) >= 0).all()
    assert len(np.unique(start)) == len(np.unique(order)), "equal scores start alike"
    assert close(start.mean(), START, scale=1.0)
    assert len(np.unique(Gates(graph, "edges", 0).logits.detach().numpy())) == 1


def test_a_circuit_that_does_nothing_is_said_to(recwarn):
    """One edge cannot carry an induction circuit: whatever is learned, it is no better than nothing."""
    known, pairs, value = planted("induction")
    circuit = learn_circuit(known.model, pairs, value=value, n_edges=1, steps=2, restarts=0)
    said = [str(one.message) for one in recwarn if one.category is wb.WorkbenchWarning]
    assert circuit.attrs["kept"] <= 0.5
    assert said
    assert all(one.startswith("learn_circuit: ") for one in said)
    figures = f"loss {circuit.attrs['loss']:.3g}; the empty circuit has {circuit.attrs['loss_empty']:.3g}, the model"
    assert figures in said[0]
    assert recwarn[0].filename == __file__


@pytest.mark.slow
@pytest.mark.parametrize("value", ["corrupt", "zero"])
@pytest.mark.parametrize("name", ["induction", "lookup", "conjunction", "q-composition", "negative"])
def test_no_training_fails_silently(name, value):
    """A sample of `tests/benchmarks/learned_masks.py`."""
    for metric in ("kl", "logit_diff"):
        row = trial(name, value, metric, steps=100)
        assert not row.silent, row


def refused(error_type, **how):
    model, pairs = model_of("gpt2"), pairs_and_stores("gpt2")[0]
    with pytest.raises(error_type) as error:
        learn_circuit(model, pairs, **({"value": zero(), "steps": 2} | how))
    return str(error.value)


def test_what_cannot_be_learned_is_refused():
    one = "learn_circuit: give exactly one of n_edges= (gates on edges) and n_nodes= (gates on components)."
    assert refused(CircuitError) == refused(CircuitError, n_edges=3, n_nodes=3) == one
    for wrong in (0, -1, 111):
        assert (
            refused(CircuitError, n_edges=wrong)
            == f"learn_circuit: n_edges={wrong}; this graph has 110 edges."
        )
    for wrong in (0, 11):
        assert (
            refused(CircuitError, n_nodes=wrong)
            == f"learn_circuit: n_nodes={wrong}; this graph has 10 nodes."
        )
    for name in ("steps", "batch"):
        for wrong in (0, -1):
            assert refused(CircuitError, n_edges=3, **{name: wrong}) == (
                f"learn_circuit: {name}={wrong}; at least 1 is needed."
            )
    assert (
        refused(CircuitError, n_edges=3, restarts=-1) == "learn_circuit: restarts=-1; at least 0 is needed."
    )
    assert refused(UnknownName, n_edges=3, start="score") == (
        "start='score' is not known. Did you mean 'scores'? Choices: open, scores."
    )
    other = score_edges(model_of("llama"), pairs_and_stores("llama")[0], value=zero(), progress=False)
    assert refused(CircuitError, n_edges=3, start=other).startswith(
        "learn_circuit: start= has scores of another graph: "
    )
    for wrong in (0.0, -0.1):
        assert (
            refused(CircuitError, n_edges=3, lr=wrong)
            == f"learn_circuit: lr={wrong}; a finite number above 0 is needed."
        )

    def same(logits):
        return logits[:, 0, 0] * 0

    assert refused(MetricError, n_edges=3, metric=same) == (
        "learn_circuit: same is the same with every edge and with none, so no edge can matter."
    )
    assert refused(MetricError, n_edges=3, metric="rank").startswith("The metric 'rank' has no gradient, ")
    assert refused(MetricError, n_edges=3, metric="rank", start="open") == (
        "learn_circuit: rank has no usable gradient. Use kl, logit_diff, prob_diff or nll."
    )
