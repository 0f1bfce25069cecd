"""Checkers of lesson 3: ablations by zero, mean and another prompt's activation."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.course import fixtures
from workbench.course.exercises import (
    TWO_DIGITS,
    Wrong,
    all_names,
    called,
    exercise,
    explain,
    names,
    number,
    table,
)
from workbench.engine.values import resample, zero
from workbench.interventions.effects import effects
from workbench.sites import Site, grid

N = 64
GROUP = ("a3.0", "a3.3", "a3.4", "a3.5", "a3.6")


@lru_cache
def _effects(name: str) -> dict[str, float]:
    """For each head, the mean change of the logit difference of IOI."""
    value = zero() if name == "zero" else resample(fixtures.stores("ioi", N)[0])
    model = fixtures.model()
    table = effects(model, fixtures.pairs("ioi", N), sites=grid("z", model), value=value, progress=False)
    return dict(zip(fixtures.heads(model), table.mean("example").values.ravel().tolist(), strict=True))


@lru_cache
def _together() -> tuple[float, float]:
    """Mean change of induction's logit difference: by the group at once, and summed over its single heads."""
    sites = [Site("z", 3, int(name[-1])) for name in GROUP]
    elements = [*sites, tuple(sites)]
    pairs = fixtures.pairs("induction", N)
    table = effects(fixtures.model(), pairs, sites=elements, value=zero(), progress=False)
    means = table.mean("example").values
    return float(means[-1]), float(means[:-1].sum())


@lru_cache
def _constant() -> dict[str, np.ndarray]:
    """[layer, head]: the share of z that is constant over tokens, and what typical mistakes give."""
    clean, _ = fixtures.stores("pronoun", N)
    by_layer: dict[str, list[np.ndarray]] = {"right": [], "bos": [], "root": [], "lengths": []}
    for layer in range(4):
        prompts = [clean["z", layer].prompt(i).double() for i in range(N)]
        rows = torch.cat([one[1:] for one in prompts])  # without <bos>, which answers must not count
        with_bos = torch.cat(prompts)
        share = _share(rows)
        by_layer["right"].append(share)
        by_layer["bos"].append(_share(with_bos))
        by_layer["root"].append(share**0.5)
        by_layer["lengths"].append((rows.mean(0).norm(dim=-1) / rows.norm(dim=-1).mean(0)).numpy())
    return {name: np.stack(layers) for name, layers in by_layer.items()}


def _share(rows: torch.Tensor) -> np.ndarray:
    """[head]: the squared length of the mean over the mean squared length, of rows [token, head, d_head]."""
    return (rows.mean(0).pow(2).sum(-1) / rows.pow(2).sum(-1).mean(0)).numpy()


@exercise("3.1", "One edit", "easy", "a function of z, head and value that returns the edited z.")
def _edit(answer: Any) -> str:
    seed = torch.Generator().manual_seed(3)
    # Sizes that differ, so that an edit along a wrong axis fails: [example, pos, head, d_head].
    z, donor = torch.randn(2, 3, 5, 8, 4, generator=seed)
    # A number, a vector and a tensor: an edit that broadcasts by luck fails on one of them.
    for value in (0.0, donor[0, 0, 0], donor[:, :, 6]):
        before, wanted = z.clone(), z.clone()
        wanted[:, :, 6] = value
        returned = called(answer, before, 6, value, copied=False)
        if returned is before or not torch.equal(before, z):
            raise Wrong(
                "your function changes the tensor that it gets. Copy it first: that tensor may be a cache "
                "that others read."
            )
        edited = table(returned, tuple(z.shape), "example, pos, head, d_head")
        if np.allclose(edited[:, :, 6], z[:, :, 6]):
            raise Wrong("the head is left as it was.")
        if not np.allclose(np.delete(edited, 6, 2), np.delete(z.numpy(), 6, 2)):
            raise Wrong("other heads are changed too. The axes of z are [example, pos, head, d_head].")
        if not np.allclose(edited, wanted, atol=1e-6):
            kind = f"a value of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "a number"
            raise Wrong(f"with {kind} the head does not hold the value afterwards, at every position.")
    return "One function for all ablations: they differ in the value alone."


@exercise("3.2", "Where they disagree", "medium", "the names of the heads, such as ['a1.0', 'a2.5'].")
def _disagree(answer: Any) -> str:
    resampled, why_not = _effects("resample"), {}
    for name, zeroed in _effects("zero").items():
        why_not[name] = ""
        if zeroed >= -1.25 or abs(resampled[name]) >= 0.3:
            why_not[name] = (
                f"changes the logit difference by {zeroed:+.2f} zeroed and by {resampled[name]:+.2f} "
                "resampled."
            )
    all_names(names(answer, [*why_not], "head of tiny"), why_not)
    return "Zeroing counts them among the important heads; resampling shows that the task does not need them."


@exercise("3.3", "What is constant", "medium", "an array [layer, head] of shares between 0 and 1.")
def _shares(answer: Any) -> str:
    shares, values = _constant(), table(answer, (4, 8), "layer, head")
    right = shares["right"]
    if np.allclose(values, right, atol=TWO_DIGITS):
        return (
            f"{int((values > 0.9).sum())} heads of layer 0 write more than 90% of the same thing everywhere."
        )
    mistakes = [
        (
            shares["bos"],
            "you counted <bos>, where many heads write something of their own. Leave position 0 out.",
        ),
        (shares["root"], "these are the roots of the shares: both lengths are squared."),
        (
            shares["lengths"],
            "these are ratios of lengths. Square: the length of the mean, and each length before you take "
            "their mean.",
        ),
        (1 - right, "this is the share of what varies."),
    ]
    explain(values, mistakes, atol=2e-3)
    if not ((values >= 0) & (values <= 1.001)).all():
        raise Wrong("a share lies between 0 and 1.")
    off = int((~np.isclose(values, right, atol=TWO_DIGITS)).sum())
    raise Wrong(f"{off} of the 32 shares are off. Average over all tokens of all prompts.")


@exercise(
    "3.4", "Heads that cover for each other", "hard", "a number of logits, negative where together is worse."
)
def _synergy(answer: Any) -> str:
    value, (together, singly) = number(answer), _together()
    # Six means that were each rounded to two digits add up to an error of up to 0.03.
    if np.isclose(value, together - singly, atol=0.05):
        return f"Zeroed one at a time they cost {-singly:.1f} in all, together {-together:.1f}."
    mistakes = [
        (
            together,
            "this is the effect of the five together. What of it do the single effects not account for?",
        ),
        (singly, "this is the sum of the single effects."),
        (singly - together, "the sign is reversed: together minus the sum of the single ones."),
        (together + singly, "you added the two: the single effects are to be subtracted."),
        (
            together - singly / len(GROUP),
            "you subtracted the mean of the single effects; their sum is wanted.",
        ),
    ]
    explain(value, mistakes, atol=0.02)
    raise Wrong(f"{value:.2f} is not the answer. Both are means over the {N} prompts, of effects of zero().")
