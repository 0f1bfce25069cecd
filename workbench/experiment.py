"""`Experiment`: a model on one behaviour, with pairs to find things on and held-out pairs to test them on.

An `Experiment` is two `PairsInModel`, `train` and `heldout`. Each holds what every measurement asks for: the
model, the pairs, the metric, the activations of both runs (captured when they are first read) and values by
name. Nothing is measured in this module; it knows neither interventions nor circuits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from workbench.arguments import checked
from workbench.circuit.graph import Graph
from workbench.engine.capture import capture
from workbench.engine.circuits import Circuits
from workbench.engine.counterfactuals import counterfactual_values, pairs_for, those_of
from workbench.engine.named_values import WITHOUT_FIT, canonical_name, make_value
from workbench.engine.values import Value
from workbench.errors import PromptError, UnknownName
from workbench.metrics.metric import GivenMetric, Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.names import SIDES, ValueName
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Site
from workbench.stores.store import ActivationStore
from workbench.tasks.registry import load_task

WRITERS = ("resid_pre[0]", "z", "mlp_out", "mlp_post")
"""What values of writers are read from: enough for paths and circuits, neurons included."""


@dataclass(frozen=True, eq=False)
class PairsInModel:
    """Prompt pairs in a model, with what is measured on them.

    Attributes:
        base: the run that is edited, "clean" or "corrupt".
        sites: the kinds or sites that the stores hold; None takes those of `capture_pairs`.
        seed: of the value "resample".
        budget: bytes of working memory of a forward pass; None takes the default.
    """

    model: Model
    pairs: PromptPairs
    metric: Metric
    base: Literal["clean", "corrupt"] | str = "clean"
    sites: Sequence[str | Site] | None = None
    seed: int = 0
    budget: int | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        pairs: PromptPairs,
        *,
        metric: GivenMetric | None = None,
        base: Literal["clean", "corrupt"] | str = "clean",
        sites: Sequence[str | Site] | None = None,
        seed: int = 0,
        budget: int | None = None,
    ) -> "PairsInModel":
        """Pairs in a model; the metric is the pairs' own where none is given.

        Raises:
            UnknownName: no such metric or base.
        """
        if base not in SIDES:
            raise UnknownName("base", base, SIDES)
        measure = as_metric(pairs.metric if metric is None else metric)
        return cls(model, pairs, measure, base, sites, seed, budget)

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def clean(self) -> ActivationStore:
        """The activations of the clean run."""
        return self._captured(self.pairs.clean)

    @cached_property
    def corrupt(self) -> ActivationStore:
        """The activations of the corrupt run."""
        return self._captured(self.pairs.corrupt)

    def value(self, name: ValueName | None = None) -> Value:
        """The value of that name (see `engine.named_values`); None means the run that is not edited.

        Activations are captured only where the value is read from them.

        Raises:
            UnknownName: no such value, or one that has to be fitted first.
            EditError: the name is that of the run that is edited.
        """
        canonical_name(name, base=self.base, choices=WITHOUT_FIT)
        return make_value(name, base=self.base, store_of=self._store_of, seed=self.seed)

    @cached_property
    def counterfactuals(self) -> dict[str, Value]:
        """The value of each corruption that the pairs have, by its name."""
        return counterfactual_values(self.model, self.pairs, budget=self.budget)

    def values(self, name: ValueName = "corrupt") -> dict[str, Value]:
        """Values by name, to be measured side by side: "corrupt" is every counterfactual of the pairs.

        Raises:
            UnknownName: no such value, or one that has to be fitted first.
        """
        if canonical_name(name, base=self.base, choices=WITHOUT_FIT) == "corrupt":
            return self.counterfactuals
        return {name: self.value(name)}

    def circuit_runs(self, name: str = "corrupt") -> dict[str, Circuits]:
        """Runs of circuits of the whole graph with each of `values`, by its name."""
        graph, runs = Graph.of(self.model), {}
        for key, value in self.values(name).items():
            pairs = pairs_for(self.pairs, key)
            runs[key] = Circuits(
                self.model, graph, pairs, value=value, metric=self.metric, budget=self.budget
            )
        return runs

    def forget(self) -> None:
        """Give the memory of captured activations back; they are captured again where they are wanted."""
        for name in ("clean", "corrupt", "counterfactuals"):
            self.__dict__.pop(name, None)

    def select(self, indices: Sequence[int] | slice) -> "PairsInModel":
        """Some of the pairs in the same model."""
        return replace(self, pairs=self.pairs.select(indices))

    def __repr__(self) -> str:
        return f"PairsInModel({len(self)} pairs in {model_name(self.model)}, {self.metric.name})"

    def _store_of(self, side: str) -> ActivationStore:
        return self.clean if side == "clean" else self.corrupt

    def _captured(self, prompts: Prompts) -> ActivationStore:
        return capture(self.model, prompts, sites=self.sites, budget=self.budget, progress=False)


@checked
@dataclass(frozen=True, eq=False)
class Experiment:
    """A model on one behaviour: find on `train`, test on `heldout`.

    Attributes:
        train: the pairs that something is found or fitted on.
        heldout: pairs that share no prompt with them, on which it is tested.

    >>> import workbench as wb
    >>> experiment = wb.Experiment.of(wb.load_model("tiny"), "ioi", n=8)
    >>> train, heldout = experiment.train, experiment.heldout
    >>> scores = wb.score_edges(train.model, train.pairs, value=train.value("zero"), metric=train.metric)
    >>> circuit = wb.find_circuit(scores, n_edges=40)
    >>> kept = wb.evaluate(
    ...     circuit, heldout.model, heldout.pairs, value=heldout.value("zero"), checks=()
    ... )
    >>> kept.sizes["example"]
    8
    >>> experiment
    Experiment(ioi in tiny, logit_diff: 8 pairs to find things on, 8 held out)
    """

    train: PairsInModel
    heldout: PairsInModel

    def __repr__(self) -> str:
        behaviour = f"{self.train.pairs.provenance.get('task', 'own pairs')} in {model_name(self.model)}"
        sizes = f"{len(self.train)} pairs to find things on, {len(self.heldout)} held out"
        return f"Experiment({behaviour}, {self.metric.name}: {sizes})"

    @classmethod
    @checked
    def of(
        cls,
        model: Model,
        task: str | PromptPairs,
        *,
        n: int | None = None,
        seed: int = 0,
        variant: str | None = None,
        metric: GivenMetric | None = None,
        base: Literal["clean", "corrupt"] | str = "clean",
        sites: Sequence[str | Site] | None = None,
        budget: int | None = None,
    ) -> "Experiment":
        """The training and held-out pairs of a task, or of your own pairs, in a model.

        Args:
            task: a task's name, or pairs of your own, which are split into two halves that share no prompt.
            n: pairs of a task in each of the two; None takes 64.
            seed: of the prompts, of the split, and of the value "resample".
            variant: the task's kind of corruption; None takes its first.
            metric: None takes the pairs' own.
            base: the run that is edited, "clean" or "corrupt".
            sites: the kinds or sites that the stores hold; None takes those of `capture_pairs`.
            budget: bytes of working memory of a forward pass; None takes the default.

        Raises:
            UnknownName: no such task, variant, metric or base.
            PromptError: `n` or `variant` for pairs of your own, or too few distinct prompts.
        """
        if isinstance(task, PromptPairs):
            if n is not None or variant is not None:
                raise PromptError(
                    "n= and variant= belong to a task's name; pairs of your own are split into two halves."
                )
            train, heldout = task.split(seed=seed)
        else:
            size = 64 if n is None else n
            train = load_task(task, model, n=size, seed=seed, split="train", variant=variant)
            heldout = load_task(task, model, n=size, seed=seed, split="heldout", variant=variant)
        # One metric for both: the halves of own pairs could otherwise differ in whether their answers are
        # single tokens.
        measure = as_metric(train.metric if metric is None else metric)
        return cls(
            PairsInModel.of(model, train, metric=measure, base=base, sites=sites, seed=seed, budget=budget),
            PairsInModel.of(model, heldout, metric=measure, base=base, sites=sites, seed=seed, budget=budget),
        )

    @property
    def model(self) -> Model:
        """The model that both sets of pairs are run in."""
        return self.train.model

    @property
    def metric(self) -> Metric:
        """What is measured on both sets of pairs."""
        return self.train.metric

    def value(self, name: ValueName | None = None) -> Value:
        """The value of that name on the training pairs, as `train.value`; the others have `heldout.value`.

        A value that is read from a store belongs to the prompts of that store.

        Raises:
            UnknownName, EditError: as `PairsInModel.value`.
        """
        return self.train.value(name)


def writer_kinds(model: Model) -> list[str]:
    """Those of `WRITERS` that a model has: an attention-only one lacks those of the MLPs."""
    return list(map(str, those_of(model, WRITERS)))
