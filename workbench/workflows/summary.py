"""`summary.json`: every number of a `discover` by name, for scripts; and the sentences that say what it found.

Read `headline`: a report, the command and the notebook begin with it. Nothing is measured here.
"""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import xarray as xr

from workbench.discovery.frontier import smallest_by_counterfactual, smallest_passing
from workbench.engine.resemblance import MEASURES
from workbench.tasks.measure import Score
from workbench.workflows.discovery_run import DiscoveryRun

CAPABLE = 0.85
"""Share of prompts with right above wrong under which a model is said not to do the task."""
APART = 0.2
"""Counterfactuals whose faithfulness differs by more are different differences."""


def title_of(run: DiscoveryRun) -> str:
    """What the run found, in a line: a circuit, the circuit of one difference, or none."""
    task = f"{run.evaluation.attrs.get('task', 'own prompts')} in {run.evaluation.attrs['model']}"
    if run.recommended:
        return f"Circuit: {task}"
    against = _against(run)
    if len(against) > 1 and max(against.values()) - min(against.values()) > APART:
        return f"Circuit of the difference {max(against, key=lambda name: against[name])}: {task}"
    if run.frontier is not None:
        return f"No circuit under {run.criteria.at_most:.0%}: {task}"
    return f"Edges, not tested by criteria: {task}"


def competence_text(score: Score) -> str:
    """Whether the model does the task, with a warning where it does not."""
    right, first = score.right_above_wrong, score.first_choice
    text = (
        f"The model puts the right answer above the wrong one on {right.mean:.0%} of {score.n} prompts "
        f"[{right.low:.0%}, {right.high:.0%}] and makes it its first choice on {first.mean:.0%} "
        f"[{first.low:.0%}, {first.high:.0%}]."
    )
    if right.mean < CAPABLE:
        text += (
            f" That is under {CAPABLE:.0%}: a circuit of these prompts explains a behaviour that the model "
            "hardly has. Use prompts that it can do, or wb.competent(model, pairs)."
        )
    return text


def headline(run: DiscoveryRun) -> str:
    """What the circuit does on the test prompts, in units that a person has."""
    circuit, row = run.circuit, run.evaluation.sel(circuit="circuit")
    share = circuit.n_edges / circuit.graph.n_edges
    first = run.counterfactuals[0]
    one = row.sel(ablation=first)
    unit = f" {run.evaluation.attrs.get('unit', '')}".rstrip()
    ranges = {name: (float(one[name].mean())) for name in ("m_circuit", "m_full", "m_empty")}
    against = _against(run)
    held = [f"{name} ({value:.2f})" for name, value in against.items() if _holds(run, name)]
    missed = [f"{name} ({value:.2f})" for name, value in against.items() if not _holds(run, name)]
    others = [
        f"{name} values ({float(row['faithfulness'].sel(ablation=name)):.2f})"
        for name in row["ablation"].values
        if name not in against
    ]
    text = (
        f"{circuit.n_edges} of {circuit.graph.n_edges} edges ({share:.1%}): "
        f"{run.evaluation.attrs['metric']} {ranges['m_circuit']:.2f}{unit} of the model's "
        f"{ranges['m_full']:.2f} ({first}, every edge replaced: {ranges['m_empty']:.2f})."
    )
    if held:
        text += f" It reproduces the model against {' and '.join(held)}."
    if missed:
        text += f" It does not keep the criteria against {' and '.join(missed)}."
    if others:
        text += f" Not asked for: {', '.join(others)}."
    text += f" Prompt by prompt r {float(one['r']):.2f}, error {float(one['error']):.2f} of the mean gap."
    if max(against.values()) > 1.05:
        text += " Above 1 it does the task more than the model does: it leaves out what works against it."
    if len(against) == 1:
        text += " It was tested against one counterfactual only."
    return text


def _against(run: DiscoveryRun) -> dict[str, float]:
    """Counterfactual → the faithfulness of the circuit on the test prompts."""
    row = run.evaluation["faithfulness"].sel(circuit="circuit")
    return {name: float(row.sel(ablation=name)) for name in run.counterfactuals}


def _holds(run: DiscoveryRun, name: str) -> bool:
    """Whether all criteria hold on the test prompts against a counterfactual."""
    row = run.evaluation.sel(circuit="circuit", ablation=name)
    return all(bool(row[f"holds_{letter}"]) for letter in "abcd")


def summary_text(run: DiscoveryRun) -> str:
    """The JSON of `summary.json`; what was not measured is null."""
    facts = run.evaluation.attrs
    contents: dict[str, Any] = {
        "format": "workbench-discover-1",
        "title": title_of(run),
        "headline": headline(run),
        "competence": asdict(run.competence),
        "recommended": run.recommended,
        "passes_on_test": all(_holds(run, name) for name in run.counterfactuals),
        "criteria": asdict(run.criteria),
        "counterfactuals": list(run.counterfactuals),
        "n_edges": run.circuit.n_edges,
        "n_edges_of_graph": run.circuit.graph.n_edges,
        "circuits": {name: circuit.n_edges for name, circuit in run.circuits.items()},
        "test": _measures(run.evaluation),
        "in_sample": _measures(run.in_sample),
        "left_out": dict(run.left_out),
        "facts": {key: facts[key] for key in sorted(facts) if isinstance(facts[key], str | int | float)},
    }
    if run.competent is not None:
        contents["test_competent"] = _measures(run.competent) | {"n": run.competent.sizes["example"]}
    if run.frontier is not None:
        contents["frontier"] = {
            "smallest_passing": smallest_passing(run.frontier),
            "smallest_by_counterfactual": smallest_by_counterfactual(run.frontier),
            "measures": _plain(run.frontier.drop_attrs()),
        }
    for name in ("checks", "controls", "stability", "agreement", "multiverse"):
        measured = getattr(run, name)
        if measured is not None:
            # Whole tables of edges and prompts are in the other files.
            small = [key for key, column in measured.data_vars.items() if column.size <= 400]
            contents[name] = _plain(measured[small])
    return json.dumps(_without_nan(contents), indent=1) + "\n"


def _measures(evaluation: xr.Dataset) -> dict[str, Any]:
    """Ablation → circuit → its measures with intervals."""
    names = [f"{name}{end}" for name in MEASURES[1:] for end in ("", "_low", "_high")]
    names = ["faithfulness", "low", "high", *names]
    table: dict[str, Any] = {}
    for ablation in evaluation["ablation"].values:
        table[str(ablation)] = {}
        for circuit in evaluation["circuit"].values:
            cell = evaluation.sel(ablation=ablation, circuit=circuit)
            row: dict[str, Any] = {name: float(cell[name]) for name in names}
            row |= {name: float(cell[name].mean()) for name in ("m_circuit", "m_full", "m_empty")}
            if "holds_a" in cell:
                row["holds"] = "".join(letter for letter in "abcd" if bool(cell[f"holds_{letter}"]))
            table[str(ablation)][str(circuit)] = row
    return table


def _plain(dataset: xr.Dataset) -> dict[str, Any]:
    """A small Dataset as lists, with the coordinates that say what they are of."""
    plain: dict[str, Any] = {}
    for name, column in (*dataset.coords.items(), *dataset.data_vars.items()):
        plain[str(name)] = {"axes": list(map(str, column.dims)), "values": column.values.tolist()}
    if dataset.attrs:
        plain["attrs"] = {
            key: fact for key, fact in dataset.attrs.items() if isinstance(fact, str | int | float)
        }
    return plain


def _without_nan(value: Any) -> Any:
    """The same with null for every number that is not finite: JSON has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {str(key): _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
