"""Probes over a store with a page that shows them: what `workbench probe` runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench import results
from workbench.errors import ProbeError
from workbench.files import check_output, replaced
from workbench.probes.fit import Probes, fit_probes
from workbench.probes.labels import Labels
from workbench.probes.neurons import neuron_maps
from workbench.render.figures.probe_plots import probe_figure
from workbench.render.report import report
from workbench.sites import Position
from workbench.statistics import interval_text
from workbench.stores.store import ActivationStore

FILES = ("probes.nc", "neurons.nc", "probes.html")
SHOWN_NEURONS = 5


@dataclass(frozen=True, eq=False)
class Probed:
    """Probes of a store's concepts.

    Attributes:
        probes: see `fit_probes`.
        neurons: what every MLP neuron tells of each concept by itself (`neuron_maps`), or None where the store holds no
            `mlp_post` or no concept has classes.
    """

    labels: Labels
    probes: Probes
    neurons: xr.Dataset | None


def labels_named(
    store: ActivationStore,
    *,
    file: str | Path | None,
    concepts: Sequence[str],
    pos: Sequence[Position] | None,
) -> Labels:
    """Labels from a .csv or .jsonl file, or of concepts by name (see `Labels.of_concepts`) read at `pos` (END unless told).

    Raises:
        ProbeError: neither or both are given, or the file is of another kind.
    """
    if (file is None) == (not concepts):
        raise ProbeError(
            "Give --labels, a .csv or .jsonl file, or --concepts, names such as number,gender or named positions."
        )
    if file is None:
        return Labels.of_concepts(store, concepts, pos=list(pos or ["END"]))
    read = {".csv": Labels.from_csv, ".jsonl": Labels.from_jsonl}.get(Path(file).suffix.lower())
    if read is None:
        raise ProbeError(f"{str(file)!r}: labels are read from .csv and .jsonl files.")
    return read(store, file)


def probe(store: ActivationStore, labels: Labels, **how: Any) -> Probed:
    """`fit_probes` with these arguments, and a probe of every single neuron of the same layers and rows."""
    probes = fit_probes(store, labels, **how)
    known = [concept.name for concept in labels.concepts if concept.classes]
    if "mlp_post" not in store.kinds or not known:
        return Probed(labels, probes, None)
    named = Labels(labels.prompts, labels.prompt, labels.pos, tuple(c for c in labels.concepts if c.classes))
    kept = {
        name: how[name] for name in ("layers", "test_share", "seed", "budget") if how.get(name) is not None
    }
    places = how.get("pos")
    if places is None:
        return Probed(labels, probes, neuron_maps(store, named, **kept))
    maps = [neuron_maps(store, named.at(where), **kept) for where in places]
    return Probed(labels, probes, xr.concat(maps, pd.Index([str(where) for where in places], name="pos")))


def best_table(probes: Probes) -> pd.DataFrame:
    """For each concept, kind and k, the site that tells most, its features, and its controls."""
    whole, rows = probes.results, []
    if "kind" not in whole.dims:
        whole = whole.expand_dims(kind=[whole.attrs["kinds"]])
    kinds = whole["control_kind"].values
    for concept, kind in product(whole["concept"].values, whole["kind"].values):
        table = whole.sel(concept=concept, kind=kind)
        outer = [axis for axis in table["accuracy"].dims if axis not in ("k", "control")]
        measure = "accuracy" if bool(table["accuracy"].notnull().any()) else "r2"
        for k in table["k"].values:
            cells = table.sel(k=k).stack(site=outer)
            main = cells.sel(control="none")
            if not bool(main[measure].notnull().any()):
                continue
            at = int(main[measure].fillna(-np.inf).argmax("site"))
            best = main.isel(site=at)
            place = dict(zip(outer, best["site"].item(), strict=True))
            row = {
                "concept": str(concept),
                "kind": str(kind),
                "k": int(k),
                **{name: str(label) for name, label in place.items()},
            }
            row |= {"measure": measure, "value": round(float(best[measure]), 3)}
            row["interval"] = interval_text(float(best[f"{measure}_low"]), float(best[f"{measure}_high"]))
            for null in dict.fromkeys(kinds[kinds != "none"]):
                row[str(null)] = round(
                    float(cells[measure].isel(site=at, control=np.flatnonzero(kinds == null)).mean()), 3
                )
            features = best["feature"].values
            row["features"] = " ".join(str(int(f)) for f in features[features >= 0][:8]) + (
                " …" if int(k) > 8 else ""
            )
            rows.append(row)
    return pd.DataFrame(rows)


def neuron_table(neurons: xr.Dataset) -> pd.DataFrame:
    """The neurons that tell each concept best by themselves, by how far the area under the ROC curve is from a half."""
    rows = []
    for concept in neurons["concept"].values:
        cell = neurons.sel(concept=concept)
        apart = abs(cell["roc_auc"] - 0.5)
        apart = apart.stack(at=apart.dims)
        order = apart.fillna(-1).argsort()[::-1][:SHOWN_NEURONS]
        for at in order.values:
            where = dict(
                zip(("pos", "layer", "neuron")[-cell["roc_auc"].ndim :], _place(apart, at), strict=True)
            )
            one = cell.sel(where)
            facts = {name: round(float(one[name]), 3) for name in ("roc_auc", "accuracy", "coefficient")}
            site = f"mlp_post[{where['layer']}:{where['neuron']}]" + (
                f"@{where['pos']}" if "pos" in where else ""
            )
            rows.append({"concept": str(concept), "neuron": site, **facts})
    return pd.DataFrame(rows)


def _place(stacked: xr.DataArray, at: int) -> tuple[Any, ...]:
    """The labels of one cell of an array whose axes are stacked."""
    return stacked["at"].values[at]


def lines(found: Probed) -> list[str]:
    """What a command prints: the best site of each concept and k."""
    return best_table(found.probes).to_string(index=False).splitlines()


def write(found: Probed, folder: Path, *, command: str, source: str, overwrite: bool = False) -> list[Path]:
    """Results as netCDF and a page. Raises `OutputExists` when they are there already."""
    files = [name for name in FILES if name != "neurons.nc" or found.neurons is not None]
    check_output(folder, files, overwrite=overwrite)
    with replaced(folder, files, overwrite=overwrite) as partial:
        results.save(found.probes.results, partial / "probes.nc")
        if found.neurons is not None:
            results.save(found.neurons, partial / "neurons.nc")
        report(
            _sections(found),
            partial / "probes.html",
            title="What can be read where",
            subtitle=source,
            command=command,
        )
    return [folder / name for name in files]


def _sections(found: Probed) -> list[tuple[Any, ...]]:
    table = found.probes.results
    level = f"{float(table.attrs['level']):.0%}"
    sections: list[tuple[Any, ...]] = [
        ("Concepts", _concepts(found.labels), "Rows are tokens. What is held out shares no prompt with what is learned from."),
        ("Best sites", best_table(found.probes), f"The site that tells each concept best for each number of features, with its {level} interval over held-out prompts; being the best of several it is a little too good. Columns of controls: the mean over their draws at the same site."),
    ]  # fmt: skip
    for where in _panels(table):
        cell, dense = table.sel(where), found.probes.baselines
        figures = []
        for concept in table["concept"].values:
            inner = {axis: label for axis, label in where.items() if dense is not None and axis in dense.dims}
            figures.append(probe_figure(cell, None if dense is None else dense.sel(inner), str(concept)))
        place = ", ".join(str(label) for label in where.values())
        caption = f"Held-out score at every layer; the band is the {level} interval of the largest k. Dashed: controls at that k, mean and range of their draws."
        sections.append((f"By layer{': ' + place if place else ''}", figures, caption))
    if found.neurons is not None:
        caption = "Single neurons, each with a probe of its own; for several classes, each class against the rest. 0.5 is chance for roc_auc."
        sections.append(("Neurons", neuron_table(found.neurons), caption))
    return sections


def _panels(table: xr.Dataset) -> list[dict[str, Any]]:
    """Each kind, position and selector: one group of pictures."""
    places: list[dict[str, Any]] = [{}]
    for axis in ("kind", "pos", "selector"):
        if axis in table["accuracy"].dims:
            places = [place | {axis: label} for place in places for label in table[axis].values.tolist()]
    return places


def _concepts(labels: Labels) -> pd.DataFrame:
    rows = []
    for concept in labels.concepts:
        counts = np.bincount(concept.codes.astype(int)) if concept.classes else np.array([])
        shown = ", ".join(
            f"{name} {n}" for name, n in list(zip(concept.classes, counts.tolist(), strict=True))[:6]
        )
        more = f" and {len(concept.classes) - 6} more" if len(concept.classes) > 6 else ""
        values = shown + more if concept.classes else f"{concept.codes.min():g} to {concept.codes.max():g}"
        rows.append({"concept": concept.name, "rows": len(labels), "values": values})
    return pd.DataFrame(rows)


def numbers(text: str | None, what: str) -> list[int] | None:
    """`1,2,4` as integers. Raises `ProbeError` for anything else."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ProbeError(f"{what} {text!r}: integers with commas are needed, as in 1,2,4.") from None


def options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `fit_probes` without those that were left out."""
    return {name: value for name, value in given.items() if value is not None}
