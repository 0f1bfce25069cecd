"""Effects estimated from gradients: one linear step at the base run, or the mean gradient on the way to the
edit.

`gradient`, `integrated` and `atp_star` are the methods of `effects`. All run in batches of examples whose
forward and backward pass fit into the budget.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.engine.bound import Bound, SitePositions, apply_edit
from workbench.engine.hooked.forward import Write, forward, gradients_of
from workbench.engine.memory import rows_per_forward
from workbench.engine.runs import MeasuredRuns
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Key, Shape, Site

Elements = Sequence[tuple[Site, ...]]


def gradient(runs: MeasuredRuns, elements: Elements, bound: Bound, *, progress: bool) -> Tensor:
    """[example, element]: (e(a) - a) . dm/da at the base run, from one forward and one backward pass per
    batch.
    """
    keys = list(dict.fromkeys(site.key for element in elements for site in element))
    tables = []
    with tqdm(
        total=len(runs.prompts),
        desc="gradients",
        unit="example",
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for examples, prompts, part in _batches(runs, bound):
            result = forward(runs.model, prompts.tokens, record=keys, gradients=True)
            total = runs.measure(result.logits, prompts, examples).sum()
            slopes = gradients_of(total, {key: result.recorded[key] for key in keys}, runs.metric.name)
            columns = [
                sum(_first_order(site, result.recorded, slopes, part) for site in element)
                for element in elements
            ]
            tables.append(torch.stack([torch.as_tensor(column) for column in columns], 1))
            bar.update(len(prompts))
    return torch.cat(tables).cpu()


def integrated(
    runs: MeasuredRuns, elements: Elements, bound: Bound, *, steps: int, progress: bool
) -> tuple[Tensor, dict[Key, Tensor]]:
    """[example, element]: (e(a) - a) . the mean gradient at `steps` midpoints on the straight way from a to
    e(a).

    All sites of one (kind, layer) move together, one (kind, layer) after the other.

    Returns:
        the table, and for each (kind, layer) [example] the sum over its sites minus m(those edited) -
        m(base).
    """
    sites: dict[Key, list[Site]] = {}
    for site in dict.fromkeys(site for element in elements for site in element):
        sites.setdefault(site.key, []).append(site)
    shares: dict[Site, list[Tensor]] = {}
    for of_key in sites.values():
        shares |= {site: [] for site in of_key}
    gaps: dict[Key, list[Tensor]] = {key: [] for key in sites}
    total = len(sites) * len(runs.prompts)
    with tqdm(
        total=total,
        desc="integrated gradients",
        unit="example",
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for examples, prompts, part in _batches(runs, bound):
            for key, of_key in sites.items():
                change, slope, reached = _along(runs, key, of_key, part, prompts, examples, steps)
                effects = {site: _dot(site, change, slope, part) for site in of_key}
                for site, effect in effects.items():
                    shares[site].append(effect)
                gaps[key].append(torch.stack(list(effects.values())).sum(0) - reached)
                bar.update(len(prompts))
    columns = [sum(torch.cat(shares[site]) for site in element) for element in elements]
    table = torch.stack([torch.as_tensor(column) for column in columns], 1).cpu()
    return table, {key: torch.cat(gap).cpu() for key, gap in gaps.items()}


def atp_star(runs: MeasuredRuns, elements: Elements, bound: Bound, *, progress: bool) -> Tensor:
    """[example, element]: first-order effects with attention recomputed for queries and keys, and with layers
    dropped.

    The size is the mean of |effect| over runs in which one layer's writes pass no gradient on (the site's own
    layer is left out where it would see nothing); the sign is that of the plain estimate. Queries and keys
    take a forward pass each.
    """
    n_layers = Shape.of(runs.model).n_layers
    keys = list(dict.fromkeys(site.key for element in elements for site in element))
    attended = {layer for kind, layer in keys if kind in ("q", "k")}
    record = [*keys, *((kind, layer) for layer in attended for kind in ("z", "v", "pattern"))]
    drops = [None, *(range(n_layers) if n_layers > 1 else ())]
    tables = []
    with tqdm(
        total=len(runs.prompts),
        desc="atp-star",
        unit="example",
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for examples, prompts, part in _batches(runs, bound):
            passes = [_slopes(runs, prompts, examples, record, dropped) for dropped in drops]
            recorded = passes[0][0]  # values are the same in every pass, only the gradients differ
            changes = {site: _changed(runs, site, recorded, part) for element in elements for site in element}
            columns = [
                _combined([_sum_of(element, changes, slopes) for _, slopes in passes], element, n_layers)
                for element in elements
            ]
            tables.append(torch.stack(columns, 1))
            bar.update(len(prompts))
    return torch.cat(tables).cpu()


def _slopes(
    runs: MeasuredRuns, prompts: Prompts, examples: Sequence[int], record: Sequence[Key], dropped: int | None
) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
    """Activations and the slopes at them, of a run in which a layer's writes pass no gradient on."""
    kinds: tuple[str, ...] = ()
    if dropped is not None:
        kinds = ("attn_out",) if Shape.of(runs.model).attn_only else ("attn_out", "mlp_out")
    # Detached, a layer's writes keep their values and pass no gradient on.
    writes = [Write(kind, dropped, lambda value: value.detach()) for kind in kinds]
    result = forward(runs.model, prompts.tokens, writes=writes, record=record, gradients=True)
    total = runs.measure(result.logits, prompts, examples).sum()
    slopes = gradients_of(total, {key: result.recorded[key] for key in record}, runs.metric.name)
    return {key: result.recorded[key].detach() for key in record}, slopes


