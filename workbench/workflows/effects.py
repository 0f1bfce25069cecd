"""One table of effects from names alone, with its picture: what `workbench effects` and `workbench paths` run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench import results
from workbench.engine.capture import capture_pairs
from workbench.engine.select import CallPlan
from workbench.engine.values import Value, value_named, zero
from workbench.errors import UnknownName, WorkbenchError
from workbench.files import check_output, replaced
from workbench.interventions.effects import effects
from workbench.interventions.explain import explain
from workbench.interventions.paths import path_effects
from workbench.prompts.pairs import PromptPairs
from workbench.render.plots import plot
from workbench.sites import KINDS, Shape, grid, kind_named
from workbench.statistics import summary
from workbench.tasks.registry import _READERS, find_task, pairs_of

VALUES = ("from_store", "zero", "mean", "resample")


@dataclass(frozen=True)
class Question:
    """What both commands have in common.

    Attributes:
        task: a task's name, or a .csv or .jsonl file of pairs.
        value: one of `VALUES`; `from_store` is the other run, `mean` and `resample` are over the run that is edited.
        metric: None takes the task's.
        base: "clean" or "corrupt": which run is edited.
    """

    task: str
    n: int = 64
    seed: int = 0
    variant: str | None = None
    value: str = "from_store"
    metric: str | None = None
    base: str = "clean"
    budget: int | None = None

    def check(self) -> None:
        """Raise `UnknownName` for a task or a value that there is not, before anything is loaded."""
        if Path(self.task).suffix.lower() not in _READERS:
            find_task(self.task)
        if self.value not in VALUES:
            raise UnknownName("value", self.value, VALUES)
        if self.base not in ("clean", "corrupt"):
            raise UnknownName("base", self.base, ("clean", "corrupt"))

    def effects(
        self, model: Any, *, kind: str, pos: str = "all", method: str = "exact", dry_run: bool = False
    ) -> xr.DataArray | CallPlan:
        """The effect of every site of a kind; `pos` is "all", "each", or positions separated by commas."""
        kind_named(kind)
        sites = grid(
            kind, model, pos=pos if pos in ("all", "each") else [_position(each) for each in pos.split(",")]
        )
        asked, pairs = self._asked(model, [kind])
        if dry_run:
            return explain(model, pairs, sites=sites, **asked)
        return effects(model, pairs, sites=sites, method=method, **asked)

    def paths(self, model: Any, *, dry_run: bool = False, **nodes: Any) -> xr.DataArray | CallPlan:
        """The effect of every path: `senders` and `receivers`, or `paths`, and `mlps`."""
        shape = Shape.of(model)
        kinds = [kind for kind in ("resid_pre", "z", "mlp_out", "mlp_post") if not shape.lacks(KINDS[kind])]
        asked, pairs = self._asked(model, kinds)
        return (
            explain(model, pairs, **nodes, **asked)
            if dry_run
            else path_effects(model, pairs, **nodes, **asked)
        )

    def _asked(self, model: Any, kinds: Sequence[str]) -> tuple[dict[str, Any], PromptPairs]:
        pairs = pairs_of(self.task, model, n=self.n, seed=self.seed, variant=self.variant)
        metric = self.metric or pairs.metric
        return {
            "value": self._value(model, pairs, kinds),
            "metric": metric,
            "base": self.base,
            "budget": self.budget,
        }, pairs

    def _value(self, model: Any, pairs: PromptPairs, kinds: Sequence[str]) -> Value:
        if self.value == "zero":
            return zero()
        clean, corrupt = capture_pairs(model, pairs, sites=kinds, budget=self.budget)
        own, other = (clean, corrupt) if self.base == "clean" else (corrupt, clean)
        return value_named(self.value, own=own, other=other, seed=self.seed)


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
    order = np.argsort(-np.nan_to_num(np.abs(table["mean"].values)).ravel(), kind="stable")[:most]
    lines = []
    for number in order:
        at = np.unravel_index(number, table["mean"].shape)
        names = [f"{axis} {table[axis].values[i]}" for axis, i in zip(table["mean"].dims, at, strict=True)]
        lines.append(
            f"{', '.join(names):40} {float(table['mean'].values[at]):+.4f} ± {float(table['se'].values[at]):.4f}"
        )
    return lines


def _picture(result: xr.DataArray) -> Any:
    """A heatmap of at most two axes: heads or neurons of every layer become one axis where positions are the other."""
    facts = result.attrs
    into = (
        f"paths into {', '.join(map(str, result['reader'].values[:3]))}"
        if "reader" in result.dims
        else "paths"
    )
    title = f"{facts.get('task') or 'own prompts'} in {facts['model']}: {facts.get('sites', into)}, {facts['value']}"
    shown = result.mean("example", skipna=True, keep_attrs=True)
    single = [axis for axis in ("pos", "query_pos") if shown.sizes.get(axis) == 1]
    shown = shown.squeeze(single, drop=True) if shown.ndim > 2 else shown
    unit = next((axis for axis in ("head", "kv_head", "neuron") if axis in shown.dims), None)
    if shown.ndim == 3 and unit and "layer" in shown.dims:
        names = [f"{layer}.{number}" for layer in shown["layer"].values for number in shown[unit].values]
        last = next(str(axis) for axis in shown.dims if axis not in ("layer", unit))
        flat = shown.transpose("layer", unit, last).values.reshape(len(names), -1)
        shown = xr.DataArray(
            flat,
            dims=(unit, last),
            coords={unit: names, last: shown[last].values},
            name=shown.name,
            attrs=facts,
        )
    if "writer" in shown.dims:
        shown = _senders_across(shown)
    if shown.ndim > 2:
        raise WorkbenchError(
            f"A result with axes {', '.join(map(str, result.dims))} has no picture: name fewer positions."
        )
    return plot(shown, title=title)


def _senders_across(shown: xr.DataArray) -> xr.DataArray:
    """Layer x head where heads are the only senders and there is one reader; else readers x writers."""
    heads = [re.fullmatch(r"a(\d+)\.(\d+)", str(name)) for name in shown["writer"].values]
    if shown.sizes["reader"] > 1 or not all(heads):
        return shown.transpose("reader", "writer")
    places = [(int(found[1]), int(found[2])) for found in heads if found]
    table = np.full((max(layer for layer, _ in places) + 1, max(head for _, head in places) + 1), np.nan)
    for (layer, head), effect in zip(places, shown.values[:, 0], strict=True):
        table[layer, head] = effect
    coords = {"layer": np.arange(table.shape[0]), "head": np.arange(table.shape[1])}
    return xr.DataArray(table, dims=("layer", "head"), coords=coords, name=shown.name, attrs=shown.attrs)


def _position(text: str) -> int | str:
    return int(text) if text.strip().isdigit() else text.strip()
