"""The first block of the report of `discover`: what was asked and found, each number beside its control.

It chooses from what a `DiscoveryRun` holds; the sentences are those of `verdict`. Read `lead_of`.
"""

import numpy as np
import xarray as xr

from workbench.evaluation.controls import OTHER_HEADS, OTHER_TASK
from workbench.render.page import KeyNumber, Lead
from workbench.text import listed
from workbench.workflows.discovery_run import DiscoveryRun
from workbench.workflows.prompt_sets import PromptSets
from workbench.workflows.verdict import (
    competence_text,
    competence_warning,
    differences_text,
    sentences,
    verdict,
)
from workbench.workflows.wording import against, metric_words, number

N_NUMBERS = 3
"""Sentences of the headline that tell numbers; those after them speak against the circuit."""


def lead_of(run: DiscoveryRun, sets: PromptSets) -> Lead:
    """What a reader has to know: whether the model does the task, what was found, and how far to trust it."""
    claim, *rest = sentences(run)
    numbers = [one for name in run.counterfactuals for one in _against(run, name)]
    differences = differences_text(run)
    return Lead(
        asked=_asked(run, sets),
        able=list(filter(None, [competence_text(run.competence), competence_warning(run.competence)])),
        found=claim,
        verdict="good" if verdict(run) == "circuit" else "bad",
        numbers=[*numbers, *_stability(run)],
        against=rest[N_NUMBERS:],
        more=[*rest[:N_NUMBERS], *filter(None, [differences])],
    )


def _asked(run: DiscoveryRun, sets: PromptSets) -> str:
    facts = run.evaluation.attrs
    task = str(facts.get("task") or "prompts of your own")
    return (
        f"Which edges of {facts['model']} do {task}? Measured by the {metric_words(str(facts['metric']))} against "
        f"{listed(run.counterfactuals)}; {len(sets.find.pairs)} prompts to find with, {len(sets.select.pairs)} to choose "
        f"the size with, {len(sets.test.pairs)} to test with."
    )


def _against(run: DiscoveryRun, name: str) -> list[KeyNumber]:
    """The numbers of the circuit against one counterfactual, each beside what could beat it."""
    cell = run.evaluation.sel(ablation=name, circuit="circuit")
    bounds = run.criteria
    unit = str(run.evaluation.attrs.get("unit", ""))
    ours, model, empty = (float(cell[key].mean()) for key in ("m_circuit", "m_full", "m_empty"))
    told = against(name)
    low, high = float(cell["low"]), float(cell["high"])
    is_near = bounds.faithfulness[0] <= low and high <= bounds.faithfulness[1]
    return [
        KeyNumber(
            f"{metric_words(str(run.evaluation.attrs['metric'])).capitalize()} {told} ({unit})",
            number(ours),
            f"of the model's {number(model)}",
            f"with no edge {number(empty)}",
        ),
        KeyNumber(
            f"Faithfulness {told}",
            number(cell["faithfulness"]),
            _interval(cell, ""),
            _control(run, OTHER_TASK, name, "faithfulness", "another task's circuit"),
            state="good" if is_near else "bad",
        ),
        KeyNumber(
            f"Error per prompt {told}",
            number(cell["error"]),
            _interval(cell, "error_"),
            _control(run, OTHER_HEADS, name, "error", "through other heads"),
            state="good" if float(cell["error"]) <= bounds.error else "bad",
        ),
        KeyNumber(
            f"Right answers kept {told}",
            f"{float(cell['answers_kept']):.0%}",
            "",
            f"asked for {bounds.answers_kept:.0%}; r with the model {number(cell['r'])}",
            state="good" if float(cell["answers_kept"]) >= bounds.answers_kept else "bad",
        ),
    ]


def _interval(cell: xr.Dataset, prefix: str) -> str:
    low, high = (float(cell[f"{prefix}{end}"]) for end in ("low", "high"))
    if not np.isfinite(low):
        return ""
    return f"[{number(low)}, {number(high)}]"


def _control(run: DiscoveryRun, kind: str, name: str, measure: str, words: str) -> str:
    """A control's number beside the circuit's; what says that there is none."""
    controls = run.controls
    if controls is None or kind not in controls["control"].values:
        return "no control was run"
    return f"{words} {number(controls[measure].sel(control=kind, ablation=name))}"


def _stability(run: DiscoveryRun) -> list[KeyNumber]:
    if run.stability is None:
        return []
    stable = run.stability
    n_draws = stable.sizes["draw"]
    interval = f"[{number(stable['jaccard_low'])}, {number(stable['jaccard_high'])}]"
    beside = f"a size passes in {int(stable['size'].notnull().sum())} of {n_draws} resamples"
    return [KeyNumber("Edges shared by resamples (Jaccard)", number(stable["jaccard"]), interval, beside)]
