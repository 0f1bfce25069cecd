"""The smallest circuit of every behaviour of a model, and how far each method can be trusted there.

`smallest_circuits` yields rows, `behaviours_table` and `areas_table` show them. Sizes are searched on
training prompts; all else is measured on held-out ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.capture import capture_pairs
from workbench.engine.values import Value, from_store
from workbench.errors import CircuitError, PromptError, UnknownName
from workbench.evaluation.curves import faithfulness_curve, stability
from workbench.evaluation.evaluate import evaluate
from workbench.models.calls import model_call
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.progress import progress_bar
from workbench.prompts.pairs import PromptPairs
from workbench.tasks.registry import load_task
from workbench.tasks.task import TASKS

METHODS = ("eap", "eap-ig-inputs", "eap-ig-activations", "ig-activations", "clean-corrupt", "atp-star")


@dataclass(frozen=True)
class Behaviour:
    """What one method finds for one behaviour; all but the choice of edges is measured on held-out prompts.

    Attributes:
        n_edges: the fewest best-scored edges that keep `share` of the behaviour on the prompts of the search.
        n_pruned: of them, those that are not dead ends.
        faithfulness, low, high: of that circuit.
        at_1, at_1_low, at_1_high: faithfulness of the best-scored 1 % of the edges.
        cpr, cmd: with their intervals.
        jaccard, jaccard_low, jaccard_high: agreement of circuits of that size found on resampled prompts.
        smallest: whether no method needs fewer edges on the prompts of the search.
    """

    model: str
    task: str
    method: str
    share: float
    n_edges: int
    n_pruned: int
    faithfulness: float
    low: float
    high: float
    at_1: float
    at_1_low: float
    at_1_high: float
    cpr: float
    cpr_low: float
    cpr_high: float
    cmd: float
    cmd_low: float
    cmd_high: float
    jaccard: float
    jaccard_low: float
    jaccard_high: float
    smallest: bool = False


@model_call()
def smallest_circuits(
    model: Model,
    *,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] = METHODS,
    share: float = 0.9,
    n: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Iterator[list[Behaviour]]:
    """For one task after the other, a row for each method, in the order of `methods`.

    Args:
        tasks: None takes every task.
        methods: of `METHODS`.
        share: of the behaviour that the circuit has to keep.
        n: prompts of the search, and as many held-out ones to measure on.
        seed: of the prompts and of what a method draws.

    Raises:
        UnknownName: a task or a method that does not exist.
        CircuitError: a share that is not between 0 and 1.
        PromptError: too few prompts for intervals, or a task that does not suit the model.
    """
    wanted = list(TASKS) if tasks is None else list(tasks)
    for argument, names, known in (("tasks", wanted, TASKS), ("methods", methods, METHODS)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UnknownName(argument, unknown[0], known)
    if not 0 < share < 1:
        raise CircuitError(
            f"smallest_circuits: share={share}; it is a share of the behaviour, between 0 and 1."
        )
    if type(n) is not int or n < 2:
        raise PromptError(f"smallest_circuits: n={n}; intervals need at least two prompts.")
    with progress_bar(len(wanted) * len(methods), "behaviours", "row", shown=progress) as bar:
        for task in wanted:
            train, heldout = (_prompts(model, task, split, n, seed) for split in ("train", "heldout"))
            rows = []
            for method in methods:
                rows.append(_row(model, task, method, share, train, heldout, seed))
                bar.update()
            yield _marked(rows)


@dataclass(frozen=True)
class _TaskPrompts:
    """Prompts of one split, with the value that patches them: their corrupt run."""

    pairs: PromptPairs
    value: Value


def _prompts(model: Model, task: str, split: str, n: int, seed: int) -> _TaskPrompts:
    pairs = load_task(task, model, n=n, seed=seed, split=split)
    return _TaskPrompts(pairs, from_store(capture_pairs(model, pairs, progress=False)[1]))


def _row(
    model: Model, task: str, method: str, share: float, train: _TaskPrompts, heldout: _TaskPrompts, seed: int
) -> Behaviour:
    """One method on one task: found on `train`, measured on `heldout`."""
    metric = TASKS[task].metric
    searching: dict[str, Any] = {"value": train.value, "metric": metric}
    measuring: dict[str, Any] = {"value": heldout.value, "metric": metric, "progress": False}
    by_example = score_edges(
        model, train.pairs, method=method, keep=("example",), seed=seed, progress=False, **searching
    )
    scores = by_example.mean("example", skipna=False, keep_attrs=True)
    # Searched on training prompts: the size must not be chosen on those that judge it.
    circuit = find_circuit(scores, min_faithfulness=share, model=model, pairs=train.pairs, **searching)
    # Before pruning: that is what `find_circuit` counts, and what resamples are cut to.
    size = circuit.n_requested
    kept = evaluate(circuit, model, heldout.pairs, checks=(), **measuring).squeeze()
    agreement = stability(by_example, find=lambda sample: find_circuit(sample, n_edges=size), seed=seed)
    signed, sized = (
        faithfulness_curve(scores, model, heldout.pairs, by=by, **measuring) for by in ("signed", "magnitude")
    )
    intervals: dict[str, Any] = {
        "faithfulness": kept["faithfulness"], "low": kept["low"], "high": kept["high"],
        "jaccard": agreement["jaccard"], "jaccard_low": agreement["low"], "jaccard_high": agreement["high"],
    }  # fmt: skip
    for end, name in (("", "faithfulness"), ("_low", "low"), ("_high", "high")):
        intervals |= {f"at_1{end}": sized[name].sel(size=0.01)}
        intervals |= {f"cpr{end}": signed.attrs[f"area{end}"], f"cmd{end}": sized.attrs[f"area{end}"]}
    numbers: dict[str, Any] = {name: float(number) for name, number in intervals.items()}
    return Behaviour(model_name(model), task, method, share, size, circuit.n_edges, **numbers)


def _marked(rows: list[Behaviour]) -> list[Behaviour]:
    """The rows, with `smallest` set on those that have the fewest edges."""
    fewest = min(row.n_edges for row in rows)
    return [replace(row, smallest=row.n_edges == fewest) for row in rows]


def behaviours_table(rows: Sequence[Behaviour]) -> pd.DataFrame:
    """The smallest circuit of each behaviour; of several as small, the one with the least CMD."""
    best: dict[str, Behaviour] = {}
    for row in rows:
        if row.smallest and (row.task not in best or row.cmd < best[row.task].cmd):
            best[row.task] = row
    return pd.DataFrame(
        {
            "behaviour": row.task, "method": row.method, "edges": row.n_edges, "pruned": row.n_pruned,
            "faithfulness": _interval(row.faithfulness, row.low, row.high),
            "Jaccard": _interval(row.jaccard, row.jaccard_low, row.jaccard_high),
        }
        for row in best.values()
    )  # fmt: skip


def areas_table(rows: Sequence[Behaviour]) -> pd.DataFrame:
    """Every method on every behaviour: size, faithfulness at 1 % of the edges, CPR and CMD."""
    return pd.DataFrame(
        {
            "behaviour": row.task, "method": row.method, "edges": row.n_edges,
            "at 1 %": _interval(row.at_1, row.at_1_low, row.at_1_high),
            "CPR": _interval(row.cpr, row.cpr_low, row.cpr_high),
            "CMD": _interval(row.cmd, row.cmd_low, row.cmd_high),
            "Jaccard": _interval(row.jaccard, row.jaccard_low, row.jaccard_high),
        }
        for row in rows
    )  # fmt: skip


def _interval(middle: float, low: float, high: float) -> str:
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"
