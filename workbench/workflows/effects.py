"""One table of effects from names, with its picture: what `workbench effects` and `workbench paths` run.

A `Question` says what is asked, in names; `write` saves the answer, `strongest` puts it into lines of text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from workbench import results
from workbench.engine.named_values import canonical_name
from workbench.engine.select import CallPlan
from workbench.errors import WorkbenchError
from workbench.experiment import PairsInModel, writer_kinds
from workbench.files import check_output, replaced
from workbench.interventions.effects import effects
from workbench.interventions.explain import explain
from workbench.interventions.paths import path_effects
from workbench.models.model import Model
from workbench.render.plots import plot
from workbench.sites import Position, grid, kind_named
from workbench.statistics import summary
from workbench.tasks.registry import PAIR_READERS, pairs_of
from workbench.tasks.task import find_task

# The values of `named_values.NAMES` that need only the prompts: no number (`constant:X`, `scale:X`), no fit
# (`optimal`).
VALUES = ("clean", "corrupt", "zero", "mean", "resample")
"""What can be written; of `clean` and `corrupt` the one that is not edited."""
Nodes = Sequence[str | tuple[str, ...]]
"""Names of writers or readers; a tuple is a set that is patched together."""


@dataclass(frozen=True)
class Question:
    """What both commands have in common.

    Attributes:
        task: a task's name, or a file of pairs.
        n: pairs of a task.
        seed: of the prompts, and of resample.
        value: one of `VALUES`; None is the run that is not edited. `mean` and `resample` are over the run
            that is edited.
        metric: None takes the task's.
        base: "clean" or "corrupt": which run is edited.
        budget: bytes of working memory.
    """

    task: str
    n: int = 64
    seed: int = 0
    variant: str | None = None
    value: str | None = None
    metric: str | None = None
    base: str = "clean"
    budget: int | None = None

    def check(self) -> None:
        """Refuse what is not known before anything is loaded.

        Raises:
            UnknownName: no such task, value or base.
            EditError: the value is the run that is edited.
        """
        if Path(self.task).suffix.lower() not in PAIR_READERS:
            find_task(self.task)
        canonical_name(self.value, base=self.base, choices=VALUES)

    def effects(
        self, model: Model, *, kind: str, pos: str = "all", method: str = "exact", dry_run: bool = False
    ) -> xr.DataArray | CallPlan:
        """The effect of every site of a kind, or what that would take.

        Args:
            pos: "all", "each", or positions separated by commas.
        """
        kind_named(kind, words=True)  # an unknown kind is refused before prompts are made
        positions = pos
        if pos not in ("all", "each"):
            positions = list(map(_position, pos.split(",")))
        sites, data = grid(kind, model, pos=positions), self._pairs_in(model, [kind])
        # Captures activations where the value needs them, even for a plan: it is checked against the prompts.
        value = data.value(self.value)
        if dry_run:
            return explain(
                model,
                data.pairs,
                sites=sites,
                value=value,
                metric=data.metric,
                base=self.base,
                budget=self.budget,
            )
        return effects(
            model,
            data.pairs,
            sites=sites,
            method=method,
            value=value,
            metric=data.metric,
            base=self.base,
            budget=self.budget,
        )

    def paths(
        self,
        model: Model,
        *,
        senders: Nodes | str | None = None,
        receivers: Nodes | None = None,
        paths: Sequence[str] | None = None,
        mlps: str = "frozen",
        dry_run: bool = False,
    ) -> xr.DataArray | CallPlan:
        """The effect of every path, or what that would take; arguments as in `path_effects`."""
        data = self._pairs_in(model, writer_kinds(model))
        value = data.value(self.value)
        measure = explain if dry_run else path_effects
        return measure(
            model,
            data.pairs,
            senders=senders,
            receivers=receivers,
            paths=paths,
            mlps=mlps,
            value=value,
            metric=data.metric,
            base=self.base,
            budget=self.budget,
        )

    def _pairs_in(self, model: Model, sites: Sequence[str]) -> PairsInModel:
        pairs = pairs_of(self.task, model, n=self.n, seed=self.seed, variant=self.variant)
        return PairsInModel.of(
            model,
            pairs,
            metric=self.metric or None,
            base=self.base,
            sites=sites,
            seed=self.seed,
            budget=self.budget,
        )


def write(result: xr.DataArray, folder: Path, name: str, *, overwrite: bool = False) -> tuple[Path, Path]:
    """Save a result as `NAME.nc` and its picture as `NAME.png` in a folder.

    Raises:
        OutputExists: they are there already.
    """
    files = (f"{name}.nc", f"{name}.png")
    check_output(folder, files, overwrite=overwrite)
    with replaced(folder, files, overwrite=overwrite) as partial:
        results.save(result, partial / files[0])
        _picture(result).savefig(partial / files[1], dpi=150)
    return folder / files[0], folder / files[1]


def strongest(result: xr.DataArray, most: int = 8) -> list[str]:
    """The cells of largest mean effect, a line each, with the standard error over examples."""
    table = summary(result)
    means, errors = table["mean"], table["se"]
    # NaN cells count as 0 and come last; a stable sort keeps ties in the order of the axes.
    order = np.argsort(-np.nan_to_num(np.abs(means.values)).ravel(), kind="stable")[:most]
    lines = []
    for number in order:
        cell = np.unravel_index(number, means.shape)
        labels = [f"{axis} {table[axis].values[i]}" for axis, i in zip(means.dims, cell, strict=True)]
        lines.append(
            f"{', '.join(labels):40} {float(means.values[cell]):+.4f} ± {float(errors.values[cell]):.4f}"
        )
    return lines


def _picture(result: xr.DataArray) -> Figure:
    """A heatmap of at most two axes: beside positions, heads or neurons of all layers share one axis."""
    # A picture has two axes, so the mean over prompts is drawn; the table keeps every prompt.
    shown = result.mean("example", skipna=True, keep_attrs=True)
    single = [axis for axis in ("pos", "query_pos") if shown.sizes.get(axis) == 1]
    # One named position needs no axis; with two axes left it is kept as a column.
    if shown.ndim > 2:
        shown = shown.squeeze(single, drop=True)
    units = [axis for axis in ("head", "kv_head", "neuron") if axis in shown.dims]
    if shown.ndim == 3 and units and "layer" in shown.dims:
        shown = _layers_and_units(shown, units[0])
    if "writer" in shown.dims:
        shown = _senders_across(shown)
    if shown.ndim > 2:
        raise WorkbenchError(
            f"A result with axes {', '.join(map(str, result.dims))} has no picture: name fewer positions."
        )
    return plot(shown, title=_title(result))


def _title(result: xr.DataArray) -> str:
    facts = result.attrs
    sites = facts.get("sites", "paths")
    if "reader" in result.dims:
        sites = f"paths into {', '.join(map(str, result['reader'].values[:3]))}"
    return f"{facts.get('task') or 'own prompts'} in {facts['model']}: {sites}, {facts['value']}"


def _layers_and_units(shown: xr.DataArray, unit: str) -> xr.DataArray:
    """(layer, unit, other axis) as (unit, other axis), the units named `layer.number`."""
    other = next(str(axis) for axis in shown.dims if axis not in ("layer", unit))
    names = [f"{layer}.{number}" for layer in shown["layer"].values for number in shown[unit].values]
    flat = shown.transpose("layer", unit, other).values.reshape(len(names), -1)
    coords = {unit: names, other: shown[other].values}
    return xr.DataArray(flat, dims=(unit, other), coords=coords, name=shown.name, attrs=shown.attrs)


def _senders_across(shown: xr.DataArray) -> xr.DataArray:
    """Layer x head where heads are the only senders and there is one reader; else readers x writers."""
    parsed = [re.fullmatch(r"a(\d+)\.(\d+)", str(name)) for name in shown["writer"].values]
    heads = [(int(match[1]), int(match[2])) for match in parsed if match]
    # Layer by head has room for neither MLPs and the input, nor a second reader.
    if shown.sizes["reader"] > 1 or len(heads) < len(parsed):
        return shown.transpose("reader", "writer")
    n_layers, n_heads = np.max(heads, axis=0) + 1
    # Heads that no path goes from stay NaN, which is drawn as not measured.
    table = np.full((n_layers, n_heads), np.nan)
    for head, effect in zip(heads, shown.values[:, 0], strict=True):
        table[head] = effect
    coords = {"layer": np.arange(n_layers), "head": np.arange(n_heads)}
    return xr.DataArray(table, dims=("layer", "head"), coords=coords, name=shown.name, attrs=shown.attrs)


def _position(text: str) -> Position:
    name = text.strip()
    if name.isdigit():
        return int(name)
    return name
