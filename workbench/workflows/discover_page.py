"""The report of `discover`, from the claim to the details: `sections_of` makes its sections.

It draws what a `DiscoveryRun` holds; the only thing that it measures is the circuit's edges on single
prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench import results
from workbench.circuit.circuit import Circuit
from workbench.discovery.scores import score_edges
from workbench.engine.named_values import MEANINGS
from workbench.experiment import PairsInModel
from workbench.models.load import model_name
from workbench.prompts.pairs import PromptPairs
from workbench.render.attention_panels import attention_panel
from workbench.render.circuit.svg import CircuitView
from workbench.statistics import interval_text, summary
from workbench.workflows.discovery_run import DiscoveryRun

SHOWN_PROMPTS = 3
SHOWN_HEADS = 12
Section = tuple[str, Any, str]
"""A title, what is shown, and its caption."""


def sections_of(run: DiscoveryRun, heldout: PairsInModel, lens: xr.DataArray, value: str) -> list[Section]:
    """The sections of the report.

    Args:
        heldout: the held-out pairs, some of which are shown.
        lens: the logit lens of their clean run.
        value: the name of what stands in for everything outside the circuit.
    """
    heads = strongest_heads(run.circuit)
    examples = range(min(SHOWN_PROMPTS, len(heldout)))
    view = CircuitView.on_prompts([_view(run, heldout, i, heads, value) for i in examples])
    sections = [
        ("Circuit", view, _claim(run, heldout, value)),
        _trust(run.evaluation),
        ("Faithfulness against circuit size", run.curve, _curve_caption(run)),
        *_effects(run, heldout.metric.name),
        _lens(lens, heldout.pairs),
    ]
    if heads:
        # The view has computed them for the first prompt already.
        patterns = np.stack([view.patterns[head] for head in heads])
        names = [f"a{layer}.{head}" for layer, head in heads]
        panel = attention_panel(list(heldout.pairs.clean.strings[0]), patterns, names)
        caption = "The strongest heads of the circuit on the example prompt."
        sections.append(("Attention of the circuit's heads", panel, caption))
    sections.append(("Prompts", _prompt_table(heldout.pairs), _prompt_caption(heldout.pairs)))
    return sections


def strongest_heads(circuit: Circuit, most: int = SHOWN_HEADS) -> list[tuple[int, int]]:
    """The circuit's heads with the largest sum of |score| over their outgoing edges, in graph order."""
    assert circuit.scores is not None
    # By size: an edge that opposes the behaviour is as much part of the mechanism.
    strengths = np.where(circuit.edges, np.abs(np.nan_to_num(circuit.scores)), 0).sum(1)
    writers = circuit.graph.writers

    def strength(head: tuple[int, int]) -> float:
        """The summed size of what leaves the head."""
        return strengths[writers.index(f"a{head[0]}.{head[1]}")]

    return sorted(sorted(circuit.heads, key=lambda head: -strength(head))[:most])


def _view(
    run: DiscoveryRun, heldout: PairsInModel, i: int, heads: Sequence[tuple[int, int]], value: str
) -> CircuitView:
    """The circuit on one held-out prompt."""
    best = run.evaluation.sel(circuit="held-out")
    # Scores by position add up over prompts only where positions mean the same, so each prompt has its own.
    example = PairsInModel.of(heldout.model, heldout.pairs.select([i]), metric=heldout.metric)
    # A distance to the clean run has no gradient there, so positions are scored along a path to it.
    method = "eap-ig-inputs" if heldout.metric.needs_reference else "eap"
    scores = score_edges(
        heldout.model,
        example.pairs,
        value=example.value(value),
        metric=heldout.metric,
        method=method,
        keep=("pos",),
        progress=False,
    )
    patterns = {}
    for layer, head in heads:
        pattern = heldout.clean["pattern", layer].prompt(i)[head]
        patterns[layer, head] = pattern.float().cpu().numpy()
    return CircuitView.of(
        run.circuit,
        title=f"{heldout.pairs.provenance.get('task', 'circuit')} in {model_name(heldout.model)}",
        tokens=list(example.pairs.clean.strings[0]),
        position_scores=scores.transpose("writer", "reader", "pos"),
        patterns=patterns,
        faithfulness=(float(best["faithfulness"]), float(best["low"]), float(best["high"])),
        intervals=run.intervals,
        curve=run.grown,
    )


def _claim(run: DiscoveryRun, heldout: PairsInModel, value: str) -> str:
    circuit = run.circuit
    share = circuit.n_edges / circuit.graph.n_edges
    # The rows in the order of `discover`: held-out, in-sample, complement, random circuits.
    kept, in_sample, _, random = (_interval(run.evaluation.isel(circuit=i)) for i in range(4))
    return (
        f"{circuit.n_edges} of {circuit.graph.n_edges} edges ({share:.1%}) keep {kept} of the effect on "
        f"{heldout.metric.name} on {len(heldout)} held-out prompt pairs (on the prompts they were found on "
        f"{in_sample}; random circuits of as many edges {random}), with every other edge at "
        f"{MEANINGS[value]}. {circuit.n_requested} edges were chosen; dead ends are pruned."
    )


