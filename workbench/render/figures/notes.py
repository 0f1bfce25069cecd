"""What a figure says about its result: notes on means over examples, and the refusal of an empty one.

Begin with `over_examples`, which most figures apply first.
"""

import numpy as np
import xarray as xr

from workbench.errors import WorkbenchError


def axes_of(result: xr.DataArray) -> str:
    """The axes of a result for a message."""
    return ", ".join(map(str, result.dims)) or "none"


def noted(result: xr.DataArray, *notes: str) -> xr.DataArray:
    """The result with more notes, which its figure shows below the title."""
    known = list(filter(None, (result.attrs.get("note", ""), *notes)))
    if known:
        return result.assign_attrs(note=" · ".join(known))
    return result


def check_filled(result: xr.DataArray) -> None:
    """Raises `WorkbenchError` for a result without a cell, whose figure would be blank."""
    if not result.size:
        raise WorkbenchError(f"There is nothing to draw: the result has sizes {dict(result.sizes)}.")


def mean_note(result: xr.DataArray) -> str:
    """Of how many examples the cells are means; cells that were not measured are left out of a mean."""
    counts = np.unique(result.count("example"))
    counts = counts[counts > 0]  # a cell without any example is not a mean
    if not len(counts):
        counts = np.array([result.sizes["example"]])
    number = f"{counts[0]}"
    if len(counts) > 1:
        number += f" to {counts[-1]}"
    return f"mean of {number} examples"


def over_examples(result: xr.DataArray) -> xr.DataArray:
    """The mean over `example`, with a note that it is one; of a single example its own numbers."""
    if "example" not in result.dims:
        return result
    if result.sizes["example"] == 1:
        return result.isel(example=0)
    check_filled(result)
    # skipna, because short prompts have no number at the positions after their end
    return noted(result.mean("example", skipna=True, keep_attrs=True), mean_note(result))
