"""The five statistical tests of a circuit of Shi et al. 2410.13032: what must hold if it is what the model works by.

s_M, s_C, s_-C: the metric of the model, of the circuit, and of what is left without it, each per example. The distance of
two runs is d(a, b) = mean over examples of |s_a - s_b|. The tests differ in what rejecting their null says: for
`equivalence`, `independence` and `minimality` the null is the good news, and few examples or draws cannot refute it; for
`sufficiency` and `partial_necessity` it is the bad news.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from scipy.stats import binom
from torch import Tensor

from workbench.circuit.circuit import Circuit
from workbench.circuit.random import add_path, random_circuits
from workbench.engine.circuits import Circuits
from workbench.engine.values import Value
from workbench.errors import CircuitError, UnknownName, WorkbenchError
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.prompts.pairs import PromptPairs
from workbench.results import clean_attrs
from workbench.statistics import bonferroni, hsic, hsic_p

QUANTILE = 0.9
"""Of `minimality`: an edge must matter more than this share of random ones (q* of the published code)."""
PERMUTATIONS = 999
"""Of `independence`."""


@dataclass(frozen=True)
class Outcome:
    """What one test found. `p` is NaN where there is nothing to test.

    Attributes:
        n: examples, or random circuits, that the p-value rests on.
        edges: minimality only: the p-value of every edge, not corrected, in graph order.
    """

    statistic: float
    p: float
    n: int
    edges: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _Subject:
    """A circuit under test."""

    circuit: Circuit
    circuits: Circuits
    draws: int
    eps: float
    tolerance: float
    paths: bool
    seed: int
    progress: bool

    @property
    def edges(self) -> np.ndarray:
        return self.circuit.edges

    @property
    def model(self) -> Float[np.ndarray, "example"]:
        return self.circuits.full

    @cached_property
    def same(self) -> float:
        """Differences of the metric up to this much are rounding."""
        return 1e-5 * float(np.abs(self.model).max()) + 1e-9

    def without(self, removed: Bool[np.ndarray, "*masks writer reader"]) -> np.ndarray:
        """The model's edges but these."""
        return self.circuits.graph.exists & ~removed

    def measured(self, masks: Sequence[np.ndarray] | np.ndarray) -> Float[np.ndarray, "circuit example"]:
        """The metric of edge sets, dead ends pruned, in one batch."""
        return self.circuits.measure(self.circuits.graph.prune(np.asarray(masks)), progress=self.progress)

    def distances(self, masks: Sequence[np.ndarray] | np.ndarray) -> Float[np.ndarray, "circuit"]:
        """d of each of the edge sets and the model."""
        return np.abs(self.measured(masks) - self.model).mean(-1)


def equivalence(subject: _Subject) -> Outcome:
    """Null: |P(s_C > s_M) - 1/2| < eps, on a random example: neither is better more often.

    Statistic: k/n, the share of examples on which the circuit is higher, ties counting half. p = P(|K/n - 1/2| >=
    |k/n - 1/2|) for K ~ Binomial(n, 1/2 + eps), the most likely null. A rejection speaks against the circuit.
    Ties: differences of rounding, or up to `tolerance` of |mean s_M - mean s_empty|. The published code compares the mean of
    s_M - s_C with 1/2 in place of k/n; this is the paper's.

    A circuit that errs to both sides passes, however much it errs: read it with `sufficiency`.

    Control: a random circuit is lower everywhere (rejected); a planted one ties, or with noise is off to both sides. Where
    noise shifts every example to one side by little (norms without what was ablated), only a tolerance accepts it.
    """
    empty, own = subject.measured([np.zeros_like(subject.edges), subject.edges])
    difference = own - subject.model
    tie = max(subject.same, subject.tolerance * abs(subject.model.mean() - empty.mean()))
    n = len(difference)
    rate = float((difference > tie).mean() + (np.abs(difference) <= tie).mean() / 2)
    k = np.arange(n + 1)
    far = np.abs(k / n - 0.5) >= abs(rate - 0.5) - 1e-12
    return Outcome(rate, min(1.0, float(binom.pmf(k, n, 0.5 + subject.eps)[far].sum())), n)


def independence(subject: _Subject) -> Outcome:
    """Null: s_-C and s_M are independent over examples: what is left knows nothing of how well the model does.

    Statistic: HSIC. p: permutations of the examples. A rejection speaks against the circuit. A constant s_-C is independent
    of everything; where s_M is constant there is nothing to test (p is NaN). The other value must not tell the answer: with
    corrupt values what is left answers the corrupt prompt, and depends on the clean one as far as the two prompts do.

    Control: prompts on which the model is sometimes wrong (answers exchanged on half of them), zero ablation: what a random
    circuit leaves holds the mechanism (rejected), what a planted one leaves is constant. A random circuit that happens to break
    the mechanism passes.
    """
    left = subject.measured([subject.without(subject.edges)])[0]
    # Rounding errors of two runs of one model need not be independent.
    rounded = [np.round(metric / (10 * subject.same)) for metric in (subject.model, left)]
    n = len(left)
    if np.ptp(rounded[0]) <= 1 or n < 3:
        return Outcome(float("nan"), float("nan"), n)
    if np.ptp(rounded[1]) <= 1:
        return Outcome(0.0, 1.0, n)
    return Outcome(hsic(*rounded), hsic_p(*rounded, draws=PERMUTATIONS, seed=subject.seed), n)


