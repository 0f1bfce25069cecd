"""`controls`: circuits that ought to do worse than a circuit, run on the same prompts.

A circuit that keeps the criteria may owe it to what any circuit of its kind would do. So others of the same
size are measured beside it, the hardest to beat first: the same shape through other heads, the circuit of
another task, the strongest edges with random ones for the rest. Random paths and the complement come last:
they fail for nearly every circuit that holds the backbone of the model, and so say little. Read `controls`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.circuit.random import random_circuits, relocated
from workbench.discovery.criteria import Criteria
from workbench.discovery.frontier import holds_all, measure_against
from workbench.discovery.score_arrays import graph_of, joint_scores, matrix_of
from workbench.engine.circuits import Circuits, graph_of_runs
from workbench.errors import CircuitError
from workbench.models.calls import model_call
from workbench.results import clean_attrs
from workbench.statistics import ROUNDING, central, check_level, check_seed

KEPT = 100
"""How many of the strongest edges "strongest and random" keeps; at most half of the circuit's."""
RANDOM_DRAWS = 20
"""Draws of the controls with random edges and random paths."""
OTHER_HEADS, OTHER_TASK = "other heads", "another task"
STRONGEST, PATHS, COMPLEMENT = "strongest and random", "random paths", "complement"
Masks = Bool[np.ndarray, "circuit *pos_class writer reader"]


@dataclass(frozen=True, eq=False)
class _Control:
    """Circuits of one kind.

    Attributes:
        masks: without dead ends; none where the control cannot be made, and `why` says so.
        is_drawn: whether they were drawn at random: their interval is then over draws, else over prompts.
    """

    masks: Masks
    is_drawn: bool = True
    why: str = ""


