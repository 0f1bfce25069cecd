"""How far to trust a circuit: the sections of a report for controls, resamples, exact effects and checks.

Each says in words what was measured, what it means for this circuit, and what the method cannot see. Read
`trust_sections`. Nothing is measured here.
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.evaluation.controls import COMPLEMENT, OTHER_HEADS, OTHER_TASK, PATHS, STRONGEST
from workbench.render.report import Folded
from workbench.statistics import interval_text
from workbench.text import listed
from workbench.workflows.discovery_run import DiscoveryRun
from workbench.workflows.summary import edges_of_kind
from workbench.workflows.verdict import other_task_passes
from workbench.workflows.wording import against, edges_text, number

NUMBERS = "The numbers"
SHOWN_EDGES = 8
"""Edges that a sentence names."""
DRAWS_SHARE = 0.5
"""Share of draws that keep the criteria from which on a control is said to do as well."""
ERROR_FACTOR = 2
"""A control whose error is up to this many times the circuit's is said to come close."""
Section = tuple[str, Any, str]


def trust_sections(run: DiscoveryRun) -> list[Section]:
    """What speaks for and against the circuit, the hardest test first."""
    sections: list[Section] = []
    if run.controls is not None:
        items = [controls_text(run.controls), run.controls, Folded(NUMBERS, _controls_table(run.controls))]
        sections.append(("Controls: would other circuits do as well?", items, ""))
    if run.stability is not None:
        items = [
            stability_text(run.stability), run.stability, Folded(NUMBERS, _stability_table(run.stability)),
        ]  # fmt: skip
        sections.append(("Stability: would other prompts give the same circuit?", items, ""))
    if run.agreement is not None:
        tables = [_agreement_table(run.agreement), _edges_table(run.agreement)]
        items = [
            agreement_text(run.agreement), run.agreement, Folded(NUMBERS, tables[0]),
            Folded("The edges that were patched", tables[1]),
        ]  # fmt: skip
        sections.append(("Scores beside exact effects of edges", items, ""))
    if run.multiverse is not None:
        items = [multiverse_text(run.multiverse), run.multiverse]
        sections.append(("Other choices: which edges are found whatever is chosen?", items, ""))
    if run.checks is not None:
        sections.append(("Further checks", checks_text(run.checks), ""))
    return sections


def controls_text(controls: xr.Dataset) -> str:
    """What each control says, a paragraph each."""
    kinds = list(map(str, controls["control"].values))
    paragraphs = [
        f"Measured on {controls.attrs['n']} of the test prompts. There the circuit itself has faithfulness "
        f"{_each(controls, 'circuit_faithfulness')}, and error {_each(controls, 'circuit_error')}.",
        _other_heads_text(controls.sel(control=OTHER_HEADS)),
    ]
    if OTHER_TASK in kinds:
        paragraphs.append(_other_task_text(controls))
    paragraphs.append(_strongest_text(controls.sel(control=STRONGEST), controls.attrs["kept"]))
    paths, complement = controls.sel(control=PATHS), controls.sel(control=COMPLEMENT)
    paragraphs.append(
        f"Random whole paths keep {_each(paths, 'faithfulness')}, and the complement (all edges outside the circuit) "
        f"{_each(complement, 'faithfulness')}. Both come last because they say little: they are near 0 for every "
        "circuit that holds the few edges on which all else depends, right or wrong."
    )
    return "\n\n".join(paragraphs)


def _other_heads_text(row: xr.Dataset) -> str:
    if not int(row["draws"]):
        return f"The same shape through other heads: {row['note'].item()}"
    draws, names = int(row["draws"]), list(map(str, row["ablation"].values))
    specific = [name for name in names if float(row["specific"].sel(ablation=name)) == 1]
    text = (
        f"The same shape through other heads ({draws} draws: the edges of every head go to another head of its layer) "
        f"has faithfulness {_each(row, 'faithfulness')} and error {_each(row, 'error')}."
    )
    if len(specific) == len(names):
        return (
            f"{text} The circuit's error is below that of every draw, so it is specific: these heads matter."
        )
    ranks = [
        f"{float(row['error_percentile'].sel(ablation=name)):.0f} % {against(name)}"
        for name in names
        if name not in specific
    ]
    return (
        f"{text} The circuit's error is below that of only {listed(ranks)} of the draws, so it is not specific: other "
        "heads would do."
    )


def _other_task_text(controls: xr.Dataset) -> str:
    row, task = controls.sel(control=OTHER_TASK), controls.attrs["other_task"]
    of_task = f" ({task})" if task else ""
    text = (
        f"The circuit of another task{of_task}, found with as many edges, has faithfulness "
        f"{_each(row, 'faithfulness')} and error {_each(row, 'error')}; it has "
        f"{float(row['shared_edges']):.0%} of this circuit's edges."
    )
    close = _close(row)
    if other_task_passes(controls):
        return f"{text} It keeps all criteria too, so nothing here is particular to this task."
    if close:
        near = listed(map(against, close))
        return f"{text} It comes close {near}: that alone does not tell the task's circuit from another."
    return text


