"""p-values: by hand, against TransformerLens and SciPy, and with the errors they promise where nothing is to be found."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from closeness import close
from scipy.stats import permutation_test
from transformer_lens.patching import PatchingResult

from workbench.statistics import (
    benjamini_hochberg,
    bonferroni,
    bootstrap,
    hsic,
    hsic_p,
    interval_text,
    known_gap,
    ratio_of_means,
    sign_flip_p,
    summary,
)


def test_sign_flips_by_hand():
    # All eight sums of +-1 +-2 +-3: 6, 4, 2, 0 and their negatives; two of them are as large as 6, four as large as 4.
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert sign_flip_p(np.array([-1.0, 2.0, 3.0])) == 4 / 8
    assert sign_flip_p(np.array([1.0, 2.0, -3.0])) == 1
    assert sign_flip_p(np.zeros(5)) == 1


@pytest.mark.parametrize("n", [3, 8, 12])
def test_sign_flips_are_those_of_transformer_lens(n):
    effects = np.random.default_rng(n).normal(0.5, 1, (n, 4, 3))
    values = torch.tensor(effects).movedim(0, -1)
    theirs = PatchingResult(
        values,
        ["layer", "head"],
        pd.DataFrame(),
        ["metric"],
        False,
        baseline=torch.zeros(n, dtype=values.dtype),
    )
    assert close(sign_flip_p(effects), theirs.permutation_pvalue().numpy())


def test_drawn_sign_flips_are_near_the_exact_ones():
    values = np.random.default_rng(0).normal(0.3, 1, (14, 2))
    exact = permutation_test(
        (values,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=2**14, axis=0
    ).pvalue
    # Four standard errors of a share of 20,000 draws.
    assert np.abs(sign_flip_p(values, draws=20_000) - exact).max() < 4 * np.sqrt(0.25 / 20_000)
    least = sign_flip_p(np.ones(40), draws=99)
    assert least == 1 / 100


def test_missing_examples_are_left_out():
    values = np.array([[1.0, 1.0, np.nan], [2.0, np.nan, np.nan], [3.0, 3.0, np.nan], [np.nan, 2.0, np.nan]])
    assert np.allclose(sign_flip_p(values), [0.25, 0.25, np.nan], equal_nan=True)


def test_one_example_has_no_interval():
    table = xr.DataArray([[1.0, 2.0], [np.nan, 3.0]], dims=("example", "head"))
    table_summary = summary(table)
    assert np.isnan([table_summary["low"][0], table_summary["high"][0], table_summary["se"][0]]).all()
    assert np.isfinite(table_summary["low"][1])
    low, high = bootstrap(np.ones((1, 3)), lambda sample: sample.mean(0))
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert low.shape == (3,)
    assert interval_text(float(low[0]), float(high[0])) == "[no interval]"
    assert interval_text(0.1, 0.25) == "[0.100, 0.250]"


def test_a_summary_has_p_values_where_they_are_asked_for():
    table = xr.DataArray(np.random.default_rng(0).normal(size=(10, 3)), dims=("example", "head"))
    plain, more = summary(table), summary(table, p=True)
    assert list(plain.data_vars) == ["mean", "se", "low", "high", "n"]
    assert list(more.data_vars) == ["mean", "se", "low", "high", "n", "p"]
    assert np.array_equal(more["p"], sign_flip_p(table.values))
    assert more.drop_vars("p").identical(plain)


def test_under_the_null_p_is_below_alpha_no_more_than_alpha_of_the_time():
    rng = np.random.default_rng(0)
    assert 0.03 < (sign_flip_p(rng.normal(size=(20, 1000)), draws=499) <= 0.05).mean() < 0.07
    independent = [
        hsic_p(rng.normal(size=20), rng.normal(size=20), draws=99, seed=i) <= 0.05 for i in range(200)
    ]
    assert 0.01 < np.mean(independent) < 0.1


def test_corrections_by_hand():
    p = np.array([0.01, 0.04, 0.03, np.nan, 0.5])
    # Four p-values. Sorted .01 .03 .04 .5 times 4/1 4/2 4/3 4/4: .04 .06 .0533 .5; least from the right: .04 .0533 .0533 .5
    assert np.allclose(benjamini_hochberg(p), [0.04, 0.16 / 3, 0.16 / 3, np.nan, 0.5], equal_nan=True)
    assert np.allclose(bonferroni(p), [0.04, 0.16, 0.12, np.nan, 1], equal_nan=True)
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


def test_hsic_by_hand():
    # Two examples at distance 1 = the median: K = [[1, e], [e, 1]] with e = exp(-1/2); centred (1 - e)/2 [[1, -1], [-1, 1]].
    # The trace of its square is (1 - e)^2, and n - 1 is 1.
    assert np.isclose(hsic(np.array([0.0, 1.0]), np.array([5.0, 6.0])), (1 - np.exp(-0.5)) ** 2)
    assert np.isclose(hsic(np.arange(5.0), np.ones(5)), 0)


def test_hsic_finds_dependence_that_no_correlation_shows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    assert abs(np.corrcoef(x, x**2)[0, 1]) < 0.3
    assert hsic_p(x, x**2, draws=199) == 1 / 200
    assert hsic_p(x, rng.normal(size=60), draws=199) > 0.05
    assert hsic_p(x, np.ones(60), draws=199) == 1
    mostly_equal = np.r_[np.ones(50), np.zeros(10)]  # most distances are 0
    assert hsic_p(mostly_equal, mostly_equal, draws=199) == 1 / 200


def test_a_gap_of_rounding_alone_has_no_share():
    rng = np.random.default_rng(0)
    full = rng.normal(size=(8, 1)) * 20
    empty, measured = (full + rng.uniform(-3e-6, 3e-6, full.shape) for _ in range(2))
    assert np.isnan(ratio_of_means(measured, full, empty)).all()
    assert np.isnan(known_gap(full - empty, np.abs(full))).all()
    assert ratio_of_means(full - 0.5, full, full - 1) == pytest.approx(0.5)
