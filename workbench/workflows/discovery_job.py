"""`DiscoveryJob`: the measurements of `discover`, one after the other.

Read `run`. Each step uses one of the three sets of prompts, and says which. Nothing here is drawn or written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr

from workbench import results
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.believable import CriteriaSearch, by_criteria
from workbench.discovery.criteria import LETTERS, Criteria
from workbench.discovery.frontier import best_trade_off, smallest_by_counterfactual, with_verdicts
from workbench.discovery.methods import MEANS_OVER_EXAMPLES, SEARCHES, find_by
from workbench.discovery.ranking import best_first
from workbench.discovery.refine import PROMPTS, is_large, pruned
from workbench.discovery.score_arrays import joint_scores, matrix_of, most_alike, with_graph
from workbench.discovery.scores import score_edges
from workbench.discovery.search import chosen_on, find_circuit
from workbench.engine.circuits import Circuits
from workbench.engine.counterfactuals import pairs_for
from workbench.engine.values import Value, from_store, zero
from workbench.errors import MetricError, UnsuitableTask
from workbench.evaluation.agreement import agreement, exchanged
from workbench.evaluation.controls import controls
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.rule_stability import rule_stability
from workbench.evaluation.specification import specification_curve
from workbench.experiment import PairsInModel
from workbench.interventions.effects import effects
from workbench.lenses.logit_lens import logit_lens
from workbench.models.model import Model
from workbench.sites import grid
from workbench.statistics import gap_of_means, summary
from workbench.tasks.measure import Score, clean_run, measure
from workbench.tasks.registry import load_task
from workbench.tasks.task import TASKS
from workbench.workflows.discovery_run import DiscoveryRun
from workbench.workflows.prompt_sets import PromptSets

STEPS = (
    "competence", "scores", "size", "differences", "controls", "stability", "agreement", "test", "heads",
    "patching", "report",
)  # fmt: skip
SMALL = 5_000
"""Edges of a graph up to which everything is measured on all prompts: there a run costs next to nothing."""
FEW = 16
"""Prompts for what runs a larger model once for every head; half of them for every control."""
CONTROL_DRAWS, DRAWS = 50, 10
"""Circuits of the same shape through other heads; resamples of the prompts that make the scores."""
Step = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class DiscoveryJob:
    """The settings of one `discover`, as in its arguments."""

    sets: PromptSets
    criteria: Criteria
    value: str
    method: str
    n_edges: int | None
    refine: str | None
    quick: bool = False
    multiverse: bool = False
    seed: int = 0
    progress: bool = True

    @property
    def model(self) -> Model:
        """The model that all sets are run in."""
        return self.sets.find.model

    @cached_property
    def graph(self) -> Graph:
        """The edges of the model. Which are dead ends depends on answers and values: see `graph_of_runs`."""
        return Graph.of(self.model)

    @property
    def is_small(self) -> bool:
        """Whether everything is measured on all prompts."""
        return self.graph.n_edges <= SMALL

    @cached_property
    def few(self) -> PairsInModel:
        """The test prompts, or some of them, for what runs the model once for every head."""
        n_prompts = FEW // 4 if self.quick else FEW
        return self.sets.test if self.is_small else self.sets.test.select(slice(n_prompts))

    @cached_property
    def fewer(self) -> PairsInModel:
        """The test prompts, or some of them, for what runs many circuits."""
        return self.few.select(slice(2 * FEW if self.is_small else FEW // 2))

    @cached_property
    def for_stability(self) -> PairsInModel:
        """The prompts that choose a size, or some of them, for every resample."""
        return self.sets.select.select(slice(2 * FEW if self.is_small else FEW))

    @property
    def n_agreement(self) -> int:
        """Edges inside, and as many outside, whose exact effect is measured."""
        return 40 if self.is_small else 20

    def run(self, folder: Path, step: Step) -> DiscoveryRun:
        """Everything that is measured."""
        step("competence")
        competence = self._competence()
        step("scores")
        scores, own_circuit = self.scores()
        search, circuits, recommended = self._circuits(scores, own_circuit, step)
        circuit = circuits["circuit"]
        trust = self._trust(scores, circuit, search, step)
        if trust.core is not None:
            circuits["core"] = trust.core
        find = self.sets.find
        in_sample = self.measured({"circuit": circuit}, find, find.values(self.value))
        # Only the test prompts are wanted from here on; of a large model the others hold a gigabyte.
        if not self.is_small:
            for used in (find, self.sets.select, self.for_stability, self.fewer):
                used.forget()
        step("test")
        evaluation = self._evaluation(circuits, self.sets.test)
        evaluation.attrs["near_copies"] = self.sets.near_copies
        right = measure(self.model, self.sets.test.pairs, progress=False)[0].right_above_wrong.mean
        if np.isfinite(right):
            evaluation.attrs["right_on_test"] = float(right)
        if scores.sizes.get("ablation", 1) > 1:
            first, second, cosine = most_alike(scores)
            evaluation.attrs |= {"most_alike": f"{first} and {second}", "likeness": cosine}
        step("heads")
        test = self.few
        heads = effects(
            self.model,
            test.pairs,
            sites=grid("z", self.model),
            value=zero(),
            metric=test.metric,
            progress=False,
        )
        step("patching")
        joint = joint_scores(scores, by="signed")
        return DiscoveryRun(
            circuit=circuit,
            recommended=recommended,
            criteria=self.criteria,
            competence=competence,
            scores=joint,
            frontier=None if search is None else self._frontier(search, circuit),
            evaluation=evaluation,
            in_sample=in_sample,
            circuits=circuits,
            heads=heads,
            patching=self._patching(),
            folder=folder,
            competent=self._competent(circuits),
            checks=self._checks(circuit),
            controls=trust.controls,
            stability=trust.stability,
            agreement=trust.agreement,
            multiverse=self._multiverse(circuit),
            intervals=self._intervals(scores),
            chosen_by=self._chosen_by(search),
            left_out=trust.left_out,
        )

    def _frontier(self, search: CriteriaSearch, circuit: Circuit) -> xr.Dataset:
        """The frontier, with what it was measured on."""
        select = self.sets.select
        facts = select.pairs.attrs(self.model) | {
            "metric": select.metric.name, "unit": select.metric.unit, "method": self.method,
            "chosen": circuit.n_edges,
        }  # fmt: skip
        return search.frontier.assign_attrs(results.clean_attrs(facts))

    def _chosen_by(self, search: CriteriaSearch | None) -> Literal["criteria", "size", "method"]:
        """What decided the size of the circuit."""
        if search is None:
            return "method"
        return "criteria" if self.n_edges is None else "size"

    def _competence(self) -> Score:
        """How well the model does the task, on the prompts to find with.

        Raises `MetricError` where the metric does not move: there is nothing to explain then.
        """
        find = self.sets.find
        # Whether the metric moves at all is seen on a few prompts.
        runs = next(iter(find.select(slice(FEW)).circuit_runs(self.value).values()))
        if not np.isfinite(gap_of_means(runs.full, runs.empty)):
            raise MetricError(
                f"On the prompts to find with {find.metric.name} is the same in the clean run and with every "
                "edge replaced, so there is no effect to explain. Check the prompts, the answers and the "
                "metric."
            )
        return measure(self.model, find.pairs, progress=False)[0]

    def scores(self) -> tuple[xr.DataArray, Circuit | None]:
        """Scores of every edge; and the circuit, of methods that decide it themselves."""
        find = self.sets.find
        if self.method in SEARCHES:
            values = find.values(self.value)
            name, value = next(iter(values.items()))
            pairs = pairs_for(find.pairs, name)
            found = find_by(
                self.method, self.model, pairs, value=value, metric=find.metric, n_edges=self.n_edges,
                seed=self.seed, progress=self.progress,
            )  # fmt: skip
            return found.scores, found.circuit
        by_example = self.method in MEANS_OVER_EXAMPLES
        scores = score_edges(
            self.model, find.pairs, value=find.values(self.value), metric=find.metric, method=self.method,
            seed=self.seed, keep=("example",) if by_example else (), progress=self.progress,
        )  # fmt: skip
        return scores, None

    def _circuits(
        self, scores: xr.DataArray, own_circuit: Circuit | None, step: Step
    ) -> tuple[CriteriaSearch | None, dict[str, Circuit], bool]:
        """The frontier, the circuits, and whether the criteria hold on the prompts that chose the first."""
        step("size")
        if own_circuit is not None:
            step("differences")
            return None, {"circuit": own_circuit}, False
        runs = self.sets.select.circuit_runs(self.value)
        search, circuit, recommended = self.recommended(scores, runs)
        step("differences")
        select = self.sets.select.pairs
        if self.n_edges is None:  # a size that was asked for was chosen on no prompts
            circuit = chosen_on(select, circuit)
        others = self._others(scores, search, runs).items()
        return (
            search,
            {"circuit": circuit} | {name: chosen_on(select, one) for name, one in others},
            recommended,
        )

    def recommended(
        self, scores: xr.DataArray, runs: Mapping[str, Circuits]
    ) -> tuple[CriteriaSearch, Circuit, bool]:
        """The frontier on the prompts of the runs, the circuit, and whether the criteria hold there."""
        search = by_criteria(
            self.order(scores), runs, self.criteria, refine=None if self.n_edges else self.refine,
            gradients=self._gradients, seed=self.seed, progress=self.progress,
        )  # fmt: skip
        if self.n_edges is not None:
            return search, find_circuit(scores, n_edges=self.n_edges), False
        if search.edges is not None:
            return search, self._of(scores, search.edges), True
        size = best_trade_off(search.frontier)
        return search, find_circuit(scores, n_edges=size), False

    @cached_property
    def _gradients(self) -> Mapping[str, Circuits] | None:
        """Runs on find prompts, whose gradients order edges for refining; a large graph needs none."""
        if is_large(self.graph):
            return None
        return self.sets.find.select(slice(PROMPTS)).circuit_runs(self.value)

    def order(self, scores: xr.DataArray) -> np.ndarray:
        """Flat indices of edges, the largest joint scores first."""
        return best_first(self.graph, np.abs(matrix_of(joint_scores(scores), self.graph)))

    def _of(self, scores: xr.DataArray, edges: np.ndarray) -> Circuit:
        """The circuit of these edges, with the provenance of the scores."""
        found = find_circuit(scores, n_edges=self.graph.n_edges)
        return Circuit.of(
            found.graph, edges, scores=found.scores, attrs=found.attrs, prompt_ids=found.prompt_ids
        )

    def _others(
        self, scores: xr.DataArray, search: CriteriaSearch, runs: Mapping[str, Circuits]
    ) -> dict[str, Circuit]:
        """The circuit before refining, and that of each single difference."""
        circuits: dict[str, Circuit] = {}
        if search.size is not None:
            circuits["before refining"] = find_circuit(scores, n_edges=search.size)
        if len(runs) < 2:
            return circuits
        for name, size in smallest_by_counterfactual(search.frontier).items():
            if self.is_small:
                edges = self._of_difference(name, scores, search, runs[name])
                if edges is not None:
                    circuits[f"difference {name}"] = self._of(scores, edges)
            # Of the ranking of all counterfactuals, as it is: one of its own would cost as much again.
            elif size is not None:
                circuits[f"difference {name}"] = find_circuit(scores, n_edges=size)
        return circuits

    def _of_difference(
        self, name: str, scores: xr.DataArray, search: CriteriaSearch, runs: Circuits
    ) -> np.ndarray | None:
        """The edges that keep the criteria against one counterfactual; None where there are none.

        Refining looks for them in the circuit of all counterfactuals, where there is one.
        """
        assert self._gradients is not None  # a graph this small is refined by gradients
        gradients, against = {name: self._gradients[name]}, {name: runs}
        if self.refine and search.edges is not None:
            return pruned(
                search.edges, gradients=gradients, runs=against, criteria=self.criteria, seed=self.seed
            )
        order = self.order(scores.sel(ablation=[name]))
        return by_criteria(
            order, against, self.criteria, refine=self.refine, gradients=gradients, seed=self.seed
        ).edges

    def _evaluation(self, circuits: Mapping[str, Circuit], pairs: PairsInModel) -> xr.Dataset:
        """The circuits on some pairs against what they were chosen for; the first with zero and mean values too."""
        values = pairs.values(self.value)
        measured = self.measured(circuits, pairs, values)
        others = {name: pairs.value(name) for name in ("zero", "mean") if name not in values}
        first = self.measured({"circuit": circuits["circuit"]}, pairs, others)
        # NaN is what the other circuits were not tested with. Truth values have no NaN: they are made anew.
        verdicts = [f"holds_{letter}" for letter in LETTERS]
        further = first.drop_vars(verdicts).reindex(circuit=list(circuits))
        joined = xr.concat(
            [measured.drop_vars(verdicts), further], "ablation", data_vars="minimal", coords="minimal",
            compat="override",
        )  # fmt: skip
        return with_verdicts(joined, self.criteria).assign_attrs(measured.attrs)

    def measured(
        self, circuits: Mapping[str, Circuit], pairs: PairsInModel, values: Mapping[str, Value]
    ) -> xr.Dataset:
        """Circuits on some pairs with some values, and which criteria hold, over (ablation, circuit)."""
        measured = evaluate(
            list(circuits.values()), self.model, pairs.pairs, value=values, metric=pairs.metric, checks=(),
            seed=self.seed, progress=False,
        )  # fmt: skip
        measured = measured.assign_coords(circuit=list(circuits))
        return with_verdicts(measured, self.criteria)

    def _competent(self, circuits: Mapping[str, Circuit]) -> xr.Dataset | None:
        """The circuit on the test prompts that the model gets right; None where that is all or none."""
        test = self.sets.test
        right = (clean_run(self.model, test.pairs).values > 0).nonzero().flatten().tolist()
        if len(right) in (0, 1, len(test)):
            return None
        some = test.select(right)
        return self.measured({"circuit": circuits["circuit"]}, some, some.values(self.value))

    def _checks(self, circuit: Circuit) -> xr.Dataset | None:
        """Complement, random paths, completeness and minimality against the first counterfactual."""
        # Completeness and minimality run hundreds of circuits for every component.
        if not self.is_small or self.quick or not circuit.n_edges:
            return None
        test = self.sets.test.select(slice(FEW))
        name, value = next(iter(test.values(self.value).items()))
        pairs = pairs_for(test.pairs, name)
        return evaluate(
            circuit, self.model, pairs, value=value, metric=test.metric, seed=self.seed, progress=False
        ).isel(circuit=0)

    def _trust(
        self, scores: xr.DataArray, circuit: Circuit, search: CriteriaSearch | None, step: Step
    ) -> "_Trust":
        """What speaks for and against the circuit: controls, resamples of the rule, exact effects of edges."""
        left_out: dict[str, str] = {}
        step("controls")
        measured = stability = core = None
        if self.quick:
            if self.value == "corrupt":
                left_out["further counterfactuals"] = "quick runs test against one alone"
            left_out["controls"] = "quick runs draw no other circuits"
        else:
            measured = controls(
                circuit, self.fewer.circuit_runs(self.value), criteria=self.criteria, draws=CONTROL_DRAWS,
                other=self._other_task(circuit), scores=joint_scores(scores), seed=self.seed,
            )  # fmt: skip
        step("stability")
        if self.quick:
            left_out["stability"] = "quick runs draw no resamples"
        elif search is None or "example" not in scores.dims:
            left_out["stability"] = f"{self.method} gives no scores of single prompts to draw from"
        else:
            stability = rule_stability(
                scores, self.for_stability.circuit_runs(self.value), self.criteria, draws=DRAWS,
                near=search.size or circuit.n_requested, seed=self.seed,
            )  # fmt: skip
            core = chosen_on(self.for_stability.pairs, self._of(scores, stability["core"].values))
        step("agreement")
        agreed = None
        if self.quick:
            left_out["agreement"] = "quick runs measure no single edges"
        elif self.sets.test.metric.needs_reference:
            name = self.sets.test.metric.name
            left_out["agreement"] = (
                f"{name} compares with the clean run, and one of the two directions edits the corrupt one"
            )
        else:
            agreed = self._agreement(scores, circuit)
        return _Trust(measured, stability, core, agreed, left_out)

    def _multiverse(self, circuit: Circuit) -> xr.Dataset | None:
        """The edges that are found whatever is chosen on the way; None unless it is asked for."""
        if not self.multiverse:
            return None
        find = self.sets.find
        return specification_curve(
            self.model, find.pairs, n_edges=max(1, circuit.n_edges), seed=self.seed, progress=False
        )

    def _agreement(self, scores: xr.DataArray, circuit: Circuit) -> xr.Dataset:
        """Scores beside exact effects of single edges, in both directions."""
        test = self.fewer
        denoising = {}
        for name, pairs in test.pairs.counterfactuals.items():
            turned = PairsInModel.of(self.model, exchanged(pairs), metric=test.metric)
            denoising[name] = next(iter(turned.circuit_runs().values()))
        return agreement(
            circuit, scores, test.circuit_runs(), denoising, n_inside=self.n_agreement,
            n_outside=self.n_agreement, seed=self.seed,
        )  # fmt: skip

    def _other_task(self, circuit: Circuit) -> Circuit | None:
        """The circuit of another task of as many edges; None where no other task suits the vocabulary."""
        own = self.sets.find.pairs.provenance.get("task")
        for task in TASKS:
            if task == own:
                continue
            try:
                pairs = load_task(task, self.model, n=FEW, seed=self.seed, variant=TASKS[task].variants[0])
            except UnsuitableTask:
                continue
            of_task = PairsInModel.of(self.model, pairs)
            scores = score_edges(
                self.model, pairs, value=of_task.counterfactuals, metric=of_task.metric, method="eap-ig-inputs",
                progress=False,
            )  # fmt: skip
            # Dead ends are those of the prompts that it will be run on: its own may have answers of one token.
            scores = with_graph(scores, circuit.graph)
            return find_circuit(scores, n_edges=max(1, circuit.n_edges))
        return None

    def _patching(self) -> xr.DataArray | None:
        """The clean residual stream patched into the corrupt run, at each position that all prompts name."""
        test = self.few
        # A position that some prompt lacks would be NaN for it and bias the mean.
        names = [name for name, index in test.pairs.clean.positions.items() if bool((index >= 0).all())]
        if not names:
            return None
        stores = PairsInModel.of(self.model, test.pairs, metric=test.metric, sites=["resid_pre"])
        return effects(
            self.model, test.pairs, sites=grid("resid_pre", self.model, pos=names),
            value=from_store(stores.clean), base="corrupt", metric=test.metric, progress=False,
        )  # fmt: skip

    def _intervals(self, scores: xr.DataArray) -> xr.Dataset | None:
        """Intervals of the scores over prompts, where they are of single prompts and not too many."""
        if "example" not in scores.dims or not self.is_small:
            return None
        first = scores.isel(ablation=0, drop=True)
        return summary(first, draws=200)

    def lens(self) -> xr.DataArray | None:
        """The logit lens of a few test prompts; None where answers are several tokens."""
        pairs = self.few.pairs
        if pairs.answers.shape[2] > 1 or pairs.wrong.shape[2] > 1:
            return None
        stores = PairsInModel.of(self.model, pairs, metric=self.few.metric, sites=["resid_pre", "resid_post"])
        return logit_lens(stores.clean, self.model, targets=pairs.answers, minus=pairs.wrong)


@dataclass(frozen=True, eq=False)
class _Trust:
    """What speaks for and against a circuit, as in `DiscoveryRun`."""

    controls: xr.Dataset | None
    stability: xr.Dataset | None
    core: Circuit | None
    agreement: xr.Dataset | None
    left_out: Mapping[str, str]
