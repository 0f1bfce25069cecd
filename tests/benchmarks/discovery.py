"""Edge scores, circuits and ACDC against TransformerLens' own attribution and faithfulness, and against
stated limits.

    python tests/benchmarks/discovery.py [--quick] [--json] [--only PART]

GPT-2-small shape, random weights, prompts of 15 random tokens. A case that bounds a cost ("at most ...") has
the bar 1 and the ratio limit / measured. --quick runs the peer's faithfulness once, and the curve on 16
prompts instead of 64.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from side_by_side import Line, arguments, compare, gpt2, logit_difference, pairs, show
from torch.profiler import ProfilerActivity, profile
from transformer_lens.tools.analysis import attribution_patching as peer

import workbench as wb
from workbench.circuit.graph import Graph
from workbench.prompts.pairs import PromptPairs

CHANGED = (2, 4, 10)
KINDS = ["embed", "resid_pre", "z", "mlp_out"]
BUDGET = 256 * 2**20


def own_name(node: Any) -> str:
    """The peer's node in our spelling."""
    known = {"embed": "input", "attn_head_out": f"a{node.layer}.{node.head}", "logits": "logits"}
    known |= dict.fromkeys(("mlp_out", "mlp_in"), f"m{node.layer}")
    return known.get(node.kind, f"a{node.layer}.{node.head}<{node.kind[0]}>")


def scored(model: Any, given: PromptPairs, **asked: Any) -> Callable[[], torch.Tensor]:
    """Our edge scores [writer, reader] as a call."""
    _, corrupt = wb.capture_pairs(model, given, sites=KINDS, progress=False)
    value = wb.from_store(corrupt)
    return lambda: torch.from_numpy(
        wb.score_edges(model, given, value=value, progress=False, **asked).values
    ).nan_to_num()


def difference(graph: Graph, ours: torch.Tensor, theirs: Mapping[Any, float]) -> float:
    """The largest difference from the peer's scores, whose sign is the other one, as a share of our largest."""
    table = torch.zeros(graph.exists.shape, dtype=torch.float64)
    for (writer, reader), score in theirs.items():
        table[graph.writer_index[own_name(writer)], graph.reader_index[own_name(reader)]] -= score
    return float((ours - table.float()).abs().max() / ours.abs().max())


def attribution(model: Any, case: str) -> Line:
    """EAP of one prompt."""
    one = pairs(model, CHANGED).select([0])
    graph, measured = Graph.of(model), logit_difference(one)
    config = peer.EdgeAttributionConfig(granularity="edge")

    kept: list[Any] = []

    def theirs() -> torch.Tensor:
        kept[:] = [
            peer.attribution_patch(model, one.corrupt.tokens, one.clean.tokens, measured, config=config)
        ]
        return torch.zeros(())

    ours = scored(model, one)
    line = compare(case, "TransformerLens attribution_patch(edge)", 14, ours, theirs, peer_repeats=1)
    return dataclasses.replace(line, max_abs_diff=difference(graph, ours(), kept[0].edge_scores))


def batched(model: Any, case: str) -> Line:
    """8 prompts in one call against one call each."""
    given = pairs(model, CHANGED)
    each = [scored(model, given.select([i])) for i in range(len(given))]
    return compare(
        case,
        "our own loop over prompts",
        1.8,
        scored(model, given),
        lambda: torch.stack([one() for one in each]).mean(0),
    )


def integrated(model: Any, case: str) -> Line:
    """EAP-IG at 5 steps may cost 4 times EAP: the ratio is 4 x EAP / EAP-IG."""
    one = pairs(model, CHANGED).select([0])
    ig, eap = scored(model, one, method="eap-ig-inputs", steps=5), scored(model, one)
    line = compare(case, "our EAP, times 4", 1, ig, eap, repeats=5, peer_repeats=5)
    return dataclasses.replace(line, ratio=round(4 * line.ratio, 2), max_abs_diff=0.0)


def memory(model: Any, case: str) -> Line:
    """Peak of tensors during EAP of 8 prompts, against the budget: the ratio is budget / peak."""
    given = pairs(model, CHANGED)
    bounded, free = scored(model, given, budget=BUDGET), scored(model, given)
    difference = float((bounded() - free()).abs().max())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        bounded()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    peak = int(changes.cumsum(0).max())
    return Line(
        case,
        f"{peak / 2**20:.0f} MiB of {BUDGET / 2**20:.0f}",
        1,
        round(BUDGET / peak, 2),
        0,
        0,
        difference,
        0,
        0,
        0,
    )


