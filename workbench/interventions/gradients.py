"""Effects estimated from gradients: one linear step at the base run, or the mean gradient towards the edit.

`gradient`, `integrated` and `atp_star` are the methods of `effects`. All run in batches of examples whose
forward and backward pass fit into the budget.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.engine.bound import Bound, SitePositions, apply_edit
from workbench.engine.gradients.separable import check_separable
from workbench.engine.hooked.forward import Write, forward, gradients_of
from workbench.engine.memory import rows_per_forward
from workbench.engine.runs import MeasuredRuns
from workbench.progress import progress_bar
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Key, Shape, Site

Elements = Sequence[tuple[Site, ...]]


def gradient(runs: MeasuredRuns, elements: Elements, bound: Bound, *, progress: bool) -> Tensor:
    """[example, element]: (e(a) - a) . dm/da at the base run. One forward and one backward pass per batch."""
    keys = _keys(elements)
    tables = []
    with progress_bar(len(runs.prompts), "gradients", "example", shown=progress) as bar:
        for examples, batch in _batches(runs, bound):
            recorded, gradients = _run_with_gradients(runs, batch.prompts, examples, keys)
            columns = []
            for element in elements:
                effects_of = [_first_order(runs, site, recorded, gradients, batch) for site in element]
                columns.append(_total(effects_of))
            tables.append(torch.stack(columns, 1))
            bar.update(len(examples))
    return torch.cat(tables).cpu()


class Completeness(NamedTuple):
    """How far the effects of the sites of one (kind, layer) are from what editing them together does.

    Attributes:
        gap: [example], the sum of the effects minus `whole`.
        whole: [example], m(all of them edited) - m(base).
        size: [example], the larger |m| of both runs: its rounding is in the gap too.
    """

    gap: Tensor
    whole: Tensor
    size: Tensor


def integrated(
    runs: MeasuredRuns, elements: Elements, bound: Bound, *, steps: int, progress: bool
) -> tuple[Tensor, dict[Key, Completeness]]:
    """[example, element]: (e(a) - a) . the mean gradient at `steps` midpoints between a and e(a).

    All sites of one (kind, layer) move together, one (kind, layer) after the other.

    Returns:
        the table, and how complete the effects of each (kind, layer) are.
    """
    sites: dict[Key, list[Site]] = {}
    for site in dict.fromkeys(chain.from_iterable(elements)):
        sites.setdefault(site.key, []).append(site)
    effects: dict[Site, list[Tensor]] = defaultdict(list)
    gaps: dict[Key, list[Completeness]] = defaultdict(list)
    n_paths = len(sites) * len(runs.prompts)
    with progress_bar(n_paths, "integrated gradients", "example", shown=progress) as bar:
        for examples, batch in _batches(runs, bound):
            for key, of_key in sites.items():
                path = _along(runs, key, of_key, batch, examples, steps)
                of_batch = [_dot(site, path.change, path.mean_gradient, batch) for site in of_key]
                for site, effect in zip(of_key, of_batch, strict=True):
                    effects[site].append(effect)
                # With infinitely many steps the gap is exactly zero if the sites do not
                # overlap, so it measures the error.
                whole = path.edited - path.base
                size = torch.maximum(path.edited.abs(), path.base.abs())
                gaps[key].append(Completeness(_total(of_batch) - whole, whole, size))
                bar.update(len(examples))
    columns = []
    for element in elements:
        columns.append(_total(torch.cat(effects[site]) for site in element))
    completeness = {}
    for key, batches in gaps.items():
        completeness[key] = Completeness(
            *(torch.cat(of_field).cpu() for of_field in zip(*batches, strict=True))
        )
    return torch.stack(columns, 1).cpu(), completeness


def atp_star(runs: MeasuredRuns, elements: Elements, bound: Bound, *, progress: bool) -> Tensor:
    """[example, element]: first-order effects, with attention recomputed for q and k and layers dropped.

    The size is the mean of |effect| over the plain run and runs in which one layer's writes pass no gradient on
    (the site's own layer is left out where it would see nothing); the sign is that of the plain estimate. Why
    the plain run counts, and what scores 0: `engine/gradients/atp_star.py`. Queries and keys take a forward
    pass each.
    """
    n_layers = Shape.of(runs.model).n_layers
    keys = _keys(elements)
    attended = {layer for kind, layer in keys if kind in ("q", "k")}
    # Where attention is recomputed, its effect is read at z: values and patterns give the change of z.
    record = [*keys, *product(("z", "v", "pattern"), attended)]
    drops: list[int | None] = [None]
    if n_layers > 1:
        drops += range(n_layers)  # with a single layer dropped nothing would be left
    tables = []
    with progress_bar(len(runs.prompts), "atp-star", "example", shown=progress) as bar:
        for examples, batch in _batches(runs, bound):
            passes = []
            for dropped in drops:
                passes.append(_run_with_gradients(runs, batch.prompts, examples, record, dropped))
            recorded = passes[0].recorded  # values are the same in every pass, only the gradients differ
            changes = {}
            for site in dict.fromkeys(chain.from_iterable(elements)):
                changes[site] = _changed(runs, site, recorded, batch)
            columns = []
            for element in elements:
                estimates = [_sum_of(element, changes, one.gradients) for one in passes]
                columns.append(_combined(estimates, element, n_layers))
            tables.append(torch.stack(columns, 1))
            bar.update(len(examples))
    return torch.cat(tables).cpu()


class _RunWithGradients(NamedTuple):
    """The activations of a run, and the gradients of the metric at them."""

    recorded: dict[Key, Tensor]
    gradients: dict[Key, Tensor]


def _run_with_gradients(
    runs: MeasuredRuns,
    prompts: Prompts,
    examples: Sequence[int],
    record: Sequence[Key],
    dropped: int | None = None,
) -> _RunWithGradients:
    """The base run with its gradients; the writes of the `dropped` layer pass none on."""
    kinds: list[str] = []
    if dropped is not None:
        kinds.append("attn_out")
        if not Shape.of(runs.model).attn_only:
            kinds.append("mlp_out")
    # Detached, a layer's writes keep their values and pass no gradient on.
    writes = [Write(kind, dropped, lambda value: value.detach()) for kind in kinds]
    result = forward(runs.model, prompts, writes=writes, record=record, gradients=True)
    # Examples do not see each other, so one backward pass of the sum gives the gradient of each.
    measured = runs.measure(result.logits, prompts, examples)
    check_separable(runs.metric, measured, result.logits)
    gradients = gradients_of(measured.sum(), {key: result.recorded[key] for key in record}, runs.metric.name)
    return _RunWithGradients({key: result.recorded[key].detach() for key in record}, gradients)


def _changed(
    runs: MeasuredRuns, site: Site, recorded: Mapping[Key, Tensor], bound: Bound
) -> tuple[Key, Tensor]:
    """Where a site's effect is linear, and by how much the activation there changes.

    That is the site itself, or for q and k the z that comes out of a recomputed pattern.
    """
    activation = recorded[site.key]
    edited = apply_edit(site, bound, activation.clone(), causal=Shape.of(runs.model).causal)
    if site.kind not in ("q", "k"):
        return site.key, edited - activation
    layer = site.layer
    write = Write(*site.key, lambda _: edited)
    # The softmax is run, not linearized: it saturates, and there gradients of q and k say nothing.
    result = forward(runs.model, bound.prompts, writes=[write], record=[("pattern", layer)])
    pattern = result.recorded["pattern", layer]
    # [example, key, kv_head, d_head] → [example, key, head, d_head]: query heads of a group share values.
    v = recorded["v", layer].repeat_interleave(Shape.of(runs.model).group, 2).to(pattern.dtype)
    return ("z", layer), torch.einsum("bhqk,bkhe->bqhe", pattern - recorded["pattern", layer], v)


def _sum_of(
    element: tuple[Site, ...], changes: Mapping[Site, tuple[Key, Tensor]], gradients: Mapping[Key, Tensor]
) -> Tensor:
    """[example]: the first-order effects of the sites of an element, added up in double precision."""
    products = []
    for site in element:
        key, change = changes[site]
        products.append((change.double() * gradients[key].double()).flatten(1).sum(1))
    return _total(products)


def _combined(estimates: Sequence[Tensor], element: tuple[Site, ...], n_layers: int) -> Tensor:
    """The plain estimate's sign with the mean size of all, those with a layer dropped among them."""
    plain = estimates[0]
    if len(estimates) == 1:
        return plain
    # A site inside a layer sees no gradient when that very layer is dropped, so that run does not count.
    inside = all(KINDS[site.kind].role in ("reader", "inside") or site.kind == "z" for site in element)
    n_counted = n_layers if inside else n_layers + 1
    size = torch.stack(list(estimates)).abs().sum(0) / n_counted
    # Where the plain estimate cancels to exactly 0 there is no sign to keep, and the size must not be lost.
    return torch.where(plain < 0, -size, size)


@dataclass(frozen=True)
class _StraightPath:
    """The straight path of one activation from a to e(a).

    Attributes:
        change: e(a) - a.
        mean_gradient: of the metric, over the points of the path.
        base, edited: [example], the metric at both ends.
    """

    change: Tensor
    mean_gradient: Tensor
    base: Tensor
    edited: Tensor


def _along(
    runs: MeasuredRuns, key: Key, sites: Sequence[Site], bound: Bound, examples: Sequence[int], steps: int
) -> _StraightPath:
    """The path on which all sites of one (kind, layer) move together."""
    prompts = bound.prompts
    plain = forward(runs.model, prompts, record=[key])
    start, causal = plain.recorded[key], Shape.of(runs.model).causal
    end = start.clone()
    for site in sites:
        apply_edit(site, bound, end, causal=causal)
    change, mean_gradient = end - start, torch.zeros_like(start)

    def moved(share: float) -> Write:
        """The write that moves the activation this share of the path."""
        return Write(*key, lambda _: start + share * change)

    for step in range(steps):
        # Midpoints: for the same number of steps their error is far smaller than that of either end.
        write = moved((step + 0.5) / steps)
        result = forward(runs.model, prompts, writes=[write], record=[key], gradients=True)
        measured = runs.measure(result.logits, prompts, examples)
        if step == 0:
            check_separable(runs.metric, measured, result.logits)
        gradients = gradients_of(measured.sum(), {key: result.recorded[key]}, runs.metric.name)
        mean_gradient += gradients[key].detach() / steps
    edited = runs.measure(forward(runs.model, prompts, writes=[moved(1.0)]).logits, prompts, examples)
    return _StraightPath(change, mean_gradient, runs.measure(plain.logits, prompts, examples), edited)


def _batches(runs: MeasuredRuns, bound: Bound) -> Iterator[tuple[Sequence[int], Bound]]:
    """Examples whose forward and backward pass fit into the budget, with the value bound to them."""
    n = len(runs.prompts)
    size = rows_per_forward(runs.model, int(runs.prompts.lengths.max()), budget=runs.budget, gradients=True)
    runs.check_slices(-(-n // size))
    for first in range(0, n, size):
        examples = range(first, min(first + size, n))
        # A selection of everything would lose what the bound value has already read from its store.
        yield examples, bound if len(examples) == n else bound.select(examples)


def _keys(elements: Elements) -> list[Key]:
    """The (kind, layer) pairs of the elements' sites, each once."""
    return list(dict.fromkeys(site.key for site in chain.from_iterable(elements)))


def _total(effects: Iterable[Tensor]) -> Tensor:
    """[example]: the sum of the effects of an element's sites."""
    return torch.stack(list(effects)).sum(0)


def _first_order(
    runs: MeasuredRuns,
    site: Site,
    recorded: Mapping[Key, Tensor],
    gradients: Mapping[Key, Tensor],
    bound: Bound,
) -> Tensor:
    """[example]: (e(a) - a) . dm/da of one site."""
    activation = recorded[site.key].detach()
    edited = apply_edit(site, bound, activation.clone(), causal=Shape.of(runs.model).causal)
    return _dot(site, edited - activation, gradients[site.key], bound)


def _dot(site: Site, change: Tensor, gradient_at: Tensor, bound: Bound) -> Tensor:
    """[example]: the product of a change and a gradient, of the site's part of them."""
    of_site = SitePositions.of(site, bound.prompts).indices(change)
    # Sums of thousands of half-precision products would lose all but their first digits.
    wide = torch.float64 if change.dtype == torch.float64 else torch.float32
    products = change[of_site].to(wide) * gradient_at[of_site].to(wide)
    dots = products.reshape(len(change), -1).sum(1)
    # An example without the position was read at token 0, whose effect is not this site's.
    return dots.masked_fill(~bound.has(site).to(dots.device), 0)
