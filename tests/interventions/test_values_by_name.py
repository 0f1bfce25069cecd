"""Values and sites by name give in Python what the values and grids that they stand for give, bit for bit."""

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from workbench.errors import EditError, SiteError, UnknownName
from workbench.names import SCORE_METHODS


@pytest.fixture(scope="module")
def model():
    return wb.load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def pairs(model):
    return wb.load_task("ioi", model, n=4)


@pytest.fixture(scope="module")
def stores(model, pairs):
    return wb.capture_pairs(model, pairs, progress=False)


def values_of(stores):
    """Name → the value that it stands for, of the clean run."""
    clean, corrupt = stores
    return {
        None: wb.from_store(corrupt), "corrupt": wb.from_store(corrupt), "zero": wb.zero(), "mean": wb.mean(clean),
        "resample": wb.resample(clean), "constant:0.5": wb.constant(0.5), "scale:0.5": wb.scale(0.5),
    }  # fmt: skip


@pytest.fixture(scope="module")
def values(stores):
    return values_of(stores)


@pytest.fixture(scope="module")
def small():
    """A model whose circuits run in no time, its pairs and the values of these."""
    known = wb.planted("induction", n=8)
    pairs = wb.planted_pairs(known)
    return known.model, pairs, values_of(wb.capture_pairs(known.model, pairs, progress=False))


def test_effects_of_a_name_are_those_of_its_value(model, pairs, stores, values):
    for name, value in values.items():
        by_name = wb.effects(model, pairs, sites="heads", value=name, progress=False)
        by_value = wb.effects(model, pairs, sites=wb.grid("z", model), value=value, progress=False)
        np.testing.assert_array_equal(by_name, by_value, err_msg=str(name))
        assert by_name.attrs["value"] == by_value.attrs["value"]
        assert by_name.attrs["sites"] == "z"
        assert by_name.attrs["value_name"] == (name or "corrupt")
        assert "value_name" not in by_value.attrs
    denoised = wb.effects(model, pairs, sites=["z[1.0]"], base="corrupt", progress=False)
    assert denoised.attrs["value_from"] == "the clean prompts of these pairs"
    # The mean is that of the run that is edited.
    ablated = wb.effects(model, pairs, sites=["z[1.0]"], base="corrupt", value="mean", progress=False)
    same = wb.effects(
        model, pairs, sites=["z[1.0]"], base="corrupt", value=wb.mean(stores[1]), progress=False
    )
    np.testing.assert_array_equal(ablated, same)


def test_circuits_of_a_name_are_those_of_its_value(small):
    model, pairs, values = small
    quiet = {"progress": False}
    for name in (None, "mean"):
        scores = wb.score_edges(model, pairs, value=name, **quiet)
        xr.testing.assert_equal(scores, wb.score_edges(model, pairs, value=values[name], **quiet))
        nodes = wb.score_nodes(model, pairs, value=name, method="gradient", **quiet)
        assert nodes.attrs["value_name"] == (name or "corrupt")
        circuit = wb.find_circuit(scores, n_edges=12)
        by_name = wb.evaluate(circuit, model, pairs, value=name, checks=(), **quiet)
        xr.testing.assert_equal(
            by_name, wb.evaluate(circuit, model, pairs, value=values[name], checks=(), **quiet)
        )
        assert by_name.attrs["value_name"] == (name or "corrupt")
        curve = wb.faithfulness_curve(scores, model, pairs, value=name, sizes=[0.05], **quiet)
        assert curve.attrs["value_name"] == (name or "corrupt")
        # Scores know by which name their value was given, so that a size can be searched with it.
        searched = wb.find_circuit(scores, min_faithfulness=0.3, model=model, pairs=pairs)
        assert searched == wb.find_circuit(
            scores, min_faithfulness=0.3, model=model, pairs=pairs, value=values[name]
        )
    both = wb.evaluate(
        circuit, model, pairs, value={"zero": "zero", "mean": values["mean"]}, checks=(), **quiet
    )
    assert both["ablation"].values.tolist() == ["zero", "mean"]
    assert "value_from" not in wb.score_edges(model, pairs, value={"mean": "mean"}, **quiet).attrs
    missed = wb.minimality(circuit, model, pairs, value="zero", **quiet)
    assert missed.attrs["value"] == missed.attrs["value_name"] == "zero"


