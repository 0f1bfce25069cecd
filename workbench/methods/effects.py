"""The effect of editing sites, one at a time: patching, ablation, steering and attribution are values and methods.

`effect = m(edited) - m(base)`, per example: ablating a supporting site is negative.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench.engine.edits import Bound, Places, Value, check_value
from workbench.engine.reference import forward, rows_per_forward, slopes_of
from workbench.engine.run import Edit, as_sites, check_context, check_positions, stacked
from workbench.errors import SiteError, UnknownName
from workbench.models.load import check_eval
from workbench.results import effect_array
from workbench.sites import Grid, Key, Site
from workbench.tasks.metrics import Metric
from workbench.tasks.metrics import metric as as_metric
from workbench.tasks.pairs import PromptPairs, Prompts

METHODS = ("exact", "gradient")
Sites = Grid | Site | str | Sequence[Site | str | tuple[Site | str, ...]]


def effects(
    model: Any,
    pairs: PromptPairs,
    *,
    sites: Sites,
    value: Value,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    base: Literal["clean", "corrupt"] | str = "clean",
    method: Literal["exact", "gradient"] | str = "exact",
    normalized: bool = False,
    budget: int | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """How the metric changes when the run `base` is edited at each site in turn: m(edited) - m(base).

    `base="clean"` with `value=from_store(corrupt)` is noising, `base="corrupt"` with `from_store(clean)` denoising.

    Args:
        sites: a `grid(...)`, or sites; an element that is a tuple of sites is edited together.
        value: what is written there.
        metric: a name, a `Metric`, or a function `logits [example, pos, vocab] -> [example]`.
        method: "exact" runs every edit; "gradient" is (e(a) - a) . dm/da at the base run, one backward pass for all.
        normalized: divide by m(other run) - m(base) of each example: 1 is full recovery.
        budget: bytes that one forward pass may use.

    Returns:
        DataArray (example, *axes of the grid) or (example, site). Cells beyond the length of an example, or at a
        named position that it lacks, are NaN.

    Raises:
        SiteError, MetricError, StoreError, PromptError, EditError: see the messages; nothing is left behind.

    Source: activation patching, Vig et al. 2004.12265 and Heimersheim & Nanda 2404.15255; attribution patching,
    Syed et al. 2310.10348.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> wb.effects(model, pairs, sites=wb.grid("z", model), value=wb.zero()).dims
    ('example', 'layer', 'head')
    """
    check_eval(model)
    if method not in METHODS:
        raise UnknownName("method of effects", method, METHODS)
    check_value(value)
    run = _BaseRun(model, pairs, base, as_metric(metric), budget)
    if method == "gradient":
        run.metric.check_attributable(base)
    elements, dims, coords = _elements(sites, model, run.prompts)
    if any(site.pos is None for element in elements for site in element):
        pairs.check_equal_lengths("Whole-sequence edits need equal lengths; edit named positions instead (pos=['END']).")
    bound = value.bind(model, run.prompts, run.other)
    table = (_exact if method == "exact" else _gradient)(run, elements, bound, progress)
    for j, element in enumerate(elements):
        table[~torch.stack([bound.has(site) for site in element]).all(0), j] = float("nan")
    if normalized:
        table = table / run.distance()[:, None]
    kind = sites.kind if isinstance(sites, Grid) else "sites"
    attrs = pairs.attrs(model) | {
        "kind": "effects", "sites": kind, "value": value.describe(), "metric": run.metric.name,
        "unit": "share" if normalized else run.metric.unit, "method": method, "base": base, "normalized": normalized,
    }  # fmt: skip
    shape = (len(pairs), *(len(labels) for labels in coords.values()))
    coords = {"example": np.arange(len(pairs)), **coords}
    return effect_array(table.reshape(shape), ("example", *dims), coords, name="effect", attrs=attrs)


class _BaseRun:
    """The run that is edited: its prompts, its activations where needed, and its metric."""

    def __init__(self, model: Any, pairs: PromptPairs, base: str, metric: Metric, budget: int | None) -> None:
        self.model, self.pairs, self.metric, self.budget = model, pairs, metric, budget
        self.prompts = pairs.side(base)
        self.other = pairs.side("corrupt" if base == "clean" else "clean")
        metric.check(pairs)
        check_context(model, self.prompts)
        check_context(model, self.other)
        self.chunk = rows_per_forward(model, int(self.prompts.lengths.max()), budget=budget)
        self.reference = self._reference() if metric.needs_reference else None
        self.measured = self.plain(self.prompts)
        self._activations: dict[Key, Tensor] = {}

    def parts(self, chunk: int, bound: Bound) -> Iterator[tuple[range, Prompts, Bound]]:
        """The examples in batches, with the value bound to each batch."""
        n = len(self.prompts)
        if n <= chunk:
            yield range(n), self.prompts, bound
            return
        for start in range(0, n, chunk):
            examples = range(start, min(start + chunk, n))
            part = bound.select(examples)
            yield examples, part.prompts, part

    def activation(self, key: Key) -> Tensor:
        """[example, ...]: a whole activation of the unedited run; that of the last (kind, layer) asked for is kept."""
        if key not in self._activations:
            batches = self.prompts.tokens.split(self.chunk)
            whole = torch.cat([forward(self.model, tokens, record=[key]).recorded[key] for tokens in batches])
            self._activations = {key: whole}
        return self._activations[key]

    def _reference(self) -> Tensor:
        sides = (self.pairs.clean.select(examples) for examples in self._batches())
        return torch.cat([self.metric.read(forward(self.model, part.tokens).logits, part) for part in sides])

    def _batches(self) -> list[range]:
        n = len(self.prompts)
        return [range(start, min(start + self.chunk, n)) for start in range(0, n, self.chunk)]

    def plain(self, prompts: Prompts) -> Tensor:
        """[example]: the metric of unedited prompts."""
        parts = ((examples, prompts.select(examples)) for examples in self._batches())
        return torch.cat([self.measure(forward(self.model, part.tokens).logits, part, examples) for examples, part in parts])

    def measure(self, logits: Tensor, prompts: Prompts, examples: Sequence[int]) -> Tensor:
        """[example]: the metric of logits [example, pos, vocab] of these examples."""
        reference = None if self.reference is None else self.reference[list(examples)]
        return self.metric(self.metric.read(logits, prompts), self.pairs.select(examples), reference)

    def distance(self) -> Tensor:
        """[example]: m(other run) - m(base), NaN where it is ~0."""
        gap = (self.plain(self.other) - self.measured).cpu()
        flat = gap.abs() < 1e-6
        if bool(flat.any()):
            text = f"{int(flat.sum())} of {len(gap)} examples do not differ between the runs: their cells are NaN."
            warnings.warn(text, stacklevel=3)
        return gap.masked_fill(flat, float("nan"))


def _elements(sites: Sites, model: Any, prompts: Prompts) -> tuple[list[tuple[Site, ...]], tuple[str, ...], dict[str, Any]]:
    if isinstance(sites, Grid):
        spelled = sites.at_length(int(prompts.lengths.max()))
        elements: list[tuple[Site, ...]] = [(site,) for site in spelled]
        dims, coords = tuple(spelled.coords), {axis: np.asarray(labels) for axis, labels in spelled.coords.items()}
    else:
        given = [sites] if isinstance(sites, Site | str) else list(sites)
        elements = [as_sites(element) for element in given]
        dims, coords = ("site",), {"site": [" + ".join(map(str, element)) for element in elements]}
    if not elements or not all(elements):
        raise SiteError("effects: sites is empty. Name at least one site, as in sites=grid('z', model).")
    for element in elements:
        for site in element:
            check_positions(site.check(model), prompts)
    return elements, dims, coords


def _exact(run: _BaseRun, elements: list[tuple[Site, ...]], bound: Bound, progress: bool) -> Tensor:
    """[example, element]: every edit run, several in one forward pass; what cannot change is 0 and is not run."""
    effect = torch.zeros((len(run.prompts), len(elements)), dtype=torch.float64)
    per_pass = max(1, run.chunk // len(run.prompts))
    with tqdm(total=len(elements), desc="effects", unit="site", disable=None if progress else True, leave=False) as bar:
        waiting: list[int] = []
        for j, element in enumerate(elements):
            if all(_unchanged(run, site, bound) for site in element):
                bar.update()
            else:
                waiting.append(j)
            if waiting and (len(waiting) == per_pass or j == len(elements) - 1):
                effect[:, waiting] = _edited(run, [elements[k] for k in waiting], bound).to(effect)
                bar.update(len(waiting))
                waiting = []
    return effect if run.measured.dtype == torch.float64 else effect.float()


def _unchanged(run: _BaseRun, site: Site, bound: Bound) -> bool:
    """Whether an edit writes, bit by bit, what is there already in every example."""
    activation = run.activation(site.key)
    current = activation[Places.of(site, run.prompts).part(activation)]
    new = bound.edited(site, current)
    if site.pos is None and site.key_pos is None and site.kind != "pattern":
        inside = torch.arange(current.shape[1]) < run.prompts.lengths[:, None]
    else:
        inside = bound.has(site)
    inside = inside.to(new.device)
    return bool(torch.equal(new[inside], current[inside]))


def _edited(run: _BaseRun, elements: list[tuple[Site, ...]], bound: Bound) -> Tensor:
    """[example, element]: m(edited) - m(base) of edits that share one forward pass."""
    changes = []
    for examples, prompts, part in run.parts(run.chunk, bound):
        n = len(prompts)
        edits = [Edit(site, part, slice(k * n, (k + 1) * n)) for k, element in enumerate(elements) for site in element]
        logits = forward(run.model, stacked(prompts.tokens, len(elements)), writes=[edit.write() for edit in edits]).logits
        measured = torch.stack([run.measure(one, prompts, examples) for one in logits.split(n)], 1)
        changes.append(measured - run.measured[list(examples)][:, None])
    return torch.cat(changes)


def _gradient(run: _BaseRun, elements: list[tuple[Site, ...]], bound: Bound, progress: bool) -> Tensor:
    """[example, element]: the first-order change, from one forward and one backward pass per batch of examples."""
    keys = list(dict.fromkeys(site.key for element in elements for site in element))
    chunk = rows_per_forward(run.model, int(run.prompts.lengths.max()), budget=run.budget, gradients=True)
    tables = []
    with tqdm(total=len(run.prompts), desc="gradients", unit="example", disable=None if progress else True, leave=False) as bar:
        for examples, prompts, part in run.parts(chunk, bound):
            result = forward(run.model, prompts.tokens, record=keys, gradients=True)
            total = run.measure(result.logits, prompts, examples).sum()
            slopes = slopes_of(total, {key: result.recorded[key] for key in keys}, run.metric.name)
            columns = [sum(_first_order(site, result.recorded, slopes, part) for site in element) for element in elements]
            tables.append(torch.stack([torch.as_tensor(column) for column in columns], 1))
            bar.update(len(prompts))
    return torch.cat(tables).cpu()


def _first_order(site: Site, recorded: Mapping[Key, Tensor], slopes: Mapping[Key, Tensor], bound: Bound) -> Tensor:
    """[example]: (e(a) - a) . dm/da."""
    activation, slope = recorded[site.key].detach(), slopes[site.key]
    where = Places.of(site, bound.prompts).part(activation)
    wide = torch.float64 if activation.dtype == torch.float64 else torch.float32
    step = (bound.edited(site, activation[where]) - activation[where]).to(wide)
    return (step * slope[where].to(wide)).reshape(len(activation), -1).sum(1)
