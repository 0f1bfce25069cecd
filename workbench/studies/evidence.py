"""The evidence for a study."""

from typing import Any

import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.circuit.random import relocated
from workbench.discovery.search import find_circuit
from workbench.engine.values import from_store, mean, zero
from workbench.errors import CircuitError, MetricError, PromptError, UnsuitableTask
from workbench.evaluation.checks import RANDOM_CIRCUITS
from workbench.evaluation.curves import stability
from workbench.evaluation.evaluate import evaluate
from workbench.statistics import central
from workbench.studies.bench import Bench
from workbench.studies.study import Number, Prediction
from workbench.tasks.registry import TASKS, load_task

SMALL = 5000
"""Up to so many edges, completeness and minimality are measured too."""


SHARED = 0.2
"""A circuit that surely keeps more than this of another task is not particular to its own."""


def other_heads(bench: Bench) -> Number:
    """What circuits of the same shape keep whose edges go through other heads of the same layers."""
    circuit, value = bench.circuit, from_store(bench.corrupt)
    masks = relocated(circuit.graph, circuit.edges, draws=RANDOM_CIRCUITS)
    drawn = [Circuit.of(circuit.graph, edges) for edges in masks]
    kept = evaluate(
        drawn, bench.model, bench.pairs, value=value, metric=bench.metric, checks=(), progress=False
    )
    spread = kept["faithfulness"].values
    low, high = central(spread, 0.95)
    note = f"the same edges through other heads of each layer; central 95 % of {len(drawn)} draws"
    return Number("other heads", float(spread.mean()), float(low), float(high), note)


def _faithful(name: str, row: xr.Dataset, note: str = "", field: str = "faithfulness") -> Number:
    ends = ("low", "high") if field == "faithfulness" else (f"{field}_low", f"{field}_high")
    return Number(name, float(row[field]), float(row[ends[0]]), float(row[ends[1]]), note)


def evidence(bench: Bench) -> tuple[list[Number], list[Number], list[str]]:
    """How far the circuit can be trusted: on held-out prompts, beside controls; and what it leaves unexplained."""
    small = bench.circuit.graph.n_edges <= SMALL
    how: dict[str, Any] = {"metric": bench.metric, "progress": False}
    checks = None if small else ("complement", "random")
    row = evaluate(
        bench.circuit, bench.model, bench.pairs, value=from_store(bench.corrupt), checks=checks, **how
    ).isel(circuit=0)  # fmt: skip
    values = {"zero": zero(), "mean": mean(bench.clean)}
    kinds = evaluate(bench.circuit, bench.model, bench.pairs, value=values, checks=(), **how).isel(circuit=0)
    agree = stability(bench.each, find=lambda s: find_circuit(s, n_edges=bench.circuit.n_requested))
    shown = [
        Number.of("metric of the model", row["m_full"].values, f"{bench.metric}, clean run"),
        Number.of("metric of the corrupt run", row["m_empty"].values, "of no edge at all"),
        Number.of("metric of the circuit", row["m_circuit"].values, "everything else as in the corrupt run"),
        _faithful(
            "faithfulness",
            row,
            "share of the difference between clean and corrupt runs that the circuit keeps",
        ),
        *(
            _faithful(f"faithfulness, {name} values", kinds.sel(ablation=name), f"{name} instead of corrupt")
            for name in values
        ),
        Number(
            "stability",
            float(agree["jaccard"]),
            float(agree["low"]),
            float(agree["high"]),
            "Jaccard, resampled prompts",
        ),
    ]
    controls = [
        _faithful(
            "random circuits", row, "as many edges, on whole paths; central 95 % of 20 draws", "random"
        ),
        _faithful("complement", row, "the model without the circuit's edges", "complement"),
        other_heads(bench),
    ]
    lost = [
        f"{1 - float(row['faithfulness']):z.1%} of the difference (interval of what is kept: {shown[3]}).",
        f"The behaviour from nothing: with zeros outside the circuit {shown[4]} is kept, with means {shown[5]}. A circuit found "
        "against corrupt prompts explains the difference between the two prompts.",
    ]
    if small:
        controls.append(
            _faithful(
                "incompleteness",
                row,
                f"largest with {row['incompleteness_set'].values} out",
                "incompleteness",
            )
        )
        unneeded = str(row["unneeded"].values) or "none"
        lost.append(
            f"Components that the test of minimality finds unneeded: {unneeded} ({float(row['minimal']):.0%} are needed)."
        )
    for task in TASKS:
        if task != bench.study.task:
            try:
                other = load_task(task, bench.model, n=max(2, len(bench.pairs) // 2), split="heldout")
                controls.append(
                    _faithful(f"on {task}", bench.kept(other), "the same circuit on another task")
                )
            except (UnsuitableTask, PromptError, MetricError):
                continue
    if not shown[0].above(shown[1]):
        lost.insert(
            0,
            f"Whether there is anything to explain: the clean run, {shown[0]}, is not surely above the corrupt one, {shown[1]}.",
        )
    if controls[2].high >= shown[3].low:
        lost.append(
            f"Which heads it has to be: the same edges through other heads of the layers keep up to {controls[2].high:.3f}."
        )
    shared = [number for number in controls if number.name.startswith("on ") and number.low > SHARED]
    if shared:
        kept = ", ".join(f"{number.mean:.3f} {number.name}" for number in shared)
        lost.append(f"What is particular to this behaviour: the same edges keep {kept}.")
    return shown, controls, lost


def tried(bench: Bench) -> tuple[list[tuple[Prediction, Number]], str]:
    """The predictions with what was measured, all of them made before any is run; or why nothing was tested."""
    try:
        predictions = bench.study.tests(bench)
        return [(each, Number.of(each.name, each.edit())) for each in predictions], ""
    except (CircuitError, UnsuitableTask) as error:
        return [], str(error)
