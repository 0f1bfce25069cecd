"""Probes on chosen features: gather the columns' rows and features, scale, solve together, predict (`fit`).

How every probe is fitted is said by `ProbeSettings`. Which features a probe gets is not decided here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.arguments import checked
from workbench.errors import ProbeError, UnknownName
from workbench.probes.data import Activations, Columns, balanced
from workbench.probes.solver import Solution, design, solve

MULTICLASS = ("softmax", "one-vs-rest")


@checked
@dataclass(frozen=True)
class ProbeSettings:
    """How every probe is fitted; the defaults are those of `fit_probes`.

    Attributes:
        l2: penalty; scikit-learn's C is 1 / (l2 n).
        balanced: classes weigh the same.
        standardize: features are shifted and divided by their standard deviation in the training rows (at
            least `std_floor`), so that the penalty treats all alike. Coefficients are given for the
            activations as they are.
        multiclass: "softmax" or "one-vs-rest", which fits a logistic probe per class on the same features.
        max_iter, tolerance: of the solver: Newton steps, and the decrement in nats that counts as converged.

    Raises:
        ProbeError: a penalty that is not positive, or no step.
        UnknownName: no such `multiclass`.
    """

    l2: float = 1e-2
    balanced: bool = True
    standardize: bool = True
    std_floor: float = 1e-3
    multiclass: Literal["softmax", "one-vs-rest"] | str = "softmax"
    max_iter: int = 50
    tolerance: float = 1e-12

    def __post_init__(self) -> None:
        check_penalty(self.l2)
        if self.multiclass not in MULTICLASS:
            raise UnknownName("multiclass", self.multiclass, MULTICLASS)
        if self.max_iter < 1:
            raise ProbeError(f"max_iter={self.max_iter!r}: at least one step is needed.")


def check_penalty(l2: float) -> None:
    """Raise `ProbeError` for a penalty that is not positive: separable classes have no solution then."""
    if not 0 < l2 < float("inf"):
        raise ProbeError(f"l2={l2!r}: a positive penalty is needed, as in 0.01.")


# How probes are fitted unless the caller says otherwise. It is frozen, so that it can be shared.
DEFAULT_SETTINGS = ProbeSettings()


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


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """The rows of each column as indices, padded to the same number for every column.

    Attributes:
        index: [column, chosen] in order; shorter lists repeat row 0.
        real: [column, chosen] whether an index is a row of the column and not padding.
    """

    index: Int[Tensor, "column chosen"]
    real: Bool[Tensor, "column chosen"]


def padded_rows(mask: Bool[np.ndarray, "column row"]) -> PaddedRows:
    """The indices of each column's rows."""
    counts = mask.sum(1)
    real = np.arange(counts.max(initial=0)) < counts[:, None]
    rows = np.zeros(real.shape, dtype=np.int64)
    rows[real] = np.nonzero(mask)[1]
    return PaddedRows(torch.from_numpy(rows), torch.from_numpy(real))


