"""Probes on chosen features: gather the columns' rows and features, scale, solve all at once, predict."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import ProbeError, UnknownName
from workbench.probes.data import Activations, Columns, balanced
from workbench.probes.solver import design, solve

MULTICLASS = ("softmax", "one-vs-rest")


@dataclass(frozen=True)
class ProbeSettings:
    """How every probe is fitted; the defaults are those of `fit_probes`.

    Attributes:
        l2: penalty; scikit-learn's C is 1 / (l2 n).
        balanced: classes weigh the same.
        standardize: features are shifted and divided by their standard deviation in the training rows (at least
            `std_floor`), so that the penalty treats all alike. Coefficients are given for the activations as they are.
        multiclass: "softmax" or "one-vs-rest", which fits a logistic probe per class on the same features.
    """

    l2: float = 1e-2
    balanced: bool = True
    standardize: bool = True
    std_floor: float = 1e-3
    multiclass: str = "softmax"
    max_iter: int = 50
    tolerance: float = 1e-12

    def __post_init__(self) -> None:
        if not 0 < self.l2 < float("inf"):
            raise ProbeError(f"l2={self.l2!r}: a positive penalty is needed, as in 0.01.")
        if self.multiclass not in MULTICLASS:
            raise UnknownName("multiclass", self.multiclass, MULTICLASS)
        if self.max_iter < 1:
            raise ProbeError(f"max_iter={self.max_iter!r}: at least one step is needed.")


@dataclass(frozen=True, eq=False)
class Fits:
    """A probe per column.

    Attributes:
        features: [column, k] indices.
        coefficients, intercept: for the activations as they are.
        strength: [column, k] largest coefficient of each feature in units of its standard deviation.
        converged, decrement, iterations: of the solver; the worst class for one-vs-rest.
        logits: of every row that was asked for, see `test_rows`; [column, output, test_row].
        training_logits: likewise of the training rows.
    """

    features: Int[Tensor, "column k"]
    coefficients: Float[Tensor, "column output k"]
    intercept: Float[Tensor, "column output"]
    strength: Float[Tensor, "column k"]
    converged: Bool[Tensor, "column"]
    decrement: Float[Tensor, "column"]
    iterations: Int[Tensor, "column"]
    logits: Float[Tensor, "column output test_row"]
    training_logits: Float[Tensor, "column output train_row"]


def padded_rows(
    mask: Bool[np.ndarray, "column row"],
) -> tuple[Int[Tensor, "column chosen"], Bool[Tensor, "column chosen"]]:
    """The indices of each column's rows, in order, and which of them are real: the shorter lists repeat row 0."""
    counts = mask.sum(1)
    real = np.arange(counts.max(initial=0)) < counts[:, None]
    rows = np.zeros(real.shape, dtype=np.int64)
    rows[real] = np.nonzero(mask)[1]
    return torch.from_numpy(rows), torch.from_numpy(real)


