"""Sweeps against a loop of TransformerLens' run_with_hooks, one call per job; what they cost beside their runs; Ray.

    python tests/benchmarks/sweeps.py [--quick] [--json] [--only PART]

The peer is timed on a sample of the jobs, spread evenly, and scaled up; both write the same value at the same places of the same
prompts, and the difference is the largest over the sample. Limits are written as a ratio limit / measured with the bar 1.
"""

import statistics
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from side_by_side import Line, arguments, gpt2, pairs, show_cases

import workbench as wb
from workbench.sites import Site
from workbench.sweeps import execute, pool
from workbench.sweeps.inputs import JobInputs, JobSetting
from workbench.sweeps.jobs import plan
from workbench.sweeps.log import last_tries, read_log
from workbench.sweeps.runner import run_sweep
from workbench.sweeps.spec import read_spec

N, SEEN = 8, 60
VALUES = ["zero", "mean", "resample"]


def limit(case: str, most: float, measured: float, unit: str) -> Line:
    return Line(
        f"{case}: {measured:.4g} of {most:.4g} {unit}",
        "the limit",
        1,
        round(most / measured, 3),
        0,
        0,
        0,
        0,
        0,
        0,
    )


def spec() -> dict[str, Any]:
    """5,001 jobs on `tiny`: every head and 1,635 neurons, spread evenly over the layers, by three values."""
    every = [str(site) for site in wb.grid("mlp_post", wb.load_model("tiny"))]
    neurons = [every[i * len(every) // 1635] for i in range(1635)]
    return {"study": "effects", "sites": ["z", *neurons], "tasks": ["ioi"], "n": N, "values": VALUES}


def hook(site: Site, content: torch.Tensor) -> Callable[..., torch.Tensor]:
    def write(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, :, site.neuron if site.neuron is not None else site.head] = content
        return value

    return write


NAMES = {"z": "blocks.{}.attn.hook_z", "mlp_post": "blocks.{}.mlp.hook_post"}


def loop(
    model: Any, given: Any, jobs: Sequence[tuple[str, str]], measured: Callable, contents: Any
) -> list[float]:
    """The peer: one forward pass with a hook per job."""
    made = []
    with torch.no_grad():
        base = measured(model(given.clean.tokens))
        for what, value in jobs:
            site = Site.parse(what)
            hooks = [(NAMES[site.kind].format(site.layer), hook(site, contents(site, value)))]
            made.append(
                float((measured(model.run_with_hooks(given.clean.tokens, fwd_hooks=hooks)) - base).mean())
            )
    return made


def heads_and_neurons() -> Sequence[Line]:
    """The sweep itself, its bookkeeping, and starting it again when it is done."""
    model = wb.load_model("tiny")
    given = wb.load_task("ioi", model, n=N)
    own, _ = wb.capture_pairs(model, given)
    asked = spec()
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2):
            out = Path(folder) / str(i)
            start = time.perf_counter()
            run_sweep(asked, out=out, progress=False)
            times.append(time.perf_counter() - start)
        rows = {(row["what"], row["value"]): row for row in last_tries(read_log(out))}
        kept = {row["job"]: row for row in last_tries(read_log(out))}
        with unittest.mock.patch.object(
            pool, "run_jobs", lambda lab, jobs: [dict(kept[job.key]) for job in jobs]
        ):
            start = time.perf_counter()
            run_sweep(asked, out=Path(folder) / "kept", progress=False)
            beside = time.perf_counter() - start
        start = time.perf_counter()
        run_sweep(asked, out=out, progress=False)
        again = time.perf_counter() - start
    rows_at, end = torch.arange(N), given.clean.lengths - 1
    right, wrong = given.answers[:, 0, 0], given.wrong[:, 0, 0]

    def measured(logits: torch.Tensor) -> torch.Tensor:
        return logits[rows_at, end, right] - logits[rows_at, end, wrong]

    bound = {
        "mean": wb.mean(own).bind(model, given.clean),
        "resample": wb.resample(own, 0).bind(model, given.clean),
    }
    recorded = wb.run(
        model, given.clean, record=[f"{kind}[{layer}]" for kind in NAMES for layer in range(4)]
    ).recorded

    def contents(site: Site, value: str) -> Any:
        part = recorded[site.kind, site.layer][:, :, site.neuron if site.neuron is not None else site.head]
        return torch.zeros(()) if value == "zero" else bound[value].new(site, part)

    keys = [*rows][:: max(1, len(rows) // SEEN)]
    loop(model, given, keys[:3], measured, contents)
    start = time.perf_counter()
    theirs = loop(model, given, keys, measured, contents)
    peer = (time.perf_counter() - start) / len(keys) * len(rows)
    gap = max(
        abs(statistics.fmean(rows[key]["values"]) - found) for key, found in zip(keys, theirs, strict=True)
    )
    ours = min(times)
    return [
        Line(f"{len(rows):,} jobs on tiny, heads and neurons", "run_with_hooks per job", 8, round(peer / ours, 2), round(ours, 3),
             round(peer, 3), gap, 0, 0, 0),
        limit("bookkeeping per job, with planning and reading back", 0.3, beside / len(rows) * 1000, "ms"),
        limit("a finished sweep again", 2, again, "s"),
    ]  # fmt: skip


class _Given(JobInputs):
    """A lab whose model and prompts are given, for models of random weights."""

    def __init__(self, model: Any, given: Any) -> None:
        super().__init__()
        self.one, self.given = model, given

    def model(self, setting: JobSetting) -> Any:
        return self.one

    def pairs(self, setting: JobSetting) -> Any:
        return self.given


def gpt2_heads() -> Sequence[Line]:
    """Zero ablation of every head of GPT-2-small shape."""
    model = gpt2()
    given = pairs(model, (2, 4, 10))
    lab, asked = (
        _Given(model, given),
        read_spec({"preset": "head-ablation", "tasks": ["none"], "metrics": ["logit_diff"]}),
    )
    (_, jobs), *_ = plan(asked, lab).groups
    execute.run_jobs(lab, jobs)
    start = time.perf_counter()
    rows = execute.run_jobs(lab, jobs)
    ours = time.perf_counter() - start
    keys = [(job.what, "zero") for job in jobs][::6]
    at, right, wrong = torch.arange(len(given)), given.answers[:, 0, 0], given.wrong[:, 0, 0]

    def measured(logits: torch.Tensor) -> torch.Tensor:
        return logits[at, -1, right] - logits[at, -1, wrong]

    start = time.perf_counter()
    theirs = loop(model, given, keys, measured, lambda site, value: torch.zeros(()))
    peer = (time.perf_counter() - start) / len(keys) * len(jobs)
    found = {row["what"]: statistics.fmean(row["values"]) for row in rows}
    gap = max(abs(found[what] - number) for (what, _), number in zip(keys, theirs, strict=True))
    return [Line("144 heads of GPT-2-small shape", "run_with_hooks per job", 4.5, round(peer / ours, 2), round(ours, 3), round(peer, 3), gap, 0, 0, 0)]  # fmt: skip


def ray() -> Sequence[Line]:
    """The same sweep on a local Ray cluster: identical rows, and what it costs beside them."""
    asked = spec()
    with tempfile.TemporaryDirectory() as folder:
        taken = {}
        for name, more in {
            "local": {},
            "processes": {"workers": 2},
            "ray": {"workers": 2, "backend": "ray"},
        }.items():
            start = time.perf_counter()
            run_sweep(asked, out=Path(folder) / name, progress=False, **more)
            taken[name] = time.perf_counter() - start
        found = {
            name: {row["job"]: row["values"] for row in last_tries(read_log(Path(folder) / name))}
            for name in taken
        }
    gap = max(
        abs(a - b) for key, row in found["local"].items() for a, b in zip(row, found["ray"][key], strict=True)
    )
    assert found["ray"].keys() == found["local"].keys() == found["processes"].keys()
    return [
        Line(f"{case}, the same jobs", "one process", 0, round(taken["local"] / taken[case], 2), round(taken[case], 2),
             round(taken["local"], 2), gap, 0, 0, 0)
        for case in ("processes", "ray")
    ]  # fmt: skip


def main() -> None:
    asked = arguments(__doc__)
    cases: dict[str, Callable[[], Sequence[Line]]] = {"tiny": heads_and_neurons, "gpt2": gpt2_heads}
    cases |= {} if asked.quick else {"ray": ray}
    for _ in show_cases(cases, asked):
        pass


if __name__ == "__main__":
    main()
