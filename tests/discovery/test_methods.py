"""`find_by`: one call for every method, its default size, and the scores of single prompts
that come with it.
"""

import numpy as np
import pytest
from closeness import close
from families import model_of, pairs_and_stores

from workbench.circuit.graph import Graph
from workbench.discovery.methods import DEFAULT_SHARE, MEANS_OVER_EXAMPLES, METHODS, find_by
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.values import from_store
from workbench.errors import CircuitError, UnknownName


def test_scores_of_single_prompts_come_with_the_mean_that_is_cut():
    """`discover` draws intervals from them, so they must be the scores that it cut, without a second pass."""
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    value = from_store(corrupt)
    for method in MEANS_OVER_EXAMPLES:
        discovery = find_by(method, model, pairs, value=value, by_example=True, progress=False)
        plain = score_edges(model, pairs, value=value, method=method, progress=False)
        assert discovery.by_example is not None, method
        assert discovery.by_example.dims == ("example", "writer", "reader"), method
        assert close(discovery.scores, plain), method
        assert close(discovery.by_example.mean("example", skipna=False), plain), method
        assert discovery.scores.attrs == plain.attrs, method
        assert discovery.circuit == find_circuit(discovery.scores, n_edges=2), method
    assert find_by("eap", model, pairs, value=value, progress=False).by_example is None
    assert find_by("random", model, pairs, value=value, by_example=True, progress=False).by_example is None


def test_every_method_finds_a_circuit_of_the_default_size():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    n_edges = Graph.of(model).n_edges
    for method in METHODS:
        steps = 2 if method.startswith("learn") else None
        discovery = find_by(method, model, pairs, value=from_store(corrupt), steps=steps, progress=False)
        assert int(np.isfinite(discovery.scores.values).sum()) == n_edges, method
        if method not in ("acdc", "learn-nodes"):
            assert discovery.circuit.n_requested == int(DEFAULT_SHARE * n_edges) == 2, method


def test_what_a_method_cannot_do_is_refused():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    for error_type, method, size, message in (
        (CircuitError, "acdc", {"n_edges": 3}, "acdc decides the size of its circuit by its threshold, so n_edges=3 has no meaning for it."),
        (CircuitError, "acdc", {"steps": 3}, "acdc tries every edge once, so steps=3 has no meaning for it."),
        (UnknownName, "eapp", {}, "method='eapp' is not known."),
    ):  # fmt: skip
        with pytest.raises(error_type) as error:
            find_by(method, model, pairs, value=from_store(corrupt), **size)
        assert str(error.value).startswith(message), method