def _strongest_text(row: xr.Dataset, kept: int) -> str:
    if not int(row["draws"]):
        return f"The strongest edges with random ones: {row['note'].item()}"
    text = (
        f"The {edges_text(kept)} with the largest scores, with random edges for the rest of the circuit "
        f"({int(row['draws'])} draws), have faithfulness {_each(row, 'faithfulness')} and error {_each(row, 'error')}."
    )
    holds = float(row["holds"].min())
    if holds >= DRAWS_SHARE:
        return f"{text} {holds:.0%} of these draws keep all criteria, so the weaker edges are hardly needed."
    return text


def _close(row: xr.Dataset) -> list[str]:
    """The counterfactuals against which a control comes close to the circuit."""
    names = []
    for name in map(str, row["ablation"].values):
        ours, theirs = (float(row[key].sel(ablation=name)) for key in ("circuit_error", "error"))
        if theirs <= ERROR_FACTOR * ours:
            names.append(name)
    return names


def _each(row: xr.Dataset, measure: str) -> str:
    """A measure against each counterfactual."""
    names = map(str, row["ablation"].values)
    return listed(f"{number(row[measure].sel(ablation=name))} {against(name)}" for name in names)


def stability_text(stability: xr.Dataset) -> str:
    """How much the circuit depends on the prompts it was found with."""
    draws, found = stability.sizes["draw"], int(stability["size"].notnull().sum())
    text = (
        f"The rule was repeated on {draws} resamples of the prompts that scores are made on, without refining. It "
        f"found a circuit in {found} of {draws}"
    )
    if not found:
        text += "."
    else:
        low, high = float(stability["size_low"]), float(stability["size_high"])
        text += (
            f", with a median of {edges_text(int(stability['median_size']))} [{low:,.0f}, {high:,.0f}] (all prompts: "
            f"{stability.attrs['near']:,})."
        )
    if found > 1:
        jaccard, near = (_interval(stability, name) for name in ("jaccard", "jaccard_near"))
        text += (
            f" Two of these circuits share {jaccard} of the edges that either has (Jaccard index), and {near} when all "
            "are cut at one size."
        )
    core = int(stability["core_size"])
    if found:
        measured = [
            f"faithfulness {number(stability['core_faithfulness'].sel(ablation=name))} and error "
            f"{number(stability['core_error'].sel(ablation=name))} {against(name)}"
            for name in map(str, stability["ablation"].values)
        ]
        text += (
            f"\n\n{edges_text(core)} are in at least 90 % of them: the core. Alone it has {listed(measured)}."
        )
    return (
        f"{text}\n\nResamples share most of their prompts, so circuits of wholly other prompts would agree less than "
        "these."
    )


def _interval(dataset: xr.Dataset, name: str) -> str:
    low, high = float(dataset[f"{name}_low"]), float(dataset[f"{name}_high"])
    return f"{number(dataset[name])} {interval_text(low, high, '.2f')}"


def agreement_text(agreement: xr.Dataset) -> str:
    """Whether the scores rank edges as their exact effects do, and what stands outside."""
    n, n_all = (agreement[name].values.tolist() for name in ("n", "n_all"))
    text = (
        f"{n[0]:,} of {n_all[0]:,} edges inside the circuit and {n[1]:,} of {n_all[1]:,} outside were patched one at a "
        "time, in both directions. Noising: an edge of the clean run gets its corrupt value; what breaks? "
        "Denoising: an edge of the corrupt run gets its clean value; what comes back?"
    )
    bounds = []
    for direction in map(str, agreement["direction"].values):
        cell = agreement.sel(direction=direction)
        values = [
            f"{float(cell['above_bound'].sel(ablation=name)):.0%} {against(name)}"
            for name in map(str, agreement["ablation"].values)
            if np.isfinite(float(cell["above_bound"].sel(ablation=name)))
        ]
        if values:
            bounds.append(f"{listed(values)} ({direction})")
    if bounds:
        text += (
            "\n\nAt most this share of all edges outside has an effect above the circuit's median (95 % bound): "
            f"{'; '.join(bounds)}."
        )
    for kind, meaning in (
        ("or-like", "strong in denoising only, so another edge can stand in for it"),
        ("and-like", "strong in noising only, so it needs another edge"),
    ):
        named = []
        for name in map(str, agreement["ablation"].values):
            edges = edges_of_kind(agreement, kind, name)
            if edges:
                more = f" and {len(edges) - SHOWN_EDGES} more" if len(edges) > SHOWN_EDGES else ""
                named.append(f"{', '.join(edges[:SHOWN_EDGES])}{more} {against(name)}")
        if named:
            text += f"\n\n{kind.capitalize()} ({meaning}): {'; '.join(named)}."
    return (
        f"{text}\n\nExact effects of single edges are a yardstick for scores, not the truth about circuits: an edge "
        "whose work another takes over has no effect alone (redundancy)."
    )


