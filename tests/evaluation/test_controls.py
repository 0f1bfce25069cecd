"""Controls of a circuit: a planted circuit beats all of its kind, and one through other heads does not."""

from functools import cache

import numpy as np
import pytest
from closeness import close

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.circuit.random import relocated
from workbench.discovery.criteria import Criteria
from workbench.engine.circuits import Circuits
from workbench.engine.values import from_store
from workbench.errors import CircuitError
from workbench.evaluation.controls import _percentile, controls
from workbench.evaluation.evaluate import evaluate
from workbench.metrics.metric import metric


@cache
def planted():
    """A planted model, its pairs, runs against the corrupt prompts, and the true circuit."""
    known = wb.planted("induction", n=6)
    pairs = wb.planted_pairs(known)
    graph = Graph.of(known.model)
    value = from_store(wb.capture_pairs(known.model, pairs, progress=False)[1])
    runs = {"swap": Circuits(known.model, graph, pairs, value=value, metric=metric("logit_diff"))}
    return known.model, pairs, runs, Circuit.of(graph, known.edges["corrupt"])


def controls_of(circuit, **more):
    """The controls with few draws, against the one counterfactual."""
    return controls(circuit, planted()[2], **({"criteria": Criteria(), "draws": 6} | more))


def test_a_planted_circuit_is_specific_and_the_same_shape_through_other_heads_is_not():
    *_, true = planted()
    moved = Circuit.of(true.graph, relocated(true.graph, true.edges, draws=1, seed=3)[0])
    assert moved.n_edges == true.n_edges
    for circuit, specific in ((true, 1.0), (moved, 0.0)):
        result = controls_of(circuit).isel(ablation=0)
        assert result["specific"].item() == specific
        heads = result.sel(control="other heads")
        assert heads["draws"].item() == 6
        assert 1 < heads["distinct"].item() <= 6
        assert (heads["error_percentile"].item() == 100) == bool(specific)
        assert close(result["circuit_faithfulness"].item(), specific, tolerance=1e-4, scale=1.0)
        # Among the shapes of a circuit through other heads is the true one.
        assert (heads["holds"].item() > 0) == (circuit is moved)


def test_random_paths_and_the_complement_are_those_of_evaluate():
    model, pairs, runs, true = planted()
    result = controls_of(true, seed=1).isel(ablation=0)
    expected = evaluate(
        true, model, pairs, value=runs["swap"].value, checks=("random", "complement"), seed=1, progress=False
    ).isel(circuit=0)
    assert close(
        result["faithfulness"].sel(control="random paths"), expected["random"], tolerance=1e-6, scale=1.0
    )
    rest = result.sel(control="complement")
    assert close(rest["faithfulness"], expected["complement"], tolerance=1e-6, scale=1.0)
    assert close(result["circuit_error"], expected["error"], tolerance=1e-6, scale=1.0)
    assert rest["shared_edges"].item() == 0
    assert rest["interval_over"].item() == "prompts"
    assert np.isnan(rest["error_percentile"].item()), "one circuit is no sample"


def test_another_circuit_is_measured_and_its_shared_edges_counted():
    *_, true = planted()
    half = Circuit.of(true.graph, [edge for edge in true.edge_list if "<k>" not in str(edge)])
    result = controls_of(true, other=half).isel(ablation=0).sel(control="another task")
    assert result["n_edges"].item() == half.n_edges
    assert close(result["shared_edges"].item(), half.n_edges / true.n_edges)
    same = controls_of(true, other=true).isel(ablation=0)
    assert same["error"].sel(control="another task").item() == same["circuit_error"].item()
    assert same["shared_edges"].sel(control="another task").item() == 1


def test_the_strongest_half_is_kept_and_the_rest_is_random():
    *_, true = planted()
    graph = true.graph
    strength = np.where(graph.exists, 0.0, np.nan)
    strength[graph.exists] = np.random.default_rng(0).normal(size=graph.n_edges)
    whole = Circuit.of(graph, graph.exists, scores=strength)
    result = controls_of(whole).isel(ablation=0).sel(control="strongest and random")
    assert result["n_edges"].item() == graph.n_edges, "of all edges the rest is what is left"
    assert result["distinct"].item() == 1
    assert close(result["faithfulness"].item(), 1.0, tolerance=1e-5)
    # A strong dead end leads nowhere: the draws share what the random rest happens to hit.
    scored = Circuit.of(graph, true.edges, scores=np.abs(strength))
    assert controls_of(scored).attrs["kept"] == true.n_edges // 2
    unscored = controls_of(true).isel(ablation=0).sel(control="strongest and random")
    assert np.isnan(unscored["error"].item())
    assert unscored["note"].item() == "The circuit has no scores: pass scores=."


def test_where_no_head_can_be_moved_the_result_says_so():
    *_, true = planted()
    direct = Circuit.of(true.graph, ["input->logits"])
    result = controls_of(direct).isel(ablation=0)
    heads = result.sel(control="other heads")
    assert np.isnan(result["specific"].item())
    assert np.isnan(heads["error"].item())
    assert heads["draws"].item() == 0
    assert heads["note"].item() == (
        "No head can be moved: the circuit has no head, or all heads of a layer alike."
    )


def test_equal_draws_count_against_the_circuit():
    # [draw, ablation]
    draws = np.array([[0.5, 0.2], [0.2, 0.2], [0.1, np.nan], [0.9, 0.2]])
    percentile = _percentile(draws, np.array([0.2, 0.2]), target=0.0)
    assert percentile[0] == 50
    assert np.isnan(percentile[1])


def test_what_cannot_be_compared_is_refused():
    *_, true = planted()
    for more, message in (
        ({"draws": 0}, "controls: draws=0; at least one circuit through other heads is needed."),
        (
            {"other": Circuit.empty(Graph.of(true.graph.shape, positions="END"))},
            "controls: other= is a circuit of another graph: "
            f"{Graph.of(true.graph.shape, positions='END')}; this one has {true.graph}.",
        ),
    ):
        with pytest.raises(CircuitError) as error:
            controls_of(true, **more)
        assert str(error.value) == message
    with pytest.raises(CircuitError) as error:
        controls(true, {}, criteria=Criteria())
    assert str(error.value) == "controls: no runs are given; give one for each counterfactual, by its name."
