"""Which engine takes a call, the fast one or the reference, and what it will cost.

`fast_decoder` decides, `CallPlan` says it in words. The first time a model is used, the fast engine makes a
few random edits of every kind beside the reference; where they differ it warns once, and that model stays on
the reference path. Agreement is remembered on disk (`models.verdicts`). This module does not know what the
edits of a call mean.
"""

import math
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.fast import families
from workbench.engine.fast.base_run import needed
from workbench.engine.fast.cohorts import Cohort, Element, cohorts
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.staircase import StaircaseWalk, run_base
from workbench.engine.fast.sweep import StaircaseSweep
from workbench.engine.hooked.forward import forward
from workbench.engine.hooked.sweep import HookedSweep
from workbench.engine.run import Edit
from workbench.engine.runs import RunCost, forward_flops
from workbench.engine.values import Value, add, scale
from workbench.errors import NotFinite, warn
from workbench.finite import is_finite
from workbench.models.verdicts import is_right, keep_right
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Key, Kind, Shape, Site

# Differences allowed, as shares of the largest logit. A true mistake (a norm or a bias left out) is far above
# them; half precision rounds by whole percents where both engines add in another order.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 5e-2
# Activations below this share of the largest one are compared with that share of it.
_ROUNDING = 0.01
TIMED = 8
"""Prompts of the forward pass that a plan times."""
# Model → (precision, device, family) → what disagreed, or None. Weak keys, so that the check keeps no model
# alive; moved or cast, the same model is checked again.
_verdicts: "weakref.WeakKeyDictionary[Any, dict[Any, str | None]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class CallPlan:
    """What a call will do.

    Attributes:
        path: "staircase" (the fast engine) or "reference" (hooks, one full forward per edited run), and why
            that one.
        cost: what that takes; its peak memory comes on top of the model and the stores, under `budget` bytes.
        whole: FLOPs of one forward pass of the prompts with hooks, to compare with.
        seconds: of the whole call on this machine as it is now, from the FLOPs per second of a forward pass of
            some of the prompts; within a factor of two.
    """

    path: str
    why: str
    cost: RunCost
    whole: float
    budget: int
    seconds: float

    @classmethod
    def of(cls, sweep: StaircaseSweep | HookedSweep, why: str) -> "CallPlan":
        """The plan of a sweep; `why` it takes that path."""
        runs = sweep.runs
        whole = float(int(runs.prompts.lengths.sum()) * forward_flops(Shape.of(runs.model)))
        cost = sweep.cost()
        few = runs.prompts.select(slice(0, TIMED))
        forward(runs.model, few)  # the first pass allocates, and is not timed
        start = time.perf_counter()
        forward(runs.model, few)
        rate = int(few.lengths.sum()) * forward_flops(Shape.of(runs.model)) / (time.perf_counter() - start)
        return cls(sweep.engine, why, cost, whole, runs.memory, cost.flops / rate)

    @property
    def forwards(self) -> float:
        """The work, counted in forward passes of all prompts."""
        return self.cost.flops / self.whole

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        cost = self.cost
        peak, budget = cost.peak_bytes / 2**20, self.budget / 2**20
        lines = (
            f"path          {self.path}: {self.why}",
            f"runs          {cost.runs:,} edited prompts in {cost.walks:,} walks; "
            f"{cost.skipped:,} skipped, provably zero",
            f"work          {cost.flops:.3g} FLOPs, "
            f"as much as {self.forwards:,.1f} forward passes of the prompts",
            f"token-layers  {cost.token_layers:,.0f}",
            f"time          about {self.seconds:,.1f} s on this machine as it is now",
            f"peak memory   about {peak:,.0f} MiB of {budget:,.0f} MiB",
        )
        return "\n".join(lines)


def fast_decoder(model: Any, length: int, kinds: Sequence[str] = ()) -> tuple[Decoder | None, str]:
    """The model for the fast engine, or None, and the reason in words.

    Args:
        length: of the longest prompt.
        kinds: that are edited; `logits` come after everything that the fast engine saves.
    """
    if "logits" in kinds:
        return None, "logits are edited, and nothing comes after them that could be saved"
    try:
        decoder = families.read(model, length)
    except families.Unsupported as reason:
        return None, f"the model runs on hooks because {reason}"
    verdicts = _verdicts.setdefault(model, {})
    key = (decoder.dtype, decoder.device, decoder.family)
    check = f"the {decoder.family} family on the fast engine"
    if key not in verdicts and is_right(model, check):
        verdicts[key] = None
    if key not in verdicts:
        try:
            verdicts[key] = _disagreement(model, decoder.max_length)
        except NotFinite as reason:
            # No verdict. Where the prompts of a call meet such numbers too, their metric refuses them.
            return None, str(reason)
        if not verdicts[key]:
            keep_right(model, check)
        else:
            warn(f"{verdicts[key]} The reference path is used for this model: exact, and slower.")
    disagreement = verdicts[key]
    if disagreement:
        return None, disagreement
    return decoder, f"the {decoder.family} family, checked against the reference"


