"""Pages of the folders of runs: one run shown again (`workbench report`), or two compared (`workbench diff`).

`report_run` and `report_difference` read files only and need no model: circuits, results (netCDF) and tables
(parquet) are known by their names. How a circuit or a result is drawn is decided in `render`.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench import results
from workbench.circuit.circuit import Circuit
from workbench.circuit.compare import compare
from workbench.errors import CircuitError, WorkbenchError
from workbench.render.circuit.view import CircuitView
from workbench.render.plots import plot
from workbench.render.report import report

ROWS = 60
"""Rows of a table that are shown."""
Section = tuple[str, Any, str]
"""A title, what is shown, and its caption."""
Content = tuple[Any, str]
"""What is shown, and its caption."""


def report_run(
    folder: str | Path, path: str | Path, *, command: str | None = None, overwrite: bool = False
) -> Path:
    """A page of every circuit, result and table in a folder; of a file that cannot be read it says why.

    Raises:
        WorkbenchError: there is no such folder, or nothing in it can be read.
        OutputExists: the page is there already.
    """
    folder = Path(folder)
    sections: list[Section] = []
    failures: list[WorkbenchError] = []
    for name, kind in _files(folder).items():
        try:
            sections.append((name, *_shown(_read(folder / name, kind))))
        except WorkbenchError as error:
            # One damaged file leaves the others; only a page of nothing but errors is refused.
            failures.append(error)
            sections.append((name, str(error), ""))
    if len(failures) == len(sections):
        raise WorkbenchError(f"Nothing in {str(folder)!r} can be read. {' '.join(map(str, failures))}")
    return report(
        sections, path, title=f"Run {folder.name}", subtitle=str(folder), command=command, overwrite=overwrite
    )


def report_difference(
    a: str | Path, b: str | Path, path: str | Path, *, command: str | None = None, overwrite: bool = False
) -> Path:
    """A page of what differs between two runs: their circuits edge by edge, their results cell by cell.

    Raises:
        WorkbenchError: no such folder, or no file that both have.
        OutputExists: the page is there already.
    """
    folders = (Path(a), Path(b))
    first_files, second_files = map(_files, folders)
    both = {name: kind for name, kind in first_files.items() if name in second_files}
    if not both:
        raise WorkbenchError(
            f"{str(a)!r} and {str(b)!r} have no file in common: {', '.join(first_files)} in the first, "
            f"{', '.join(second_files)} in the second."
        )
    # The names of the folders head the page; where they are alike the paths tell them apart.
    names = (folders[0].name, folders[1].name)
    if names[0] == names[1]:
        names = (str(a), str(b))
    sections: list[Section] = []
    for name, kind in both.items():
        try:
            first, second = (_read(folder / name, kind) for folder in folders)
            sections.append((name, *_difference(first, second, names)))
        except WorkbenchError as error:
            sections.append((name, str(error), ""))
    unshared = [(names[0], file) for file in first_files if file not in both]
    unshared += [(names[1], file) for file in second_files if file not in both]
    if unshared:
        sections.append(("Only in one", pd.DataFrame(unshared, columns=["run", "file"]), ""))
    title = f"{names[0]} and {names[1]}"
    return report(sections, path, title=title, command=command, overwrite=overwrite)


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    # pyarrow raises each of these for a damaged file, depending on where it is damaged.
    except (OSError, ValueError, NotImplementedError) as error:
        raise WorkbenchError(f"{str(path)!r} cannot be read as a table: {error}") from error


_READERS: dict[str, Callable[[Path], Any]] = {
    "circuit": Circuit.load,
    "result": results.load,
    "table": _table,
}
_KINDS = {".json": "circuit", ".nc": "result", ".parquet": "table"}


def _read(path: Path, kind: str) -> Any:
    return _READERS[kind](path)


def _files(folder: Path) -> dict[str, str]:
    """The files of a folder that can be shown, with their kinds; circuits first."""
    if not folder.is_dir():
        raise WorkbenchError(
            f"There is no folder {str(folder)!r}. Give the folder of a run, as printed at its end."
        )
    kinds = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _KINDS and path.is_file() and _may_be_shown(path):
            kinds[path.name] = _KINDS[path.suffix]
    if not kinds:
        raise WorkbenchError(f"{str(folder)!r} holds nothing to show: no circuit.json, .nc or .parquet file.")
    order = list(_READERS)
    return dict(sorted(kinds.items(), key=lambda item: (order.index(item[1]), item[0])))


def _may_be_shown(path: Path) -> bool:
    # Of all .json files only circuits are known by their names.
    return path.suffix != ".json" or path.name == "circuit.json" or path.name.endswith(".circuit.json")


def _shown(item: Any) -> Content:
    """What is shown for a file, and its caption."""
    if isinstance(item, Circuit):
        return CircuitView.of(item), ""
    if isinstance(item, pd.DataFrame):
        caption = ""
        if len(item) > ROWS:
            caption = f"The first {ROWS} of {len(item)} rows."
        return item.head(ROWS), caption
    caption = ""
    if "example" in getattr(item, "dims", ()):
        caption = "Mean over examples."
    try:
        return plot(item), caption
    except WorkbenchError as error:
        # What cannot be drawn is shown as a table where it is small enough.
        return _as_table(item, str(error))


def _as_table(item: xr.DataArray | xr.Dataset, reason: str) -> Content:
    if isinstance(item, xr.DataArray):
        item = item.to_dataset(name=str(item.name or "value"))
    # As in the pictures: numbers are shown as means over prompts.
    dataset = item.map(_mean_over_examples)
    small = [str(name) for name, values in dataset.data_vars.items() if _fits_a_table(values)]
    if not small:
        axes = ", ".join(f"{axis} ({size})" for axis, size in dataset.sizes.items())
        return f"Axes {axes}: too many to draw. {reason}", ""
    omitted = len(dataset.data_vars) - len(small)
    caption = ""
    if omitted:
        caption = f"{omitted} variables with more axes are left out."
    shown = dataset[small]
    if not shown.sizes:
        # `to_dataframe` needs an axis, and scalars have none.
        return pd.DataFrame({name: [shown[name].item()] for name in small}), caption
    return shown.to_dataframe().reset_index().round(4).head(ROWS), caption


def _fits_a_table(values: xr.DataArray) -> bool:
    return values.ndim <= 2 and values.size <= 4 * ROWS


def _mean_over_examples(values: xr.DataArray) -> xr.DataArray:
    """The mean where there is one, else the values."""
    if _is_averaged(values):
        return values.mean("example")
    return values


def _is_averaged(values: xr.DataArray) -> bool:
    """Whether the mean over examples is shown: numbers have one, text has not."""
    return "example" in values.dims and _is_number(values)


def _is_number(values: xr.DataArray) -> bool:
    return values.dtype.kind in "bfiu"


def _difference(a: Any, b: Any, names: tuple[str, str]) -> Content:
    """What is shown for the difference of two files of one name, and its caption."""
    if type(a) is not type(b):
        return f"It holds a {type(a).__name__} in {names[0]} and a {type(b).__name__} in {names[1]}.", ""
    if isinstance(a, Circuit):
        return _circuits(a, b, names)
    if isinstance(a, pd.DataFrame):
        return _tables(a, b, names)
    if isinstance(a, xr.Dataset):
        return _datasets(a, b, names)
    cells = _cells(a, b, names)
    if cells.difference is None or not _differs(cells.difference):
        return cells.text, ""
    item, caption = _shown(cells.difference)
    return item, " ".join(filter(None, (f"{names[1]} minus {names[0]}. {cells.text}", caption)))


def _differs(difference: xr.DataArray) -> bool:
    return bool((difference != 0).where(difference.notnull(), False).any())


def _circuits(a: Circuit, b: Circuit, names: tuple[str, str]) -> Content:
    try:
        # Circuits of different graphs are told apart in words; the other files are still compared.
        comparison, view = compare(a, b), CircuitView.compared(a, b, names=names)
    except CircuitError as error:
        return f"They cannot be compared. {error}", ""
    text = (
        f"{names[0]} has {a.n_edges} edges and {names[1]} {b.n_edges}; {comparison.both.n_edges} are in both "
        f"(Jaccard of edges {comparison.jaccard:.3f}, of nodes {comparison.node_jaccard:.3f})."
    )
    table = comparison.by_component.round(3).rename(columns={"a": names[0], "b": names[1]})
    return [view, text, table], "Edges by the port that they enter and by what writes them."


def _tables(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str]) -> Content:
    """Rows that only one of the tables has, and the numbers of both."""
    first, second = _without_index(a), _without_index(b)
    if set(map(str, first.columns)) != set(map(str, second.columns)):
        ours, theirs = ", ".join(map(str, first.columns)), ", ".join(map(str, second.columns))
        return f"The columns differ: {ours} in {names[0]}, {theirs} in {names[1]}.", ""
    # Columns in the same order, since rows are compared as tuples.
    second = pd.DataFrame(second[list(first.columns)])
    first_keys, second_keys = _row_keys(first), _row_keys(second)
    only_first = _missing_rows(first_keys, second_keys)
    only_second = _missing_rows(second_keys, first_keys)
    if not only_first and not only_second:
        if first_keys != second_keys:
            return f"The same {len(a)} rows in another order.", ""
        return f"The same {len(a)} rows.", ""
    text = (
        f"{len(first) - len(only_first)} rows are in both, {len(only_first)} in {names[0]} alone and "
        f"{len(only_second)} in {names[1]} alone."
    )
    unshared = [
        first.iloc[only_first].assign(**{"in": names[0]}).head(ROWS),
        second.iloc[only_second].assign(**{"in": names[1]}).head(ROWS),
    ]
    items: list[Any] = [text, pd.concat(unshared, ignore_index=True)]
    first_numbers, second_numbers = first.select_dtypes("number"), second.select_dtypes("number")
    # `describe` refuses a table without columns or rows.
    if first_numbers.size and second_numbers.size:
        described = [
            first_numbers.describe().add_prefix(f"{names[0]}: "),
            second_numbers.describe().add_prefix(f"{names[1]}: "),
        ]
        items.append(pd.concat(described, axis=1).round(4).reset_index())
    return items, f"Up to {ROWS} rows that only one of them has, then the numbers of both."


def _without_index(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an index that means something as columns; row numbers mean nothing."""
    if isinstance(frame.index, pd.RangeIndex):
        return frame
    return frame.reset_index()


