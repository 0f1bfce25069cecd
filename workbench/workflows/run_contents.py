"""What a page shows of one file of a run: a circuit, a picture of a result, or a table.

Read `shown_content`. A result that cannot be drawn is shown as a table where it is small enough.
"""

from typing import Any

import pandas as pd
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.errors import WorkbenchError
from workbench.render.circuit.view import CircuitView
from workbench.render.plots import plot

ROWS = 60
"""Rows of a table that are shown."""
Section = tuple[str, Any, str]
"""A title, what is shown, and its caption."""
Content = tuple[Any, str]
"""What is shown, and its caption."""


def shown_content(item: Any) -> Content:
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
        # No picture is no reason to show nothing: what is small enough becomes a table.
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
    if is_averaged(values):
        return values.mean("example")
    return values


def is_averaged(values: xr.DataArray) -> bool:
    """Whether the mean over examples is shown: numbers have one, text has not."""
    return "example" in values.dims and is_number(values)


def is_number(values: xr.DataArray) -> bool:
    return values.dtype.kind in "bfiu"
