"""A probe of one feature for every neuron of every layer: how well it tells each concept (`neuron_maps`).

The problems have two unknowns and there are many of them, so they have a Newton method of their own
(`_single`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vecdot

from workbench.arguments import checked
from workbench.errors import ProbeError, StoreError
from workbench.models.calls import model_call
from workbench.names import KindName
from workbench.probes.concepts import Concept
from workbench.probes.controls import splits
from workbench.probes.data import Activations, balanced
from workbench.probes.fits import check_penalty
from workbench.probes.labels import Labels
from workbench.probes.solver import design, solve
from workbench.results import effect_array, versions
from workbench.statistics import check_seed
from workbench.stores.store import ActivationStore

# Bytes of float64 activations that are worked on at a time (measured from 2**19 to 2**23; smaller ones cost
# more calls).
CHUNK = 2**23
# Pairs of undamped Newton steps before a neuron is handed to the damped solver.
FAST = 8
"""Pairs of undamped Newton steps before a neuron goes to the damped solver."""
MAPS = ("accuracy", "roc_auc", "coefficient", "intercept", "converged")


@checked
@model_call()
def neuron_maps(
    store: ActivationStore,
    labels: Labels,
    *,
    kind: KindName = "mlp_post",
    layers: Sequence[int] | None = None,
    l2: float = 1e-2,
    test_share: float = 0.3,
    held_out: np.ndarray | None = None,
    seed: int = 0,
    budget: int = 2**30,
) -> xr.Dataset:
    """How well each neuron alone tells each concept: a logistic probe with classes of equal weight.

    Args:
        labels: binary concepts, or several classes, of which each becomes a concept `NAME=CLASS`.
        kind: `mlp_post`, or any other with token rows, flattened.
        layers: by default all that the store has.
        l2: penalty on the coefficient of the raw activation; scikit-learn's C is 1 / (l2 n).
        held_out: the held-out rows, [row] or [concept, row]; otherwise `test_share` of them, in whole
            prompts.

    Returns:
        Dataset (layer, neuron, concept) of held-out `accuracy` and `roc_auc`, `coefficient`, `intercept` and
        `converged`.

    Raises:
        ProbeError: a concept of numbers, labels of other prompts, too few groups.
        StoreError: the store lacks that kind.
    """
    check_seed(seed)
    check_penalty(l2)
    if labels.prompts is not store.prompts and labels.prompts.fingerprint != store.prompts.fingerprint:
        raise ProbeError("The labels are of other prompts than the store's: make them with this store.")
    numbers = [concept.name for concept in labels.concepts if not concept.classes]
    if numbers:
        raise ProbeError(
            f"Concept {numbers[0]!r} is a number: neuron maps tell classes apart. Use fit_probes, "
            "or turn the number into classes."
        )
    mapped_layers = list(store.layers(kind) if layers is None else layers)
    if not mapped_layers:
        raise StoreError(
            f"neuron_maps needs {kind}; the store holds {', '.join(store.kinds)}. Capture it with "
            f"sites=[..., {kind!r}]."
        )
    masks = splits(labels, test_share=test_share, folds=None, held_out=held_out, seed=seed)[0]
    questions: list[_Question] = []
    for concept, mask in zip(labels.concepts, masks, strict=True):
        questions += _questions(concept, mask)
    tables: list[np.ndarray] = []
    for layer in mapped_layers:
        activations = Activations(store[kind, layer], labels.prompt, labels.pos, budget)
        table = np.full((len(MAPS), activations.n_features, len(questions)), np.nan)
        for start, x in _neurons(activations):
            for c, question in enumerate(questions):
                table[:, start : start + len(x), c] = _map(x, question, float(l2))
        tables.append(table)
    coords = {
        "layer": mapped_layers,
        "neuron": np.arange(tables[0].shape[1]),
        "concept": [question.name for question in questions],
    }
    attrs = {
        "kind": kind, "model": store.model_name, "model_fingerprint": store.model, "l2": l2, "seed": seed,
        "data_fingerprint": store.prompts.fingerprint,
    }  # fmt: skip
    maps: dict[str, xr.DataArray] = {}
    for name, values in zip(MAPS, np.stack(tables, 1), strict=True):
        maps[name] = effect_array(values, list(coords), coords, name=name)
    return xr.Dataset(maps, attrs=attrs | versions())


@dataclass(frozen=True, eq=False)
class _Question:
    """A concept of two classes: [row] whether it is true, and which rows are held out."""

    name: str
    truth: Bool[np.ndarray, "row"]
    held_out: Bool[np.ndarray, "row"]


def _questions(concept: Concept, held_out: np.ndarray) -> list[_Question]:
    """A concept of two classes as it is; of several classes each against the rest."""
    if len(concept.classes) == 2:
        return [_Question(concept.name, concept.codes == 1, held_out)]
    return [
        _Question(f"{concept.name}={name}", concept.codes == code, held_out)
        for code, name in enumerate(concept.classes)
    ]


def _neurons(activations: Activations) -> Iterator[tuple[int, Float[Tensor, "neuron row"]]]:
    """(first neuron, activations) in portions: small ones of activations that are held, large ones of a
    file's."""
    rows, n = len(activations.prompt), activations.n_features
    small = max(1, CHUNK // (rows * 8))
    at_once = n if activations.fits else max(small, activations.budget // 4 // (rows * 8))
    for start in range(0, n, at_once):
        chosen = torch.arange(start, min(start + at_once, n))
        columns = activations.held if activations.fits else activations.features(chosen).T
        for first in range(0, columns.shape[1], small):
            block = columns[:, first : first + small]
            # Each neuron's rows lie together in memory, in one copy that also makes them float64.
            yield start + first, torch.empty(block.shape[::-1], dtype=torch.float64).copy_(block.T)


def _map(x: Float[Tensor, "neuron row"], question: _Question, l2: float) -> Float[np.ndarray, "map neuron"]:
    """`MAPS` of some neurons."""
    train, test = _sides(x, question, ~question.held_out), _sides(x, question, question.held_out)
    probes = _single(train[0], train[1], l2)
    slope, intercept = probes.coefficient, probes.intercept
    logits = [torch.addcmul(intercept[:, None], side, slope[:, None]) for side in test]
    n_right = (logits[0] < 0).sum(1) + (logits[1] >= 0).sum(1)
    accuracy = n_right.double() / question.held_out.sum()
    # The activation ranks rows as the logit does, or in reverse; a slope of 0 ranks nothing.
    auc = np.where(slope == 0, 0.5, _auc(test[0].numpy(), test[1].numpy()))
    auc = np.where(slope < 0, 1 - auc, auc)
    return np.stack(
        [accuracy.numpy(), auc, slope.numpy(), intercept.numpy(), probes.converged.numpy().astype(float)]
    )


def _sides(x: Tensor, question: _Question, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Some of the rows, apart where the concept is false and where it is true."""
    negative, positive = (
        torch.from_numpy(np.flatnonzero(rows & side)) for side in (~question.truth, question.truth)
    )
    return x.index_select(1, negative), x.index_select(1, positive)


@dataclass(frozen=True, eq=False)
class _SingleProbes:
    """[neuron]: a logistic probe on each neuron alone."""

    coefficient: Tensor
    intercept: Tensor
    converged: Tensor


def _single(
    negative: Float[Tensor, "neuron negative"],
    positive: Float[Tensor, "neuron positive"],
    l2: float,
    tolerance: float = 1e-12,
) -> _SingleProbes:
    """Each neuron's balanced logistic probe.

    Undamped Newton steps in two unknowns, the first of them in closed form, each followed by one that keeps
    the curvature and shows what is left. What they do not bring down to the tolerance is solved again,
    damped.
    """
    # At zero coefficients the logistic loss is a parabola of curvature 1/4: one step has a closed form.
    means = [side.mean(1) for side in (negative, positive)]
    centre = (means[0] + means[1]) / 2
    spread = sum(vecdot(side, side) / side.shape[1] for side in (negative, positive)) / 2 - centre**2
    slope = (means[1] - means[0]) / (spread + 4 * l2)
    coefficients = torch.stack([-slope * centre, slope])
    converged = torch.zeros(slope.shape, dtype=torch.bool)
    left, sides, at = torch.arange(len(slope)), (negative, positive), coefficients
    for _ in range(FAST):
        first = _step(sides, at, l2, None)
        second = _step(sides, first.coefficients, l2, first.curvature)
        at = second.coefficients
        done = (second.decrement.abs() <= tolerance) & torch.isfinite(at).all(0)
        coefficients[:, left[done]], converged[left[done]] = at[:, done], True
        if bool(done.all()):
            break
        left, sides, at = left[~done], (sides[0][~done], sides[1][~done]), at[:, ~done]
    hard = (~converged).nonzero()[:, 0]
    if len(hard):
        x = design(torch.cat([negative[hard], positive[hard]], 1)[:, None])
        target = x.new_ones(x.shape[0], 1, x.shape[2])
        target[:, :, : negative.shape[1]] = 0
        solved = solve(x, target, balanced(torch.cat([1 - target, target], 1)), l2=l2, tolerance=tolerance)
        coefficients[:, hard], converged[hard] = solved.coefficients[:, 0].T, solved.converged
    return _SingleProbes(coefficients[1], coefficients[0], converged)


@dataclass(frozen=True, eq=False)
class _Step:
    """One Newton step: the new [intercept, slope], the decrement at the old ones, and the curvature that was
    used."""

    coefficients: Float[Tensor, "two neuron"]
    decrement: Float[Tensor, "neuron"]
    curvature: Float[Tensor, "three neuron"]


def _step(sides: tuple[Tensor, Tensor], at: Tensor, l2: float, curvature: Tensor | None) -> _Step:
    """One Newton step.

    Args:
        sides: activations where the concept is false, and where it is true.
        at: [intercept or slope, neuron].
        curvature: [second derivatives by 00, 01, 11, neuron] without the penalty; None computes them.
    """
    gradient, second = at.new_zeros(2, at.shape[1]), at.new_zeros(3, at.shape[1])
    for sign, x in zip((1.0, -1.0), sides, strict=True):
        # Each class counts half, whatever its size. `p` is the probability of the wrong class on either side.
        weight = 0.5 / x.shape[1]
        p = torch.addcmul(at[0, :, None] * sign, x, at[1, :, None] * sign).sigmoid_()
        gradient += torch.stack([p.sum(1), vecdot(p, x)]) * (sign * weight)
        if curvature is None:
            # p (1 - p) as p - p², without another table of that size.
            variance = torch.addcmul(p, p, p, value=-1)
            weighted = variance * x
            second += torch.stack([variance.sum(1), weighted.sum(1), vecdot(weighted, x)]) * weight
    if curvature is None:
        curvature = second
    g0, g1 = gradient[0], gradient[1] + l2 * at[1]
    h00, h01, h11 = curvature[0], curvature[1], curvature[2] + l2
    inverse = 1 / (h00 * h11 - h01**2)
    step = torch.stack([(h11 * g0 - h01 * g1) * inverse, (h00 * g1 - h01 * g0) * inverse])
    return _Step(at - step, (g0 * step[0] + g1 * step[1]) / 2, curvature)


def _auc(
    negative: Float[np.ndarray, "neuron negative"], positive: Float[np.ndarray, "neuron positive"]
) -> np.ndarray:
    """The share of (positive, negative) row pairs that a neuron's activation orders rightly; ties are half.

    The label is the last bit of the number as an integer of the same order, so that one plain sort ranks
    both. Where rows tie, the sort puts one class first; the mean of both orders is taken.
    """
    # Adding 0 makes -0 into 0, whose bits differ.
    values = np.concatenate([negative, positive], 1) + 0.0
    # The bits of a positive float64 are ordered as integers; those of a negative one are, once all but the
    # sign are flipped.
    integer = values.view(np.int64)
    integer = (integer ^ ((integer >> 63) & np.int64(2**63 - 1))) & ~np.int64(1)
    is_positive = np.arange(values.shape[1]) >= negative.shape[1]
    last = np.sort(integer | is_positive, 1)
    tied = ((last[:, 1:] ^ last[:, :-1]) == 1).any()
    ranks = np.arange(1, values.shape[1] + 1, dtype=float)
    sums = (last & 1).astype(float) @ ranks
    if tied:
        first = np.sort(integer | ~is_positive, 1)
        sums = (sums + (1 - (first & 1)).astype(float) @ ranks) / 2
    n = positive.shape[1]
    return (sums - n * (n + 1) / 2) / (n * negative.shape[1])
