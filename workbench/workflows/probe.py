"""Probes over a store with a page that shows them: what `workbench probe` runs.

`labels_named` reads the labels, `probe` fits, `write` leaves the files; `best_table` and `neuron_table` are
the summaries.
"""

from collections.abc import Sequence
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
from workbench.probes.concepts import Concept
from workbench.probes.fit import Probes, fit_probes
from workbench.probes.labels import Labels
from workbench.probes.neurons import neuron_maps
from workbench.render.cards.headlines import probe_rows, probes_headline
from workbench.render.figures.probe_plots import probe_figure
from workbench.render.page import KeyNumber, Lead
from workbench.render.report import report
from workbench.sites import Position
from workbench.statistics import interval_text
from workbench.stores.store import ActivationStore
from workbench.text import listed

FILES = ("probes.nc", "neurons.nc", "probes.html")
SHOWN_NEURONS = 5
SHOWN_CLASSES = 6
Section = tuple[str, Any, str]


@dataclass(frozen=True, eq=False)
class Probed:
    """Probes of a store's concepts.

    Attributes:
        probes: see `fit_probes`.
        neurons: what every MLP neuron tells of each concept by itself (`neuron_maps`), or None where the
            store holds no `mlp_post` or no concept has classes.
    """

    labels: Labels
    probes: Probes
    neurons: xr.Dataset | None


CONTROLS = ("shuffle", "random-features", "control-task")


def labels_named(
    store: ActivationStore,
    *,
    file: str | Path | None,
    concepts: Sequence[str],
    pos: Sequence[Position] | None,
) -> Labels:
    """Labels from a .csv or .jsonl file, or of concepts by name (see `Labels.of_concepts`) read at `pos`;
    None is END.

    Raises:
        ProbeError: neither or both are given, or the file is of another kind.
    """
    if (file is None) == (not concepts):
        raise ProbeError(
            "Give --labels, a .csv or .jsonl file, or --concepts, names such as number,gender or named "
            "positions."
        )
    if file is None:
        return Labels.of_concepts(store, concepts, pos=list(pos or ["END"]))
    readers = {".csv": Labels.from_csv, ".jsonl": Labels.from_jsonl}
    read = readers.get(Path(file).suffix.lower())
    if read is None:
        raise ProbeError(f"{str(file)!r}: labels are read from .csv and .jsonl files.")
    return read(store, file)


def probe(store: ActivationStore, labels: Labels, **settings: Any) -> Probed:
    """`fit_probes` with these settings, and a probe of every single neuron of the same layers and rows."""
    # Neurons are read from the same rows and split, so that both tables can be compared.
    probes = fit_probes(store, labels, **settings)
    # Neuron maps rank by the area under the ROC curve, which needs classes.
    with_classes = tuple(concept for concept in labels.concepts if concept.classes)
    if "mlp_post" not in store.kinds or not with_classes:
        return Probed(labels, probes, None)
    classified = Labels(labels.prompts, labels.prompt, labels.pos, with_classes)
    shared = {}
    for name in ("layers", "test_share", "seed", "budget"):
        if settings.get(name) is not None:
            shared[name] = settings[name]
    positions = settings.get("pos")
    if positions is None:
        return Probed(labels, probes, neuron_maps(store, classified, **shared))
    maps = [neuron_maps(store, classified.at(position), **shared) for position in positions]
    index = pd.Index(list(map(str, positions)), name="pos")
    return Probed(labels, probes, xr.concat(maps, index))


def best_table(probes: Probes) -> pd.DataFrame:
    """The site with the best probe for each concept, kind and k, with its features and its controls."""
    results = probes.results
    if "kind" not in results.dims:
        results = results.expand_dims(kind=[results.attrs["kinds"]])
    rows = []
    for concept, kind in product(results["concept"].values, results["kind"].values):
        table = results.sel(concept=concept, kind=kind)
        for k in table["k"].values:
            best = _best_cells(table.sel(k=k))
            if best is not None:
                rows.append(
                    {"concept": str(concept), "kind": str(kind), "k": int(k), **_best_row(best, int(k))}
                )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Best:
    """The site with the highest held-out score: its cells (control,), the score, its labels by axis."""

    cells: xr.Dataset
    measure: str
    site: dict[str, str]


