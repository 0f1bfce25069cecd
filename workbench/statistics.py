"""How sure a number is: standard errors, bootstrap intervals and p-values over an axis of any result.

Read `summary`, `mean_interval` and `share_interval`, then `sign_flip_p`. It knows arrays only, not what was measured.
"""

import warnings
from collections.abc import Callable
from itertools import product
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.spatial.distance import pdist, squareform
from scipy.stats import binomtest, false_discovery_control

from workbench.arguments import checked
from workbench.errors import UnknownName, WorkbenchError

# Up to so many rows every pattern of signs is tried. Exact p-values are worth the 2 ms that all 4096 patterns
# take, though a thousand random ones would take 0.1 ms.
EXACT = 12
NO_DIFFERENCE, ROUNDING = 1e-6, 1e-5
"""A full and an empty run that differ by less, in the metric's unit, have no ratio: it would divide by
rounding. The same holds of less than that share of the metric's size. See `known_gap`.
"""


@checked
def summary(
    result: xr.DataArray,
    *,
    over: str = "example",
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    p: bool = False,
) -> xr.Dataset:
    """Mean, standard error, percentile bootstrap interval and count over one axis; NaN cells are left out.

    Args:
        level: coverage of the interval.
        draws: bootstrap resamples, and patterns of signs.
        p: also the sign-flip p-value of the mean, uncorrected for how many cells there are.
    Returns:
        Dataset with `mean`, `se`, `low`, `high`, `n` (and `p`) over the remaining axes.

    >>> float(summary(xr.DataArray([1.0, 3.0], dims="example"))["mean"])
    2.0
    """
    if over not in result.dims:
        raise UnknownName("over", over, map(str, result.dims))
    if draws < 1:
        raise WorkbenchError(f"summary: draws={draws}; at least one is needed.")
    axis = result.get_axis_num(over)
    values = np.moveaxis(result.values.astype(float), axis, 0)
    rest = [dim for dim in result.dims if dim != over]
    known = np.isfinite(values)
    n = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _nanmean(values)
        squares = np.where(known, (values - mean) ** 2, 0).sum(0)
        se = np.sqrt(squares / np.where(n > 1, n - 1, np.nan) / n)
    low, high = (
        np.where(n > 1, end, np.nan) for end in mean_interval(values, level=level, draws=draws, seed=seed)
    )
    fields = {"mean": mean, "se": se, "low": low, "high": high, "n": n}
    fields |= {"p": sign_flip_p(values, draws=draws, seed=seed)} if p else {}
    coords = {name: coord for name, coord in result.coords.items() if over not in coord.dims}
    return xr.Dataset(
        {k: (rest, v) for k, v in fields.items()}, coords=coords, attrs=result.attrs | {"level": level}
    )


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of `statistic(values[resampled rows])`; rows (axis 0) are resampled together.

    NaN for one row.
    """
    check_level(level)
    rng = np.random.default_rng(check_seed(seed))
    if len(values) < 2:
        unknown = np.full_like(np.asarray(statistic(values), dtype=float), np.nan)
        return unknown, unknown.copy()
    samples = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(draws)]
    return central(np.asarray(samples), level)


def mean_interval(
    values: Float[np.ndarray, "example *rest"], *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The interval that `bootstrap` gives for the mean over known cells, as one product of matrices."""
    check_level(level)
    n, rest = len(values), values.shape[1:]
    if n < 2:
        return np.full(rest, np.nan), np.full(rest, np.nan)
    # How often each row is drawn: a resampled mean is then one row of a product of matrices.
    drawn = np.random.default_rng(check_seed(seed)).integers(0, n, (draws, n))
    times = np.zeros((draws, n))
    np.add.at(times, (np.arange(draws)[:, None], drawn), 1)
    flat = values.reshape(n, -1)
    known = np.isfinite(flat)
    total = times @ np.where(known, flat, 0)
    counts = times.sum(1, keepdims=True) if known.all() else times @ known.astype(float)
    low, high = central(total / np.where(counts > 0, counts, np.nan), level)
    return low.reshape(rest), high.reshape(rest)


def share_interval(n_hits: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share. Where all are hits, a bootstrap interval has no width, and this one has.

    Source: Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion".

    >>> [round(end, 3) for end in share_interval(4, 4)]
    [0.51, 1.0]
    """
    interval = binomtest(n_hits, n).proportion_ci(check_level(level), method="wilson")
    return float(interval.low), float(interval.high)


def central(samples: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the central part of samples (axis 0) that `level` asks for; NaN samples are left out."""
    tail = (1 - level) / 2 * 100
    # nanpercentile takes many times as long, and the result is the same.
    if not np.isnan(samples).any():
        low, high = np.percentile(samples, [tail, 100 - tail], axis=0)
        return np.asarray(low), np.asarray(high)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        low, high = np.nanpercentile(samples, [tail, 100 - tail], axis=0)
    return np.asarray(low), np.asarray(high)


def sign_flip_p(
    values: Float[np.ndarray, "example *rest"], *, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """[*rest]: two-sided permutation p-value of the mean over examples; NaN cells are left out.

    Null: every value is as likely to have the other sign. p is the share of patterns of signs whose |mean| is
    at least the observed one: of all 2^n patterns up to 12 examples, otherwise (hits + 1) / (draws + 1) of
    random ones.

    >>> float(sign_flip_p(np.array([1.0, 2.0, 3.0])))
    0.25
    """
    known = np.isfinite(values)
    flat = np.where(known, values, 0).reshape(len(values), -1)
    exact = len(values) <= EXACT
    if exact:
        signs = np.array(list(product((1.0, -1.0), repeat=len(values))))
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), (draws, len(values)))
    # Sums in another order round otherwise: a pattern that equals the observed one must count as a hit.
    observed = np.abs(flat.sum(0)) * (1 - 100 * np.finfo(flat.dtype).eps)
    hits = (np.abs(signs @ flat) >= observed).sum(0)
    # Among random patterns the observed one counts too, so that p is never 0.
    p = hits / len(signs) if exact else (hits + 1) / (draws + 1)
    return np.where(known.any(0), p.reshape(values.shape[1:]), np.nan)


