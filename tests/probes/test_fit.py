"""Sparse probes against scikit-learn and TransformerLens, and what they must find, must not find, and must not peek at."""

import numpy as np
import pytest
import torch
from closeness import close
from families import untyped
from probing import labelled, marginal, store_of, suppressors
from sklearn.linear_model import LogisticRegression, Ridge
from transformer_lens.tools.analysis.sparse_probing import sweep_sparse_probe

from workbench.errors import ProbeError
from workbench.probes.fit import fit_probes
from workbench.probes.fits import ProbeSettings
from workbench.probes.labels import Labels
from workbench.probes.selectors import SELECTORS

RAW = ProbeSettings(standardize=False)
ALONE = {"controls": [], "resampled": 0}


def none(probes, **where):
    """The cell of the true labels of a result with one layer and selector."""
    return probes.results.isel(layer=0, selector=0).sel(control="none", **where)


def test_the_probes_are_scikit_learns_on_the_same_split_and_penalty():
    x, y, _ = marginal(0, n=600, features=30)
    store, labels = labelled([x], {"c": y.tolist()})
    held_out = np.arange(len(y)) % 3 == 0
    probes = fit_probes(store, labels, k=[1, 4, 8], held_out=held_out, settings=RAW, **ALONE)
    for k in (1, 4, 8):
        cell = none(probes, concept="c", k=k)
        chosen = cell["feature"].values[:k]
        peer = LogisticRegression(
            C=1 / (1e-2 * (~held_out).sum()), class_weight="balanced", tol=1e-12, max_iter=10000
        )
        peer.fit(x[~held_out][:, chosen], y[~held_out])
        # Loose, because scikit-learn's solver stops early on features of unequal scale.
        scale = np.abs(peer.coef_).max()
        assert close(cell["coefficient"].values[0, :k], peer.coef_[0], tolerance=1e-3)
        assert close(cell["intercept"].values[0], peer.intercept_[0], tolerance=1e-3, scale=scale)
        assert float(cell["accuracy"]) == peer.score(x[held_out][:, chosen], y[held_out])
        assert (cell["feature"].values[k:] == -1).all()
        assert np.isnan(cell["coefficient"].values[:, k:]).all()


@pytest.mark.parametrize("multiclass", ["softmax", "one-vs-rest"])
def test_several_classes_are_scikit_learns(multiclass):
    x, _, _ = marginal(1, n=600, features=12)
    y = (x[:, :3] / x[:, :3].std(0)).argmax(1)
    store, labels = labelled([x], {"c": [f"class {v}" for v in y]})
    held_out = np.arange(len(y)) % 3 == 0
    settings = ProbeSettings(standardize=False, multiclass=multiclass)
    cell = none(
        fit_probes(store, labels, k=[4], held_out=held_out, settings=settings, **ALONE), concept="c", k=4
    )
    train, test = (x[rows][:, cell["feature"].values] for rows in (~held_out, held_out))
    options = {"C": 1 / (1e-2 * len(train)), "class_weight": "balanced", "tol": 1e-12, "max_iter": 10000}
    if multiclass == "softmax":
        peer = LogisticRegression(**options).fit(train, y[~held_out])
        coefficients, predicted = peer.coef_, peer.predict(test)
    else:
        peers = [LogisticRegression(**options).fit(train, y[~held_out] == c) for c in range(3)]
        coefficients = np.concatenate([peer.coef_ for peer in peers])
        predicted = np.stack([peer.decision_function(test) for peer in peers]).argmax(0)
    assert close(cell["coefficient"].values, coefficients, tolerance=1e-3)
    assert float(cell["accuracy"]) == (predicted == y[held_out]).mean()


def test_numbers_are_scikit_learns_ridge():
    x, _, _ = marginal(2, n=600, features=12)
    y = x[:, 3] / x[:, 3].std() * 2 + 5 + np.random.default_rng(0).normal(size=len(x))
    store, labels = labelled([x], {"c": y.tolist()})
    held_out = np.arange(len(y)) % 3 == 0
    cell = none(fit_probes(store, labels, k=[2], held_out=held_out, settings=RAW, **ALONE), concept="c", k=2)
    chosen = cell["feature"].values
    peer = Ridge(alpha=1e-2 * (~held_out).sum()).fit(x[~held_out][:, chosen], y[~held_out])
    assert chosen[0] == 3
    assert close(cell["coefficient"].values[0], peer.coef_, tolerance=1e-6)
    assert close(float(cell["r2"]), peer.score(x[held_out][:, chosen], y[held_out]), tolerance=1e-9)
    assert np.isnan(float(cell["accuracy"]))


