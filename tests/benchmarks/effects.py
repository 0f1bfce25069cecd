"""Head and residual-stream patching on `tiny` against TransformerLens' own sweeps, in the same process.

    python tests/benchmarks/effects.py [--quick] [--json]

Both sides patch the same sites of the same prompts, one after the other, with autograd off; medians of interleaved runs
on the same threads. TransformerLens takes one prompt set per call, as here. `max_abs_diff` compares the results.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import transformer_lens.patching as peer

import workbench as wb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 repetitions instead of 7")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    repeats = 3 if args.quick else 7
    model = wb.load_model("tiny", device="cpu")
    pairs = wb.load_task("induction", model, n=400)
    length = int(pairs.clean.lengths.mode().values)
    pairs = pairs.select((pairs.clean.lengths == length).nonzero().flatten()[:8].tolist())
    clean, _ = wb.capture_pairs(model, pairs, sites=["z", "resid_pre"], progress=False)
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean.tokens)
    right, wrong = pairs.answers[:, 0, 0], pairs.wrong[:, 0, 0]
    rows = torch.arange(len(pairs))

    def measured(logits: torch.Tensor) -> torch.Tensor:
        return (logits[rows, -1, right] - logits[rows, -1, wrong]).mean()

    cases = {
        "get_act_patch_attn_head_out_all_pos": wb.grid("z", model),
        "get_act_patch_resid_pre": wb.grid("resid_pre", model, pos="each"),
    }
    with torch.no_grad():
        base = measured(model(pairs.corrupt.tokens))
    for name, sites in cases.items():
        sweep = getattr(peer, name)

        def ours(sites: wb.Grid = sites) -> torch.Tensor:
            value = wb.from_store(clean)
            made = wb.effects(model, pairs, sites=sites, value=value, base="corrupt", progress=False)
            return torch.from_numpy(made.mean("example").values)

        def theirs(sweep: Callable = sweep) -> torch.Tensor:
            with torch.no_grad():
                return sweep(model, pairs.corrupt.tokens, cache, measured) - base

        difference = float((ours() - theirs()).abs().max())
        times: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(repeats):
            for side, run in (("ours", ours), ("peer", theirs)):
                start = time.perf_counter()
                run()
                times[side].append(time.perf_counter() - start)
        seconds = {side: statistics.median(values) for side, values in times.items()}
        line = {
            "case": str(sites.kind), "peer": f"TransformerLens {name}", "ratio": round(seconds["peer"] / seconds["ours"], 2),
            "ours_s": round(seconds["ours"], 4), "peer_s": round(seconds["peer"], 4), "max_abs_diff": difference,
            "prompts": len(pairs), "tokens": length, "threads": torch.get_num_threads(),
        }  # fmt: skip
        print(json.dumps(line) if args.json else "  ".join(f"{key} {value}" for key, value in line.items()))


if __name__ == "__main__":
    main()
