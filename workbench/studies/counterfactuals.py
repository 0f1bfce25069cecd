"""`against_counterfactuals`: which counterfactuals a study's circuit holds against, and what all of them need.

A circuit that was found against one counterfactual is the circuit of that difference. So it is held to the
criteria of a believable circuit against every counterfactual of the task, beside the smallest circuit that
keeps them all. Read `against_counterfactuals`.
"""

import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.discovery.criteria import Criteria
from workbench.discovery.frontier import with_verdicts
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.errors import NoCircuit
from workbench.evaluation.evaluate import evaluate
from workbench.experiment import PairsInModel
from workbench.studies.circuit_experiment import CircuitExperiment
from workbench.studies.evidence import Counterfactual
from workbench.studies.prediction import Estimate
from workbench.tasks.registry import load_task

THIS, ALL = "this circuit", "of all counterfactuals"


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
    train = experiment.train
    pairs = load_task(task, train.model, n=2 * len(train), seed=train.seed, split="train")
    find, select = (
        PairsInModel.of(train.model, part, metric=train.metric)
        for part in pairs.parts((1, 1), seed=train.seed)
    )
    scores = score_edges(
        find.model, find.pairs, value=find.counterfactuals, metric=find.metric, method=method,
        keep=("example",), progress=False,
    )  # fmt: skip
    try:
        return find_circuit(
            scores, criteria=Criteria(), model=select.model, pairs=select.pairs, value=select.counterfactuals,
            metric=select.metric,
        )  # fmt: skip
    except NoCircuit:
        return None


def _row(name: str, circuit: Circuit, counterfactual: str, cell: xr.Dataset) -> Counterfactual:
    def estimate(measure: str) -> Estimate:
        """A measure with its interval."""
        prefix = "" if measure == "faithfulness" else f"{measure}_"
        low, high = float(cell[f"{prefix}low"]), float(cell[f"{prefix}high"])
        return Estimate(measure, float(cell[measure]), low, high)

    failing = [letter for letter in "abcd" if not bool(cell[f"holds_{letter}"])]
    return Counterfactual(
        name, circuit.n_edges, counterfactual, estimate("faithfulness"), estimate("error"), estimate("r"),
        estimate("kl_recovered"), "".join(failing),
    )  # fmt: skip
