"""What differs between two files of one name: circuits edge by edge, results cell by cell, tables row by row.

Read `difference_of`. Cells and rows are matched by their labels and never by their order.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench import results
from workbench.circuit.circuit import Circuit
from workbench.circuit.compare import compare
from workbench.errors import CircuitError
from workbench.render.circuit.view import CircuitView
from workbench.text import with_article
from workbench.workflows.run_contents import ROWS, Content, is_averaged, is_number, shown_content


def difference_of(a: Any, b: Any, names: tuple[str, str]) -> Content:
    """What is shown for the difference of two files of one name, and its caption."""
    if type(a) is not type(b):
        kinds = [with_article(type(one).__name__) for one in (a, b)]
        return f"It holds {kinds[0]} in {names[0]} and {kinds[1]} in {names[1]}.", ""
    if isinstance(a, Circuit):
        return _circuits(a, b, names)
    if isinstance(a, pd.DataFrame):
        return _tables(a, b, names)
    if isinstance(a, xr.Dataset):
        return _datasets(a, b, names)
    cells = _cells(a, b, names)
    if cells.difference is None or not _differs(cells.difference):
        return cells.text, ""
    item, caption = shown_content(cells.difference)
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
    keys = _naming_columns(first, second)
    if keys:
        return _named_rows(first.set_index(keys), second.set_index(keys), names)
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


def _naming_columns(first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    """The first columns of text that tell all rows of either table apart; none where no such columns do."""
    texts = [name for name in first.columns if not pd.api.types.is_numeric_dtype(first[name])]
    # Lists in cells cannot be hashed, and name nothing.
    texts = [name for name in texts if all(isinstance(cell, str) for cell in (*first[name], *second[name]))]
    for n in range(1, len(texts) + 1):
        if not any(table.duplicated(texts[:n]).any() for table in (first, second)):
            return texts[:n]
    return []


def _named_rows(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]) -> Content:
    """Rows that are matched by their names: which table has them, and how far their numbers differ."""
    both = first.index.intersection(second.index)
    text = f"{len(both)} rows are in both"
    for table, other, name in ((first, second, names[0]), (second, first, names[1])):
        text += f", {len(table.index.difference(other.index))} in {name} alone"
    items: list[Any] = [f"{text}."]
    for column in first.columns:
        ours, theirs = (pd.Series(table.loc[both, column]) for table in (first, second))
        if ours.dtype.kind not in "iuf" or theirs.dtype.kind not in "iuf":
            n_other = int((ours.astype(str) != theirs.astype(str)).sum())
            different = f"different in {n_other} of {len(both)} rows"
            items.append(f"{column}: {different if n_other else 'the same'}.")
            continue
        table = pd.DataFrame({names[0]: ours, names[1]: theirs, "difference": theirs - ours}).dropna()
        differences = table["difference"].to_numpy()
        if not differences.any():
            items.append(f"{column}: the same.")
            continue
        items.append(
            f"{column}: the largest difference is {np.abs(differences).max():.4g}; the rank correlation of both is "
            f"{_rank_correlation(ours, theirs)}."
        )
        order = np.argsort(-np.abs(differences), kind="stable")
        items.append(table.iloc[order[:ROWS]].round(4).reset_index())
    return (
        items,
        f"Rows are matched by {', '.join(map(str, first.index.names))}; up to {ROWS} with the largest differences.",
    )


def _rank_correlation(a: pd.Series, b: pd.Series) -> str:
    """Spearman's correlation in words; it is not known where one side is the same in all rows."""
    correlation = a.corr(b, method="spearman") if a.nunique() > 1 and b.nunique() > 1 else np.nan
    return f"{correlation:.3f}" if np.isfinite(correlation) else "not defined"


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
    """Each row as text and how often it came before: equal rows of two tables are matched one to one."""
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
    if values is None or not is_number(values) or not bool(values.notnull().any()):
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
    if is_averaged(a) and is_averaged(b) and not a.get_index("example").equals(b.get_index("example")):
        a, b = a.mean("example", keep_attrs=True), b.mean("example", keep_attrs=True)
        prefix = "Means over other examples. "
    if set(a.dims) != set(b.dims):
        return _Cells(None, _axes_differ(a, b, names))
    numbers = is_number(a) and is_number(b)
    try:
        # Numbers are matched by their labels; text has to have the same labels, since it has no difference.
        join = "outer" if numbers else "exact"
        a, b = xr.align(a, b.transpose(*a.dims), join=join, copy=False)
    except ValueError:
        return _Cells(None, _axes_differ(a, b, names))
    if not numbers:
        n_different = int((a.values.astype(str) != b.values.astype(str)).sum())
        if n_different:
            return _Cells(None, f"Different in {n_different} of {a.size} cells.")
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
    return f"The axes differ: {results.axes_text(a)} in {names[0]}, {results.axes_text(b)} in {names[1]}."