def faithful(model: Any, case: str) -> Line:
    """One circuit of 200 edges on one prompt."""
    one = pairs(model, CHANGED).select([0])
    _, corrupt = wb.capture_pairs(model, one, sites=KINDS, progress=False)
    value, measured = wb.from_store(corrupt), logit_difference(one)
    circuit = wb.find_circuit(wb.score_edges(model, one, value=value, progress=False), n_edges=200)

    def ours():
        return torch.tensor(
            wb.evaluate(circuit, model, one, value=value, checks=(), progress=False)["faithfulness"].values
        )

    found = peer.attribution_patch(
        model,
        one.corrupt.tokens,
        one.clean.tokens,
        measured,
        config=peer.EdgeAttributionConfig(granularity="edge"),
    )
    names = {(edge.writer, edge.reader) for edge in circuit.edge_list}
    kept = [edge for edge in found.edge_scores if (own_name(edge[0]), own_name(edge[1])) in names]

    def theirs() -> torch.Tensor:
        result = peer.faithfulness(model, one.clean.tokens, one.corrupt.tokens, measured, kept)
        return torch.tensor([float(result.recovered)])

    return compare(case, "TransformerLens faithfulness", 100, ours, theirs, peer_repeats=1)


def curve(model: Any, case: str, n: int) -> Line:
    """Ten sizes on n prompts, against n x 10 x 3 plain forward passes of one prompt."""
    given = pairs(model, CHANGED)
    given = given.select([i % len(given) for i in range(n)])
    _, corrupt = wb.capture_pairs(model, given, sites=KINDS, progress=False)
    value = wb.from_store(corrupt)
    scores = wb.score_edges(model, given.select(range(8)), value=value, progress=False)

    def ours():
        return torch.tensor(
            wb.faithfulness_curve(scores, model, given, value=value, progress=False)["faithfulness"].values
        )

    one, sample = given.clean.tokens[:1], 30

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            for _ in range(sample):
                model(one)
        return ours_once

    ours_once = ours()
    line = compare(
        case,
        f"{n} x 10 x 3 plain forward passes ({sample} timed)",
        1,
        ours,
        theirs,
        repeats=1,
        peer_repeats=3,
    )
    times = n * 30 / sample
    return dataclasses.replace(line, peer_s=round(line.peer_s * times, 2), ratio=round(line.ratio * times, 2))


def acdc(case: str) -> Line:
    """ACDC on tiny, indirect objects, 32 prompts: at most two minutes."""
    model = wb.load_model("tiny")
    given = wb.load_task("ioi", model, n=32)
    _, corrupt = wb.capture_pairs(model, given, progress=False)
    value = wb.from_store(corrupt)
    found = lambda at_once: torch.from_numpy(  # noqa: E731
        wb.acdc(model, given, value=value, at_once=at_once, progress=False).edges.astype(np.float32)
    )
    line = compare(
        case,
        "one edge at a time; the ratio is 120 s / ours",
        1,
        lambda: found(64),
        lambda: found(1),
        repeats=1,
        peer_repeats=1,
    )
    return dataclasses.replace(line, ratio=round(120 / line.ours_s, 1))


def main() -> None:
    warnings.simplefilter("ignore")
    args = arguments(__doc__)
    model = gpt2()
    n = 16 if args.quick else 64
    cases: list[tuple[str, Callable[[str], Line]]] = [
        ("EAP, one prompt", lambda case: attribution(model, case)),
        ("EAP, 8 prompts batched", lambda case: batched(model, case)),
        ("EAP-IG at 5 steps at most 4 x EAP", lambda case: integrated(model, case)),
        ("EAP, 8 prompts, peak memory at most the budget", lambda case: memory(model, case)),
        ("one circuit of 200 edges, one prompt", lambda case: faithful(model, case)),
        (f"faithfulness curve, {n} prompts", lambda case: curve(model, case, n)),
        ("ACDC on tiny at most 120 s", acdc),
    ]
    for case, run in cases:
        if args.only in case:
            show(run(case), args.json)


if __name__ == "__main__":
    main()
