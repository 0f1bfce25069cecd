"""Sparse probes over a store: sites x concepts x k x selectors x controls in one call (Gurnee et al., arXiv
2305.01610).

Read `fit_probes`, then `Probes`. Features are chosen and probes fitted on training rows, and judged on
held-out ones that share no prompt with them. Every control is one more column of the same batched solve.
Activations are read one site at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import ProbeError, StoreError, UnknownName
from workbench.probes.baselines import BASELINES
from workbench.probes.controls import ColumnBatch, Control, batches, control_types, controls_named, splits
from workbench.probes.data import Activations
from workbench.probes.fits import DEFAULT_SETTINGS, Fits, ProbeSettings
from workbench.probes.labels import Labels
from workbench.probes.selected import at_test_rows, code_lengths, fit_selected, fixed_selector, pooled
from workbench.probes.selectors import SELECTORS, Selector
from workbench.probes.tables import Judge, Tables, cell_of
from workbench.results import clean_attrs, versions
from workbench.sites import KINDS, Key, Position, kind_named
from workbench.statistics import check_level, check_seed


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

    def direction(self, concept: str, **where: Any) -> Float[Tensor, "*axes"]:
        """The probe of a concept as a vector in activation space: its logit is activation times vector plus
        intercept.

        Zero but at the selected features; of the shape that the site has ([d_model], [neuron] or [head,
        d_head]).

        Args:
            where: labels of the other axes that have more than one: `layer=3, k=4`, `selector=`, `kind=`,
                `pos=`, `control=` ("none" by default), `output=` (a class, where there are several), or
                `baseline="mass-mean"`.

        Raises:
            UnknownName: no such concept or label.
            ProbeError: an axis is left open, or the cell was not measured.
        """
        table = self.results if "baseline" not in where or self.baselines is None else self.baselines
        cell = cell_of(table, {"concept": concept, "control": "none"} | where)
        kind = str(cell["kind"].values) if "kind" in cell.coords else str(table.attrs["kinds"])
        shape = tuple(map(int, str(table.attrs[f"shape_{kind}"]).split(",")))
        if "baseline" in where:
            return torch.from_numpy(cell["direction"].values[: int(np.prod(shape))].copy()).view(shape)
        # Slots beyond k hold feature -1.
        used = cell["feature"].values >= 0
        features = torch.from_numpy(cell["feature"].values[used].astype(int))
        vector = torch.zeros(int(np.prod(shape)), dtype=torch.float64)
        vector[features] = torch.from_numpy(cell["coefficient"].values[used])
        return vector.view(shape)

    def __repr__(self) -> str:
        sizes = " x ".join(f"{size} {axis}" for axis, size in self.results["accuracy"].sizes.items())
        return f"<Probes: {sizes}>"


def fit_probes(
    store: Any,
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
    progress: bool = False,
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
        folds: judge by that many folds instead; the probe that is kept is then fitted on all rows.
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
        raise ProbeError(f"budget={budget!r}: bytes to work in are needed.")
    for name, entries in (("layers", layers), ("pos", pos), ("selectors", selectors), ("sites", sites)):
        if entries is not None and (isinstance(entries, int) or not len(entries)):
            raise ProbeError(f"{name}={entries!r}: give a list of at least one, or leave it out.")
    request = _request(store, labels, sites, layers, k, selectors, baselines, given)
    all_controls = controls_named(controls, draws)
    positions = [None] if pos is None else list(pos)
    row_sets: list[_RowSet] = []
    for where in positions:
        rows = labels if where is None else labels.at(where)
        if not len(rows):
            raise ProbeError(f"No labelled row lies at position {where!r}. Label it, or leave it out of pos.")
        mask = held_out if where is None or held_out is None else _held_at(held_out, labels, where)
        masks = splits(rows, held_out=mask, test_share=test_share, folds=folds, seed=seed)
        row_sets.append(_RowSet(rows, _folds(masks, folds)))
    kinds = list(dict.fromkeys(kind for kind, _ in request.keys))
    axes = {
        "kind": kinds,
        "layer": sorted({layer for _, layer in request.keys}),
        "pos": [str(where) for where in positions],
        "concept": [concept.name for concept in labels.concepts],
    }
    tables = Tables(axes, labels.concepts, all_controls, request.ks, request.selectors, request.baselines)
    shapes: dict[str, str] = {}
    with tqdm(total=len(request.keys) * len(row_sets), disable=not progress) as bar:
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
                site = _SiteProbes(
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
    drop = ["kind"] if len(kinds) == 1 else []
    if pos is None:
        drop.append("pos")
    datasets = tables.datasets(clean_attrs(facts | shapes | versions()), drop=drop)
    return Probes(datasets.sparse, datasets.dense)


@dataclass(frozen=True, eq=False)
class _RowSet:
    """The labelled rows of one position (or all of them), and (train, test) masks [concept, row] of every
    fit.

    The last fit's probes are kept.
    """

    labels: Labels
    folds: list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class _FitRequest:
    """What is asked for, checked."""

    keys: list[tuple[str, int]]
    ks: list[int]
    selectors: list[str]
    baselines: list[str]
    given: Mapping[Key, Sequence[int]]

    def selector(self, name: str, key: tuple[str, int]) -> Selector:
        """The selector of a name at a site."""
        return fixed_selector(self.given[key]) if name == "given" else SELECTORS[name]


@dataclass(frozen=True, eq=False)
class _SiteProbes:
    """All probes of one site and row set."""

    activations: Activations
    key: tuple[str, int]
    rows: _RowSet
    request: _FitRequest
    controls: Sequence[Control]
    settings: ProbeSettings
    seed: int
    code_length: bool
    cell: tuple[int, int, int]
    judge: Judge

    def fit_into(self, tables: Tables) -> None:
        """Fit every probe, and write the results into the tables."""
        by_fold = [
            batches(self.rows.labels, self.controls, train, test, self.seed)
            for train, test in self.rows.folds
        ]
        # The same columns of every fold together: their predictions are judged as one.
        for folds in zip(*by_fold, strict=True):
            for s, name in enumerate(self.request.selectors):
                self._fit_sparse(tables, folds, s, self.request.selector(name, self.key))
            true_features = [fold.with_true_features for fold in folds]
            for b, name in enumerate(self.request.baselines):
                self._fit_dense(tables, true_features, b, name)

    def _fit_sparse(self, tables: Tables, folds: Sequence[ColumnBatch], s: int, selector: Selector) -> None:
        ks, last = self.request.ks, folds[-1]
        # [fold][k]
        fits: list[list[Fits]] = []
        for fold in folds:
            fits.append(list(fit_selected(self.activations, fold.columns, ks, selector, self.settings)))
        for j in range(len(ks)):
            predictions = pooled(
                [(fold.columns, by_k[j].logits) for fold, by_k in zip(folds, fits, strict=True)]
            )
            tables.put(self.cell, j, s, last, fits[-1][j], predictions, self.judge)
        if self.code_length and last.columns.n_classes:
            groups = self.rows.labels.groups
            lengths = code_lengths(
                self.activations, last.columns, ks, selector, self.settings, groups, self.seed
            )
            tables.put_lengths(self.cell, s, last, lengths)

    def _fit_dense(self, tables: Tables, folds: Sequence[ColumnBatch], b: int, name: str) -> None:
        fits = [BASELINES[name](self.activations, fold.columns, self.settings) for fold in folds]
        predictions = pooled(
            [
                (fold.columns, at_test_rows(fold.columns, dense.logits))
                for fold, dense in zip(folds, fits, strict=True)
            ]
        )
        tables.put_dense(self.cell, b, folds[-1], fits[-1], predictions, self.judge)


def _held_at(held_out: np.ndarray, labels: Labels, where: Position) -> np.ndarray:
    """Of a mask of all labelled rows, those at one position."""
    mask = np.asarray(held_out, dtype=bool)
    if mask.ndim not in (1, 2) or mask.shape[-1] != len(labels):
        raise ProbeError(
            f"held_out has shape {mask.shape}; it marks the held-out of the {len(labels)} labelled rows."
        )
    return mask[..., labels.rows_at(where)]


def _folds(masks: Sequence[np.ndarray], folds: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, held-out rows) of every fit; with folds one more, on all rows, whose probe is kept."""
    fits = [(~mask, mask) for mask in masks]
    if folds is not None:
        fits.append((np.ones_like(masks[0]), np.zeros_like(masks[0])))
    return fits