def multiverse_text(multiverse: xr.Dataset) -> str:
    """How much each choice matters, and what is found whatever is chosen."""
    n, robust = multiverse.attrs["n_specifications"], multiverse.attrs["n_robust"]
    known = multiverse["jaccard"].where(multiverse["n_pairs"] > 0).to_series().dropna()
    words = {"ablation": "patched value", "score_method": "method", "draw": "resample of the prompts"}
    texts = [f"{words.get(str(name), str(name))} {value:.2f}" for name, value in known.sort_values().items()]
    return (
        f"Edges were scored in {n} ways: every counterfactual, zero and mean values, two metrics, two methods and "
        f"resamples of the prompts. {edges_text(robust)} are among the strongest in at least 80 % of them. Two "
        f"circuits that differ in one choice alone agree by a Jaccard index of: {'; '.join(texts)}. The choice with "
        "the smallest number matters most. No circuit was run here: what is found in all ways may still not be enough."
    )


def checks_text(checks: xr.Dataset) -> str:
    """Completeness and minimality, in words."""
    low, high = float(checks["incompleteness_low"]), float(checks["incompleteness_high"])
    unneeded = checks["unneeded"].item()
    text = (
        "Completeness: when the same components are knocked out of circuit and model, the two should still agree. "
        f"They differ most, by {float(checks['incompleteness']):.0%} [{low:.0%}, {high:.0%}] of the effect, without "
        f"{checks['incompleteness_set'].item()} (0 % is a complete circuit). The sets are a search and not all of "
        "them, so a worse one may exist.\n\n"
        f"Minimality: removing any one of {float(checks['minimal']):.0%} of its heads and MLPs costs at least 1 % of "
        "the metric."
    )
    if unneeded:
        text += f" Not needed by this test: {unneeded}."
    return text


def _controls_table(controls: xr.Dataset) -> pd.DataFrame:
    rows = []
    for kind in map(str, controls["control"].values):
        for name in map(str, controls["ablation"].values):
            cell = controls.sel(control=kind, ablation=name)
            rows.append({
                "control": kind, "against": name, "circuits": int(cell["draws"]),
                "edges": float(cell["n_edges"]), "shared": _percent(cell["shared_edges"]),
                "faithfulness": _known(cell, "faithfulness"), "error": _known(cell, "error"),
                "error larger than the circuit's": _percent(cell["error_percentile"] / 100),
                "keeps all criteria": _percent(cell["holds"]), "interval over": str(cell["interval_over"].item()),
            })  # fmt: skip
    return pd.DataFrame(rows).round({"edges": 1})


def _known(cell: xr.Dataset, name: str) -> str:
    return _interval(cell, name) if np.isfinite(float(cell[name])) else "–"


def _percent(share: xr.DataArray) -> str:
    return f"{float(share):.0%}" if np.isfinite(float(share)) else "–"


def _stability_table(stability: xr.Dataset) -> pd.DataFrame:
    columns: dict[str, Any] = {"resample": range(1, stability.sizes["draw"] + 1)}
    sizes = stability["size"].values
    columns["edges chosen"] = ["none" if np.isnan(size) else f"{size:,.0f}" for size in sizes]
    columns["without dead ends"] = [
        "–" if np.isnan(size) else f"{n:,.0f}"
        for size, n in zip(sizes, stability["n_edges"].values, strict=True)
    ]
    return pd.DataFrame(columns)


def _agreement_table(agreement: xr.Dataset) -> pd.DataFrame:
    rows = []
    for direction in map(str, agreement["direction"].values):
        for name in map(str, agreement["ablation"].values):
            cell = agreement.sel(direction=direction, ablation=name)
            row: dict[str, Any] = {"direction": direction, "against": name}
            for stratum in map(str, agreement["stratum"].values):
                row[f"Spearman {stratum}"] = _known(cell.sel(stratum=stratum), "spearman")
            row["median effect inside"] = float(cell["median"])
            row["outside above it"] = _percent(cell["above"])
            row["at most (95 %)"] = _percent(cell["above_bound"])
            rows.append(row)
    return pd.DataFrame(rows)


def _edges_table(agreement: xr.Dataset) -> pd.DataFrame:
    """The sampled edges, the largest scores first, with their effects."""
    columns: dict[str, Any] = {
        "edge": agreement["edge"].values.astype(str),
        "in circuit": np.where(agreement["inside"].values.astype(bool), "yes", ""),
        "score": agreement["score"].values,
    }
    for name in map(str, agreement["ablation"].values):
        for direction in map(str, agreement["direction"].values):
            columns[f"{direction}, {name}"] = (
                agreement["effect"].sel(direction=direction, ablation=name).values
            )
        columns[f"kind, {name}"] = agreement["one_direction"].sel(ablation=name).values.astype(str)
    frame = pd.DataFrame(columns).sort_values("score", ascending=False, kind="stable").reset_index(drop=True)
    numbers = frame.select_dtypes("number").columns
    frame[numbers] = frame[numbers].round(4) + 0.0  # -0.0 would be shown as -0
    return frame
