"""`summary.json`: the numbers of a `discover` by name, for scripts. Read `summary_text`, which lists the keys.

Whole tables of edges and of prompts are in the other files of the folder. Nothing is measured here.
"""

import json
from typing import Any

import numpy as np
import xarray as xr

from workbench.discovery.criteria import LETTERS
from workbench.discovery.frontier import failing, smallest_by_counterfactual, smallest_passing
from workbench.engine.resemblance import MEASURES
from workbench.tasks.measure import Estimate
from workbench.workflows.discovery_run import DiscoveryRun
from workbench.workflows.verdict import CAPABLE, headline, passes_on_test, title_of, verdict

DIGITS = 5
"""Significant digits of every number."""


def summary_text(run: DiscoveryRun) -> str:
    """The JSON of `summary.json`. What was not measured is null or left out; `[x, low, high]` is with its interval.

    format                    "workbench-discover-1"
    title, headline           the sentences that the report begins with
    verdict                   "circuit", "fails on test prompts", "too large" or "no circuit"
    recommended               whether the criteria hold on the prompts that chose the size
    passes_on_test            whether they hold on the test prompts, against every counterfactual
    chosen_by                 "criteria", "size" or "method"
    criteria                  their bounds, as in `Criteria`
    counterfactuals           what they were held to
    n_edges, n_edges_of_graph, share_of_edges
    circuits                  name → number of edges
    competence                n, right_above_wrong, first_choice, clean, corrupt (of each counterfactual), capable
    test                      ablation → circuit → measures, on the test prompts
    test_competent            the same, and n, on those that the model gets right; left out where these are all
    in_sample                 the same on the prompts to find with
    frontier                  smallest_passing, smallest_by_counterfactual, rows (a size and a counterfactual)
    controls                  specific (by counterfactual), rows (a control and a counterfactual)
    stability                 draws, near, found, median_size, jaccard, jaccard_near, sizes, core_size, core
    agreement                 rows (a direction and a counterfactual), or_like and and_like (edges)
    checks                    complement, random, incompleteness (and of which components), minimal, unneeded
    multiverse                n_specifications, jaccard (by choice), robust (edges)
    left_out                  section → why it could not be made
    facts                     model, task, metric, seed, fingerprints, versions

    measures: faithfulness, error, prompts_near, r, kl_recovered, answers_kept, same_choice, each with its
    interval; m_circuit, m_full and m_empty, the mean metric of circuit, model and no edge; holds, the letters of
    the criteria.
    """
    facts = run.evaluation.attrs
    graph = run.circuit.graph
    contents: dict[str, Any] = {
        "format": "workbench-discover-1",
        "title": title_of(run),
        "headline": headline(run),
        "verdict": verdict(run),
        "recommended": run.recommended,
        "passes_on_test": passes_on_test(run),
        "chosen_by": run.chosen_by,
        "criteria": vars(run.criteria),
        "counterfactuals": list(run.counterfactuals),
        "n_edges": run.circuit.n_edges,
        "n_edges_of_graph": graph.n_edges,
        "share_of_edges": run.circuit.n_edges / graph.n_edges,
        "circuits": {name: circuit.n_edges for name, circuit in run.circuits.items()},
        "competence": _competence(run),
        "test": _measures(run.evaluation),
    }
    if run.competent is not None:
        contents["test_competent"] = {"n": run.competent.sizes["example"]} | _measures(run.competent)
    contents["in_sample"] = _measures(run.in_sample)
    parts = {
        "frontier": (run.frontier, _frontier), "controls": (run.controls, _controls),
        "stability": (run.stability, _stability), "agreement": (run.agreement, _agreement),
        "checks": (run.checks, _checks), "multiverse": (run.multiverse, _multiverse),
    }  # fmt: skip
    for name, (measured, contents_of) in parts.items():
        if measured is not None:
            contents[name] = contents_of(measured)
    contents["left_out"] = dict(run.left_out)
    contents["facts"] = {
        key: facts[key] for key in sorted(facts) if isinstance(facts[key], str | int | float)
    }
    return _json(_plain(contents)) + "\n"


def _competence(run: DiscoveryRun) -> dict[str, Any]:
    score = run.competence
    return {
        "n": score.n,
        "right_above_wrong": _estimate(score.right_above_wrong),
        "first_choice": _estimate(score.first_choice),
        "capable": bool(score.right_above_wrong.mean >= CAPABLE),
        "metric": score.metric,
        "clean": _estimate(score.clean),
        "corrupt": {name: _estimate(one) for name, one in score.corrupt.items()},
    }


def _estimate(estimate: Estimate) -> list[float]:
    return [estimate.mean, estimate.low, estimate.high]


def _measures(evaluation: xr.Dataset) -> dict[str, Any]:
    """Ablation → circuit → its measures; only the first circuit is tested with values that chose none."""
    rows: dict[str, Any] = {}
    for ablation in map(str, evaluation["ablation"].values):
        cells = {
            str(name): evaluation.sel(ablation=ablation, circuit=name)
            for name in evaluation["circuit"].values
        }
        rows[ablation] = {
            name: _row(cell) for name, cell in cells.items() if bool(cell["m_circuit"].notnull().any())
        }
    return rows