@pytest.mark.parametrize("method", sorted(set(SCORE_METHODS) - {"exact", "conditional", "random"}))
def test_every_method_finds_what_it_reads_of_a_value(small, method):
    model, pairs, values = small
    arguments = {"method": method, "steps": 2, "progress": False}
    scores = wb.score_edges(model, pairs, value="resample", **arguments)
    xr.testing.assert_equal(scores, wb.score_edges(model, pairs, value=values["resample"], **arguments))


def test_a_mask_is_trained_with_a_value_by_name(small):
    model, pairs, _ = small
    circuit = wb.learn_circuit(model, pairs, value="corrupt", n_edges=12, steps=2, restarts=0, progress=False)
    assert circuit.attrs["value_name"] == "corrupt"


def test_kinds_and_words_stand_for_their_grids(model, pairs):
    for words, grid in (
        ("mlps", wb.grid("mlp_out", model)),
        ("resid_pre@END", wb.grid("resid_pre", model, pos=["END"])),
        ("resid_pre@each", wb.grid("resid_pre", model, pos="each")),
        ("attn_out@3", wb.grid("attn_out", model, pos=[3])),
    ):
        named = wb.effects(model, pairs, sites=words, value="zero", progress=False)
        xr.testing.assert_identical(
            named.drop_attrs(),
            wb.effects(model, pairs, sites=grid, value=wb.zero(), progress=False).drop_attrs(),
        )
    listed = wb.effects(model, pairs, sites=["mlps", "z[1.2]"], value="zero", progress=False)
    assert listed["site"].values.tolist() == [*(f"mlp_out[{i}]" for i in range(4)), "z[1.2]"]
    assert wb.capture(model, pairs.clean, sites="heads", progress=False).keys[0] == ("z", 0)
    assert wb.grid("heads", model) == wb.grid("z", model)
    with pytest.raises(UnknownName, match=r"kind='head' is not known\. Did you mean 'heads'"):
        wb.effects(model, pairs, sites="head", value="zero")
    with pytest.raises(SiteError):
        wb.effects(model, pairs, sites="z@", value="zero")


def test_paths_take_names_too(model, pairs, values):
    quiet = {"progress": False, "mlps": "frozen"}
    every = wb.path_effects(model, pairs, senders="all", value="mean", **quiet)
    xr.testing.assert_equal(every, wb.path_effects(model, pairs, value=values["mean"], **quiet))
    assert every.attrs["value_from"] == "the clean prompts of these pairs"
    plan = wb.explain(model, pairs, senders="all", value="mean")
    assert plan.path == wb.explain(model, pairs, value=values["mean"]).path


def test_an_optimal_constant_is_fitted_to_each_site(model, pairs):
    optimal = wb.effects(model, pairs, sites=["z[3.0]", "mlp_out[0]"], value="optimal", progress=False)
    ablated = wb.effects(model, pairs, sites=["z[3.0]", "mlp_out[0]"], value="mean", progress=False)
    # Its loss is the mean square of the effect, and no constant kept is worse than the mean.
    assert ((optimal**2).mean("example") <= (ablated**2).mean("example") + 1e-6).all()
    assert optimal.attrs["value"] == "optimal"


def test_names_that_cannot_be_written_are_refused(model, pairs):
    with pytest.raises(EditError, match="is the run that is edited"):
        wb.effects(model, pairs, sites="heads", value="clean")
    with pytest.raises(UnknownName, match=r"value='men' is not known\. Did you mean 'mean'"):
        wb.score_edges(model, pairs, value="men")
    with pytest.raises(EditError, match="is a constant fitted to each site"):
        wb.path_effects(model, pairs, value="optimal", mlps="frozen")
    with pytest.raises(EditError, match="after the colon comes a finite number"):
        wb.evaluate(wb.Circuit.full(model), model, pairs, value="constant:x")
