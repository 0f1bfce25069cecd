"""Pages of folders that runs left: one run shown again (`workbench report`), or two beside each other (`workbench diff`).

They need the files only, no model: circuits, results (netCDF) and tables (parquet) by their names.
"""

from collections import Counter
from collections.abc import Callable, Hashable
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
Section = tuple[str, Any, str]


def report_run(
    folder: str | Path, path: str | Path, *, command: str | None = None, overwrite: bool = False
) -> Path:
    """A page of every circuit, result and table in a folder; of a file that cannot be read it says why.

    Raises:
        WorkbenchError: there is no such folder, or nothing in it can be read.  OutputExists: the page is there already.
    """
    folder = Path(folder)
    sections: list[Section] = []
    failed: list[WorkbenchError] = []
    for file, kind in _files(folder).items():
        try:
            sections.append((file, *_shown(_read(folder / file, kind))))
        except WorkbenchError as error:
            failed.append(error)
            sections.append((file, str(error), ""))
    if len(failed) == len(sections):
        raise WorkbenchError(f"Nothing in {str(folder)!r} can be read. {' '.join(map(str, failed))}")
    return report(
        sections, path, title=f"Run {folder.name}", subtitle=str(folder), command=command, overwrite=overwrite
    )


def report_difference(
    a: str | Path, b: str | Path, path: str | Path, *, command: str | None = None, overwrite: bool = False
) -> Path:
    """A page of what differs between two runs: their circuits edge by edge, their results cell by cell.

    Raises:
        WorkbenchError: no such folder, or no file that both have.  OutputExists: the page is there already.
    """
    folders = [Path(a), Path(b)]
    files = [_files(folder) for folder in folders]
    both = {name: kind for name, kind in files[0].items() if name in files[1]}
    if not both:
        raise WorkbenchError(
            f"{str(a)!r} and {str(b)!r} have no file in common: {', '.join(files[0])} there, {', '.join(files[1])} here."
        )
    names = (folders[0].name, folders[1].name) if folders[0].name != folders[1].name else (str(a), str(b))
    sections: list[Section] = []
    for name, kind in both.items():
        try:
            first, second = (_read(folder / name, kind) for folder in folders)
            sections.append((name, *_difference(first, second, names)))
        except WorkbenchError as error:
            sections.append((name, str(error), ""))
    alone = [[name for name in mine if name not in both] for mine in files]
    if any(alone):
        table = pd.DataFrame(
            [(where, file) for where, mine in zip(names, alone, strict=True) for file in mine],
            columns=["run", "file"],
        )
        sections.append(("Only in one", table, ""))
    title = f"{names[0]} and {names[1]}"
    return report(sections, path, title=title, command=command, overwrite=overwrite)


def _circuit(path: Path) -> Circuit:
    return Circuit.load(path)


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, NotImplementedError) as error:
        raise WorkbenchError(f"{str(path)!r} cannot be read as a table: {error}") from error


_READERS: dict[str, Callable[[Path], Any]] = {"circuit": _circuit, "result": results.load, "table": _table}


def _read(path: Path, kind: str) -> Any:
    return _READERS[kind](path)


def _files(folder: Path) -> dict[str, str]:
    """What a folder holds that can be shown, circuits first."""
    if not folder.is_dir():
        raise WorkbenchError(
            f"There is no folder {str(folder)!r}. Give the folder of a run, as printed at its end."
        )
    kinds = {".json": "circuit", ".nc": "result", ".parquet": "table"}
    found = {
        path.name: kinds[path.suffix]
        for path in sorted(folder.iterdir())
        if path.suffix in kinds and path.is_file()
    }
    found = {
        n: k for n, k in found.items() if k != "circuit" or n == "circuit.json" or n.endswith(".circuit.json")
    }
    if not found:
        raise WorkbenchError(f"{str(folder)!r} holds nothing to show: no circuit.json, .nc or .parquet file.")
    return dict(
        sorted(found.items(), key=lambda item: (["circuit", "result", "table"].index(item[1]), item[0]))
    )