@checked
@model_call()
def controls(
    circuit: Circuit,
    runs: Mapping[str, Circuits],
    *,
    criteria: Criteria,
    draws: int = 50,
    other: Circuit | None = None,
    scores: xr.DataArray | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Faithfulness and error of circuits to compare a circuit with, against each counterfactual.

    "other heads": every head's edges go to another head of its layer (`relocated`), `draws` times: the circuit
    is *specific* where its error is below that of all of them. "another task": the circuit `other`. "strongest
    and random": its 100 strongest edges (half of them, where it has fewer than 200), and random edges of the
    graph up to the same number, 20 times. "random paths": whole paths up to its number of edges, 20 times.
    (Paths are whole in the graph that all runs share, `graph_of_runs`.) "complement": all edges that it lacks.
    Dead ends are pruned; a draw of which nothing is left counts like the others.

    Cost: 2 + `draws` + 40 circuits (one more with `other`) on every prompt and counterfactual, and the empty
    circuit.

    Args:
        runs: counterfactual → runs of circuits against it, on prompts that did not choose the circuit.
        criteria: of `holds`.
        draws: circuits through other heads.
        other: the circuit of another task on the same graph, found with as many edges.
        scores: which edges of the circuit are strongest, joined by `joint_scores`; None takes the circuit's.
        level: coverage of the intervals.
        seed: of the draws and of intervals over prompts.

    Returns:
        Dataset over (control, ablation): `faithfulness` and `error` (means over draws), each with `_low` and
        `_high`: of controls that are drawn the central share of the draws, else the bootstrap interval over
        prompts (`interval_over` says which); `holds` (share of draws that keep all criteria); of the circuit
        itself among the draws `faithfulness_percentile` (percent of them farther from 1) and
        `error_percentile` (percent with a larger error), where equal ones count against the circuit.
        Over (control,): `draws`, `distinct` (different circuits among them), `n_edges` (mean),
        `shared_edges` (mean share of the circuit's edges that the control has too), `note` (why a control
        could not be made; its numbers are NaN). Over (ablation,): `circuit_faithfulness` and `circuit_error`
        with `_low` and `_high`, and `specific` (1, 0; NaN where no head can be moved).
        attrs: `n_edges` of the circuit, `n` (prompts), `kept` (strongest edges), `other_task` (its name).

    Raises:
        CircuitError: no runs, too few draws, or circuits, scores or runs of different graphs.

    >>> import workbench as wb
    >>> from workbench.engine.circuits import Circuits
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> circuit = wb.find_circuit(wb.score_edges(model, pairs, value=wb.zero(), progress=False), n_edges=60)
    >>> metric = wb.metric("logit_diff")
    >>> runs = {"zero": Circuits(model, circuit.graph, pairs, value=wb.zero(), metric=metric)}
    >>> controls(circuit, runs, criteria=wb.Criteria(), draws=2)["control"].values.tolist()
    ['other heads', 'strongest and random', 'random paths', 'complement']
    """
    check_level(level)
    check_seed(seed)
    if draws < 1:
        raise CircuitError(f"controls: draws={draws}; at least one circuit through other heads is needed.")
    check_graph_of_runs("controls", circuit, runs)
    if other is not None and other.graph != circuit.graph:
        raise CircuitError(
            f"controls: other= is a circuit of another graph: {other.graph}; this one has {circuit.graph}."
        )
    graph = graph_of_runs(runs)
    own = graph.prune(circuit.edges)
    n_kept = min(KEPT, int(own.sum()) // 2)
    by_name = {OTHER_HEADS: _other_heads(graph, own, draws, seed)}
    if other is not None:
        by_name[OTHER_TASK] = _Control(graph.prune(other.edges)[None], is_drawn=False)
    by_name[STRONGEST] = _strongest_and_random(graph, circuit, own, scores, n_kept, seed)
    # As many as were chosen: dead ends are part of what random circuits have to survive too.
    size = min(circuit.n_requested, graph.n_edges)
    paths = random_circuits(graph, size, draws=RANDOM_DRAWS, seed=seed, paths=True)
    by_name[PATHS] = _Control(graph.prune(paths))
    rest = graph.prune(graph.exists & ~own)
    by_name[COMPLEMENT] = _Control(rest[None], is_drawn=False)
    # All in one: circuits that are alike are run once, and all share the base runs of a batch.
    masks = np.concatenate([own[None], *(control.masks for control in by_name.values())])
    measured = measure_against(masks, runs, criteria, level=level, seed=seed, progress=progress)
    first, tables = 1, []
    for control in by_name.values():
        places = range(first, first + len(control.masks))
        tables.append(_table(control, own, measured, places, level))
        first += len(control.masks)
    table = xr.concat(tables, "control").assign_coords(control=list(by_name))
    for name in ("faithfulness", "error"):
        prefix = "" if name == "faithfulness" else f"{name}_"
        ends = {"": name, "_low": f"{prefix}low", "_high": f"{prefix}high"}
        for end, column in ends.items():
            table[f"circuit_{name}{end}"] = ("ablation", measured[column].values[:, 0])
    beaten = table["error_percentile"].sel(control=OTHER_HEADS, drop=True)
    table["specific"] = (beaten == 100).astype(float).where(beaten.notnull())
    facts = {
        "kind": "controls", "level": level, "seed": seed, "n_edges": int(own.sum()), "kept": n_kept,
        "other_task": "" if other is None else str(other.attrs.get("task", "")),
        "n": len(next(iter(runs.values())).pairs),
    }  # fmt: skip
    return table.assign_attrs(clean_attrs(facts))


def check_graph_of_runs(caller: str, circuit: Circuit, runs: Mapping[str, Circuits]) -> None:
    """Raise `CircuitError` unless there are runs, all of the circuit's graph."""
    if not runs:
        raise CircuitError(f"{caller}: no runs are given; give one for each counterfactual, by its name.")
    for name, one in runs.items():
        if one.graph != circuit.graph:
            raise CircuitError(
                f"{caller}: the runs against {name!r} are of another graph: {one.graph}; the circuit has "
                f"{circuit.graph}."
            )


def _other_heads(graph: Graph, own: np.ndarray, draws: int, seed: int) -> _Control:
    """The circuit through other heads; none where there is no other head to go to."""
    moved = graph.prune(relocated(graph, own, draws=draws, seed=seed))
    if (moved == own).all():
        why = "the circuit has no head, or all heads of a layer alike"
        if graph.shape.n_kv_heads == 1:
            why = "each layer has a single group of heads"
        return _Control(moved[:0], why=f"No head can be moved: {why}.")
    return _Control(moved)


def _strongest_and_random(
    graph: Graph, circuit: Circuit, own: np.ndarray, scores: xr.DataArray | None, n_kept: int, seed: int
) -> _Control:
    """The strongest edges of the circuit and random ones up to its number."""
    strength = circuit.scores
    if scores is not None:
        joint = joint_scores(scores)
        if graph_of(joint) != graph:
            raise CircuitError(
                f"controls: scores= are of another graph: {graph_of(joint)}; the circuit has {graph}."
            )
        strength = matrix_of(joint, graph)
    if strength is None or n_kept == 0:
        why = "The circuit has no scores: pass scores=." if strength is None else "Fewer than two edges."
        return _Control(np.zeros((0, *own.shape), dtype=bool), why=why)
    rank = np.where(own, np.abs(strength), -np.inf)
    kept = np.zeros(own.size, dtype=bool)
    kept[np.argsort(-rank, axis=None, kind="stable")[:n_kept]] = True
    kept = kept.reshape(own.shape)
    missing = int(own.sum()) - n_kept
    filled = random_circuits(graph, missing, draws=RANDOM_DRAWS, seed=seed, within=graph.exists & ~kept)
    return _Control(graph.prune(filled | kept))


def _table(
    control: _Control, own: np.ndarray, measured: xr.Dataset, places: range, level: float
) -> xr.Dataset:
    """The row of one control: over (ablation,) what was measured, and what its circuits are."""
    masks, n = control.masks, len(control.masks)
    unknown = np.full(measured.sizes["ablation"], np.nan)
    columns: dict[str, object] = {}
    for name in ("faithfulness", "error"):
        prefix = "" if name == "faithfulness" else f"{name}_"
        # [circuit, ablation]
        values = measured[name].values.T
        of_draws, circuit_itself = values[list(places)], values[0]
        means = low = high = percentile = unknown
        if n:
            means = of_draws.mean(0)
            low, high = central(of_draws, level)
        if n and not control.is_drawn:
            low, high = (measured[f"{prefix}{end}"].values[:, places[0]] for end in ("low", "high"))
        if n and control.is_drawn:
            percentile = _percentile(of_draws, circuit_itself, target=float(name == "faithfulness"))
        columns |= {
            name: ("ablation", means), f"{name}_low": ("ablation", low), f"{name}_high": ("ablation", high),
            f"{name}_percentile": ("ablation", percentile),
        }  # fmt: skip
    holds = unknown
    if n:
        holds = holds_all(measured).values[:, list(places)].mean(1)
    inside = (masks & own).reshape(n, own.size).sum(1)
    columns |= {
        "holds": ("ablation", holds),
        "draws": ((), n),
        "distinct": ((), len({mask.tobytes() for mask in masks})),
        "n_edges": ((), float(masks.reshape(n, own.size).sum(1).mean()) if n else np.nan),
        "shared_edges": ((), float(inside.mean() / own.sum()) if n and own.any() else np.nan),
        "interval_over": ((), "draws" if control.is_drawn else "prompts"),
        "note": ((), control.why),
    }
    return xr.Dataset(columns, coords={"ablation": measured["ablation"].values})


def _percentile(of_draws: np.ndarray, own: np.ndarray, *, target: float) -> np.ndarray:
    """[ablation]: percent of draws [draw, ablation] that are farther from the target than the circuit.

    NaN where the circuit or a draw is unknown.
    """
    distances, own_distance = np.abs(of_draws - target), np.abs(own - target)
    # Two runs of the same circuit differ by rounding, which must not count as a win. Both measures are shares.
    percent = 100 * (distances > own_distance + ROUNDING).mean(0)
    return np.where(np.isnan(distances).any(0) | np.isnan(own_distance), np.nan, percent)
