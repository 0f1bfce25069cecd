"""Lesson 2."""

from functools import lru_cache

import numpy as np
import torch

import workbench as wb
from workbench.course import fixtures


def by_hand(
    part, final, answers, wrong, *, scale=True, centre=True, own=False, sign=1, bias=False, weight=True
):
    model = fixtures.model()
    direction = model.W_U[:, answers].T - model.W_U[:, wrong].T
    part = part - part.mean(1, keepdim=True) if centre else part
    of = part if own else final
    stream = part / (of.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() if scale else part
    stream = stream * model.ln_final.w if weight else stream
    return sign * torch.einsum("ed,ed->e", stream + model.ln_final.b * bias, direction)


@lru_cache
def attribution(by):
    pairs, (clean, _) = fixtures.pairs("ioi", 64), fixtures.stores("ioi", 64)
    return wb.direct_attribution(
        clean, fixtures.model(), targets=pairs.answers, minus=pairs.wrong, by=by
    ).mean("example")


def layers(parts="am"):
    made = attribution("head")
    starts = made.component.values.astype(str)
    return [
        sum(float(made[i]) for i, name in enumerate(starts) if name[0] in parts and name[1] == str(at))
        for at in range(4)
    ]


def lens():
    pairs, (clean, _) = fixtures.pairs("ioi", 64), fixtures.stores("ioi", 64)
    made = wb.logit_lens(clean, fixtures.model(), targets=pairs.answers, minus=pairs.wrong).values
    return made[np.arange(64), :, pairs.clean.lengths - 1].mean(0)


def neurons():
    each, total, count = sorted(attribution("neuron").values[3], reverse=True), 0.0, 0
    while total < sum(each):
        total, count = total + each[count], count + 1
    return count


@lru_cache
def missed():
    model, (_, corrupt), direct = fixtures.model(), fixtures.stores("ioi", 64), attribution("head")
    sites, value = wb.grid("z", model), wb.from_store(corrupt)
    swapped = wb.effects(model, fixtures.pairs("ioi", 64), sites=sites, value=value, progress=False)
    means = swapped.mean("example")
    return tuple(
        f"a{layer}.{head}"
        for layer, head in np.ndindex(4, 8)
        if abs(direct.sel(component=f"a{layer}.{head}")) < 0.3 and means.sel(layer=layer, head=head) < -0.5
    )


CASES = {
    "2.1": (
        lambda: by_hand,
        [
            (lambda: lambda *given: by_hand(*given, own=True), "normed the part by itself"),
            (lambda: lambda *given: by_hand(*given, scale=False), "scale is missing"),
            (lambda: lambda *given: by_hand(*given, centre=False), "takes the mean"),
            (lambda: lambda *given: by_hand(*given, sign=-1), "signs"),
            (lambda: lambda *given: by_hand(*given, bias=True), "the norm's bias"),
            (lambda: lambda *given: by_hand(*given, weight=False), "weight is missing"),
            (
                lambda: lambda part, final, answers, wrong: by_hand(final, final, answers, wrong),
                "the whole stream",
            ),
            (lambda: lambda part, final, answers, wrong: part, "shape (6,) is wanted"),
        ],
    ),
    "2.2": (
        layers,
        [
            (lambda: layers("a"), "the MLPs are missing"),
            (lambda: layers("m"), "the heads are missing"),
            (lambda: lens(), "logit lens"),
            (lambda: np.cumsum(layers()), "each one is wanted by itself"),
            (lambda: np.add(layers(), [0, 1, 0, 0]), "layer 1 is off"),
        ],
    ),
    "2.3": (neurons, [(1, "write 6% of"), (200, "fewer do"), (513, "512 neurons")]),
    "2.4": (
        lambda: [*missed()],
        [
            (["a0.1"], "at least one is missing"),
            (lambda: [*missed(), "a3.7"], "a3.7 writes +3.43"),
            (["a0.1", "m3"], "no head of tiny"),
        ],
    ),
}