def _shown(item: Any) -> tuple[Any, str]:
    """What stands for a file on a page, and its caption."""
    if isinstance(item, Circuit):
        return CircuitView.of(item), ""
    if isinstance(item, pd.DataFrame):
        return item.head(ROWS), f"The first {ROWS} of {len(item)} rows." if len(item) > ROWS else ""
    try:
        return plot(item), "Mean over examples." if "example" in getattr(item, "dims", ()) else ""
    except WorkbenchError as error:
        return _as_table(item, str(error))


def _as_table(item: xr.DataArray | xr.Dataset, why: str) -> tuple[Any, str]:
    dataset = item.to_dataset(name=str(item.name or "value")) if isinstance(item, xr.DataArray) else item
    dataset = dataset.map(lambda values: values.mean("example") if _averaged(values) else values)
    small = [
        str(name)
        for name, values in dataset.data_vars.items()
        if values.ndim <= 2 and values.size <= 4 * ROWS
    ]
    if not small:
        return (
            f"Axes {', '.join(f'{axis} ({n})' for axis, n in dataset.sizes.items())}: too many to draw. {why}",
            "",
        )
    left = len(dataset.data_vars) - len(small)
    caption = f"{left} variables with more axes are left out." if left else ""
    shown = dataset[small]
    if not shown.sizes:
        return pd.DataFrame({name: [shown[name].item()] for name in small}), caption
    return shown.to_dataframe().reset_index().round(4).head(ROWS), caption


def _averaged(values: xr.DataArray) -> bool:
    return "example" in values.dims and values.dtype.kind in "bfiu"


def _difference(a: Any, b: Any, names: tuple[str, str]) -> tuple[Any, str]:
    """What stands for the difference of two files of one name on a page, and its caption."""
    if type(a) is not type(b):
        return f"It holds a {type(a).__name__} in {names[0]} and a {type(b).__name__} in {names[1]}.", ""
    if isinstance(a, Circuit):
        return _circuits(a, b, names)
    if isinstance(a, pd.DataFrame):
        return _tables(a, b, names)
    if isinstance(a, xr.Dataset):
        return _datasets(a, b, names)
    apart, told = _cells(a, b, names)
    if apart is None or not bool((apart != 0).where(apart.notnull(), False).any()):
        return told, ""
    item, caption = _shown(apart)
    return item, " ".join(filter(None, (f"{names[1]} minus {names[0]}. {told}", caption)))


def _circuits(a: Circuit, b: Circuit, names: tuple[str, str]) -> tuple[Any, str]:
    try:
        found, view = compare(a, b), CircuitView.compared(a, b, names=names)
    except CircuitError as error:
        return f"They cannot be compared. {error}", ""
    told = (
        f"{names[0]} has {a.n_edges} edges and {names[1]} {b.n_edges}; {found.both.n_edges} are in both (Jaccard of edges "
        f"{found.jaccard:.3f}, of nodes {found.node_jaccard:.3f})."
    )
    table = found.by_component.round(3).rename(columns={"a": names[0], "b": names[1]})
    return [view, told, table], "Edges by the port that they enter and by what writes them."


def _tables(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str]) -> tuple[Any, str]:
    """Rows that only one of the tables has, and the numbers of both."""
    frames = [frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index() for frame in (a, b)]
    columns = [list(map(str, frame.columns)) for frame in frames]
    if set(columns[0]) != set(columns[1]):
        return (
            f"The columns differ: {', '.join(columns[0])} in {names[0]}, {', '.join(columns[1])} in {names[1]}.",
            "",
        )
    frames[1] = pd.DataFrame(frames[1][list(frames[0].columns)])
    keys = [_keys(frame) for frame in frames]
    alone = [
        [i for i, key in enumerate(mine) if key not in theirs]
        for mine, theirs in ((keys[0], set(keys[1])), (keys[1], set(keys[0])))
    ]
    if not any(alone):
        return f"The same {len(a)} rows{'' if keys[0] == keys[1] else ' in another order'}.", ""
    told = (
        f"{len(keys[0]) - len(alone[0])} rows are in both, {len(alone[0])} in {names[0]} alone and {len(alone[1])} in {names[1]} "
        "alone."
    )
    parts = [
        frame.iloc[rows].assign(**{"in": name})
        for frame, rows, name in zip(frames, alone, names, strict=True)
    ]
    items: list[Any] = [told, pd.concat([part.head(ROWS) for part in parts], ignore_index=True)]
    numbers = [frame.select_dtypes("number") for frame in frames]
    if all(part.size for part in numbers):
        described = [
            part.describe().add_prefix(f"{name}: ") for part, name in zip(numbers, names, strict=True)
        ]
        items.append(pd.concat(described, axis=1).round(4).reset_index())
    return items, f"Up to {ROWS} rows that only one of them has, then the numbers of both."


