"""Sparse probes over a store: sites x concepts x k x selectors x controls in one call (Gurnee et al., arXiv 2305.01610).

Features are chosen and probes fitted on training rows, and judged on held-out ones that share no prompt with them. Every
control is one more column of the same batched solve. Activations are read one site at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import ProbeError, StoreError, UnknownName
from workbench.probes.baselines import BASELINES
from workbench.probes.controls import batches, code_blocks, control_types, controls_named, splits
from workbench.probes.data import Activations, Columns
from workbench.probes.fits import Fits, ProbeSettings, fit, padded_rows
from workbench.probes.labels import Labels
from workbench.probes.metrics import bits
from workbench.probes.selectors import SELECTORS, Selector
from workbench.probes.tables import Judge, Tables, cell_of
from workbench.results import clean_attrs, versions
from workbench.sites import KINDS, Key, Position, kind_named
from workbench.statistics import check_level, check_seed


@dataclass(frozen=True, eq=False)
class Probes:
    """What `fit_probes` found.

    Attributes:
        results: the sparse probes, over (kind, layer, pos, concept, k, selector, control); see `fit_probes`.
        baselines: the same measures of probes on all features, over (..., concept, baseline, control), or None.
    """

    results: xr.Dataset
    baselines: xr.Dataset | None

    def direction(self, concept: str, **where: Any) -> Float[Tensor, "*axes"]:
        """The probe of a concept as a vector in activation space: its logit is the activation times this, plus the intercept.

        Zero but at the selected features; of the shape that the site has ([d_model], [neuron] or [head, d_head]).

        Args:
            where: labels of the other axes that have more than one: `layer=3, k=4`, `selector=`, `kind=`, `pos=`, `control=`
                ("none" unless told), `output=` (a class, where there are several), or `baseline="mass-mean"`.
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
        chosen = cell["feature"].values >= 0
        vector = torch.zeros(int(np.prod(shape)), dtype=torch.float64)
        vector[torch.from_numpy(cell["feature"].values[chosen].astype(int))] = torch.from_numpy(
            cell["coefficient"].values[chosen]
        )
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
    settings: ProbeSettings = ProbeSettings(),  # noqa: B008
    resampled: int = 200,
    level: float = 0.95,
    seed: int = 0,
    budget: int = 2**30,
    progress: bool = False,
) -> Probes:
    """Probes on the k best features of every site, for every concept, selector and control.

    Args:
        labels: rows of the store's prompts and what they are called.
        sites: kinds; `resid_post` and `mlp_post` where the store has them unless told. `z` and the like are flattened.
        k: how many features.
        selectors: names in `SELECTORS`, or "given" for those of `given` (kind, layer) → features, best first.
        controls: names in `CONTROLS`, `draws` of each; "none" is always there.
        baselines: names in `BASELINES`: probes on all features.
        pos: probe each of these indices or named positions by itself; None takes all labelled rows together.
        code_length: also the online code length of the training labels (Voita and Titov, arXiv 2003.12298), in bits.
        test_share: of the rows, held out in whole prompts; equal prompts stay together.
        folds: judge by that many folds instead; the probe that is kept is then fitted on all rows.
        held_out: the held-out rows themselves, [row] or [concept, row] of the labels.
        resampled: bootstrap draws of held-out groups for the intervals; 0 leaves them NaN.
        budget: bytes that one site's reading and solving may take.

    Returns:
        `Probes`: its `results` have axes (kind, if several), layer, (pos, if given), concept, k, selector, control and
        `accuracy`, `balanced_accuracy`, `f1`, `roc_auc`, `average_precision` (classes), `r2` (numbers), each with `_low`
        and `_high`; `converged` (1 or 0), `decrement` (nats) and `iterations` of the solver; `n` held-out rows, `n_train`;
        `code_length`; `feature` [slot] (-1 beyond k), `coefficient` [output, slot], `intercept` [output]. NaN is what
        was not measured. Coefficients are for the activations as they are.

    Raises:
        ProbeError: labels of other prompts, too few groups to split, k beyond the features, a budget too small.
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
    for name, given_list in (("layers", layers), ("pos", pos), ("selectors", selectors), ("sites", sites)):
        if given_list is not None and (isinstance(given_list, int) or not len(given_list)):
            raise ProbeError(f"{name}={given_list!r}: give a list of at least one, or leave it out.")
    job = _job(store, labels, sites, layers, k, selectors, baselines, given)
    cast = controls_named(controls, draws)
    places = [None] if pos is None else list(pos)
    parts = [labels if where is None else labels.at(where) for where in places]
    for where, part in zip(places, parts, strict=True):
        if not len(part):
            raise ProbeError(f"No labelled row lies at position {where!r}. Label it, or leave it out of pos.")
    kinds = list(dict.fromkeys(kind for kind, _ in job.keys))
    axes = {
        "kind": kinds,
        "layer": sorted({layer for _, layer in job.keys}),
        "pos": [str(where) for where in places],
        "concept": [concept.name for concept in labels.concepts],
    }
    tables = Tables(axes, labels.concepts, cast, job.ks, job.selectors, job.baselines)
    shapes = {}
    held = [
        held_out if where is None or held_out is None else _held_at(held_out, labels, where)
        for where in places
    ]
    how: dict[str, Any] = {"test_share": test_share, "folds": folds, "seed": seed}
    turns = [(part, splits(part, held_out=mask, **how)) for part, mask in zip(parts, held, strict=True)]
    for (kind, layer), (p, (part, masks)) in tqdm(
        [*product(job.keys, enumerate(turns))], disable=not progress
    ):
        activations = Activations(store[kind, layer], part.prompt, part.pos, budget)
        shapes[f"shape_{kind}"] = ",".join(map(str, activations.shape))
        if max(job.ks) > activations.n_features:
            raise ProbeError(
                f"k={max(job.ks)} is more than the {activations.n_features} features of {kind}[{layer}]: ask for fewer."
            )
        at = (axes["kind"].index(kind), axes["layer"].index(layer), p)
        judge = Judge(part.groups, resampled, level, seed)
        for runs in zip(
            *(batches(part, cast, train, test, seed) for train, test in _runs(masks, folds)), strict=True
        ):
            for s, selector in enumerate(job.selectors):
                find = _given(job.given[kind, layer]) if selector == "given" else SELECTORS[selector]
                found = [list(_fits(activations, run.columns, job.ks, find, settings)) for run in runs]
                for j in range(len(job.ks)):
                    judged = [(run.columns, fits[j].logits) for run, fits in zip(runs, found, strict=True)]
                    tables.put(at, j, s, runs[-1], found[-1][j], *_pooled(judged), judge)
                if code_length and runs[-1].columns.n_classes:
                    lengths = _code_lengths(
                        activations, runs[-1].columns, job.ks, find, settings, part.groups, seed
                    )
                    tables.put_lengths(at, s, runs[-1], lengths)
            plain = [run.where(lambda columns, c: columns.random[c] is None) for run in runs]
            for b, name in enumerate(job.baselines):
                made = [BASELINES[name](activations, run.columns, settings) for run in plain]
                judged = [
                    (run.columns, _at_test(run.columns, dense.logits))
                    for run, dense in zip(plain, made, strict=True)
                ]
                tables.put_dense(at, b, plain[-1], made[-1], *_pooled(judged), judge)
    facts = {
        "kinds": ",".join(kinds), "model": store.model_name, "model_fingerprint": store.model, "seed": seed, "level": level,
        "data_fingerprint": store.prompts.fingerprint, "test_share": None if folds else test_share, "folds": folds,
        "resampled": resampled, "draws": draws, "control_types": control_types(labels)[0], **vars(settings),
    }  # fmt: skip
    drop = [*(["kind"] if len(kinds) == 1 else []), *(["pos"] if pos is None else [])]
    return Probes(*tables.datasets(clean_attrs(facts | shapes | versions()), drop=drop))


def _held_at(held_out: np.ndarray, labels: Labels, where: Position) -> np.ndarray:
    """Of a mask of all labelled rows, the part at one position."""
    mask = np.asarray(held_out, dtype=bool)
    if mask.ndim not in (1, 2) or mask.shape[-1] != len(labels):
        raise ProbeError(
            f"held_out has shape {mask.shape}; it marks the held-out of the {len(labels)} labelled rows."
        )
    return mask[..., labels.rows_at(where)]


def _runs(masks: Sequence[np.ndarray], folds: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, held-out rows) of every fit; the last one's probe is kept: with folds it has seen all rows."""
    judged = [(~mask, mask) for mask in masks]
    return judged if folds is None else [*judged, (np.ones_like(masks[0]), np.zeros_like(masks[0]))]