def minimality(subject: _Subject) -> Outcome:
    """Null, of every edge e of C: with probability >= .9, d(C, C - e) > d(C+, C+ - r): no edge is like a needless one.

    C+ is the circuit with one more random path, r a random edge of that path, drawn `draws` times. p_e = P(K <= k) for
    K ~ Binomial(draws, .9), k the draws that e exceeds; p = min p_e times the edges (Bonferroni). Statistic: the least share of
    draws that an edge exceeds. A rejection (some edge matters no more than a random one) speaks against the circuit.
    An edge whose loss another of its edges covers counts as needless. Without edges, p is NaN.

    Control: a circuit of random paths has edges that do nothing (rejected); those of planted ones without redundancy all do
    more than edges beside the circuit.
    """
    at = np.argwhere(subject.edges)
    rng = np.random.default_rng(subject.seed)
    inflated, reduced = [], []
    for _ in range(20 * subject.draws if len(at) else 0):
        more = add_path(subject.circuits.graph, subject.edges, rng)
        added = np.argwhere(more & ~subject.edges)
        if len(added):
            inflated.append(more)
            reduced.append(more.copy())
            reduced[-1][tuple(rng.choice(added))] = False
        if len(inflated) == subject.draws:
            break
    n = len(inflated)
    if not n:
        return Outcome(float("nan"), float("nan"), 0, np.full(len(at), np.nan))
    cut = np.repeat(subject.edges[None], len(at), axis=0)
    cut[(np.arange(len(at)), *at.T)] = False
    found = subject.measured(np.concatenate([subject.edges[None], cut, inflated, reduced]))
    own = np.abs(found[1 : 1 + len(at)] - found[0]).mean(-1)
    random = np.abs(found[1 + len(at) : 1 + len(at) + n] - found[1 + len(at) + n :]).mean(-1)
    exceeded = (own[:, None] > random + subject.same).sum(1)
    p = binom.cdf(exceeded, n, QUANTILE)
    return Outcome(float(exceeded.min() / n), float(bonferroni(p).min()), n, p)


def sufficiency(subject: _Subject) -> Outcome:
    """Null: C is no more faithful than a random circuit of its size.

    p = (1 + #{d(R, M) <= d(C, M)}) / (1 + draws) over random circuits R. Statistic: the share of them that are less faithful.
    A rejection speaks for the circuit. (The published code tests that share against .9 with a binomial test.)

    Control: a planted circuit is exceeded by none; a random one is a draw like the others, so that it passes with
    probability alpha at most.
    """
    graph = subject.circuits.graph
    random = random_circuits(
        graph, int(subject.edges.sum()), draws=subject.draws, seed=subject.seed, paths=subject.paths
    )
    own, *others = subject.distances([subject.edges, *random])
    as_good = int((np.array(others) <= own + subject.same).sum())
    return Outcome(1 - as_good / subject.draws, (1 + as_good) / (1 + subject.draws), subject.draws)


def partial_necessity(subject: _Subject) -> Outcome:
    """Null: knocking C out hurts no more than knocking out as many random edges of the rest.

    p = (1 + #{d(M - R, M) >= d(M - C, M)}) / (1 + draws) over random sets R of edges outside C, all as likely: in the whole
    model every edge is live. Statistic: the share of them that hurt less. A rejection speaks for the circuit.

    Control: beside a planted circuit nothing matters; beside a random one lies the mechanism, which some R hit. As R never meets
    C, p is not exact for a random C that breaks the mechanism itself. The published code draws R from all edges by default,
    where a small model has few sets that miss its circuit.
    """
    graph = subject.circuits.graph
    rest = subject.without(subject.edges)
    size = min(int(subject.edges.sum()), int(rest.sum()))
    random = random_circuits(graph, size, draws=subject.draws, seed=subject.seed, within=rest)
    own, *others = subject.distances(
        [subject.without(subject.edges), *(subject.without(one) for one in random)]
    )
    as_bad = int((np.array(others) >= own - subject.same).sum())
    return Outcome(1 - as_bad / subject.draws, (1 + as_bad) / (1 + subject.draws), subject.draws)


TESTS: dict[str, Callable[[_Subject], Outcome]] = {
    test.__name__: test for test in (equivalence, independence, minimality, sufficiency, partial_necessity)
}
REJECTION_SUPPORTS = {"sufficiency": True, "partial_necessity": True, "equivalence": False, "independence": False, "minimality": False}  # fmt: skip
"""Whether rejecting the null speaks for the circuit."""


