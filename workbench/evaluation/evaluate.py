"""How well a circuit stands for the model: `evaluate` (faithfulness, checks) and `minimality` (per node).

    faithfulness(C) = (m(C) - m(empty)) / (m(full) - m(empty))

m(.) is the metric's mean over the prompts. m(full) is the clean run. In m(C) every edge outside C carries
`value` in place of its clean activation; in m(empty) every edge does: with corrupt values it is the corrupt
run. So 1 says that the circuit alone does what the model does, 0 that it does nothing, and more than 1 that
the circuit leaves out what works against the behaviour. It has no unit. The sign of the metric cancels: the
formula is the same where lower is better. A ratio of means can be 1 while the circuit misses the model on
every prompt, so `error`, `r`, `kl_recovered`, `answers_kept` and `same_choice` compare the two prompt by
prompt (`engine.resemblance`).

This module knows nothing of how a circuit was found.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.engine.circuits import Circuits
from workbench.engine.counterfactuals import pairs_for
from workbench.engine.given_values import GivenValue, given_value, name_attrs, writer_sites
from workbench.engine.resemblance import MEASURES, Resemblance, resemblance
from workbench.errors import CircuitError, UnknownName
from workbench.evaluation.checks import CircuitChecks, faithfulness_of
from workbench.metrics.metric import GivenMetric, metric_for
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.results import clean_attrs
from workbench.statistics import bootstrap, check_level, check_seed, known_gap

log = logging.getLogger(__name__)

CHECKS = ("complement", "random", "completeness", "minimality")
Check = Literal["complement", "random", "completeness", "minimality"] | str


@checked
@model_call()
def evaluate(
    circuit: Circuit | Sequence[Circuit],
    model: Model,
    pairs: PromptPairs,
    *,
    value: GivenValue | Mapping[str, GivenValue] | None = None,
    metric: GivenMetric | None = None,
    checks: Check | Sequence[Check] | None = None,
    level: float = 0.95,
    seed: int = 0,
    budget: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """The faithfulness of circuits on prompts, and further checks, with bootstrap intervals over the prompts.

    faithfulness = (m(C) - m(empty)) / (m(full) - m(empty)), of means over prompts: 1 when the circuit alone
    does what the model does, 0 when it does no more than the run with every edge at `value`.

    Args:
        circuit: one circuit, or several of one graph, which are run in common batches.
        value: what every edge outside the circuit carries, a value or its name as in `score_edges`; zero, a constant
            or the mean of a data set also at the tokens of answers of several tokens (attrs["answer_tokens"]). A mapping
            of names to values measures them side by side, on an axis `ablation`; `counterfactual_values`
            makes one of every corruption that the pairs have.
        checks: which further checks to make, of each circuit. None: all four. (): only faithfulness, which is
            much cheaper: take it for many circuits.
            "complement": the faithfulness of all edges outside the circuit.
            "random": the faithfulness of random circuits of as many edges.
            "completeness": the largest difference between circuit and model when components are knocked out
            of both, as a share of m(full) - m(empty).
            "minimality": the share of components that the circuit needs; see `minimality`.
        level: coverage of the intervals.
        seed: of random circuits and sets.
        budget: bytes of working memory.

    Returns:
        Dataset over (circuit,): `faithfulness` (ratio of means), `low`, `high`, `mean_of_ratios`, `n_edges` (of
        the circuit as it is given), `in_sample` (share of the pairs it was found on). Prompt by prompt, each
        with `_low` and `_high`: `error` (mean |m(C) - m(full)| as a share of mean |m(full) - m(empty)|),
        `prompts_near` (the share of prompts where |m(C) - m(full)| is at most half of their own |m(full) -
        m(empty)|), `r` (correlation with the model's metric), `kl_recovered` (1 - KL(full, C) / KL(full, empty)
        over the vocabulary at `END`; where the metric reads answers of several tokens, of the sums over those
        of the first right answer), `answers_kept` (of the prompts that the model gets right, the share that the
        circuit gets right), `same_choice` (the share with the model's first choice, of answers of several
        tokens at each of them). Of the checks `complement`, `random`, `incompleteness`, each with `_low` and
        `_high`, `incompleteness_set`, and `minimal` (the share of components that are needed) with `unneeded`
        (the others by name). Over (circuit, example) the metric `m_circuit`, over (example,) `m_full` and
        `m_empty`. Shares of a gap are NaN where the gap is ~0.
        attrs: `checks` names those that were made.

    Raises:
        CircuitError: no circuit, circuits of different graphs, or of another model's graph.
        UnknownName: a check that does not exist.
        MetricError: prompts that the metric cannot measure.
        PromptError: clean and corrupt prompts of different lengths.
        StoreError: a store that lacks the activations of `value`.
        EditError: a value that cannot be written here.

    Source: Wang et al. 2211.00593 (completeness, minimality), Marks et al. 2403.19647 (complement).

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> result = wb.evaluate(wb.Circuit.empty(model), model, pairs, value="zero", checks=())
    >>> float(result["faithfulness"][0])
    0.0
    """
    circuits = _circuits_of_one_graph(circuit, model)
    names = _check_names(checks)
    check_level(level)
    check_seed(seed)
    if isinstance(value, Mapping):
        if not value:
            raise CircuitError("evaluate: value={} names no value. Give one, as in {'zero': wb.zero()}.")
        by_value = [
            evaluate(circuits, model, pairs_for(pairs, name), value=one, metric=metric, checks=names,
                     level=level, seed=seed, budget=budget, progress=progress)
            for name, one in value.items()
        ]  # fmt: skip
        joined = xr.concat(by_value, dim="ablation", combine_attrs="override")
        described = ", ".join(str(one.attrs["value"]) for one in by_value)
        joined = joined.assign_coords(ablation=list(value)).assign_attrs(value=described)
        # Of these facts each value has its own.
        own = {name: [one.attrs[name] for one in by_value if name in one.attrs]
               for name in ("answer_tokens", "engine", "value_name", "value_from")}  # fmt: skip
        return joined.assign_attrs(
            {name: ", ".join(facts) for name, facts in own.items() if len(set(facts)) > 1}
        )
    # One `Circuits` for all: the clean run, the patched values and their batches are shared.
    measure, sites = metric_for(metric, pairs), writer_sites(circuits[0].graph)
    patched = given_value(value, model, pairs, sites=sites, budget=budget)
    runs = Circuits(model, circuits[0].graph, pairs, value=patched, metric=measure, budget=budget)
    log.info(
        "%d circuits on %d prompts, value %s, metric %s, checks %s",
        len(circuits), len(pairs), patched.describe(), measure.name, ", ".join(names) or "none",
    )  # fmt: skip
    # Dead ends are left out, of a circuit made by hand too.
    beside = resemblance(runs, runs.graph.prune(np.stack([one.edges for one in circuits])), progress=progress)
    data = _faithfulness(beside, level)
    # By prompt, not by pair: the same clean prompt with another corruption has been seen.
    in_sample = [np.mean([prompt in one.prompt_ids for prompt in pairs.clean.ids]) for one in circuits]
    data["n_edges"] = ("circuit", np.array([one.n_edges for one in circuits]))
    data["in_sample"] = ("circuit", np.array(in_sample, dtype=float))
    rows = []
    for one in circuits:
        rows.append(_further_checks(CircuitChecks(one, runs, beside.empty, level, seed, progress), names))
    data |= {name: ("circuit", np.array([row[name] for row in rows])) for name in rows[0]}
    attrs = pairs.attrs(model) | {
        "kind": "evaluation", "metric": measure.name, "unit": measure.unit, "value": patched.describe(),
        "level": level, "engine": runs.engine, "seed_of_checks": seed, "checks": ", ".join(names) or "none",
        **runs.answer_attrs, **name_attrs(value),
    }  # fmt: skip
    return xr.Dataset(data, attrs=clean_attrs(attrs))


@checked
@model_call()
def minimality(
    circuit: Circuit,
    model: Model,
    pairs: PromptPairs,
    *,
    value: GivenValue | None = None,
    metric: GivenMetric | None = None,
    level: float = 0.95,
    seed: int = 0,
    budget: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """How much each head and MLP of a circuit is missed when it is removed.

    The set K of other components that is removed with it is the one that shows its effect best:
    missed(v) = max over K of |F(C without K and v) - F(C without K)| / |F(M)|, where F is the metric's mean
    over prompts.

    Args:
        value, metric, level, budget: as in `evaluate`.
        seed: of the random sets K.
        progress: show a bar where it takes long.

    Returns:
        Dataset over (node,): `missed` in shares of F(M), `low`, `high`, `needed` (1 where `missed` is at
        least 0.01), `without` (K).

    Raises:
        CircuitError: not a circuit, or one of another model's graph.

    Source: Wang et al. 2211.00593.
    """
    check_level(level)
    check_seed(seed)
    circuit.check_fits(model)
    measure, sites = metric_for(metric, pairs), writer_sites(circuit.graph)
    patched = given_value(value, model, pairs, sites=sites, budget=budget)
    runs = Circuits(model, circuit.graph, pairs, value=patched, metric=measure, budget=budget)
    # Minimality is a share of F(M), so the empty circuit is not needed.
    by_node = CircuitChecks(circuit, runs, np.zeros(0), level, seed, progress).minimality()
    facts = {"kind": "minimality", "metric": measure.name, "value": patched.describe(), "level": level}
    facts |= runs.answer_attrs | name_attrs(value)
    return by_node.assign_attrs(clean_attrs(pairs.attrs(model) | facts))


def _circuits_of_one_graph(circuit: Circuit | Sequence[Circuit], model: Model) -> list[Circuit]:
    """The circuits as a list, all of the model's graph. Raises `CircuitError` for anything else."""
    circuits = [circuit] if isinstance(circuit, Circuit) else list(circuit)
    if not circuits:
        raise CircuitError("evaluate: give a Circuit or a non-empty list of them.")
    for one in circuits:
        one.check_fits(model)
        if one.graph != circuits[0].graph:
            raise CircuitError(
                f"evaluate: circuits of one graph run together; these have {circuits[0].graph} and "
                f"{one.graph}."
            )
    return circuits