@pytest.mark.parametrize("preprocess", ["none", "standardize"])
def test_the_sweep_is_transformer_lens(preprocess):
    x, y, _ = marginal(3, n=900, features=60)
    peer = sweep_sparse_probe(
        torch.from_numpy(x), torch.from_numpy(y), ks=[1, 2, 4, 8, 16], preprocess=preprocess
    )
    held_out = np.zeros(len(y), dtype=bool)
    held_out[peer.results[0].test_indices] = True
    settings = ProbeSettings(standardize=preprocess == "standardize")
    store, labels = labelled([x], {"c": y.tolist()})
    probes = fit_probes(
        store,
        labels,
        k=[1, 2, 4, 8, 16],
        selectors=["mean-difference"],
        held_out=held_out,
        settings=settings,
        **ALONE,
    )
    for theirs in peer.results:
        cell = none(probes, concept="c", k=theirs.k)
        assert cell["feature"].values[: theirs.k].tolist() == theirs.selected_features.tolist()
        coefficients = theirs.coefficients / theirs.preprocess_scale
        assert close(cell["coefficient"].values[0, : theirs.k], coefficients, tolerance=1e-6)
        for metric in ("accuracy", "f1", "roc_auc", "average_precision"):
            assert close(float(cell[metric]), getattr(theirs.metrics, metric), tolerance=1e-12)


def test_planted_neurons_are_found_at_the_true_k():
    """By every selector but the difference of means, which is misled by unequal scales."""
    for name in ("welch", "mutual-information", "l1", "forward", "add-prune"):
        recovered = [_recovered(marginal(seed), name) for seed in range(3)]
        assert np.mean(recovered) >= 0.97, name


def test_planted_suppressors_need_more_than_a_score_of_each_feature():
    assert np.mean([_recovered(suppressors(seed), "add-prune") for seed in range(3)]) >= 0.9
    assert np.mean([_recovered(suppressors(seed), "welch") for seed in range(3)]) <= 0.6


def _recovered(planted, selector):
    x, y, chosen = planted
    store, labels = labelled([x.astype(np.float32)], {"c": y.tolist()})
    probes = fit_probes(store, labels, k=[len(chosen)], selectors=[selector], **ALONE)
    return len(chosen & set(probes.results["feature"].values.ravel().tolist())) / len(chosen)


@pytest.mark.parametrize("selector", list(SELECTORS))
def test_a_feature_that_tells_the_held_out_rows_only_is_never_chosen(selector):
    x, y, _ = marginal(0, n=800, features=40)
    held_out = np.arange(len(y)) % 2 == 0
    leak = np.random.default_rng(1).normal(size=len(y))
    x[:, 7] = np.where(held_out, 10.0 * y, leak)
    in_training_too = x.copy()
    in_training_too[:, 7] = 10.0 * y
    chosen = {}
    for name, values in {"planted": x, "control": in_training_too}.items():
        store, labels = labelled([values], {"c": y.tolist()})
        probes = fit_probes(store, labels, k=[4], selectors=[selector], held_out=held_out, **ALONE)
        chosen[name] = probes.results["feature"].values.ravel().tolist()
    assert 7 not in chosen["planted"]
    assert 7 in chosen["control"]  # the same feature is chosen when training rows show it


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1000.1])
@pytest.mark.parametrize("kind", ["class", "number"])
def test_features_that_never_vary_are_chosen_last(kind, scale):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5))
    held_out = np.arange(60) % 3 == 0
    x[:, [0, 4]] = [scale, -3 * scale]
    x[0, 4] = 7.0  # in a held-out row only
    labels = x[:, 2] + 0.1 * rng.normal(size=60)
    if kind == "class":
        labels = labels > 0
    store, rows = labelled([x], {"c": labels.tolist()})
    options = ALONE | {"selectors": ["welch"], "held_out": held_out, "baselines": ["logistic"]}
    probes = fit_probes(store, rows, k=[1, 3], **options)
    assert probes.results["feature"].sel(k=1).values.ravel()[0] == 2
    assert set(probes.results["feature"].sel(k=3).values.ravel().tolist()) == {1, 2, 3}


