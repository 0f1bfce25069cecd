"""`Study`: what is particular to a behaviour, its account, its roles and the predictions that test it.

`Study.experiment(model)` finds the circuit; `measure.evidence` then measures everything that a study reports.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import xarray as xr

from workbench.discovery.criteria import Criteria
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.errors import PromptError
from workbench.experiment import Experiment, PairsInModel
from workbench.models.model import Model
from workbench.studies.by_rule import by_rule_or_nearest, find_and_select, scores_of
from workbench.studies.circuit_experiment import CircuitExperiment
from workbench.studies.prediction import Prediction, Role


def _no_tests(experiment: CircuitExperiment) -> list[Prediction]:
    return []


def _no_columns(pairs: PairsInModel) -> Mapping[str, xr.DataArray]:
    return {}


@dataclass(frozen=True, eq=False)
class Study:
    """A behaviour, and what is particular to its circuit.

    Attributes:
        task, title: the behaviour, as `load_task` names it and as a heading.
        account: how the circuit works, in words: a hypothesis, which the predictions test.
        roles: names for heads, by rules; the first rule that fits counts.
        tests: makes the predictions, in the order in which they are run.
        traced_role: the role whose queries and keys are traced back to what writes them.
        limits: what else is not explained.
        method: of `score_edges`.
        n: prompts to find the circuit on, and as many held-out ones.
        share: of the behaviour that the circuit has to keep on the prompts of the search.
        reference: a published circuit of the same behaviour (see `reference_circuit`).
        model: whose study it is: the committed files are about this model.
        bos: whether prompts begin with BOS, as in `load_model`.
        criteria: if given, they choose the circuit, against every counterfactual and on prompts that made no
            scores, and not `share`; the study then looks at its strongest components.
        columns: further columns for the rules of the roles, (example, component), from runs of some pairs.
    """

    task: str
    title: str
    account: str
    roles: Sequence[Role]
    tests: Callable[[CircuitExperiment], list[Prediction]] = _no_tests
    traced_role: str = ""
    limits: Sequence[str] = ()
    method: str = "eap-ig-inputs"
    n: int = 48
    share: float = 0.9
    reference: str | None = None
    model: str = "tiny"
    bos: bool | None = None
    criteria: Criteria | None = None
    columns: Callable[[PairsInModel], Mapping[str, xr.DataArray]] = _no_columns

    def experiment(self, model: Model, *, n: int | None = None, seed: int = 0) -> CircuitExperiment:
        """This behaviour's circuit in a model, found on training prompts, to be tested on held-out ones.

        Args:
            n: prompts to find it on, and as many held-out ones; None takes the study's.

        Raises:
            PromptError: a single prompt, which has no interval.
        """
        if n is None:
            n = self.n
        if n == 1:
            raise PromptError("n=1: a study needs at least two prompts, because one has no interval.")
        data = Experiment.of(model, self.task, n=n, seed=seed)
        if self.criteria is not None:
            return self._by_rule(data, self.criteria)
        train, metric, value = data.train.pairs, data.metric, data.train.value("corrupt")
        example_scores = score_edges(
            model,
            train,
            value=value,
            metric=metric,
            method=self.method,
            keep=("example",),
            seed=seed,
            progress=False,
        )
        # The sign of the scores and the direction of the metric are in the attrs, which the search reads.
        scores = example_scores.mean("example", skipna=False, keep_attrs=True)
        # Signed, because these studies ask which edges support the behaviour.
        circuit = find_circuit(
            scores,
            min_faithfulness=self.share,
            by="signed",
            model=model,
            pairs=train,
            value=value,
            metric=metric,
        )
        return CircuitExperiment(
            data.train, data.heldout, circuit, example_scores, tuple(self.roles), self.columns
        )

    def _by_rule(self, data: Experiment, criteria: Criteria) -> CircuitExperiment:
        """The circuit that the criteria choose, or the nearest to it."""
        find, select = find_and_select(self.task, data.train)
        scores = scores_of(find, self.method)
        circuit, passes = by_rule_or_nearest(scores, select, criteria)
        return CircuitExperiment(
            find, data.heldout, circuit, scores, tuple(self.roles), self.columns, passes=passes
        )
