"""Circuits, views and panels for the tests of the renderers, as fixtures."""

import pytest
from pictures import HOSTILE, TOKENS, make_circuit, make_panels, make_view

from workbench.circuit.circuit import Circuit
from workbench.render.circuit.svg import CircuitView
from workbench.sites import Shape


@pytest.fixture(scope="session")
def circuit() -> Circuit:
    return make_circuit()


@pytest.fixture(scope="session")
def grouped() -> Circuit:
    return make_circuit(Shape(4, 8, 2, 128, 16, 512, 376, 64), 50)


@pytest.fixture(scope="session")
def large() -> Circuit:
    return make_circuit(Shape(12, 12, 12, 768, 64, 3072, 50257, 1024), 200)


@pytest.fixture(scope="session")
def unscored() -> Circuit:
    return make_circuit(scored=False)


@pytest.fixture(scope="session")
def view(circuit) -> CircuitView:
    return make_view(circuit, TOKENS)


@pytest.fixture(scope="session")
def hostile(circuit) -> CircuitView:
    return make_view(circuit, HOSTILE, title=HOSTILE[0] + "\x00")


@pytest.fixture(scope="session")
def grouped_view(grouped) -> CircuitView:
    return make_view(grouped, TOKENS)


@pytest.fixture(scope="session")
def large_view(large) -> CircuitView:
    return make_view(large, [f" token{i}" for i in range(15)], top=200)


@pytest.fixture(scope="session")
def hostile_tokens() -> list[str]:
    return HOSTILE


@pytest.fixture(scope="session")
def view_of():
    """The function that makes a view with everything in it."""
    return make_view


@pytest.fixture(scope="session")
def circuit_of():
    """The function that makes a circuit of random complete paths."""
    return make_circuit


@pytest.fixture(scope="session")
def panels_of():
    """The function that makes a panel of each component."""
    return make_panels
