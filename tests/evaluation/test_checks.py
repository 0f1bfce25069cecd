"""What speaks against a circuit: complement, completeness, minimality, random circuits, each with its
positive control.
"""

from functools import cache

import numpy as np
import pytest
from closeness import close
from families import make_pairs, model_of, pairs_and_stores

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.circuit.random import relocated
from workbench.engine.values import from_store, mean, zero
from workbench.errors import CircuitError, UnknownName, WorkbenchError
from workbench.evaluation.evaluate import CHECKS, evaluate, minimality


@cache
def planted(name, kind="corrupt"):
    """A planted model, its pairs, the other value, and its true circuit."""
    known = wb.planted(name, n=8)
    pairs = wb.planted_pairs(known)
    value = zero() if kind == "zero" else from_store(wb.capture_pairs(known.model, pairs)[1])
    return known, pairs, value, Circuit.of(Graph.of(known.model), known.edges[kind])


def test_the_rest_of_everything_is_nothing_and_of_nothing_everything():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    result = evaluate(
        [Circuit.full(model), Circuit.empty(model)],
        model,
        pairs,
        value=from_store(corrupt),
        checks=["complement"],
    )
    for name in ("complement", "complement_low", "complement_high"):
        assert close(result[name], [0.0, 1.0], tolerance=1e-5), name
    graph = Graph.of(model)
    edges = graph.prune(graph.exists & (np.random.default_rng(0).random(graph.exists.shape) < 0.5))
    some, rest = Circuit.of(graph, edges), Circuit.of(graph, graph.exists & ~edges)
    both = evaluate([some, rest], model, pairs, value=from_store(corrupt), checks=["complement"])
    assert close(both.complement[0], both.faithfulness[1], tolerance=1e-5, scale=1.0)


def test_intervals_contain_the_estimates():
    model, lengths = model_of("gpt2"), (6,) * 8
    pairs, _, corrupt = pairs_and_stores("gpt2", lengths)
    graph = Graph.of(model)
    some = Circuit.of(graph, graph.exists & (np.random.default_rng(1).random(graph.exists.shape) < 0.7))
    result = evaluate(some, model, pairs, value=from_store(corrupt)).isel(circuit=0)
    for name in ("complement", "random", "incompleteness"):
        assert float(result[f"{name}_low"]) <= float(result[name]) <= float(result[f"{name}_high"]), name
        assert float(result[f"{name}_low"]) < float(result[f"{name}_high"]), name
    wide, narrow = (
        evaluate(some, model, pairs, value=from_store(corrupt), checks=["random"], level=level).isel(
            circuit=0
        )
        for level in (0.95, 0.5)
    )
    assert float(wide.random_high - wide.random_low) >= float(narrow.random_high - narrow.random_low)
    by_node = minimality(some, model, pairs, value=from_store(corrupt))
    assert (by_node.low <= by_node.missed + 1e-12).all()
    assert (by_node.missed <= by_node.high + 1e-12).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "native-attn-only"])
def test_the_whole_model_is_complete(family):
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    for value in (from_store(corrupt), mean(clean)):
        result = evaluate(Circuit.full(model), model, pairs, value=value, checks=["completeness"])
        assert result.incompleteness.values.tolist() == [0]
        assert result.incompleteness_set.values.tolist() == ["none"]


def test_a_circuit_without_the_backup_head_is_faithful_and_incomplete():
    """When the main head is silent its backup answers, in the model and not in the circuit."""
    known, pairs, value, true = planted("backup", "zero")
    main, backup = known.heads["main"], known.heads["backup"]
    graph = Graph.of(known.model)
    less = Circuit.of(graph, [edge for edge in true.edge_list if backup not in str(edge)])
    checks = ["completeness"]
    whole = evaluate(true, known.model, pairs, value=value, checks=checks).isel(circuit=0)
    lesser = evaluate(less, known.model, pairs, value=value, checks=checks).isel(circuit=0)
    assert abs(float(lesser.faithfulness) - 1) < 0.01
    assert float(whole.incompleteness) < 0.01
    assert float(lesser.incompleteness) > 0.9
    assert str(lesser.incompleteness_set.values) == main
    without_main = Circuit.of_nodes(graph, [name for name in graph.writers if name not in ("input", main)])
    expected = evaluate(without_main, known.model, pairs, value=value, checks=())["faithfulness"]
    assert close(float(lesser.incompleteness), float(expected[0]), tolerance=1e-5), (
        "F(C without the main head) is 0"
    )