def _best_cells(table: xr.Dataset) -> _Best | None:
    """The best site of a table (control, site axes ...); None where nothing was measured."""
    # Accuracy is NaN where the concept is a number: its probes are regressions.
    measure = "r2"
    if bool(table["accuracy"].notnull().any()):
        measure = "accuracy"
    axes = [axis for axis in table["accuracy"].dims if axis != "control"]
    cells = table.stack(site=axes)
    scores = cells[measure].sel(control="none")
    if not bool(scores.notnull().any()):
        return None
    # The controls are read at the site that is best without them, not at their own best.
    best = cells.isel(site=int(scores.fillna(-np.inf).argmax("site")))
    labels = dict(zip(map(str, axes), map(str, best["site"].item()), strict=True))
    return _Best(best, measure, labels)


def _best_row(best: _Best, k: int) -> dict[str, Any]:
    main, measure = best.cells.sel(control="none"), best.measure
    row: dict[str, Any] = {**best.site, "measure": measure, "value": round(float(main[measure]), 3)}
    row["interval"] = interval_text(float(main[f"{measure}_low"]), float(main[f"{measure}_high"]))
    kinds = best.cells["control_kind"].values
    for kind in dict.fromkeys(kinds[kinds != "none"]):
        draws = best.cells[measure].isel(control=np.flatnonzero(kinds == kind))
        row[str(kind)] = round(float(draws.mean()), 3)
    features = main["feature"].values
    # Probes of fewer features are filled up with -1, which is no feature.
    row["features"] = " ".join(map(str, features[features >= 0][:8].astype(int)))
    if k > 8:
        row["features"] += " …"
    return row


def neuron_table(neurons: xr.Dataset) -> pd.DataFrame:
    """The neurons that tell each concept best by themselves, by how far the area under the ROC curve is from
    a half.
    """
    rows = []
    axes = [axis for axis in ("pos", "layer", "neuron") if axis in neurons["roc_auc"].dims]
    for concept in neurons["concept"].values:
        maps = neurons.sel(concept=concept)
        # A neuron may tell a concept by being low, so both sides of chance count.
        distance = abs(maps["roc_auc"] - 0.5).stack(cell=axes)
        order = distance.fillna(-1).argsort()[::-1][:SHOWN_NEURONS]
        for i in order.values:
            cell = dict(zip(axes, distance["cell"].values[i], strict=True))
            measured = maps[["roc_auc", "accuracy", "coefficient"]].sel(cell)
            numbers = {str(name): round(float(value), 3) for name, value in measured.data_vars.items()}
            site = f"mlp_post[{cell['layer']}:{cell['neuron']}]"
            if "pos" in cell:
                site += f"@{cell['pos']}"
            rows.append({"concept": str(concept), "neuron": site, **numbers})
    return pd.DataFrame(rows)


def lines(probed: Probed) -> list[str]:
    """What a command prints: the best site of each concept and k."""
    return best_table(probed.probes).to_string(index=False).splitlines()


def write(probed: Probed, folder: Path, *, command: str, source: str, overwrite: bool = False) -> list[Path]:
    """Write results as netCDF and a page; returns the paths.

    Raises:
        OutputExists: they are there already.
    """
    files = [name for name in FILES if name != "neurons.nc" or probed.neurons is not None]
    check_output(folder, files, overwrite=overwrite)
    with replaced(folder, files, overwrite=overwrite) as partial:
        results.save(probed.probes.results, partial / "probes.nc")
        if probed.neurons is not None:
            results.save(probed.neurons, partial / "neurons.nc")
        report(
            _sections(probed),
            partial / "probes.html",
            title="What can be read where",
            lead=_lead(probed, source),
            command=command,
        )
    return [folder / name for name in files]


