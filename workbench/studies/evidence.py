"""`Evidence`: everything that a study measured and claims, as the data that `study.json` holds.

The README, the table of studies and `--check` are made from it, so every number and word of theirs stands
here once. `measure.evidence` fills it; nothing here runs a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from workbench.errors import WorkbenchError
from workbench.files import read_bytes
from workbench.studies.prediction import Estimate, Real

FILE = "study.json"
FORMAT = 2
SHOWN_EDGES = 60
"""The most edges that a page names."""


@dataclass(frozen=True)
class Counterfactual:
    """A circuit against one counterfactual, on held-out prompts.

    Attributes:
        circuit: which circuit: the study's own, or the smallest that keeps the criteria against all of them.
        edges: how many it has.
        counterfactual: what its other edges carry.
        faithfulness, error, r, kl_recovered: as in `Resemblance`.
        fails: the letters of the `Criteria` that it does not keep.
    """

    circuit: str
    edges: int
    counterfactual: str
    faithfulness: Estimate
    error: Estimate
    r: Estimate
    kl_recovered: Estimate
    fails: str


@dataclass(frozen=True)
class Component:
    """A head or MLP of the circuit.

    Attributes:
        swapped: the change of the metric when its output alone is the corrupt run's.
        direct: its direct contribution to right minus wrong logits; None where answers are several tokens.
        attention: named position → a head's mean attention to it from END; empty for MLPs.
        copying: a head's copying score, -1 to 1; None for MLPs.
        role: empty where no rule fits.
        further: counterfactual → the same as `swapped`, against the task's other ones; of circuits that
            criteria chose.
        scores: what else the rules of the roles read, by column.
    """

    name: str
    swapped: Estimate
    direct: Estimate | None
    attention: Mapping[str, float]
    copying: float | None
    role: str
    further: Mapping[str, Estimate] = field(default_factory=dict)
    scores: Mapping[str, Real] = field(default_factory=dict)


@dataclass(frozen=True)
class RoleRule:
    """A role, its rule in words, and the heads that meet it.

    Attributes:
        published: how many heads of another model have this role in the published circuit; None where it has
            no such role, or is of the same model.
    """

    name: str
    rule: str
    heads: tuple[str, ...]
    published: int | None = None


@dataclass(frozen=True)
class TestResult:
    """A prediction beside what was measured."""

    __test__ = False  # pytest takes a class of this name for tests

    name: str
    claim: str
    predicted: Real
    criterion: str
    measured: Estimate
    holds: bool


@dataclass(frozen=True)
class PublishedRole:
    """A role of the published circuit: how many heads have it, how many of those were found, and the names of
    the rest.
    """

    name: str
    published: int
    found: int
    missing: str


@dataclass(frozen=True)
class Agreement:
    """How far the circuit agrees with a published one, in edges and nodes."""

    published_edges: int
    shared_edges: int
    precision: Real
    recall: Real
    jaccard: Real
    node_jaccard: Real
    roles: tuple[PublishedRole, ...]


@dataclass(frozen=True)
class RuleSearch:
    """How criteria chose a circuit, against every counterfactual.

    Attributes:
        edges: how many the circuit has.
        passes: whether it keeps the criteria on the prompts that chose it; False: it is the nearest one.
        n_select: prompts that chose it.
        most: the largest number of edges that counted as a circuit.
        frontier: circuits of several sizes of the same ranking, on held-out prompts.
        core_draws: resamples of the prompts that made the core.
        components: heads and MLPs in the circuit, and `all_components` in the model.
        published_model: of the published circuit whose roles stand beside these; empty without one.
        few: held-out prompts for copying scores and path patching.
        corrupt: counterfactual → the corrupt prompt of the first held-out pair as text.
    """

    edges: int
    passes: bool
    n_select: int
    most: int
    frontier: tuple[Counterfactual, ...]
    core_draws: int
    components: int
    all_components: int
    published_model: str
    few: int
    corrupt: Mapping[str, str]


@dataclass(frozen=True)
class Evidence:
    """A study of one model: the claim, the account, and what speaks for and against them.

    Attributes:
        command: the command that computes it again.
        metric: the name of what is measured.
        n_train, n_heldout: pairs that the circuit was found on, and that everything else was measured on.
        share: of the behaviour that the search kept on the training pairs.
        graph_edges: edges of the whole model.
        edges: of the circuit, strongest first; where criteria chose it only the first of them.
        clean, corrupt: the first held-out pair as text.
        behaviour: metrics, faithfulness under three values, stability.
        counterfactuals: the circuit against each counterfactual of the task, and what holds against all.
        controls: what other circuits keep, and what this one keeps of other tasks.
        minimal: the share of components that are needed; None where the graph is too large to test.
        unneeded: the components that are not.
        traced_heads: the heads whose queries and keys were traced; `senders` is what matters most to them.
        tests: the predictions, in the order in which they were run.
        untested: why there is none, or empty.
        limits: what the author adds to what is not explained.
        search: how criteria chose the circuit; None where a share of the behaviour did.
    """

    task: str
    title: str
    model: str
    command: str
    account: str
    metric: str
    method: str
    share: float
    n_train: int
    n_heldout: int
    graph_edges: int
    edges: tuple[str, ...]
    clean: str
    corrupt: str
    behaviour: tuple[Estimate, ...]
    counterfactuals: tuple[Counterfactual, ...]
    controls: tuple[Estimate, ...]
    minimal: float | None
    unneeded: str
    components: tuple[Component, ...]
    roles: tuple[RoleRule, ...]
    traced_heads: tuple[str, ...]
    senders: tuple[Estimate, ...]
    tests: tuple[TestResult, ...]
    untested: str
    agreement: Agreement | None
    limits: tuple[str, ...]
    search: RuleSearch | None = None
    format: int = FORMAT

    @property
    def n_edges(self) -> int:
        """How many edges the circuit has."""
        return len(self.edges) if self.search is None else self.search.edges

    def estimate(self, name: str) -> Estimate:
        """The row of `behaviour` or `controls` of that name."""
        return {row.name: row for row in (*self.behaviour, *self.controls)}[name]

    @property
    def other_tasks(self) -> list[Estimate]:
        """What the circuit keeps of other tasks."""
        return [row for row in self.controls if row.name.startswith("on ")]

    @property
    def n_held(self) -> int:
        """How many predictions hold."""
        return sum(test.holds for test in self.tests)

    def save(self, path: Path) -> None:
        """Write it as JSON; numbers keep every digit."""
        # One value a line, so that a diff shows which number moved.
        path.write_bytes(_ADAPTER.dump_json(self, indent=1) + b"\n")

    @classmethod
    def load(cls, path: Path) -> "Evidence":
        """Read what `save` wrote.

        Raises:
            WorkbenchError: there is no such file, or it is not the evidence of a study.
        """
        try:
            evidence = _ADAPTER.validate_json(read_bytes(path), strict=True, extra="forbid")
        except OSError as error:
            raise WorkbenchError(
                f"There is no evidence {str(path)!r}. Run the study's study.py first."
            ) from error
        except ValidationError as error:
            reason = error.errors()[0]
            # The first of pydantic's reasons is enough to find the damage.
            field = ".".join(map(str, reason["loc"])) or "the file"
            raise WorkbenchError(
                f"{str(path)!r} is not the evidence of a study: {field}: {reason['msg']}. Run the study's "
                "study.py again."
            ) from error
        if evidence.format != FORMAT:
            raise WorkbenchError(
                f"{str(path)!r} has format {evidence.format}; this version reads {FORMAT}. Run the study's "
                "study.py again."
            )
        return evidence


_ADAPTER = TypeAdapter(Evidence)
