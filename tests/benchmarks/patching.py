"""Sweeps of activation patching against TransformerLens' own, GPT-2-small shape and a small model, random weights.

    python tests/benchmarks/patching.py [--quick] [--json] [--only PART]

Both sides patch the same sites of the same 8 prompts of 15 tokens, toward the other run's activations, which both are
given. The peer runs with autograd off; one line each shows it as a user calls it, on a sample of layers. --quick runs
the peer once instead of three times: every forward pass of a sweep costs it the same.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import Line, arguments, at_most, compare, gpt2, logit_difference, pairs, show, small_model
from transformer_lens import patching

import workbench as wb

PEERS = {
    "resid_pre": ("each", patching.get_act_patch_resid_pre, "get_act_patch_resid_pre"),
    "z": ("all", patching.get_act_patch_attn_head_out_all_pos, "get_act_patch_attn_head_out_all_pos"),
}
THREE, ONE = (2, 4, 10), (10,)
NAMES = {"resid_pre": "resid_pre layer x position", "z": "head z layer x head"}


def sweep(
    model: Any, kind: str, changed: tuple[int, ...], case: str, bar: float, *, peer_repeats: int, autograd: bool = False,
    metric: Any = "logit_diff", layers: int | None = None,
) -> Line:  # fmt: skip
    """One kind of site, patched everywhere (or in the first few layers) from the clean run into the corrupt one."""
    given = pairs(model, changed)
    clean, _ = wb.capture_pairs(model, given, sites=[kind], progress=False)
    tokens, measured = given.corrupt.tokens, logit_difference(given)
    pos, function, name = PEERS[kind]
    sites = wb.grid(kind, model, pos=pos, layer=None if layers is None else range(layers))
    value = wb.from_store(clean)
    with torch.no_grad():
        _, cache = model.run_with_cache(given.clean.tokens)
        base = measured(model(tokens))

    def ours() -> torch.Tensor:
        made = wb.effects(
            model, given, sites=sites, value=value, base="corrupt", metric=metric, progress=False
        )
        return torch.from_numpy(made.mean("example").values)

    def theirs() -> torch.Tensor:
        with torch.set_grad_enabled(autograd):
            if layers is None:
                found = function(model, tokens, cache, measured)
            else:
                found = _some_layers(model, tokens, cache, measured, kind, layers)
            return found.detach() - base

    plan = wb.explain(model, given, sites=sites, value=value, base="corrupt", metric=metric)
    peer = f"TransformerLens {name}" + (" with autograd on, as called by default" if autograd else "")
    return compare(case, peer, bar, ours, theirs, plan, peer_repeats=peer_repeats)


def _some_layers(
    model: Any, tokens: Any, cache: Any, measured: Callable, kind: str, layers: int
) -> torch.Tensor:
    """The peer's generic sweep over the first layers."""
    positions = range(tokens.shape[1]) if kind == "resid_pre" else range(model.cfg.n_heads)
    names = ["layer", "pos"] if kind == "resid_pre" else ["layer", "head"]
    import pandas as pd

    frame = pd.DataFrame([(layer, place) for layer in range(layers) for place in positions], columns=names)
    setter = (
        patching.layer_pos_patch_setter if kind == "resid_pre" else patching.layer_head_vector_patch_setter
    )
    found = patching.generic_activation_patch(model, tokens, cache, measured, setter, kind, index_df=frame)
    return found.view(layers, -1)


def last_logits(logits: torch.Tensor) -> torch.Tensor:
    """A metric of one's own: it gets the logits of the whole vocabulary at the last position."""
    return logits[:, 17] - logits[:, 18]


def main() -> None:
    warnings.simplefilter("ignore")
    args = arguments(__doc__)
    again = 1 if args.quick else 3
    big, small = gpt2(), small_model()
    bars = {("resid_pre", THREE): 9, ("resid_pre", ONE): 50, ("z", THREE): 4, ("z", ONE): 11}
    for (kind, changed), bar in bars.items():
        case = f"{NAMES[kind]}, differ at {len(changed)}"
        if args.only in case:
            line = sweep(big, kind, changed, case, bar, peer_repeats=again)
            show(line, args.json)
            if (kind, changed) == ("resid_pre", THREE):
                show(at_most(line, 1.35), args.json)
    for kind in PEERS:
        case = f"small model, {NAMES[kind]}, differ at 3"
        if args.only in case:
            show(sweep(small, kind, THREE, case, 6, peer_repeats=3), args.json)
    for kind in PEERS:
        case = f"{NAMES[kind]}, first 2 layers, differ at 3, for information"
        if args.only in case:
            show(sweep(big, kind, THREE, case, 0, peer_repeats=1, autograd=True, layers=2), args.json)
    for (kind, changed), bar in bars.items():
        case = f"own metric over all last-position logits, {NAMES[kind]}, differ at {len(changed)}"
        if args.only in case:
            show(own_metric(big, kind, changed, case, bar / 2, peer_repeats=again), args.json)


def own_metric(
    model: Any, kind: str, changed: tuple[int, ...], case: str, bar: float, *, peer_repeats: int
) -> Line:
    """The same sweeps with a metric that is handed the whole vocabulary."""
    given = pairs(model, changed)
    clean, _ = wb.capture_pairs(model, given, sites=[kind], progress=False)
    pos, function, name = PEERS[kind]
    sites, value, metric = (
        wb.grid(kind, model, pos=pos),
        wb.from_store(clean),
        wb.metric(last_logits, positions="END"),
    )
    with torch.no_grad():
        _, cache = model.run_with_cache(given.clean.tokens)

        def measured(logits: torch.Tensor) -> torch.Tensor:
            return last_logits(logits[:, -1]).mean()

        base = measured(model(given.corrupt.tokens))

    def ours() -> torch.Tensor:
        made = wb.effects(
            model, given, sites=sites, value=value, base="corrupt", metric=metric, progress=False
        )
        return torch.from_numpy(made.mean("example").values)

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            return function(model, given.corrupt.tokens, cache, measured) - base

    plan = wb.explain(model, given, sites=sites, value=value, base="corrupt", metric=metric)
    return compare(case, f"TransformerLens {name}", bar, ours, theirs, plan, peer_repeats=peer_repeats)


if __name__ == "__main__":
    main()
