"""Checkers of lesson 9: what a sparse probe reads, and whether the model reads it too."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.course import fixtures as bench
from workbench.course.exercises import TWO_DIGITS, Wrong, called, exercise, fields, one_name, table
from workbench.engine.capture import capture_pairs
from workbench.planted_models.pairs import planted_pairs
from workbench.planted_models.planted import Planted, planted
from workbench.probes.fit import Probes, fit_probes
from workbench.probes.labels import Labels
from workbench.sites import Shape
from workbench.stores.store import ActivationStore

N = 200
KS = (1, 2, 4, 8, 16)


@lru_cache(maxsize=1)
def _stores() -> tuple[ActivationStore, ActivationStore]:
    return capture_pairs(bench.model(), bench.pairs("agreement", N), sites=["resid_post"], progress=False)


@lru_cache(maxsize=1)
def _probes() -> Probes:
    """The probes that the notebook fits: the subject's number, read at END of the clean prompts."""
    clean, _ = _stores()
    return fit_probes(clean, Labels.of_concepts(clean, ["number"]), k=KS, draws=10)


@exercise(
    "9.1",
    "Rank features",
    "easy",
    "a function from activations [row, feature] and labels [row] to scores [feature].",
)
def _welch(answer: Any) -> str:
    rng = torch.Generator().manual_seed(0)
    labels = torch.rand(60, generator=rng) < 0.4
    size = torch.tensor([1.0, 1.0, 20.0, 0.1, 5.0, 1.0])
    shift = torch.tensor([1.0, -2.0, 5.0, 0.3, 0.0, 0.0])
    x = (torch.randn(60, 6, generator=rng, dtype=torch.float64) + labels[:, None] * (shift / size)) * size
    one, two = x[labels], x[~labels]
    gap = one.mean(0) - two.mean(0)
    right = (gap.abs() / (one.var(0) / len(one) + two.var(0) / len(two)).sqrt()).numpy()
    got = table(called(answer, x, labels), (6,), "feature")
    if np.allclose(got, right, rtol=0.03):
        return "A large gap between classes counts for little in a feature that is large anyway."
    if np.allclose(np.abs(got), right, rtol=0.03):
        raise Wrong(
            "some scores are negative: a neuron that falls with the concept says as much as one that rises."
        )
    if np.allclose(np.abs(got), gap.abs(), rtol=0.03):
        raise Wrong(
            "these are the gaps between the means. A feature that is large in every row has a large gap by chance."
        )
    if np.allclose(np.abs(got), gap.abs() / x.std(0), rtol=0.03):
        raise Wrong("the spread over all rows contains the gap itself. Take the spread within each class.")
    if np.allclose(np.abs(got), gap.abs() / (one.var(0) + two.var(0)).sqrt(), rtol=0.03):
        raise Wrong(
            "a mean of many rows is known better than one of few: the counts of the two classes are missing."
        )
    raise Wrong("for random activations your scores are not Welch's |t|.")


@exercise("9.2", "Are the chosen ones better?", "easy", "an array [k] of five differences of accuracies.")
def _advantage(answer: Any) -> str:
    accuracy = _probes().results["accuracy"].sel(layer=2, concept="number", selector="welch")
    drawn = accuracy["control"].values.tolist()
    chosen, random, shuffled = (
        accuracy.sel(control=[name for name in drawn if name.startswith(kind)]).mean("control").values
        for kind in ("none", "random-features", "shuffle")
    )
    right = chosen - random
    got = table(answer, (len(KS),), "k")
    if np.allclose(got, right, atol=TWO_DIGITS):
        return "With sixteen features of 128, any sixteen do nearly as well: large k says little about which features carry a concept."
    if np.allclose(got, chosen, atol=1e-4):
        raise Wrong("these are the accuracies of the chosen features. What do as many random ones reach?")
    if np.allclose(got, -right, atol=1e-4):
        raise Wrong("the signs are turned round: chosen minus random.")
    if np.allclose(got, chosen - shuffled, atol=1e-4):
        raise Wrong(
            "that is the distance to shuffled labels. They keep the features and lose the concept; wanted is the reverse."
        )
    off = [str(k) for k, wrong in zip(KS, ~np.isclose(got, right, atol=TWO_DIGITS), strict=True) if wrong]
    raise Wrong(f"k={', '.join(off)}: off. Layer 2, and the mean over all draws of random features.")


