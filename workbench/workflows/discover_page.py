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
from workbench.discovery.frontier import smallest_by_counterfactual, smallest_passing
from workbench.discovery.scores import score_edges
from workbench.engine.capture import capture
from workbench.engine.counterfactuals import pairs_for
from workbench.experiment import PairsInModel
from workbench.models.load import model_name
from workbench.prompts.pairs import PromptPairs
from workbench.render.attention_panels import attention_panel
from workbench.render.circuit.svg import CircuitView
from workbench.statistics import interval_text, summary
from workbench.workflows.discovery_run import DiscoveryRun
from workbench.workflows.prompt_sets import PromptSets
from workbench.workflows.summary import competence_text, headline

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
        ("Can the model do it?", competence_text(run.competence), ""),
        ("What was found", view, headline(run)),
        ("The criteria on the test prompts", _criteria_table(run), _criteria_caption(run, sets)),
    ]
    if run.frontier is not None:
        sections.append(("Criteria against circuit size", _frontier_table(run), _frontier_caption(run)))
    sections += _trust(run)
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
        listed = " ".join(f"{name.capitalize()}: {reason}." for name, reason in missing.items())
        sections.append(("What was left out", listed, ""))
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


def _criteria_table(run: DiscoveryRun) -> pd.DataFrame:
    """Every circuit against everything that it was tested with: one row each."""
    rows = []
    for circuit in run.evaluation["circuit"].values:
        for ablation in run.evaluation["ablation"].values:
            cell = run.evaluation.sel(circuit=circuit, ablation=ablation)
            rows.append({
                "circuit": str(circuit), "against": str(ablation), "edges": int(cell["n_edges"]),
                "faithfulness": _with_interval(cell, "faithfulness"),
                "error per prompt": _with_interval(cell, "error"), "r": _with_interval(cell, "r"),
                "KL recovered": _with_interval(cell, "kl_recovered"),
                "answers kept": _share(cell["answers_kept"]), "first choice kept": _share(cell["same_choice"]),
                "holds": " ".join(letter for letter in "abcd" if bool(cell[f"holds_{letter}"])) or "none",
            })  # fmt: skip
    return pd.DataFrame(rows)


def _with_interval(cell: xr.Dataset, name: str) -> str:
    prefix = "" if name == "faithfulness" else f"{name}_"
    # + 0.0 turns -0.0 into 0.0.
    mean, low, high = (float(cell[key].round(2)) + 0.0 for key in (name, f"{prefix}low", f"{prefix}high"))
    return f"{mean:.2f} {interval_text(low, high, '.2f')}"


def _share(value: xr.DataArray) -> str:
    return "not measured" if not np.isfinite(float(value)) else f"{float(value):.0%}"


def _criteria_caption(run: DiscoveryRun, sets: PromptSets) -> str:
    text = "; ".join(run.criteria.text(letter) for letter in "abcd")
    caption = (
        f"On {len(sets.test)} prompts that chose nothing ({len(sets.find)} made the scores, {len(sets.select)} chose "
        f"the size). The criteria: {text}. Zero and mean values are another question than the counterfactuals: "
        "they are shown, and no circuit was chosen for them."
    )
    if run.competent is not None:
        n = run.competent.sizes["example"]
        parts = []
        for name in run.competent["ablation"].values:
            cell = run.competent.sel(circuit="circuit", ablation=name)
            parts.append(
                f"{name}: faithfulness {_with_interval(cell, 'faithfulness')}, error {_with_interval(cell, 'error')}"
            )
        caption += f" On the {n} test prompts that the model gets right: {'; '.join(parts)}."
    return caption


def _frontier_table(run: DiscoveryRun) -> pd.DataFrame:
    assert run.frontier is not None
    rows = []
    for size in run.frontier["size"].values:
        row: dict[str, Any] = {"edges": int(size), "share": f"{size / run.circuit.graph.n_edges:.1%}"}
        for name in run.frontier["ablation"].values:
            cell = run.frontier.sel(size=size, ablation=name)
            row[f"{name}: faithfulness"] = _with_interval(cell, "faithfulness")
            row[f"{name}: error"] = f"{float(cell['error']):.2f}"
            row[f"{name}: KL"] = f"{float(cell['kl_recovered']):.2f}"
            row[f"{name}: holds"] = (
                " ".join(letter for letter in "abcd" if bool(cell[f"holds_{letter}"])) or "none"
            )
        row["passes"] = "yes" if bool(run.frontier["passes_all"].sel(size=size)) else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _frontier_caption(run: DiscoveryRun) -> str:
    assert run.frontier is not None
    smallest = smallest_passing(run.frontier)
    found = f"The smallest size that passes is {smallest}." if smallest else "No size passes."
    single = smallest_by_counterfactual(run.frontier)
    by_name = "; ".join(f"{name} alone: {size or 'none'}" for name, size in single.items())
    return (
        "On the prompts that chose the size, edges ranked by their joint score. A size passes when the criteria "
        f"hold at it and at the next two, against every counterfactual. {found} {by_name.capitalize()}."
    )


def _trust(run: DiscoveryRun) -> list[Section]:
    sections: list[Section] = []
    if run.controls is not None:
        sections.append(("Controls", _table_of(run.controls), ""))
    if run.stability is not None:
        sections.append(("Stability over prompts", _table_of(run.stability), ""))
    if run.agreement is not None:
        sections.append(("Agreement with exact effects", _table_of(run.agreement), ""))
    if run.checks is not None:
        sections.append(("Further checks", _doubts(run.checks), ""))
    return sections


def _table_of(dataset: xr.Dataset) -> pd.DataFrame:
    small = [name for name, column in dataset.data_vars.items() if column.size <= 100 and column.ndim <= 2]
    frame = dataset[small].to_dataframe().reset_index().round(3)
    frame[frame.select_dtypes("number").columns] += 0.0  # -0.0 would be shown as -0
    return frame


def _doubts(checks: xr.Dataset) -> str:
    """What speaks against the circuit, in words."""
    facts = {name: float(checks[name]) for name in ("complement", "random", "incompleteness", "minimal")}
    low, high = float(checks["incompleteness_low"]), float(checks["incompleteness_high"])
    return (
        f"Completeness: when components are knocked out of circuit and model alike, the two differ most, by "
        f"{facts['incompleteness']:.0%} [{low:.0%}, {high:.0%}] of the effect, without "
        f"{checks['incompleteness_set'].values} (0 % is a complete circuit). Minimality: removing any one of "
        f"{facts['minimal']:.0%} of its heads and MLPs costs at least 1 % of the metric; not needed: "
        f"{checks['unneeded'].values or 'none'}. The complement keeps {facts['complement']:.0%} of the effect and "
        f"random circuits of whole paths {facts['random']:.0%}: both hold for whatever contains the few edges that "
        "all depends on."
    )


def _effects(run: DiscoveryRun, metric: str) -> list[Section]:
    unit = run.heads.attrs.get("unit", "")
    ablation = (
        f"Change of {metric} ({unit}) when a head's output is set to zero in the clean run, mean over "
        "test prompts: negative means that the head supports the behaviour."
    )
    denoising = (
        f"Change of {metric} when the corrupt run gets the clean residual stream at one layer and named "
        "position (denoising), mean over test prompts."
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
        return "The first test pairs."
    return f"The first test pairs. Words that do not suit this vocabulary were left out: {dropped}."
