"""Statistical tests of whether a circuit is what the model works by: `circuit_tests`.

It runs the tests of `nulls.py`, which states what each of them assumes, and collects their p-values and
verdicts in one table.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.engine.circuits import Circuits
from workbench.engine.given_values import GivenValue, given_value, name_attrs, writer_sites
from workbench.errors import UnknownName, WorkbenchError, warn
from workbench.evaluation.nulls import REJECTION_SUPPORTS, TESTS, TestedCircuit
from workbench.metrics.metric import GivenMetric, metric_for
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.results import clean_attrs
from workbench.statistics import check_seed


@checked
@model_call()
def circuit_tests(
    circuit: Circuit,
    model: Model,
    pairs: PromptPairs,
    *,
    value: GivenValue | None = None,
    metric: GivenMetric | None = None,
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
    """Statistical tests of whether a circuit is the mechanism that the model uses.

    The function of each test (in `nulls`) states its null hypothesis and its p.

    Args:
        value: what every edge outside the circuit carries, as in `evaluate`.
        metric: as in `evaluate`.
        alpha: level of every test.
        eps: of "equivalence": how far from 1/2 the share of examples where the circuit is higher may be.
        tolerance: of "equivalence": differences up to this share of m(full) - m(empty) are ties. 0: those of
            rounding only.
        draws: random circuits, or edges, of each test.
        null: of "sufficiency": random circuits are made of whole "paths", or of "edges", which are mostly
            dead.
        seed: of random circuits, edges and permutations.
        tests: which, in this order.
        budget: bytes of working memory.

    Returns:
        Dataset over (test,): `statistic`, `p`, `rejected` (p < alpha), `supports` (the outcome speaks for the
        circuit: null rejected in "sufficiency" and "partial_necessity", kept in the others), `n`; with
        "minimality" also `edge_p` over (edge,), not corrected. `accepted`: at least one test could be made,
        and all that could support the circuit. A test without anything to test has p NaN and supports
        nothing; a warning names it.

    Raises:
        CircuitError: no circuit, or one of another graph.
        UnknownName: a test or a null that does not exist.
        WorkbenchError: alpha, eps, tolerance or draws that leave nothing to decide.
        MetricError: prompts that the metric cannot measure.
        PromptError: clean and corrupt prompts of different lengths.
        StoreError: a store that lacks the activations of `value`.
        EditError: a value that cannot be written here.

    Source: Shi et al. 2410.13032.

    >>> import workbench as wb
    >>> known = wb.planted("induction", n=16)
    >>> circuit = wb.Circuit.of(wb.Graph.of(known.model), known.edges["zero"])
    >>> pairs = wb.planted_pairs(known)
    >>> tests = circuit_tests(circuit, known.model, pairs, value="zero", tests=["sufficiency"])
    >>> float(tests["p"][0]), bool(tests["accepted"])
    (0.01, True)
    """
    unknown = [test for test in tests if test not in TESTS]
    if unknown:
        raise UnknownName("tests", unknown[0], TESTS)
    if null not in ("paths", "edges"):
        raise UnknownName("null", null, ("paths", "edges"))
    check_seed(seed)
    if not len(tests) or not 0 < alpha < 1 or not 0 <= eps < 0.5 or not tolerance >= 0 or draws < 1:
        raise WorkbenchError(
            "circuit_tests: name at least one test, and give 0 < alpha < 1, 0 <= eps < 0.5, tolerance >= 0, "
            f"draws >= 1; not tests={tests}, {alpha=}, {eps=}, {tolerance=}, {draws=}."
        )
    # No p-value of a permutation test is smaller, so with few draws nothing could ever be rejected.
    least = 1 / (1 + draws)
    if least >= alpha and any(REJECTION_SUPPORTS[test] for test in tests):
        raise WorkbenchError(
            f"circuit_tests: with draws={draws} no p-value is below {least:.3g}, and "
            f"alpha={alpha}: draw more."
        )
    circuit.check_fits(model)
    measure = metric_for(metric, pairs)
    patched = given_value(value, model, pairs, sites=writer_sites(circuit.graph), budget=budget)
    circuits = Circuits(model, circuit.graph, pairs, value=patched, metric=measure, budget=budget)
    tested = TestedCircuit(circuit, circuits, draws, eps, tolerance, null == "paths", seed, progress)
    outcomes = {test: TESTS[test](tested) for test in tests}

    p = np.array([outcome.p for outcome in outcomes.values()])
    decided = np.isfinite(p)
    rejected = decided & (p < alpha)
    # In three tests the null is that the circuit is right: there, keeping it is what supports the circuit.
    supports = decided & (rejected == np.array([REJECTION_SUPPORTS[test] for test in tests]))
    if not decided.all():
        untested = ", ".join(test for test, known in zip(tests, decided, strict=True) if not known)
        warn(
            f"circuit_tests: nothing to test in {untested}: no edges, or a metric that is the same on every prompt."
        )
    data: dict[str, Any] = {
        "statistic": ("test", [outcome.statistic for outcome in outcomes.values()]),
        "p": ("test", p),
        "rejected": ("test", rejected),
        "supports": ("test", supports),
        "n": ("test", [outcome.n for outcome in outcomes.values()]),
        "accepted": ((), bool(decided.any() and supports[decided].all())),
    }
    coords: dict[str, Any] = {"test": list(tests)}
    if "minimality" in outcomes:
        data["edge_p"] = ("edge", outcomes["minimality"].edges)
        coords["edge"] = [str(edge) for edge in circuit.graph.edges(circuit.edges)]
    attrs = pairs.attrs(model) | {
        "kind": "circuit_tests", "metric": measure.name, "value": patched.describe(), "alpha": alpha,
        "eps": eps, "tolerance": tolerance, "draws": draws, "null": null, "seed": seed,
        "n_edges": circuit.n_edges, "engine": circuits.engine, **circuits.answer_attrs, **name_attrs(value),
    }  # fmt: skip
    return xr.Dataset(data, coords=coords, attrs=clean_attrs(attrs))
