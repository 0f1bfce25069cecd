"""Whether a model uses what a probe reads: its direction is taken out or swapped, and the behaviour measured.

A probe that decodes shows that something can be read, not that the model reads it (Elazar et al., arXiv 2006.00995). The
control is random directions drawn from the same activations, so that they are as large in them as the probe's may be.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from workbench.engine.capture import capture_pairs
from workbench.engine.runs import MeasuredRuns
from workbench.engine.values import Value, from_store, mean, project
from workbench.errors import ProbeError, UnknownName
from workbench.interventions.effects import effects
from workbench.lenses.unembedding import check_store
from workbench.metrics.continuations import expand
from workbench.metrics.metric import Metric
from workbench.probes.fit import Probes
from workbench.probes.tables import cell_of
from workbench.prompts.pairs import PromptPairs
from workbench.results import versions
from workbench.sites import KINDS, Position, Site, kind_named
from workbench.statistics import check_level, check_seed, summary
from workbench.stores.store import ActivationStore

EDITS = ("erase", "swap")


def causal_check(
    probes: Probes,
    model: Any,
    pairs: PromptPairs,
    *,
    concept: str,
    kind: str,
    layers: Sequence[int] | None = None,
    pos: Position = "END",
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    stores: tuple[ActivationStore, ActivationStore] | None = None,
    n_random: int = 20,
    least: float = 0.01,
    level: float = 0.95,
    seed: int = 0,
    budget: int | None = None,
    progress: bool = False,
    **where: Any,
) -> xr.Dataset:
    """How the behaviour changes when the direction of a concept's probe is erased or swapped, beside random directions.

    "erase" sets the activation's part along the probe's direction (all of its directions, for several classes) to its mean
    at that position, "swap" to the part that it has in the corrupt run; the rest of the activation stays.

    Args:
        probes: of `fit_probes` on `kind`.  concept: which of theirs.
        kind: where the probes were fitted: a stream, or `z` when the selected features lie in one head.
        pos: the position that is edited; of probes that were fitted at several, those of this position.
        stores: (clean, corrupt) activations of the pairs with `kind`; captured unless given.
        n_random: random directions, of as many dimensions as the probe has, drawn from the activations' covariance. Where
            the activations hold nothing beside the probe's directions there is no other to draw, and `p` is NaN.
        least: share of |m(corrupt) - m(clean)| from which an effect counts.
        where: labels of the other axes of the probes: `k=4`, `selector=`, or `baseline="mass-mean"`.

    Returns:
        Dataset (layer, edit) of `effect` (change of the metric, clean run) with `low` and `high` over examples; `random`, the
        largest of the random directions' |mean effect|; `p`, the share of directions at least as strong; `used`: 1 where the
        effect is at least `least`, its interval excludes 0, and `p` is at most 1 - level. (layer): `accuracy` of the
        probe, with `_low` and `_high`; `whole`, the change when the whole activation at that place is swapped. Attribute
        `total`: m(corrupt) - m(clean). All of it is about the probe's direction: another probe of the same concept, as
        accurate, can have one that the model uses where it does not use this one.

    Raises:
        ProbeError: features in several heads of `z`, or a probe that is zero.
        UnknownName: a concept or label that the probes lack.
        StoreError: the store lacks the kind or a layer.
    """
    check_seed(seed)
    check_level(level)
    if (1 + n_random) * (1 - level) < 1 - 1e-9:
        raise ProbeError(
            f"causal_check: {n_random} random directions cannot show p <= {1 - level:.2g}: n_random={round(1 / (1 - level)) - 1} "
            "or more can."
        )
    kind_named(kind)
    own, other = stores or capture_pairs(model, pairs, sites=[kind])
    check_store(own, model, "causal_check")
    if str(probes.results.attrs.get("model_fingerprint", own.model)) != own.model:
        raise ProbeError(
            f"causal_check: the probes are of another model ({probes.results.attrs.get('model')}) than {own.model_name}."
        )
    table = probes.baselines if "baseline" in where and probes.baselines is not None else probes.results
    where |= {"pos": pos} if "pos" in table.dims else {}
    wanted = [int(layer) for layer in (table["layer"].values if layers is None else layers)]
    rng = torch.Generator().manual_seed(seed)
    rest = ("layer", "edit")
    fields = {
        name: np.full((len(wanted), len(EDITS)), np.nan)
        for name in ("effect", "low", "high", "random", "p", "used")
    }
    whole = np.full(len(wanted), np.nan)
    rows = expand(model, pairs, metric)
    total = float(
        rows.combine(MeasuredRuns(model, rows.pairs, "clean", rows.metric, budget).distance()).mean()
    )
    for row, layer in enumerate(tqdm(wanted, desc="causal check", disable=not progress)):
        basis, head = _basis(probes, table, concept, kind, layer, where)
        site = Site(kind, layer, head, pos=pos)
        drawn = _random(own, site, basis, n_random, rng)

        def change(value: Value, site: Site = site) -> xr.DataArray:
            how: dict[str, Any] = {"metric": metric, "budget": budget, "progress": False}
            return effects(model, pairs, sites=[site], value=value, **how).isel(site=0)

        whole[row] = float(change(from_store(other)).mean())
        for column, inner in enumerate((mean(own, per="pos"), from_store(other))):
            found = summary(change(project(basis, inner)), level=level, seed=seed)
            controls = np.array([abs(float(change(project(each, inner)).mean())) for each in drawn])
            effect, low, high = (float(found[name]) for name in ("mean", "low", "high"))
            p = (
                (1 + int((controls >= abs(effect)).sum())) / (1 + len(controls))
                if len(drawn)
                else float("nan")
            )
            used = (low > 0 or high < 0) and abs(effect) >= least * abs(total) and not p > 1 - level + 1e-9
            most = controls.max() if len(drawn) else float("nan")
            values = {"effect": effect, "low": low, "high": high, "random": most, "p": p, "used": float(used)}
            for name, value in values.items():
                fields[name][row, column] = value
    made = xr.Dataset(
        {n: (rest, v) for n, v in fields.items()}, coords={"layer": wanted, "edit": list(EDITS)}
    )
    made = made.assign({"whole": ("layer", whole)} | _accuracy(table, concept, kind, wanted, where))
    facts = {
        "kind": "causal_check",
        "concept": concept,
        "site": kind,
        "position": str(pos),
        "n_random": n_random,
    }
    facts |= {
        "total": total,
        "least": least,
        "level": level,
        "seed": seed,
        "model": own.model_name,
        "model_fingerprint": own.model,
    }
    return made.assign_attrs(facts | {"data_fingerprint": own.prompts.fingerprint} | versions())


def _basis(
    probes: Probes, table: xr.Dataset, concept: str, kind: str, layer: int, where: Mapping[str, Any]
) -> tuple[Float[Tensor, "d rank"], int | None]:
    """The directions of a probe, one for each of its outputs, and the head that they lie in (None for a stream)."""
    place = dict(where) | {"layer": layer} | ({"kind": kind} if "kind" in table.dims else {})
    if "kind" not in table.dims and table.attrs["kinds"] != kind:
        raise ProbeError(f"causal_check: the probes are of {table.attrs['kinds']}, not of {kind}.")
    chosen = table["concept"].values.tolist().index(concept) if concept in table["concept"].values else None
    if chosen is None:
        raise UnknownName("concept", concept, map(str, table["concept"].values))
    n = max(1, sum(str(name) != "" for name in table["class_name"].values[chosen]))
    outputs = [{}] if n == 1 else [{"output": i} for i in range(n)]
    basis = torch.stack([probes.direction(concept, **place, **each) for each in outputs], -1)
    if not bool(torch.isfinite(basis).all()) or not bool(basis.any()):
        raise ProbeError(
            f"causal_check: the probe of {concept!r} at {kind}[{layer}] is zero or was not measured."
        )
    if KINDS[kind].unit not in ("head", "kv_head"):
        return basis, None
    heads = basis.flatten(1).abs().sum(1).nonzero()[:, 0].tolist()
    if len(heads) > 1:
        raise ProbeError(
            f"causal_check: the probe at {kind}[{layer}] reads heads {heads}. Probe one head with selectors=['given'] and "
            "given=, or a stream such as resid_post."
        )
    return basis[heads[0]], heads[0]


def _random(
    store: ActivationStore, site: Site, basis: Float[Tensor, "d rank"], n: int, rng: torch.Generator
) -> list[Float[Tensor, "d rank"]]:
    """Random directions of the activations' covariance; none where it has nothing outside the basis."""
    assert site.pos is not None
    rows = store[site.kind, site.layer].at(site.pos).double().cpu()
    rows = rows if site.head is None else rows[:, site.head]
    rows = rows[torch.isfinite(rows).all(-1)]
    size = float((rows - rows.mean(0)).norm())
    if size <= 1e-6 * float(rows.norm()):
        raise ProbeError(
            f"causal_check: the activations at {site} are the same in every prompt; there is nothing to decode."
        )
    known, _ = torch.linalg.qr(basis.double())
    rows = rows - rows.mean(0)
    if float((rows - (rows @ known) @ known.T).norm()) <= 1e-4 * size:
        return []
    return [
        rows.T @ torch.randn(len(rows), basis.shape[1], generator=rng, dtype=torch.float64) for _ in range(n)
    ]


def _accuracy(
    table: xr.Dataset, concept: str, kind: str, layers: Sequence[int], where: Mapping[str, Any]
) -> dict[str, tuple[str, np.ndarray]]:
    """How well the probes decode, (layer), with the interval, and the mean of their shuffled controls."""
    place = {"concept": concept} | dict(where) | ({"kind": kind} if "kind" in table.dims else {})
    found: dict[str, list[float]] = {"accuracy": [], "accuracy_low": [], "accuracy_high": []}
    for layer in layers:
        cell = cell_of(table, {"control": "none"} | place | {"layer": layer, "output": 0})
        for name, values in found.items():
            values.append(float(cell[name]))
    return {name: ("layer", np.array(values)) for name, values in found.items()}
