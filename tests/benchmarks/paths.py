"""Path patching against the textbook's runs with hooks and against TransformerLens' own, random weights.

    python tests/benchmarks/paths.py [--quick] [--json] [--only PART]

The textbook's method with hooks, per sender: a run with the sender at its other value and every other head (and, for
"frozen", every MLP) at its base value, which shows the receivers' inputs; then a run with those set. Both sides are given
the activations of both unedited runs. --quick takes every 4th of the 120 senders on both sides; of the head-to-head pairs
of the GPT-2-small shape both sides always take the same sample.
"""

import random
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from side_by_side import Line, arguments, compare, gpt2, logit_difference, pairs, show, small_model
from transformer_lens import patching
from transformer_lens.patching import get_act_patch_direct_path_all_sources

import workbench as wb
from workbench.prompts.pairs import PromptPairs

CHANGED = (2, 4, 10)
KINDS = ["resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z"]
RECEIVERS = ((10, 0), (10, 7), (11, 2), (11, 10))
N_PAIRS = 24


def textbook(
    model: Any,
    given: PromptPairs,
    senders: Sequence[tuple[int, int]],
    receivers: Sequence[tuple[int, int]] | None,
    mlps: str,
) -> Callable[[], torch.Tensor]:
    """The three-run method with hooks: base run corrupt, senders at their clean value; receivers are q of heads, or logits."""
    tokens, measured = given.corrupt.tokens, logit_difference(given)
    with torch.no_grad():
        _, clean = model.run_with_cache(given.clean.tokens)
        logits, corrupt = model.run_with_cache(tokens)
        base = measured(logits)
    z, out = (
        [f"blocks.{i}.{name}" for i in range(model.cfg.n_layers)] for name in ("attn.hook_z", "hook_mlp_out")
    )
    queries = [] if receivers is None else sorted({f"blocks.{layer}.attn.hook_q" for layer, _ in receivers})

    def patched(layer: int, head: int) -> torch.Tensor:
        kept: dict[str, torch.Tensor] = {}
        sent = corrupt[z[layer]].clone()
        sent[:, :, head] = clean[z[layer]][:, :, head]

        def still(value: torch.Tensor, hook: Any, name: str) -> torch.Tensor:
            return (sent if name == z[layer] else corrupt[name]).view_as(value)

        def keep(value: torch.Tensor, hook: Any, name: str) -> None:
            kept[name] = value.clone()

        frozen = z if mlps == "recomputed" else [*z, *out]
        hooks = [(name, partial(still, name=name)) for name in frozen] + [
            (name, partial(keep, name=name)) for name in queries
        ]
        shown = model.run_with_hooks(tokens, fwd_hooks=hooks)
        if receivers is None:
            return measured(shown)

        def write(value: torch.Tensor, hook: Any, name: str) -> torch.Tensor:
            new = value.clone()
            for at, which in receivers:
                if name == f"blocks.{at}.attn.hook_q":
                    new[:, :, which] = kept[name][:, :, which]
            return new

        return measured(
            model.run_with_hooks(tokens, fwd_hooks=[(name, partial(write, name=name)) for name in queries])
        )

    def run() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([patched(*sender) for sender in senders]) - base

    return run


def into(
    model: Any,
    case: str,
    bar: float,
    senders: Sequence[tuple[int, int]],
    receivers: Sequence[tuple[int, int]] | None,
    mlps: str,
) -> Line:
    """Senders into a set of heads' queries, or into the logits."""
    given = pairs(model, CHANGED)
    clean, corrupt = wb.capture_pairs(model, given, sites=KINDS, progress=False)
    reader = "logits" if receivers is None else tuple(f"a{layer}.{head}<q>" for layer, head in receivers)
    asked = {"senders": [f"a{layer}.{head}" for layer, head in senders], "receivers": [reader], "mlps": mlps}
    value = wb.from_store(clean)

    def ours() -> torch.Tensor:
        made = wb.path_effects(
            model, given, **asked, value=value, base="corrupt", store=corrupt, progress=False
        )
        return torch.from_numpy(made.mean("example").values)[:, 0]

    plan = wb.explain(model, given, **asked, value=value, base="corrupt")
    return compare(
        case,
        "three runs with hooks",
        bar,
        ours,
        textbook(model, given, senders, receivers, mlps),
        plan,
        peer_repeats=1,
    )