def test_an_idle_head_is_not_needed_and_the_true_ones_are():
    known, pairs, value, true = planted("induction")
    graph = Graph.of(known.model)
    idle = next(name for name in graph.writers if name.startswith("a0") and name not in known.heads.values())
    more = Circuit.of(graph, [*true.edge_list, f"input->{idle}<v>", f"{idle}->logits"])
    for circuit, unneeded, share in ((true, "", 1.0), (more, idle, 2 / 3)):
        result = evaluate(circuit, known.model, pairs, value=value, checks=["minimality"]).isel(circuit=0)
        assert str(result.unneeded.values) == unneeded
        assert close(float(result.minimal), share)
    by_node = minimality(more, known.model, pairs, value=value)
    assert by_node.sizes == {"node": 3}
    assert by_node.needed.sel(node=idle) == 0
    assert by_node.missed.sel(node=idle) < 1e-4
    for head in known.heads.values():
        assert by_node.needed.sel(node=head) == 1
        assert by_node.missed.sel(node=head) > 0.5
    assert by_node.attrs["kind"] == "minimality"


def test_a_backup_head_is_missed_beyond_the_head_it_stands_in_for():
    known, pairs, value, true = planted("backup", "zero")
    by_node = minimality(true, known.model, pairs, value=value)
    main, backup = known.heads["main"], known.heads["backup"]
    assert by_node.needed.values.all()
    assert main in str(by_node["without"].sel(node=backup).values).split(", ")


def test_nothing_has_no_components_to_miss():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    assert minimality(Circuit.empty(model), model, pairs, value=from_store(corrupt)).sizes == {"node": 0}
    result = evaluate(Circuit.empty(model), model, pairs, value=from_store(corrupt)).isel(circuit=0)
    assert np.isnan(result.minimal)
    assert str(result.unneeded.values) == ""
    assert abs(float(result.random)) < 1e-5
    assert float(result.incompleteness) > 0.99, "the model does something, the circuit nothing"


