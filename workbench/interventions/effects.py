"""`effects`: how a metric changes when sites are edited, one at a time.

Patching, ablation, steering and attribution are values and methods of this one function.

`effect = m(edited) - m(base)`, per example: ablating a supporting site is negative.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from workbench.arguments import checked
from workbench.engine.bound import Bound
from workbench.engine.continuations import answer_attrs, bind
from workbench.engine.fast.cohorts import Element
from workbench.engine.fast.sweep import SiteEdits, StaircaseSweep
from workbench.engine.first_not_finite import located
from workbench.engine.given_values import GivenValue, given_value, name_attrs
from workbench.engine.hooked.sweep import HookedSweep
from workbench.engine.inputs import as_sites, check_positions
from workbench.engine.runs import MeasuredRuns
from workbench.engine.select import CallPlan, fast_decoder
from workbench.engine.values import Value
from workbench.errors import EditError, MetricError, NotFinite, SiteError, UnknownName, warn
from workbench.interventions.gradients import Completeness, atp_star, gradient, integrated
from workbench.interventions.site_values import optimal
from workbench.metrics.continuations import Expansion, expand
from workbench.metrics.metric import GivenMetric, Metric, metric_for
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.names import EFFECT_METHODS
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.results import effect_array, with_tokens
from workbench.sites import Grid, Shape, Site, grid, kind_named
from workbench.statistics import ROUNDING, known_gap

log = logging.getLogger(__name__)

METHODS = tuple(EFFECT_METHODS)
CONVERGENCE = 0.05
"""Share of m(edited) - m(base) that integrated effects may miss on a prompt before there is a warning."""
FEWEST_STEPS, MOST_STEPS = 8, 128
"""Of `steps="auto"`, which doubles the first until nothing more is missed than that, or up to the second."""
Sites = Grid | Site | str | Sequence[Site | str | tuple[Site | str, ...]]


@checked
@model_call()
def effects(
    model: Model,
    pairs: PromptPairs,
    *,
    sites: Sites,
    value: GivenValue | None = None,
    metric: GivenMetric | None = None,
    base: Literal["clean", "corrupt"] | str = "clean",
    method: Literal["exact", "gradient", "integrated", "atp-star"] | str = "exact",
    steps: int | Literal["auto"] | str = 32,
    normalized: bool = False,
    budget: int | None = None,
    readout: torch.dtype | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """How the metric changes when the run `base` is edited at each site in turn: m(edited) - m(base).

    `base="clean"` with `value="corrupt"` is noising, `base="corrupt"` with `value="clean"` denoising.

    Args:
        sites: a `grid(...)`; a kind, as in "heads" (`z`), "mlps" (`mlp_out`), "resid_pre@each" or "z@END"; or sites
            in a list, in which a kind is all of its sites and a tuple of sites is edited together.
        value: what is written there: a value such as `wb.mean(store)`, or a name: "clean" or "corrupt" (the run that
            is not edited; None is that too), "zero", "mean", "resample", "constant:2", "scale:0.5", "optimal". "mean"
            and "resample" by name are over the edited run's own prompts (attrs["value_from"]); "optimal" is fitted
            to each site alone: the constant that changes the metric least (2409.09951).
        metric: a name, a `Metric`, or a function `logits [example, pos, vocab] -> [example]`. None takes that of the
            pairs (`pairs.metric`): their task's, or "sequence_logprob_diff" for answers of several tokens.
            `sequence_logprob_diff` reads answers of several tokens, each in a run of its own. There an edit
            without a position covers the answer's tokens too if its value is zero, a constant, a scale, add,
            `mean(per="dataset")`, or `project` onto one of these: what is ablated stays ablated.
            `from_store`, `resample`, `mean(per="pos")` and edits at named positions are made in the prompt
            alone. attrs["answer_tokens"] says which.
        method: "exact" runs every edit. The others estimate it; a is an activation and e(a) the edited one.
            "gradient" is (e(a) - a) . dm/da at the base run, one backward pass for all.
            "integrated" takes the mean gradient on the straight path from a to e(a), all sites of one kind
            and layer moving together: over a full cut of the graph the effects then add up to m(all edited) -
            m(base). attrs["completeness_gap"] is the largest share of that which they miss on any prompt;
            above 5 % there is a warning: give more steps.
            "atp-star" is the gradient with attention recomputed for q and k and with layers dropped
            (2403.00745). What passes a saturated softmax or closed neurons in a later block it estimates as 0.
        steps: midpoints on that path; "auto" takes 8, 16, 32, 64 or 128, the first with a completeness gap of
            at most 5 %. Points are not reused, so that this is about twice the work of the number it takes.
        normalized: divide by m(other run) - m(base) of each example: 1 is full recovery.
        budget: bytes of working memory; by default 1 GiB, or half of a GPU's free memory. More work runs in
            pieces.
        readout: precision of the final norm and the unembedding, as torch.float32 for a bfloat16 model.
        progress: whether to show a bar; `explain` says beforehand what an exact call will take.

    Returns:
        DataArray (example, *axes of the grid) or (example, site). Cells beyond the length of an example, at a
        named position that it lacks, or at a key that the query does not see, are NaN.

    Raises:
        UnknownName: no such method, metric, base or kind.
        SiteError: no sites, or one that the model lacks.
        MetricError: the metric does not fit the pairs, or lacks the gradient that the method needs.
        StoreError: the value's store is of another model or of other prompts.
        PromptError: whole-sequence edits of pairs that differ in length.
        EditError: an edit that would change nothing, or does not fit its site.
        NotFinite: logits, the metric or gradients are NaN or infinite; the message names the site.
        ModelError: a model in train mode, or settings of torch that would change its numbers.

    Source: activation patching, Vig et al. 2004.12265 and Heimersheim & Nanda 2404.15255; attribution
    patching, Syed et al. 2310.10348.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> wb.effects(model, pairs, sites="heads", value="zero").dims
    ('example', 'layer', 'head')
    """
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    if isinstance(steps, str):
        if steps != "auto":
            raise UnknownName("steps", steps, ("auto",))
    elif steps < 1:
        raise EditError(f"effects: steps={steps}; the path from a to e(a) needs at least one point.")
    measure = metric_for(metric, pairs)
    rows = expand(model, pairs, measure)
    runs = MeasuredRuns(model, rows.pairs, base, rows.metric, budget, readout)
    if method != "exact":
        runs.metric.check_attributable(base)
    plan = _plan(runs, rows, sites, value, measure)
    log.info(
        "%d edits on %d prompts, method %s, metric %s", len(plan.elements), len(pairs), method, measure.name
    )
    with located(model, runs.prompts, plan.label):
        table, method_attrs = _measured(runs, rows, plan, method, steps, progress)
        _check_finite(table, plan, method)
        _blank_absent(table, plan)
        table = rows.combine(table)
        if normalized:
            table = table / _gap_of_runs(rows, runs)[:, None]
    kind = "sites" if "site" in plan.coords else plan.elements[0][0].kind
    attrs = pairs.attrs(model) | {
        "kind": "effects", "sites": kind, "value": plan.bound.value.describe(), "metric": measure.name,
        "unit": "share" if normalized else measure.unit, "method": method, "base": base,
        "normalized": normalized, **method_attrs,
        **answer_attrs(rows, plan.bound.value, chain.from_iterable(plan.elements)),
        **name_attrs(value, base=base),
    }  # fmt: skip
    # Elements are in the order of the grid's cells, so [example, element] is [example, *axes of the grid].
    shape = (len(pairs), *map(len, plan.coords.values()))
    coords = {"example": np.arange(len(pairs)), **plan.coords}
    result = effect_array(table.reshape(shape), ("example", *plan.dims), coords, name="effect", attrs=attrs)
    # The prompts of the pairs: rows of answers of several tokens have other lengths, and are more than there are pairs.
    prompts = pairs.side(base)
    # Of every position, not of some: only then does the n-th place along the axis hold the n-th token.
    if list(plan.coords.get("pos", ())) == list(range(int(prompts.lengths.max()))):
        return with_tokens(result, prompts.strings)
    return result


def explain_effects(
    runs: MeasuredRuns, rows: Expansion, sites: Sites, value: GivenValue | None, measure: Metric | None = None
) -> CallPlan:
    """What `effects` will do and cost; `measure` is the metric before answers were made rows of their own."""
    plan = _plan(runs, rows, sites, value, measure)
    return CallPlan.of(*_sweep(runs, plan))


@dataclass(frozen=True)
class _Elements:
    """What is edited: each element in a run of its own, with the axes of the result.

    Attributes:
        dims: names of the axes that the elements fill, in order.
        coords: axis → its labels.
    """

    elements: list[tuple[Site, ...]]
    dims: tuple[str, ...]
    coords: dict[str, Any]

    def label(self, j: int) -> str:
        """An element in words, as in "z[1.2] + z[1.3]"."""
        return " + ".join(map(str, self.elements[j]))


@dataclass(frozen=True)
class _SitePlan(_Elements):
    """The elements, and the value bound to the prompts."""

    bound: Bound


def _measured(
    runs: MeasuredRuns, rows: Expansion, plan: _SitePlan, method: str, steps: int | str, progress: bool
) -> tuple[Tensor, dict[str, Any]]:
    """[row, element]: the effects, and what the method adds to the attrs of the result."""
    elements, bound = plan.elements, plan.bound
    if method == "gradient":
        return gradient(runs, elements, bound, progress=progress), {}
    if method == "atp-star":
        if not rows.plain:
            # Sizes lose their sign, and the effect on a pair is a signed sum over its answers.
            raise MetricError(
                "atp-star takes sizes prompt by prompt, which answers of several tokens "
                f"({rows.metric.name}) do not allow."
            )
        return atp_star(runs, elements, bound, progress=progress), {}
    if method == "integrated":
        n_steps = FEWEST_STEPS if isinstance(steps, str) else steps
        while True:
            table, completeness = integrated(runs, elements, bound, steps=n_steps, progress=progress)
            gaps = {str(Site(*key)): _largest_gap(rows, of_key) for key, of_key in completeness.items()}
            # The largest as a number to look at; all of them as text, because attrs hold no tables.
            worst = max(gaps, key=gaps.__getitem__)
            if not isinstance(steps, str) or gaps[worst] <= CONVERGENCE or n_steps >= MOST_STEPS:
                break
            n_steps *= 2
        if gaps[worst] > CONVERGENCE:
            warn(
                f"effects: the integrated effects of {worst} have not converged: on one prompt they miss "
                f"{gaps[worst]:.0%} of m(edited) - m(base). Give more steps (now {n_steps}) and no site twice."
            )
        return table, {
            "steps": n_steps,
            "completeness_gap": gaps[worst],
            "completeness_gaps": json.dumps(gaps),
        }
    sweep, _ = _sweep(runs, plan)
    return sweep.run(progress=progress, what="effects"), {"engine": sweep.engine}


def _largest_gap(rows: Expansion, completeness: Completeness) -> float:
    """The largest |gap| / |whole| of any example; gaps that rounding explains count as 0."""
    gap, whole = rows.combine(completeness.gap).abs(), rows.combine(completeness.whole).abs()
    # Where editing changes less than that, a share of it says nothing.
    rounding = ROUNDING * float(completeness.size.max())
    # The largest: in a mean over examples gaps of different sign would cancel.
    return float((gap / whole.clamp(min=rounding)).max())


def _check_finite(table: Float[Tensor, "row element"], plan: _SitePlan, method: str) -> None:
    """Raise `NotFinite` for effects that are not numbers, as where a gradient overflows."""
    bad = (~torch.isfinite(table)).nonzero()
    if len(bad):
        label = plan.label(int(bad[0, 1]))
        raise NotFinite(
            f"effects(method={method!r}): the effect at {label} is not a finite number, though the metric "
            "is: its gradient overflows. Use the exact method, or a model in another precision.",
            place=label,
        )


def _blank_absent(table: Tensor, plan: _SitePlan) -> None:
    """Write NaN where an example lacks a position of an element: 0 would say that the edit does nothing."""
    has: dict[Any, Tensor] = {}  # shared by all layers and heads: a grid asks for a handful of positions
    for j, element in enumerate(plan.elements):
        positions = tuple((site.kind, site.pos, site.key_pos) for site in element)
        if positions not in has:
            has[positions] = torch.stack([plan.bound.has(site) for site in element]).all(0)
        table[~has[positions], j] = float("nan")


def _gap_of_runs(rows: Expansion, runs: MeasuredRuns) -> Float[Tensor, "example"]:
    """m(other run) - m(base), NaN with a warning where it is ~0."""
    gap, base = rows.combine(runs.distance()), rows.combine(runs.measured.cpu())
    # Below rounding a share is rounding divided by rounding.
    flat = torch.from_numpy(np.isnan(known_gap(gap.numpy(), base.numpy())))
    if bool(flat.any()):
        warn(f"{int(flat.sum())} of {len(gap)} examples do not differ between the runs: their cells are NaN.")
    return gap.masked_fill(flat, float("nan"))


def _plan(
    runs: MeasuredRuns, rows: Expansion, sites: Sites, value: GivenValue | None, measure: Metric | None = None
) -> _SitePlan:
    """The elements with their axes, and the value bound to the prompts; all that can be wrong is checked."""
    measure = measure or runs.metric
    runs.check()
    planned = _elements(sites, runs.model, rows.examples.side(runs.side))
    if any(site.pos is None for site in chain.from_iterable(planned.elements)):
        # Of pairs of unequal length no position has a counterpart, except by name.
        rows.examples.check_equal_lengths(
            "Whole-sequence edits need equal lengths; edit named positions instead (pos=['END'])."
        )
    edited = list(dict.fromkeys(chain.from_iterable(planned.elements)))

    def fitted() -> Value:
        """The optimal constant of every site."""
        return optimal(runs.model, rows.examples, edited, metric=measure, base=runs.side)

    patched = given_value(
        value, runs.model, rows.examples, sites=edited, base=runs.side, budget=runs.budget, optimal=fitted
    )
    bound = bind(runs.model, rows, patched, side=runs.side)
    return _SitePlan(planned.elements, planned.dims, planned.coords, bound)


def _sweep(runs: MeasuredRuns, plan: _SitePlan) -> tuple[StaircaseSweep | HookedSweep, str]:
    """The edited runs on the engine that can take them, and why that one."""
    elements, bound = plan.elements, plan.bound

    def elements_of(examples: Sequence[int]) -> list[Element]:
        """The edited runs of some examples."""
        # Selected only where it must be: a bound value keeps averages that a selection would compute again.
        batch = bound
        if len(examples) < len(runs.prompts):
            batch = bound.select(examples)
        return [Element(tuple((site, batch) for site in element)) for element in elements]

    keys = frozenset(site.key for site in chain.from_iterable(elements))
    decoder, why = fast_decoder(runs.model, runs.longest, [kind for kind, _ in keys])
    if decoder is None:
        return HookedSweep(runs, elements_of, len(elements)), why
    return StaircaseSweep(decoder, runs, SiteEdits(keys, elements_of, len(elements))), why


def _elements(sites: Sites, model: Any, prompts: Prompts) -> _Elements:
    """The elements of a grid or a list, checked against the model and the prompts."""
    if isinstance(sites, str):
        cells = _kind_grid(sites, Shape.of(model))
        sites = sites if cells is None else cells  # not `or`: a grid has a length, known only for prompts
    if isinstance(sites, Grid):
        planned = _of_grid(sites, prompts)
    else:
        listed = [sites] if isinstance(sites, Site | str) else list(sites)
        elements = list(chain.from_iterable(_listed(element, Shape.of(model), prompts) for element in listed))
        planned = _Elements(elements, ("site",), {})
        planned.coords["site"] = [planned.label(j) for j in range(len(elements))]
    if not planned.elements or not all(planned.elements):
        raise SiteError("effects: sites is empty. Name at least one site, as in sites=grid('z', model).")
    # A position is looked up once and not for every head: a grid of patterns has a million cells.
    shape, seen = Shape.of(model), set()
    for site in chain.from_iterable(planned.elements):
        site.check(shape)
        position = site.kind, site.pos, site.key_pos
        # A grid has cells that no query sees whatever was asked for, so they are NaN and not an error.
        if position not in seen and not (isinstance(sites, Grid) and _unseen(site)):
            seen.add(position)
            check_positions(site, prompts)
    return planned


def _kind_grid(text: str, shape: Shape) -> Grid | None:
    """The grid that a kind means, as in "z", "heads", "resid_pre@each" or "z@END"; None for a single site."""
    kind, at, position = text.partition("@")
    if "[" in kind or not kind_named(kind, words=True).per_layer or (at and not position):
        return None
    if not at or position == "each":
        return grid(kind, shape, pos="each" if at else "all")
    return grid(kind, shape, pos=[int(position) if position.isdigit() else position])


def _listed(element: Any, shape: Shape, prompts: Prompts) -> list[tuple[Site, ...]]:
    """The elements that an entry of a list stands for: all sites of a kind, a site, or a tuple of sites."""
    cells = _kind_grid(element, shape) if isinstance(element, str) else None
    if cells is None:
        return [as_sites(element)]
    return [(site,) for site in cells.at_length(int(prompts.lengths.max()))]


def _of_grid(sites: Grid, prompts: Prompts) -> _Elements:
    """The cells of a grid, in its order; positions that it leaves open end with the longest prompt."""
    cells = sites.at_length(int(prompts.lengths.max()))
    coords = {axis: np.asarray(labels) for axis, labels in cells.coords.items()}
    return _Elements([(site,) for site in cells], tuple(cells.coords), coords)


def _unseen(site: Site) -> bool:
    """Whether it is a cell of a grid of patterns whose query does not see the key."""
    return isinstance(site.pos, int) and isinstance(site.key_pos, int) and site.key_pos > site.pos
