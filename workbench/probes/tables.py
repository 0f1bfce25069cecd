"""The labelled arrays that probes are written into (`Tables`): every cell is NaN until it is measured.

`judge.Judge` scores predictions; `cell_of` finds one cell of a result by its labels. Nothing is fitted here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from workbench.errors import ProbeError, UnknownName
from workbench.probes.baselines import Dense
from workbench.probes.concepts import Concept
from workbench.probes.controls import ColumnBatch, Control
from workbench.probes.fits import Fits
from workbench.probes.judge import Judge
from workbench.probes.metrics import METRICS
from workbench.probes.selected import Predictions
from workbench.results import as_labels

MEASURES = (*METRICS, *(f"{metric}_{end}" for metric in METRICS for end in ("low", "high")))
Cell = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ProbeDatasets:
    """Results of sparse probes and, where there are any, of baselines."""

    sparse: xr.Dataset
    dense: xr.Dataset | None


class Tables:
    """Results of sparse probes and of baselines as they come in.

    Args:
        axes: the outer axes, `kind`, `layer`, `pos` and `concept`, with their labels.
    """

    def __init__(
        self,
        axes: Mapping[str, Sequence[Any]],
        concepts: Sequence[Concept],
        controls: Sequence[Control],
        ks: Sequence[int],
        selectors: Sequence[str],
        baselines: Sequence[str],
    ) -> None:
        self.concepts = concepts
        names = as_labels([control.name for control in controls])
        self.control = {
            "control": names,
            "control_kind": ("control", as_labels([control.kind for control in controls])),
        }
        self.outputs = max(c.n_outputs for c in concepts)
        outer = {axis: list(labels) for axis, labels in axes.items()}
        self.sparse = _CellTable(
            {**outer, "k": list(ks), "selector": list(selectors), "control": list(names)}
        )
        self.dense = _CellTable({**outer, "baseline": list(baselines), "control": list(names)})
        for name in (*MEASURES, "converged", "decrement", "iterations", "n", "n_train", "code_length"):
            self.sparse.add(name)
        for name in (*MEASURES, "converged", "n", "n_train"):
            self.dense.add(name)
        self.sparse.add("feature", slot=max(ks))
        self.sparse.add("coefficient", output=self.outputs, slot=max(ks))
        self.sparse.add("intercept", output=self.outputs)
        self.dense.add("intercept", output=self.outputs)

    def put(
        self,
        outer: Cell,
        k: int,
        selector: int,
        batch: ColumnBatch,
        kept: Fits,
        predictions: Predictions,
        judge: Judge,
    ) -> None:
        """All columns of a batch: the kept probes, and how good the held-out predictions are."""
        features, coefficients = kept.features.numpy(), kept.coefficients.numpy()
        outputs, width = coefficients.shape[1:]
        for c, (concept, control) in enumerate(batch.cells):
            cell = (*outer, concept, k, selector, control)
            self.sparse.put(cell, self._measured(batch, c, predictions, judge))
            solver = {
                name: float(getattr(kept, name)[c]) for name in ("converged", "decrement", "iterations")
            }
            self.sparse.put(cell, solver | {"n_train": float(batch.columns.train[c].sum())})
            self.sparse.values["feature"][cell][:width] = features[c]
            self.sparse.values["coefficient"][cell][:outputs, :width] = coefficients[c]
            self.sparse.values["intercept"][cell][:outputs] = kept.intercept[c].numpy()

    def put_lengths(
        self, outer: Cell, selector: int, batch: ColumnBatch, lengths: Float[np.ndarray, "k column"]
    ) -> None:
        """Code lengths in bits."""
        for c, (concept, control) in enumerate(batch.cells):
            for k, length in enumerate(lengths[:, c]):
                self.sparse.put((*outer, concept, k, selector, control), {"code_length": float(length)})

    def put_dense(
        self,
        outer: Cell,
        baseline: int,
        batch: ColumnBatch,
        kept: Dense,
        predictions: Predictions,
        judge: Judge,
    ) -> None:
        """All columns of a batch; the direction of the probes on true labels is kept too."""
        for c, (concept, control) in enumerate(batch.cells):
            cell = (*outer, concept, baseline, control)
            train = float(batch.columns.train[c].sum())
            self.dense.put(cell, self._measured(batch, c, predictions, judge) | {"n_train": train})
            self.dense.put(cell, {"converged": float(kept.converged[c])})
            self.dense.values["intercept"][cell][: kept.intercept.shape[1]] = kept.intercept[c].numpy()
            if self.control["control"][control] == "none":
                direction = kept.direction[c].numpy()
                self.dense.widen("direction", self.outputs, direction.shape[1])
                self.dense.values["direction"][cell[:-1]][: len(direction), : direction.shape[1]] = direction

    def _measured(
        self, batch: ColumnBatch, c: int, predictions: Predictions, judge: Judge
    ) -> dict[str, float]:
        """The measures of one column; none where a prediction is not a number."""
        logits, codes = predictions.logits[c], predictions.codes[c]
        seen = np.isfinite(codes)
        if not np.isfinite(logits[:, seen]).all():
            return {"n": float(seen.sum())}
        return {**judge(logits, codes, seen, batch.columns.n_classes), "n": float(seen.sum())}

    def datasets(self, attrs: Mapping[str, Any], *, drop: Sequence[str]) -> ProbeDatasets:
        """The results, without the outer axes to drop (each of one label)."""
        classes = np.full((len(self.concepts), self.outputs), "", dtype=object)
        for row, concept in zip(classes, self.concepts, strict=True):
            shown = concept.classes[1:] if len(concept.classes) == 2 else concept.classes
            row[: len(shown)] = as_labels(shown)
        coords = {**self.control, "class_name": (("concept", "output"), classes)}

        def labelled(table: _CellTable) -> xr.Dataset:
            """A table with what both have in common."""
            dataset = table.dataset().assign_coords(coords).assign_attrs(attrs)
            return dataset.isel(dict.fromkeys(drop, 0), drop=True)

        has_baselines = len(self.dense.axes["baseline"]) > 0
        return ProbeDatasets(labelled(self.sparse), labelled(self.dense) if has_baselines else None)


class _CellTable:
    """Arrays over the same axes, each with inner axes of its own."""

    def __init__(self, axes: Mapping[str, list[Any]]) -> None:
        self.axes = dict(axes)
        self.shape = tuple(map(len, axes.values()))
        self.values: dict[str, np.ndarray] = {}
        self.dims: dict[str, tuple[str, ...]] = {}

    def add(self, name: str, **inner: int) -> None:
        """A new array of NaN, with inner axes of these sizes."""
        self.values[name] = np.full((*self.shape, *inner.values()), np.nan)
        self.dims[name] = (*self.axes, *inner)
        if name == "feature":
            self.values[name] = np.full(self.values[name].shape, -1)

    def widen(self, name: str, outputs: int, features: int) -> None:
        """Room for directions of that many features; control is not an axis of them."""
        old = self.values.get(name)
        if old is None or old.shape[-1] < features:
            self.values[name] = np.full((*self.shape[:-1], outputs, features), np.nan)
            self.dims[name] = (*list(self.axes)[:-1], "output", "feature")
            if old is not None:
                self.values[name][..., : old.shape[-1]] = old

    def put(self, cell: Cell, measured: Mapping[str, float]) -> None:
        """Write numbers into one cell of their arrays."""
        for name, value in measured.items():
            self.values[name][cell] = value

    def dataset(self) -> xr.Dataset:
        """All arrays with their axes labelled."""
        coords: dict[str, Any] = {}
        for axis, labels in self.axes.items():
            if len(labels):
                coords[axis] = as_labels(labels) if isinstance(labels[0], str) else labels
        return xr.Dataset(
            {name: (self.dims[name], values) for name, values in self.values.items()}, coords=coords
        )


def cell_of(table: xr.Dataset, where: Mapping[str, Any]) -> xr.Dataset:
    """The one cell that these labels name.

    Args:
        where: axis → label; a position may be an index.

    Raises:
        UnknownName: an axis or a label that does not exist.
        ProbeError: an axis is left open.
    """
    inner = ("output", "slot", "feature")
    for axis, label in where.items():
        if axis not in table.dims:
            raise UnknownName("axis", axis, map(str, table.dims))
        known = _labels(table, axis)
        wanted = str(label) if axis == "pos" else label
        if wanted not in known:
            raise UnknownName(str(axis), label, map(str, known))
        table = table.isel({axis: known.index(wanted)})
    open_axes = [str(axis) for axis in table.sizes if axis not in inner or axis == "output"]
    for axis in open_axes:
        # The table has as many outputs as the concept with most classes needs. A concept of two classes has
        # one output, the first.
        one_output = axis == "output" and table.sizes[axis] > 1 and str(table["class_name"].values[1]) == ""
        if table.sizes[axis] > 1 and not one_output:
            raise ProbeError(
                f"Which {axis}? There are {', '.join(map(str, _labels(table, axis)))}: give {axis}=."
            )
        table = table.isel({axis: 0})
    return table


def _labels(table: xr.Dataset, axis: str) -> list[Any]:
    """The labels of an axis; its indices where it has none."""
    return table[axis].values.tolist() if axis in table.coords else list(range(table.sizes[axis]))
