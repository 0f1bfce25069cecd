"""How sure a number is: standard errors and bootstrap intervals over an axis of any result."""

import warnings
from collections.abc import Callable

import numpy as np
import xarray as xr

from workbench.errors import WorkbenchError


def summary(result: xr.DataArray, *, over: str = "example", level: float = 0.95, draws: int = 1000, seed: int = 0) -> xr.Dataset:
    """Mean, standard error, percentile bootstrap interval and count over one axis; NaN cells are left out.

    Args:
        level: coverage of the interval.  draws: bootstrap resamples.
    Returns:
        Dataset with `mean`, `se`, `low`, `high`, `n` over the remaining axes.

    >>> float(summary(xr.DataArray([1.0, 3.0], dims="example"))["mean"])
    2.0
    """
    axis = result.get_axis_num(over)
    values = np.moveaxis(result.values.astype(float), axis, 0)
    rest = [dim for dim in result.dims if dim != over]
    known = np.isfinite(values)
    n = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _nanmean(values)
        squares = np.where(known, (values - mean) ** 2, 0).sum(0)
        se = np.sqrt(squares / np.where(n > 1, n - 1, np.nan) / n)
    low, high = bootstrap(values, _nanmean, level=level, draws=draws, seed=seed)
    fields = {"mean": mean, "se": se, "low": low, "high": high, "n": n}
    coords = {name: coord for name, coord in result.coords.items() if over not in coord.dims}
    return xr.Dataset({k: (rest, v) for k, v in fields.items()}, coords=coords, attrs=result.attrs | {"level": level})


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of `statistic(values[resampled rows])`; rows (axis 0) are resampled together."""
    check_level(level)
    rng = np.random.default_rng(check_seed(seed))
    samples = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(draws)]
    tail = (1 - level) / 2 * 100
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        low, high = np.nanpercentile(np.asarray(samples), [tail, 100 - tail], axis=0)
    return np.asarray(low), np.asarray(high)


def check_level(level: float) -> float:
    """The coverage of an interval, if it is one. Raises `WorkbenchError` otherwise."""
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise WorkbenchError(f"level={level!r}: the coverage of an interval lies between 0 and 1, as in 0.95.")
    return level


def check_seed(seed: int) -> int:
    """The seed, if it is one. Raises `WorkbenchError` otherwise."""
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise WorkbenchError(f"seed={seed!r}: a whole number from 0 up is needed.")
    return seed


def _nanmean(sample: np.ndarray) -> np.ndarray:
    known = np.isfinite(sample)
    n = known.sum(0)
    return np.asarray(np.where(known, sample, 0).sum(0) / np.where(n, n, np.nan))


def ratio_of_means(measured: np.ndarray, full: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """(mean m - mean empty) / (mean full - mean empty) over axis 0; NaN where the denominator is ~0."""
    gap = full.mean(0) - empty.mean(0)
    return (measured.mean(0) - empty.mean(0)) / np.where(np.abs(gap) < 1e-6, np.nan, gap)
