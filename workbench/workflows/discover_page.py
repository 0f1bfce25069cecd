"""The report of `discover`, from the claim to the details: `sections_of` makes its sections.

It draws what a `DiscoveryRun` holds; the only thing that it measures is the circuit's edges on single
prompts. The sentences are in `verdict`, how far to trust the circuit is in `trust_page`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench import results
from workbench.circuit.circuit import Circuit
from workbench.discovery.criteria import LETTERS, SURE
from workbench.discovery.frontier import failing, smallest_by_counterfactual, smallest_passing
from workbench.discovery.scores import score_edges
from workbench.engine.capture import capture
from workbench.engine.counterfactuals import pairs_for
from workbench.experiment import PairsInModel
from workbench.models.load import model_name
from workbench.prompts.pairs import PromptPairs
from workbench.render.attention_panels import attention_panel
from workbench.render.cards.objects import pair_rows
from workbench.render.circuit.svg import CircuitView
from workbench.render.report import Folded
from workbench.statistics import interval_text, summary
from workbench.text import listed
from workbench.workflows.discovery_run import DiscoveryRun
from workbench.workflows.prompt_sets import PromptSets
from workbench.workflows.trust_page import trust_sections
from workbench.workflows.verdict import verdict
from workbench.workflows.wording import against, metric_words, number

SHOWN_PROMPTS = 3
SHOWN_HEADS = 12
Section = tuple[str, Any, str]
"""A title, what is shown, and its caption."""


def sections_of(run: DiscoveryRun, sets: PromptSets, lens: xr.DataArray | None, value: str) -> list[Section]:
    """The sections of the report, from the claim to the details.

    Args:
        sets: the prompts; some of the test prompts are shown.
        lens: the logit lens of some of their clean runs; None where it cannot be made.
        value: the name of what stands in for everything outside the circuit.
    """
    test = sets.test
    heads = strongest_heads(run.circuit)
    shown = test.select(slice(SHOWN_PROMPTS))
    view = CircuitView.on_prompts([_view(run, shown, i, heads, value) for i in range(len(shown))])
    sections: list[Section] = [
        ("The circuit", view, _circuit_caption(run)),
        ("The criteria on the test prompts", _criteria_items(run), _criteria_caption(run, sets)),
    ]
    if run.frontier is not None:
        items = [run.frontier, Folded("The numbers", _frontier_table(run.frontier))]
        sections.append(("Criteria against circuit size", items, _frontier_caption(run)))
    sections += trust_sections(run)
    sections += _effects(run, test.metric.name)
    if lens is not None:
        sections.append(_lens(lens, test.pairs))
    if heads:
        # The view has computed them for the first prompt already.
        patterns = np.stack([view.patterns[head] for head in heads])
        names = [f"a{layer}.{head}" for layer, head in heads]
        panel = attention_panel(list(test.pairs.clean.strings[0]), patterns, names)
        caption = "The strongest heads of the circuit on the first test prompt."
        sections.append(("Attention of the circuit's heads", panel, caption))
    sections.append(("Prompts", _prompt_table(test.pairs), _prompt_caption(test.pairs)))
    missing = dict(run.left_out)
    if lens is None:
        missing["logit lens"] = "it reads one token, and these answers are several"
    if missing:
        reasons = " ".join(f"{name.capitalize()}: {reason}." for name, reason in missing.items())
        sections.append(("What was left out", reasons, ""))
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
    run: DiscoveryRun, shown: PairsInModel, i: int, heads: Sequence[tuple[int, int]], value: str
) -> CircuitView:
    """The circuit on one of the test prompts that are shown."""
    best = run.evaluation.sel(circuit="circuit").isel(ablation=0)
    example = shown.select([i])
    # Scores by position add up over prompts only where positions mean the same, so each prompt has its own.
    # A distance to the clean run has no gradient there, so positions are scored along a path to it.
    method = "eap-ig-inputs" if shown.metric.needs_reference else "eap"
    name, values = next(iter(example.values(value).items()))
    pairs = pairs_for(example.pairs, name)
    scores = score_edges(
        shown.model, pairs, value=values, metric=shown.metric, method=method, keep=("pos",), progress=False
    )
    patterns = {}
    if heads:
        store = capture(shown.model, example.pairs.clean, sites=["pattern"], progress=False)
        for layer, head in heads:
            patterns[layer, head] = store["pattern", layer].prompt(0)[head].float().cpu().numpy()
    return CircuitView.of(
        run.circuit,
        title=f"{shown.pairs.provenance.get('task', 'circuit')} in {model_name(shown.model)}",
        tokens=list(example.pairs.clean.strings[0]),
        position_scores=scores.transpose("writer", "reader", "pos"),
        patterns=patterns,
        faithfulness=(float(best["faithfulness"]), float(best["low"]), float(best["high"])),
        intervals=run.intervals,
    )


def _circuit_caption(run: DiscoveryRun) -> str:
    caption = (
        "Edges by the size of their score. Positions and attention are those of the first test prompts, positions "
        f"{against(run.counterfactuals[0])}. If the picture shows fewer edges than the circuit has, it shows the "
        "strongest ones; the faithfulness is that of the whole circuit."
    )
    if verdict(run) == "no circuit":
        return f"{caption} This is the best trade-off, which the criteria do not accept."
    return caption


def _criteria_items(run: DiscoveryRun) -> list[Any]:
    """The circuit on all prompts and on those that the model gets right; and, folded, every other circuit."""
    n = run.evaluation.attrs["n"]
    prompts = {f"all {n}": run.evaluation}
    if run.competent is not None:
        prompts[f"{run.competent.sizes['example']} right"] = run.competent
    rows = []
    for name in map(str, run.evaluation["ablation"].values):
        for label, measured in prompts.items():
            if name in measured["ablation"].values:
                cell = measured.sel(circuit="circuit", ablation=name)
                rows.append({"against": name, "prompts": label} | _criteria_row(cell))
    items: list[Any] = [pd.DataFrame(rows)]
    others = [
        {"circuit": name, "edges": circuit.n_edges, "against": str(against)}
        | _criteria_row(run.evaluation.sel(circuit=name, ablation=against))
        for name, circuit in run.circuits.items()
        if name != "circuit"
        for against in run.counterfactuals
    ]
    if others:
        names = listed(name for name in run.circuits if name != "circuit")
        items.append(Folded(f"The same of {names}", pd.DataFrame(others)))
    return items


def _criteria_row(cell: xr.Dataset) -> dict[str, Any]:
    """The metric, the measures and the criteria of a circuit against one counterfactual."""
    return {
        "metric": number(cell["m_circuit"].mean()),
        "of the model": number(cell["m_full"].mean()),
        "with no edge": number(cell["m_empty"].mean()),
        "faithfulness": _with_interval(cell, "faithfulness"),
        "error": _with_interval(cell, "error"),
        "prompts near": _share(cell["prompts_near"]),
        "r": number(cell["r"]),
        "KL recovered": number(cell["kl_recovered"]),
        "answers kept": _share(cell["answers_kept"]),
        "first choice kept": _share(cell["same_choice"]),
        "fails": failing(cell) or "–",
    }  # fmt: skip


def _with_interval(cell: xr.Dataset, name: str) -> str:
    prefix = "" if name == "faithfulness" else f"{name}_"
    # + 0.0 turns -0.0 into 0.0.
    low, high = (float(cell[f"{prefix}{end}"].round(2)) + 0.0 for end in ("low", "high"))
    return f"{number(cell[name])} {interval_text(low, high, '.2f')}"


def _share(value: xr.DataArray) -> str:
    return "not measured" if not np.isfinite(float(value)) else f"{float(value):.0%}"


def _criteria_caption(run: DiscoveryRun, sets: PromptSets) -> str:
    text = "; ".join(run.criteria.text(letter) for letter in LETTERS)
    metric, unit = metric_words(run.evaluation.attrs["metric"]), run.evaluation.attrs.get("unit", "")
    caption = (
        f"Metric: {metric}{f' ({unit})' if unit else ''}, mean over prompts. {len(sets.test)} prompts that chose "
        f"nothing; {len(sets.find)} others made the scores, and {len(sets.select)} chose the size. The criteria: "
        f"{text}."
    )
    others = [name for name in map(str, run.evaluation["ablation"].values) if name not in run.counterfactuals]
    if others:
        caption += (
            f" {listed(others).capitalize()} values ask another question than the counterfactuals: they are shown, "
            "and no circuit was chosen for them."
        )
    full = run.evaluation["m_full"].isel(ablation=0)
    if run.competent is None and bool((full > 0).all()):
        caption += " The model gets all of these prompts right."
    return caption


def _frontier_table(frontier: xr.Dataset) -> pd.DataFrame:
    """A row for each size: the measures against each counterfactual, and what fails."""
    rows = []
    for size in frontier["size"].values:
        row: dict[str, Any] = {
            "edges": int(size),
            "share": f"{size / frontier.attrs['n_edges_of_graph']:.1%}",
        }
        for name in map(str, frontier["ablation"].values):
            cell = frontier.sel(size=size, ablation=name)
            row[f"{name}: faithfulness"] = _with_interval(cell, "faithfulness")
            row[f"{name}: error"] = _with_interval(cell, "error")
            row[f"{name}: prompts near"] = _share(cell["prompts_near"])
            row[f"{name}: KL"] = _with_interval(cell, "kl_recovered")
            row[f"{name}: fails"] = failing(cell) or "–"
        row["passes"] = "yes" if bool(frontier["passes_all"].sel(size=size)) else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _frontier_caption(run: DiscoveryRun) -> str:
    assert run.frontier is not None
    smallest = smallest_passing(run.frontier)
    found = f"The smallest size that passes has {smallest:,} edges." if smallest else "No size passes."
    if run.chosen_by == "criteria" and run.recommended and run.circuit.n_edges != smallest:
        found += f" Refining led to {run.circuit.n_edges:,} edges, which keep the criteria too."
    single = smallest_by_counterfactual(run.frontier)
    if len(single) > 1:
        by_name = [f"{name} {f'{size:,}' if size else 'none'}" for name, size in single.items()]
        found += f" Against one counterfactual alone: {', '.join(by_name)}."
    return (
        f"On the {run.frontier.attrs.get('n', '')} prompts that chose the size, edges ranked by "
        f"{run.circuit.attrs.get('method', 'their scores')} over all counterfactuals. A size passes when the "
        "criteria hold at it and at the next two sizes, against every counterfactual; because these prompts "
        f"choose, error and KL recovered have to keep their bounds in {SURE:.0%} of the resamples of them. {found}"
    )


def _effects(run: DiscoveryRun, metric: str) -> list[Section]:
    unit = run.heads.attrs.get("unit", "")
    ablation = (
        f"Change of {metric} ({unit}) when a head's output is set to zero in the clean run, mean over "
        f"{run.heads.sizes['example']} test prompts: negative means that the head supports the behaviour."
    )
    denoising = (
        f"Change of {metric} when the corrupt run gets the clean residual stream at one layer and named "
        f"position (denoising), mean over {0 if run.patching is None else run.patching.sizes['example']} test prompts."
    )
    strongest = "The ten heads whose ablation changes the metric most."
    sections: list[Section] = [
        ("Head ablation", run.heads, ablation),
        ("Heads by effect", _head_table(run.heads, run.circuit), strongest),
    ]
    if run.patching is not None:
        sections.append(("Patching the residual stream", run.patching, denoising))
    return sections


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
    """The first pairs with their answers; further corruptions as they are."""
    rows = []
    for i, row in enumerate(pair_rows(pairs, most)):
        shown = {"clean": str(row["clean"]), pairs.counterfactual: str(row["corrupt"])}
        shown |= {name: _text(side.strings[i]) for name, side in pairs.further.items()}
        rows.append(shown | {"right answer": row["answer"], "wrong": row["wrong"]})
    return pd.DataFrame(rows)


def _text(tokens: Sequence[str]) -> str:
    """Tokens as one line; those of a BPE vocabulary bring their spaces with them, words do not."""
    if any(token.startswith(" ") for token in tokens):
        return "".join(tokens)
    return " ".join(tokens)


def _prompt_caption(pairs: PromptPairs) -> str:
    dropped = pairs.provenance.get("dropped")
    if not dropped:
        return "The first test pairs; in brackets the tokens in which the first two differ."
    return f"The first test pairs; in brackets the tokens in which the first two differ. Words that do not suit this vocabulary were left out: {dropped}."
