"""Criteria, the frontier and refining: what a circuit has to keep before it may be believed."""

import functools

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from workbench.discovery.criteria import Bound, Criteria
from workbench.discovery.frontier import (
    best_trade_off,
    grid_of_sizes,
    keeping,
    measure_against,
    smallest_by_counterfactual,
    smallest_passing,
)
from workbench.discovery.ranking import best_first, first_edges
from workbench.discovery.refine import cut_finer, pruned
from workbench.discovery.score_arrays import joint_scores, matrix_of
from workbench.engine.circuits import Circuits
from workbench.engine.resemblance import MEASURES, Resemblance, resemblance
from workbench.errors import CircuitError, NoCircuit, UnknownName
from workbench.metrics.metric import metric
from workbench.planted_models.pairs import planted_pairs


@functools.cache
def tiny():
    return wb.load_model("tiny", device="cpu")


@functools.cache
def ioi(n: int = 8):
    pairs = wb.load_task("ioi", tiny(), n=n)
    return pairs, wb.counterfactual_values(tiny(), pairs)


@functools.cache
def scores():
    pairs, values = ioi()
    return wb.score_edges(
        tiny(), pairs, value=values, method="eap-ig-inputs", keep=("example",), progress=False
    )


def runs(model, pairs, values, graph):
    """Counterfactual → runs of circuits against it."""
    measured = {}
    for name, value in values.items():
        some = pairs.against(name) if name in pairs.counterfactuals else pairs
        measured[name] = Circuits(model, graph, some, value=value, metric=metric("logit_diff"))
    return measured


def held(**changed) -> str:
    """The letters of the criteria that one circuit holds, which holds all but for what is changed."""
    good = {"low": 0.9, "high": 1.1, "error": 0.1, "kl_recovered": 0.95, "answers_kept": 1.0}
    good |= {"same_choice": 0.9, "prompts_near": 0.85}
    measures = {name: np.array([number]) for name, number in (good | changed).items()}
    return "".join(letter for letter, holds in Criteria().held(measures).items() if holds[0])


def test_each_bound_can_fail_by_itself_and_nan_holds_nothing():
    assert held() == "abcd"
    assert held(low=0.84) == held(high=1.16) == held(low=np.nan) == "bcd"
    assert held(error=0.151) == held(error=np.nan) == held(prompts_near=0.79) == "acd"
    assert held(kl_recovered=0.89) == "abd"
    assert held(answers_kept=0.94) == held(same_choice=0.84) == held(answers_kept=np.nan) == "abc"


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"faithfulness": (1.1, 1.2)}, "faithfulness=(1.1, 1.2) leaves out 1, which is the model itself."),
        ({"error": -0.1}, "error=-0.1; a number from 0 up is needed."),
        ({"at_most": 1.5}, "at_most=1.5; a share from 0 to 1 is needed."),
        ({"at_most": 0.0}, "at_most=0 leaves no edge for a circuit."),
        (
            {
                "faithfulness": (-1.0, 9.0),
                "error": 2.0,
                "prompts_near": 0.0,
                "kl_recovered": 0.0,
                "answers_kept": 0.0,
                "same_choice": 0.0,
            },
            "the circuit without an edge keeps these bounds, so they say nothing.",
        ),
    ],
)
def test_bounds_that_no_circuit_or_every_circuit_keeps_are_refused(bounds, message):
    with pytest.raises(CircuitError) as refused:
        Criteria(**bounds)
    assert str(refused.value) == f"Criteria: {message}"


def test_a_right_mean_does_not_hide_what_is_wrong_on_every_prompt():
    full = np.array([1.0, 2.0, 3.0, 4.0])
    off = full + np.array([2.0, -2.0, 2.0, -2.0])
    nothing = np.zeros(4)
    beside = Resemblance(
        metric=np.stack([off, full]),
        full=full,
        empty=nothing,
        kl=np.zeros((2, 4)),
        kl_empty=np.ones(4),
        right=np.stack([off > 0, full > 0]),
        full_right=full > 0,
        same_choice=np.ones((2, 4), dtype=bool),
    )
    measures = {name: values[0].tolist() for name, values in beside.measures().items()}
    assert measures["faithfulness"] == pytest.approx([1.0, 1.0])
    assert measures["error"] == pytest.approx([2 / 2.5, 0.0])
    assert measures["r"] == pytest.approx([np.corrcoef(off, full)[0, 1], 1.0])
    assert measures["answers_kept"] == pytest.approx([0.75, 1.0])
    for name, (low, high) in beside.interval(draws=200).items():
        assert (low <= np.array(measures[name]) + 1e-12).all(), name
        assert (np.array(measures[name]) <= high + 1e-12).all(), name


