"""`against_counterfactuals`: which counterfactuals a study's circuit holds against, and what all of them need.

A circuit that was found against one counterfactual is the circuit of that difference. So it is held to the
criteria of a believable circuit against every counterfactual of the task, beside the smallest circuit that
keeps them all. A circuit that the criteria chose is held to them beside its core, and the `frontier` has
circuits of other sizes. Read `against_counterfactuals`.
"""

from collections.abc import Mapping

import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.discovery.criteria import Criteria
from workbench.discovery.frontier import failing, with_verdicts
from workbench.discovery.search import find_circuit
from workbench.errors import NoCircuit
from workbench.evaluation.evaluate import evaluate
from workbench.studies.by_rule import Core, by_rule, find_and_select, scores_of
from workbench.studies.circuit_experiment import CircuitExperiment
from workbench.studies.evidence import Counterfactual
from workbench.studies.prediction import Estimate

THIS, ALL, CORE = "this circuit", "of all counterfactuals", "its core"
SHARES = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15)
"""Sizes of the frontier, as shares of the graph's edges."""


def against_counterfactuals(
    task: str, experiment: CircuitExperiment, *, method: str
) -> tuple[Counterfactual, ...]:
    """The study's circuit, and the smallest that keeps the criteria, against each counterfactual.

    Everything is measured on the held-out pairs.

    Args:
        method: of the scores of the second circuit, as in `score_edges`.
    """
    circuits = {THIS: experiment.circuit}
    believable = _believable(task, experiment, method)
    if believable is not None:
        circuits[ALL] = believable
    return _against_each(circuits, experiment)


def with_core(experiment: CircuitExperiment, core: Core) -> tuple[Counterfactual, ...]:
    """A circuit that criteria chose, and its core, against each counterfactual, on the held-out pairs."""
    return _against_each({THIS: experiment.circuit, CORE: core.circuit}, experiment)


def frontier(experiment: CircuitExperiment) -> tuple[Counterfactual, ...]:
    """Circuits of several sizes of the same ranking against each counterfactual, on the held-out pairs."""
    circuits = {}
    for share in SHARES:
        n_edges = int(share * experiment.circuit.graph.n_edges)
        circuits[f"{share:.0%}"] = find_circuit(experiment.example_scores, n_edges=n_edges)
    return _against_each(circuits, experiment)


def _against_each(
    circuits: Mapping[str, Circuit], experiment: CircuitExperiment
) -> tuple[Counterfactual, ...]:
    """A row for each circuit and counterfactual."""
    held = experiment.heldout
    measured = evaluate(
        list(circuits.values()), held.model, held.pairs, value=held.counterfactuals, metric=held.metric,
        checks=(), progress=False,
    )  # fmt: skip
    measured = with_verdicts(measured, Criteria()).assign_coords(circuit=list(circuits))
    rows = []
    for name, circuit in circuits.items():
        for counterfactual in held.counterfactuals:
            cell = measured.sel(circuit=name, ablation=counterfactual)
            rows.append(_row(name, circuit, counterfactual, cell))
    return tuple(rows)


def _believable(task: str, experiment: CircuitExperiment, method: str) -> Circuit | None:
    """The smallest circuit that keeps the criteria against every counterfactual; None where there is none.

    Its prompts are as many as the study's, to make scores and again to choose the size.
    """
    find, select = find_and_select(task, experiment.train)
    try:
        return by_rule(scores_of(find, method), select, Criteria())
    except NoCircuit:
        return None


def _row(name: str, circuit: Circuit, counterfactual: str, cell: xr.Dataset) -> Counterfactual:
    def estimate(measure: str) -> Estimate:
        """A measure with its interval."""
        prefix = "" if measure == "faithfulness" else f"{measure}_"
        low, high = float(cell[f"{prefix}low"]), float(cell[f"{prefix}high"])
        return Estimate(measure, float(cell[measure]), low, high)

    return Counterfactual(
        name, circuit.n_edges, counterfactual, estimate("faithfulness"), estimate("error"), estimate("r"),
        estimate("kl_recovered"), failing(cell),
    )  # fmt: skip
