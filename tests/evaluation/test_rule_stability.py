"""The rule on resamples: one circuit from identical examples, and the walk finds what trying all sizes finds."""

from functools import cache
from itertools import product

import numpy as np
import pytest
from closeness import close

import workbench as wb
from workbench.circuit.graph import Graph
from workbench.discovery.criteria import Criteria
from workbench.discovery.frontier import BEYOND, frontier, grid_of_sizes, smallest_passing
from workbench.discovery.score_arrays import joint_scores, matrix_of
from workbench.discovery.search import best_first, find_circuit
from workbench.engine.circuits import Circuits
from workbench.engine.values import from_store
from workbench.errors import CircuitError
from workbench.evaluation.curves import mean_jaccard
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.rule_stability import _smallest, rule_stability
from workbench.metrics.metric import metric

RULE = Criteria(at_most=0.5)


@cache
def planted():
    """A planted model, its pairs, the scores of each prompt, and runs against the corrupt prompts."""
    known = wb.planted("induction-noisy", n=6)
    pairs = wb.planted_pairs(known)
    value = from_store(wb.capture_pairs(known.model, pairs, progress=False)[1])
    graph = Graph.of(known.model)
    runs = {"swap": Circuits(known.model, graph, pairs, value=value, metric=metric("logit_diff"))}
    scores = wb.score_edges(
        known.model, pairs, value={"swap": value}, method="exact", keep=("example",), progress=False
    )
    return known, pairs, scores, runs


def test_identical_examples_give_one_circuit_which_is_the_core():
    known, pairs, scores, runs = planted()
    size = joint_scores(scores.isel(ablation=0)).values
    same = scores.copy(data=np.broadcast_to(size, scores.shape).copy())
    circuit = find_circuit(same, criteria=RULE, model=known.model, pairs=pairs, value=runs["swap"].value)
    for near in (None, circuit.n_requested):
        result = rule_stability(same, runs, RULE, draws=3, near=near)
        assert np.array_equal(result["core"].values, circuit.edges)
        assert result.attrs["n_found"] == 3
        assert result["found"].item() == 1
        assert set(result["size"].values.tolist()) == {result.attrs["near"]}
        for name in ("jaccard", "jaccard_low", "jaccard_high", "jaccard_near"):
            assert result[name].item() == 1, name
        assert result["core_size"].item() == circuit.n_edges
    alone = evaluate(circuit, known.model, pairs, value=runs["swap"].value, checks=(), progress=False)
    assert close(result["core_faithfulness"], alone["faithfulness"], tolerance=1e-6)
    assert close(result["core_error"], alone["error"], tolerance=1e-6, scale=1.0)


def test_each_draw_finds_what_the_whole_frontier_finds():
    _, _, scores, runs = planted()
    graph, rng = runs["swap"].graph, np.random.default_rng(3)
    noise = scores.copy(data=scores.values + rng.normal(scale=3.0, size=scores.shape))
    grid = grid_of_sizes(graph.n_edges, RULE.at_most)
    middle = grid[len(grid) // 2]
    result = rule_stability(noise, runs, RULE, draws=4, near=middle, seed=5)
    drawn = np.random.default_rng(5)
    sizes = []
    for _ in range(4):
        sample = noise.isel(example=drawn.integers(0, 6, 6))
        order = best_first(graph, np.abs(matrix_of(joint_scores(sample), graph)))
        sizes.append(smallest_passing(frontier(order, grid, runs, RULE, seed=5)))
    first, last = len(grid) // 2 - 3, len(grid) - 1 - BEYOND
    allowed = grid[max(0, first) : min(last, len(grid) // 2 + 5) + 1]
    expected = [size if size in allowed else np.nan for size in sizes]
    np.testing.assert_array_equal(result["size"].values, np.array(expected, dtype=float))
    assert len({size for size in sizes if size}) > 1, "the draws differ, so that there is something to find"
    found = result["edges"].values[np.isfinite(result["size"].values)]
    assert np.array_equal(result["core"].values, found.mean(0) >= 0.9)


def test_where_nothing_passes_the_result_says_so():
    _, _, scores, runs = planted()
    never = Criteria(error=0.0, at_most=0.3)
    result = rule_stability(scores, runs, never, draws=3)
    assert result["found"].item() == result.attrs["near_passes"] == result["core_size"].item() == 0
    assert result["found_high"].item() < 1
    for name in ("size", "median_size", "size_low", "jaccard", "frequency", "n_edges"):
        assert result[name].isnull().all(), name
    assert result["jaccard_near"].item() > 0, "at a size that is given the draws can be compared"
    assert result.attrs["near"] == int(0.3 * runs["swap"].graph.n_edges)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_walk_finds_the_smallest_that_holds_and_the_next_two(length):
    for holding in product([False, True], repeat=length + BEYOND):
        walk, tried, answer = _smallest(range(length)), [], None
        try:
            asked = next(walk)
            while True:
                tried += asked
                asked = walk.send([holding[index] for index in asked])
        except StopIteration as end:
            answer = end.value
        passing = [i for i in range(length) if all(holding[i : i + BEYOND + 1])]
        assert answer == (passing[0] if passing else None), holding
        assert len(tried) == len(set(tried)), "no size is run twice"
        if not any(holding):
            assert len(tried) == -(-length // (BEYOND + 1)), "one of three is enough where all fail"


def test_agreement_is_the_mean_over_all_pairs():
    circuits = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=bool)
    mean, low, high = mean_jaccard(circuits, 0.95)
    assert close(mean, (0.5 + 0 + 0) / 3)
    assert low == 0
    assert close(high, 0.5 * 0.95), "of three numbers, the 97.5th percentile lies 95 % of the way to the last"
    assert np.isnan(mean_jaccard(circuits[:1], 0.95)).all()


def test_what_has_no_resamples_is_refused():
    _, _, scores, runs = planted()
    for given, more, message in (
        (
            joint_scores(scores), {},
            "rule_stability: scores of at least two examples are needed: "
            "score_edges(..., keep=('example',)).",
        ),
        (scores, {"draws": 1}, "rule_stability: draws=1; at least two circuits are compared."),
        (scores, {"near": 0}, "rule_stability: near=0; this graph has 118 edges."),
        (
            scores, {"runs": {}},
            "rule_stability: no runs are given; give one for each counterfactual, by name.",
        ),
    ):  # fmt: skip
        with pytest.raises(CircuitError) as error:
            rule_stability(given, criteria=RULE, **({"runs": runs} | more))
        assert str(error.value) == message