def fit(
    activations: Activations,
    columns: Columns,
    features: Int[Tensor, "column k"],
    settings: ProbeSettings,
    *,
    previous: Fits | None = None,
) -> Fits:
    """Probes of every column on its own features.

    Args:
        previous: probes on some of these features; the solver starts from them.

    Raises:
        ProbeError: one probe does not fit the budget of the activations.
    """
    portions: list[Fits] = []
    for chosen in _portions(activations, columns, features.shape[1]):
        portions.append(
            _fit(activations, columns.select(chosen), features[chosen], settings, previous, chosen)
        )
    if len(portions) == 1:
        return portions[0]
    names = [field.name for field in fields(Fits)]
    return Fits(**{name: _joined([getattr(portion, name) for portion in portions]) for name in names})


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Portions one after the other; rows are padded to the longest, as columns of all portions together would
    be."""
    longest = max(tensor.shape[-1] for tensor in tensors)
    padded: list[Tensor] = []
    for tensor in tensors:
        # Only logits [column, output, row] have a row axis to pad.
        missing = longest - tensor.shape[-1] if tensor.ndim == 3 else 0
        padded.append(torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor)
    return torch.cat(padded)


def _portions(activations: Activations, columns: Columns, k: int) -> Iterator[slice]:
    """Columns whose gathered rows fit what the budget leaves."""
    rows = int(columns.train.sum(1).max() + columns.test.sum(1).max())
    # What a column takes in float64: features and intercept of its rows twice, of all rows
    # once, and six tables of logits.
    one = (k + 1) * 8 * (2 * rows + activations.prompt.size) + rows * 8 * 6 * max(1, columns.n_classes)
    room = activations.budget // 3
    if one > max(room, 2**20):
        raise ProbeError(
            f"A probe of {k} features and {rows} rows takes {one / 2**20:.0f} MiB, more than "
            f"budget={activations.budget} leaves. Give a larger budget, a smaller k or fewer rows."
        )
    at_once = max(1, room // one)
    for start in range(0, len(columns), at_once):
        yield slice(start, start + at_once)


@dataclass(frozen=True, eq=False)
class _Scaling:
    """[column, feature]: what is subtracted from each feature, and what it is then divided by."""

    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Float[Tensor, "column feature row"], real: Tensor, settings: ProbeSettings) -> "_Scaling":
        """Mean and standard deviation of the real rows; 0 and 1 where features stay as they are."""
        if not settings.standardize:
            return cls(x.new_zeros(x.shape[:2]), x.new_ones(x.shape[:2]))
        share = (real / real.sum(1, keepdim=True)).double()[:, None]
        shift = (x * share).sum(2)
        deviation = ((x - shift[:, :, None]) ** 2 * share).sum(2).sqrt()
        # A feature that never varies keeps its scale: it is 0 after the shift.
        return cls(shift, torch.where(deviation > 0, deviation.clamp(min=settings.std_floor), 1.0))

    def __call__(self, x: Float[Tensor, "column feature row"]) -> Float[Tensor, "column feature row"]:
        return (x - self.shift[:, :, None]) / self.scale[:, :, None]


def _fit(
    activations: Activations,
    columns: Columns,
    features: Tensor,
    settings: ProbeSettings,
    previous: Fits | None,
    portion: slice,
) -> Fits:
    train, test = padded_rows(columns.train), padded_rows(columns.test)
    # Columns share features: each is read once.
    unique, index = torch.unique(features, return_inverse=True)
    values = activations.features(unique)
    # Every column has features and rows of its own, so that all of them become [column, feature, row].
    x, new = (values[index[:, :, None], rows.index[:, None, :]] for rows in (train, test))
    scaling = _Scaling.of(x, train.real, settings)
    x, new = scaling(x), scaling(new)
    # Padding has no weight, so that it is not seen by the solver.
    weight = columns.weight(settings.balanced).gather(1, train.index) * train.real
    target = columns.target.gather(2, train.index[:, None].expand(-1, columns.target.shape[1], -1))
    start = None if previous is None else _carried(previous, portion, features, scaling)
    solution = _solved(columns, design(x), target, weight, start, settings)
    coefficients, intercept = solution.coefficients[:, :, 1:], solution.coefficients[:, :, :1]
    deviation = x.new_ones(features.shape) if settings.standardize else x.var(2, correction=0).sqrt()
    raw = coefficients / scaling.scale[:, None]
    return Fits(
        features=features,
        coefficients=raw,
        intercept=(intercept - (raw * scaling.shift[:, None]).sum(2, keepdim=True))[:, :, 0],
        strength=coefficients.abs().amax(1) * deviation,
        converged=solution.converged,
        decrement=solution.decrement,
        iterations=solution.iterations,
        logits=coefficients @ new + intercept,
        training_logits=coefficients @ x + intercept,
    )


def _solved(
    columns: Columns, x: Tensor, target: Tensor, weight: Tensor, start: Tensor | None, settings: ProbeSettings
) -> Solution:
    """The coefficients of every output; a column with one class only has not converged."""
    solutions: list[Solution] = []
    if columns.loss != "softmax" or settings.multiclass == "softmax":
        solutions.append(_one_solve(x, target, weight, columns.loss, start, settings))
    else:
        for c in range(columns.n_classes):
            output = slice(c, c + 1)
            is_class = target[:, output]
            sides = torch.cat([1 - is_class, is_class], 1) * (weight > 0)[:, None]
            class_weight = balanced(sides) if settings.balanced else weight
            begin = None if start is None else start[:, output]
            solutions.append(_one_solve(x, is_class, class_weight, "logistic", begin, settings))
    converged = torch.stack([solution.converged for solution in solutions]).all(0)
    return Solution(
        coefficients=torch.cat([solution.coefficients for solution in solutions], 1),
        converged=converged & torch.from_numpy(columns.varied),
        decrement=torch.stack([solution.decrement for solution in solutions]).amax(0),
        iterations=torch.stack([solution.iterations for solution in solutions]).amax(0),
    )


def _one_solve(
    x: Tensor, target: Tensor, weight: Tensor, loss: str, start: Tensor | None, settings: ProbeSettings
) -> Solution:
    return solve(
        x,
        target,
        weight,
        loss=loss,
        start=start,
        l2=settings.l2,
        max_iter=settings.max_iter,
        tolerance=settings.tolerance,
    )


def _carried(previous: Fits, portion: slice, features: Tensor, scaling: _Scaling) -> Tensor:
    """[column, output, 1 + k]: the earlier probe where its features are chosen again, in these units."""
    # A feature may have another slot than before, so slots are matched by feature: [column, k, earlier k].
    same = (features[:, :, None] == previous.features[portion][:, None, :]).double()
    coefficients = previous.coefficients[portion] @ same.mT
    shifted = (coefficients * scaling.shift[:, None]).sum(2, keepdim=True)
    intercept = previous.intercept[portion][:, :, None] + shifted
    return torch.cat([intercept, coefficients * scaling.scale[:, None]], 2)