def _missing_rows(keys: list[Hashable], others: list[Hashable]) -> list[int]:
    """The numbers of the rows whose keys the other table lacks."""
    known = set(others)
    return [i for i, key in enumerate(keys) if key not in known]


def _row_keys(frame: pd.DataFrame) -> list[Hashable]:
    """Each row as text, with how often it came before, so that equal rows of two tables are matched one to
    one.
    """
    seen: Counter[Hashable] = Counter()
    keys: list[Hashable] = []
    for row in frame.itertuples(index=False, name=None):
        text = tuple(map(str, row))  # as text, because lists in cells cannot be hashed
        keys.append((text, seen[text]))
        seen[text] += 1
    return keys


def _datasets(a: xr.Dataset, b: xr.Dataset, names: tuple[str, str]) -> Content:
    rows = []
    for variable in dict.fromkeys([*a.data_vars, *b.data_vars]):
        first, second = a.data_vars.get(variable), b.data_vars.get(variable)
        if first is None:
            cells = _Cells(None, f"Not in {names[0]}.")
        elif second is None:
            cells = _Cells(None, f"Not in {names[1]}.")
        else:
            cells = _cells(first, second, names)
        largest = np.nan
        if cells.difference is not None:
            largest = float(abs(cells.difference).max())
        rows.append((str(variable), _mean(first), _mean(second), largest, cells.text))
    columns = ["variable", names[0], names[1], "largest difference", "cells"]
    caption = "Means of each variable, and the largest difference between their cells."
    return pd.DataFrame(rows, columns=columns).round(4), caption