def circuit_tests(
    circuit: Circuit,
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    alpha: float = 0.05,
    eps: float = 0.1,
    tolerance: float = 0.0,
    draws: int = 99,
    null: Literal["paths", "edges"] | str = "paths",
    seed: int = 0,
    tests: Sequence[str] = tuple(TESTS),
    budget: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Statistical tests of whether a circuit is what the model works by; each test's function states its null and its p.

    Args:
        value: the other value of what is not in the circuit, as in `evaluate`.
        eps: of "equivalence": how far from 1/2 the share of examples where the circuit is higher may be.
        tolerance: of "equivalence": differences up to this share of m(full) - m(empty) are ties. 0: those of rounding only.
        draws: random circuits, or edges, of each test.
        null: of "sufficiency": random circuits are made of whole "paths", or of "edges", which are mostly dead.
        tests: which, in this order.

    Returns:
        Dataset over (test,): `statistic`, `p`, `rejected` (p < alpha), `supports` (the outcome speaks for the circuit: null
        rejected in "sufficiency" and "partial_necessity", kept in the others), `n`; with "minimality" also `edge_p` over
        (edge,), not corrected. `accepted`: every test that could be made supports the circuit, and one could be. A test
        without anything to test has p NaN and supports nothing; a warning names it.

    Raises:
        CircuitError: a circuit of another graph.  UnknownName: a test or a null.  WorkbenchError: alpha, eps, tolerance or draws
            that leave nothing to decide.  MetricError, PromptError, StoreError, EditError: see the messages.

    Source: Shi et al. 2410.13032.

    >>> import workbench as wb
    >>> made = wb.planted("induction", n=16)
    >>> circuit = wb.Circuit.of(wb.Graph.of(made.model), made.edges["zero"])
    >>> found = circuit_tests(circuit, made.model, wb.planted_pairs(made), value=wb.zero(), tests=["sufficiency"])
    >>> float(found["p"][0]), bool(found["accepted"])
    (0.01, True)
    """
    unknown = [test for test in tests if test not in TESTS]
    if unknown:
        raise UnknownName("tests", unknown[0], TESTS)
    if null not in ("paths", "edges"):
        raise UnknownName("null", null, ("paths", "edges"))
    if not tests or not 0 < alpha < 1 or not 0 <= eps < 0.5 or not tolerance >= 0 or draws < 1:
        raise WorkbenchError(
            "circuit_tests: name at least one test, and give 0 < alpha < 1, 0 <= eps < 0.5, tolerance >= 0, draws >= 1; "
            f"not tests={tests}, {alpha=}, {eps=}, {tolerance=}, {draws=}."
        )
    least = 1 / (1 + draws)
    if least >= alpha and any(REJECTION_SUPPORTS[test] for test in tests):
        raise WorkbenchError(
            f"circuit_tests: with draws={draws} no p-value is below {least:.3g}, and alpha={alpha}: draw more."
        )
    if not isinstance(circuit, Circuit):
        raise CircuitError(f"circuit_tests: give a Circuit, not {type(circuit).__name__}.")
    circuit.check_fits(model)
    measure = as_metric(metric)
    circuits = Circuits(model, circuit.graph, pairs, value=value, metric=measure, budget=budget)
    subject = _Subject(circuit, circuits, draws, eps, tolerance, null == "paths", seed, progress)
    found = {test: TESTS[test](subject) for test in tests}

    p = np.array([outcome.p for outcome in found.values()])
    made = np.isfinite(p)
    rejected = made & (p < alpha)
    supports = made & (rejected == np.array([REJECTION_SUPPORTS[test] for test in tests]))
    if not made.all():
        untested = ", ".join(test for test, one in zip(tests, made, strict=True) if not one)
        warnings.warn(f"circuit_tests: nothing to test in {untested}: no edges, or a metric that is the same on every prompt.", stacklevel=2)  # fmt: skip
    data: dict[str, Any] = {
        "statistic": ("test", [outcome.statistic for outcome in found.values()]),
        "p": ("test", p),
        "rejected": ("test", rejected),
        "supports": ("test", supports),
        "n": ("test", [outcome.n for outcome in found.values()]),
        "accepted": ((), bool(made.any() and supports[made].all())),
    }
    coords: dict[str, Any] = {"test": list(tests)}
    if "minimality" in found:
        data["edge_p"] = ("edge", found["minimality"].edges)
        coords["edge"] = [str(edge) for edge in circuit.graph.edges(circuit.edges)]
    attrs = pairs.attrs(model) | {
        "kind": "circuit_tests", "metric": measure.name, "value": value.describe(), "alpha": alpha, "eps": eps, "tolerance": tolerance,
        "draws": draws, "null": null, "seed": seed, "n_edges": circuit.n_edges, "engine": circuits.engine,
    }  # fmt: skip
    return xr.Dataset(data, coords=coords, attrs=clean_attrs(attrs))
