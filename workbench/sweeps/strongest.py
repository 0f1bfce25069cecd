"""The rows of a sweep that are shown where not all fit: `strongest`."""

import pandas as pd

from workbench.sweeps.table import Sweep

ROWS = 30


def strongest(sweep: Sweep, most: int = ROWS) -> tuple[pd.DataFrame, str]:
    """The first rows of `Sweep.summary`, and its caption with how many there are."""
    rows = sweep.summary()
    caption = str(rows.attrs["caption"])
    if len(rows) > most:
        caption = f"The first {most} of {caption}"
    return rows.head(most), caption
