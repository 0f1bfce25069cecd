"""Results are labelled arrays (xarray) that say where they come from.

Read `effect_array`, then `save` and `load`. `effect_array` is the only place where torch becomes numpy; files
keep every label, attribute and NaN. An unmeasured cell is NaN, never 0. Attributes are strings and numbers
only, so that netCDF can hold them. Nothing here knows what was measured.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.arguments import checked
from workbench.checksums import seal, seal_holds
from workbench.errors import ArgumentError, WorkbenchError
from workbench.files import check_free, whole
from workbench.netcdf import check_netcdf

Result = TypeVar("Result", xr.DataArray, xr.Dataset)
# xarray's options belong to the whole process: two threads that set them could leave them changed.
_options = Lock()
# What xarray, netCDF and HDF5 take for facts about storage: on reading, numbers would be scaled or missing.
_TAKEN = {
    "_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned", "coordinates", "_array",
    "CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates",
    "_nc3_strict", "_NCProperties",
}  # fmt: skip
_LONGEST_NAME = 255
_PACKAGES = ("interp-workbench", "torch", "transformer-lens", "transformers", "xarray")


def effect_array(
    values: Tensor | np.ndarray,
    dims: Sequence[str],
    coords: Mapping[str, Any] | None = None,
    *,
    name: str,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """A labelled array of numbers that came out of a model: detached, float32 (float64 stays), on the CPU.

    Args:
        values: numbers with one dimension per word of `dims`.
        attrs: provenance; None values are left out, everything but numbers becomes text.
    """
    if isinstance(values, Tensor):
        values = values.detach().to("cpu")
        values = values.numpy() if values.dtype in (torch.float32, torch.float64) else values.float().numpy()
    labels = dict(coords or {})
    for axis, column in labels.items():
        if _is_text(column):
            labels[axis] = as_labels(column)
    return xr.DataArray(values, dims=list(dims), coords=labels, name=name, attrs=clean_attrs(attrs or {}))


def clean_attrs(attrs: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Attributes that netCDF can hold: numbers as they are, the rest as text.

    None is left out, booleans become 0 and 1, and integers of numpy plain ones.

    Raises:
        ArgumentError: a name that netCDF lacks or gives a meaning of its own, an integer of more than 64 bits.
    """
    kept: dict[str, str | int | float] = {}
    for key, value in attrs.items():
        if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_NAME or not key.isprintable():
            raise ArgumentError(
                f"The attribute {str(key)[:40]!r} needs another name: a printable text of up to "
                f"{_LONGEST_NAME} letters."
            )
        if key in _TAKEN:
            raise ArgumentError(
                f"The attribute {key!r} needs another name: in a netCDF file this one says how numbers are "
                "stored."
            )
        if isinstance(value, bool | np.bool_ | np.integer):
            kept[key] = int(value)
        elif isinstance(value, int | float):
            if isinstance(value, int) and not -(2**63) <= value < 2**64:
                raise ArgumentError(
                    f"The attribute {key!r} is an integer that 64 bits do not hold, as netCDF has them. Give it "
                    "as text."
                )
            kept[key] = value
        elif value is not None:
            kept[key] = str(value)
    return kept


@cache
def versions() -> dict[str, str]:
    """The versions of the packages that a number may depend on, as `version_NAME` attributes."""
    attrs = {}
    for package in _PACKAGES:
        name = f"version_{package.replace('-', '_')}"
        try:
            attrs[name] = version(package)
        except PackageNotFoundError:
            attrs[name] = "not installed"
    return attrs


@checked
def difference(a: Result, b: Result) -> Result:
    """`a - b` of two results with the same axes and labels.

    xarray's own default drops the labels that only one of them has, and makes a product of other axes.

    Raises:
        WorkbenchError: other axes, or other labels along one.
    """
    if set(a.dims) != set(b.dims):
        raise WorkbenchError(f"difference: axes {axes_text(a)} and {axes_text(b)}; both need the same.")
    with _options, xr.set_options(arithmetic_join="exact", keep_attrs=True):
        try:
            return a - b
        except ValueError as error:  # xarray's AlignmentError is one
            raise WorkbenchError(
                f"difference: the labels differ ({error}). Select what both have, as in a.sel(layer=b.layer)."
            ) from error


def axes_text(result: Result) -> str:
    """The axes of a result with their sizes."""
    return ", ".join(f"{axis} ({size})" for axis, size in result.sizes.items()) or "none"


