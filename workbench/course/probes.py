"""Checkers of lesson 11: what a sparse probe reads, and whether the model reads it too."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.course import fixtures
from workbench.course.exercises import (
    TWO_DIGITS,
    Wrong,
    called,
    exercise,
    explain,
    fields,
    listed,
    one_name,
    table,
)
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
    return capture_pairs(
        fixtures.model(), fixtures.pairs("agreement", N), sites=["resid_post"], progress=False
    )


@lru_cache(maxsize=1)
def _probes() -> Probes:
    """The probes that the notebook fits: the subject's number, read at END of the clean prompts."""
    clean, _ = _stores()
    return fit_probes(clean, Labels.of_concepts(clean, ["number"]), k=KS, draws=10)


@exercise(
    "11.1",
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
    values = table(called(answer, x, labels), (6,), "feature")
    # 3 % leave room for the two ways to estimate a variance, with n and with n - 1.
    if np.allclose(values, right, rtol=0.03):
        return "A large gap between classes counts for little in a feature that is large anyway."
    mistakes = [
        (
            right,
            "some scores are negative: a neuron that falls with the concept says as much as one that rises.",
        ),
        (
            gap.abs(),
            "these are the gaps between the means. A feature that is large in every row has a large gap by "
            "chance.",
        ),
        (
            gap.abs() / x.std(0),
            "the spread over all rows contains the gap itself. Take the spread within each class.",
        ),
        (
            gap.abs() / (one.var(0) + two.var(0)).sqrt(),
            "a mean of many rows is known better than one of few: the counts of the two classes are missing.",
        ),
    ]
    explain(np.abs(values), mistakes, rtol=0.03)
    raise Wrong("for random activations your scores are not Welch's |t|.")


@exercise("11.2", "Are the chosen ones better?", "easy", "an array [k] of five differences of accuracies.")
def _advantage(answer: Any) -> str:
    accuracy = _probes().results["accuracy"].sel(layer=2, concept="number", selector="welch")

    def mean_of(control: str) -> np.ndarray:
        """[k]: the mean over the draws of a control."""
        draws = [name for name in accuracy["control"].values.tolist() if name.startswith(control)]
        return accuracy.sel(control=draws).mean("control").values

    chosen, random = mean_of("none"), mean_of("random-features")
    right = chosen - random
    values = table(answer, (len(KS),), "k")
    # The checker fits the same probes with the same seed, so only rounding can differ.
    if np.allclose(values, right, atol=TWO_DIGITS):
        return (
            "With sixteen features of 128, any sixteen do nearly as well: large k says little about which "
            "features carry a concept."
        )
    mistakes = [
        (chosen, "these are the accuracies of the chosen features. What do as many random ones reach?"),
        (-right, "the signs are reversed: chosen minus random."),
        (
            chosen - mean_of("shuffle"),
            "that is the distance to shuffled labels. They keep the features and lose the concept; wanted is "
            "the reverse.",
        ),
    ]
    explain(values, mistakes, atol=1e-4)
    off = [
        k for k, is_close in zip(KS, np.isclose(values, right, atol=TWO_DIGITS), strict=True) if not is_close
    ]
    raise Wrong(
        f"k={', '.join(map(str, off))}: off. Layer 2, and the mean over all draws of random features."
    )


@exercise("11.3", "Other prompts", "medium", "an array [layer] of four accuracies.")
def _moved(answer: Any) -> str:
    _, corrupt = _stores()
    concept = Labels.of_concepts(corrupt, ["number"]).concept("number")
    results = _probes().results.sel(concept="number", k=16, selector="welch", control="none")
    right = np.empty(4)
    for layer in range(4):
        cell = results.sel(layer=layer)
        x = corrupt["resid_post", layer].at("END").double().numpy()[:, cell["feature"].values]
        logit = x @ cell["coefficient"].values[0] + float(cell["intercept"][0])
        right[layer] = np.mean((logit > 0) == (concept.codes == 1))
    values = table(answer, (4,), "layer")
    if np.allclose(values, right, atol=TWO_DIGITS):
        return (
            f"From {right[0]:.0%} to {right[3]:.0%}: below one half is not noise, it is another concept. "
            "In the early layers the probe reads the noun that stands at END, "
            "whose number was the opposite of the subject's in every training prompt."
        )
    mistakes = [
        (
            1 - right,
            "every answer is reversed. Are the labels those of the corrupt prompts' subjects, "
            "or of the clean ones'? And which class is the positive one? "
            "(`labels.concept('number').classes`: the last.)",
        ),
        (
            results["accuracy"].values,
            "these are the held-out accuracies on clean prompts. Apply the probes to the corrupt store.",
        ),
    ]
    explain(values, mistakes, atol=TWO_DIGITS)
    off = np.flatnonzero(~np.isclose(values, right, atol=TWO_DIGITS))
    raise Wrong(
        f"{listed('layer', off.tolist())} off. A probe says yes where activation times direction plus "
        "intercept is above 0."
    )


@exercise(
    "11.4",
    "Swap a direction",
    "medium",
    "a function from x [example, d], other [example, d] and direction [d] to [example, d].",
)
def _swapped(answer: Any) -> str:
    rng = torch.Generator().manual_seed(2)
    x, donor = torch.randn(2, 5, 7, generator=rng, dtype=torch.float64)
    direction = torch.randn(7, generator=rng, dtype=torch.float64) * 3
    unit = direction / direction.norm()
    own, donated = (x @ unit)[:, None] * unit, (donor @ unit)[:, None] * unit
    values = table(called(answer, x, donor, direction), (5, 7), "example, d")
    if np.allclose(values, x - own + donated, atol=1e-6):
        return "Along the direction it is the other run, everywhere else this one."
    mistakes = [
        (
            x + ((donor - x) @ direction)[:, None] * direction,
            "the direction is not of length 1, and what you add is too long by its length squared.",
        ),
        (x - own, "the part along the direction is taken out. Put in what the other run has there."),
        (x + donated, "the other run's part is added, and x's own is still there."),
        (donor, "everything is swapped; only the part along the direction should be."),
    ]
    explain(values, mistakes, atol=1e-6)
    if np.allclose(values @ unit.numpy(), (donor @ unit).numpy(), atol=1e-6):
        raise Wrong("outside the direction something changed.")
    raise Wrong("along the direction it is not what the other run has.")


@dataclass(frozen=True)
class Decoded:
    """The planted model, and how well the answer can be read in each head of its last layer.

    Attributes:
        model: with one head that is used and a decoy.
        accuracy: of a probe on each head's z.
    """

    model: Planted
    accuracy: dict[str, float]


@lru_cache(maxsize=1)
def _planted() -> Decoded:
    model = planted("induction", n=120)
    pairs = planted_pairs(model)
    clean, _ = capture_pairs(model.model, pairs, sites=["z"], progress=False)
    words = [f"w{token}" for token in pairs.answers[:, 0, 0].tolist()]
    labels = Labels.per_prompt(clean, {"answer": words})
    shape, accuracy = Shape.of(model.model), {}
    for head in range(shape.n_heads):
        features = list(range(head * shape.d_head, (head + 1) * shape.d_head))
        probes = fit_probes(
            clean, labels, sites=["z"], layers=[1], k=[shape.d_head], selectors=["given"],
            given={("z", 1): features}, controls=[],
        )  # fmt: skip
        accuracy[f"a1.{head}"] = float(probes.results["accuracy"].squeeze())
    return Decoded(model, accuracy)


@exercise("11.5", "Used or merely decodable", "hard", '{"used": a head such as "a1.1", "decoy": another}.')
def _verdicts(answer: Any) -> str:
    decoded = _planted()
    true_edges = decoded.model.edges["corrupt"]
    into_logits = {str(edge).split("->")[0] for edge in true_edges if str(edge).endswith("->logits")}
    for role, chosen in fields(answer, ("used", "decoy")).items():
        head = one_name(chosen, [*decoded.accuracy], "head of the last layer")
        accuracy = decoded.accuracy[head]
        if accuracy < 0.9:
            raise Wrong(f"{role}: in {head} the answer can be read in only {accuracy:.0%} of the prompts.")
        if role == "used" and head not in into_logits:
            raise Wrong(
                f"used: exchange what {head} holds for the corrupt run's, and the logit difference stays as "
                "it is."
            )
        if role == "decoy" and head in into_logits:
            raise Wrong(
                f"decoy: exchange what {head} holds for the corrupt run's, and look at the logit difference."
            )
    return (
        "Both hold the answer in every prompt; the weights of this model were set by hand, and nothing reads "
        "the decoy."
    )
