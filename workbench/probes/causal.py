"""Whether a model uses what a probe reads (`causal_check`): erase or swap its direction, measure the metric.

A probe that decodes shows that something can be read, not that the model reads it (Elazar et al., arXiv
2006.00995). The control is random directions drawn from the same activations, so that edits along them can
be as large as edits along the probe's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from workbench.arguments import checked
from workbench.engine.capture import capture_pairs
from workbench.engine.runs import MeasuredRuns
from workbench.engine.store_values import check_same_model
from workbench.engine.values import Value, from_store, mean, project
from workbench.errors import ProbeError, UnknownName
from workbench.interventions.effects import effects
from workbench.metrics.continuations import expand
from workbench.metrics.metric import GivenMetric, metric_for
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.names import KindName
from workbench.probes.fit import Probes
from workbench.probes.tables import cell_of
from workbench.progress import progress_bar
from workbench.prompts.pairs import PromptPairs
from workbench.results import versions
from workbench.sites import KINDS, Position, Site, kind_named
from workbench.statistics import check_level, check_seed, summary
from workbench.stores.store import ActivationStore

EDITS = ("erase", "swap")
FIELDS = ("effect", "low", "high", "random", "p", "used")


@checked
@model_call()
def causal_check(
    probes: Probes,
    model: Model,
    pairs: PromptPairs,
    *,
    concept: str,
    kind: KindName,
    layers: Sequence[int] | None = None,
    pos: Position = "END",
    metric: GivenMetric | None = None,
    stores: tuple[ActivationStore, ActivationStore] | None = None,
    n_random: int = 20,
    least: float = 0.01,
    level: float = 0.95,
    seed: int = 0,
    budget: int | None = None,
    progress: bool = True,
    **where: Any,
) -> xr.Dataset:
    """How the metric changes when a probe's direction is erased or swapped, against random directions.

    "erase" sets the activation's part along the probe's direction (all of its directions, for several
    classes) to its mean at that position, "swap" to the part that it has in the corrupt run; the rest of the
    activation stays.

    Args:
        probes: of `fit_probes` on `kind`.
        concept: which of theirs.
        kind: where the probes were fitted: a stream, or `z` when the selected features lie in one head.
        pos: the position that is edited; of probes that were fitted at several, those of this position.
        stores: (clean, corrupt) activations of the pairs with `kind`; by default captured.
        n_random: random directions, of as many dimensions as the probe has, drawn from the activations'
            covariance. Where the activations vary along the probe's directions only, there is no other
            direction to draw, and `p` is NaN.
        least: share of |m(corrupt) - m(clean)| from which an effect counts.
        level: coverage of the intervals, and 1 minus the largest `p` that counts.
        where: labels of the other axes of the probes: `k=4`, `selector=`, or `baseline="mass-mean"`.

    Returns:
        Dataset (layer, edit) of `effect` (change of the metric, clean run) with `low` and `high` over
        examples; `random`, the largest of the random directions' |mean effect|; `p`, the share of directions
        at least as strong; `used`: 1 where the effect is at least `least`, its interval excludes 0, and `p`
        is at most 1 - level. (layer): `accuracy` of the probe, with `_low` and `_high`; `whole`, the change
        when the whole activation at that site is swapped. Attribute `total`: m(corrupt) - m(clean). All of
        this holds for this probe's direction only: another probe of the same concept may be as accurate and
        have a direction that the model does use.

    Raises:
        ProbeError: features in several heads of `z`, or a probe that is zero.
        UnknownName: a concept or label that the probes lack.
        StoreError: the store lacks the kind or a layer.
    """
    check_seed(seed)
    check_level(level)
    # The least p that n random directions can give is 1 / (1 + n). The slack is the rounding of 1 - level.
    if (1 + n_random) * (1 - level) < 1 - 1e-9:
        raise ProbeError(
            f"causal_check: {n_random} random directions cannot show p <= {1 - level:.2g}: "
            f"n_random={round(1 / (1 - level)) - 1} or more can."
        )
    kind_named(kind)
    clean, corrupt = stores or capture_pairs(model, pairs, sites=[kind])
    check_same_model(clean, model, "causal_check")
    if str(probes.results.attrs.get("model_fingerprint", clean.model)) != clean.model:
        raise ProbeError(
            f"causal_check: the probes are of another model ({probes.results.attrs.get('model')}) than "
            f"{clean.model_name}."
        )
    table = probes.baselines if "baseline" in where and probes.baselines is not None else probes.results
    if "pos" in table.dims:
        where["pos"] = pos
    probe = _Probe(probes, table, concept, kind, where)
    checked_layers = [int(layer) for layer in (table["layer"].values if layers is None else layers)]
    rng = torch.Generator().manual_seed(seed)
    measure = metric_for(metric, pairs)
    rows = expand(model, pairs, measure)
    runs = MeasuredRuns(model, rows.pairs, "clean", rows.metric, budget)
    total = float(rows.combine(runs.distance()).mean())
    fields = {name: np.full((len(checked_layers), len(EDITS)), np.nan) for name in FIELDS}
    whole = np.full(len(checked_layers), np.nan)
    bar = progress_bar(len(checked_layers), "causal check", "layer", shown=progress)
    with bar:
        for row, layer in enumerate(checked_layers):
            directions = probe.directions(layer)
            site = Site(kind, layer, directions.head, pos=pos)
            random_directions = _random(clean, site, directions.basis, n_random, rng)

            def change(value: Value, site: Site = site) -> xr.DataArray:
                """[example]: the effect of writing a value at the site."""
                table = effects(
                    model, pairs, sites=[site], value=value, metric=measure, budget=budget, progress=False
                )
                return table.isel(site=0)

            whole[row] = float(change(from_store(corrupt)).mean())
            # What is written along the directions: "erase" their mean, "swap" what they are in the corrupt run.
            for column, inner in enumerate((mean(clean, per="pos"), from_store(corrupt))):
                estimate = summary(change(project(directions.basis, inner)), level=level, seed=seed)
                controls = [abs(float(change(project(basis, inner)).mean())) for basis in random_directions]
                effect, low, high = (float(estimate[name]) for name in ("mean", "low", "high"))
                p, strongest = float("nan"), float("nan")
                if controls:
                    p = (1 + sum(control >= abs(effect) for control in controls)) / (1 + len(controls))
                    strongest = max(controls)
                # `not p >` and not `p <=`: where there was no other direction to draw, p is NaN, which must not
                # count against the probe.
                used = (
                    (low > 0 or high < 0) and abs(effect) >= least * abs(total) and not p > 1 - level + 1e-9
                )
                for name, value in zip(FIELDS, (effect, low, high, strongest, p, float(used)), strict=True):
                    fields[name][row, column] = value
            bar.update()
    result = xr.Dataset(
        {name: (("layer", "edit"), values) for name, values in fields.items()},
        coords={"layer": checked_layers, "edit": list(EDITS)},
    )
    result = result.assign({"whole": ("layer", whole)} | probe.accuracy(checked_layers))
    facts = {
        "kind": "causal_check", "concept": concept, "site": kind, "position": str(pos), "n_random": n_random,
        "metric": measure.name, "unit": measure.unit, "total": total, "least": least, "level": level,
        "seed": seed, "model": clean.model_name,
        "model_fingerprint": clean.model, "data_fingerprint": clean.prompts.fingerprint,
    }  # fmt: skip
    return result.assign_attrs(facts | versions())


@dataclass(frozen=True, eq=False)
class _Directions:
    """The directions of a probe, one for each of its outputs, and the head that they lie in (None for a
    stream)."""

    basis: Float[Tensor, "d rank"]
    head: int | None


@dataclass(frozen=True, eq=False)
class _Probe:
    """The probes of one concept at one kind of site, a layer each; `where` names their labels on the other
    axes."""

    probes: Probes
    table: xr.Dataset
    concept: str
    kind: str
    where: Mapping[str, Any]

    @property
    def _labels(self) -> dict[str, Any]:
        labels = dict(self.where)
        if "kind" in self.table.dims:
            labels["kind"] = self.kind
        return labels

    def directions(self, layer: int) -> _Directions:
        """The probe's directions at a layer."""
        if "kind" not in self.table.dims and self.table.attrs["kinds"] != self.kind:
            raise ProbeError(
                f"causal_check: the probes are of {self.table.attrs['kinds']}, not of {self.kind}."
            )
        concepts = self.table["concept"].values.tolist()
        if self.concept not in concepts:
            raise UnknownName("concept", self.concept, map(str, concepts))
        names = self.table["class_name"].values[concepts.index(self.concept)]
        n_outputs = max(1, sum(str(name) != "" for name in names))
        outputs = [{}] if n_outputs == 1 else [{"output": i} for i in range(n_outputs)]
        labels = self._labels | {"layer": layer}
        basis = torch.stack(
            [self.probes.direction(self.concept, **labels, **output) for output in outputs], -1
        )
        if not bool(torch.isfinite(basis).all()) or not bool(basis.any()):
            raise ProbeError(
                f"causal_check: the probe of {self.concept!r} at {self.kind}[{layer}] is zero or was not "
                "measured."
            )
        if KINDS[self.kind].unit not in ("head", "kv_head"):
            return _Directions(basis, None)
        heads = basis.flatten(1).abs().sum(1).nonzero()[:, 0].tolist()
        if len(heads) > 1:
            raise ProbeError(
                f"causal_check: the probe at {self.kind}[{layer}] reads heads {heads}. Probe one head with "
                "selectors=['given'] and given=, or a stream such as resid_post."
            )
        return _Directions(basis[heads[0]], heads[0])

    def accuracy(self, layers: Sequence[int]) -> dict[str, tuple[str, np.ndarray]]:
        """How well the probes decode, (layer), with the interval."""
        fields: dict[str, list[float]] = {"accuracy": [], "accuracy_low": [], "accuracy_high": []}
        labels = {"control": "none", "concept": self.concept} | self._labels
        for layer in layers:
            # Accuracy is of all outputs together: the first stands for them.
            cell = cell_of(self.table, labels | {"layer": layer, "output": 0})
            for name, values in fields.items():
                values.append(float(cell[name]))
        return {name: ("layer", np.array(values)) for name, values in fields.items()}


def _random(
    store: ActivationStore, site: Site, basis: Float[Tensor, "d rank"], n: int, rng: torch.Generator
) -> list[Float[Tensor, "d rank"]]:
    """Random directions with the covariance of the activations; none where they vary in the basis only."""
    assert site.pos is not None
    rows = store[site.kind, site.layer].at(site.pos).double().cpu()
    if site.head is not None:
        rows = rows[:, site.head]
    rows = rows[torch.isfinite(rows).all(-1)]
    centred = rows - rows.mean(0)
    size = float(centred.norm())
    # Float32 activations that are equal differ by less than this share of their size.
    if size <= 1e-6 * float(rows.norm()):
        raise ProbeError(
            f"causal_check: the activations at {site} are the same in every prompt; there is nothing to "
            "decode."
        )
    known, _ = torch.linalg.qr(basis.double())
    if float((centred - (centred @ known) @ known.T).norm()) <= 1e-4 * size:
        return []
    # A random combination of the centred rows has their covariance.
    draws: list[Tensor] = []
    for _ in range(n):
        draws.append(
            centred.T @ torch.randn(len(centred), basis.shape[1], generator=rng, dtype=torch.float64)
        )
    return draws