def test_a_small_mean_error_does_not_hide_the_prompts_whose_corruption_changes_little():
    """Half of the prompts have a gap of 20 and half of .2, and the circuit does nothing on the latter."""
    full, empty = np.array([10.0, 10.0, 5.0, 5.0]), np.array([-10.0, -10.0, 4.8, 4.8])
    circuit = np.array([9.0, 9.5, 4.8, 4.8])
    ones = np.ones((1, 4), dtype=bool)
    beside = Resemblance(circuit[None], full, empty, 0 * ones, np.ones(4), ones, ones[0], ones)
    measures = beside.measures()
    assert measures["error"][0, 0] < 0.05
    assert measures["prompts_near"][0, 0] == 0.5
    # The model itself is near on prompts without a gap too, where numbers differ by rounding.
    no_gap = np.array([-10.0, -10.0, 5.0, 5.0])
    same = Resemblance((full + 1e-7)[None], full, no_gap, 0 * ones, np.ones(4), ones, ones[0], ones)
    assert same.measures()["prompts_near"][0, 0] == 1.0


def test_looser_bounds_are_named():
    assert Criteria().looser() == Criteria(error=0.1, kl_recovered=0.95).looser() == {}
    assert Criteria(error=0.2, faithfulness=(0.5, 1.1)).looser() == {
        "faithfulness": Bound((0.5, 1.1), (0.85, 1.15)),
        "error": Bound(0.2, 0.15),
    }


def test_where_the_model_does_nothing_no_share_is_formed():
    one = np.ones(3)
    beside = Resemblance(one[None], one, one, one[None] * 0, one * 0, None, None, one[None] > 0)
    measures = beside.measures()
    assert all(np.isnan(measures[name]).all() for name in MEASURES if name != "same_choice")


def test_measures_are_those_of_each_metric_by_itself():
    """KL recovered is the faithfulness of "kl", answers kept that of "accuracy", on the same runs."""
    pairs, values = ioi()
    circuits = [wb.find_circuit(scores(), n_edges=n) for n in (12, 60)]
    for name, value in values.items():
        some = pairs.against(name)
        at = {"value": value, "checks": (), "progress": False}
        together = wb.evaluate(circuits, tiny(), some, **at)
        kl = wb.evaluate(circuits, tiny(), some, metric="kl", **at)
        right = wb.evaluate(circuits, tiny(), some, metric="accuracy", **at)
        np.testing.assert_allclose(together["kl_recovered"], kl["faithfulness"], rtol=1e-5)
        kept = (right["m_circuit"] * right["m_full"]).mean("example") / right["m_full"].mean("example")
        np.testing.assert_allclose(together["answers_kept"], kept, rtol=1e-6)
        off = np.abs(together["m_circuit"] - together["m_full"]).mean("example")
        gap = float(np.abs(together["m_full"] - together["m_empty"]).mean())
        np.testing.assert_allclose(together["error"], off / gap, rtol=1e-5)


def test_hooks_give_the_same_measures_as_the_fast_engine():
    pairs, _ = ioi(4)
    graph = wb.Graph.of(tiny())
    masks = np.stack([wb.find_circuit(scores(), n_edges=n).edges for n in (20, 100)])
    # A factor of 0 writes zeros too, and depends on what is there, so hooks run it.
    for value in (wb.zero(), wb.scale(0.0)):
        one = Circuits(tiny(), graph, pairs, value=value, metric=metric("logit_diff"))
        beside = resemblance(one, masks)
        if one.engine != "reference":
            expected = beside
    for name, numbers in beside.measures().items():
        np.testing.assert_allclose(numbers, expected.measures()[name], rtol=1e-4, atol=1e-5, err_msg=name)


def table(holds_a: list[bool], holds_b: list[bool], sizes=(3, 5, 8, 12, 18)) -> xr.Dataset:
    """A frontier of two counterfactuals with these criteria kept."""
    holds = np.array([holds_a, holds_b])
    nexts = [np.pad(holds[:, k:], ((0, 0), (0, k))) for k in range(3)]
    passes = xr.DataArray(
        np.logical_and.reduce(nexts), dims=("ablation", "size"),
        coords={"ablation": ["swap", "abc"], "size": list(sizes)},
    )  # fmt: skip
    error = xr.DataArray(1 / np.array([sizes, sizes]), dims=passes.dims, coords=passes.coords)
    n_pruned = xr.DataArray([0, *sizes[1:]], dims="size")  # the smallest size is dead ends alone
    columns = {"passes": passes, "passes_all": passes.all("ablation"), "error": error, "n_pruned": n_pruned}
    return xr.Dataset(columns, attrs={"largest": 12})


def test_a_size_passes_with_the_next_two_and_against_every_counterfactual():
    # `swap` touches the bounds once by chance, at the smallest size.
    measured = table([True, False, True, True, True], [False, False, True, True, True])
    assert smallest_passing(measured) == 8
    assert smallest_by_counterfactual(measured) == {"swap": 8, "abc": 8}
    assert smallest_passing(table([True] * 5, [False, True, True, True, False])) == 5
    assert smallest_passing(table([True] * 5, [False] * 5)) is None
    assert smallest_by_counterfactual(table([True] * 5, [False] * 5)) == {"swap": 3, "abc": None}
    assert best_trade_off(measured) == 12
    alike = measured.assign(error=measured["error"] * 0 + 1.0)
    assert best_trade_off(alike) == 5, "not the size of which no edge is left"


