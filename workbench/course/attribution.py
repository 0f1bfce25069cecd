"""Checkers of lesson 2: what every part writes to the logit difference."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from workbench.course import fixtures as bench
from workbench.course.exercises import Wrong, all_names, called, exercise, names, table, whole_number
from workbench.engine.values import from_store
from workbench.interventions.effects import effects
from workbench.lenses.direct_attribution import direct_attribution
from workbench.lenses.logit_lens import logit_lens
from workbench.sites import grid

N = 64


@lru_cache
def _written(by: str) -> Any:
    """The mean over the prompts: [component], or [layer, neuron]."""
    clean, _ = bench.stores("ioi", N)
    pairs = bench.pairs("ioi", N)
    return direct_attribution(clean, bench.model(), targets=pairs.answers, minus=pairs.wrong, by=by).mean(
        "example"
    )


@lru_cache
def _swapped() -> dict[str, float]:
    """For each head, the change of the logit difference when it is that of the corrupt run."""
    model, (_, corrupt) = bench.model(), bench.stores("ioi", N)
    table = effects(
        model, bench.pairs("ioi", N), sites=grid("z", model), value=from_store(corrupt), progress=False
    )
    return dict(zip(bench.heads(model), table.mean("example").values.ravel().tolist(), strict=True))


@exercise(
    "2.1",
    "Attribution by hand",
    "medium",
    "a function of part, final, answers and wrong that returns [example].",
)
def _by_hand(answer: Any) -> str:
    model, seed = bench.model(), torch.Generator().manual_seed(2)
    part, rest = torch.randn(2, 6, model.cfg.d_model, generator=seed) + 0.5
    final, right, wrong = 3 * (part + rest), torch.arange(60, 66), torch.arange(80, 86)
    norm, toward = model.ln_final.w.detach(), (model.W_U[:, right] - model.W_U[:, wrong]).T.detach()

    def centred(stream: torch.Tensor) -> torch.Tensor:
        return stream - stream.mean(-1, keepdim=True)

    def scale(stream: torch.Tensor) -> torch.Tensor:
        return (centred(stream).pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()

    def read(stream: torch.Tensor) -> np.ndarray:
        return (stream * norm * toward).sum(-1).numpy()

    got = table(called(answer, part, final, right, wrong), (6,), "example")
    if np.allclose(got, read(centred(part) / scale(final)), atol=1e-3):
        return "With the scale held fixed the read-out is linear: the parts of a sum get the parts of the logit difference."
    shift = (model.ln_final.b * toward).sum(-1).detach().numpy()
    said = {
        "you normed the part by itself. In the model it is divided by the scale of the whole last stream.": centred(
            part
        )
        / scale(part),
        "the norm's scale is missing.": centred(part),
        "the norm also takes the mean over d_model away, and here it is still there.": part / scale(final),
        "this is the whole stream; only the part is wanted.": centred(final) / scale(final),
    }
    for message, stream in said.items():
        if any(np.allclose(got, read(stream) + each, atol=1e-3) for each in (0, shift)):
            raise Wrong(message)
    if np.allclose(got, read(centred(part) / scale(final)) + shift, atol=1e-3):
        raise Wrong(
            "you added the norm's bias. It is no part's: added to each, it would be counted many times."
        )
    if np.allclose(got, -read(centred(part) / scale(final)), atol=1e-3):
        raise Wrong("the signs are turned round: it is the right token minus the wrong one.")
    if np.allclose(got, (centred(part) / scale(final) * toward).sum(-1), atol=1e-3):
        raise Wrong("the norm's weight is missing.")
    raise Wrong(
        f"for six random streams you are off by up to {np.abs(got - read(centred(part) / scale(final))).max():.2g}."
    )


@exercise(
    "2.2",
    "By layer",
    "easy",
    "an array [layer] of four numbers: what heads and MLP of each layer write together.",
)
def _by_layer(answer: Any) -> str:
    written = _written("component")
    # By head the biases of the output projections count as `bias`, by component as attention: both are taken.
    parts = [[float(written.sel(component=f"{kind}{layer}")) for layer in range(4)] for kind in "am"]
    right, got = np.sum(parts, 0), table(answer, (4,), "layer")
    if np.allclose(got, right, atol=0.03):
        return "Nearly all of it is written by the last layer, from what the earlier ones left in the stream."
    for values, other in zip(parts, ("MLPs", "heads"), strict=True):
        if np.allclose(got, values, atol=0.03):
            raise Wrong(f"the {other} are missing.")
    clean, _ = bench.stores("ioi", N)
    pairs = bench.pairs("ioi", N)
    lens = logit_lens(clean, bench.model(), targets=pairs.answers, minus=pairs.wrong)
    read = lens.values[np.arange(N), :, pairs.clean.lengths - 1].mean(0)
    if np.allclose(got, read, atol=0.03) or np.allclose(got[1:], np.diff(read), atol=0.03):
        raise Wrong(
            "these come from the logit lens, which reads each layer with a scale of its own. Add up the table of parts."
        )
    if np.allclose(got, np.cumsum(right), atol=0.06):
        raise Wrong("you add up the layers too: each one is wanted by itself.")
    off = [str(layer) for layer in np.flatnonzero(~np.isclose(got, right, atol=0.03))]
    raise Wrong(f"layer {' and '.join(off)} is off. Eight heads and one MLP belong to each.")


@exercise("2.3", "How many neurons", "medium", "a number of neurons of m3.")
def _neurons(answer: Any) -> str:
    each = np.sort(_written("neuron").values[3])[::-1]
    right, given = int(np.argmax(np.cumsum(each) >= each.sum())) + 1, whole_number(answer)
    if not 1 <= given <= len(each):
        raise Wrong(f"m3 has {len(each)} neurons.")
    reached = each[:given].sum() / each.sum()
    if given < right:
        raise Wrong(f"the {given} strongest write {reached:.0%} of what all {len(each)} write together.")
    if given > right:
        raise Wrong(
            f"the {given} strongest write {reached:.0%} of what all {len(each)} write together: fewer do."
        )
    return f"The other {len(each) - right} add up to less than nothing: some write for the wrong name."


@exercise("2.4", "Heads that attribution misses", "hard", "the names of the heads, such as ['a1.3', 'a2.5'].")
def _missed(answer: Any) -> str:
    why_not = {}
    for name, s in _swapped().items():
        d = float(_written("head").sel(component=name))
        fits = abs(d) < 0.3 and s < -0.5
        why_not[name] = (
            ""
            if fits
            else f"writes {d:+.2f} directly, and swapping it changes the logit difference by {s:+.2f}."
        )
    all_names(names(answer, [*why_not], "head of tiny"), why_not)
    return "They work through what later heads and MLPs do with their output."