def _interval(row: xr.Dataset) -> str:
    """Faithfulness with its interval, in per cent."""
    # + 0.0 turns -0.0 into 0.0, which would be shown as -0 %.
    mean, low, high = (round(float(row[field]), 2) + 0.0 for field in ("faithfulness", "low", "high"))
    return f"{mean:.0%} {interval_text(low, high, '.0%')}"


def _trust(evaluation: xr.Dataset) -> Section:
    caption = (
        "Faithfulness is the share of the behaviour that the circuit alone keeps: 1 is all of it, 0 none; it "
        "is above 1 when components that work against the behaviour were left out (a ratio of dataset means, "
        "with 95 % bootstrap intervals over prompts; for random circuits, made of whole paths, the central "
        "95 % of draws). The complement is the model without the circuit's edges."
    )
    return ("How far to trust it", [_evaluation_table(evaluation), _doubts(evaluation)], caption)


def _evaluation_table(evaluation: xr.Dataset) -> pd.DataFrame:
    frame = evaluation.to_dataframe().reset_index().round(3)
    frame[frame.select_dtypes("number").columns] += 0.0  # -0.0 would be shown as -0
    names = {
        "circuit": "",
        "low": "from",
        "high": "to",
        "mean_of_ratios": "mean of ratios",
        "n_edges": "edges",
    }
    return frame.rename(columns=names).drop(columns="in_sample")


def _doubts(evaluation: xr.Dataset) -> str:
    """What speaks against the circuit, in words."""
    facts = evaluation.attrs
    low, high = facts["incompleteness_low"], facts["incompleteness_high"]
    return (
        "Completeness: when components are knocked out of circuit and model alike, the two differ most, by "
        f"{facts['incompleteness']:.0%} [{low:.0%}, {high:.0%}] of the effect, without "
        f"{facts['incompleteness_set']} (0 % is a complete circuit). Minimality: removing any one of "
        f"{facts['minimal']:.0%} of its heads and MLPs costs at least 1 % of the metric; not needed: "
        f"{facts['unneeded'] or 'none'}. All on held-out prompts."
    )


def _curve_caption(run: DiscoveryRun) -> str:
    facts = run.curve.attrs
    return (
        f"On held-out prompts, with 95 % bootstrap intervals. CPR (area under the curve) {facts['area']:.3f} "
        f"[{facts['area_low']:.3f}, {facts['area_high']:.3f}]; edges ranked by "
        f"{run.circuit.attrs.get('method', 'score')}. Random circuits as large as the one above keep "
        f"{_interval(run.evaluation.isel(circuit=3))}."
    )


def _effects(run: DiscoveryRun, metric: str) -> list[Section]:
    unit = run.heads.attrs.get("unit", "")
    ablation = (
        f"Change of {metric} ({unit}) when a head's output is set to zero in the clean run, mean over "
        "held-out prompts: negative means that the head supports the behaviour."
    )
    denoising = (
        f"Change of {metric} when the corrupt run gets the clean residual stream at one layer and named "
        "position (denoising), mean over held-out prompts."
    )
    strongest = "The ten heads whose ablation changes the metric most."
    return [
        ("Head ablation", run.heads, ablation),
        ("Heads by effect", _head_table(run.heads, run.circuit), strongest),
        ("Patching the residual stream", run.patching, denoising),
    ]


def _head_table(heads: xr.DataArray, circuit: Circuit, most: int = 10) -> pd.DataFrame:
    frame = summary(heads).to_dataframe().reset_index()
    places = list(zip(frame["layer"].tolist(), frame["head"].tolist(), strict=True))
    heads_of_circuit = set(circuit.heads)
    # Names of heads as the graph spells them, which the circuit's picture uses too.
    frame["in circuit"] = ""
    frame.loc[[place in heads_of_circuit for place in places], "in circuit"] = "yes"
    frame["head"] = [f"a{layer}.{head}" for layer, head in places]
    order = np.argsort(-frame["mean"].abs().to_numpy(), kind="stable")[:most]
    columns = ["head", "mean", "se", "low", "high", "n", "in circuit"]
    table = frame.iloc[order].reset_index(drop=True)[columns]
    return table.rename(columns={"mean": "effect", "low": "from", "high": "to"})


def _lens(lens: xr.DataArray, pairs: PromptPairs) -> Section:
    tokens = list(pairs.clean.strings[0])
    first = lens.isel(example=0, pos=slice(0, len(tokens)))
    caption = (
        "Right minus wrong answer's logit, read from the residual stream after each layer, on one prompt."
    )
    return ("Logit lens", first.assign_coords(token=("pos", results.as_labels(tokens))), caption)


def _prompt_table(pairs: PromptPairs, most: int = 6) -> pd.DataFrame:
    clean, corrupt = map(_text, pairs.clean.strings[:most]), map(_text, pairs.corrupt.strings[:most])
    return pd.DataFrame({"clean": list(clean), "corrupt": list(corrupt)})


def _text(tokens: Sequence[str]) -> str:
    """Tokens as one line; those of a BPE vocabulary bring their spaces with them, words do not."""
    if any(token.startswith(" ") for token in tokens):
        return "".join(tokens)
    return " ".join(tokens)


def _prompt_caption(pairs: PromptPairs) -> str:
    dropped = pairs.provenance.get("dropped")
    if not dropped:
        return "The first held-out pairs."
    return f"The first held-out pairs. Words that do not suit this vocabulary were left out: {dropped}."
