"""The benchmark as a job."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.evaluation.behaviours import Behaviour, areas_table, behaviours_table
from workbench.evaluation.benchmark import Row, overview, save_rows
from workbench.files import replaced
from workbench.render.figures.grids import bench_figure
from workbench.render.report import report

BENCH_FILES = ("bench.parquet", "bench.html")


BEHAVIOUR_FILES = ("behaviours.parquet", "behaviours.html")


def write_bench(rows: Sequence[Row], folder: Path, command: str, *, overwrite: bool = False) -> list[Path]:
    """The table of a bench as parquet, and a page that shows it."""
    frame = pd.DataFrame([vars(row) for row in rows])
    sections: list[tuple[Any, ...]] = [
        ("Methods", overview(rows), "Planted models by kind of value: area under the ROC curve of edges ranked by the size of their scores (mean, and the worst model), MIB's area, the share of true edges among as many best ones as there are, and on held-out prompts CPR (signed) and CMD (by size). Below, the tasks of tiny, whose true edges nobody knows."),
    ]  # fmt: skip
    known = frame.dropna(subset=["edge_auroc"])
    for value in dict.fromkeys(known["value"].tolist()):
        part = pd.DataFrame(known[known["value"] == value])
        part["model"] = part["model"].str.removeprefix("planted-")
        table = part.pivot(index="model", columns="method", values="edge_auroc").reindex(
            columns=list(dict.fromkeys(part["method"]))
        )
        sections.append(
            (
                f"Edge AUROC, {value} values",
                bench_figure(table),
                "1: every true edge outranks every false one; 0.5: chance.",
            )
        )
    tiny = pd.DataFrame(frame[frame["model"] == "tiny"])
    if len(tiny):
        table = tiny.pivot(index="task", columns="method", values="cmd").reindex(
            columns=list(dict.fromkeys(tiny["method"]))
        )
        sections.append(
            (
                "CMD on tiny",
                bench_figure(table, best="low"),
                "Area between the faithfulness curve and 1, held-out prompts: 0 is best.",
            )
        )
    sections.append(("Every row", frame.round(4), ""))
    with replaced(folder, BENCH_FILES, overwrite=overwrite) as partial:
        save_rows(rows, partial / BENCH_FILES[0])
        report(sections, partial / BENCH_FILES[1], title="Which method tells the truth", command=command)
    return [folder / name for name in BENCH_FILES]


def write_behaviours(
    rows: Sequence[Behaviour], folder: Path, command: str, *, overwrite: bool = False
) -> list[Path]:
    """The smallest circuits of behaviours as parquet, and a page that shows them."""
    share = f"{rows[0].share:.0%}" if rows else ""
    sections: list[tuple[Any, ...]] = [
        ("Smallest circuits", behaviours_table(rows), f"The fewest best-scored edges that keep {share} of the behaviour on the prompts of the search, by the method that needs fewest; pruned: those that are no dead ends. Faithfulness on held-out prompts, with 95 % bootstrap intervals. Jaccard: agreement of circuits of that size found on resampled prompts (published for indirect objects in GPT-2 small: .67)."),
        ("Every method", areas_table(rows), "Edges of the smallest circuit, faithfulness at 1 % of the edges, CPR (signed) and CMD (by size) on held-out prompts, and stability."),
    ]  # fmt: skip
    with replaced(folder, BEHAVIOUR_FILES, overwrite=overwrite) as partial:
        pd.DataFrame([vars(row) for row in rows]).to_parquet(partial / BEHAVIOUR_FILES[0])
        report(sections, partial / BEHAVIOUR_FILES[1], title="How small is a circuit?", command=command)
    return [folder / name for name in BEHAVIOUR_FILES]
