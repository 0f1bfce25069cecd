"""The effect of editing sites, one at a time: patching, ablation, steering and attribution are values and methods.

`effect = m(edited) - m(base)`, per example: ablating a supporting site is negative.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench.engine.edits import Bound, Places, Value
from workbench.engine.reference import Key, forward, rows_per_forward, slopes_of
from workbench.engine.run import Edit, as_sites, check_context, check_positions, end_logits, stacked
from workbench.errors import EditError, PromptError, SiteError, UnknownName
from workbench.models.load import check_eval, model_fingerprint, model_name
from workbench.results import effect_array, versions
from workbench.sites import Grid, Site
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
    if not isinstance(value, Value):
        raise EditError(f"value is {type(value).__name__}, not a value such as zero(), mean(store) or from_store(store).")
    run = _BaseRun(model, pairs, base, as_metric(metric), budget)
    elements, dims, coords = _elements(sites, model, run.prompts)
    if any(site.pos is None for element in elements for site in element) and not pairs.equal_lengths:
        uneven = int((pairs.clean.lengths != pairs.corrupt.lengths).nonzero()[0])
        lengths = f"{int(pairs.clean.lengths[uneven])} and {int(pairs.corrupt.lengths[uneven])}"
        raise PromptError(
            f"Pair {uneven} has clean and corrupt prompts of {lengths} tokens. Whole-sequence edits need equal lengths; "
            "edit named positions instead (pos=['END'])."
        )
    bound = value.bind(model, run.prompts, run.other)
    table = (_exact if method == "exact" else _gradient)(run, elements, bound, progress)
    if normalized:
        table = table / run.distance()[:, None]
    attrs = {
        "kind": "effects", "sites": sites.kind if isinstance(sites, Grid) else "sites", "value": value.describe(),
        "metric": run.metric.name, "unit": "share" if normalized else run.metric.unit, "method": method, "base": base,
        "model": model_name(model), "model_fingerprint": model_fingerprint(model), "data_fingerprint": pairs.fingerprint,
        "task": pairs.provenance.get("task"), "variant": pairs.provenance.get("variant"), "seed": pairs.provenance.get("seed"),
        "split": pairs.provenance.get("split"), "normalized": normalized, **versions(),
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
        self.base = base
        self.chunk = rows_per_forward(model, int(self.prompts.lengths.max()), budget=budget)
        self.reference = self._reference()
        self.measured = self.plain(self.prompts)

    def _reference(self) -> Tensor | None:
        return (
            torch.cat([self._read(logits, part) for logits, part in self._runs(self.pairs.clean)])
            if self.metric.needs_reference
            else None
        )

    def _runs(self, prompts: Prompts) -> Iterable[tuple[Tensor, Prompts]]:
        for start in range(0, len(prompts), self.chunk):
            part = prompts.select(slice(start, start + self.chunk))
            yield forward(self.model, part.tokens).logits, part

    def _read(self, logits: Tensor, prompts: Prompts) -> Tensor:
        return end_logits(logits, prompts) if self.metric.positions == "END" else logits

    def plain(self, prompts: Prompts) -> Tensor:
        """[example]: the metric of unedited prompts."""
        measured, start = [], 0
        for logits, part in self._runs(prompts):
            measured.append(self.measure(logits, part, range(start, start + len(part))))
            start += len(part)
        return torch.cat(measured)

    def measure(self, logits: Tensor, prompts: Prompts, examples: Sequence[int]) -> Tensor:
        """[example]: the metric of logits [example, pos, vocab] of these examples."""
        reference = None if self.reference is None else self.reference[list(examples)]
        return self.metric(self._read(logits, prompts), self.pairs.select(list(examples)), reference)

    def distance(self) -> Tensor:
        """[example]: m(other run) - m(base), NaN where it is ~0."""
        gap = self.plain(self.other) - self.measured
        flat = gap.abs() < 1e-6
        if bool(flat.any()):
            warnings.warn(
                f"{int(flat.sum())} of {len(gap)} examples do not differ between the runs: their cells are NaN.", stacklevel=3
            )
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


def _has(element: tuple[Site, ...], bound: Bound) -> Tensor:
    return torch.stack([bound.has(site) for site in element]).all(0)


def _exact(run: _BaseRun, elements: list[tuple[Site, ...]], bound: Bound, progress: bool) -> Tensor:
    """[example, element]: every edit run, several in one forward pass; what cannot change is 0 and is not run."""
    n = len(run.prompts)
    effect = torch.full((n, len(elements)), float("nan"), dtype=torch.float64)
    waiting: list[int] = []
    per_pass = max(1, run.chunk // n)
    unchanged = _Unchanged(run, bound)
    with tqdm(total=len(elements), desc="effects", unit="site", disable=None if progress else True, leave=False) as bar:
        for j, element in enumerate(elements):
            if unchanged(element):
                effect[:, j] = 0
                bar.update()
            else:
                waiting.append(j)
            if waiting and (len(waiting) == per_pass or j == len(elements) - 1):
                effect[:, waiting] = _edited(run, [elements[k] for k in waiting], bound).to(effect)
                bar.update(len(waiting))
                waiting = []
    for j, element in enumerate(elements):
        effect[~_has(element, bound), j] = float("nan")
    same = torch.float64 if run.measured.dtype == torch.float64 else torch.float32
    return effect.to(same)


class _Unchanged:
    """Whether an edit writes, bit by bit, what is there already in every example. Layers are asked for in turn."""

    def __init__(self, run: _BaseRun, bound: Bound) -> None:
        self.run, self.bound, self.key = run, bound, None
        self.activation: Tensor | None = None

    def __call__(self, element: tuple[Site, ...]) -> bool:
        return all(self._same(site) for site in element)

    def _same(self, site: Site) -> bool:
        prompts = self.run.prompts
        if self.key != (site.kind, site.layer):
            self.key = (site.kind, site.layer)
            parts = (
                forward(self.run.model, prompts.select(slice(i, i + self.run.chunk)).tokens, record=[self.key]).recorded[self.key]
                for i in range(0, len(prompts), self.run.chunk)
            )
            self.activation = _joined(list(parts), site.kind)
        assert self.activation is not None
        places = Places.of(site, prompts)
        current = self.activation[places.slices(site, len(prompts), self.activation.device)]
        new = self.bound.edited(site, current)
        real = self.bound.has(site).to(new.device)
        if site.pos is None and site.key_pos is None and site.kind != "pattern":
            length = current.shape[1]
            inside = torch.arange(length, device=new.device) < prompts.lengths.to(new.device)[:, None]
            return bool(torch.equal(new[inside], current[inside]))
        return bool(torch.equal(new[real], current[real]))


def _joined(parts: list[Tensor], kind: str) -> Tensor:
    """Batches of different length as one tensor, zeros beyond each one's end."""
    longest = max(part.shape[-1] if kind == "pattern" else part.shape[1] for part in parts)
    padded = []
    for part in parts:
        if kind == "pattern":
            padded.append(torch.nn.functional.pad(part, (0, longest - part.shape[-1], 0, longest - part.shape[-2])))
        else:
            padded.append(torch.nn.functional.pad(part, (*[0, 0] * (part.ndim - 2), 0, longest - part.shape[1])))
    return torch.cat(padded)


