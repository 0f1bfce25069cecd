"""Measuring a study: `evidence(study, experiment)` is all that a study reports, on held-out prompts and
beside controls.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.circuit.compare import compare
from workbench.circuit.published import reference_circuit
from workbench.circuit.random import relocated
from workbench.discovery.search import find_circuit
from workbench.engine.values import Value
from workbench.errors import CircuitError, MetricError, PromptError, UnsuitableTask
from workbench.evaluation.checks import RANDOM_CIRCUITS
from workbench.evaluation.curves import stability
from workbench.evaluation.evaluate import evaluate
from workbench.models.load import model_name
from workbench.statistics import central
from workbench.studies.by_rule import DRAWS, Core, core
from workbench.studies.circuit_experiment import SMALL, CircuitExperiment
from workbench.studies.counterfactuals import against_counterfactuals, frontier, with_core
from workbench.studies.evidence import (
    SHOWN_EDGES,
    Agreement,
    Component,
    Evidence,
    PublishedRole,
    RoleRule,
    RuleSearch,
    TestResult,
)
from workbench.studies.prediction import Estimate
from workbench.studies.study import Study
from workbench.tasks.registry import load_task
from workbench.tasks.task import TASKS
from workbench.text import visible


def evidence(study: Study, experiment: CircuitExperiment, *, command: str) -> Evidence:
    """Everything that a study says about a circuit.

    Args:
        command: what makes it again, for the page.
    """
    circuit, pairs = experiment.circuit, experiment.pairs
    tests, untested = _tests(study, experiment)
    checked = _checked(experiment)
    edges = circuit.edge_list
    stable = search = None
    if experiment.by_rule:
        stable = core(experiment.example_scores, circuit.n_requested)
        counterfactuals, search = with_core(experiment, stable), _search(study, experiment)
        # Thousands: all of them are in `circuit.json`.
        edges = edges[:SHOWN_EDGES]
    else:
        counterfactuals = against_counterfactuals(study.task, experiment, method=study.method)
    heads = [name for name, role in experiment.roles.items() if role == study.traced_role]
    # `minimal` and `unneeded` exist only where the check was affordable.
    small = _is_small(circuit)
    return Evidence(
        task=study.task,
        title=study.title,
        model=model_name(experiment.model),
        command=command,
        account=study.account,
        metric=experiment.metric.name,
        method=study.method,
        share=study.share,
        n_train=len(experiment.train),
        n_heldout=len(pairs),
        graph_edges=circuit.graph.n_edges,
        edges=tuple(map(str, edges)),
        clean=_text(pairs.clean.strings[0]),
        corrupt=_text(pairs.corrupt.strings[0]),
        behaviour=tuple(_behaviour(experiment, checked, stable)),
        counterfactuals=counterfactuals,
        controls=tuple(_controls(study, experiment, checked)),
        minimal=float(checked["minimal"]) if small else None,
        unneeded=str(checked["unneeded"].values) if small else "",
        components=tuple(_component(experiment, name) for name in experiment.components),
        roles=tuple(_role_rules(study, experiment)),
        traced_heads=tuple(heads),
        senders=tuple(_senders(experiment, heads)),
        tests=tuple(tests),
        untested=untested,
        agreement=_agreement(study, experiment),
        limits=tuple(study.limits),
        search=search,
    )


def other_heads(experiment: CircuitExperiment) -> Estimate:
    """What circuits of the same shape keep whose edges go through other heads of the same layers."""
    circuit = experiment.circuit
    # Same layers and same shape, so that only the choice of heads differs.
    masks = relocated(circuit.graph, circuit.edges, draws=RANDOM_CIRCUITS)
    circuits = [Circuit.of(circuit.graph, edges) for edges in masks]
    result = _evaluate(experiment, circuits, experiment.heldout.value("corrupt"), ())
    kept = result["faithfulness"].values
    low, high = central(kept, 0.95)
    note = f"the same edges through other heads of each layer; central 95 % of {len(circuits)} draws"
    return Estimate("other heads", float(kept.mean()), float(low), float(high), note)


def _is_small(circuit: Circuit) -> bool:
    return circuit.graph.n_edges <= SMALL


def _checked(experiment: CircuitExperiment) -> xr.Dataset:
    """The circuit under corrupt values with every check that is affordable."""
    # None is every check: incompleteness and minimality run a circuit for every component.
    checks = None if _is_small(experiment.circuit) else ("complement", "random")
    if experiment.by_rule and not _is_small(experiment.circuit):
        checks = ("complement",)  # twenty circuits of thousands of edges are run on fewer prompts
    value = experiment.heldout.value("corrupt")
    return _evaluate(experiment, experiment.circuit, value, checks).isel(circuit=0)


def _evaluate(
    experiment: CircuitExperiment,
    circuits: Circuit | list[Circuit],
    value: Value | dict[str, Value],
    checks: Sequence[str] | None,
) -> xr.Dataset:
    """Circuits on the held-out pairs."""
    return evaluate(
        circuits,
        experiment.model,
        experiment.pairs,
        value=value,
        checks=checks,
        metric=experiment.metric,
        progress=False,
    )


def _text(tokens: Sequence[str]) -> str:
    """A prompt in a line, its tokens apart."""
    return " ".join(map(visible, tokens))


def _search(study: Study, experiment: CircuitExperiment) -> RuleSearch:
    """How criteria chose the circuit."""
    assert study.criteria is not None
    circuit = experiment.circuit
    inside = [name for name in circuit.nodes if name not in ("input", "logits")]
    published = "" if study.reference is None else str(reference_circuit(study.reference).attrs["model"])
    return RuleSearch(
        edges=circuit.n_edges,
        passes=bool(experiment.passes),
        # As many as made the scores: see `find_and_select`.
        n_select=len(experiment.train),
        most=int(study.criteria.at_most * circuit.graph.n_edges),
        frontier=frontier(experiment),
        core_draws=DRAWS,
        components=len(inside),
        # Of the writers the first is the input.
        all_components=len(circuit.graph.writers) - 1,
        published_model=published,
        few=len(experiment.few.pairs),
        corrupt={
            name: _text(pairs.corrupt.strings[0]) for name, pairs in experiment.pairs.counterfactuals.items()
        },
    )


def _behaviour(
    experiment: CircuitExperiment, checked: xr.Dataset, core_of_rule: Core | None
) -> list[Estimate]:
    """How much of the behaviour the circuit keeps, under each value, and how stable it is."""
    metric = experiment.metric.name
    values = {name: experiment.heldout.value(name) for name in ("zero", "mean")}
    by_value = _evaluate(experiment, experiment.circuit, values, ()).isel(circuit=0)
    share = "share of the difference between clean and corrupt runs that the circuit keeps"
    rows = [
        Estimate.of("metric of the model", checked["m_full"].values, f"{metric}, clean run"),
        Estimate.of("metric of the corrupt run", checked["m_empty"].values, "no edge kept"),
        Estimate.of(
            "metric of the circuit", checked["m_circuit"].values, "every other edge from the corrupt run"
        ),
        _kept("faithfulness", checked, share),
    ]
    for name in values:
        note = f"{name} values instead of corrupt ones"
        rows.append(_kept(f"faithfulness, {name} values", by_value.sel(ablation=name), note))
    if core_of_rule is not None:
        return [*rows, core_of_rule.stability]
    # Circuits of resampled prompts are as large before pruning, or sizes would differ as well as edges.
    size = experiment.circuit.n_requested
    resampled = stability(
        experiment.example_scores, find=lambda scores: find_circuit(scores, n_edges=size, by="signed")
    )
    note = "Jaccard index of circuits found on resampled prompts"
    low, high = float(resampled["low"]), float(resampled["high"])
    return [*rows, Estimate("stability", float(resampled["jaccard"]), low, high, note)]


def _controls(study: Study, experiment: CircuitExperiment, checked: xr.Dataset) -> list[Estimate]:
    """What other circuits keep of this behaviour, and what this circuit keeps of others."""
    draws = f"as many edges, on whole paths; central 95 % of {RANDOM_CIRCUITS} draws"
    drawn, fewer, prompts = checked, experiment, ""
    if "random" not in checked:
        fewer = experiment.few
        drawn = _evaluate(fewer, fewer.circuit, fewer.heldout.value("corrupt"), ("random",)).isel(circuit=0)
        prompts = f", {len(fewer.pairs)} prompts"
    others = other_heads(fewer)
    rows = [
        _kept("random circuits", drawn, draws + prompts, "random"),
        _kept("complement", checked, "the model without the circuit's edges", "complement"),
        replace(others, note=others.note + prompts),
    ]
    if _is_small(experiment.circuit):
        note = f"largest with {checked['incompleteness_set'].values} knocked out"
        rows.append(_kept("incompleteness", checked, note, "incompleteness"))
    for task in TASKS:
        if task == study.task:
            continue
        try:
            # Half as many prompts: these are controls, and two are the fewest that have an interval.
            n = min(max(2, len(experiment.pairs) // 2), len(experiment.few.pairs))
            other_pairs = load_task(task, experiment.model, n=n, split="heldout")
            rows.append(_kept(f"on {task}", experiment.kept(other_pairs), "the same circuit on another task"))
        except (UnsuitableTask, PromptError, MetricError):
            continue  # this vocabulary has no such task, or the model no such behaviour
    return rows


def _kept(name: str, row: xr.Dataset, note: str = "", field: str = "faithfulness") -> Estimate:
    """A field of `evaluate` with its interval, whose ends are `low` and `high`, or named after the field."""
    prefix = "" if field == "faithfulness" else f"{field}_"
    low, high = float(row[f"{prefix}low"]), float(row[f"{prefix}high"])
    return Estimate(name, float(row[field]), low, high, note)


def _component(experiment: CircuitExperiment, name: str) -> Component:
    means, measured = experiment.heads.loc[name], experiment.measured

    def estimate(column: str) -> Estimate:
        """The component's mean in a column, over prompts."""
        return Estimate.of(column, measured[column].sel(component=name).values)

    direct = copying = None
    attention: dict[str, float] = {}
    # Answers of several tokens have no direct attribution.
    if "direct" in measured:
        direct = estimate("direct")
    # MLPs neither attend nor copy.
    if name.startswith("a"):
        copying = float(means["copying"])
        for position in experiment.pairs.clean.positions:
            if position != "END":
                attention[position] = float(means[position])
    role = experiment.roles.get(name, "")
    if not experiment.by_rule:
        return Component(name, estimate("swapped"), direct, attention, copying, role)
    further = {other: estimate(f"swapped {other}") for other in list(experiment.pairs.counterfactuals)[1:]}
    read = {column for rule in experiment.rules for column in (*rule.at_least, *rule.at_most)}
    known = {"swapped", "direct", "copying", *attention, *(f"swapped {other}" for other in further)}
    # MLPs have no cell in the columns of heads.
    scores = {column: float(means[column]) for column in sorted(read - known) if name.startswith("a")}
    return Component(name, estimate("swapped"), direct, attention, copying, role, further, scores)