@checked
def save(result: xr.DataArray | xr.Dataset, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a result as netCDF, whole or not at all, and return its path.

    Raises:
        ArgumentError: an attribute that netCDF cannot hold, or takes for a fact about storage.
        OutputExists: there is a file already and `overwrite` is not given.
    """
    path = Path(path)
    check_free(path, overwrite=overwrite)
    marks: dict[str, Any] = {}
    if isinstance(result, xr.DataArray):
        marks = {"_array": result.name or "values"}
        dataset = result.to_dataset(name=marks["_array"])
    else:
        dataset = result
    # h5netcdf refuses NUL and lone surrogates, which tokens may hold: texts are written backslash-escaped.
    encoded = dataset.assign_coords(_text_coords(dataset, _escape))
    encoded.attrs = _map_attrs(clean_attrs(dataset.attrs) | marks, _escape)
    for name in encoded.variables:
        encoded[name].attrs = _map_attrs(clean_attrs(encoded[name].attrs), _escape)
    with whole(path) as partial:
        # By way of memory: on a full disk HDF5 cannot close its file, and crashes when that is freed.
        partial.write_bytes(encoded.to_netcdf(engine="h5netcdf"))
        # The header of HDF5 says where its data end: other readers do not see the checksum behind them.
        seal(partial)
    return path


@checked
def load(path: str | Path) -> Any:
    """Read back what `save` wrote: the same type, labels, attributes and NaN cells.

    Raises:
        WorkbenchError: there is no such file, it is not a result, it was changed since it was written (its
            checksum shows it), or it reads from files outside its own folder.
    """
    path = Path(path)
    if not path.is_file():
        raise WorkbenchError(f"There is no result file {str(path)!r}.")
    try:
        if not seal_holds(path):
            raise WorkbenchError(
                f"{str(path)!r} was changed since it was written (checksum). Compute the result again, or "
                "take the file from a copy."
            )
        check_netcdf(path)
        # `units` are a result's own: with them xarray would make dates of numbers ("days since ...").
        with xr.open_dataset(path, engine="h5netcdf", decode_times=False) as opened:
            dataset = opened.load()
        dataset = dataset.assign_coords(_text_coords(dataset, _unescape))
        for variable in (dataset, *(dataset[name] for name in dataset.variables)):
            variable.attrs = _map_attrs(variable.attrs, _unescape)
    except (OSError, ValueError, LookupError, RuntimeError, AttributeError, TypeError) as error:
        raise WorkbenchError(f"{str(path)!r} cannot be read as a netCDF result: {error}") from error
    name = dataset.attrs.pop("_array", None)
    if name is not None and name not in dataset:
        raise WorkbenchError(
            f"{str(path)!r} cannot be read as a netCDF result: it promises {name!r} and does not hold it."
        )
    return dataset[name] if name else dataset


def _text_coords(dataset: xr.Dataset, change: Callable[[str], str]) -> dict[Any, xr.DataArray]:
    """The coordinates that are texts, each text changed."""
    return {
        name: _map_text(coord, change) for name, coord in dataset.coords.items() if _is_text(coord.values)
    }


def _map_attrs(attrs: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    return {key: change(value) if isinstance(value, str) else value for key, value in attrs.items()}


def _is_text(labels: Any) -> bool:
    values = np.asarray(labels)
    return values.dtype.kind in "UT" or (
        values.dtype == object and all(isinstance(v, str) for v in values.flat)
    )


def with_tokens(result: xr.DataArray, strings: Sequence[Sequence[str]]) -> xr.DataArray:
    """A result over (example, pos) with its token strings: one for each position if all prompts have the same,
    else prompt by prompt.

    Args:
        strings: the token strings of each example.
    """
    if len(set(map(tuple, strings))) == 1 and result.sizes["pos"] == len(strings[0]):
        return result.assign_coords(token=("pos", as_labels(strings[0])))
    table = strings_by_position(strings, result.sizes["pos"])
    return result.assign_coords(pos_token=(("example", "pos"), table))


def strings_by_position(strings: Sequence[Sequence[str]], length: int) -> np.ndarray:
    """[example, pos]: the token strings of prompts, "" beyond their ends."""
    table = np.full((len(strings), length), "", dtype=object)
    for row, of_prompt in zip(table, strings, strict=True):
        row[: len(of_prompt)] = as_labels(of_prompt[:length])
    return table


def as_labels(texts: Any) -> np.ndarray:
    """Texts as coordinate labels; a lone surrogate, which no string array can hold, is spelled out."""
    return np.array([str(text).encode("utf-8", "backslashreplace").decode() for text in texts], dtype=object)


def _map_text(coord: xr.DataArray, change: Any) -> xr.DataArray:
    changed = np.array([change(text) for text in coord.values.flat], dtype=object).reshape(coord.shape)
    return coord.copy(data=changed)


def _escape(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _unescape(text: str) -> str:
    return text.encode("ascii").decode("unicode_escape")


class ResultAccessor:
    """What a result says of itself: `result.wb.headline()`, `result.wb.table()`, `result.wb.plot()`.

    Every array of xarray has it; those that no function of this package returned have no headline.
    """

    def __init__(self, result: Any) -> None:
        self._result = result

    def headline(self) -> str:
        """A sentence or two: what was measured, the main number with its interval, and how far it goes.

        Raises:
            WorkbenchError: an array that no function of this package returned.
        """
        from workbench.render.cards import card

        return card.headline(self._result)

    def table(self, n: int = 8, *, circuit: Any = None) -> Any:
        """The rows that a reader wants first, as a pandas table: of scores and effects the strongest cells.

        Args:
            n: at most so many rows.
            circuit: whether this `Circuit` has the edge or component is in the column `in circuit`.

        Raises:
            WorkbenchError: a circuit beside a result whose rows are neither.
        """
        from workbench.render.cards import card

        return card.table_of(self._result, n, circuit=circuit)

    def plot(self, *, title: str | None = None, labels: Any = None) -> Any:
        """The figure, as `wb.plot` draws it."""
        from workbench.render.cards import card

        return card.plot(self._result, title=title, labels=labels)


for _kind, _add in (
    (xr.DataArray, xr.register_dataarray_accessor),
    (xr.Dataset, xr.register_dataset_accessor),
):
    # xarray warns of a second registration, as where this module is reloaded.
    if not hasattr(_kind, "wb"):
        _add("wb")(ResultAccessor)