def fit(
    activations: Activations,
    columns: Columns,
    features: Int[Tensor, "column k"],
    settings: ProbeSettings,
    *,
    previous: Fits | None = None,
) -> Fits:
    """Probes of every column on its own features; `previous` ones on some of these features are where the solver starts."""
    parts = [
        _fit(activations, columns.select(chosen), features[chosen], settings, previous, chosen)
        for chosen in _portions(activations, columns, features.shape[1])
    ]
    return (
        parts[0]
        if len(parts) == 1
        else Fits(*(_joined(field) for field in zip(*map(_fields, parts), strict=True)))
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Portions one after the other; rows are padded to the longest, as columns of all portions together would be."""
    longest = max(part.shape[-1] for part in parts)
    padded = [
        part if part.ndim < 3 else torch.nn.functional.pad(part, (0, longest - part.shape[-1]))
        for part in parts
    ]
    return torch.cat(padded)


def _fields(fits: Fits) -> tuple[Tensor, ...]:
    return tuple(getattr(fits, name) for name in Fits.__dataclass_fields__)


def _portions(activations: Activations, columns: Columns, k: int) -> Iterator[slice]:
    """Columns whose gathered rows fit what the budget leaves."""
    rows = int(columns.train.sum(1).max() + columns.test.sum(1).max())
    one = (k + 1) * 8 * (2 * rows + activations.prompt.size) + rows * 8 * 6 * max(1, columns.n_classes)
    room = activations.budget // 3
    if one > max(room, 2**20):
        raise ProbeError(
            f"A probe of {k} features and {rows} rows takes {one / 2**20:.0f} MiB, more than budget={activations.budget} "
            "leaves. Give a larger budget, a smaller k or fewer rows."
        )
    at_once = max(1, room // one)
    for start in range(0, len(columns), at_once):
        yield slice(start, start + at_once)


def _fit(
    activations: Activations,
    columns: Columns,
    features: Tensor,
    settings: ProbeSettings,
    previous: Fits | None,
    portion: slice,
) -> Fits:
    (train, real), (test, _) = padded_rows(columns.train), padded_rows(columns.test)
    wanted, place = torch.unique(features, return_inverse=True)
    values = activations.features(wanted)
    x, new = (values[place[:, :, None], rows[:, None, :]] for rows in (train, test))
    shift, scale = x.new_zeros(features.shape), x.new_ones(features.shape)
    if settings.standardize:
        counted = (real / real.sum(1, keepdim=True)).double()[:, None]
        shift = (x * counted).sum(2)
        deviation = ((x - shift[:, :, None]) ** 2 * counted).sum(2).sqrt()
        scale = torch.where(deviation > 0, deviation.clamp(min=settings.std_floor), 1.0)
        x, new = ((given - shift[:, :, None]) / scale[:, :, None] for given in (x, new))
    weight = columns.weight(settings.balanced).gather(1, train) * real
    target = columns.target.gather(2, train[:, None].expand(-1, columns.target.shape[1], -1))
    start = None if previous is None else _carried(previous, portion, features, shift, scale)
    found, converged, decrement, iterations = _solved(columns, design(x), target, weight, start, settings)
    slopes, intercept = found[:, :, 1:], found[:, :, :1]
    deviation = x.var(2, correction=0).sqrt() if not settings.standardize else x.new_ones(features.shape)
    raw = slopes / scale[:, None]
    return Fits(
        features,
        raw,
        (intercept - (raw * shift[:, None]).sum(2, keepdim=True))[:, :, 0],
        slopes.abs().amax(1) * deviation,
        converged,
        decrement,
        iterations,
        slopes @ new + intercept,
        slopes @ x + intercept,
    )


def _solved(
    columns: Columns, x: Tensor, target: Tensor, weight: Tensor, start: Tensor | None, settings: ProbeSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Coefficients, converged, decrement, iterations; a column with one class only has not converged."""
    how: dict = {"l2": settings.l2, "max_iter": settings.max_iter, "tolerance": settings.tolerance}
    if columns.loss != "softmax" or settings.multiclass == "softmax":
        parts = [solve(x, target, weight, loss=columns.loss, start=start, **how)]
    else:
        parts = []
        for c in range(columns.n_classes):
            one = target[:, c : c + 1]
            sides = torch.cat([1 - one, one], 1) * (weight > 0)[:, None]
            fair = balanced(sides) if settings.balanced else weight
            parts.append(solve(x, one, fair, start=None if start is None else start[:, c : c + 1], **how))
    converged = torch.stack([part.converged for part in parts]).all(0) & torch.from_numpy(columns.varied)
    decrement, iterations = (
        torch.stack([getattr(part, n) for part in parts]).amax(0) for n in ("decrement", "iterations")
    )
    return torch.cat([part.coefficients for part in parts], 1), converged, decrement, iterations


def _carried(previous: Fits, portion: slice, features: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """[column, output, 1 + k]: the earlier probe where its features are chosen again, in these units."""
    same = (features[:, :, None] == previous.features[portion][:, None, :]).double()
    slopes = previous.coefficients[portion] @ same.mT
    intercept = previous.intercept[portion][:, :, None] + (slopes * shift[:, None]).sum(2, keepdim=True)
    return torch.cat([intercept, slopes * scale[:, None]], 2)
