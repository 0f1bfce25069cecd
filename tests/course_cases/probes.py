"""Lesson 11."""

from functools import lru_cache

import numpy as np
import torch

import workbench as wb
from workbench.course import fixtures


@lru_cache(maxsize=1)
def fitted():
    stores = wb.capture_pairs(
        fixtures.model(), fixtures.pairs("agreement", 200), sites=["resid_post"], progress=False
    )
    labels = wb.Labels.of_concepts(stores[0], ["number"], pos="END")
    return stores, wb.fit_probes(stores[0], labels, k=[1, 2, 4, 8, 16], draws=10)


def welch(x, labels, *, counts=True, absolute=True):
    one, zero = x[labels].numpy(), x[~labels].numpy()
    n, m = (len(one), len(zero)) if counts else (1, 1)
    made = (one.mean(0) - zero.mean(0)) / np.sqrt(one.var(0) / n + zero.var(0) / m)
    return np.abs(made) if absolute else made


def accuracy(kind):
    table = fitted()[1].results["accuracy"].squeeze().sel(layer=2).to_dataframe()["accuracy"].reset_index()
    return table[table["control"].str.startswith(kind)].groupby("k")["accuracy"].mean().to_numpy()


def moved(side=1):
    stores, probes = fitted()
    positive = np.array([word == "singular" for word in words(side)])
    found = []
    for layer in range(4):
        x = stores[1]["resid_post", layer].at("END").double()
        intercept = probes.results["intercept"].sel(layer=layer, k=16, control="none").values.item()
        yes = x @ probes.direction("number", layer=layer, k=16) > -intercept
        found.append((yes.numpy() == positive).mean())
    return np.array(found)


def words(side):
    pairs = fixtures.pairs("agreement", 200)
    prompts = (pairs.clean, pairs.corrupt)[side]
    nouns = [prompts.strings[i][at] for i, at in enumerate(prompts.at("SUBJECT").tolist())]
    return ["plural" if noun.endswith("s") else "singular" for noun in nouns]


def swapped(x, other, direction):
    along = torch.outer(direction, direction) / direction.square().sum()
    return other @ along + x @ (torch.eye(len(direction)) - along)


CASES = {
    "11.1": (
        lambda: welch,
        [
            (lambda: lambda x, labels: welch(x, labels, absolute=False), "negative"),
            (
                lambda: lambda x, labels: (x[labels].mean(0) - x[~labels].mean(0)).abs(),
                "gaps between the means",
            ),
            (lambda: lambda x, labels: welch(x, labels, counts=False), "counts of the two classes"),
            (
                lambda: lambda x, labels: (x[labels].mean(0) - x[~labels].mean(0)).abs() / x.std(0),
                "spread within each class",
            ),
            (lambda: lambda x, labels: x.mean(), "shape (6,) is wanted"),
        ],
    ),
    "11.2": (
        lambda: accuracy("none") - accuracy("random"),
        [
            (lambda: accuracy("none"), "accuracies of the chosen"),
            (lambda: accuracy("random") - accuracy("none"), "signs"),
            (lambda: accuracy("none") - accuracy("shuffle"), "shuffled labels"),
            (lambda: accuracy("none") - accuracy("random-features-0"), "mean over all draws"),
            (lambda: [0.1, 0.2], "shape (5,) is wanted"),
        ],
    ),
    "11.3": (
        moved,
        [
            (lambda: moved(side=0), "every answer is reversed"),
            (lambda: np.ones(4), "held-out accuracies on clean prompts"),
            (lambda: moved() + np.array([0, 0, 0.2, 0]), "layer 2 is off"),
        ],
    ),
    "11.4": (
        lambda: swapped,
        [
            (
                lambda: lambda x, other, direction: x + ((other - x) @ direction)[:, None] * direction,
                "not of length 1",
            ),
            (lambda: lambda x, other, direction: swapped(x, 0 * x, direction), "taken out"),
            (lambda: lambda x, other, direction: other, "everything is swapped"),
            (lambda: lambda x, other, direction: 2 * x + swapped(0 * x, other, direction) - x, "still there"),
            (lambda: lambda x, other, direction: x, "along the direction it is not"),
            (
                lambda: lambda x, other, direction: swapped(x, other, direction)[:, :3],
                "shape (5, 7) is wanted",
            ),
        ],
    ),
    "11.5": (
        lambda: {"used": wb.planted("induction").heads["induction"], "decoy": ["a1.2"]},
        [
            ({"used": "a1.2", "decoy": "a1.0"}, "stays as it is"),
            ({"used": "a1.0", "decoy": "a1.0"}, "look at the logit difference"),
            ({"used": "a1.0", "decoy": "a1.1"}, "can be read in only 2"),
            ({"used": "1.0", "decoy": "a1.2"}, "no head of the last layer"),
            ({"used": ["a1.0", "a1.2"], "decoy": "a1.2"}, "and these are"),
            ({"used": "a1.0"}, "keys"),
        ],
    ),
}
