"""Which engine takes a call, the fast one or the reference, and what it will cost.

The first time a model is used, the fast engine makes a few random edits of every kind beside the reference;
where they differ it warns once, and that model stays on the reference path.
"""

import math
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.engine.fast import families
from workbench.engine.fast.base_run import needed
from workbench.engine.fast.cohorts import Cohort, Element, cohorts
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.staircase import StaircaseWalk, run_base
from workbench.engine.fast.sweep import StaircaseSweep
from workbench.engine.hooked.forward import forward
from workbench.engine.hooked.sweep import HookedSweep
from workbench.engine.inputs import stacked
from workbench.engine.run import Edit
from workbench.engine.runs import RunCost, forward_flops
from workbench.engine.values import Value, add, scale
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Shape, Site

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_verdicts: "weakref.WeakKeyDictionary[Any, dict[Any, str | None]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class CallPlan:
    """What a call will do.

    Attributes:
        path: "staircase" (the fast engine) or "reference" (hooks, one full forward per edited run), and why
            that one.
        cost: of it; peak memory is beside the model and the stores, under `budget` bytes.
        whole: FLOPs of one forward pass of the prompts with hooks, to compare with.
    """

    path: str
    why: str
    cost: RunCost
    whole: float
    budget: int

    @classmethod
    def of(cls, sweep: StaircaseSweep | HookedSweep, why: str) -> "CallPlan":
        """The plan of a sweep; `why` it takes that path."""
        runs = sweep.runs
        whole = float(int(runs.prompts.lengths.sum()) * forward_flops(Shape.of(runs.model)))
        return cls(sweep.engine, why, sweep.cost(), whole, runs.memory)

    @property
    def forwards(self) -> float:
        """The work, counted in forward passes of all prompts."""
        return self.cost.flops / self.whole

    def __str__(self) -> str:
        cost = self.cost
        return "\n".join(
            (
                f"path          {self.path}: {self.why}",
                f"runs          {cost.runs:,} edited prompts in {cost.walks:,} walks; {cost.skipped:,} "
                f"skipped, provably zero",
                f"work          {cost.flops:.3g} FLOPs, as much as {self.forwards:,.1f} forward passes of "
                f"the prompts",
                f"token-layers  {cost.token_layers:,.0f}",
                f"peak memory   about {cost.peak_bytes / 2**20:,.0f} MiB of {self.budget / 2**20:,.0f} MiB",
            )
        )


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
    seen = _verdicts.setdefault(model, {})
    at = (decoder.dtype, decoder.device, decoder.family)
    if at not in seen:
        seen[at] = _disagreement(model, decoder.max_length)
        if seen[at]:
            warnings.warn(
                f"{seen[at]} The reference path is used for this model: exact, and slower.", stacklevel=2
            )
    fault = seen[at]
    return (
        (None, fault) if fault else (decoder, f"the {decoder.family} family, checked against the reference")
    )


def _disagreement(model: Any, max_length: int | None) -> str | None:
    """What the fast engine gets wrong on random edits of every kind, in words; None when it agrees."""
    shape, generator = Shape.of(model), torch.Generator().manual_seed(0)
    longest = min(7, shape.n_ctx, max_length or 7)
    rows = [
        torch.randint(shape.d_vocab, (n,), generator=generator).tolist()
        for n in (longest, max(1, longest - 2))
    ]
    prompts = Prompts.of(rows)
    edits = [(site, value.bind(model, prompts)) for site, value in _random_edits(shape, longest, generator)]
    elements = [Element((edit,)) for edit in edits]
    n = len(prompts)
    writes = [Edit(site, bound, slice(k * n, (k + 1) * n)).write() for k, (site, bound) in enumerate(edits)]
    expected = forward(model, stacked(prompts.tokens, len(edits)), writes=writes).logits.view(
        len(edits), n, longest, -1
    )
    size = float(expected.abs().max())
    allowed = _TOLERANCE.get(expected.dtype, 5e-2) * size
    worst, site = 0.0, edits[0][0]
    try:
        got = _fast_logits(families.read(model, longest), prompts, elements)
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        return f"The fast engine cannot run {type(model.original_model).__name__}: {type(error).__name__}: {error}."
    for (cohort, j), logits in got.items():
        reference = expected[j, cohort.examples, cohort.start : cohort.length]
        error = float((logits - reference).abs().max())
        if not error <= worst and not math.isnan(worst):
            worst, site = error, edits[j][0]
    if not worst <= allowed:
        kind, what = site.kind, str(site)
        return (
            f"The fast engine and the reference disagree on {type(model.original_model).__name__}: after an "
            f"edit of {kind} ({what}) "
            f"logits of size {size:.3g} differ by {worst:.2g}."
        )
    return None


def _fast_logits(
    decoder: Decoder, prompts: Prompts, elements: Sequence[Element]
) -> dict[tuple[Cohort, int], torch.Tensor]:
    base = run_base(decoder, prompts, needed(key for element in elements for key in element.keys))
    groups = cohorts(elements, prompts, decoder.shape, None)
    outcomes = StaircaseWalk(base, elements, groups).run()
    with torch.no_grad():
        return {
            (outcome.cohort, j): decoder.unembed(decoder.final_norm(stream))
            for outcome in outcomes
            for j, stream in zip(outcome.elements, outcome.stream, strict=True)
        }


def _random_edits(shape: Shape, length: int, generator: torch.Generator) -> list[tuple[Site, Value]]:
    """Of every kind: one edit of everything, one of a single unit at one position, in random layers."""
    widths = {"d_model": shape.d_model, "d_head": shape.d_head}
    edits: list[tuple[Site, Value]] = []
    for kind in KINDS.values():
        if kind.name == "logits" or shape.lacks(kind):
            continue
        for pos in (None, length // 2):
            layer = int(torch.randint(shape.n_layers, (), generator=generator)) if kind.per_layer else None
            n_units = shape.units(kind)
            unit = (
                int(torch.randint(n_units, (), generator=generator)) if n_units and pos is not None else None
            )
            which = {} if unit is None else {"neuron" if kind.unit == "neuron" else "head": unit}
            push = torch.randn(widths.get(kind.axes[-1], 1), generator=generator)
            value = (
                scale(0.5)
                if kind.name == "pattern"
                else add(push if kind.unit != "neuron" else float(push[0]))
            )
            edits.append((Site(kind.name, layer, pos=pos, **which), value))
    return edits
