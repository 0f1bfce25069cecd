"""The table of all studies, from the evidence in their folders."""

from pathlib import Path

from workbench.discovery.criteria import Criteria
from workbench.studies import readme
from workbench.studies.counterfactuals import ALL, THIS
from workbench.studies.evidence import FILE, Evidence

_COLUMNS = ("faithfulness", "complement", "random circuits", "other heads", "stability")


def studies(circuits: Path) -> list[Path]:
    """The folders of a folder of circuits that hold a study, in alphabetical order."""
    return [path.parent for path in sorted(circuits.glob(f"*/{FILE}"))]


def table(circuits: Path) -> str:
    """The studies in a folder of circuits side by side, a row for each."""
    header = (
        "study",
        "edges",
        "holds against",
        "of all counterfactuals",
        *_COLUMNS,
        "highest on another task",
        "predictions held",
    )
    return readme.table(
        header, [_row(folder.name, Evidence.load(folder / FILE)) for folder in studies(circuits)]
    )


def _row(name: str, evidence: Evidence) -> tuple[str, ...]:
    # The hardest control: the other task whose behaviour the same edges keep most of.
    most = max(evidence.other_tasks, key=lambda row: row.mean)
    return (
        f"[{name}]({name}/README.md)",
        f"{evidence.n_edges} of {evidence.graph_edges}",
        ", ".join(
            row.counterfactual for row in evidence.counterfactuals if row.circuit == THIS and not row.fails
        )
        or "none",
        _of_all(evidence),
        *(str(evidence.estimate(column)) for column in _COLUMNS),
        f"{most} {most.name}",
        f"{evidence.n_held} of {len(evidence.tests)}",
    )


def _of_all(evidence: Evidence) -> str:
    """The smallest circuit that keeps the criteria against all counterfactuals."""
    for row in evidence.counterfactuals:
        if row.circuit == ALL:
            return f"{row.edges} edges"
    if evidence.search is not None and evidence.search.passes:
        return "this one"
    return f"none under {100 * Criteria().at_most:.0f} %"