@exercise("9.3", "Other prompts", "medium", "an array [layer] of four accuracies.")
def _moved(answer: Any) -> str:
    _, corrupt = _stores()
    concept = Labels.of_concepts(corrupt, ["number"]).concept("number")
    found = _probes().results.sel(concept="number", k=16, selector="welch", control="none")
    right = np.empty(4)
    for layer in range(4):
        cell = found.sel(layer=layer)
        x = corrupt["resid_post", layer].at("END").double().numpy()[:, cell["feature"].values]
        logit = x @ cell["coefficient"].values[0] + float(cell["intercept"][0])
        right[layer] = np.mean((logit > 0) == (concept.codes == 1))
    got = table(answer, (4,), "layer")
    if np.allclose(got, right, atol=0.006):
        return (
            f"From {right[0]:.0%} to {right[3]:.0%}: below one half is not noise, it is another concept. In the early layers the "
            "probe reads the noun that stands at END, whose number was the opposite of the subject's in every training prompt."
        )
    if np.allclose(got, 1 - right, atol=0.006):
        raise Wrong(
            "every answer is turned round. Whose subjects are the labels of, the corrupt prompts' or the clean ones'? And which "
            "class is the positive one? (`labels.concept('number').classes`: the last.)"
        )
    if np.allclose(got, found["accuracy"].values, atol=0.006):
        raise Wrong(
            "these are the held-out accuracies on clean prompts. Apply the probes to the corrupt store."
        )
    off = [str(layer) for layer in np.flatnonzero(~np.isclose(got, right, atol=0.006))]
    raise Wrong(
        f"layer {', '.join(off)}: off. A probe says yes where activation times direction plus intercept is above 0."
    )


@exercise(
    "9.4",
    "Swap a direction",
    "medium",
    "a function from x [example, d], other [example, d] and direction [d] to [example, d].",
)
def _swapped(answer: Any) -> str:
    rng = torch.Generator().manual_seed(2)
    x, other = torch.randn(2, 5, 7, generator=rng, dtype=torch.float64)
    direction = torch.randn(7, generator=rng, dtype=torch.float64) * 3
    unit = direction / direction.norm()
    right = (x + ((other - x) @ unit)[:, None] * unit).numpy()
    got = table(called(answer, x, other, direction), (5, 7), "example, d")
    if np.allclose(got, right, atol=1e-6):
        return "Along the direction it is the other run, everywhere else this one."
    if np.allclose(got, x + ((other - x) @ direction)[:, None] * direction, atol=1e-6):
        raise Wrong("the direction is not of length 1, and what you add is too long by its length squared.")
    if np.allclose(got, x - (x @ unit)[:, None] * unit, atol=1e-6):
        raise Wrong("the part along the direction is taken out. Put in what the other run has there.")
    if np.allclose(got, x + (other @ unit)[:, None] * unit, atol=1e-6):
        raise Wrong("the other run's part is added, and x's own is still there.")
    if np.allclose(got, other, atol=1e-6):
        raise Wrong("everything is swapped; only the part along the direction should be.")
    before, after = np.asarray(got) @ unit.numpy(), (other @ unit).numpy()
    along = np.allclose(before, after, atol=1e-6)
    raise Wrong(
        "outside the direction something changed."
        if along
        else "along the direction it is not what the other run has."
    )


@lru_cache(maxsize=1)
def _planted() -> tuple[Planted, dict[str, float]]:
    """The planted model and how well the answer can be read in each head of its last layer."""
    made = planted("induction", n=120)
    pairs = planted_pairs(made)
    clean, _ = capture_pairs(made.model, pairs, sites=["z"], progress=False)
    labels = Labels.per_prompt(clean, {"answer": [f"w{token}" for token in pairs.answers[:, 0, 0].tolist()]})
    shape, found = Shape.of(made.model), {}
    for head in range(shape.n_heads):
        features = list(range(head * shape.d_head, (head + 1) * shape.d_head))
        how: dict[str, Any] = {
            "k": [shape.d_head],
            "selectors": ["given"],
            "given": {("z", 1): features},
            "controls": [],
        }
        found[f"a1.{head}"] = float(
            fit_probes(clean, labels, sites=["z"], layers=[1], **how).results["accuracy"].squeeze()
        )
    return made, found


@exercise("9.5", "Used or merely decodable", "hard", '{"used": a head such as "a1.1", "decoy": another}.')
def _verdicts(answer: Any) -> str:
    made, decoded = _planted()
    into = {str(edge).split("->")[0] for edge in made.edges["corrupt"] if str(edge).endswith("->logits")}
    for role, given in fields(answer, ("used", "decoy")).items():
        head = one_name(given, [*decoded], "head of the last layer")
        if decoded[head] < 0.9:
            raise Wrong(
                f"{role}: in {head} the answer can be read in {decoded[head]:.0%} of the prompts only."
            )
        if role == "used" and head not in into:
            raise Wrong(
                f"used: exchange what {head} holds for the corrupt run's, and the logit difference stays as it is."
            )
        if role == "decoy" and head in into:
            raise Wrong(
                f"decoy: exchange what {head} holds for the corrupt run's, and look at the logit difference."
            )
    return "Both hold the answer in every prompt; the weights of this model were set by hand, and nothing reads the decoy."
