"""Checkers of lesson 3: ablations by zero, mean and another prompt's activation."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.course import fixtures as bench
from workbench.course.exercises import TWO_DIGITS, Wrong, all_names, called, exercise, names, number, table
from workbench.engine.values import resample, zero
from workbench.interventions.effects import effects
from workbench.sites import Site, grid

N = 64
GROUP = ("a3.0", "a3.3", "a3.4", "a3.5", "a3.6")


@lru_cache
def _effects(name: str) -> dict[str, float]:
    """For each head, the mean change of the logit difference of IOI."""
    value = {"zero": zero, "resample": lambda: resample(bench.stores("ioi", N)[0])}[name]()
    model = bench.model()
    made = effects(model, bench.pairs("ioi", N), sites=grid("z", model), value=value, progress=False).mean(
        "example"
    )
    return dict(zip(bench.heads(model), made.values.ravel().tolist(), strict=True))


@lru_cache
def _together() -> tuple[float, float]:
    """Mean change of the logit difference of induction: of the group at once, and summed over its heads one at a time."""
    sites = [Site("z", 3, int(name[-1])) for name in GROUP]
    made = effects(
        bench.model(), bench.pairs("induction", N), sites=[*sites, tuple(sites)], value=zero(), progress=False
    )
    means = made.mean("example").values
    return float(means[-1]), float(means[:-1].sum())


@lru_cache
def _constant() -> dict[str, np.ndarray]:
    """[layer, head]: the share of what is constant in z, over the tokens of pronoun prompts, and typical other ways."""
    clean, _ = bench.stores("pronoun", N)
    made: dict[str, list[np.ndarray]] = {"right": [], "bos": [], "root": [], "lengths": []}
    for layer in range(4):
        whole = [clean["z", layer].prompt(i).double() for i in range(N)]
        for name, rows in {"right": torch.cat([each[1:] for each in whole]), "bos": torch.cat(whole)}.items():
            made[name].append((rows.mean(0).pow(2).sum(-1) / rows.pow(2).sum(-1).mean(0)).numpy())
            if name == "right":
                made["root"].append(made["right"][-1] ** 0.5)
                made["lengths"].append((rows.mean(0).norm(dim=-1) / rows.norm(dim=-1).mean(0)).numpy())
    return {name: np.stack(rows) for name, rows in made.items()}


@exercise("3.1", "One edit", "easy", "a function of z, head and value that returns the edited z.")
def _edit(answer: Any) -> str:
    seed = torch.Generator().manual_seed(3)
    z, other = torch.randn(2, 3, 5, 8, 4, generator=seed)
    for value in (0.0, other[0, 0, 0], other[:, :, 6]):
        before, wanted = z.clone(), z.clone()
        wanted[:, :, 6] = value
        got = called(answer, before, 6, value, copied=False)
        if got is before or not torch.equal(before, z):
            raise Wrong(
                "your function changes the tensor that it is given. Copy it first: that tensor may be a cache that others read."
            )
        made = table(got, tuple(z.shape), "example, pos, head, d_head")
        if np.allclose(made[:, :, 6], z[:, :, 6]):
            raise Wrong("the head is left as it was.")
        if not np.allclose(np.delete(made, 6, 2), np.delete(z.numpy(), 6, 2)):
            raise Wrong("other heads are changed too. The axes of z are [example, pos, head, d_head].")
        if not np.allclose(made, wanted, atol=1e-6):
            what = f"a value of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "a number"
            raise Wrong(f"with {what} the head does not hold the value afterwards, at every position.")
    return "One function for all ablations: they differ in the value alone."


@exercise("3.2", "Where they disagree", "medium", "the names of the heads, such as ['a1.0', 'a2.5'].")
def _disagree(answer: Any) -> str:
    by_zero, by_other = _effects("zero"), _effects("resample")
    why_not = {}
    for name, z in by_zero.items():
        fits = z < -1.25 and abs(by_other[name]) < 0.3
        why_not[name] = (
            ""
            if fits
            else f"changes the logit difference by {z:+.2f} zeroed and by {by_other[name]:+.2f} resampled."
        )
    all_names(names(answer, [*why_not], "head of tiny"), why_not)
    return "By zero they are among the important heads, by resampling the task does not need them."


@exercise("3.3", "What is constant", "medium", "an array [layer, head] of shares between 0 and 1.")
def _shares(answer: Any) -> str:
    wanted, got = _constant(), table(answer, (4, 8), "layer, head")
    if np.allclose(got, wanted["right"], atol=TWO_DIGITS):
        return f"{int((got > 0.9).sum())} heads of layer 0 write more than 90% of the same thing everywhere."
    said = {
        "bos": "you counted <bos>, where many heads write something of its own. Leave position 0 out.",
        "root": "these are the roots of the shares: both lengths are squared.",
        "lengths": "these are ratios of lengths. Square: the length of the mean, and each length before you take their mean.",
    }
    for name, message in said.items():
        if np.allclose(got, wanted[name], atol=2e-3):
            raise Wrong(message)
    if np.allclose(got, 1 - wanted["right"], atol=2e-3):
        raise Wrong("this is the share of what varies.")
    if not ((got >= 0) & (got <= 1.001)).all():
        raise Wrong("a share lies between 0 and 1.")
    raise Wrong(
        f"{int((~np.isclose(got, wanted['right'], atol=TWO_DIGITS)).sum())} of the 32 shares are off. Average over all tokens of all prompts."
    )


@exercise(
    "3.4", "Heads that cover for each other", "hard", "a number of logits, negative where together is worse."
)
def _synergy(answer: Any) -> str:
    got, (together, singly) = number(answer), _together()
    if np.isclose(got, together - singly, atol=0.05):
        return f"Zeroed one at a time they cost {-singly:.1f} in all, together {-together:.1f}."
    for value, said in {
        together: "this is the effect of the five together. What of it do the single effects not account for?",
        singly: "this is the sum of the single effects.",
        singly - together: "the sign is turned round: together minus the sum of the single ones.",
        together + singly: "you added the two: the single effects are to be taken away.",
        together - singly / len(GROUP): "you took away the mean of the single effects; their sum is wanted.",
    }.items():
        if np.isclose(got, value, atol=0.02):
            raise Wrong(said)
    raise Wrong(f"{got:.2f} is not it. Both are means over the {N} prompts, of effects of zero().")
