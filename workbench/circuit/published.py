"""Circuits from papers, as data: `circuits/reference/` holds them, with their sources and nodes' roles."""

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.circuit.published_names import path_of, published_names
from workbench.errors import UnknownName


@checked
def reference_circuit(name: str) -> Circuit:
    """A published circuit, on the graph of its own model: `ioi`, `greater_than` or `docstring`.

    `labels` are the roles of its nodes, `attrs` its source and what had to be assumed;
    circuits/reference/README.md says more. It has no scores.

    Raises:
        UnknownName: any other name.

    >>> ioi = reference_circuit("ioi")
    >>> ioi.labels["a9.9"], len(ioi.heads)
    ('name mover', 26)
    """
    if name not in published_names():
        raise UnknownName("circuit", name, published_names())
    return Circuit.load(path_of(name))
