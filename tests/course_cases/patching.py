"""Lesson 5."""

import numpy as np
import torch

import workbench as wb
from workbench.course import fixtures


def patched(site, *, noising=False):
    """Logit differences, with hooks instead of the engine."""
    model, pairs = fixtures.model(), fixtures.pairs("ioi", 64)
    base, other = (pairs.clean, pairs.corrupt) if noising else (pairs.corrupt, pairs.clean)
    place = wb.Site.parse(site)
    name = f"blocks.{place.layer}." + {"z": "attn.hook_z", "mlp_out": "hook_mlp_out"}[place.kind]
    with torch.no_grad():
        _, cache = model.run_with_cache(other.tokens, names_filter=name)

        def put(activation, hook):
            activation = activation.clone()
            where = (slice(None), slice(None), place.head) if place.head is not None else ...
            activation[where] = cache[name][where]
            return activation

        logits = model.run_with_hooks(base.tokens, fwd_hooks=[(name, put)])
    rows = torch.arange(64)
    end = logits[rows, pairs.clean.lengths - 1]
    return end[rows, pairs.answers[:, 0, 0]] - end[rows, pairs.wrong[:, 0, 0]]


def gates(**more):
    right = {
        "and": {"sufficient": [], "necessary": ["a1.0", "a1.2"]},
        "or": {"sufficient": ["a1.1"], "necessary": []},
    }
    return right | more


CASES = {
    "5.1": (
        lambda: lambda site: patched(site),
        [
            (lambda: lambda site: patched(site, noising=True), "this is noising"),
            (lambda: lambda site: patched(site).mean(), "shape (64,) is wanted"),
            (lambda: lambda site: patched(site) - patched("z[0.2]"), "off by up to"),
            (lambda: lambda site: ..., "returns nothing yet"),
        ],
    ),
    "5.2": (
        lambda: lambda patched, clean, corrupt: (sum(patched) - sum(corrupt)) / (sum(clean) - sum(corrupt)),
        [
            (
                lambda: lambda patched, clean, corrupt: np.mean((patched - corrupt) / (clean - corrupt)),
                "divide first",
            ),
            (
                lambda: lambda patched, clean, corrupt: (patched - clean).mean() / (corrupt - clean).mean(),
                "at the clean run yours is 0",
            ),
            (lambda: lambda patched, clean, corrupt: patched.mean() / clean.mean(), "count from there"),
            (lambda: lambda patched, clean, corrupt: (patched - corrupt).mean(), "in logits"),
            (
                lambda: lambda patched, clean, corrupt: (patched - corrupt) / (clean - corrupt),
                "one number is wanted",
            ),
            (
                lambda: lambda patched, clean, corrupt: np.median((patched - corrupt) / (clean - corrupt)),
                "in between it is not",
            ),
            (lambda: lambda patched, clean, corrupt: 0.5, "for the corrupt run itself yours is 0.5"),
        ],
    ),
    "5.3": (
        lambda: "z[3.7]@END",
        [
            ("z[3.7]", "every position"),
            ("z[3.7]@S2", "another head and position restores more"),
            ("z[7.7]@END", "not in this model"),
            ("mlp_out[3]@END", "not a head's z"),
            ("a3.7", "not a site"),
            ("y[3.7]@END", "kind='y' is not known"),
        ],
    ),
    "5.4": (
        lambda: gates(),
        [
            (gates(**{"or": {"sufficient": ["a1.1", "a2.1"], "necessary": []}}), "a2.1 is not sufficient"),
            (gates(**{"or": {"sufficient": ["a1.1"], "necessary": ["a1.1"]}}), "a1.1 is not necessary"),
            (gates(**{"and": {"sufficient": [], "necessary": ["a1.0"]}}), "1 necessary more"),
            (gates(**{"and": {"sufficient": []}}), "keys 'sufficient', 'necessary'"),
            ({"and": {}}, "keys 'and', 'or'"),
        ],
    ),
    "5.5": (
        lambda: {"a2.1", "a1.1"},
        [
            (["a1.1"], "noised together they take"),
            (["a1.1", "a2.1", "a0.0"], "a smaller set does too"),
            (["z[1.1]"], "is no head"),
        ],
    ),
}