def test_prompts_that_choose_ask_for_a_margin():
    pairs, values = ioi()
    graph = wb.Graph.of(tiny())
    several = runs(tiny(), pairs, values, graph)
    order = best_first(graph, np.abs(matrix_of(joint_scores(scores()), graph)))
    masks = np.stack([graph.prune(first_edges(graph, order, n)) for n in (60, 90, 130, 400)])
    numbers, chosen = (measure_against(masks, several, Criteria(), sure=sure) for sure in (None, 0.9))
    assert (chosen["error_bound"] > chosen["error"]).all()
    assert (chosen["kl_recovered_bound"] < chosen["kl_recovered"]).all()
    assert (chosen["holds_b"] == (chosen["error_bound"] <= Criteria().error)).all()
    assert (numbers["holds_b"] == (numbers["error"] <= Criteria().error)).all()
    surer = measure_against(masks, several, Criteria(), sure=0.975)
    assert (surer["error_bound"] > chosen["error_bound"]).all()
    # A circuit that fails against one counterfactual is not run against the other, and fails all the same.
    holds = [chosen[f"holds_{letter}"].values for letter in "abcd"]
    assert keeping(masks, several, Criteria()).tolist() == np.stack(holds).all((0, 1)).tolist()


def test_grids_end_with_two_sizes_beyond_the_largest_that_counts():
    assert grid_of_sizes(1519, 0.15)[-3:] == [227, 341, 512]
    assert grid_of_sizes(20, 1.0)[-1] == 20


def test_scores_of_prompts_and_counterfactuals_are_joined():
    by_prompt = xr.DataArray(
        [[[3.0, -4.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]]], dims=("ablation", "example", "edge")
    )
    assert joint_scores(by_prompt).values.tolist() == [(3 / 4 + 0) / 2, (1 + 1) / 2]
    assert joint_scores(by_prompt, by="signed").values.tolist() == [(1 + 0) / 2, (0 + 1) / 2]
    with pytest.raises(UnknownName):
        joint_scores(by_prompt, by="size")


def test_an_edge_that_helps_on_some_prompts_and_harms_on_others_is_ranked():
    joined = joint_scores(scores())
    alone = joint_scores(scores().isel(example=0))
    assert joined.dims == alone.dims == ("writer", "reader")
    assert wb.find_circuit(scores(), n_edges=30).attrs["ranked_by"] == "magnitude"
    # The circuit's scores keep their sign, which pictures show.
    assert (wb.find_circuit(scores(), n_edges=30).scores < 0).any()


def test_criteria_that_nothing_keeps_are_said_with_the_nearest():
    pairs, _ = ioi()
    with pytest.raises(NoCircuit) as none:
        wb.find_circuit(scores(), criteria=Criteria(error=0.0, at_most=0.02), model=tiny(), pairs=pairs)
    assert "no circuit of at most 2% of the 1519 edges reproduces the model" in str(none.value)
    assert none.value.frontier["error"].dims == ("ablation", "size")


def test_refining_leaves_out_what_is_not_needed_and_keeps_the_criteria():
    known = wb.planted("induction", n=24)
    graph, pairs = wb.Graph.of(known.model), planted_pairs(known)
    planted = wb.Circuit.of(graph, known.edges["zero"])
    several = runs(known.model, pairs, {"zero": wb.zero()}, graph)
    criteria = Criteria()
    smaller = pruned(graph.exists, gradients=several, runs=several, criteria=criteria)
    assert smaller.sum() <= 2 * planted.n_edges
    assert measure_against(smaller[None], several, criteria)["holds_b"].all()
    # What is planted is needed: nothing of it can be left out.
    kept = pruned(planted.edges, gradients=several, runs=several, criteria=criteria)
    assert kept.sum() >= planted.n_edges - 1


def test_finer_sizes_end_at_the_last_that_holds_from_above():
    known = wb.planted("induction", n=24)
    graph, pairs = wb.Graph.of(known.model), planted_pairs(known)
    several = runs(known.model, pairs, {"zero": wb.zero()}, graph)
    # The planted edges first: all of them are needed, and nothing else.
    planted = wb.Circuit.of(graph, known.edges["zero"]).edges
    order = best_first(graph, planted.astype(float))
    needed = int(planted.sum())
    finer = cut_finer(order, needed // 2, graph.n_edges, runs=several, criteria=Criteria())
    tried = np.geomspace(graph.n_edges, needed // 2, 6)[1:-1].astype(int)
    smallest = min(n for n in tried if n >= needed)
    assert finer.tolist() == graph.prune(first_edges(graph, order, smallest)).tolist()


def test_refine_needs_criteria_and_a_name_that_exists():
    pairs, _ = ioi()
    with pytest.raises(CircuitError, match="refine= goes with criteria="):
        wb.find_circuit(scores(), n_edges=30, refine="prune")
    with pytest.raises(UnknownName):
        wb.find_circuit(scores(), criteria=Criteria(), refine="grow", model=tiny(), pairs=pairs)
