"""Lesson 7."""

from functools import lru_cache

import numpy as np
from sklearn.metrics import roc_auc_score

import workbench as wb


@lru_cache
def case(name="induction", seed=0):
    made = wb.planted(name, seed=seed, n=24)
    pairs = wb.planted_pairs(made)
    return made, pairs, wb.capture_pairs(made.model, pairs, progress=False)


@lru_cache
def by_hand():
    """Exact effects of the edges: the logits are linear in them."""
    made, pairs, stores = case()
    exact = wb.score_edges(made.model, pairs, value=wb.from_store(stores[1]), method="exact", progress=False)
    shape = made.model.cfg
    heads = [f"a{layer}.{head}" for layer in range(shape.n_layers) for head in range(shape.n_heads)]
    return np.array([float(exact.sel(writer=head, reader="logits")) for head in heads])


def missed():
    """True edges into queries and keys, and what feeds such a key."""
    made = case()[0]
    previous, induction = made.heads["previous"], made.heads["induction"]
    return [f"{previous}->{induction}<k>", f"input->{previous}<v>", f"input->{induction}<q>"]


def shared():
    previous = case()[0].heads["previous"]
    return [f"input->{previous}<q>", f"input->{previous}<k>"]


@lru_cache
def circuit(method):
    made, pairs, stores = case("backup", 5)
    scores = wb.score_edges(made.model, pairs, value=wb.from_store(stores[1]), method=method, progress=False)
    return wb.find_circuit(scores, n_edges=6)


CASES = {
    "7.1": (
        lambda: lambda scores, true: roc_auc_score(true, scores),
        [
            (lambda: lambda scores, true: 1 - roc_auc_score(true, scores), "a false edge is above"),
            (lambda: lambda scores, true: roc_auc_score(true, np.abs(scores)), "by magnitude"),
            (
                lambda: lambda scores, true: (scores[true][:, None] > scores[~true]).mean(),
                "A tie counts half",
            ),
            (lambda: lambda scores, true: 0.5, "on sixty random scores"),
        ],
    ),
    "7.2": (
        by_hand,
        [
            (lambda: -by_hand(), "signs"),
            (lambda: by_hand() * 24, "sum over the prompts"),
            (lambda: by_hand()[:3], "of shape (6,) is wanted"),
            (lambda: by_hand() + np.eye(6)[0], "1 of 6 are off"),
        ],
    ),
    "7.3": (
        missed,
        [
            (lambda: missed()[:2], "1 more true edges"),
            (lambda: [*missed(), "a0.0->logits"], "is not a true edge"),
            (lambda: [*missed(), f"{case()[0].heads['induction']}->logits"], "EAP sees it"),
            (["a0.0"], "is no edge of this model"),
        ],
    ),
    "7.4": (
        shared,
        [
            (lambda: shared()[:1], "1 more edges"),
            (lambda: missed(), "corrupt values do see it"),
            (["a0.0->logits"], "not used at all"),
        ],
    ),
    "7.5": (
        lambda: circuit("conditional"),
        [
            (lambda: circuit("exact"), "true edges are missing"),
            (
                lambda: [str(edge) for edge in circuit("conditional").edge_list][:-1],
                "1 true edges are missing and 0",
            ),
            (["a0.0"], "is no edge of this model"),
        ],
    ),
}
