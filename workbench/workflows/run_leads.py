"""The first blocks of pages of runs, of differences and of benchmarks: what was asked and found, and what speaks
against it.

Sentences are made of what the files and tables hold; nothing is measured. Read `lead_of_run`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import xarray as xr

from workbench.circuit.circuit import Circuit
from workbench.circuit.compare import compare
from workbench.errors import WorkbenchError
from workbench.evaluation.behaviours import Behaviour, behaviours_table
from workbench.render.cards.headlines import headline
from workbench.render.page import KeyNumber, Lead
from workbench.text import listed
from workbench.workflows.wording import edges_text, number

MOST = 4
"""Sentences of a lead; further ones are behind its fold."""


def lead_of_run(contents: Mapping[str, Any]) -> Lead:
    """What a run's folder holds, a sentence each.

    Args:
        contents: name of a file → its circuit, result or table.
    """
    told = []
    for item in contents.values():
        sentence = _sentence(item)
        if sentence and sentence not in told:
            told.append(sentence)
    first, *rest = told or ["Its files are tables and results that no sentence was written for: see below."]
    return Lead(
        asked=_asked(contents),
        found=first,
        more=rest,
        against=[
            "The numbers are as they were written: nothing was run again, and the model that made them was not asked."
        ],
    )


def lead_of_difference(
    pairs: Mapping[str, tuple[Any, Any]], names: tuple[str, str], unshared: Sequence[tuple[str, str]]
) -> Lead:
    """What differs between two runs.

    Args:
        pairs: name of a file that both have → what it holds in each.
        names: of the runs.
        unshared: (run, file) of files that only one of them has.
    """
    numbers, found = [], f"They have {len(pairs)} files in common."
    for name, (first, second) in pairs.items():
        if not isinstance(first, Circuit) or not isinstance(second, Circuit):
            continue
        try:
            comparison = compare(first, second)
        except WorkbenchError as error:
            found = f"The circuits of {name} cannot be compared: {error}"
            continue
        shared = comparison.both.n_edges
        found = f"{edges_text(shared)} of {name} are in both circuits."
        if shared == first.n_edges == second.n_edges:
            found = f"The circuits of {name} have the same {edges_text(shared)}."
        beside = f"{names[0]} has {first.n_edges}, {names[1]} {second.n_edges}"
        numbers.append(KeyNumber(f"Edges of {name} in both", f"{shared:,}", "", beside))
        numbers.append(
            KeyNumber(
                "Edges shared (Jaccard)",
                number(comparison.jaccard),
                "",
                f"nodes {number(comparison.node_jaccard)}",
            )
        )
    against = ["A difference says nothing of its cause: the settings of both runs are in the rows below."]
    if unshared:
        against.insert(0, f"{len(unshared)} files are in one of the runs alone, and were not compared.")
    return Lead(
        asked=f"What differs between {names[0]} and {names[1]}?",
        found=found,
        numbers=numbers,
        against=against,
    )


def lead_of_bench(construction: pd.DataFrame, trained: pd.DataFrame) -> Lead:
    """Which method finds the true edges, beside the random ranking."""
    numbers, found = [], "No planted model was run, so no true edges are known: see the trained models below."
    if len(construction):
        best = construction.sort_values("mean AUROC", ascending=False, kind="stable").iloc[0]
        found = (
            f"With {best['value']} values {best['method']} ranks true edges highest: mean AUROC {best['mean AUROC']:.3f} "
            f"on {best['models']} planted models, at worst {best['worst AUROC']:.3f} on {best['worst on']}."
        )
        for _, row in (
            construction.sort_values("mean AUROC", ascending=False, kind="stable").head(MOST).iterrows()
        ):
            numbers.append(
                KeyNumber(
                    f"AUROC of {row['method']}, {row['value']} values",
                    f"{row['mean AUROC']:.3f}",
                    "",
                    f"at worst {row['worst AUROC']:.3f}{_random(construction, row['value'])}",
                )
            )
    against = [
        "A method that wins on planted models need not win on a trained one: what is hard there is given by construction."
    ]
    if len(trained):
        against.append(
            "On trained models nobody knows the true edges; they are judged by what circuits keep."
        )
    return Lead(
        asked="Which method ranks the true edges of a model first?",
        found=found,
        numbers=numbers,
        against=against,
    )


def lead_of_behaviours(rows: Sequence[Behaviour]) -> Lead:
    """The smallest circuits of behaviours, and how far to trust a size."""
    table = behaviours_table(rows)
    found = "No method kept the share that was asked for."
    if len(table):
        least = table.sort_values("edges", kind="stable").iloc[0]
        found = (
            f"{least['behaviour']} needs fewest: {edges_text(int(least['edges']))} by {least['method']}, faithfulness "
            f"{least['faithfulness']} on held-out prompts."
        )
    share = f"{rows[0].share:.0%}" if rows else "the share"
    return Lead(
        asked=f"How few of the best-scored edges keep {share} of a behaviour?",
        found=found,
        against=[
            "Faithfulness is a mean over prompts: a circuit that keeps it may miss the model prompt by prompt. "
            "`workbench discover` holds a circuit to more.",
        ],
    )


def _asked(contents: Mapping[str, Any]) -> str:
    """Models, tasks and metrics of the results, as far as they say them."""
    facts: dict[str, list[str]] = {"model": [], "task": [], "metric": []}
    for item in contents.values():
        for name, seen in facts.items():
            fact = str(getattr(item, "attrs", {}).get(name, ""))
            if fact and fact not in seen:
                seen.append(fact)
    words = [f"{name} {listed(seen)}" for name, seen in facts.items() if seen]
    return f"What was measured ({', '.join(words)})?" if words else "What was measured?"


def _sentence(item: Any) -> str:
    """The headline of a result, the size of a circuit; "" for tables and what has no sentence."""
    if isinstance(item, Circuit):
        total = item.graph.n_edges
        return f"A circuit of {edges_text(item.n_edges)} of {total:,} ({item.n_edges / total:.1%})."
    if not isinstance(item, xr.DataArray | xr.Dataset):
        return ""
    try:
        return headline(item)
    except WorkbenchError:
        return ""  # a result of an earlier version, or of another program, which is drawn below all the same


def _random(construction: pd.DataFrame, value: object) -> str:
    """What a random ranking has, where it was run."""
    for row in construction.to_dict("records"):
        if row["method"] == "random" and row["value"] == value:
            return f"; a random ranking {row['mean AUROC']:.3f}"
    return ""