def bonferroni(p: Float[np.ndarray, "*tests"]) -> np.ndarray:
    """p-values times their number, at most 1; NaN cells do not count.

    Where those below alpha are rejected, the chance of even one false rejection is at most alpha.

    >>> bonferroni(np.array([0.01, 0.2, 0.5])).tolist()
    [0.03, 0.6000000000000001, 1.0]
    """
    return np.minimum(np.asarray(p) * np.isfinite(p).sum(), 1)


def benjamini_hochberg(p: Float[np.ndarray, "*tests"]) -> np.ndarray:
    """Adjusted p-values; NaN cells do not count.

    Where those below alpha are rejected, the expected share of false rejections among them is at most alpha.
    p_(i) becomes the least n/j p_(j) with j >= i. Source: Benjamini and Hochberg 1995.
    """
    known = np.isfinite(p)
    adjusted = np.full(known.shape, np.nan)
    adjusted[known] = false_discovery_control(np.asarray(p)[known]) if known.any() else []
    return adjusted


def hsic(x: Float[np.ndarray, "example"], y: Float[np.ndarray, "example"]) -> float:
    """Hilbert-Schmidt independence criterion tr(KHLH) / (n - 1)^2: 0 where one of the two is constant.

    K, L: Gaussian kernels exp(-d^2 / 2 s^2), s the median distance between two examples; H centres.
    Source: Gretton et al. 2007, "A kernel statistical test of independence".
    """
    return float((_centred(_kernel(x)) * _kernel(y)).sum() / (len(x) - 1) ** 2)


def hsic_p(
    x: Float[np.ndarray, "example"], y: Float[np.ndarray, "example"], *, draws: int = 1000, seed: int = 0
) -> float:
    """p-value of independence: the share of permutations of y with an HSIC at least the observed one.

    (hits + 1) / (draws + 1), so that it is never 0.
    """
    first, second = _centred(_kernel(x)), _kernel(y)
    rng = np.random.default_rng(seed)
    observed = (first * second).sum()
    orders = (rng.permutation(len(y)) for _ in range(draws))
    hits = sum((first * second[np.ix_(order, order)]).sum() >= observed - 1e-9 for order in orders)
    return float((hits + 1) / (draws + 1))


def _kernel(x: np.ndarray) -> np.ndarray:
    """[example, example]: the Gaussian kernel; where most distances are 0, the median is of the others."""
    distances = pdist(np.asarray(x, dtype=float)[:, None])
    width = np.median(distances) or np.median(distances[distances > 0] if distances.any() else [1.0])
    return np.exp(-((squareform(distances) / width) ** 2) / 2)


def _centred(kernel: np.ndarray) -> np.ndarray:
    return kernel - kernel.mean(0) - kernel.mean(1, keepdims=True) + kernel.mean()


def interval_text(low: float, high: float, form: str = ".3f") -> str:
    """`[low, high]`, or that there is no interval."""
    return f"[{low:{form}}, {high:{form}}]" if np.isfinite(low) and np.isfinite(high) else "[no interval]"


def check_level(level: float) -> float:
    """The coverage of an interval, if it is one. Raises `WorkbenchError` otherwise."""
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise WorkbenchError(
            f"level={level!r}: the coverage of an interval lies between 0 and 1, as in 0.95."
        )
    return level


def check_seed(seed: int) -> int:
    """The seed, if it is one. Raises `WorkbenchError` otherwise."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise WorkbenchError(f"seed={seed!r}: a whole number from 0 up is needed.")
    return seed


def _nanmean(sample: np.ndarray) -> np.ndarray:
    known = np.isfinite(sample)
    n = known.sum(0)
    return np.asarray(np.where(known, sample, 0).sum(0) / np.where(n, n, np.nan))


def ratio_of_means(measured: np.ndarray, full: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """(mean m - mean empty) / (mean full - mean empty) over axis 0.

    NaN where the denominator is nothing but rounding (`known_gap`).
    """
    # Without a gap between the full and the empty circuit there is nothing to be faithful to.
    return (measured.mean(0) - empty.mean(0)) / gap_of_means(full, empty)


def gap_of_means(full: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """mean full - mean empty over axis 0, NaN where that is nothing but rounding (`known_gap`)."""
    size = np.maximum(np.abs(full).mean(0), np.abs(empty).mean(0))
    return known_gap(full.mean(0) - empty.mean(0), size)


def known_gap(gap: Any, size: Any) -> np.ndarray:
    """Gaps between a metric of two runs, NaN where they are nothing but rounding.

    Args:
        size: of the metric, at either run.
    """
    return np.where(np.abs(gap) < np.maximum(NO_DIFFERENCE, ROUNDING * np.abs(size)), np.nan, gap)