def _check_names(checks: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of the checks to make; None means all. Raises `UnknownName`."""
    if checks is None:
        return CHECKS
    names = (checks,) if isinstance(checks, str) else tuple(checks)
    for name in names:
        if name not in CHECKS:
            raise UnknownName("checks", name, CHECKS)
    return names


def _faithfulness(beside: Resemblance, level: float) -> dict[str, Any]:
    """What circuits and model have in common, with intervals, and the metrics this is made of."""
    full, empty, measured = beside.full, beside.empty, beside.metric
    # [example, full + empty + circuits]: an example is drawn with all of its runs, since they vary together.
    table = np.concatenate([full[None], empty[None], measured]).T
    low, high = bootstrap(table, faithfulness_of, level=level)
    ratios = np.full(len(measured), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = known_gap(full - empty, np.maximum(np.abs(full), np.abs(empty)))
        if np.isfinite(gap).any():
            ratios = np.nanmean((measured - empty) / gap, axis=1)
    columns: dict[str, Any] = {
        "faithfulness": ("circuit", faithfulness_of(table)),
        "low": ("circuit", low), "high": ("circuit", high), "mean_of_ratios": ("circuit", ratios),
        "m_circuit": (("circuit", "example"), measured),
        "m_full": ("example", full), "m_empty": ("example", empty),
    }  # fmt: skip
    measures, intervals = beside.measures(), beside.interval(level=level)
    for name in MEASURES[1:]:
        columns[name] = ("circuit", measures[name][0])
        columns[f"{name}_low"], columns[f"{name}_high"] = (("circuit", end) for end in intervals[name])
    return columns


def _further_checks(circuit: CircuitChecks, names: Sequence[str]) -> dict[str, Any]:
    """The columns of the checks with these names, for one circuit."""
    columns: dict[str, Any] = {}
    if "complement" in names:
        columns |= circuit.complement()
    if "random" in names:
        columns |= circuit.random()
    if "completeness" in names:
        columns |= circuit.completeness()
    if "minimality" in names:
        by_node = circuit.minimality()
        columns["minimal"] = float(by_node["needed"].mean()) if by_node.sizes["node"] else np.nan
        columns["unneeded"] = ", ".join(by_node["node"].values[by_node["needed"].values == 0].tolist())
    return columns
