"""Lesson 6."""

from functools import lru_cache

import torch

import workbench as wb
from workbench.course import fixtures


def ends(hooks=()):
    """Logit differences of the clean run."""
    pairs, rows = fixtures.pairs("ioi", 64), torch.arange(64)
    with torch.no_grad():
        end = fixtures.model().run_with_hooks(pairs.clean.tokens, fwd_hooks=[*hooks])[
            rows, pairs.clean.lengths - 1
        ]
    return end[rows, pairs.answers[:, 0, 0]] - end[rows, pairs.wrong[:, 0, 0]]


@lru_cache
def caches():
    """What every hook holds in the clean and in the corrupt run."""
    model, pairs = fixtures.model(), fixtures.pairs("ioi", 64)
    with torch.no_grad():
        return [model.run_with_cache(side.tokens)[1] for side in (pairs.clean, pairs.corrupt)]


@lru_cache
def direct(layer, head, *, heads=True, mlps=True):
    """With hooks: the head corrupt, what comes after it held."""
    clean, corrupt = caches()

    def held(activation, hook):
        return clean[hook.name]

    def put(activation, hook):
        activation = clean[hook.name].clone()
        activation[:, :, head] = corrupt[hook.name][:, :, head]
        return activation

    hooks = [(f"blocks.{layer}.attn.hook_z", put)]
    hooks += [(f"blocks.{after}.attn.hook_z", held) for after in range(layer + 1, 4) if heads]
    hooks += [(f"blocks.{after}.hook_mlp_out", held) for after in range(layer, 4) if mlps]
    return ends(hooks) - ends()


def share():
    return direct(3, 7).mean() / direct(3, 7, heads=False, mlps=False).mean()


@lru_cache
def planted():
    return wb.planted("compositions", seed=3, n=24)


def feeders():
    """By ablating the heads and looking at what the target's q, k and v inputs lose."""
    made = planted()
    target = made.heads["target"]
    edges = [edge.split("->") for edge in made.edges["corrupt"]]
    return {
        port: writer
        for writer, reader in edges
        for port in "qkv"
        if reader == f"{target}<{port}>" and writer != "input"
    }


CASES = {
    "6.1": (
        share,
        [
            (1.0, "the whole effect"),
            (lambda: direct(3, 7).mean(), "in logits"),
            (lambda: (direct(3, 7) / direct(3, 7, heads=False, mlps=False)).mean(), "each prompt's share"),
            (lambda: 1 - share(), "all other paths"),
            (lambda: 1 / share(), "take the inverse"),
        ],
    ),
    "6.2": (
        lambda: lambda layer, head: direct(layer, head),
        [
            (lambda: lambda layer, head: -direct(layer, head), "sign"),
            (lambda: lambda layer, head: direct(layer, head, heads=False, mlps=False), "total effect"),
            (lambda: lambda layer, head: direct(layer, head, mlps=False), "MLPs still react"),
            (lambda: lambda layer, head: direct(layer, head) * 0, "nothing changes"),
            (lambda: lambda layer, head: direct(layer, head).mean(), "shape (64,) is wanted"),
        ],
    ),
    "6.3": (
        lambda: "a3.7<v>@S2",
        [
            ("a3.7<q>@END", "another input carries more"),
            ("a3.7<v>@END", "another input carries more"),
            ("a3.7<v>", "write the position"),
            ("a3.7@S2", "is not an input of head a3.7"),
        ],
    ),
    "6.4": (
        feeders,
        [
            (lambda: feeders() | {"q": feeders()["k"]}, "does not feed the q"),
            (
                lambda: feeders() | {"v": planted().heads["target"]},
                "the head that is fed",
            ),
            ({"q": "a0.1"}, "keys 'q', 'k', 'v'"),
        ],
    ),
    "6.5": (
        lambda: "input->m0->a3.7<v>->m3->logits",
        [
            ("input->m0->a3.7<v>->logits", "passes 2 nodes"),
            ("m0->a3.7<v>->m3->logits", "from input to logits"),
            ("input->m0->a3.7<q>->m3->logits", "30 % are wanted"),
            ("input->m0->a3.9<v>->m3->logits", "Exercise 6.5"),
        ],
    ),
}