@dataclass(frozen=True)
class _FitJob:
    """What is asked for, checked."""

    keys: list[tuple[str, int]]
    ks: list[int]
    selectors: list[str]
    baselines: list[str]
    given: Mapping[Key, Sequence[int]]


def _job(
    store: Any, labels: Labels, sites: Any, layers: Any, k: Any, selectors: Any, baselines: Any, given: Any
) -> _FitJob:
    if labels.prompts is not store.prompts and labels.prompts.fingerprint != store.prompts.fingerprint:
        raise ProbeError("The labels are of other prompts than the store's: make them with this store.")
    kinds = (
        [kind for kind in ("resid_post", "mlp_post") if kind in store.kinds] if sites is None else list(sites)
    )
    if not kinds:
        raise StoreError(
            f"The store holds neither resid_post nor mlp_post but {', '.join(store.kinds)}: name the sites= to probe."
        )
    for kind in kinds:
        if not kind_named(kind).per_layer or kind == "pattern":
            able = ", ".join(name for name, row in KINDS.items() if row.per_layer and name != "pattern")
            raise ProbeError(f"{kind} has no layer and token rows to probe: choose among {able}.")
        if not store.layers(kind):
            store[kind, 0]  # raises, with what the store holds
    keys = [(kind, layer) for kind in kinds for layer in (store.layers(kind) if layers is None else layers)]
    ks = [k] if isinstance(k, int) else list(k)
    if not ks or any(type(n) is not int or n < 1 for n in ks) or sorted(set(ks)) != ks:
        raise ProbeError(f"k={k!r}: give increasing numbers of features from 1 up, as in [1, 2, 4, 8].")
    for name in selectors:
        if name not in SELECTORS and not (name == "given" and given is not None):
            raise UnknownName("selectors", name, [*SELECTORS, *([] if given is None else ["given"])])
    for name in baselines:
        if name not in BASELINES:
            raise UnknownName("baselines", name, BASELINES)
    if "given" in selectors:
        for key in keys:
            if len(set(given.get(key, ()))) < max(ks):
                raise ProbeError(
                    f"given has {len(set(given.get(key, ())))} features for {key[0]}[{key[1]}]; k={max(ks)} needs as many."
                )
    return _FitJob(keys, ks, list(selectors), list(baselines), given or {})