def _edited(run: _BaseRun, elements: list[tuple[Site, ...]], bound: Bound) -> Tensor:
    """[example, element]: m(edited) - m(base) of edits that share one forward pass."""
    n, tokens = len(run.prompts), run.prompts.tokens
    if len(elements) == 1 and n > run.chunk:
        return _edited_in_parts(run, elements[0], bound)
    writes = [Edit(site, bound, slice(k * n, (k + 1) * n)).write() for k, element in enumerate(elements) for site in element]
    logits = forward(run.model, stacked(tokens, len(elements)), writes=writes).logits
    measured = [run.measure(part, run.prompts, range(n)) for part in logits.split(n)]
    return torch.stack([part - run.measured for part in measured], 1)


def _edited_in_parts(run: _BaseRun, element: tuple[Site, ...], bound: Bound) -> Tensor:
    """The same for one edit of more examples than fit into one pass."""
    changes = []
    for start in range(0, len(run.prompts), run.chunk):
        examples = range(start, min(start + run.chunk, len(run.prompts)))
        part = run.prompts.select(list(examples))
        smaller = bound.value.bind(run.model, part, run.other.select(list(examples)))
        writes = [Edit(site, smaller).write() for site in element]
        logits = forward(run.model, part.tokens, writes=writes).logits
        changes.append(run.measure(logits, part, examples) - run.measured[list(examples)])
    return torch.cat(changes)[:, None]


def _gradient(run: _BaseRun, elements: list[tuple[Site, ...]], bound: Bound, progress: bool) -> Tensor:
    """[example, element]: the first-order change, from one forward and one backward pass per batch of examples."""
    keys: list[Key] = list(dict.fromkeys((site.kind, site.layer) for element in elements for site in element))
    chunk = rows_per_forward(run.model, int(run.prompts.lengths.max()), budget=run.budget, gradients=True)
    tables = []
    with tqdm(total=len(run.prompts), desc="gradients", unit="example", disable=None if progress else True, leave=False) as bar:
        for start in range(0, len(run.prompts), chunk):
            examples = range(start, min(start + chunk, len(run.prompts)))
            part = run.prompts.select(list(examples))
            smaller = (
                bound if len(part) == len(run.prompts) else bound.value.bind(run.model, part, run.other.select(list(examples)))
            )
            result = forward(run.model, part.tokens, record=keys, gradients=True)
            total = run.measure(result.logits, part, examples).sum()
            slopes = slopes_of(total, {key: result.recorded[key] for key in keys}, run.metric.name)
            tables.append(torch.stack([_first_order(element, result.recorded, slopes, smaller) for element in elements], 1))
            bar.update(len(part))
    effect = torch.cat(tables).cpu()
    for j, element in enumerate(elements):
        effect[~_has(element, bound), j] = float("nan")
    return effect


def _first_order(element: tuple[Site, ...], recorded: Any, slopes: Mapping[Key, Tensor], bound: Bound) -> Tensor:
    """[example]: sum over the element's sites of (e(a) - a) . dm/da."""
    n = len(bound.prompts)
    change = None
    for site in element:
        activation, slope = recorded[site.kind, site.layer].detach(), slopes[site.kind, site.layer]
        where = Places.of(site, bound.prompts).slices(site, n, activation.device)
        current = activation[where]
        wide = torch.float64 if current.dtype == torch.float64 else torch.float32
        step = (bound.edited(site, current) - current).to(wide)
        term = (step * slope[where].to(wide)).reshape(n, -1).sum(1)
        change = term if change is None else change + term
    assert change is not None
    return change
