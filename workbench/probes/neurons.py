"""A probe of one feature for every neuron of every layer: what each neuron says of each concept."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vecdot

from workbench.errors import ProbeError, StoreError
from workbench.probes.controls import splits
from workbench.probes.data import Activations, balanced
from workbench.probes.labels import Concept, Labels
from workbench.probes.solver import design, solve
from workbench.results import effect_array, versions
from workbench.statistics import check_seed

CHUNK = 2**23
"""Bytes of float64 activations that are worked on at a time (measured from 2**19 to 2**23; smaller ones cost more calls)."""
FAST = 8
"""Pairs of undamped Newton steps before a neuron goes to the damped solver."""
MAPS = ("accuracy", "roc_auc", "coefficient", "intercept", "converged")


def neuron_maps(
    store: Any,
    labels: Labels,
    *,
    kind: str = "mlp_post",
    layers: Sequence[int] | None = None,
    l2: float = 1e-2,
    test_share: float = 0.3,
    held_out: np.ndarray | None = None,
    seed: int = 0,
    budget: int = 2**30,
) -> xr.Dataset:
    """How well each single neuron tells each concept: a logistic probe on its activation alone, classes weighing the same.

    Args:
        labels: binary concepts, or several classes, of which each becomes a concept `NAME=CLASS`.
        kind: `mlp_post`, or any other with token rows, flattened.
        l2: penalty on the coefficient of the raw activation; scikit-learn's C is 1 / (l2 n).
        held_out: the held-out rows, [row] or [concept, row]; otherwise `test_share` of them, in whole prompts.

    Returns:
        Dataset (layer, neuron, concept) of held-out `accuracy` and `roc_auc`, `coefficient`, `intercept` and `converged`.

    Raises:
        ProbeError: a concept of numbers, labels of other prompts, too few groups.
        StoreError: the store lacks that kind.
    """
    check_seed(seed)
    if labels.prompts is not store.prompts and labels.prompts.fingerprint != store.prompts.fingerprint:
        raise ProbeError("The labels are of other prompts than the store's: make them with this store.")
    numbers = [concept.name for concept in labels.concepts if not concept.classes]
    if numbers:
        raise ProbeError(
            f"Concept {numbers[0]!r} is a number: neuron maps tell classes apart. Use fit_probes, or make it classes."
        )
    wanted = list(store.layers(kind) if layers is None else layers)
    if not wanted:
        raise StoreError(
            f"neuron_maps needs {kind}; the store holds {', '.join(store.kinds)}. Capture it with sites=[..., {kind!r}]."
        )
    masks = splits(labels, test_share=test_share, folds=None, held_out=held_out, seed=seed)[0]
    asked = [
        (name, truth, mask)
        for concept, mask in zip(labels.concepts, masks, strict=True)
        for name, truth in _binary(concept)
    ]
    tables: list[np.ndarray] = []
    for layer in wanted:
        activations = Activations(store[kind, layer], labels.prompt, labels.pos, budget)
        made = np.full((len(MAPS), activations.n_features, len(asked)), np.nan)
        for start, x in _neurons(activations):
            for c, (_, truth, mask) in enumerate(asked):
                made[:, start : start + len(x), c] = _map(x, truth, mask, l2)
        tables.append(made)
    coords = {
        "layer": wanted,
        "neuron": np.arange(tables[0].shape[1]),
        "concept": [name for name, *_ in asked],
    }
    attrs = {
        "kind": kind,
        "model": store.model_name,
        "model_fingerprint": store.model,
        "l2": l2,
        "seed": seed,
        **versions(),
    }
    attrs["data_fingerprint"] = store.prompts.fingerprint
    values = np.stack(tables, 1)
    return xr.Dataset(
        {
            name: effect_array(v, list(coords), coords, name=name)
            for name, v in zip(MAPS, values, strict=True)
        },
        attrs=attrs,
    )


def _binary(concept: Concept) -> list[tuple[str, np.ndarray]]:
    if len(concept.classes) == 2:
        return [(concept.name, concept.codes == 1)]
    return [(f"{concept.name}={name}", concept.codes == code) for code, name in enumerate(concept.classes)]


def _neurons(activations: Activations) -> Any:
    """(first neuron, [neuron, row]) in portions: small ones of activations that are held, large ones of a file's."""
    rows, n = len(activations.prompt), activations.n_features
    small = max(1, CHUNK // (rows * 8))
    at_once = n if activations.fits else max(small, activations.budget // 4 // (rows * 8))
    for start in range(0, n, at_once):
        chosen = torch.arange(start, min(start + at_once, n))
        held = activations.held if activations.fits else activations.features(chosen).T
        for first in range(0, held.shape[1], small):
            part = held[:, first : first + small]
            yield start + first, torch.empty(part.shape[::-1], dtype=torch.float64).copy_(part.T)


def _map(
    x: Float[Tensor, "neuron row"], truth: Bool[np.ndarray, "row"], mask: Bool[np.ndarray, "row"], l2: float
) -> Float[np.ndarray, "map neuron"]:
    order = [torch.from_numpy(np.flatnonzero(~mask & side)) for side in (~truth, truth)]
    slope, intercept, converged = _single(x.index_select(1, order[0]), x.index_select(1, order[1]), l2)
    sides = [x.index_select(1, torch.from_numpy(np.flatnonzero(mask & side))) for side in (~truth, truth)]
    logits = [torch.addcmul(intercept[:, None], side, slope[:, None]) for side in sides]
    right = (logits[0] < 0).sum(1) + (logits[1] >= 0).sum(1)
    accuracy = right.double() / mask.sum()
    auc = np.where(slope == 0, 0.5, _auc(sides[0].numpy(), sides[1].numpy()))
    auc = np.where(slope < 0, 1 - auc, auc)
    return np.stack(
        [accuracy.numpy(), auc, slope.numpy(), intercept.numpy(), converged.numpy().astype(float)]
    )


def _single(
    negative: Float[Tensor, "neuron negative"],
    positive: Float[Tensor, "neuron positive"],
    l2: float,
    tolerance: float = 1e-12,
) -> tuple[Tensor, Tensor, Tensor]:
    """Slope, intercept and whether they converged, of each neuron's balanced logistic probe.

    Undamped Newton steps in two unknowns, the first of them in closed form, each followed by one that keeps the curvature
    and shows what is left. What they do not bring down to the tolerance is solved again, damped.
    """
    means = [side.mean(1) for side in (negative, positive)]
    centre = (means[0] + means[1]) / 2
    spread = sum(vecdot(side, side) / side.shape[1] for side in (negative, positive)) / 2 - centre**2
    slope = (means[1] - means[0]) / (spread + 4 * l2)
    found = torch.stack([-slope * centre, slope])
    converged = torch.zeros(slope.shape, dtype=torch.bool)
    left, sides, at = torch.arange(len(slope)), (negative, positive), found
    for _ in range(FAST):
        at, _, curvature = _step(sides, at, l2, None)
        at, decrement, _ = _step(sides, at, l2, curvature)
        done = (decrement.abs() <= tolerance) & torch.isfinite(at).all(0)
        found[:, left[done]], converged[left[done]] = at[:, done], True
        if bool(done.all()):
            break
        left, sides, at = left[~done], (sides[0][~done], sides[1][~done]), at[:, ~done]
    hard = (~converged).nonzero()[:, 0]
    if len(hard):
        x = design(torch.cat([negative[hard], positive[hard]], 1)[:, None])
        target = x.new_ones(x.shape[0], 1, x.shape[2])
        target[:, :, : negative.shape[1]] = 0
        solved = solve(x, target, balanced(torch.cat([1 - target, target], 1)), l2=l2, tolerance=tolerance)
        found[:, hard], converged[hard] = solved.coefficients[:, 0].T, solved.converged
    return found[1], found[0], converged


def _step(
    sides: tuple[Tensor, Tensor], at: Tensor, l2: float, curvature: list[Tensor] | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """One Newton step of [intercept, slope]: where it leads, the decrement where it began, and the curvature used."""
    slopes, bends = [], []
    for sign, x in zip((1.0, -1.0), sides, strict=True):
        weight = 0.5 / x.shape[1]
        p = torch.addcmul(at[0, :, None] * sign, x, at[1, :, None] * sign).sigmoid_()
        slopes.append([total * (sign * weight) for total in (p.sum(1), vecdot(p, x))])
        if curvature is None:
            bend = torch.addcmul(p, p, p, value=-1)
            tilt = bend * x
            bends.append([total * weight for total in (bend.sum(1), tilt.sum(1), vecdot(tilt, x))])
    g0, g1 = slopes[0][0] + slopes[1][0], slopes[0][1] + slopes[1][1] + l2 * at[1]
    h00, h01, h11 = curvature or [a + b for a, b in zip(*bends, strict=True)]
    bent = h11 + l2
    inverse = 1 / (h00 * bent - h01**2)
    step = torch.stack([(bent * g0 - h01 * g1) * inverse, (h00 * g1 - h01 * g0) * inverse])
    return at - step, (g0 * step[0] + g1 * step[1]) / 2, [h00, h01, h11]


def _auc(
    negative: Float[np.ndarray, "neuron negative"], positive: Float[np.ndarray, "neuron positive"]
) -> np.ndarray:
    """The share of (positive, negative) pairs of rows that each neuron's activation orders right; ties count half.

    The label rides in the last bit of the number as an integer of the same order, so that one plain sort ranks both; where
    rows tie, the mean of both ways to order them is taken.
    """
    whole = np.concatenate([negative, positive], 1) + 0.0  # makes -0 into 0
    integer = whole.view(np.int64)
    integer = (integer ^ ((integer >> 63) & np.int64(2**63 - 1))) & ~np.int64(1)
    is_positive = np.arange(whole.shape[1]) >= negative.shape[1]
    last = np.sort(integer | is_positive, 1)
    tied = ((last[:, 1:] ^ last[:, :-1]) == 1).any()
    ranks = np.arange(1, whole.shape[1] + 1, dtype=float)
    sums = (last & 1).astype(float) @ ranks
    if tied:
        first = np.sort(integer | ~is_positive, 1)
        sums = (sums + (1 - (first & 1)).astype(float) @ ranks) / 2
    n = positive.shape[1]
    return (sums - n * (n + 1) / 2) / (n * negative.shape[1])