def test_shuffled_labels_are_at_chance_and_true_ones_are_not():
    x, y, _ = marginal(0, n=1500, features=64)
    store, labels = labelled([x], {"c": y.tolist()})
    accuracies, inside = [], []
    for seed in range(4):
        probes = fit_probes(store, labels, k=[4], controls=["shuffle", "random-features"], draws=5, seed=seed)
        results = probes.results.isel(layer=0, k=0, selector=0, concept=0)
        assert float(results["accuracy_low"].sel(control="none")) > 0.6
        null = results.isel(control=results["control_kind"].values == "shuffle")
        accuracies += null["accuracy"].values.tolist()
        inside += ((null["accuracy_low"] <= 0.5) & (null["accuracy_high"] >= 0.5)).values.tolist()
    assert abs(np.mean(accuracies) - 0.5) < 0.02
    assert np.mean(inside) >= 0.7


def test_the_code_of_random_labels_takes_a_bit_each_and_of_separable_ones_far_less():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 20))
    concepts = {"separable": (x[:, 3] > 0).tolist(), "random": (rng.random(2000) > 0.5).tolist()}
    concepts["three"] = rng.choice(["a", "b", "c"], 2000).tolist()
    store, labels = labelled([x], concepts)
    results = fit_probes(store, labels, k=[1], code_length=True, **ALONE).results.squeeze()
    per_row = (results["code_length"] / results["n_train"]).values
    assert per_row[0] < 0.3
    assert 0.97 < per_row[1] < 1.08
    assert np.log2(3) * 0.97 < per_row[2] < np.log2(3) * 1.08


def test_nothing_is_left_to_a_linear_probe_after_erasure():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 30)) @ rng.normal(size=(30, 30))
    concepts = {
        "two": (x[:, 0] > 0).tolist(),
        "three": [("a", "b", "c")[int(v)] for v in np.digitize(x[:, 1], [-2, 2])],
    }
    store, labels = labelled([x], concepts)
    probes = fit_probes(store, labels, k=[1], baselines=["logistic", "mass-mean", "erased"], **ALONE)
    results = probes.baselines.isel(layer=0, control=0)
    accuracy = {
        name: results["balanced_accuracy"].sel(baseline=name).values for name in results["baseline"].values
    }
    assert (accuracy["logistic"] > [0.95, 0.8]).all()
    # Chance, give or take what 360 held-out rows leave to luck.
    assert accuracy["erased"] == pytest.approx([1 / 2, 1 / 3], abs=0.04)
    assert (accuracy["mass-mean"] > [0.55, 0.37]).all()
    assert results["converged"].values.all()


def test_a_direction_gives_the_probes_own_predictions():
    x, y, _ = marginal(0, n=600, features=24)
    store, labels = labelled([x.reshape(-1, 4, 6)], {"c": y.tolist()}, kind="z")
    held_out = np.arange(len(y)) % 3 == 0
    probes = fit_probes(
        store, labels, sites=["z"], k=[2, 4], held_out=held_out, baselines=["logistic"], draws=1, resampled=0
    )
    direction = probes.direction("c", layer=0, k=4)
    assert direction.shape == (4, 6)
    cell = none(probes, concept="c", k=4)
    logits = x @ direction.flatten().numpy() + float(cell["intercept"][0])
    assert float(cell["accuracy"]) == ((logits >= 0) == y)[held_out].mean()
    dense = probes.direction("c", layer=0, baseline="logistic")
    intercept = float(probes.baselines["intercept"].sel(control="none").squeeze())
    predicted = x @ dense.flatten().numpy() + intercept >= 0
    accuracy = float(probes.baselines["accuracy"].sel(control="none").squeeze())
    assert accuracy == (predicted == y)[held_out].mean()


