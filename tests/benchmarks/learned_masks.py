"""Learned masks on models of known circuit: how faithful, how large, and whether a failure is said.

    python tests/benchmarks/learned_masks.py [--runs 100] [--json FILE]

Each run draws a planted model, a kind of value, a loss and a size around that of the true circuit. A run fails
silently where the faithfulness of its circuit is outside [.5, 1.5] though the true edges, cut to as many, are
inside, and nothing was said. The exit code is 1 if one does.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import workbench as wb
from workbench.circuit.graph import Graph
from workbench.engine.capture import capture_pairs
from workbench.engine.values import from_store, zero
from workbench.planted_models.planted import VARIANTS

LOW, HIGH = 0.5, 1.5
"""Faithfulness outside of this is a failure."""
METRICS = ("kl", "logit_diff")
VALUES = ("corrupt", "zero")


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        n_requested, n_edges: edges asked for and left.
        faithfulness: of the circuit, in `metric`: for "kl" the share of the empty circuit's that is gone.
        warned: whether anything was said.
    """

    model: str
    value: str
    metric: str
    n_true: int
    n_requested: int
    n_edges: int
    faithfulness: float
    logit_faithfulness: float
    warned: bool
    trainings: int
    seconds: float

    @property
    def failed(self) -> bool:
        return not LOW <= self.faithfulness <= HIGH

    @property
    def silent(self) -> bool:
        return self.failed and not self.warned


def trials(n: int, *, seed: int = 0, steps: int | None = None) -> Iterator[Trial]:
    """Runs with everything drawn from a seed."""
    draw = np.random.default_rng(seed)
    names = [str(name) for name in draw.permutation(list(VARIANTS))]
    for number in range(n):
        name, value = names[number % len(names)], VALUES[number // len(names) % 2]
        metric = str(draw.choice(METRICS))
        yield trial(name, value, metric, factor=float(draw.uniform(0.6, 1.6)), seed=number, steps=steps)


def trial(
    name: str, value: str, metric: str, *, factor: float = 1.0, seed: int = 0, steps: int | None = None
) -> Trial:
    """A circuit of `factor` times as many edges as the true one, learned on 16 prompts."""
    known = wb.planted(name, seed=seed % 5, n=16)
    pairs, graph = wb.planted_pairs(known), Graph.of(known.model)
    patched = zero() if value == "zero" else from_store(capture_pairs(known.model, pairs, progress=False)[1])
    n_true = len(known.edges[value])
    n_edges = min(graph.n_edges, max(2, round(factor * n_true)))
    more = {} if steps is None else {"steps": steps}
    start = time.thread_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        circuit = wb.learn_circuit(
            known.model,
            pairs,
            value=patched,
            metric=metric,
            n_edges=n_edges,
            seed=seed,
            progress=False,
            **more,
        )
    seconds = time.thread_time() - start
    by_metric = {}
    for measured in METRICS:
        result = wb.evaluate(
            circuit, known.model, pairs, value=patched, metric=measured, checks=(), progress=False
        )
        by_metric[measured] = float(result["faithfulness"].squeeze())
    return Trial(
        name, value, metric, n_true, n_edges, circuit.n_edges, by_metric[metric], by_metric["logit_diff"],
        bool(caught), int(circuit.attrs["trainings"]), seconds,
    )  # fmt: skip


def main() -> int:
    """Print a table, and a JSON line for each run where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, help="of each training; by default those of learn_circuit")
    given = parser.parse_args()
    rows = []
    print(f"{'model':18} {'value':8} {'loss':10} {'true':>4} {'asked':>5} {'left':>4} {'f':>7} {'f logits':>8} "
          f"{'tries':>5} {'s':>6}")  # fmt: skip
    for row in trials(given.runs, seed=given.seed, steps=given.steps):
        rows.append(row)
        verdict = "SILENT" if row.silent else "failed, said" if row.failed else "said" if row.warned else ""
        print(
            f"{row.model:18} {row.value:8} {row.metric:10} {row.n_true:4} {row.n_requested:5} {row.n_edges:4} "
            f"{row.faithfulness:7.3f} {row.logit_faithfulness:8.3f} {row.trainings:5} {row.seconds:6.1f} {verdict}",
            flush=True,
        )
    if given.json:
        given.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    for value in VALUES:
        of_value = [row for row in rows if row.value == value]
        if of_value:
            print(
                f"{value}: {len(of_value)} runs, median faithfulness "
                f"{np.median([row.faithfulness for row in of_value]):.3f}, outside [{LOW}, {HIGH}] "
                f"{sum(row.failed for row in of_value)}, of these silent {sum(row.silent for row in of_value)}, "
                f"warned {sum(row.warned for row in of_value)}"
            )
    return int(any(row.silent for row in rows))


if __name__ == "__main__":
    sys.exit(main())
