"""Stores of made-up activations, and what is planted in them."""

from itertools import pairwise

import numpy as np
import torch

from workbench.probes.labels import Labels
from workbench.prompts.prompts import Prompts
from workbench.stores.store import ActivationStore


def store_of(layers, *, kind="mlp_post", lengths=None):
    """A store of [row, feature] activations per layer: one token a prompt, or prompts of these lengths, none twice."""
    lengths = [1] * len(layers[0]) if lengths is None else lengths
    starts = np.cumsum([0, *lengths])
    prompts = Prompts.of([list(range(a, b)) for a, b in pairwise(starts)])
    data = {(kind, i): torch.as_tensor(np.asarray(x)) for i, x in enumerate(layers)}
    return ActivationStore.of(prompts, data, model="made-up", model_name="made-up", tokenizer="none")


def labelled(layers, concepts, **options):
    """A store, and labels of all its tokens."""
    store = store_of(layers, **options)
    prompt, pos = [], []
    for i, length in enumerate(store.prompts.lengths.tolist()):
        prompt += [i] * length
        pos += range(length)
    return store, Labels.of(store, concepts, prompt=prompt, pos=pos)


def marginal(seed, *, n=2000, features=128, k=4):
    """Activations [row, feature] of unequal scales, labels that k of the features tell, each by itself, and which."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features))
    chosen = rng.choice(features, k, replace=False)
    y = 0.8 * x[:, chosen].sum(1) + rng.logistic(size=n) > 0
    return x * np.exp(rng.normal(size=features)), y, set(chosen.tolist())


def suppressors(seed, *, n=2000, features=128, pairs=2):
    """Likewise, but every second feature tells nothing by itself: it takes the noise out of the one before."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features))
    chosen = rng.choice(features, 2 * pairs, replace=False)
    logit = np.zeros(n)
    for signal, noise in zip(chosen[::2], chosen[1::2], strict=True):
        shared = 2 * rng.normal(size=n)
        logit += 1.5 * x[:, signal]
        x[:, signal] += shared
        x[:, noise] = shared + 0.3 * rng.normal(size=n)
    y = logit + rng.logistic(size=n) > 0
    return x * np.exp(rng.normal(size=features)), y, set(chosen.tolist())