def _disagreement(model: Any, max_length: int | None) -> str | None:
    """What the fast engine gets wrong on random edits of every kind, in words; None when it agrees."""
    shape, generator = Shape.of(model), torch.Generator().manual_seed(0)
    longest = min(7, shape.n_ctx, max_length or 7)
    # Two lengths, so that padding is part of what is compared.
    lengths = (longest, max(1, longest - 2))
    prompts = Prompts.of([torch.randint(shape.d_vocab, (n,), generator=generator).tolist() for n in lengths])
    edits = [(site, value.bind(model, prompts)) for site, value in _random_edits(shape, longest, generator)]
    expected = _hooked_logits(model, prompts, edits)
    if not is_finite(expected):
        raise NotFinite("on a few random tokens its logits are not finite, so the engines cannot be compared")
    size = float(expected.abs().max())
    architecture = type(model.original_model).__name__
    try:
        fast_logits = _fast_logits(
            families.read(model, longest), prompts, [Element((edit,)) for edit in edits]
        )
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        # An architecture of unknown layout may fail in any of these; the reference still runs it.
        return f"The fast engine cannot run {architecture}: {type(error).__name__}: {error}."
    worst, worst_site = 0.0, edits[0][0]
    for (cohort, j), logits in fast_logits.items():
        reference = expected[j, cohort.examples, cohort.start : cohort.length]
        difference = float((logits - reference).abs().max())
        # `not <=` instead of `>`: NaN is worse than any number, and stays.
        if not difference <= worst and not math.isnan(worst):
            worst, worst_site = difference, edits[j][0]
    if not worst <= _TOLERANCE.get(expected.dtype, _HALF_TOLERANCE) * size:
        return (
            f"The fast engine and the reference disagree on {architecture}: after an edit of "
            f"{worst_site.kind} ({worst_site}) logits of size {size:.3g} differ by {worst:.2g}."
        )
    return _unlike_activation(model, prompts)


def _unlike_activation(model: Any, prompts: Prompts) -> str | None:
    """The activation of a run without edits that the fast engine gets wrong, in words; None when none is."""
    shape, decoder = Shape.of(model), families.read(model, int(prompts.lengths.max()))
    keys: list[Key] = []
    for kind in KINDS.values():
        if kind.name not in ("logits", "resid_post") and not shape.lacks(kind):
            layers = shape.layers(kind) if kind.per_layer else (None,)
            keys += [(kind.name, layer) for layer in layers]
    kept, hooked = run_base(decoder, prompts, keys).kept, forward(model, prompts, record=keys).recorded
    # Small activations may be sums of large ones, whose rounding is theirs.
    least = _ROUNDING * max(float(value.abs().max()) for value in hooked.values())
    for key in keys:
        for ours, its, length in zip(kept[key], hooked[key], prompts.lengths.tolist(), strict=True):
            tokens = (slice(length),)
            if key[0] == "pattern":  # [head, query, key]
                tokens = (slice(None), slice(length), slice(length))
            difference, size = (float(x.abs().max()) for x in (ours[tokens] - its[tokens], its[tokens]))
            if not difference <= _TOLERANCE.get(its.dtype, _HALF_TOLERANCE) * max(size, least):
                return (
                    f"The fast engine and the reference disagree on {type(model.original_model).__name__}: "
                    f"{Site(*key)} of size {size:.3g} differs by {difference:.2g}."
                )
    return None


def _hooked_logits(
    model: Any, prompts: Prompts, edits: Sequence[tuple[Site, Bound]]
) -> Float[Tensor, "edit example pos vocab"]:
    """What the reference says: all edits in one pass, each on a copy of the prompts of its own."""
    n = len(prompts)
    writes = []
    for k, (site, bound) in enumerate(edits):
        writes.append(Edit(site, bound, slice(k * n, (k + 1) * n)).write())
    logits = forward(model, prompts, copies=len(edits), writes=writes).logits
    return logits.view(len(edits), n, *logits.shape[1:])  # each edit had its own copy of the prompts


@torch.no_grad()
def _fast_logits(
    decoder: Decoder, prompts: Prompts, elements: Sequence[Element]
) -> dict[tuple[Cohort, int], Tensor]:
    """What the fast engine says: (cohort, element) → [example, pos, vocab] from the cohort's start on."""
    base = run_base(decoder, prompts, needed(key for element in elements for key in element.keys))
    groups = cohorts(elements, prompts, decoder.shape, None)
    logits = {}
    for outcome in StaircaseWalk(base, elements, groups).run():
        for j, stream in zip(outcome.elements, outcome.stream, strict=True):
            logits[outcome.cohort, j] = decoder.unembed(decoder.final_norm(stream))
    return logits


def _random_edits(shape: Shape, length: int, generator: torch.Generator) -> list[tuple[Site, Value]]:
    """Of every kind: one edit of everything, one of a single unit at one position, in random layers."""
    edits: list[tuple[Site, Value]] = []
    for kind in KINDS.values():
        if kind.name == "logits" or shape.lacks(kind):
            continue
        for pos in (None, length // 2):
            site = _random_site(kind, pos, shape, generator)
            edits.append((site, _random_value(kind, shape, generator)))
    return edits


def _random_site(kind: Kind, pos: int | None, shape: Shape, generator: torch.Generator) -> Site:
    """A site of a random layer: all of it without a position, one of its units at one."""
    layer = int(torch.randint(shape.n_layers, (), generator=generator)) if kind.per_layer else None
    n_units = shape.units(kind)
    if not n_units or pos is None:
        return Site(kind.name, layer, pos=pos)
    unit = int(torch.randint(n_units, (), generator=generator))
    if kind.unit == "neuron":
        return Site(kind.name, layer, neuron=unit, pos=pos)
    return Site(kind.name, layer, unit, pos=pos)


def _random_value(kind: Kind, shape: Shape, generator: torch.Generator) -> Value:
    """A value that changes every activation of the kind."""
    widths = {"d_model": shape.d_model, "d_head": shape.d_head}
    push = torch.randn(widths.get(kind.axes[-1], 1), generator=generator)
    if kind.name == "pattern":
        return scale(0.5)  # halved rows are a change that no softmax undoes
    # One number for all neurons: a vector would have to be as wide as the MLP, and fit no single neuron.
    return add(float(push[0]) if kind.unit == "neuron" else push)