def _keys(frame: pd.DataFrame) -> list[Hashable]:
    """Each row as text, with how often it came before, so that equal rows of two tables are matched one to one."""
    seen: Counter[Hashable] = Counter()
    keys: list[Hashable] = []
    for row in frame.itertuples(index=False, name=None):
        text = tuple(map(str, row))
        keys.append((text, seen[text]))
        seen[text] += 1
    return keys


def _datasets(a: xr.Dataset, b: xr.Dataset, names: tuple[str, str]) -> tuple[Any, str]:
    rows = []
    for variable in dict.fromkeys([*a.data_vars, *b.data_vars]):
        means = [_mean(each[variable]) if variable in each.data_vars else np.nan for each in (a, b)]
        missing = [name for name, each in zip(names, (a, b), strict=True) if variable not in each.data_vars]
        apart, told = (None, f"Not in {missing[0]}.") if missing else _cells(a[variable], b[variable], names)
        rows.append((str(variable), *means, np.nan if apart is None else float(abs(apart).max()), told))
    columns = ["variable", names[0], names[1], "largest difference", "cells"]
    return pd.DataFrame(rows, columns=columns).round(
        4
    ), "Means of each variable, and how far its cells are apart."


def _mean(values: xr.DataArray) -> float:
    return float(values.mean()) if values.dtype.kind in "bfiu" and bool(values.notnull().any()) else np.nan


def _cells(a: xr.DataArray, b: xr.DataArray, names: tuple[str, str]) -> tuple[xr.DataArray | None, str]:
    """`b - a` label by label, None where there is none, and what is to be said about it."""
    if _averaged(a) and _averaged(b) and not a.get_index("example").equals(b.get_index("example")):
        a, b, mean = (
            a.mean("example", keep_attrs=True),
            b.mean("example", keep_attrs=True),
            "Means over other examples. ",
        )
    else:
        mean = ""
    numbers = all(each.dtype.kind in "bfiu" for each in (a, b))
    try:
        if set(a.dims) != set(b.dims):
            raise ValueError
        a, b = xr.align(a, b.transpose(*a.dims), join="outer" if numbers else "exact", copy=False)
    except ValueError:
        return None, f"The axes differ: {_sizes(a)} in {names[0]}, {_sizes(b)} in {names[1]}."
    if not numbers:
        differ = int((a.values.astype(str) != b.values.astype(str)).sum())
        return None, f"Other in {differ} of {a.size} cells." if differ else "The same in every cell."
    a, b = a.astype(float), b.astype(float)
    alone = [int((mine.notnull() & other.isnull()).sum()) for mine, other in ((a, b), (b, a))]
    both = int((a.notnull() & b.notnull()).sum())
    left = (
        f" {alone[0]} cells are measured in {names[0]} alone, {alone[1]} in {names[1]} alone."
        if any(alone)
        else ""
    )
    if not both:
        return None, f"{mean}No cell is measured in both.{left}"
    apart = results.difference(b, a).where(a != b, 0.0)  # inf - inf is no difference
    largest = float(abs(apart).max())
    told = (
        f"The largest difference is {largest:.4g}."
        if largest
        else f"The same in every cell{' that both have' if left else ''}."
    )
    return apart.where(a.notnull() & b.notnull()), mean + told + left


def _sizes(result: xr.DataArray) -> str:
    return ", ".join(f"{axis} ({n})" for axis, n in result.sizes.items()) or "none"
