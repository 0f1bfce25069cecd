"""Tests of circuits: planted ones pass, random ones fail, test by test; p-values by hand; refusals."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import xarray as xr
from closeness import close

import workbench as wb
from workbench.circuit.random import add_path, random_circuits
from workbench.errors import CircuitError, UnknownName, WorkbenchError
from workbench.evaluation.hypothesis_tests import circuit_tests
from workbench.evaluation.nulls import REJECTION_SUPPORTS, TESTS
from workbench.sites import Shape

SEEDS, QUICK_SEEDS = range(20), range(3)
# 14 random edges of the 81 break the mechanism; those of an AND err to both sides: see below.
NO_CONTROL = (("compositions", "independence"), ("conjunction", "equivalence"))
MODELS = ("induction", "lookup", "conjunction", "compositions")
CONTROLS = [(name, test) for name in MODELS for test in (*TESTS, "all") if (name, test) not in NO_CONTROL]
pytestmark = pytest.mark.filterwarnings("ignore:circuit_tests. nothing to test")


def sometimes_wrong(pairs: wb.PromptPairs) -> wb.PromptPairs:
    """The right and the wrong answer exchanged on every other prompt."""
    answers, wrong = pairs.answers.clone(), pairs.wrong.clone()
    answers[1::2], wrong[1::2] = pairs.wrong[1::2], pairs.answers[1::2]
    return replace(pairs, answers=answers, wrong=wrong)


@cache
def outcomes(name: str, seed: int, draws: int = 39) -> tuple[xr.Dataset, xr.Dataset]:
    """The tests of a planted circuit and of random edges, as many."""
    known = wb.planted(name, seed=seed, n=16)
    graph, pairs = wb.Graph.of(known.model), wb.planted_pairs(known)
    true = wb.Circuit.of(graph, known.edges["zero"])
    random = wb.Circuit.of(graph, random_circuits(graph, true.n_edges, draws=1, seed=1000 + seed)[0])
    both = []
    for circuit in (true, random):
        rest = [test for test in TESTS if test != "independence"]
        one = circuit_tests(circuit, known.model, pairs, value=wb.zero(), tests=rest, draws=draws, seed=seed)
        two = circuit_tests(
            circuit, known.model, sometimes_wrong(pairs), value=wb.zero(), tests=["independence"], seed=seed
        )
        both.append(one.assign(independence=two["supports"][0]))
    return both[0], both[1]


@pytest.mark.parametrize("test", [*TESTS, "all"])
def test_a_planted_circuit_is_accepted_and_random_edges_are_rejected(test: str):
    """On a few seeds; the rates over twenty are a slow test below. 20 draws are the fewest that can reject at
    5 %.
    """
    for seed in QUICK_SEEDS:
        verdicts = []
        for tests in outcomes("induction", seed, draws=20):
            field = "accepted" if test == "all" else test
            verdicts.append(bool(tests[field] if field in tests else tests["supports"].sel(test=test)))
        assert verdicts == [True, False], seed


@pytest.mark.slow
@pytest.mark.parametrize(("name", "test"), CONTROLS)
def test_planted_circuits_are_accepted_and_random_ones_rejected(name: str, test: str):
    accepted = np.zeros(2, dtype=int)
    for seed in SEEDS:
        for i, result in enumerate(outcomes(name, seed)):
            field = "accepted" if test == "all" else test
            accepted[i] += int(result[field] if field in result else result["supports"].sel(test=test))
    assert accepted[0] >= 18
    assert accepted[1] <= 1


@pytest.fixture(scope="module")
def planted_one():
    known = wb.planted("induction", n=24)
    return known, wb.planted_pairs(known), wb.Circuit.of(wb.Graph.of(known.model), known.edges["zero"])


def test_random_paths_are_not_as_faithful_nor_minimal(planted_one):
    known, pairs, true = planted_one
    for edges in random_circuits(
        true.graph, 12, draws=3, paths=True, within=~(true.edges & (np.arange(true.edges.shape[1]) > 0))
    ):
        circuit = wb.Circuit.of(true.graph, edges)
        result = circuit_tests(
            circuit,
            known.model,
            pairs,
            value=wb.zero(),
            tests=["equivalence", "minimality", "sufficiency"],
            draws=39,
        )
        assert not result["supports"].any()
        assert result["edge_p"].min() * circuit.n_edges < 0.05


def test_a_needless_edge_is_named(planted_one):
    known, pairs, true = planted_one
    read = {edge.reader for edge in true.graph.edges(true.edges)}
    # From the input into something the circuit uses, so that pruning leaves it.
    candidates = [
        edge for edge in true.graph.edges() if str(edge).startswith("input->a") and edge.reader in read
    ]
    needless = next(str(edge) for edge in candidates if str(edge) not in known.edges["zero"])
    more = wb.Circuit.of(true.graph, known.edges["zero"] | {needless})
    result = circuit_tests(more, known.model, pairs, value=wb.zero(), tests=["minimality"], draws=39)
    bad = result["edge"].values[(result["edge_p"] * more.n_edges < 0.05).values]
    assert list(bad) == [needless]
    assert result["rejected"].all()
    assert not result["supports"].any()


@pytest.mark.types
def test_the_full_and_the_empty_circuit(planted_one):
    known, pairs, _ = planted_one
    full = circuit_tests(
        wb.Circuit.full(known.model),
        known.model,
        pairs,
        value=wb.zero(),
        tests=["equivalence", "sufficiency"],
    )
    assert full["statistic"].sel(test="equivalence") == 0.5  # every example ties
    assert full["p"].sel(test="equivalence") == 1
    assert full["p"].sel(test="sufficiency") > 0.9  # most random circuits of its size are itself
    nothing = (
        r"^circuit_tests: nothing to test in independence, minimality: no edges, "
        r"or a metric that is the same on every prompt\.$"
    )
    with pytest.warns(UserWarning, match=nothing) as warned:
        empty = circuit_tests(wb.Circuit.empty(known.model), known.model, pairs, value=wb.zero())
    assert [warning.filename for warning in warned] == [__file__]
    assert not empty["supports"].any()
    assert not empty["accepted"]
    assert empty["statistic"].sel(test="equivalence") == 0  # lower on every example
    assert np.isclose(empty["p"].sel(test="equivalence"), 0.6**24 + 0.4**24)


def test_a_tolerance_accepts_what_noise_shifts_to_one_side():
    known = wb.planted("induction-ln", n=24)
    circuit, pairs = wb.Circuit.of(wb.Graph.of(known.model), known.edges["zero"]), wb.planted_pairs(known)
    strict, loose = (
        circuit_tests(
            circuit, known.model, pairs, value=wb.zero(), tests=["equivalence"], tolerance=tolerance, eps=0.05
        )
        for tolerance in (0.0, 0.1)
    )
    assert strict["statistic"][0] > 0.6
    assert loose["statistic"][0] == 0.5


def test_equivalence_alone_does_not_see_errors_to_both_sides(planted_one):
    """Where half of the answers are wrong, a circuit that never answers is higher on that half."""
    known, pairs, _ = planted_one
    empty, both = wb.Circuit.empty(known.model), ["equivalence", "sufficiency"]
    result = circuit_tests(empty, known.model, sometimes_wrong(pairs), value=wb.zero(), tests=both, draws=39)
    assert result["statistic"].sel(test="equivalence") == 0.5
    assert result["supports"].values.tolist() == [True, False]


def test_results_say_how_they_were_made_and_can_be_saved(planted_one, tmp_path):
    known, pairs, true = planted_one
    result = circuit_tests(true, known.model, pairs, value=wb.zero(), draws=39, tests=list(TESTS))
    assert result["accepted"]
    assert (
        list(result["test"].values)
        == list(TESTS)
        == ["equivalence", "independence", "minimality", "sufficiency", "partial_necessity"]
    )
    assert set(REJECTION_SUPPORTS) == set(TESTS)
    assert result.sizes["edge"] == true.n_edges
    assert result.attrs["draws"] == 39
    wb.save(result, tmp_path / "tests.nc")
    assert np.array_equal(wb.load(tmp_path / "tests.nc")["edge_p"], result["edge_p"])
    again = circuit_tests(true, known.model, pairs, value=wb.zero(), draws=39, tests=list(TESTS))
    assert again.identical(result)


GRAPHS = {
    "plain": wb.Graph.of(Shape(2, 4, 4, 32, 8, 128, 100, 64)),
    "grouped": wb.Graph.of(Shape(3, 4, 2, 32, 8, 128, 100, 64)),
    "neurons": wb.Graph.of(Shape(2, 2, 2, 16, 8, 6, 100, 64), neurons=True),
    "positions": wb.Graph.of(Shape(2, 2, 2, 16, 8, 32, 100, 64), positions=[1, "END"]),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_random_paths_live_and_random_edges_do_not(kind):
    graph = GRAPHS[kind]
    axes = tuple(range(1, graph.exists.ndim + 1))
    paths, edges = (random_circuits(graph, 14, draws=40, paths=paths) for paths in (True, False))
    assert (graph.prune(paths) == paths).all()
    assert (edges.sum(axes) == 14).all()
    assert (paths.sum(axes) <= 14).all()
    assert paths.sum(axes).mean() > 13
    assert graph.prune(edges).sum(axes).mean() < 7
    assert len({one.tobytes() for one in paths}) > 35
    assert np.array_equal(paths, random_circuits(graph, 14, draws=40, paths=True))
    assert not np.array_equal(paths, random_circuits(graph, 14, draws=40, paths=True, seed=1))


@pytest.mark.types
def test_random_edges_are_uniform_over_the_edges_to_draw_from():
    graph = GRAPHS["plain"]
    within = graph.exists & (np.random.default_rng(0).random(graph.exists.shape) < 0.5)
    counts = random_circuits(graph, 10, draws=2000, within=within).sum(0)
    assert not counts[~within].any()
    expected = 2000 * 10 / within.sum()
    assert close(counts[within].mean(), expected)
    assert counts[within].std() < 1.3 * np.sqrt(expected)
    assert not (random_circuits(graph, 10, draws=50, paths=True, within=within) & ~within).any()


def test_a_path_adds_to_a_circuit():
    graph, rng = GRAPHS["plain"], np.random.default_rng(0)
    circuit = np.zeros_like(graph.exists)
    for _ in range(20):
        more = add_path(graph, circuit, rng)
        assert (more | circuit == more).all()
        assert (graph.prune(more) == more).all()
        circuit = more
    assert circuit.sum() > 20
    assert (add_path(graph, circuit, rng, most=0) == circuit).all()


def test_what_cannot_be_tested_is_said(planted_one):
    known, pairs, true = planted_one

    def ask(circuit=true, **more):
        return circuit_tests(circuit, known.model, pairs, value=wb.zero(), **more)

    with pytest.raises(UnknownName, match=r"^tests='minimal' is not known\. Did you mean 'minimality'"):
        ask(tests=["minimal"])
    with pytest.raises(UnknownName, match=r"^null='path' is not known\. Did you mean 'paths'"):
        ask(null="path")
    limits = (
        r"^circuit_tests: name at least one test, and give 0 < alpha < 1, 0 <= eps < 0\.5, tolerance >= 0, "
        r"draws >= 1; not tests=\['equivalence'\], alpha=0\.05, eps=0\.5, tolerance=0\.0, draws=99\.$"
    )
    with pytest.raises(WorkbenchError, match=limits):
        ask(tests=["equivalence"], eps=0.5)
    with pytest.raises(
        WorkbenchError,
        match=r"^circuit_tests: with draws=19 no p-value is below 0\.05, and alpha=0\.05: draw more\.$",
    ):
        ask(draws=19)
    with pytest.raises(CircuitError, match=r"^This circuit is for another graph"):
        ask(wb.Circuit.full(GRAPHS["plain"].shape))
    with pytest.raises(
        CircuitError, match=r"^random_circuits: n_edges=1000; there are 52 edges to draw from\.$"
    ):
        random_circuits(true.graph, 1000, draws=1)
