"""The five tests of a circuit of Shi et al. 2410.13032.

For each: its null hypothesis, its p-value, and as a control what it says of circuits known to be right or
wrong.

s_M, s_C, s_-C: the metric of the model, of the circuit, and of what is left without it, each per example. The
distance of two runs is d(a, b) = mean over examples of |s_a - s_b|. The tests differ in what rejecting their
null says. The null of `equivalence`, `independence` and `minimality` is that the circuit is right, and few
examples or draws cannot refute it; that of `sufficiency` and `partial_necessity` is that it is not.

Read `TestedCircuit`, then `sufficiency`, the simplest. `hypothesis_tests.py` runs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binom

from workbench.circuit.circuit import Circuit
from workbench.circuit.random import add_path, random_circuits
from workbench.engine.circuits import Circuits
from workbench.statistics import bonferroni, hsic, hsic_p

QUANTILE = 0.9
"""Of `minimality`: an edge must matter more than this share of random ones (q* of the published code)."""
PERMUTATIONS = 999
"""How many permutations the p-value of `independence` is made of."""


@dataclass(frozen=True)
class HypothesisOutcome:
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
class TestedCircuit:
    """A circuit under test, its runs, and the settings of `circuit_tests`."""

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
        """bool [(pos,) writer, reader] of the circuit."""
        return self.circuit.edges

    @property
    def model(self) -> Float[np.ndarray, "example"]:
        """s_M: the metric of the clean run."""
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
        """d(edge set, model) of each edge set."""
        return np.abs(self.measured(masks) - self.model).mean(-1)


def equivalence(tested: TestedCircuit) -> HypothesisOutcome:
    """Null: |P(s_C > s_M) - 1/2| < eps, on a random example: neither is better more often.

    Statistic: k/n, the share of examples on which the circuit is higher, ties counting half.
    p = P(|K/n - 1/2| >= |k/n - 1/2|) for K ~ Binomial(n, 1/2 + eps), the null that is hardest to reject. A
    rejection speaks against the circuit. Ties: differences of rounding, or up to `tolerance` of |mean s_M -
    mean s_empty|. The published code compares the mean of s_M - s_C with 1/2 in place of k/n; this is the
    paper's.

    A circuit that errs to both sides passes, however much it errs: read it with `sufficiency`.

    Control: a random circuit is lower everywhere (rejected); a planted one ties, or with noise is off to both
    sides. Where noise shifts every example to one side by little (norms without what was ablated), only a
    tolerance accepts it.
    """
    empty, own = tested.measured([np.zeros_like(tested.edges), tested.edges])
    difference = own - tested.model
    # Two runs of the same circuit differ by rounding, which must count as a tie and not as half a win.
    tie = max(tested.same, tested.tolerance * abs(tested.model.mean() - empty.mean()))
    n = len(difference)
    rate = float((difference > tie).mean() + (np.abs(difference) <= tie).mean() / 2)
    k = np.arange(n + 1)
    # 1e-12: rounding must not exclude the observed share from its own tail.
    far = np.abs(k / n - 0.5) >= abs(rate - 0.5) - 1e-12
    return HypothesisOutcome(rate, min(1.0, float(binom.pmf(k, n, 0.5 + tested.eps)[far].sum())), n)


def independence(tested: TestedCircuit) -> HypothesisOutcome:
    """Null: s_-C and s_M are independent over examples: what is left does not know how well the model does.

    Statistic: HSIC. p: permutations of the examples. A rejection speaks against the circuit. A constant s_-C
    is independent of everything; where s_M is constant there is nothing to test (p is NaN). The patched value
    must not tell the answer: with corrupt values what is left answers the corrupt prompt, and depends on the
    clean one as far as the two prompts do.

    Control: prompts on which the model is sometimes wrong (answers exchanged on half of them), zero ablation:
    what a random circuit leaves holds the mechanism (rejected), what a planted one leaves is constant. A
    random circuit that happens to break the mechanism passes.
    """
    left = tested.measured([tested.without(tested.edges)])[0]
    # Rounding errors of two runs of one model need not be independent.
    rounded = [np.round(metric / (10 * tested.same)) for metric in (tested.model, left)]
    n = len(left)
    if np.ptp(rounded[0]) <= 1 or n < 3:
        return HypothesisOutcome(float("nan"), float("nan"), n)
    # What is left is constant: independent of everything, without a test.
    if np.ptp(rounded[1]) <= 1:
        return HypothesisOutcome(0.0, 1.0, n)
    return HypothesisOutcome(hsic(*rounded), hsic_p(*rounded, draws=PERMUTATIONS, seed=tested.seed), n)


def minimality(tested: TestedCircuit) -> HypothesisOutcome:
    """Null, of every edge e of C: with probability >= .9, d(C, C - e) > d(C+, C+ - r).

    In words: no edge is like a needless one.

    C+ is the circuit with one more random path, r a random edge of that path, drawn `draws` times. p_e = P(K
    <= k) for K ~ Binomial(draws, .9), k the draws that e exceeds; p = min p_e times the edges (Bonferroni).
    Statistic: the least share of draws that an edge exceeds. A rejection (some edge matters no more than a
    random one) speaks against the circuit. An edge whose loss another of its edges covers counts as needless.
    Without edges, p is NaN.

    Control: a circuit of random paths has edges that do nothing (rejected); those of planted ones without
    redundancy all do more than edges beside the circuit.
    """
    edges = np.argwhere(tested.edges)
    rng = np.random.default_rng(tested.seed)
    inflated, reduced = [], []
    # A drawn path may lie in the circuit already and add nothing: up to twenty tries for each draw.
    for _ in range(20 * tested.draws if len(edges) else 0):
        more = add_path(tested.circuits.graph, tested.edges, rng)
        added = np.argwhere(more & ~tested.edges)
        if len(added):
            inflated.append(more)
            reduced.append(more.copy())
            reduced[-1][tuple(rng.choice(added))] = False
        if len(inflated) == tested.draws:
            break
    n = len(inflated)
    if not n:
        return HypothesisOutcome(float("nan"), float("nan"), 0, np.full(len(edges), np.nan))
    without = np.repeat(tested.edges[None], len(edges), axis=0)
    without[(np.arange(len(edges)), *edges.T)] = False
    # Together, so that all share the base runs: the circuit, less an edge each, more a path each, and those
    # paths less an edge.
    measured = tested.measured(np.concatenate([tested.edges[None], without, inflated, reduced]))
    whole, one_less, path_more, path_cut = np.split(measured, np.cumsum([1, len(edges), n]))
    own = np.abs(one_less - whole).mean(-1)
    random = np.abs(path_more - path_cut).mean(-1)
    exceeded = (own[:, None] > random + tested.same).sum(1)
    # P(K <= exceeded): small where an edge exceeds far fewer random ones than the null allows.
    p = binom.cdf(exceeded, n, QUANTILE)
    return HypothesisOutcome(float(exceeded.min() / n), float(bonferroni(p).min()), n, p)


def sufficiency(tested: TestedCircuit) -> HypothesisOutcome:
    """Null: C is no more faithful than a random circuit of its size.

    p = (1 + #{d(R, M) <= d(C, M)}) / (1 + draws) over random circuits R. Statistic: the share of them that
    are less faithful. A rejection speaks for the circuit. (The published code tests that share against .9
    with a binomial test.)

    Control: a planted circuit is exceeded by none; a random one is a draw like the others, so that it passes
    with probability alpha at most.
    """
    graph = tested.circuits.graph
    random = random_circuits(
        graph, int(tested.edges.sum()), draws=tested.draws, seed=tested.seed, paths=tested.paths
    )
    own, *others = tested.distances([tested.edges, *random])
    # Ties count against the circuit. It is one of the draws itself, so p is at least 1 / (1 + draws).
    as_good = int((np.array(others) <= own + tested.same).sum())
    return HypothesisOutcome(1 - as_good / tested.draws, (1 + as_good) / (1 + tested.draws), tested.draws)


def partial_necessity(tested: TestedCircuit) -> HypothesisOutcome:
    """Null: knocking C out hurts no more than knocking out as many random edges of the rest.

    p = (1 + #{d(M - R, M) >= d(M - C, M)}) / (1 + draws) over random sets R of edges outside C, all as
    likely: in the whole model every edge is live. Statistic: the share of them that hurt less. A rejection
    speaks for the circuit.

    Control: beside a planted circuit nothing matters; beside a random one lies the mechanism, which some R
    hit. As R never meets C, p is not exact for a random C that breaks the mechanism itself. The published
    code draws R from all edges by default, where a small model has few sets that miss its circuit.
    """
    graph = tested.circuits.graph
    rest = tested.without(tested.edges)
    # A circuit of more than half of the edges leaves fewer than it has.
    size = min(int(tested.edges.sum()), int(rest.sum()))
    random = random_circuits(graph, size, draws=tested.draws, seed=tested.seed, within=rest)
    own, *others = tested.distances([tested.without(tested.edges), *(tested.without(one) for one in random)])
    as_bad = int((np.array(others) >= own - tested.same).sum())
    return HypothesisOutcome(1 - as_bad / tested.draws, (1 + as_bad) / (1 + tested.draws), tested.draws)


TESTS: dict[str, Callable[[TestedCircuit], HypothesisOutcome]] = {
    test.__name__: test for test in (equivalence, independence, minimality, sufficiency, partial_necessity)
}
REJECTION_SUPPORTS = {
    "sufficiency": True,
    "partial_necessity": True,
    "equivalence": False,
    "independence": False,
    "minimality": False,
}
"""Whether rejecting the null speaks for the circuit."""