def all_pairs(model: Any, case: str, bar: float) -> Line:
    """Every head into every later head's query."""
    given = pairs(model, CHANGED)
    clean, corrupt = wb.capture_pairs(model, given, sites=KINDS, progress=False)
    measured, value = logit_difference(given), wb.from_store(clean)
    with torch.no_grad():
        caches = [model.run_with_cache(side.tokens)[1] for side in (given.clean, given.corrupt)]
        base = measured(model(given.corrupt.tokens))
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    names = [f"a{layer}.{head}" for layer in layers for head in heads]
    asked = {"senders": names, "receivers": [f"{name}<q>" for name in names], "mlps": "frozen"}

    def ours() -> torch.Tensor:
        made = wb.path_effects(
            model, given, **asked, value=value, base="corrupt", store=corrupt, progress=False
        )
        return torch.from_numpy(made.mean("example").values)

    later = torch.tensor(
        [[b // len(heads) > a // len(heads) for b in range(len(names))] for a in range(len(names))]
    )

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            found = get_act_patch_direct_path_all_sources(
                model, given.corrupt.tokens, *caches, measured, verbose=False
            )
        return (found.view(len(names), len(names)) - base).masked_fill(~later, 0)

    plan = wb.explain(model, given, **asked, value=value, base="corrupt")
    masked = lambda: ours().nan_to_num()  # noqa: E731
    return compare(case, "TransformerLens get_act_patch_direct_path_all_sources", bar, masked, theirs, plan)


def some_pairs(model: Any, case: str, bar: float, sample: Sequence[tuple[int, int, int, int]]) -> Line:
    """A sample of (sending layer, head, receiving layer, head): as one call of ours, one forward each of the peer."""
    given = pairs(model, CHANGED)
    clean, corrupt = wb.capture_pairs(model, given, sites=KINDS, progress=False)
    measured, value = logit_difference(given), wb.from_store(clean)
    with torch.no_grad():
        caches = [model.run_with_cache(side.tokens)[1] for side in (given.clean, given.corrupt)]
        base = measured(model(given.corrupt.tokens))
    paths = [f"a{a}.{b}->a{c}.{d}<q>" for a, b, c, d in sample]

    def ours() -> torch.Tensor:
        made = wb.path_effects(
            model,
            given,
            paths=paths,
            value=value,
            mlps="frozen",
            base="corrupt",
            store=corrupt,
            progress=False,
        )
        return torch.from_numpy(made.mean("example").values)

    def one(layer: int, head: int, later: int, other: int) -> torch.Tensor:
        name = f"blocks.{layer}.attn.hook_z"
        change = (caches[0][name] - caches[1][name])[:, :, head] @ model.blocks[layer].attn.W_O[head]
        hook = patching._make_direct_path_hook(change, other, [])
        return measured(
            model.run_with_hooks(
                given.corrupt.tokens, fwd_hooks=[(f"blocks.{later}.attn.hook_q_input", hook)]
            )
        )

    def theirs() -> torch.Tensor:
        with torch.no_grad(), patching._split_qkv_input(model):
            return torch.stack([one(*pair) for pair in sample]) - base

    plan = wb.explain(model, given, paths=paths, value=value, mlps="frozen", base="corrupt")
    return compare(case, "TransformerLens get_act_patch_direct_path, its pairs", bar, ours, theirs, plan)


def main() -> None:
    warnings.simplefilter("ignore")
    args = arguments(__doc__)
    big, small = gpt2(), small_model()
    senders = [(layer, head) for layer in range(10) for head in range(12)]
    senders = senders[::4] if args.quick else senders
    everything = [(layer, head) for layer in range(12) for head in range(12)]
    later = [(*a, *b) for a in everything for b in everything if b[0] > a[0]]
    sample = random.Random(0).sample(later, N_PAIRS)
    cases: list[tuple[str, Callable[[str], Line]]] = [
        (
            f"into 4 queries, {len(senders)} senders, MLPs frozen",
            lambda case: into(big, case, 17, senders, RECEIVERS, "frozen"),
        ),
        (
            f"into 4 queries, {len(senders)} senders, MLPs recomputed, for information",
            lambda case: into(big, case, 0, senders[:: 4 if args.quick else 1], RECEIVERS, "recomputed"),
        ),
        (
            "into logits, 144 heads, MLPs frozen",
            lambda case: into(big, case, 2000, everything, None, "frozen"),
        ),
        ("small model, all head to head q pairs", lambda case: all_pairs(small, case, 12)),
        (
            f"{len(sample)} of {len(later):,} head to head q pairs, drawn at random",
            lambda case: some_pairs(big, case, 7, sample),
        ),
    ]
    for case, run in cases:
        if args.only in case:
            show(run(case), args.json)


if __name__ == "__main__":
    main()
