"""What the benchmark runs methods on: models of known circuit, the tasks of `tiny`, and real language models.

A `Case` is a model with a task and one kind of patched value. Read `cases`. Nothing is scored here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from workbench.circuit.graph import Graph
from workbench.discovery.exact import lost_without
from workbench.discovery.methods import METHODS
from workbench.engine.circuits import Circuits
from workbench.engine.counterfactuals import KINDS_READ, those_of
from workbench.evaluation.agreement import exchanged
from workbench.experiment import PairsInModel
from workbench.models.load import load_model
from workbench.models.pinned import PINNED, is_cached
from workbench.planted_models.pairs import planted_pairs
from workbench.planted_models.planted import VARIANTS, planted
from workbench.tasks.registry import load_task
from workbench.tasks.task import TASKS

SLOW = {"exact": 48, "conditional": 8}
"""Prompts of `tiny` for the methods that try every edge; the others get `PROMPTS`. `quick`: 12 for all."""
PROMPTS = 64
REAL_PROMPTS = 16
REAL_TASKS = ("ioi", "greater_than", "agreement")
"""What `docs/what_smollm2_can_do.md` says that a real model can do."""
REAL_METHODS = ("eap", "eap-ig-inputs", "clean-corrupt", "random")
"""Methods whose cost does not grow with the number of edges or of layers: others take hours on a real model."""
SAMPLED = 200
"""Edges whose exact effects are measured, drawn at random: scores are compared with them."""
REAL_SAMPLED, REAL_SAMPLED_PROMPTS = 60, 8
"""Edges of a real model, and prompts that their effects are measured on: 1,000 runs a direction take minutes."""


@dataclass(frozen=True)
class Extent:
    """How much a run of the benchmark does.

    Attributes:
        planted_prompts, tiny_prompts: of each kind of model.
        slow_prompts: for the methods of `SLOW`; None takes what `SLOW` says.
        values: patched values on planted models.
        trained_values: the same on trained ones.
        tasks: of `tiny`.
        training_steps: of learned masks.
    """

    planted_prompts: int
    tiny_prompts: int
    slow_prompts: int | None
    values: tuple[str, ...]
    trained_values: tuple[str, ...]
    tasks: tuple[str, ...]
    training_steps: int


QUICK = Extent(24, 32, 12, ("corrupt",), ("corrupt", "zero", "mean"), ("ioi", "induction", "agreement"), 60)
FULL = Extent(32, PROMPTS, None, ("corrupt", "zero"), ("corrupt", "zero", "mean"), tuple(TASKS), 200)


@dataclass(frozen=True, eq=False)
class Case:
    """A model with a task, on one kind of value.

    Attributes:
        value: "corrupt", "zero" or "mean".
        train, heldout: prompts to find on and to measure on.
        truth: the known edges, None where nobody knows them.
        methods: those that are run on it.
    """

    name: str
    task: str
    value: str
    train: PairsInModel
    heldout: PairsInModel
    truth: frozenset[str] | None
    methods: tuple[str, ...]
    seed: int

    @cached_property
    def sample(self) -> Int[np.ndarray, "edge axis"]:
        """Indices of edges drawn at random, (writer, reader)."""
        cells = np.argwhere(Graph.of(self.train.model).exists)
        n_edges = min(REAL_SAMPLED if self.name in PINNED else SAMPLED, len(cells))
        rng = np.random.default_rng(self.seed)
        return cells[np.sort(rng.choice(len(cells), n_edges, replace=False))]

    @cached_property
    def exact(self) -> dict[str, Float[np.ndarray, "edge"]]:
        """Direction → the size of the exact effect of each edge of the sample, mean over held-out prompts.

        "noising": the edge alone is patched in the clean run. "denoising": the edge alone is restored in the
        corrupt run; with zero and mean values there is no such run.
        """
        held = self.heldout
        if self.name in PINNED:
            held = held.select(slice(REAL_SAMPLED_PROMPTS))
        runs = {"noising": self._runs(held)}
        if self.value == "corrupt":
            back = PairsInModel.of(held.model, exchanged(held.pairs), metric=held.metric, sites=held.sites)
            runs["denoising"] = self._runs(back)
        return {name: np.abs(lost_without(one, self.sample).mean(1)) for name, one in runs.items()}

    def _runs(self, pairs: PairsInModel) -> Circuits:
        value = pairs.value(self.value)
        return Circuits(pairs.model, Graph.of(pairs.model), pairs.pairs, value=value, metric=pairs.metric)


def known_models() -> list[str]:
    """The models that the benchmark can run on: `tiny`, the planted ones, and pinned ones in the cache."""
    real = [name for name, weights in PINNED.items() if is_cached(weights)]
    return ["tiny", *(f"planted-{name}" for name in VARIANTS), *real]


def cases(names: Sequence[str], extent: Extent, seed: int) -> Iterator[Case]:
    """The cases of some models, in order."""
    for name in names:
        if name == "tiny":
            yield from _trained(name, extent.tasks, extent, extent.tiny_prompts, tuple(METHODS), seed)
        elif name in PINNED:
            yield from _trained(name, REAL_TASKS, extent, REAL_PROMPTS, REAL_METHODS, seed)
        else:
            yield from _planted(name, extent, seed)


def _planted(name: str, extent: Extent, seed: int) -> Iterator[Case]:
    known = planted(name.removeprefix("planted-"), seed=seed, n=extent.planted_prompts)
    heldout = planted_pairs(known, n=extent.planted_prompts, split="heldout")
    train, test = (PairsInModel.of(known.model, pairs) for pairs in (planted_pairs(known), heldout))
    for value in extent.values:
        yield Case(name, name, value, train, test, known.edges[value], tuple(METHODS), seed)


def _trained(
    name: str, tasks: Sequence[str], extent: Extent, n: int, methods: tuple[str, ...], seed: int
) -> Iterator[Case]:
    model = load_model(name)
    for task in tasks:
        pairs = (load_task(task, model, n=n, seed=seed, split=split) for split in ("train", "heldout"))
        train, test = (PairsInModel.of(model, some, sites=those_of(model, KINDS_READ)) for some in pairs)
        for value in extent.trained_values:
            yield Case(name, task, value, train, test, None, methods, seed)
