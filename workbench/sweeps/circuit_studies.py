"""The studies of circuits: `circuits` in files, `methods` that find them, and their `stability` over seeds.

Each is a function of `measure.STUDIES`. A circuit that is found is judged on the prompts of the other split.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.circuit.circuit import Circuit
from workbench.discovery.methods import find_by
from workbench.discovery.scores import METHODS as SCORES
from workbench.evaluation.curves import faithfulness_curve
from workbench.evaluation.evaluate import evaluate
from workbench.sweeps.job_context import JobContext, Measurement
from workbench.sweeps.jobs import Job


def circuits(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    """How faithful the circuits in files are."""
    # All files are read before the first circuit is run: a file that cannot be read is known at once.
    loaded = [Circuit.load(job.what) for job in jobs]
    return [_evaluated(context, circuit) for circuit in loaded]


def _evaluated(context: JobContext, circuit: Circuit, extra: Mapping[str, Any] | None = None) -> Measurement:
    """A circuit's faithfulness on the setting's prompts."""
    result = evaluate(
        circuit,
        context.model,
        context.pairs,
        value=context.value(),
        checks=(),
        metric=context.metric,
        progress=False,
    ).isel(circuit=0)
    numbers: dict[str, Any] = {name: float(result[name]) for name in ("faithfulness", "low", "high")}
    numbers["edges_in_circuit"] = int(circuit.n_edges)  # pyright: ignore[reportArgumentType]
    return Measurement([], context.base(), numbers | dict(extra or {}))


def _discovered(context: JobContext, job: Job) -> Any:
    """What a job's method finds on the setting's prompts: a circuit, and its scores where it has some."""
    method, _, size = job.what.rpartition("@")
    n_edges = None
    if method != "acdc":  # ACDC stops at a threshold, and refuses a size
        n_edges = int(size)
    return find_by(
        method,
        context.model,
        context.pairs,
        value=context.value(),
        n_edges=n_edges,
        seed=context.setting.seed,
        metric=context.metric,
        progress=False,
    )


def methods(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    """What methods find, judged on the prompts of the other split."""
    measured: list[Measurement] = []
    heldout = context.heldout
    for job in jobs:
        start = time.perf_counter()
        discovery = _discovered(context, job)
        extra = {"find_seconds": time.perf_counter() - start}
        if job.what.rpartition("@")[0] in SCORES:
            # CPR wants edges that raise the metric, CMD those that keep it as it is: each has a ranking.
            for name, by in (("cpr", "signed"), ("cmd", "magnitude")):
                curve = faithfulness_curve(
                    discovery.scores,
                    heldout.model,
                    heldout.pairs,
                    value=heldout.value(),
                    by=by,
                    metric=heldout.metric,
                    progress=False,
                )
                extra[name] = float(curve.attrs["area"])
        measured.append(_evaluated(heldout, discovery.circuit, extra))
    return measured


def stability(context: JobContext, jobs: Sequence[Job]) -> list[Measurement]:
    """What a method finds on the prompts of a seed."""
    measured: list[Measurement] = []
    for job in jobs:
        circuit = _discovered(context, job).circuit
        edges = [f"{edge.writer}->{edge.reader}" for edge in circuit.edge_list]
        measured.append(_evaluated(context.heldout, circuit, {"edges": edges}))
    return measured