def _changed(
    runs: MeasuredRuns, site: Site, recorded: Mapping[Key, Tensor], bound: Bound
) -> tuple[Key, Tensor]:
    """Where a site's effect is linear, and by how much that changes: itself, or z behind a pattern that is
    run anew.
    """
    activation = recorded[site.key]
    edited = apply_edit(site, bound, activation.clone(), causal=Shape.of(runs.model).causal)
    if site.kind not in ("q", "k"):
        return site.key, edited - activation
    layer = site.layer
    write = Write(*site.key, lambda _: edited)
    pattern = forward(runs.model, bound.prompts.tokens, writes=[write], record=[("pattern", layer)]).recorded[
        "pattern", layer
    ]
    v = recorded["v", layer].repeat_interleave(Shape.of(runs.model).group, 2)
    return ("z", layer), torch.einsum(
        "bhqk,bkhe->bqhe", pattern - recorded["pattern", layer], v.to(pattern.dtype)
    )


def _sum_of(
    element: tuple[Site, ...], changes: Mapping[Site, tuple[Key, Tensor]], slopes: Mapping[Key, Tensor]
) -> Tensor:
    """[example]: the first-order effects of the sites of an element, added up in double precision."""
    products = []
    for site in element:
        key, change = changes[site]
        products.append((change.double() * slopes[key].double()).flatten(1).sum(1))
    return torch.stack(products).sum(0)


def _combined(each: Sequence[Tensor], element: tuple[Site, ...], n_layers: int) -> Tensor:
    """The plain estimate's sign with the mean size of those with a layer dropped."""
    plain, *dropped = each
    if not dropped:
        return plain
    # A site inside a layer sees no gradient when that very layer is dropped, so that run does not count.
    inside = all(KINDS[site.kind].role in ("reader", "inside") or site.kind == "z" for site in element)
    return plain.sign() * torch.stack(dropped).abs().sum(0) / (n_layers - 1 if inside else n_layers)


def _along(
    runs: MeasuredRuns,
    key: Key,
    sites: Sequence[Site],
    bound: Bound,
    prompts: Prompts,
    examples: Sequence[int],
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole change e(a) - a of an activation, the mean slope on the way there, and [example] m(edited) -
    m(base).
    """
    plain = forward(runs.model, prompts.tokens, record=[key])
    start, causal = plain.recorded[key], Shape.of(runs.model).causal
    end = start.clone()
    for site in sites:
        apply_edit(site, bound, end, causal=causal)
    change, slope = end - start, torch.zeros_like(start)

    def at(share: float) -> Write:
        return Write(*key, lambda _: start + share * change)

    for step in range(steps):
        result = forward(
            runs.model, prompts.tokens, writes=[at((step + 0.5) / steps)], record=[key], gradients=True
        )
        measured = runs.measure(result.logits, prompts, examples).sum()
        slope += gradients_of(measured, {key: result.recorded[key]}, runs.metric.name)[key].detach() / steps
    edited = runs.measure(forward(runs.model, prompts.tokens, writes=[at(1.0)]).logits, prompts, examples)
    return change, slope, edited - runs.measure(plain.logits, prompts, examples)


def _batches(runs: MeasuredRuns, bound: Bound) -> Iterator[tuple[Sequence[int], Prompts, Bound]]:
    """Examples whose forward and backward pass fit into the budget, with the value bound to them."""
    n = len(runs.prompts)
    size = rows_per_forward(runs.model, int(runs.prompts.lengths.max()), budget=runs.budget, gradients=True)
    for first in range(0, n, size):
        examples = range(first, min(first + size, n))
        part = bound if len(examples) == n else bound.select(examples)
        yield examples, part.prompts, part


def _first_order(
    site: Site, recorded: Mapping[Key, Tensor], slopes: Mapping[Key, Tensor], bound: Bound
) -> Tensor:
    """[example]: (e(a) - a) . dm/da of one site."""
    activation = recorded[site.key].detach()
    change = apply_edit(site, bound, activation.clone()) - activation
    return _dot(site, change, slopes[site.key], bound)


def _dot(site: Site, change: Tensor, slope: Tensor, bound: Bound) -> Tensor:
    """[example]: the product of a change and a gradient, of the site's part of them."""
    of_site = SitePositions.of(site, bound.prompts).indices(change)
    wide = torch.float64 if change.dtype == torch.float64 else torch.float32
    return (change[of_site].to(wide) * slope[of_site].to(wide)).reshape(len(change), -1).sum(1)
