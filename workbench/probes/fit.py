"""Sparse probes over a store: sites x concepts x k x selectors x controls at once (Gurnee et al. 2305.01610).

Read `fit_probes`, then `Probes`. Features are chosen and probes fitted on training rows, and judged on
held-out ones that share no prompt with them. Every control is one more column of the same batched solve.
Activations are read one site at a time.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from workbench.arguments import checked
from workbench.errors import ProbeError
from workbench.models.calls import model_call
from workbench.probes.controls import control_types, controls_named, splits
from workbench.probes.data import Activations
from workbench.probes.fit_request import request_of
from workbench.probes.fits import DEFAULT_SETTINGS, ProbeSettings
from workbench.probes.judge import Judge
from workbench.probes.labels import Labels
from workbench.probes.site_probes import RowSet, SiteProbes
from workbench.probes.tables import Tables, cell_of
from workbench.progress import progress_bar
from workbench.results import clean_attrs, versions
from workbench.sites import Key, Position
from workbench.statistics import check_level, check_seed
from workbench.stores.store import ActivationStore

log = logging.getLogger(__name__)


@checked
@dataclass(frozen=True, eq=False)
class Probes:
    """The result of `fit_probes`.

    Attributes:
        results: the sparse probes, over (kind, layer, pos, concept, k, selector, control); see `fit_probes`.
        baselines: the same measures of probes on all features, over (..., concept, baseline, control), or
            None.
    """

    results: xr.Dataset
    baselines: xr.Dataset | None

    @checked
    def direction(self, concept: str, **where: Any) -> Float[Tensor, "*axes"]:
        """The probe of a concept as a vector: its logit is activation times vector plus intercept.

        Zero but at the selected features; of the shape that the site has ([d_model], [neuron] or [head,
        d_head]).

        Args:
            where: labels of the other axes that have more than one: `layer=3, k=4`, `selector=`, `kind=`,
                `pos=`, `control=` ("none" by default), `output=` (the index of a class, where there are
                several), or `baseline="mass-mean"`.

        Raises:
            UnknownName: no such concept or label.
            ProbeError: an axis is left open, or the cell was not measured.
        """
        table = self.results
        if "baseline" in where and self.baselines is not None:
            table = self.baselines
        cell = cell_of(table, {"concept": concept, "control": "none"} | where)
        kind = str(table.attrs["kinds"])
        if "kind" in cell.coords:
            kind = str(cell["kind"].values)
        shape = tuple(map(int, str(table.attrs[f"shape_{kind}"]).split(",")))
        if "baseline" in where:
            return torch.from_numpy(cell["direction"].values[: int(np.prod(shape))].copy()).view(shape)
        # Slots beyond k hold feature -1, which stands for none.
        used = cell["feature"].values >= 0
        features = torch.from_numpy(cell["feature"].values[used].astype(int))
        vector = torch.zeros(int(np.prod(shape)), dtype=torch.float64)
        vector[features] = torch.from_numpy(cell["coefficient"].values[used])
        return vector.view(shape)

    def __repr__(self) -> str:
        sizes = " x ".join(f"{size} {axis}" for axis, size in self.results["accuracy"].sizes.items())
        return f"<Probes: {sizes}>"


@checked
@model_call()
def fit_probes(
    store: ActivationStore,
    labels: Labels,
    *,
    sites: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    k: Sequence[int] = (1, 2, 4, 8, 16),
    selectors: Sequence[str] = ("welch",),
    controls: Sequence[str] = ("shuffle", "random-features"),
    draws: int = 3,
    baselines: Sequence[str] = (),
    pos: Sequence[Position] | None = None,
    code_length: bool = False,
    given: Mapping[Key, Sequence[int]] | None = None,
    test_share: float = 0.3,
    folds: int | None = None,
    held_out: np.ndarray | None = None,
    settings: ProbeSettings = DEFAULT_SETTINGS,
    resampled: int = 200,
    level: float = 0.95,
    seed: int = 0,
    budget: int = 2**30,
    progress: bool = True,
) -> Probes:
    """Probes on the k best features of every site, for every concept, selector and control.

    Args:
        labels: rows of the store's prompts with their concepts.
        sites: kinds; by default `resid_post` and `mlp_post` where the store has them. `z` and the like are
            flattened.
        layers: by default all that the store has.
        k: how many features, increasing.
        selectors: names in `SELECTORS`, or "given" for the features in `given`.
        controls: names in `CONTROLS`, `draws` of each; "none" is always there.
        baselines: names in `BASELINES`: probes on all features.
        pos: probe each of these indices or named positions by itself; None takes all labelled rows together.
        given: (kind, layer) → features, best first.
        code_length: also the online code length of the training labels (Voita and Titov, arXiv 2003.12298),
            in bits.
        test_share: of the rows, held out in whole prompts; equal prompts stay together.
        folds: judge by that many folds instead of one held-out set; the probe that is kept is then fitted on
            all rows.
        held_out: the held-out rows themselves, [row] or [concept, row] of the labels.
        settings: how every probe is fitted.
        resampled: bootstrap draws of held-out groups for the intervals; 0 leaves them NaN.
        level: coverage of the intervals.
        seed: of splits, controls and bootstrap.
        budget: bytes that one site's reading and solving may take.

    Returns:
        `Probes`: its `results` have axes (kind, if several), layer, (pos, if given), concept, k, selector,
        control and `accuracy`, `balanced_accuracy`, `f1`, `roc_auc`, `average_precision` (classes), `r2`
        (numbers), each with `_low` and `_high`; `converged` (1 or 0), `decrement` (nats) and `iterations` of
        the solver; `n` held-out rows, `n_train`; `code_length`; `feature` [slot] (-1 beyond k), `coefficient`
        [output, slot], `intercept` [output]. NaN is what was not measured. Coefficients are for the
        activations as they are.

    Raises:
        ProbeError: labels of other prompts, too few groups to split, k beyond the features, a budget too
            small.
        UnknownName: a kind, selector, control, baseline or position that does not exist.
        StoreError: a site that the store lacks.

    >>> import workbench as wb
    >>> prompts = wb.Prompts.of([[i, i + 1] for i in range(40)])
    >>> x = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
    >>> store = wb.ActivationStore.of(prompts, {("mlp_post", 0): x}, model="m", model_name="m", tokenizer="t")
    >>> labels = wb.Labels.per_prompt(store, {"positive": [bool(v > 0) for v in x[1::2, 3]]})
    >>> probes = wb.fit_probes(store, labels, k=[1], controls=[])
    >>> int(probes.results["feature"].squeeze())
    3
    """
    check_seed(seed)
    check_level(level)
    if resampled < 0:
        raise ProbeError(f"resampled={resampled!r}: how many bootstrap draws, 0 for none.")
    if budget < 1:
        raise ProbeError(f"budget={budget!r}: a number of bytes above 0 is needed.")
    for name, entries in (("layers", layers), ("pos", pos), ("selectors", selectors), ("sites", sites)):
        if entries is not None and (isinstance(entries, int) or not len(entries)):
            raise ProbeError(f"{name}={entries!r}: give a list of at least one, or leave it out.")
    request = request_of(store, labels, sites, layers, k, selectors, baselines, given)
    all_controls = controls_named(controls, draws)
    positions: list[Position | None] = [None]
    if pos is not None:
        positions = list(pos)
    row_sets: list[RowSet] = []
    for where in positions:
        rows, mask = labels, held_out
        if where is not None:
            rows = labels.at(where)
        if not len(rows):
            raise ProbeError(f"No labelled row lies at position {where!r}. Label it, or leave it out of pos.")
        if where is not None and held_out is not None:
            mask = _held_at(held_out, labels, where)
        masks = splits(rows, held_out=mask, test_share=test_share, folds=folds, seed=seed)
        row_sets.append(RowSet(rows, _folds(masks, folds)))
    kinds = list(dict.fromkeys(kind for kind, _ in request.keys))
    axes = {
        "kind": kinds,
        "layer": sorted({layer for _, layer in request.keys}),
        "pos": [str(where) for where in positions],
        "concept": [concept.name for concept in labels.concepts],
    }
    tables = Tables(axes, labels.concepts, all_controls, request.ks, request.selectors, request.baselines)
    shapes: dict[str, str] = {}
    log.info("probes of %s in %d sites, %d rows", ", ".join(axes["concept"]), len(request.keys), len(labels))
    with progress_bar(len(request.keys) * len(row_sets), "probes", "site", shown=progress) as bar:
        for kind, layer in request.keys:
            for p, row_set in enumerate(row_sets):
                rows = row_set.labels
                activations = Activations(store[kind, layer], rows.prompt, rows.pos, budget)
                shapes[f"shape_{kind}"] = ",".join(map(str, activations.shape))
                if max(request.ks) > activations.n_features:
                    raise ProbeError(
                        f"k={max(request.ks)} is more than the {activations.n_features} features of "
                        f"{kind}[{layer}]: ask for fewer."
                    )
                site = SiteProbes(
                    activations=activations,
                    key=(kind, layer),
                    rows=row_set,
                    request=request,
                    controls=all_controls,
                    settings=settings,
                    seed=seed,
                    code_length=code_length,
                    cell=(axes["kind"].index(kind), axes["layer"].index(layer), p),
                    judge=Judge(rows.groups, resampled, level, seed),
                )
                site.fit_into(tables)
                bar.update()
    facts = {
        "kinds": ",".join(kinds), "model": store.model_name, "model_fingerprint": store.model, "seed": seed,
        "level": level, "data_fingerprint": store.prompts.fingerprint, "folds": folds,
        "test_share": None if folds else test_share, "resampled": resampled, "draws": draws,
        "control_types": control_types(labels).name, **vars(settings),
    }  # fmt: skip
    # Axes that the caller did not ask about are not in the result.
    drop: list[str] = []
    if len(kinds) == 1:
        drop.append("kind")
    if pos is None:
        drop.append("pos")
    datasets = tables.datasets(clean_attrs(facts | shapes | versions()), drop=drop)
    return Probes(datasets.sparse, datasets.dense)


def _held_at(held_out: np.ndarray, labels: Labels, where: Position) -> np.ndarray:
    """The part of a mask of all labelled rows that is about one position."""
    mask = np.asarray(held_out, dtype=bool)
    if mask.ndim not in (1, 2) or mask.shape[-1] != len(labels):
        raise ProbeError(
            f"held_out has shape {mask.shape}; it has to mark which of the {len(labels)} labelled rows "
            "are held out."
        )
    return mask[..., labels.rows_at(where)]


def _folds(masks: Sequence[np.ndarray], folds: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, held-out rows) of every fit; with folds one more, on all rows, whose probe is kept."""
    fits = [(~mask, mask) for mask in masks]
    if folds is not None:
        fits.append((np.ones_like(masks[0]), np.zeros_like(masks[0])))
    return fits
