"""Checkers of lesson 2: what every component writes to the logit difference."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.course import fixtures
from workbench.course.exercises import (
    Wrong,
    all_names,
    called,
    exercise,
    explain,
    listed,
    names,
    table,
    whole_number,
)
from workbench.engine.values import from_store
from workbench.interventions.effects import effects
from workbench.lenses.direct_attribution import direct_attribution
from workbench.lenses.logit_lens import logit_lens
from workbench.sites import grid

N = 64


@lru_cache
def _written(by: str) -> xr.DataArray:
    """What each adds to the logit difference, averaged over the prompts: [component] or [layer, neuron]."""
    clean, _ = fixtures.stores("ioi", N)
    pairs = fixtures.pairs("ioi", N)
    written = direct_attribution(clean, fixtures.model(), targets=pairs.answers, minus=pairs.wrong, by=by)
    return written.mean("example")


@lru_cache
def _swapped() -> dict[str, float]:
    """For each head, the change of the logit difference when its output is that of the corrupt run."""
    model, (_, corrupt) = fixtures.model(), fixtures.stores("ioi", N)
    pairs, sites = fixtures.pairs("ioi", N), grid("z", model)
    table = effects(model, pairs, sites=sites, value=from_store(corrupt), progress=False)
    return dict(zip(fixtures.heads(model), table.mean("example").values.ravel().tolist(), strict=True))


def _centred(stream: Tensor) -> Tensor:
    return stream - stream.mean(-1, keepdim=True)


def _scale(stream: Tensor) -> Tensor:
    """What the last norm divides a stream by: its standard deviation over d_model."""
    return (_centred(stream).pow(2).mean(-1, keepdim=True) + fixtures.model().cfg.eps).sqrt()


@exercise(
    "2.1",
    "Attribution by hand",
    "medium",
    "a function of part, final, answers and wrong that returns [example].",
)
def _by_hand(answer: Any) -> str:
    model, seed = fixtures.model(), torch.Generator().manual_seed(2)
    # The mean is not 0, so that forgetting to subtract it shows.
    part, rest = torch.randn(2, 6, model.cfg.d_model, generator=seed) + 0.5
    final, right, wrong = 3 * (part + rest), torch.arange(60, 66), torch.arange(80, 86)
    weight, toward = model.ln_final.w.detach(), (model.W_U[:, right] - model.W_U[:, wrong]).T.detach()
    bias = (model.ln_final.b * toward).sum(-1).detach().numpy()

    def read(stream: Tensor) -> np.ndarray:
        """[example]: a normed stream, weighed and projected on right minus wrong."""
        return (stream * weight * toward).sum(-1).numpy()

    wanted = read(_centred(part) / _scale(final))
    values = table(called(answer, part, final, right, wrong), (6,), "example")
    if np.allclose(values, wanted, atol=1e-3):
        return (
            "With the scale fixed the read-out is linear: the parts of a sum get the parts of the logit "
            "difference."
        )
    streams = {
        "you normed the part by itself. In the model it is divided by the scale of the whole last stream.": (
            _centred(part) / _scale(part)
        ),
        "the norm's scale is missing.": _centred(part),
        "the norm also takes the mean over d_model away, and here it is still there.": part / _scale(final),
        "this is the whole stream; only the part is wanted.": _centred(final) / _scale(final),
    }
    mistakes = []
    # Answers may add the norm's bias or not, so each mistake has two results.
    for message, stream in streams.items():
        mistakes += [(read(stream), message), (read(stream) + bias, message)]
    mistakes += [
        (
            wanted + bias,
            "you added the norm's bias. It belongs to no part: added to each, it would count many times.",
        ),
        (-wanted, "the signs are reversed: it is the right token minus the wrong one."),
        ((_centred(part) / _scale(final) * toward).sum(-1), "the norm's weight is missing."),
    ]
    explain(values, mistakes, atol=1e-3)
    raise Wrong(f"for six random streams you are off by up to {np.abs(values - wanted).max():.2g}.")


@exercise(
    "2.2",
    "By layer",
    "easy",
    "an array [layer] of four numbers: what heads and MLP of each layer write together.",
)
def _by_layer(answer: Any) -> str:
    written = _written("component")
    # Biases of the output projections count as `bias` by head and as attention by component: both are taken.
    heads, mlps = ([float(written.sel(component=f"{kind}{layer}")) for layer in range(4)] for kind in "am")
    right, values = np.add(heads, mlps), table(answer, (4,), "layer")
    # 0.03 of 9 logits: sums of four numbers that were each rounded to two digits still pass.
    if np.allclose(values, right, atol=0.03):
        return "Nearly all of it is written by the last layer, from what the earlier ones left in the stream."
    clean, _ = fixtures.stores("ioi", N)
    pairs = fixtures.pairs("ioi", N)
    lens = logit_lens(clean, fixtures.model(), targets=pairs.answers, minus=pairs.wrong)
    read = lens.values[np.arange(N), :, pairs.clean.lengths - 1].mean(0)
    from_lens = (
        "these come from the logit lens, which reads each layer with a scale of its own. Add up the table of "
        "parts."
    )
    explain(
        values,
        [(heads, "the MLPs are missing."), (mlps, "the heads are missing."), (read, from_lens)],
        atol=0.03,
    )
    explain(values[1:], [(np.diff(read), from_lens)], atol=0.03)
    explain(
        values, [(np.cumsum(right), "you add up the layers too: each one is wanted by itself.")], atol=0.06
    )
    off = np.flatnonzero(~np.isclose(values, right, atol=0.03))
    raise Wrong(f"{listed('layer', off.tolist())} off. Eight heads and one MLP belong to each.")


@exercise("2.3", "How many neurons", "medium", "a number of neurons of m3.")
def _neurons(answer: Any) -> str:
    strongest = np.sort(_written("neuron").values[3])[::-1]
    right, count = int(np.argmax(np.cumsum(strongest) >= strongest.sum())) + 1, whole_number(answer)
    if not 1 <= count <= len(strongest):
        raise Wrong(f"m3 has {len(strongest)} neurons.")
    share = strongest[:count].sum() / strongest.sum()
    reached = f"the {count} strongest write {share:.0%} of what all {len(strongest)} write together"
    if count < right:
        raise Wrong(f"{reached}.")
    if count > right:
        raise Wrong(f"{reached}: fewer do.")
    return f"The other {len(strongest) - right} add up to less than nothing: some write for the wrong name."


@exercise("2.4", "Heads that attribution misses", "hard", "the names of the heads, such as ['a1.3', 'a2.5'].")
def _missed(answer: Any) -> str:
    why_not = {}
    for name, swapped in _swapped().items():
        direct = float(_written("head").sel(component=name))
        why_not[name] = ""
        if abs(direct) >= 0.3 or swapped >= -0.5:
            why_not[name] = (
                f"writes {direct:+.2f} directly, and swapping it changes the logit difference by "
                f"{swapped:+.2f}."
            )
    all_names(names(answer, [*why_not], "head of tiny"), why_not)
    return "They work through what later heads and MLPs do with their output."
