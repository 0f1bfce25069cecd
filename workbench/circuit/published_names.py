"""Which circuits from papers there are, and what each is, read without making a circuit of it."""

import json
from pathlib import Path
from typing import Any

from workbench import resources


def published_names() -> list[str]:
    """The names that `reference_circuit` knows, sorted.

    >>> published_names()
    ['docstring', 'greater_than', 'ioi']
    """
    return sorted(path.stem for path in (resources.circuits() / "reference").glob("*.json"))


def path_of(name: str) -> Path:
    """The file of a published circuit."""
    return resources.circuits() / "reference" / f"{name}.json"


def facts_of(name: str) -> dict[str, Any]:
    """The title, source and number of edges of a published circuit: `title`, `source`, `n_edges`."""
    contents = json.loads(path_of(name).read_text(encoding="utf-8"))
    attrs = contents["attrs"]
    return {"title": attrs["title"], "source": attrs["source"], "n_edges": len(contents["edges"])}
