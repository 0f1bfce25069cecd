"""The benchmark of methods and the smallest circuits, as files: what `workbench bench` writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.evaluation.behaviours import Behaviour, areas_table, behaviours_table
from workbench.evaluation.benchmark import Row, by_construction, on_trained_models, save_rows
from workbench.files import replaced
from workbench.render.figures.tables import bench_figure
from workbench.render.report import report
from workbench.workflows.run_leads import lead_of_behaviours, lead_of_bench

BENCH_FILES = ("bench.parquet", "bench.html")
BEHAVIOUR_FILES = ("behaviours.parquet", "behaviours.html")
Section = tuple[str, Any, str]
_BY_CONSTRUCTION = (
    "Models of known circuit, by kind of value: area under the ROC curve of edges ranked by the magnitude of their "
    "scores (mean, and the worst model), MIB's area, the share of true edges among as many best ones as "
    "there are, and on held-out prompts CPR (signed) and CMD (by magnitude). With corrupt values most methods are "
    "near the top here: this table tells which mechanisms a method misses, not which method is best."
)
_TRAINED = (
    "Trained models, whose true edges nobody knows; means over tasks, on held-out prompts. CMD: area between the "
    "curve of faithfulness and 1. At 10 % of the edges: mean |m(circuit) - m(model)| as a share of the mean gap, and "
    "r over prompts. Agreement: rank correlation of scores with exact effects of edges drawn at random, patched in "
    "the clean run (noising) or restored in the corrupt one (denoising; with corrupt values only)."
)
_EVERY_METHOD = (
    "Edges of the smallest circuit, faithfulness at 1 % of the edges, CPR (signed) and CMD (by magnitude) on "
    "held-out prompts, and stability."
)


def write_bench(rows: Sequence[Row], folder: Path, command: str, *, overwrite: bool = False) -> list[Path]:
    """Write the table of a benchmark as parquet, and a page that shows it; returns both paths.

    Raises:
        OutputExists: they are there already.
    """
    frame = pd.DataFrame([vars(row) for row in rows])
    overviews = (
        ("By construction", by_construction(rows), _BY_CONSTRUCTION),
        ("On trained models", on_trained_models(rows), _TRAINED),
    )
    sections: list[Section] = [section for section in overviews if len(section[1])]
    planted = frame.dropna(subset=["edge_auroc"])  # only there the true edges are known
    for value in dict.fromkeys(planted["value"].tolist()):
        sections.append(_auroc_section(pd.DataFrame(planted[planted["value"] == value]), value))
    trained = pd.DataFrame(frame[~frame["model"].str.startswith("planted-")])
    caption = "Area between the faithfulness curve and 1, held-out prompts: 0 is best."
    for model, value in dict.fromkeys(zip(trained["model"], trained["value"], strict=True)):
        of_both = (trained["model"] == model) & (trained["value"] == value)
        figure = bench_figure(_by_method(pd.DataFrame(trained[of_both]), "task", "cmd"), best="low")
        sections.append((f"CMD on {model}, {value} values", figure, caption))
    # All numbers at the end, so that no summary has to be believed.
    sections.append(("Every row", frame.round(4), ""))
    with replaced(folder, BENCH_FILES, overwrite=overwrite) as partial:
        save_rows(rows, partial / BENCH_FILES[0])
        report(
            sections,
            partial / BENCH_FILES[1],
            title="Which method finds the true edges",
            lead=lead_of_bench(overviews[0][1], overviews[1][1]),
            command=command,
        )
    return [folder / name for name in BENCH_FILES]


def _auroc_section(planted: pd.DataFrame, value: str) -> Section:
    planted["model"] = planted["model"].str.removeprefix("planted-")
    figure = bench_figure(_by_method(planted, "model", "edge_auroc"))
    return (
        f"Edge AUROC, {value} values",
        figure,
        "1: every true edge outranks every false one; 0.5: chance.",
    )


def _by_method(frame: pd.DataFrame, index: str, number: str) -> pd.DataFrame:
    """A column for each method, in the order in which they were run; pivot alone would sort them."""
    methods = list(dict.fromkeys(frame["method"]))
    return frame.pivot(index=index, columns="method", values=number).reindex(columns=methods)


def write_behaviours(
    rows: Sequence[Behaviour], folder: Path, command: str, *, overwrite: bool = False
) -> list[Path]:
    """Write the smallest circuits of behaviours as parquet, and a page that shows them; returns both paths.

    Raises:
        OutputExists: they are there already.
    """
    share = f"{rows[0].share:.0%}" if rows else ""
    caption = (
        f"The fewest best-scored edges that keep {share} of the behaviour on the prompts of the search, by "
        "the method that needs fewest; pruned: without dead ends. Faithfulness on held-out "
        "prompts, with 95 % bootstrap intervals. Jaccard: agreement of circuits of that size found on "
        "resampled prompts (published for indirect objects in GPT-2 small: .67)."
    )
    sections: list[Section] = [
        ("Smallest circuits", behaviours_table(rows), caption),
        ("Every method", areas_table(rows), _EVERY_METHOD),
    ]
    with replaced(folder, BEHAVIOUR_FILES, overwrite=overwrite) as partial:
        pd.DataFrame([vars(row) for row in rows]).to_parquet(partial / BEHAVIOUR_FILES[0])
        report(
            sections,
            partial / BEHAVIOUR_FILES[1],
            title="How small is a circuit?",
            lead=lead_of_behaviours(rows),
            command=command,
        )
    return [folder / name for name in BEHAVIOUR_FILES]