def test_positions_are_probed_apart():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 6, size=300)
    x = rng.normal(size=(lengths.sum(), 10))
    ends = np.cumsum(lengths) - 1
    store = store_of([x], lengths=lengths)
    labels = Labels.per_prompt(store, {"c": (x[ends, 4] > 0).tolist()}, pos=["END", 0])
    results = fit_probes(store, labels, k=[1], pos=["END", 0], **ALONE).results.squeeze()
    assert results["pos"].values.tolist() == ["END", "0"]
    assert results["accuracy"].values[0] > 0.9
    assert results["accuracy"].values[1] < 0.7
    assert results["feature"].values[0] == 4


def test_folds_judge_every_row_and_keep_a_probe_of_all():
    x, y, _ = marginal(0, n=300, features=20)
    store, labels = labelled([x], {"c": y.tolist()})
    cell = none(fit_probes(store, labels, k=[2], folds=5, **ALONE), concept="c", k=2)
    assert float(cell["n"]) == 300
    assert float(cell["n_train"]) == 300
    assert float(cell["accuracy"]) > 0.6


def test_a_probe_that_ran_out_of_steps_says_so():
    x, y, _ = marginal(0, n=300, features=20)
    store, labels = labelled([x], {"c": y.tolist()})
    results = fit_probes(store, labels, k=[2], settings=ProbeSettings(max_iter=1), **ALONE).results
    assert results["converged"].values.ravel().tolist() == [0.0]
    assert float(results["decrement"].squeeze()) > 1e-12


@pytest.mark.parametrize("budget", [2**19, 2**21])
def test_a_small_budget_streams_to_the_same_numbers(budget):
    x, y, _ = marginal(0, n=1000, features=100)
    options = {"k": [1, 4], "selectors": ["welch", "mutual-information"], "baselines": ["logistic"]}
    held_out = np.stack([np.arange(len(y)) % 3 == 0, np.arange(len(y)) % 4 == 1])  # of different sizes
    store, labels = labelled([x], {"c": y.tolist(), "d": (~y).tolist()})
    options |= {"held_out": held_out, "draws": 1, "resampled": 20}
    little, much = (fit_probes(store, labels, budget=b, **options) for b in (budget, 2**30))
    for name in ("feature", "coefficient", "accuracy", "roc_auc_low"):
        assert close(little.results[name], much.results[name], tolerance=1e-9), name
    assert close(little.baselines["accuracy"], much.baselines["accuracy"], tolerance=1e-9)


def test_a_perfect_score_has_the_limits_of_so_many_groups():
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2 == 0
    x = rng.normal(size=(40, 3)) * 0.01
    x[:, 1] += np.where(y, 5, -5)
    store, labels = labelled([x], {"c": y.tolist()})
    cell = none(fit_probes(store, labels, k=[1], controls=[], held_out=np.arange(40) < 10), concept="c", k=1)
    assert float(cell["accuracy"]) == 1
    assert float(cell["accuracy_low"]) == pytest.approx(0.025 ** (1 / 10))
    assert float(cell["accuracy_high"]) == 1


def test_rows_held_out_by_hand_go_with_positions():
    x, y, _ = marginal(0, n=240, features=10)
    store, labels = labelled([x], {"c": y.tolist()}, lengths=[2] * 80 + [1] * 80)
    held_out = labels.prompt % 3 == 0
    both = fit_probes(store, labels, k=[2], pos=[0, 1], held_out=held_out, controls=[], resampled=0)
    assert both.results["n"].squeeze().values.tolist() == [
        float((held_out & (labels.pos == at)).sum()) for at in (0, 1)
    ]
    with pytest.raises(ProbeError, match="mark which of the 240 labelled rows are held out"):
        fit_probes(store, labels, k=[2], pos=[0, 1], held_out=held_out[:80], controls=[])


def test_empty_lists_are_refused():
    x, y, _ = marginal(0, n=60, features=5)
    store, labels = labelled([x], {"c": y.tolist()})
    for given in ({"layers": []}, {"pos": []}, {"selectors": []}, {"layers": 0}):
        with pytest.raises(ProbeError, match="give a list of at least one"):
            untyped(fit_probes)(store, labels, k=[1], **given)
    with pytest.raises(ProbeError, match="budget=-1"):
        fit_probes(store, labels, k=[1], budget=-1)
