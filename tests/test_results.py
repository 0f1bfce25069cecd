"""Results keep every label, attribute and NaN; a written file is whole or absent."""

import re

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import results
from workbench.errors import ArgumentError, OutputExists, WorkbenchError
from workbench.statistics import summary


def test_bfloat16_and_gradients_become_plain_float32():
    result = results.effect_array(torch.ones(2, dtype=torch.bfloat16, requires_grad=True), ("pos",), name="x")
    assert result.dtype == np.float32
    assert results.effect_array(torch.ones(2, dtype=torch.float64), ("pos",), name="x").dtype == np.float64


def test_attributes_are_numbers_and_text():
    assert results.clean_attrs({"a": True, "b": None, "c": 1.5, "d": ("x",)}) == {
        "a": 1,
        "c": 1.5,
        "d": "('x',)",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 2.0) for name in ("_FillValue", "missing_value", "scale_factor", "add_offset", "NAME")),
        *((name, 1) for name in ("", "a\0b", "\ud800", "x" * 300, 5, "_array", "coordinates", "_Unsigned")),
        *(("seed", seed) for seed in (2**64, -(2**63) - 1, 10**400)),
    ],
)
def test_attributes_that_would_change_numbers_or_get_lost_are_refused(tmp_path, name, value):
    """Of these names the first four made `load` return other numbers than were saved."""
    numbers = results.effect_array(np.array([1.0, 2.0, 3.0]), ("pos",), name="x")
    for result in (numbers, numbers.to_dataset()):
        with pytest.raises(ArgumentError, match=r"The attribute .* (needs another name|64 bits do not hold)"):
            results.save(result.assign_attrs({name: value}), tmp_path / "r.nc")
    assert not list(tmp_path.iterdir())


def test_units_that_look_like_dates_change_no_number(tmp_path):
    facts = {"units": "days since 2000-01-01", "calendar": "standard", "seed": 2**64 - 1, "low": -(2**63)}
    result = results.effect_array(np.array([1.0, 2.0, 3.0]), ("pos",), name="x", attrs=facts)
    assert results.load(results.save(result, tmp_path / "r.nc")).identical(result)


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(blacklist_categories=()), max_size=6), min_size=1, max_size=4))
def test_any_token_text_survives_a_file(tmp_path_factory: pytest.TempPathFactory, tokens: list[str]):
    path = tmp_path_factory.mktemp("results") / "r.nc"
    values = np.arange(len(tokens), dtype=np.float32)
    values[0] = np.nan
    result = results.effect_array(values, ("pos",), {"pos": tokens}, name="x", attrs={"t": "".join(tokens)})
    results.save(result, path)
    back = results.load(path)
    assert back.identical(result)
    assert list(back["pos"].values) == list(result["pos"].values)


def test_a_file_that_is_there_is_not_replaced(tmp_path):
    path = tmp_path / "r.nc"
    result = results.effect_array(np.ones(2), ("pos",), name="x")
    results.save(result, path)
    before = path.read_bytes()
    message = f"{str(path)!r} exists. Choose another path, or pass overwrite=True to replace it."
    with pytest.raises(OutputExists, match="^" + re.escape(message) + "$"):
        results.save(result * 2, path)
    assert path.read_bytes() == before
    results.save(result * 2, path, overwrite=True)
    assert float(results.load(path)[0]) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_result_is_refused(tmp_path):
    path = tmp_path / "r.nc"
    path.write_text("hello")
    with pytest.raises(WorkbenchError, match="cannot be read as a netCDF result"):
        results.load(path)
    with pytest.raises(WorkbenchError, match="There is no result file"):
        results.load(tmp_path / "none.nc")


def test_mismatched_layers_are_an_error_and_not_dropped():
    a = results.effect_array(np.ones(2), ("layer",), {"layer": [0, 1]}, name="x")
    b = results.effect_array(np.ones(2), ("layer",), {"layer": [1, 2]}, name="x")
    with pytest.raises(WorkbenchError, match=r"difference: the labels differ .*layer"):
        results.difference(a, b)
    heads = results.effect_array(np.ones(3), ("head",), {"head": [0, 1, 2]}, name="x")
    with pytest.raises(WorkbenchError, match=r"axes layer \(2\) and head \(3\); both need the same"):
        results.difference(a, heads)
    assert float(results.difference(a, a).sum()) == 0


def test_the_summary_of_known_numbers():
    result = summary(xr.DataArray([[1.0, np.nan], [3.0, np.nan], [5.0, np.nan]], dims=("example", "layer")))
    assert result["mean"].values[0] == 3
    assert result["se"].values[0] == pytest.approx(2 / np.sqrt(3))
    assert result["n"].values.tolist() == [3, 0]
    assert np.isnan(result["mean"].values[1])
    assert result["low"].values[0] < 3 < result["high"].values[0]


def test_bootstrap_intervals_cover_a_normal_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        result = summary(xr.DataArray(rng.normal(size=40), dims="example"), draws=300, seed=seed)
        covered += float(result["low"]) <= 0 <= float(result["high"])
    assert 85 <= covered <= 100