def _mean(values: xr.DataArray | None) -> float:
    """The mean of the numbers that were measured; NaN where there is none."""
    if values is None or not _is_number(values) or not bool(values.notnull().any()):
        return np.nan
    return float(values.mean())


@dataclass(frozen=True)
class _Cells:
    """`b - a` label by label, None where there is none, and a sentence about it."""

    difference: xr.DataArray | None
    text: str


def _cells(a: xr.DataArray, b: xr.DataArray, names: tuple[str, str]) -> _Cells:
    """Two results compared cell by cell; where their examples differ, means over examples are."""
    prefix = ""
    if _is_averaged(a) and _is_averaged(b) and not a.get_index("example").equals(b.get_index("example")):
        a, b = a.mean("example", keep_attrs=True), b.mean("example", keep_attrs=True)
        prefix = "Means over other examples. "
    if set(a.dims) != set(b.dims):
        return _Cells(None, _axes_differ(a, b, names))
    numbers = _is_number(a) and _is_number(b)
    try:
        # Numbers are matched by their labels; text has to have the same labels, since it has no difference.
        join = "outer" if numbers else "exact"
        a, b = xr.align(a, b.transpose(*a.dims), join=join, copy=False)
    except ValueError:
        return _Cells(None, _axes_differ(a, b, names))
    if not numbers:
        n_different = int((a.values.astype(str) != b.values.astype(str)).sum())
        if n_different:
            return _Cells(None, f"Other in {n_different} of {a.size} cells.")
        return _Cells(None, "The same in every cell.")
    return _numbers_compared(a.astype(float), b.astype(float), names, prefix)


def _numbers_compared(a: xr.DataArray, b: xr.DataArray, names: tuple[str, str], prefix: str) -> _Cells:
    """Aligned numbers compared; NaN is a cell that was not measured."""
    measured = a.notnull() & b.notnull()
    only_first, only_second = int((a.notnull() & b.isnull()).sum()), int((b.notnull() & a.isnull()).sum())
    unshared = ""
    if only_first or only_second:
        unshared = f" {only_first} cells are measured in {names[0]} alone, {only_second} in {names[1]} alone."
    if not bool(measured.any()):
        return _Cells(None, f"{prefix}No cell is measured in both.{unshared}")
    difference = results.difference(b, a).where(a != b, 0.0)  # inf - inf is NaN, and yet no difference
    largest = float(abs(difference).max())
    text = f"The largest difference is {largest:.4g}."
    if not largest:
        text = "The same in every cell."
        if unshared:
            text = "The same in every cell that both have."
    return _Cells(difference.where(measured), prefix + text + unshared)


def _axes_differ(a: xr.DataArray, b: xr.DataArray, names: tuple[str, str]) -> str:
    return f"The axes differ: {_sizes(a)} in {names[0]}, {_sizes(b)} in {names[1]}."


def _sizes(result: xr.DataArray) -> str:
    return ", ".join(f"{axis} ({size})" for axis, size in result.sizes.items()) or "none"
