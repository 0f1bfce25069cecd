"""Two ways to the same numbers, timed in one process on the same threads, as lines of a table.

A line: `case, peer, bar, ratio, ours_s, peer_s, max_abs_diff, flops_ours, gflops, bound_ratio`. `ratio` is how many times
faster ours is and `bar` what it should reach (0: for information). `bound_ratio` is our time over the time that a loop
of [120, 768] x [768, 3072] products, timed beside it, takes for the same floating-point operations.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import workbench as wb
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts

N_PROMPTS, LENGTH = 8, 15


@dataclass(frozen=True)
class Line:
    case: str
    peer: str
    bar: float
    ratio: float
    ours_s: float
    peer_s: float
    max_abs_diff: float
    flops_ours: float
    gflops: float
    bound_ratio: float


def arguments(doc: str | None) -> argparse.Namespace:
    """--quick, --json, and --only a part of a case's name."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the peer once instead of three times, and stated samples of the longest sweeps",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    return parser.parse_args()


def gpt2(**settings: Any) -> Any:
    """A GPT-2 of random weights; its own shape is that of GPT-2 small."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(**settings)
        return build_bridge_from_module(
            transformers.GPT2LMHeadModel(config).eval(), "GPT2LMHeadModel", hf_config=config
        ).eval()


def small_model() -> Any:
    """4 layers of width 256, 2,000 words."""
    return gpt2(n_layer=4, n_embd=256, n_head=8, vocab_size=2000, n_positions=64)


def pairs(model: Any, changed: Sequence[int]) -> PromptPairs:
    """Prompts of random tokens whose two sides differ at these positions."""
    generator = torch.Generator().manual_seed(1)
    vocab = model.cfg.d_vocab
    clean = torch.randint(0, vocab, (N_PROMPTS, LENGTH), generator=generator)
    corrupt = clean.clone()
    for pos in changed:
        corrupt[:, pos] = (clean[:, pos] + torch.randint(1, vocab, (N_PROMPTS,), generator=generator)) % vocab
    answers = torch.randint(0, vocab, (N_PROMPTS, 1, 1), generator=generator)
    return PromptPairs(
        Prompts.of(clean.tolist()), Prompts.of(corrupt.tolist()), answers, (answers + 1) % vocab
    )


def logit_difference(given: PromptPairs) -> Callable[[torch.Tensor], torch.Tensor]:
    """The peer's metric: answer minus wrong at the last position, mean over prompts."""
    rows, right, wrong = torch.arange(len(given)), given.answers[:, 0, 0], given.wrong[:, 0, 0]
    return lambda logits: (logits[rows, -1, right] - logits[rows, -1, wrong]).mean()


def compare(
    case: str,
    peer: str,
    bar: float,
    ours: Callable[[], torch.Tensor],
    theirs: Callable[[], torch.Tensor],
    plan: Any = None,
    *,
    repeats: int = 3,
    peer_repeats: int = 3,
) -> Line:
    """Time both after one warm-up of ours; the peer's first run warms it. Without a plan, operations are not counted (0)."""
    made = ours()
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    expected = made
    for i in range(max(repeats, peer_repeats)):
        for side, run, times_to_run in (("ours", ours, repeats), ("peer", theirs, peer_repeats)):
            if i < times_to_run:
                start = time.perf_counter()
                result = run()
                times[side].append(time.perf_counter() - start)
                expected = result if side == "peer" else expected
    seconds = {side: statistics.median(values) for side, values in times.items()}
    flops = 0.0 if plan is None else plan.cost.flops
    return Line(
        case=case,
        peer=peer,
        bar=bar,
        ratio=round(seconds["peer"] / seconds["ours"], 2),
        ours_s=round(seconds["ours"], 4),
        peer_s=round(seconds["peer"], 4),
        max_abs_diff=float((made - expected).abs().max()),
        flops_ours=flops,
        gflops=round(flops / seconds["ours"] / 1e9, 1),
        bound_ratio=round(seconds["ours"] * product_rate() / flops, 3) if flops else 0.0,
    )


def at_most(line: Line, limit: float) -> Line:
    """The line of an upper bound on `bound_ratio`: its ratio is limit / measured, its bar 1."""
    return Line(
        **(
            asdict(line)
            | {
                "case": f"{line.case}: bound_ratio at most {limit}",
                "bar": 1,
                "ratio": round(limit / line.bound_ratio, 2),
            }
        )
    )


def product_rate() -> float:
    """Floating-point operations a second of [120, 768] x [768, 3072] products."""
    left, right = torch.randn(120, 768), torch.randn(768, 3072)
    out = torch.empty(120, 3072)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(60):
            torch.mm(left, right, out=out)
        rates.append(60 * 2 * left.numel() * right.shape[1] / (time.perf_counter() - start))
    return statistics.median(rates)


def show(line: Line, as_json: bool) -> None:
    """Print a line at once."""
    fields = asdict(line)
    print(
        json.dumps(fields) if as_json else "  ".join(f"{key} {value}" for key, value in fields.items()),
        flush=True,
    )


def show_cases(cases: Mapping[str, Callable[[], Sequence[Line]]], asked: argparse.Namespace) -> Iterator[str]:
    """Run the parts that are asked for and print their lines; the name of each part when it is done."""
    for case, run in cases.items():
        if asked.only in case:
            for each in run():
                show(each, asked.json)
            yield case


def facts() -> str:
    """What the figures were taken on."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, workbench {wb.__name__}"