def _given(features: Sequence[int]) -> Selector:
    best = torch.tensor(list(dict.fromkeys(features)))

    def select(
        activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings
    ) -> list[Tensor]:
        if int(best.min()) < 0 or int(best.max()) >= activations.n_features:
            raise ProbeError(
                f"given names feature {int(best.max())}; {activations.view!r} has {activations.n_features}."
            )
        return [best[:k].expand(len(columns), -1) for k in ks]

    return select


def _fits(
    activations: Activations, columns: Columns, ks: Sequence[int], find: Selector, settings: ProbeSettings
) -> Iterator[Fits]:
    """Probes for each k. The selector never sees the held-out labels: they are blanked."""
    blind = replace(
        columns, codes=np.where(columns.train, columns.codes, 0), test=np.zeros_like(columns.test)
    )
    selected = [chosen.clone() for chosen in find(activations, blind, ks, settings)]
    for c, draw in enumerate(columns.random):
        if draw is not None:
            order = torch.from_numpy(np.random.default_rng(draw).permutation(activations.n_features))
            for chosen, n in zip(selected, ks, strict=True):
                chosen[c] = order[:n]
    previous = None
    for chosen in selected:
        previous = fit(activations, columns, chosen, settings, previous=previous)
        yield previous


def _at_test(columns: Columns, logits: Tensor) -> Float[Tensor, "column output test_row"]:
    """Of logits of all rows, those of the held-out ones."""
    rows, _ = padded_rows(columns.test)
    return logits.gather(2, rows[:, None].expand(-1, logits.shape[1], -1))


def _pooled(pairs: Sequence[tuple[Columns, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions [column, output, row] and labels [column, row] of held-out rows, NaN elsewhere."""
    columns = pairs[0][0]
    logits = np.full((len(columns), pairs[0][1].shape[1], columns.codes.shape[1]), np.nan)
    codes = np.full(columns.codes.shape, np.nan)
    for columns, found in pairs:
        rows, real = (given.numpy() for given in padded_rows(columns.test))
        owner = np.nonzero(real)[0]
        logits[owner, :, rows[real]] = found.numpy().transpose(0, 2, 1)[real]
        codes[owner, rows[real]] = columns.codes[owner, rows[real]]
    return logits, codes


def _code_lengths(
    activations: Activations,
    columns: Columns,
    ks: Sequence[int],
    find: Selector,
    settings: ProbeSettings,
    groups: np.ndarray,
    seed: int,
) -> Float[np.ndarray, "k column"]:
    """Bits to send the training labels block by block, each under probes selected and fitted on the blocks before it."""
    total = np.zeros((len(ks), len(columns)))
    plain = replace(settings, balanced=False)
    uniform = np.log2(columns.n_classes)
    for known, sent in code_blocks(columns, groups, seed):
        ready = columns.with_rows(known, sent)
        blank = ~ready.varied if known.any() else np.ones(len(columns), dtype=bool)
        total += np.where(blank, sent.sum(1) * uniform, 0)
        able = np.flatnonzero(~blank)
        if not len(able):
            continue
        ready = ready.select(able.tolist())
        rows, real = padded_rows(ready.test)
        codes = torch.from_numpy(ready.codes).long().gather(1, rows)
        for j, made in enumerate(_fits(activations, ready, ks, find, plain)):
            costs = [
                bits(z, y, columns.n_classes)[seen].sum()
                for z, y, seen in zip(made.logits, codes, real, strict=True)
            ]
            total[j, able] += torch.stack(costs).numpy()
    return total
