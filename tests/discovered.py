"""A `DiscoveryRun` without a model: the numbers are given, so that sentences can be told from them by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.criteria import Criteria
from workbench.engine.resemblance import MEASURES
from workbench.sites import Shape
from workbench.tasks.measure import Estimate, Score
from workbench.workflows.discovery_run import DiscoveryRun

GRAPH = Graph(Shape(8, 1, 1, 16, 8, 32, 20, 16))
GOOD = {
    "faithfulness": 0.98, "low": 0.96, "high": 1.0, "error": 0.06, "prompts_near": 0.95, "r": 0.9, "kl_recovered": 0.97,
    "answers_kept": 1.0, "same_choice": 0.95, "m_circuit": 2.94, "m_full": 3.0, "m_empty": -2.9,
}  # fmt: skip
"""The measures of a circuit that keeps all criteria."""


def circuit(n_edges: int) -> Circuit:
    """So many edges without a dead end: the embeddings to the logits, and through one MLP after the other."""
    names = ["input->logits"]
    for layer in range((n_edges - 1) // 2):
        names += [f"input->m{layer}", f"m{layer}->logits"]
    if n_edges % 2 == 0:
        names.append("m0->m1")
    return Circuit.of(GRAPH, names)


def evaluation(measures: Mapping[str, Mapping[str, float]], circuits: Sequence[str]) -> xr.Dataset:
    """Ablation → measures, the same for every circuit, with the criteria that hold."""
    names, n = list(measures), len(circuits)
    columns: dict[str, Any] = {}
    for key in GOOD:
        values = np.array([[(GOOD | dict(measures[name]))[key]] * n for name in names])
        columns[key] = (("ablation", "circuit"), values)
    # As `evaluate` has them: the model and the empty circuit are the same for every circuit.
    for key in ("m_full", "m_empty"):
        columns[key] = ("ablation", columns[key][1][:, 0])
    for key in MEASURES[1:]:
        columns[f"{key}_low"] = columns[f"{key}_high"] = columns[key]
    held = Criteria().held({key: values for key, (_, values) in columns.items()})
    columns |= {f"holds_{letter}": (("ablation", "circuit"), holds) for letter, holds in held.items()}
    attrs = {"model": "tiny", "task": "ioi", "metric": "logit_diff", "unit": "logits", "n": 128}
    return xr.Dataset(columns, coords={"ablation": names, "circuit": list(circuits)}, attrs=attrs)


def frontier(counterfactuals: Sequence[str], passing: Mapping[str, int | None]) -> xr.Dataset:
    """Sizes from 2 to 32, that pass from a given one on."""
    sizes = np.array([2, 4, 8, 16, 32])
    rows = [sizes >= (passing[name] or np.inf) for name in counterfactuals]
    columns: dict[str, Any] = {}
    for key in (
        "faithfulness",
        "low",
        "high",
        *(f"{m}{e}" for m in MEASURES[1:] for e in ("", "_low", "_high")),
    ):
        columns[key] = (("ablation", "size"), np.tile(sizes / 32, (len(rows), 1)))
    columns |= {f"holds_{letter}": (("ablation", "size"), np.array(rows)) for letter in "abcd"}
    columns["passes"] = (("ablation", "size"), np.array(rows))
    columns["passes_all"] = ("size", np.all(rows, 0))
    columns["m_circuit"] = columns["faithfulness"]
    columns |= {
        "m_full": ("ablation", np.full(len(rows), 3.0)),
        # Against the first a metric of 0 lies half-way, against others nothing is left.
        "m_empty": ("ablation", np.array([-3.0] + [0.0] * (len(rows) - 1))),
    }  # fmt: skip
    facts = {
        "kind": "frontier", "metric": "logit_diff", "faithfulness_from": 0.85, "faithfulness_to": 1.15,
        "error_at_most": 0.15, "kl_recovered_at_least": 0.9, "answers_kept_at_least": 0.95,
        "same_choice_at_least": 0.85, "largest": 16, "n_edges_of_graph": GRAPH.n_edges, "chosen": 8, "n": 64,
    }  # fmt: skip
    return xr.Dataset(columns, coords={"ablation": list(counterfactuals), "size": sizes}, attrs=facts)


def discovery_run(
    measures: Mapping[str, Mapping[str, float]],
    *,
    others: Mapping[str, Mapping[str, float]] | None = None,
    right: float = 0.95,
    circuits: Mapping[str, int] | None = None,
    passing: Mapping[str, int | None] | None = None,
    **fields: Any,
) -> DiscoveryRun:
    """A run whose circuit has these measures against each counterfactual, and others with each value.

    Args:
        right: the share of prompts with right above wrong.
        circuits: name → number of edges, beside the circuit's 8.
        passing: counterfactual → the size from which on it passes; None: no frontier.
    """
    own = {name: circuit(n) for name, n in ({"circuit": 8} | dict(circuits or {})).items()}
    scores = xr.DataArray(np.zeros(GRAPH.exists.shape), dims=("writer", "reader"))
    share = Estimate(right, right - 0.05, min(1.0, right + 0.03))
    return DiscoveryRun(
        circuit=own["circuit"],
        recommended=fields.pop("recommended", True),
        criteria=fields.pop("criteria", Criteria()),
        competence=Score("ioi", 64, right, np.nan, "", Estimate(0.7, 0.6, 0.8), share),
        scores=scores,
        frontier=None if passing is None else frontier(list(measures), passing),
        evaluation=evaluation({**measures, **(others or {})}, list(own)),
        in_sample=evaluation(measures, ["circuit"]),
        circuits=own,
        heads=xr.DataArray(np.zeros((2, 2)), dims=("layer", "head")),
        patching=None,
        folder=Path("run"),
        **fields,
    )