def _lead(probed: Probed, source: str) -> Lead:
    """What was probed, the best probe of each concept beside its controls, and what a probe cannot show."""
    rows = probe_rows(probed.probes.results)
    numbers = []
    for row in rows[:8]:
        # Each draw of a control has a column of its own; the best of them is what the probe has to beat.
        draws = {name: [row[key] for key in row if key.startswith(f"{name}-")] for name in CONTROLS}
        controls = [f"best {name} {max(scores):.2f}" for name, scores in draws.items() if scores]
        where = ", ".join(f"{axis} {row[axis]}" for axis in ("layer", "k") if axis in row)
        interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
        beside = f"controls: {', '.join(controls)}" if controls else "no control was run"
        numbers.append(
            KeyNumber(
                f"{row['concept']}: {row['measure']} ({where})", f"{row['held out']:.2f}", interval, beside
            )
        )
    return Lead(
        asked=f"Where can {listed([row['concept'] for row in rows[:6]])} be read in {source}?",
        found=probes_headline(rows).partition(". A probe")[0] + ".",
        numbers=numbers,
        against=[
            "A probe shows what can be read, not what the model uses: erase its direction with wb.causal_check.",
            "The best of several sites and numbers of features is a little too good: it was chosen by its score.",
        ],
    )


def _sections(probed: Probed) -> list[Section]:
    table = probed.probes.results
    level = f"{float(table.attrs['level']):.0%}"
    best = (
        f"The site that tells each concept best for each number of features, with its {level} interval over "
        "held-out prompts; being the best of several, its score is a little too high. Columns of controls: "
        "the mean over their draws at the same site."
    )
    sections: list[Section] = [
        (
            "Concepts",
            _concepts(probed.labels),
            "Rows are tokens. Held-out rows share no prompt with training rows.",
        ),
        ("Best sites", best_table(probed.probes), best),
    ]
    by_layer = (
        f"Held-out score at every layer; the band is the {level} interval of the largest k. Dashed: controls "
        "at that k, mean and range of their draws."
    )
    for labels in _panels(table):
        title = "By layer"
        if labels:
            title += f": {', '.join(map(str, labels.values()))}"
        figures = [_figure(probed.probes, labels, str(concept)) for concept in table["concept"].values]
        sections.append((title, figures, by_layer))
    if probed.neurons is not None:
        single = (
            "Single neurons, each with a probe of its own; for several classes, each class against the rest. "
            "0.5 is chance for roc_auc."
        )
        sections.append(("Neurons", neuron_table(probed.neurons), single))
    return sections


def _figure(probes: Probes, labels: dict[str, Any], concept: str) -> Any:
    """The scores of a concept by layer, with the probes on all features beside them where there are any."""
    dense = probes.baselines
    if dense is not None:
        # Baselines use all features, so they have no axis of selectors.
        dense = dense.sel({axis: label for axis, label in labels.items() if axis in dense.dims})
    return probe_figure(probes.results.sel(labels), dense, concept)


def _panels(table: xr.Dataset) -> list[dict[str, Any]]:
    """The labels of each group of pictures: every kind, position and selector."""
    axes = [axis for axis in ("kind", "pos", "selector") if axis in table["accuracy"].dims]
    values = [table[axis].values.tolist() for axis in axes]
    return [dict(zip(axes, labels, strict=True)) for labels in product(*values)]


def _concepts(labels: Labels) -> pd.DataFrame:
    rows = [(concept.name, len(labels), _values_of(concept)) for concept in labels.concepts]
    return pd.DataFrame(rows, columns=["concept", "rows", "values"])


def _values_of(concept: Concept) -> str:
    """The classes of a concept with their counts, or the range of its numbers."""
    if not concept.classes:
        return f"{concept.codes.min():g} to {concept.codes.max():g}"
    counts = np.bincount(concept.codes.astype(int)).tolist()
    # A class that no row has at the end of the list has no count, so the lists may differ in length.
    listed = [f"{name} {n}" for name, n in zip(concept.classes, counts, strict=False)][:SHOWN_CLASSES]
    omitted = len(concept.classes) - SHOWN_CLASSES
    text = ", ".join(listed)
    if omitted > 0:
        text += f" and {omitted} more"
    return text


def numbers(text: str | None, option: str) -> list[int] | None:
    """`1,2,4` as integers. Raises `ProbeError` for anything else."""
    if text is None:
        return None
    try:
        return list(map(int, text.split(",")))
    except ValueError:
        raise ProbeError(f"{option} {text!r}: integers with commas are needed, as in 1,2,4.") from None
