"""Curves, their areas, and stability: values known beforehand, and what is refused."""

import json

import numpy as np
import pytest
import xarray as xr
from closeness import close
from families import model_of, pairs_and_stores

from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.values import from_store, zero
from workbench.errors import CircuitError, UnknownName, WorkbenchError
from workbench.evaluation.curves import SIZES, area, faithfulness_curve, stability
from workbench.results import load, save


def test_areas_of_known_curves():
    assert close(area(np.ones(10)), 0.999)
    assert area(np.ones(10), by="magnitude") == 0
    assert area(np.zeros(10)) == 0
    assert close(area(np.zeros(10), by="magnitude"), 0.999)
    line = np.array(SIZES)
    assert close(area(line), (1 - 0.001**2) / 2)
    assert close(area(1 + line, by="magnitude"), area(1 - line, by="magnitude"))
    assert np.isnan(area(np.full(10, np.nan)))
    with pytest.raises(UnknownName) as error:
        area(np.ones(10), by="size")
    assert str(error.value) == "by='size' is not known. Did you mean 'signed'? Choices: magnitude, signed."


@pytest.mark.parametrize("by", ["signed", "magnitude"])
def test_the_area_lies_in_its_interval_and_is_saved(by, tmp_path):
    model, lengths = model_of("gpt2"), (6,) * 8
    pairs, _, corrupt = pairs_and_stores("gpt2", lengths)
    scores = score_edges(model, pairs, value=from_store(corrupt))
    curve = faithfulness_curve(scores, model, pairs, value=from_store(corrupt), by=by)
    assert curve.attrs["area_low"] < curve.attrs["area"] < curve.attrs["area_high"]
    assert (curve.low <= curve.faithfulness + 1e-9).all()
    assert (curve.faithfulness <= curve.high + 1e-9).all()
    loaded = load(save(curve, tmp_path / "curve.nc"))
    assert loaded.equals(curve)
    assert loaded.attrs == curve.attrs


@pytest.mark.parametrize("more", [{"positions": [2, "END"]}, {"neurons": [1]}])
def test_finer_graphs_have_curves(more):
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    scores = score_edges(model, pairs, value=from_store(corrupt), **more)
    curve = faithfulness_curve(scores, model, pairs, value=from_store(corrupt), sizes=[0.0, 0.3, 1.0])
    n = Graph.of(model, **more).n_edges
    assert curve.n_edges.values.tolist() == [0, int(0.3 * n), n]
    assert close(curve.faithfulness[[0, 2]], [0.0, 1.0], tolerance=1e-4)


def test_pairs_that_do_not_differ_have_no_area():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    scores = score_edges(model, pairs, value=from_store(corrupt))

    def same(logits):
        return logits[:, 0, 0] * 0

    curve = faithfulness_curve(scores, model, pairs, value=from_store(corrupt), metric=same)
    assert curve.faithfulness.isnull().all()
    assert np.isnan([curve.attrs["area"], curve.attrs["area_low"], curve.attrs["area_high"]]).all()


def test_sizes_that_are_none_are_refused():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    scores = score_edges(model, pairs, value=from_store(corrupt))
    for sizes in ([], [2.0], [-0.1], [float("nan")]):
        with pytest.raises(CircuitError) as error:
            faithfulness_curve(scores, model, pairs, value=from_store(corrupt), sizes=sizes)
        assert str(error.value) == (
            f"faithfulness_curve: sizes={sizes}; they are shares of the edges, from 0 to 1, and at least one."
        )
    with pytest.raises(WorkbenchError) as level:
        faithfulness_curve(scores, model, pairs, value=zero(), level=1.5)
    assert str(level.value) == "level=1.5: the coverage of an interval lies between 0 and 1, as in 0.95."


# ---- stability


def kept_scores(values):
    """Scores of several prompts, from [example, writer, reader]."""
    graph = Graph.of(model_of("gpt2"))
    values = np.where(graph.exists, values, np.nan)
    coords = {"writer": list(graph.writers), "reader": list(graph.readers)}
    attrs = {"graph": json.dumps(graph.to_dict()), "metric": "logit_diff"}
    return xr.DataArray(values, dims=("example", "writer", "reader"), coords=coords, attrs=attrs)


def thirty(scores):
    return find_circuit(scores, n_edges=30)


def test_prompts_that_are_alike_give_one_circuit():
    graph = Graph.of(model_of("gpt2"))
    one = np.random.default_rng(0).normal(size=graph.exists.shape)
    agreement = stability(kept_scores(np.stack([one] * 5)), find=thirty, draws=6)
    assert (float(agreement.jaccard), float(agreement.low), float(agreement.high)) == (1, 1, 1)
    assert (
        agreement.n_edges.values.tolist()
        == [thirty(kept_scores(one[None]).mean("example", keep_attrs=True)).n_edges] * 6
    )
    none = stability(
        kept_scores(np.stack([one] * 5)), find=lambda scores: find_circuit(scores, n_edges=0), draws=3
    )
    assert float(none.jaccard) == 1, "two empty circuits agree"


def test_prompts_that_differ_give_circuits_that_do_and_the_seed_decides():
    graph = Graph.of(model_of("gpt2"))
    scores = kept_scores(np.random.default_rng(0).normal(size=(5, *graph.exists.shape)))
    first, again, other = (stability(scores, find=thirty, draws=8, seed=seed) for seed in (0, 0, 1))
    assert 0 < float(first.jaccard) < 0.9
    assert float(first.low) <= float(first.jaccard) <= float(first.high)
    assert first.identical(again)
    assert not first.equals(other)


def test_what_has_no_stability_is_refused():
    graph = Graph.of(model_of("gpt2"))
    scores = kept_scores(np.zeros((3, *graph.exists.shape)))

    def refused(given=scores, **how):
        with pytest.raises(WorkbenchError) as error:
            stability(given, **({"find": thirty, "draws": 3} | how))
        return str(error.value)

    assert (
        refused(scores[0])
        == "stability: scores of every prompt are needed: score_edges(..., keep=('example',))."
    )
    for draws in (0, 1, -2):
        assert refused(draws=draws) == f"stability: draws={draws}; at least two circuits are compared."
    assert refused(seed=-1) == "seed=-1: a whole number from 0 up is needed."
    assert refused(level=2.0) == "level=2.0: the coverage of an interval lies between 0 and 1, as in 0.95."
    placed = Graph.of(model_of("gpt2"), positions=[2])
    turns = iter([Circuit.full(graph), Circuit.of(placed, placed.exists), Circuit.full(graph)])
    assert refused(find=lambda scores: next(turns)) == (
        "stability: find= returned circuits of different graphs, which share no edges to compare."
    )
    assert (
        refused(find=lambda scores: thirty(scores).edges)
        == "stability: find= must return a Circuit, and it returned ndarray."
    )
    broken = scores.copy()
    broken[0, 0, 0] = np.nan
    assert refused(broken, draws=8) == (
        "find_circuit: the score of input->a0.0<q> is not a finite number (1 of all scores are not). Check the "
        "metric, the edits and the model's dtype."
    )