def _row(cell: xr.Dataset) -> dict[str, Any]:
    """The measures of one circuit against one counterfactual."""
    row: dict[str, Any] = {}
    for name in MEASURES:
        prefix = "" if name == "faithfulness" else f"{name}_"
        row[name] = _numbers(cell, name, f"{prefix}low", f"{prefix}high")
    row |= {name: float(cell[name].mean()) for name in ("m_circuit", "m_full", "m_empty")}
    if "holds_a" in cell:
        failed = failing(cell)
        row["holds"] = "".join(letter for letter in LETTERS if letter not in failed)
    return row


def _numbers(cell: xr.Dataset, *names: str) -> list[float]:
    return [float(cell[name]) for name in names]


def _with_interval(cell: xr.Dataset, name: str) -> list[float]:
    return _numbers(cell, name, f"{name}_low", f"{name}_high")


def _frontier(frontier: xr.Dataset) -> dict[str, Any]:
    rows = []
    for size in frontier["size"].values:
        for name in frontier["ablation"].values:
            cell = frontier.sel(size=size, ablation=name)
            row = {"size": int(size), "against": str(name)} | _row(cell)
            # The same in every row of a counterfactual.
            del row["m_full"], row["m_empty"]
            rows.append(row | {"passes": bool(cell["passes"])})
    return {
        "smallest_passing": smallest_passing(frontier),
        "smallest_by_counterfactual": smallest_by_counterfactual(frontier),
        "rows": rows,
    }


def _controls(controls: xr.Dataset) -> dict[str, Any]:
    rows = []
    for control in controls["control"].values:
        for name in controls["ablation"].values:
            cell = controls.sel(control=control, ablation=name)
            row: dict[str, Any] = {"control": str(control), "against": str(name)}
            row |= {measure: _with_interval(cell, measure) for measure in ("faithfulness", "error")}
            row |= {
                key: float(cell[key])
                for key in ("faithfulness_percentile", "error_percentile", "holds", "draws", "shared_edges")
            }
            rows.append(row | {"note": str(cell["note"].item())})
    specific = controls["specific"]
    return {
        "specific": {str(name): float(specific.sel(ablation=name)) for name in controls["ablation"].values},
        "rows": rows,
    }


def _stability(stability: xr.Dataset) -> dict[str, Any]:
    core = {}
    for name in stability["ablation"].values:
        cell = stability.sel(ablation=name)
        core[str(name)] = {
            measure: _with_interval(cell, f"core_{measure}") for measure in ("faithfulness", "error")
        }
    return {
        "draws": stability.sizes["draw"],
        "near": stability.attrs["near"],
        "found": _with_interval(stability, "found"),
        "median_size": _numbers(stability, "median_size", "size_low", "size_high"),
        "jaccard": _with_interval(stability, "jaccard"),
        "jaccard_near": _with_interval(stability, "jaccard_near"),
        "sizes": stability["size"].values.tolist(),
        "core_size": int(stability["core_size"]),
        "core": core,
    }


def _agreement(agreement: xr.Dataset) -> dict[str, Any]:
    rows = []
    for direction in agreement["direction"].values:
        for name in agreement["ablation"].values:
            cell = agreement.sel(direction=direction, ablation=name)
            row: dict[str, Any] = {"direction": str(direction), "against": str(name)}
            for stratum in agreement["stratum"].values:
                row[f"spearman_{stratum}"] = _with_interval(cell.sel(stratum=stratum), "spearman")
            rows.append(row | {key: float(cell[key]) for key in ("median", "above", "above_bound")})
    contents: dict[str, Any] = {
        "n": dict(zip(map(str, agreement["stratum"].values), agreement["n"].values.tolist(), strict=True)),
        "rows": rows,
    }
    for kind in ("or-like", "and-like"):
        contents[kind.replace("-", "_")] = {
            str(name): edges_of_kind(agreement, kind, str(name)) for name in agreement["ablation"].values
        }
    return contents


def edges_of_kind(agreement: xr.Dataset, kind: str, ablation: str) -> list[str]:
    """The edges of the sample that are strong in one direction only."""
    kinds = agreement["one_direction"].sel(ablation=ablation).values.astype(str)
    return [str(edge) for edge in agreement["edge"].values[kinds == kind]]


def _checks(checks: xr.Dataset) -> dict[str, Any]:
    contents: dict[str, Any] = {key: float(checks[key]) for key in ("complement", "random", "minimal")}
    contents["incompleteness"] = _with_interval(checks, "incompleteness")
    contents["incompleteness_set"] = str(checks["incompleteness_set"].item())
    contents["unneeded"] = str(checks["unneeded"].item())
    return contents


def _multiverse(multiverse: xr.Dataset) -> dict[str, Any]:
    cells = np.argwhere(multiverse["robust"].values)
    writers, readers = multiverse["writer"].values, multiverse["reader"].values
    return {
        "n_specifications": multiverse.attrs["n_specifications"],
        "jaccard": {
            str(choice): _with_interval(multiverse.sel(choice=choice), "jaccard")
            for choice in multiverse["choice"].values
        },
        "robust": [f"{writers[u]}->{readers[v]}" for u, v in cells.tolist()],
    }


def _plain(value: Any) -> Any:
    """The same with `DIGITS` digits, and null for every number that is not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        # + 0.0 turns -0.0 into 0.0.
        return float(f"{value:.{DIGITS}g}") + 0.0 if np.isfinite(value) else None
    return value


def _json(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry, and what is small enough on one line."""
    line = json.dumps(value)
    if not isinstance(value, dict | list) or len(line) + len(indent) <= 110 or not value:
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_json(one, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _json(one, inner) for one in value) + f"\n{indent}]"