def test_random_circuits_of_the_same_size_are_the_baseline():
    known, pairs, value, true = planted("induction")
    result = evaluate(true, known.model, pairs, value=value, checks=["random"]).isel(circuit=0)
    assert abs(float(result.faithfulness) - 1) < 1e-4
    assert float(result.random) < 0.2
    full = evaluate(Circuit.full(known.model), known.model, pairs, value=value, checks=["random"]).isel(
        circuit=0
    )
    assert abs(float(full.random) - 1) < 1e-4
    first, again, other = (
        evaluate(
            Circuit.full(known.model) if seed is None else big(known),
            known.model,
            pairs,
            value=value,
            checks=["random"],
            seed=seed,
        )
        for seed in (0, 0, 1)
    )
    assert first.identical(again)
    assert float(first.random[0]) != float(other.random[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_relocated_circuits_have_the_same_shape_through_other_heads(family):
    graph = Graph.of(model_of(family))
    edges = graph.prune(graph.exists & (np.random.default_rng(0).random(graph.exists.shape) < 0.5))
    assert np.array_equal(relocated(graph, graph.exists, draws=2), np.stack([graph.exists] * 2))
    drawn = relocated(graph, edges, draws=5)
    assert np.array_equal(drawn, graph.prune(drawn)), (
        "what was on a way from the input to the logits still is"
    )
    assert (drawn.sum((1, 2)) == edges.sum()).all()
    kept = [i for i, name in enumerate(graph.writers) if not name.startswith("a")]
    assert (drawn[:, kept, -1] == edges[kept, -1]).all()
    for head in (i for i, name in enumerate(graph.writers) if name.startswith("a0.")):
        one = np.zeros_like(edges)
        one[head, -1] = True
        moved = relocated(graph, one, draws=5)
        assert not moved[:, head].any()
        assert {graph.writers[w][:3] for w in moved.any((0, 2)).nonzero()[0]} == {"a0."}
    assert np.array_equal(drawn, relocated(graph, edges, draws=5))
    other = relocated(graph, edges, draws=5, seed=1)
    assert np.array_equal(drawn, other) == (family == "llama"), "two groups can change places in one way only"


def big(known):
    graph = Graph.of(known.model)
    return Circuit.of(graph, graph.exists & (np.random.default_rng(0).random(graph.exists.shape) < 0.9))


def test_ablations_side_by_side_are_those_of_separate_calls(tmp_path):
    model, (pairs, clean, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    graph = Graph.of(model)
    some = Circuit.of(graph, graph.exists & (np.random.default_rng(2).random(graph.exists.shape) < 0.3))
    values = {"corrupt": from_store(corrupt), "zero": zero(), "mean": mean(clean)}
    both = evaluate(some, model, pairs, value=values)
    assert both["ablation"].values.tolist() == list(values)
    for name in ("corrupt", "mean"):
        alone = evaluate(some, model, pairs, value=values[name])
        one_value = both.sel(ablation=name, drop=True)
        for field in alone:
            assert alone[field].dims == one_value[field].dims, field
            assert (alone[field].values == one_value[field].values).all(), field
    assert both.attrs["value"] == "from_store, zero, mean(dataset)"
    for result in (
        both,
        evaluate([some, some], model, pairs, value=zero(), checks=["complement", "minimality"]),
        minimality(some, model, pairs, value=zero()),
    ):
        path = wb.save(result, tmp_path / "r.nc", overwrite=True)
        loaded = wb.load(path)
        assert loaded.identical(result) or (loaded.equals(result) and loaded.attrs == result.attrs)
        for field in result:
            assert loaded[field].values.tolist() == result[field].values.tolist(), field


def test_several_circuits_get_the_checks_that_one_gets():
    """The default does not depend on how many circuits are given, and the result names what was checked."""
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    graph = Graph.of(model)
    some = Circuit.of(graph, graph.exists & (np.random.default_rng(2).random(graph.exists.shape) < 0.3))
    alone = evaluate(some, model, pairs, value=from_store(corrupt))
    both = evaluate([some, Circuit.empty(model)], model, pairs, value=from_store(corrupt))
    assert set(alone) == set(both)
    assert alone.attrs["checks"] == both.attrs["checks"] == ", ".join(CHECKS)
    for name in ("faithfulness", "complement", "random", "incompleteness", "minimal"):
        assert close(both[name][0], alone[name][0], tolerance=1e-5, scale=1.0), name
    for name in ("incompleteness_set", "unneeded"):
        assert str(both[name][0].values) == str(alone[name][0].values), name
    plain = evaluate(some, model, pairs, value=from_store(corrupt), checks=())
    assert plain.attrs["checks"] == "none"
    assert "complement" not in plain


def test_a_metric_that_does_not_differ_gives_nan_everywhere():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")

    def same(logits):
        return logits[:, 0, 0] * 0 + 1

    result = evaluate(Circuit.full(model), model, pairs, value=from_store(corrupt), metric=same)
    for name in ("faithfulness", "low", "high", "mean_of_ratios", "complement", "random", "incompleteness"):
        assert result[name].isnull().all(), name


@pytest.mark.types
def test_positions_and_neurons_are_checked_too():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    for graph in (Graph.of(model, positions=[2, "END"]), Graph.of(model, neurons=[1])):
        whole = Circuit.of(graph, graph.exists)
        result = evaluate(
            whole, model, pairs, value=from_store(corrupt), checks=["complement", "random"]
        ).isel(circuit=0)
        assert close([result.faithfulness, result.complement, result.random], [1.0, 0.0, 1.0], tolerance=1e-4)
    graph = Graph.of(model, positions=[2, "END"])
    whole = evaluate(
        Circuit.of(graph, graph.exists),
        model,
        pairs,
        value=from_store(corrupt),
        checks=["completeness", "minimality"],
    )
    plain = evaluate(
        Circuit.full(model), model, pairs, value=from_store(corrupt), checks=["completeness", "minimality"]
    )
    assert float(whole.incompleteness[0]) == 0
    assert float(whole.minimal[0]) == float(plain.minimal[0])


def refused(error_type, *given, call=evaluate, **how):
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    with pytest.raises(error_type) as error:
        call(*(given or (Circuit.full(model),)), model, pairs, **({"value": from_store(corrupt)} | how))
    return str(error.value)


def test_what_cannot_be_checked_is_refused():
    graph = Graph.of(model_of("gpt2"))
    placed = Graph.of(model_of("gpt2"), positions=[2])
    assert refused(UnknownName, checks=["minimal"]) == (
        "checks='minimal' is not known. Did you mean 'minimality'? Choices: complement, "
        "completeness, minimality, random."
    )
    assert (
        refused(CircuitError, value={})
        == "evaluate: value={} names no value. Give one, as in {'zero': wb.zero()}."
    )
    mixed = [Circuit.full(graph), Circuit.of(placed, placed.exists)]
    assert refused(CircuitError, mixed) == (
        f"evaluate: circuits of one graph run together; these have {graph} and {placed}."
    )
    for call in (evaluate, minimality):
        for level in (0.0, 1.0, -1.0):
            assert refused(WorkbenchError, call=call, level=level) == (
                f"level={level}: the coverage of an interval lies between 0 and 1, as in 0.95."
            )
        assert refused(WorkbenchError, call=call, seed=-1) == "seed=-1: a whole number from 0 up is needed."
        for budget in (0, -5):
            assert refused(WorkbenchError, call=call, budget=budget) == (
                f"budget={budget}: bytes of working memory are a whole number from 1 up, or None."
            )


def test_positions_that_no_prompt_has_are_refused():
    model = model_of("gpt2")
    for position, kind, message in (
        (20, WorkbenchError, "No prompt has the position 20 of the graph: the longest has 6 tokens."),
        ("S2", UnknownName, "position='S2' is not known. Choices: END."),
    ):
        graph = Graph.of(model, positions=[position])
        assert refused(kind, Circuit.of(graph, graph.exists)) == message
        for call in (wb.score_edges, wb.acdc, wb.learn_circuit):
            more = (
                {"n_edges": 3} if call is wb.learn_circuit else {"threshold": 1.0} if call is wb.acdc else {}
            )
            with pytest.raises(kind) as error:
                call(model, make_pairs(), value=zero(), positions=[position], **more)
            assert str(error.value) == message
