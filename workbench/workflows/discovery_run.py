"""`DiscoveryRun`: what `discover` measured, by name. `discover` makes it, `discover_page` draws it."""

from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from workbench.circuit.circuit import Circuit


@dataclass(frozen=True)
class DiscoveryRun:
    """What `discover` measured, and where it was written.

    Attributes:
        circuit: found on the training pairs.
        scores: of every edge, on the training pairs.
        heads: the effect of ablating each head, on the held-out pairs, as everything below.
        patching: the effect of patching the clean residual stream into the corrupt run.
        evaluation: the circuit on held-out and training pairs, beside its complement and random circuits.
        curve: faithfulness against circuit size, edges ranked by their scores.
        folder: where the files are.
        intervals: of the scores over prompts; None for methods that do not score single prompts.
        grown: faithfulness of the circuit's strongest edges by number; None where its edges have no scores.
    """

    circuit: Circuit
    scores: xr.DataArray
    heads: xr.DataArray
    patching: xr.DataArray
    evaluation: xr.Dataset
    curve: xr.Dataset
    folder: Path
    intervals: xr.Dataset | None = None
    grown: xr.Dataset | None = None

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"