def _request(
    store: Any,
    labels: Labels,
    sites: Sequence[str] | None,
    layers: Sequence[int] | None,
    k: Sequence[int] | int,
    selectors: Sequence[str],
    baselines: Sequence[str],
    given: Mapping[Key, Sequence[int]] | None,
) -> _FitRequest:
    """The request, if the store can answer it."""
    if labels.prompts is not store.prompts and labels.prompts.fingerprint != store.prompts.fingerprint:
        raise ProbeError("The labels are of other prompts than the store's: make them with this store.")
    keys = _keys(store, sites, layers)
    ks = [k] if isinstance(k, int) else list(k)
    if not ks or any(type(n) is not int or n < 1 for n in ks) or sorted(set(ks)) != ks:
        raise ProbeError(f"k={k!r}: give increasing numbers of features from 1 up, as in [1, 2, 4, 8].")
    known_selectors = list(SELECTORS)
    if given is not None:
        known_selectors.append("given")
    for name in selectors:
        if name not in known_selectors:
            raise UnknownName("selectors", name, known_selectors)
    for name in baselines:
        if name not in BASELINES:
            raise UnknownName("baselines", name, BASELINES)
    given = given or {}
    if "given" in selectors:
        for kind, layer in keys:
            n_given = len(set(given.get((kind, layer), ())))
            if n_given < max(ks):
                raise ProbeError(
                    f"given has {n_given} features for {kind}[{layer}]; k={max(ks)} needs as many."
                )
    return _FitRequest(keys, ks, list(selectors), list(baselines), given)


def _keys(store: Any, sites: Sequence[str] | None, layers: Sequence[int] | None) -> list[tuple[str, int]]:
    """The (kind, layer) sites to probe."""
    default = [kind for kind in ("resid_post", "mlp_post") if kind in store.kinds]
    kinds = default if sites is None else list(sites)
    if not kinds:
        raise StoreError(
            f"The store holds neither resid_post nor mlp_post but {', '.join(store.kinds)}: name the sites= "
            "to probe."
        )
    keys: list[tuple[str, int]] = []
    for kind in kinds:
        if not kind_named(kind).per_layer or kind == "pattern":
            choices = ", ".join(name for name, row in KINDS.items() if row.per_layer and name != "pattern")
            raise ProbeError(f"{kind} has no layer and token rows to probe: choose among {choices}.")
        if not store.layers(kind):
            store[kind, 0]  # raises, with what the store holds
        keys += [(kind, layer) for layer in (store.layers(kind) if layers is None else layers)]
    return keys