def _role_rules(study: Study, experiment: CircuitExperiment) -> list[RoleRule]:
    published: Counter[str] = Counter()
    if experiment.by_rule and study.reference is not None:
        published = Counter(reference_circuit(study.reference).labels.values())
    rules = []
    for role in experiment.rules:
        heads = [head for head, name in experiment.roles.items() if name == role.name]
        rules.append(RoleRule(role.name, str(role), tuple(heads), published.get(role.name)))
    return rules


def _senders(experiment: CircuitExperiment, heads: list[str]) -> list[Estimate]:
    """What the queries and the keys of these heads are made of, the three largest of each."""
    if not heads:
        return []
    return [*experiment.senders(heads, "q"), *experiment.senders(heads, "k")]


def _tests(study: Study, experiment: CircuitExperiment) -> tuple[list[TestResult], str]:
    """What the predictions gave, or why nothing was tested; all are made before any edit is run."""
    try:
        # All predictions before the first edit, so that no result can move a later prediction.
        predictions = study.tests(experiment)
        results = []
        for prediction in predictions:
            measured = Estimate.of(prediction.name, prediction.edit())
            results.append(
                TestResult(
                    prediction.name,
                    prediction.claim,
                    float(prediction.predicted),
                    prediction.criterion,
                    measured,
                    bool(prediction.holds(measured.mean)),
                )
            )
    except (CircuitError, UnsuitableTask) as error:
        return [], str(error)
    if not results:
        return [], "this study makes no prediction"
    return results, ""


def _agreement(study: Study, experiment: CircuitExperiment) -> Agreement | None:
    """How far the circuit agrees with the published one; None where there is none for this model."""
    if study.reference is None:
        return None
    published = reference_circuit(study.reference)
    try:
        comparison = compare(published, experiment.labelled_circuit)
    except CircuitError:
        return None  # the published circuit is of another model
    roles = []
    for row in comparison.by_role.to_dict("records"):
        roles.append(PublishedRole(str(row["role"]), int(row["a"]), int(row["both"]), str(row["missing"])))
    return Agreement(
        published.n_edges,
        comparison.both.n_edges,
        float(comparison.precision),
        float(comparison.recall),
        float(comparison.jaccard),
        float(comparison.node_jaccard),
        tuple(roles),
    )
