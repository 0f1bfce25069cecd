"""The names that a shell completes and `workbench ls` prints, with what each means.

Everything here is read from small modules and files: a completion that imports the engine would make the shell
wait for seconds at every press of the key.
"""

from collections.abc import Callable, Iterator
from typing import Any

from workbench import names

Row = dict[str, Any]


def tasks() -> list[Row]:
    """The tasks."""
    from workbench.tasks.task import TASKS

    rows = []
    for task in TASKS.values():
        rows.append(
            {"task": task.name, "description": task.description, "variants": ", ".join(task.variants)}
        )
    return rows


def models() -> list[Row]:
    """The models that can be loaded by name: embedded ones, and those that `models get` brings."""
    from workbench.models import embedded, pinned

    rows: list[Row] = []
    for name in embedded.names():
        # models that were not kept while they were trained have no steps
        steps = ", ".join(f"{name}@{step}" for step in embedded.steps(name))
        about = f"training steps: {steps}" if steps else "made by a script of the repository"
        rows.append({"model": name, "state": "embedded", "about": about})
    for weights in pinned.PINNED.values():
        state = (
            f"not here; {pinned.megabytes(weights.download)} to download, "
            f"{pinned.megabytes(weights.disk)} on the disk"
        )
        if pinned.is_cached(weights):
            n_bytes = sum(path.stat().st_size for path in pinned.folder_of(weights).iterdir())
            state = f"here, {pinned.megabytes(n_bytes)} in {pinned.folder_of(weights)}"
        rows.append({"model": weights.name, "state": state, "about": f"{weights.licence}. {weights.origin}."})
    rows.append(
        {"model": "PATH", "state": "yours", "about": "a local Hugging Face directory, or a .gguf file"}
    )
    rows.append({"model": "gpt2, ...", "state": "from the Hub", "about": "any name there; needs a network"})
    return rows


def methods() -> list[Row]:
    """The methods that score edges or choose them, and those of effects."""
    rows: list[Row] = []
    of_kinds = (
        ("edges", names.SCORE_METHODS),
        ("circuit", names.SEARCHES),
        ("effects", names.EFFECT_METHODS),
    )
    for scored, meanings in of_kinds:
        for name, meaning in meanings.items():
            rows.append({"method": name, "of": scored, "meaning": meaning})
    return rows


def metrics() -> list[Row]:
    """The built-in metrics."""
    return [{"metric": name, "meaning": meaning} for name, meaning in names.METRICS.items()]


def values() -> list[Row]:
    """The values by name."""
    return [{"value": name, "meaning": meaning} for name, meaning in names.VALUES.items()]


def circuits() -> list[Row]:
    """The published circuits."""
    from workbench.circuit.published_names import facts_of, published_names

    rows = []
    for name in published_names():
        facts = facts_of(name)
        rows.append(
            {"circuit": name, "title": facts["title"], "edges": facts["n_edges"], "source": facts["source"]}
        )
    return rows


LISTINGS: dict[str, Callable[[], list[Row]]] = {
    "tasks": tasks, "models": models, "methods": methods, "metrics": metrics, "values": values,
    "circuits": circuits,
}  # fmt: skip
"""What `workbench ls` lists → its rows, of which the first column is the name."""


def completion(what: str, *scored: str) -> Callable[[str], Iterator[tuple[str, str]]]:
    """What completes a name in the shell: a function of the beginning that was typed.

    Args:
        what: one of `LISTINGS`, or "listings" for their names.
        scored: of methods, only those of these: "edges", "circuit", "effects".
    """

    def complete(incomplete: str) -> Iterator[tuple[str, str]]:
        """The names that begin so, each with a few words on it."""
        if what == "listings":
            yield from ((name, "") for name in LISTINGS if name.startswith(incomplete))
            return
        for row in LISTINGS[what]():
            name, about = list(row.values())[:2]
            if scored and row.get("of") not in scored:
                continue
            if name.startswith(incomplete):
                yield name, str(row.get("meaning", about))

    return complete
