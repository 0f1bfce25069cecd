"""Pages of folders that runs left: one run shown again (`workbench report`), or two beside each other (`workbench diff`).

They need the files only, no model: circuits, results (netCDF) and tables (parquet) by their names.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench import results
from workbench.discovery.circuit import Circuit
from workbench.discovery.compare import compare
from workbench.errors import WorkbenchError
from workbench.render.plots import plot
from workbench.render.report import report
from workbench.render.view import CircuitView

ROWS = 60
Section = tuple[str, Any, str]


def report_run(folder: str | Path, path: str | Path, *, command: str | None = None, overwrite: bool = False) -> Path:
    """A page of every circuit, result and table in a folder.

    Raises:
        WorkbenchError: there is no such folder, or nothing in it can be shown.  OutputExists: the page is there already.
    """
    folder = Path(folder)
    sections: list[Section] = []
    for file, kind in _files(folder).items():
        item, caption = _shown(_READERS[kind](folder / file))
        sections.append((file, item, caption))
    return report(sections, path, title=f"Run {folder.name}", subtitle=str(folder), command=command, overwrite=overwrite)


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
        first, second = (_READERS[kind](folder / name) for folder in folders)
        sections += _difference(name, first, second, names)
    alone = [[name for name in mine if name not in both] for mine in files]
    if any(alone):
        table = pd.DataFrame(
            [(where, file) for where, mine in zip(names, alone, strict=True) for file in mine], columns=["run", "file"]
        )
        sections.append(("Only in one", table, ""))
    title = f"{names[0]} and {names[1]}"
    return report(sections, path, title=title, command=command, overwrite=overwrite)


def _circuit(path: Path) -> Circuit:
    return Circuit.load(path)


_READERS: dict[str, Callable[[Path], Any]] = {"circuit": _circuit, "result": results.load, "table": pd.read_parquet}


def _files(folder: Path) -> dict[str, str]:
    """What a folder holds that can be shown, circuits first."""
    if not folder.is_dir():
        raise WorkbenchError(f"There is no folder {str(folder)!r}. Give the folder of a run, as printed at its end.")
    kinds = {".json": "circuit", ".nc": "result", ".parquet": "table"}
    found = {path.name: kinds[path.suffix] for path in sorted(folder.iterdir()) if path.suffix in kinds and path.is_file()}
    found = {n: k for n, k in found.items() if k != "circuit" or n == "circuit.json" or n.endswith(".circuit.json")}
    if not found:
        raise WorkbenchError(f"{str(folder)!r} holds nothing to show: no circuit.json, .nc or .parquet file.")
    return dict(sorted(found.items(), key=lambda item: (["circuit", "result", "table"].index(item[1]), item[0])))


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
    data = item.mean("example") if "example" in item.dims else item
    dataset = data.to_dataset(name=str(item.name or "value")) if isinstance(data, xr.DataArray) else data
    small = [str(name) for name, values in dataset.data_vars.items() if values.ndim <= 2 and values.size <= 4 * ROWS]
    if not small:
        return f"Axes {', '.join(f'{axis} ({n})' for axis, n in dataset.sizes.items())}: too many to draw. {why}", ""
    frame = dataset[small].to_dataframe().reset_index().round(4)
    left = len(dataset.data_vars) - len(small)
    return frame.head(ROWS), f"{left} variables with more axes are left out." if left else ""


def _difference(name: str, a: Any, b: Any, names: tuple[str, str]) -> list[Section]:
    if isinstance(a, Circuit):
        found, view = compare(a, b), CircuitView.compared(a, b, names=names)
        told = (
            f"{names[0]} has {a.n_edges} edges and {names[1]} {b.n_edges}; {found.both.n_edges} are in both (Jaccard of edges "
            f"{found.jaccard:.3f}, of nodes {found.node_jaccard:.3f})."
        )
        table = found.by_component.round(3).rename(columns={"a": names[0], "b": names[1]})
        return [(name, [view, told, table], "Edges by the port that they enter and by what writes them.")]
    if isinstance(a, pd.DataFrame):
        frame = pd.concat([a.describe().add_prefix(f"{names[0]}: "), b.describe().add_prefix(f"{names[1]}: ")], axis=1)
        return [(name, frame.round(4).reset_index(), "Numbers of both tables.")]
    if isinstance(a, xr.Dataset):
        rows = []
        for variable in a.data_vars:
            if variable in b and a[variable].dtype.kind in "fiu" and b[variable].dtype.kind in "fiu":
                rows.append(
                    (str(variable), float(a[variable].mean()), float(b[variable].mean()), _most_apart(a[variable], b[variable]))
                )
        table = pd.DataFrame(rows, columns=["variable", names[0], names[1], "largest difference"])
        return [(name, table.round(4), "Means of each variable; the largest difference where the axes are the same.")]
    a, b = (each.mean("example") if "example" in each.dims else each for each in (a, b))
    try:
        apart = results.difference(b, a)
    except ValueError:
        return [(name, f"The axes differ: {dict(a.sizes)} and {dict(b.sizes)}.", "")]
    if not bool(apart.notnull().any()) or float(abs(apart).max()) == 0:
        return [(name, "The same in every cell.", "")]
    item, caption = _shown(apart)
    return [(name, item, f"{names[1]} minus {names[0]}. {caption}")]


def _most_apart(a: xr.DataArray, b: xr.DataArray) -> float:
    same = a.dims == b.dims and a.shape == b.shape
    return float(np.nanmax(np.abs(a.values - b.values))) if same and a.size else float("nan")
